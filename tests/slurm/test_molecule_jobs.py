"""A run of many molecules as Slurm jobs: arrays share every molecule's work, and the next job merges all of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster
from jobs import logs, small_config, submit, write_site

from hpc_molgen import molecules
from hpc_molgen.run import STAGES, Run

Command = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slurm


def test_arrays_and_ranks_work_through_all_molecules(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    config, out = small_config(tmp_path, "molecules=[{name: one}, {name: two, seed: 2}]", "farm.n_replicas=2"), tmp_path / "run"
    site = write_site(tmp_path, nodes=2, array=2, stages={"farm": {"array": 2}})
    jobs = submit(command, cluster, config, site, out, "--to", "farm")
    assert list(jobs) == ["reference", "train", "sample", "correct", "farm", "farm-merge"]
    rows = json.loads(command("status", str(out), "--json", env=cluster.env).stdout)
    assert rows[2]["slurm"].startswith(f"job {jobs['train']}") and [row["molecule"] for row in rows[7:]] == ["one", "two"]
    assert cluster.wait(jobs["farm-merge"]) == "COMPLETED", logs(out)
    run = Run.open(out)
    assert [stage for stage in STAGES if not molecules.is_done(run, stage)] == ["report"], logs(out)
    for one in molecules.members(run):
        assert one.details("train")["ranks"] == 2
        shares = [json.loads(line)["workers"] for line in one.path("costs", "sample.jsonl").read_text().splitlines()]
        assert len(shares) == 4  # two jobs of an array, and two ranks that merge
        assert len(list(one.path("farm").glob("ledger-0000?.jsonl"))) == 2
    assert run.details("farm")["n_replicas"] == 4
