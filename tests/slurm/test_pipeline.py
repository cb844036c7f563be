"""`hpc-molgen submit` on a real Slurm cluster: the whole pipeline, what is refused, what the user gets to read."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, wait_for
from jobs import logs, small_config, status, submit, undone, write_site

from hpc_molgen.config import RunConfig
from hpc_molgen.launch.submit import submit_stages
from hpc_molgen.run import STAGES, Run

Command = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slurm


def test_submitted_stages_run_on_two_nodes_to_the_end(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    config, out = small_config(tmp_path, "reference.production_ps=20", "reference.save_every_ps=0.1"), tmp_path / "a run"
    site = write_site(tmp_path, nodes=2, array=2, stages={"reference": {"tasks_per_node": 2}})
    jobs = submit(command, cluster, config, site, out)
    assert list(jobs) == ["reference", "train", "sample", "correct", "farm", "report"]

    again = command("submit", str(config), "--site", str(site), "--out", str(out), env=cluster.env)
    assert again.returncode == 2 and "Traceback" not in again.stderr
    assert "jobs are not over" in again.stderr and f"{jobs['train']} pending" in again.stderr
    rows, text = status(cluster, command, out)
    assert rows["train"]["state"] == "queued" and f"job {jobs['train']}" in rows["featurize"]["slurm"]
    assert "Dependency: waits for the job before it" in text
    assert rows["reference"]["slurm"].startswith(f"job {jobs['reference']}: 2 ")

    _one_of_the_array_goes_back(cluster, jobs["reference"], out)
    assert cluster.wait(jobs["report"]) == "COMPLETED", logs(out)
    assert undone(out) == [], logs(out)
    assert Run.open(out).details("train")["ranks"] == 2
    # the jobs of an array, and their merge on the two ranks of the next job
    workers = {stage: _ranks(out, stage) for stage in STAGES}
    assert workers["sample"] == [(0, 1), (0, 1), (0, 2), (1, 2)]
    assert set(workers["reference"]) == {(0, 2), (1, 2)} and len(workers["reference"]) >= 6
    assert workers["farm"] == workers["train"] == [(0, 2), (1, 2)]
    for stage in ("reference", "sample"):
        ends = [path.read_text() for path in _logs(out, jobs[stage])]
        assert len(ends) == 2 and all(f"{stage}: starts" in text for text in ends)
    folder = next(out.glob("submitit/2*"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in out.glob(".*")] == []  # what jobs tell each other is gone when they are
    assert {row["state"] for row in status(cluster, command, out)[0].values()} == {"done"}

    again = command("submit", str(config), "--site", str(site), "--out", str(out), "--only", "farm", env=cluster.env)
    assert again.returncode == 0 and "farm       done before" in again.stdout and "job" not in again.stdout


def _one_of_the_array_goes_back(cluster: Cluster, array: str, out: Path) -> None:
    wait_for(
        lambda: all("starts" in path.read_text() for path in _logs(out, array)) and len(_logs(out, array)) == 2, "the array"
    )
    # the last job of an array has the array's own number as well, by which Slurm would take all of them
    cluster.control("scancel", "--signal=USR2", f"{array}_1")
    wait_for(lambda: cluster.restarts(f"{array}_1") == 1, f"a requeue:\n{logs(out)}")
    assert cluster.wait(array) == "COMPLETED", logs(out)
    assert [cluster.restarts(f"{array}_{number}") for number in (0, 1)] == [0, 1]


def _logs(out: Path, array: str) -> list[Path]:
    return sorted(out.glob(f"submitit/*/{array}_[01]_0_log.out"))


def _ranks(out: Path, stage: str) -> list[tuple[int, int]]:
    costs = [json.loads(line) for line in (out / "costs" / f"{stage}.jsonl").read_text().splitlines()]
    return sorted((cost["rank"], cost["workers"]) for cost in costs)


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ({"minutes": 100_000}, ["time limit", "'minutes'"]),  # the partition allows 60
        ({"account": "full"}, ["accounting/QOS policy", "wait for jobs to end"]),
        ({"partition": "moon"}, ["moon", "sinfo"]),
    ],
)
def test_a_refused_submission_shows_what_slurm_says_and_leaves_no_job(
    cluster: Cluster, command: Command, tmp_path: Path, asks: dict[str, object], said: list[str]
) -> None:
    site = write_site(tmp_path, nodes=2, stages={"train": asks})
    ended = command("submit", "tiny", "--site", str(site), "--out", str(tmp_path / "run"), env=cluster.env)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "'train'" in ended.stderr and all(part in ended.stderr for part in said), ended.stderr
    job = re.findall(r"reference +job (\d+)", ended.stdout)[0]
    assert cluster.wait(job) == "CANCELLED" and job in ended.stderr


def test_folders_that_cannot_be_written_are_named(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    for out, values in ((Path("/proc/run"), {}), (tmp_path / "run", {"folder": "/proc/logs"})):
        site = str(write_site(tmp_path, **values))
        ended = command("submit", "tiny", "--site", site, "--out", str(out), env=cluster.env)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr and " job " not in ended.stdout
        assert "/proc/" in ended.stderr and "choose another --out" in ended.stderr


def test_jobs_after_a_failed_one_leave_the_queue(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    config = RunConfig(name="broken", system={"name": "pdb", "pdb": str(tmp_path / "absent.pdb")})
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    lines = list(submit_stages(config, str(write_site(tmp_path)), out, tuple(STAGES), dry_run=False))
    jobs = re.findall(r" job (\d+)", "\n".join(lines))
    assert cluster.wait(jobs[0]) == "FAILED"
    assert [cluster.wait(job) for job in jobs[1:]] == ["CANCELLED"] * 5
    log = next(out.glob(f"submitit/*/{jobs[0]}_0_log.out")).read_text()
    assert "absent.pdb" in log and "Traceback" not in log


def test_ranks_that_do_not_see_each_other_do_no_work(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    site = write_site(tmp_path, nodes=2, mpi="none")
    jobs = submit(command, cluster, small_config(tmp_path), site, out, "--only", "reference")
    assert cluster.wait(jobs["reference"]) == "FAILED"
    assert "started 2 ranks, but MPI sees 1" in logs(out) and "Traceback" not in logs(out)
    assert not (out / "reference").exists()


def test_a_run_directory_that_a_node_does_not_see(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    asks = {"one": {"constraint": "alone"}, "two": {"nodes": 2, "setup": ["export HPC_MOLGEN_LOOK_S=1"]}}
    for name, values in asks.items():
        site, out = write_site(tmp_path, **values), cluster.unshared / name
        jobs = submit(command, cluster, small_config(tmp_path), site, out, "--only", "reference")
        assert cluster.wait(jobs["reference"]) == "FAILED"
    rows, text = status(cluster, command, cluster.unshared / "two")
    assert rows["reference"]["state"] == "failed"
    assert f"{cluster.unshared}/two is not seen on {cluster.nodes[-1]}: choose a folder on a file system that all" in text
    rows, text = status(cluster, command, cluster.unshared / "one")  # not even its log could be written
    assert rows["reference"]["state"] == "failed" and "the nodes may not see this folder" in text
