"""Training as Slurm jobs: DDP on nodes, preempted, cancelled, with a rank that fails or dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster, wait_for
from jobs import logs, processes_of, sbatch, small_config, status, step, submit, undone, wait_for_step, write_site

from hpc_molgen.launch.site import SITES
from hpc_molgen.run import Run

Command = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slurm

# long enough to be met at it, with no checkpoint but those that a signal asks for
STEPS = ["train.n_steps=1500", "train.checkpoint_every_s=1000"]
_FAULT = """\
import os, pathlib, signal
if os.environ.get("SLURM_PROCID") == "1":
    def fail(*_):
        if pathlib.Path(os.environ["FAULT_IN"], "train", "metrics.jsonl").exists():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise RuntimeError("injected into a training step")
    signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
"""


@pytest.fixture(scope="session")
def featurized(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is ready for training, by slurm/run.sbatch on the MPI ranks of two nodes; copy it."""
    folder = tmp_path_factory.mktemp("featurized")
    options = ["--nodes=2", f"--chdir={folder}", "--output=log"]
    script = str(SITES.parent / "run.sbatch")
    job = sbatch(cluster, *options, script, str(small_config(folder, *STEPS)), "run", "--to", "featurize")
    assert cluster.wait(job) == "COMPLETED", (folder / "log").read_text()
    assert undone(folder / "run") == ["train", "sample", "correct", "farm", "report"]
    return folder


def start(cluster: Cluster, command: Command, featurized: Path, out: Path, **site: object) -> str:
    """Submit the training of a copy of the run; return the job's number."""
    if not out.exists():
        shutil.copytree(featurized / "run", out)
    path = write_site(out.parent, **site)
    return submit(command, cluster, featurized / "small.yaml", path, out, "--only", "train")["train"]


def test_a_training_that_is_cancelled_and_preempted_ends_with_the_weights_of_one_that_is_not(
    cluster: Cluster, command: Command, featurized: Path, tmp_path: Path
) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "disturbed"
    job = start(cluster, command, featurized, out, nodes=2)
    wait_for_step(out, 0)
    cluster.control("scancel", job)
    assert cluster.wait(job) == "CANCELLED" and cluster.restarts(job) == 0
    rows, text = status(cluster, command, out)
    assert rows["train"]["state"] == "cancelled" and "interrupted; what was finished is kept" in text
    at = step(out)
    assert 0 < at < 1500 and list((out / "train").glob("checkpoint-*")) != []

    job = start(cluster, command, featurized, out, nodes=2)
    wait_for_step(out, at)
    cluster.control("scancel", "--signal=USR2", job)  # what Slurm does before the time limit
    wait_for(lambda: cluster.state(job) == "PENDING" and cluster.restarts(job) == 1, f"a requeue:\n{logs(out)}")
    rows, text = status(cluster, command, out)
    assert rows["train"]["state"] == "requeued" and "requeued 1 time" in text and "BeginTime: may not begin yet" in text
    at = step(out)
    # meanwhile, on one node and where nobody preempts it
    other = start(cluster, command, featurized, undisturbed, tasks_per_node=2, partition="high", constraint="shared")
    wait_for_step(out, at)
    assert status(cluster, command, out)[0]["train"]["state"] == "running"
    # jobs of the partition `high` preempt those of `main`: SIGTERM, and a minute of grace
    preempting = ["--partition=high", "--nodelist", cluster.nodes[1], "--exclusive", "--output=/dev/null"]
    sbatch(cluster, *preempting, "--wrap=sleep 1")
    wait_for(lambda: cluster.restarts(job) == 2, f"a second requeue:\n{logs(out)}")
    assert cluster.wait(job) == "COMPLETED", logs(out)
    assert cluster.restarts(job) == 2
    assert cluster.wait(other) == "COMPLETED" and cluster.restarts(other) == 0, logs(undisturbed)
    assert Run.open(undisturbed).details("train")["ranks"] == 2

    log = next(out.glob(f"submitit/*/{job}_0_log.out")).read_text()
    assert log.count("goes back into the queue and will go on where it was") == 2
    assert log.count("training resumes at step") == 3, log  # the log goes on too
    weights = [(run / "train" / "surrogate.safetensors").read_bytes() for run in (undisturbed, out)]
    assert weights[0] == weights[1] and len(weights[0]) > 1000


def test_the_error_of_one_rank_ends_the_job_and_reaches_the_user(
    cluster: Cluster, command: Command, featurized: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(_FAULT)
    job = start(cluster, command, featurized, out, nodes=2, setup=[f"export PYTHONPATH={tmp_path} FAULT_IN={out}"])
    wait_for((out / "train" / "failed.json").is_file, f"the failure:\n{logs(out)}")
    assert cluster.wait(job, 60) == "FAILED"
    rows, text = status(cluster, command, out)
    assert rows["train"]["state"] == "failed" and cluster.restarts(job) == 0
    assert f"RuntimeError: injected into a training step (rank 1 on {cluster.nodes[1]})" in rows["train"]["error"]
    assert "in fail" in text and "injected into a training step" in text.splitlines()[3]  # below the stages before it
    log = next(out.glob(f"submitit/*/{job}_0_log.out")).read_text()  # the one that a user opens
    ending = log[log.index("train failed first on rank 1") :]
    assert "Traceback" in ending and ending.rstrip().endswith("RuntimeError: injected into a training step")
    assert list(out.glob(".*")) == []


def test_a_rank_that_is_killed_ends_the_job(cluster: Cluster, command: Command, featurized: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = start(cluster, command, featurized, out, nodes=2)
    wait_for_step(out, 0)
    for process in processes_of(job, rank=1):
        os.kill(process, signal.SIGKILL)
    assert cluster.wait(job, 60) == "FAILED"
    rows, text = status(cluster, command, out)
    assert rows["train"]["state"] == "failed" and "NonZeroExitCode" in rows["train"]["slurm"]
    assert "task 1: Killed" in text, text
