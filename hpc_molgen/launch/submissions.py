"""The record of what was submitted for a run: RUN/submitit/jobs.json, and RUN/logs/jobs.json by slurm/pipeline.sh."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.files import read_json, write_json
from hpc_molgen.launch import slurm


@dataclass(frozen=True)
class SubmittedJob:
    """One job: Slurm's name and number of it, its stages, its place in the chain."""

    name: str
    job: str
    stages: tuple[str, ...]
    array: int
    folder: str
    plain: bool = False

    def log(self, task: int = 0) -> Path:
        """The log of the job, or of one job of its array."""
        job = f"{self.job}_{task}" if self.array > 1 else self.job
        return Path(self.folder) / (f"{self.name}-{job}.log" if self.plain else f"{job}_0_log.out")


def path(run: Path) -> Path:
    """Where the record lies: with the run, even where the site wants job files elsewhere."""
    return run / "submitit" / "jobs.json"


def read(run: Path) -> list[dict[str, Any]]:
    """Return all submissions, oldest first; none where the run was never submitted."""
    submissions: list[dict[str, Any]] = read_json(path(run)) if path(run).is_file() else []
    plain = run / "logs" / "jobs.json"
    if plain.is_file():
        submissions += [submission | {"plain": str(plain.parent)} for submission in read_json(plain)]
    for submission in submissions:
        more = {"folder": submission["plain"], "plain": True} if "plain" in submission else {}
        submission["jobs"] = [SubmittedJob(**job | more | {"stages": tuple(job["stages"])}) for job in submission["jobs"]]
    return sorted(submissions, key=lambda submission: str(submission["time"]))


def write(run: Path, submissions: list[dict[str, Any]]) -> None:
    """Write all submissions that `submit` made."""
    ours = [submission for submission in submissions if "plain" not in submission]
    write_json(path(run), [submission | {"jobs": [asdict(job) for job in submission["jobs"]]} for submission in ours])


def refuse_while_active(run: Path, submissions: list[dict[str, Any]]) -> None:
    """Refuse a second submission of a run whose jobs are waiting or running.

    Raises
    ------
    EnvironmentProblem
        With the jobs, their states, and what to do.
    """
    known = {job.job: job.name for submission in submissions for job in submission["jobs"]}
    views = slurm.ask(known, timeout_s=15.0) or []
    active = [view for view in views if not view.is_over and known.get(view.job.partition("_")[0]) == view.name]
    if active:
        listed = ", ".join(f"{view.job} {view.state.lower()} ({view.name})" for view in active[:8])
        listed += f" and {len(active) - 8} more" if len(active) > 8 else ""
        numbers = " ".join(sorted({view.job.partition("_")[0] for view in active}))
        raise EnvironmentProblem(
            f"{run}: was submitted before and its jobs are not over: {listed}. Wait for them (hpc-molgen status {run}), "
            f"end them (scancel {numbers}), or choose another --out"
        )
