"""What Slurm says of jobs: squeue while it remembers them, sacct afterwards, and nothing where neither answers in time."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"
}  # fmt: skip
_FIELDS = ("ArrayJobID", "ArrayTaskID", "State", "RestartCnt", "Reason", "StartTime", "NodeList", "Name")
_FORMAT = ",".join(f"{field}:|" for field in _FIELDS)
_REASONS = {
    "Resources": "waits for free nodes",
    "Priority": "other jobs come first",
    "Dependency": "waits for the job before it",
    "DependencyNeverSatisfied": "the job before it failed",
    "BeginTime": "may not begin yet",
    "JobArrayTaskLimit": "waits for others of its array",
    "PartitionDown": "the partition is down",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "ReqNodeNotAvail": "nodes that it needs are down or reserved",
    "JobHeldUser": "held by you: scontrol release",
    "JobHeldAdmin": "held by an administrator",
    "NonZeroExitCode": "the program ended with an error",
    "JobLaunchFailure": "a node could not start it, or not open its log",
    "OutOfMemory": "needs more memory: 'memory' of the site",
    "TimeLimit": "the time limit came before it had saved",
}


@dataclass(frozen=True)
class JobView:
    """One job, or one job of an array, as Slurm sees it."""

    job: str
    name: str
    state: str
    reason: str = ""
    nodes: str = ""
    restarts: int = 0
    starts: str = ""

    @property
    def is_over(self) -> bool:
        """True when it will not run any more."""
        return self.state in OVER

    @property
    def why(self) -> str:
        """Slurm's reason, in words where it is a common one."""
        if self.reason in ("", "None"):
            return ""
        words = _REASONS.get(self.reason, "")
        if self.reason.startswith(("QOS", "Assoc")):
            words = "a limit of your account or QOS is reached: wait for jobs to end, or ask for another qos"
        if self.reason == "BeginTime" and self.starts not in ("", "N/A"):
            words += f": {self.starts}"
        return f"{self.reason}: {words}" if words else self.reason


def ask(jobs: Iterable[str], timeout_s: float = 4.0) -> list[JobView] | None:
    """Return what Slurm knows of jobs, an array's jobs one by one; None where Slurm is absent or does not answer.

    A number may have been used again by another cluster's first days or after its books were lost: compare the names.
    """
    wanted = sorted(set(jobs))
    if not wanted or not shutil.which("squeue"):
        return None if wanted else []
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(wanted)}", f"--Format={_FORMAT}"]
    text = _call(command, timeout_s)
    if text is None:
        return None
    views = [_of_squeue(line) for line in text.splitlines() if line.count("|") >= len(_FIELDS)]
    forgotten = set(wanted) - {view.job.partition("_")[0] for view in views}
    if forgotten and shutil.which("sacct"):
        command = ["sacct", "-X", "-n", "-P", f"--jobs={','.join(sorted(forgotten))}", "-o", "JobID,State,NodeList,JobName"]
        views += [_of_sacct(line) for line in (_call(command, timeout_s) or "").splitlines() if line.count("|") >= 3]
    return views


def _call(command: list[str], timeout_s: float) -> str | None:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if ended.returncode and "Invalid job id" in ended.stderr:  # squeue forgets a job minutes after its end
        return ""
    return None if ended.returncode else ended.stdout


def _of_squeue(line: str) -> JobView:
    job, task, state, restarts, reason, starts, nodes, name = line.split("|", len(_FIELDS) - 1)
    job = job if task in ("", "N/A") else f"{job}_{task}"
    return JobView(job, name.removesuffix("|"), state, reason, nodes, int(restarts) if restarts.isdigit() else 0, starts)


def _of_sacct(line: str) -> JobView:
    job, state, nodes, name = line.split("|", 3)
    return JobView(job, name, state.split()[0], nodes="" if nodes.startswith("None") else nodes)
