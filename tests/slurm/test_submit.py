"""`hpc-molgen submit` and slurm/run.sbatch, on a real Slurm cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from cluster import Cluster

from hpc_molgen.config import RunConfig, dump_config, load_config
from hpc_molgen.launch.site import SITES, SiteConfig, Stage, load_site
from hpc_molgen.launch.submit import submit_stages
from hpc_molgen.run import STAGES, Run
from hpc_molgen.workers import Workers

Command = Callable[..., subprocess.CompletedProcess[str]]
HAS_REPORT = importlib.util.find_spec("hpc_molgen.efficiency.report") is not None
# enough for a surrogate that runs, not for one that is right: the machine has few cores and the queue seven jobs
SMALL = ["reference.production_ps=2", "reference.equilibration_ps=0.2", "train.n_steps=20", "sample.n_samples=100"]
SMALL += [
    "sample.shard_size=50",
    "correct.n_structures=4",
    "farm.n_replicas=4",
    "farm.production_ps=0.5",
    "farm.minimise_iterations=20",
]


def small_config(folder: Path) -> Path:
    path = folder / "small.yaml"
    path.write_text(dump_config(load_config("tiny", SMALL)))
    return path


def write_site(folder: Path, **values: object) -> Path:
    path = folder / "site.yaml"
    path.write_text(json.dumps(values))
    return path


def all_done(config: Path, out: Path) -> bool:
    run = Run(out, load_config(str(config)), Workers())
    return all(run.is_done(stage) for stage in STAGES if HAS_REPORT or stage != "report")


def logs(out: Path) -> str:
    return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(out.glob("submitit/*/*_log.out")))


def test_every_key_of_a_site_is_in_the_generic_file_with_its_default() -> None:
    text = (SITES / "generic.yaml").read_text()
    assert [name for name in SiteConfig.model_fields if not re.search(rf"^(# )?{name}:", text, re.MULTILINE)] == []
    assert load_site("generic") == SiteConfig()
    assert get_args(Stage) == tuple(STAGES)


def test_dry_run_shows_what_would_be_submitted_and_writes_nothing(tmp_path: Path) -> None:
    site = write_site(
        tmp_path, partition="big one", account="chem", nodes=2, tasks_per_node=4, gpus_per_node=4, memory="16G", minutes=90,
        stage_minutes={"farm": 600}, setup=["module load cuda"], mail="me@here", mpi="pmix", python="/opt/my python",
    )  # fmt: skip
    out = tmp_path / "run"
    lines = list(submit_stages(RunConfig(name="ala"), str(site), out, only=None, dry_run=True))
    scripts = dict(zip(STAGES, lines, strict=True))
    for line in ("--partition='big one'", "--account=chem", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4"):
        assert f"#SBATCH {line}\n" in scripts["train"], line
    assert "#SBATCH --time=90\n" in scripts["train"] and "#SBATCH --time=600\n" in scripts["farm"]
    assert "--mem=16G" in scripts["train"] and "--mail-user=me@here" in scripts["train"]
    assert "--dependency" not in scripts["reference"]
    assert "#SBATCH --dependency=afterok:JOB_ID_OF_FEATURIZE\n" in scripts["train"]
    assert "--mpi=pmix --kill-on-bad-exit=1" in scripts["farm"] and "'/opt/my python' -u -m submitit" in scripts["farm"]
    assert scripts["farm"].index("module load cuda") < scripts["farm"].index("srun ")
    for stage in ("featurize", "report"):
        assert "--nodes=1\n" in scripts[stage] and "--ntasks-per-node=1\n" in scripts[stage]
    assert "gpus" not in scripts["featurize"]
    assert not out.exists()


def test_a_wrong_key_in_the_site_file_lists_the_right_ones(command: Command, tmp_path: Path) -> None:
    site = write_site(tmp_path, partion="main", stage_minutes={"fram": 3})
    ended = command("submit", "tiny", "--site", str(site), "--out", str(tmp_path / "run"))
    assert ended.returncode == 2
    assert "did you mean 'partition'?" in ended.stderr and "tasks_per_node" in ended.stderr
    assert "fram" in ended.stderr and "'farm'" in ended.stderr and "Traceback" not in ended.stderr


def test_an_unknown_site_names_what_was_tried(command: Command, tmp_path: Path) -> None:
    ended = command("submit", "tiny", "--site", "moon", "--out", str(tmp_path / "run"))
    assert ended.returncode == 2
    assert "slurm/sites/moon.yaml" in ended.stderr and "generic" in ended.stderr


def test_without_slurm_the_error_says_so_and_nothing_is_written(command: Command, tmp_path: Path) -> None:
    env = os.environ | {"PATH": str(tmp_path)}
    ended = command("submit", "tiny", "--site", "cpu", "--out", str(tmp_path / "run"), env=env)
    assert ended.returncode == 2
    assert "sbatch" in ended.stderr and "--site local" in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slurm
def test_a_refused_submission_shows_what_slurm_says_and_leaves_no_job(
    cluster: Cluster, command: Command, tmp_path: Path
) -> None:
    site = write_site(tmp_path, stage_minutes={"featurize": 100_000}, nodes=2)  # the partition allows 60 minutes
    ended = command("submit", "tiny", "--site", str(site), "--out", str(tmp_path / "run"), env=cluster.env)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "featurize" in ended.stderr and ended.stderr.count("time limit") == 1
    job = re.findall(r"reference +job (\d+)", ended.stdout)[0]
    assert cluster.wait(job) == "CANCELLED" and job in ended.stderr


@pytest.mark.slurm
def test_submitted_stages_run_on_two_nodes_to_the_end(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    config, out = small_config(tmp_path), tmp_path / "a run"
    site = write_site(tmp_path, nodes=2, minutes=10, setup=["export OMP_NUM_THREADS=1"])
    ended = command("submit", str(config), "--site", str(site), "--out", str(out), env=cluster.env)
    assert ended.returncode == 0, ended.stderr
    jobs = dict(re.findall(r"^(\w+) +job (\d+)", ended.stdout, re.MULTILINE))
    assert list(jobs) == list(STAGES)
    assert "hpc-molgen status" in ended.stdout and f"squeue --jobs={','.join(jobs.values())}" in ended.stdout
    folder = next((out / "submitit").iterdir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    last = "report" if HAS_REPORT else "farm"
    assert cluster.wait(jobs[last]) == "COMPLETED", logs(out)
    assert all_done(config, out), logs(out)
    details = Run.open(out).details("train")
    assert details["ranks"] == 2
    for stage in ("reference", "farm"):
        costs = [json.loads(line) for line in (out / "costs" / f"{stage}.jsonl").read_text().splitlines()]
        assert {(cost["rank"], cost["workers"]) for cost in costs} == {(0, 2), (1, 2)}

    again = command("submit", str(config), "--site", str(site), "--out", str(out), "--only", "farm", env=cluster.env)
    assert again.returncode == 0 and "farm       done before" in again.stdout and "job" not in again.stdout


@pytest.mark.slurm
def test_jobs_after_a_failed_one_leave_the_queue(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    config = RunConfig(name="broken", system={"name": "pdb", "pdb": str(tmp_path / "absent.pdb")})
    site = write_site(tmp_path, minutes=10)
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    lines = list(submit_stages(config, str(site), out, only=None, dry_run=False))
    jobs = re.findall(r" job (\d+)", "\n".join(lines))
    assert cluster.wait(jobs[0]) == "FAILED"
    assert [cluster.wait(job) for job in jobs[1:]] == ["CANCELLED"] * 6
    log = next(out.glob(f"submitit/*/{jobs[0]}_0_log.out")).read_text()
    assert "absent.pdb" in log and "Traceback" not in log


@pytest.mark.slurm
def test_ranks_that_do_not_see_each_other_do_no_work(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    site = write_site(tmp_path, nodes=2, minutes=10, mpi="none")
    ended = command("submit", "tiny", "--site", str(site), "--out", str(out), "--only", "reference", env=cluster.env)
    assert ended.returncode == 0, ended.stderr
    assert cluster.wait(re.findall(r" job (\d+)", ended.stdout)[0]) == "FAILED"
    assert "started 2 ranks, but MPI sees 1" in logs(out) and "Traceback" not in logs(out)
    assert not (out / "reference").exists()


def test_local_site_runs_stages_in_sequence_and_reports_a_failure(command: Command, tmp_path: Path) -> None:
    config, out = small_config(tmp_path), tmp_path / "run"
    ended = command("submit", str(config), "--site", "local", "--out", str(out), "--only", "reference")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert Run.open(out).is_done("reference")
    shutil.rmtree(out / "reference")
    ended = command("submit", str(config), "--site", "local", "--out", str(out), "--only", "featurize")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert "'featurize' failed" in ended.stderr and "log:" in ended.stderr


@pytest.mark.slurm
def test_the_plain_script_runs_the_whole_pipeline(cluster: Cluster, tmp_path: Path) -> None:
    config, out = small_config(tmp_path), tmp_path / "run"
    script = SITES.parent / "run.sbatch"
    env = cluster.env | {"PATH": f"{Path(sys.executable).parent}:{cluster.env['PATH']}", "OMP_NUM_THREADS": "1"}
    options = ["--parsable", "--nodes=2", "--ntasks-per-node=1", "--time=10", f"--output={tmp_path / 'log'}"]
    started = time.monotonic()
    sbatch = subprocess.run(
        ["sbatch", *options, str(script), str(config), str(out)], env=env, capture_output=True, text=True, check=True
    )
    state = cluster.wait(sbatch.stdout.strip())
    log = (tmp_path / "log").read_text()
    assert all_done(config, out), f"{state} after {time.monotonic() - started:.0f} s: {log}"
    # the quality gate may fail (exit code 3): this surrogate is made to run, not to be right
    assert state == "COMPLETED" or "report:" in log or not HAS_REPORT, log
