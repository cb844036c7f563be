"""`hpc-molgen status` of submitted runs, with what Slurm would say: states that no small cluster shows on demand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hpc_molgen import failures
from hpc_molgen.config import RunConfig
from hpc_molgen.files import write_json
from hpc_molgen.launch import submissions
from hpc_molgen.launch.follow import as_text, follow
from hpc_molgen.launch.submissions import SubmittedJob
from hpc_molgen.run import Run
from hpc_molgen.workers import Workers


@pytest.fixture
def submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of which reference (an array of 16), training and sampling were submitted, on a machine without Slurm."""
    run = Run.create(tmp_path / "run", RunConfig(name="ala"), Workers())
    logs = str(run.directory / "submitit" / "now")
    jobs = [
        SubmittedJob("ala-reference", "100", ("reference",), 16, logs),
        SubmittedJob("ala-train", "200", ("reference", "featurize", "train"), 1, logs),
        SubmittedJob("ala-sample", "300", ("sample",), 1, logs),
    ]
    submissions.write(run.directory, [{"time": "now", "site": "mine", "folder": logs, "jobs": jobs}])
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    _slurm(tmp_path, "squeue", "exit 1")
    return run


def _slurm(folder: Path, name: str, body: str) -> None:
    program = folder / "bin" / name
    program.write_text(f"#!/bin/bash\n{body}\n")
    program.chmod(0o755)


def _squeue(run: Run, *lines: str) -> tuple[dict[str, dict[str, Any]], str]:
    """Rows by stage, and the text, when squeue prints lines of: array|task|state|restarts|reason|start|nodes|name."""
    _slurm(run.directory.parent, "squeue", "cat <<'END'\n" + "\n".join(f"{line}|" for line in lines) + "\nEND")
    rows = follow(run.directory)
    return {row["stage"]: row for row in rows}, "\n".join(as_text(rows))


def _finish(run: Run, *stages: str) -> None:
    for stage in stages:
        write_json(run.path(stage, "done.json"), {"fingerprint": run.fingerprint(stage)})


def test_an_array_counts_its_jobs(submitted: Run) -> None:
    states = ["COMPLETED"] * 8 + ["RUNNING"] * 3 + ["PENDING"] * 5
    lines = [f"100|{task}|{state}|0|Priority|N/A|node{task}|ala-reference" for task, state in enumerate(states)]
    rows, text = _squeue(submitted, *lines, "200|N/A|PENDING|0|Dependency|N/A||ala-train")
    assert rows["reference"]["state"] == "running"
    assert "job 100: 8 done, 3 running, 5 queued on node10,node8,node9 (Priority: other jobs come first)" in text
    assert "its parts are merged by job 200: queued (Dependency: waits for the job before it)" in text
    assert rows["featurize"]["state"] == rows["train"]["state"] == "queued"
    rows, _ = _squeue(submitted, *[line.replace("RUNNING", "COMPLETED").replace("PENDING", "COMPLETED") for line in lines])
    assert rows["reference"]["state"] == "parts done"
    assert _squeue(submitted)[0]["reference"]["state"] == "waiting"


@pytest.mark.parametrize(
    ("line", "state", "said"),
    [
        ("PENDING|0|QOSMaxJobsPerUserLimit|N/A|", "queued", "a limit of your account or QOS is reached"),
        (
            "PENDING|2|BeginTime|2026-01-01T10:00:00|",
            "requeued",
            "requeued 2 times (BeginTime: may not begin yet: 2026-01-01T10",
        ),
        ("RUNNING|1|None|2026-01-01T10:00:00|node[1-2]", "running", "job 200: running on node[1-2] requeued 1 time"),
        ("COMPLETING|0|None|N/A|node1", "running", "completing"),
        ("TIMEOUT|0|TimeLimit|N/A|node1", "failed", "timeout (TimeLimit: the time limit came before it had saved)"),
        ("OUT_OF_MEMORY|0|OutOfMemory|N/A|node1", "failed", "out_of_memory (OutOfMemory: needs more memory"),
        ("NODE_FAIL|0|NodeDown|N/A|node1", "failed", "node_fail (NodeDown)"),
        ("CANCELLED|0|None|N/A|node1", "cancelled", "job 200: cancelled"),
    ],
)
def test_states_and_reasons_of_a_job(submitted: Run, line: str, state: str, said: str) -> None:
    _finish(submitted, "reference", "featurize")
    rows, text = _squeue(submitted, f"200|N/A|{line}|ala-train")
    assert (rows["featurize"]["state"], rows["train"]["state"]) == ("done", state)
    assert said in text


def test_a_job_is_at_its_first_stage_that_is_not_done(submitted: Run) -> None:
    _finish(submitted, "reference")
    rows, _ = _squeue(submitted, "200|N/A|RUNNING|0|None|N/A|node1|ala-train")
    assert (rows["featurize"]["state"], rows["train"]["state"]) == ("running", "waiting")


def test_a_failure_shows_its_traceback_and_where_the_log_is(submitted: Run) -> None:
    _finish(submitted, "reference", "featurize")
    submitted.path("train").mkdir()
    log = submitted.path("submitit", "now", "200_0_log.out")
    log.parent.mkdir()
    log.write_text("submitit INFO starting\n12:00 train: starts\nsrun: error: node2: task 1: Killed\n")
    line = "200|N/A|FAILED|0|NonZeroExitCode|N/A|node[1-2]|ala-train"
    _, text = _squeue(submitted, line)
    assert "task 1: Killed" in text and f"log: {log}" in text and "submitit INFO" not in text
    with open(log, "a") as file:  # rank 0 meets the loss
        file.writelines(f"a line of a traceback {number}\n" for number in range(30))
    _, text = _squeue(submitted, line)
    assert "task 1: Killed" in text and "a traceback 29" in text and "a traceback 20" not in text
    with open(log, "a") as file:
        file.write("hpc-molgen: job 200 goes back into the queue and will go on where it was\n12:01 train: starts\n")
    _, text = _squeue(submitted, line)
    assert "task 1: Killed" not in text and "12:01" in text
    try:
        raise ValueError("a bad step")
    except ValueError as error:
        failures.note(submitted.path("train"), error, Workers())
    rows, text = _squeue(submitted, line)
    assert rows["train"]["state"] == "failed" and "ValueError: a bad step (" not in text
    assert 'raise ValueError("a bad step")' in text and f"log: {log}" in text
    assert "a bad step" not in _squeue(submitted, "200|N/A|PENDING|0|Priority|N/A||ala-train")[1]  # submitted again
    log.unlink()
    assert "the nodes may not see this folder" in _squeue(submitted, line)[1]


def test_a_number_that_slurm_has_given_to_another_job_is_not_ours(submitted: Run) -> None:
    rows, text = _squeue(submitted, "200|N/A|RUNNING|0|None|N/A|node1|somebody-else")
    assert rows["train"]["state"] == "waiting" and "node1" not in text
    submissions.refuse_while_active(submitted.directory, submissions.read(submitted.directory))


def test_jobs_that_squeue_forgot_are_looked_up_in_the_books(submitted: Run) -> None:
    _finish(submitted, "reference", "featurize")
    _slurm(submitted.directory.parent, "sacct", "echo '200|CANCELLED by 0|node1|ala-train'")
    rows, _ = _squeue(submitted, "300|N/A|CANCELLED|0|DependencyNeverSatisfied|N/A||ala-sample")
    assert rows["train"]["state"] == "cancelled" and "the job before it failed" in rows["sample"]["slurm"]


@pytest.mark.parametrize("squeue", ["sleep 60", "echo unreachable >&2; exit 1", None])
def test_files_alone_are_shown_where_slurm_does_not_answer(submitted: Run, squeue: str | None) -> None:
    _finish(submitted, "reference")
    if squeue is None:
        (submitted.directory.parent / "bin" / "squeue").unlink()
    else:
        _slurm(submitted.directory.parent, "squeue", f"exec {squeue}" if "sleep" in squeue else squeue)
    started = time.monotonic()
    text = "\n".join(as_text(follow(submitted.directory)))
    assert time.monotonic() - started < 8
    assert "reference  done" in text and "job 200 (Slurm does not answer here)" in text
