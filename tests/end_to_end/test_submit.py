"""`hpc-molgen submit` without a cluster, and the options of `run` that jobs use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_molgen.run import Run

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_wrong_site_is_one_message_and_writes_nothing(command: Command, tmp_path: Path) -> None:
    wrong = tmp_path / "site.yaml"
    wrong.write_text(json.dumps({"partion": "main"}))
    for site, said in ((str(wrong), "partition"), ("moon", "slurm/sites/moon.yaml")):
        ended = command("submit", "tiny", "--site", site, "--out", str(tmp_path / "run"))
        assert ended.returncode == 2 and said in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_without_slurm_the_error_says_so_and_nothing_is_written(command: Command, tmp_path: Path) -> None:
    env = os.environ | {"PATH": str(tmp_path)}
    ended = command("submit", "tiny", "--site", "cpu", "--out", str(tmp_path / "run"), env=env)
    assert ended.returncode == 2
    assert "sbatch" in ended.stderr and "--site local" in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("slurm_says", "we_say"),
    [
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", "wait for jobs to end"),
        ("Unable to contact slurm controller (connect failure)", "does not answer: try again later"),
        ("Invalid account or account/partition combination specified", "sacctmgr show associations"),
        ("Requested node configuration is not available", "sinfo --Node --long"),
    ],
)
def test_what_slurm_refuses_comes_with_what_to_do(command: Command, tmp_path: Path, slurm_says: str, we_say: str) -> None:
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text(
            f'#!/bin/bash\necho "sbatch: error: Batch job submission failed: {slurm_says}" >&2\nexit 1\n'
        )
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ended = command("submit", "tiny", "--site", "generic", "--out", str(tmp_path / "run"), env=env)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr and ended.stderr.count(slurm_says) == 1
    assert "Slurm refused the job of stage 'reference'" in ended.stderr and we_say in ended.stderr


def test_local_site_runs_stages_in_sequence_and_reports_a_failure(command: Command, tmp_path: Path) -> None:
    small = [f"--set=reference.{setting}" for setting in ("production_ps=1", "bias_torsion=null", "starts=given")]
    out = tmp_path / "run"
    ended = command("submit", "tiny", *small, "--site", "local", "--out", str(out), "--only", "reference")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert Run.open(out).is_done("reference")
    shutil.rmtree(out / "reference")
    ended = command("submit", "tiny", *small, "--site", "local", "--out", str(out), "--only", "featurize")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "'featurize' failed" in ended.stderr and "log:" in ended.stderr


def test_stages_that_a_system_without_structures_cannot_have_are_not_submitted(command: Command, tmp_path: Path) -> None:
    chain = "triple-well", "--site", "generic", "--dry-run", "--out", str(tmp_path / "run")
    ended = command("submit", *chain)
    assert ended.returncode == 0, ended.stderr
    assert ", sample" in ended.stdout or "---- sample" in ended.stdout
    assert "correct" not in ended.stdout and "farm" not in ended.stdout
    alone = command("submit", *chain, "--only", "farm")
    assert alone.returncode == 2 and "triple-well has none" in alone.stderr and "Traceback" not in alone.stderr


def test_a_share_of_a_stage_by_hand(command: Command, tmp_path: Path) -> None:
    for arguments, said in (
        (["--share", "2/2", "--only", "reference"], "K from 0 to N-1"),
        (["--share", "0/2"], "--only reference or --only sample"),
        (["--only", "train", "--to", "farm"], "--only excludes"),
        (["--from", "farm", "--to", "train"], "nothing in between"),
    ):
        ended = command("run", "tiny", "--out", str(tmp_path / "run"), *arguments)
        assert ended.returncode == 2 and said in ended.stderr, ended.stderr
    assert not (tmp_path / "run").exists()
