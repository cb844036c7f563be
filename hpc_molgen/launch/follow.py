"""What the stages of a run are doing: its files, what was submitted for it, and what Slurm says of the jobs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc_molgen import molecules
from hpc_molgen.launch import slurm, submissions
from hpc_molgen.launch.slurm import JobView
from hpc_molgen.launch.submissions import SubmittedJob
from hpc_molgen.run import Run
from hpc_molgen.status import reached, rows_of

_TRACEBACK_LINES = 12
_LOG_LINES = {"running": 3}
_NEW_ATTEMPT = "goes back into the queue"  # what job.sh writes at the end of an attempt that another one follows
_LOST_RANK = re.compile(r"srun: error: \S+: tasks? \S+ \w")
_WORDS = {"PENDING": "queued", "COMPLETED": "done"}


def follow(directory: Path) -> list[dict[str, Any]]:
    """Return a row for each stage: what `rows_of` says, and its job with Slurm's state of it where there is one.

    Behind them, where there are many, comes a row for each molecule: the stage that it has come to, and that one's state.
    It waits for Slurm some seconds at most, and not at all where there is none.
    """
    run = Run.open(directory)
    rows, own = rows_of(run), [(one.config.name, rows_of(one)) for one in molecules.members(run)]
    if own:
        _add_up(rows, [found for _, found in own])
    unseen = run.config.unseen
    return [
        *_with_jobs(directory, rows),
        *({"molecule": name, "unseen": name in unseen} | reached(found) for name, found in own),
    ]


def _add_up(rows: list[dict[str, Any]], own: list[list[dict[str, Any]]]) -> None:
    """Enter into the rows of the whole how far its molecules are."""
    for stage, row in enumerate(rows):
        parts = [found[stage] for found in own]
        n_done = sum(part["state"] == "done" for part in parts)
        if row["state"] == "done" and n_done < len(parts):
            row["state"] = "out of date"
        if row["state"] in ("running", "failed", "interrupted") and row["progress"] is None:
            row["progress"] = sum(1.0 if part["state"] == "done" else part["progress"] or 0.0 for part in parts) / len(parts)
            row["rate"] = f"{n_done} of {len(parts)} molecules"


def _with_jobs(directory: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    jobs = _jobs_of_stages(submissions.read(directory))
    views = slurm.ask(job.job for pair in jobs.values() for job in pair)
    done = {row["stage"] for row in rows if row["state"] == "done"}
    for row in rows:
        row |= {"job": "", "slurm": "", "log": "", "log_end": []}
        if row["stage"] not in jobs:
            continue
        own, *mergers = jobs[row["stage"]]
        row |= _joined(row, own, _views(own, views), done)
        if row["state"] == "done":
            continue
        row["slurm"] += "" if views is not None else " (Slurm does not answer here)"
        for merger in mergers:
            if _is_completed(_views(own, views)):
                row["state"] = "parts done"
            row["slurm"] += f"; its parts are merged by {_summary(merger, _views(merger, views))}"
    return rows


def as_text(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines that a user reads."""
    named = [row["molecule"] + (" (unseen)" if row["unseen"] else "") for row in rows if "molecule" in row]
    width = max(map(len, named), default=0)
    for row in rows:
        if "molecule" in row:
            yield from _molecule_lines(row, named.pop(0), width)
            continue
        progress = f"{100 * row['progress']:.0f} %" if row["progress"] is not None and row["state"] != "done" else ""
        eta = f"{row['eta_s']:.0f} s left" if row["eta_s"] is not None and row["state"] == "running" else ""
        yield f"{row['stage']:10s} {row['state']:12s} {progress:>6s}  {row['rate']:24s} {eta:14s}{row['slurm']}".rstrip()
        details = [row["error"]] if row["error"] else []
        details += _farm_lines(row["farm"]) if row["farm"] else []
        details += row["traceback"].rstrip().splitlines()[-_TRACEBACK_LINES:]
        details += row["log_end"]
        if row["log"] and (details or row["state"] in ("running", "failed", "cancelled")):
            details.append(f"log: {row['log']}")
        yield from (f"{'':10s} {line}" for line in details)


def _molecule_lines(row: dict[str, Any], name: str, width: int) -> Iterator[str]:
    progress = f"{100 * row['progress']:.0f} %" if row["progress"] is not None and row["state"] != "done" else ""
    yield f"{name:{width}s}  {row['stage']:10s} {row['state']:12s} {progress:>6s}".rstrip()
    yield from (f"{'':{width}s}  {line}" for line in row["error"].splitlines())


def _farm_lines(farm: dict[str, Any]) -> list[str]:
    counts = f"{farm['done']} of {farm['n_replicas']} replicas done, {farm['failed']} failed, {farm['begun']} begun"
    lines = [f"{counts}; {farm['ns_per_day']:,.0f} ns/day by {farm['workers']} workers, busy {100 * farm['busy']:.0f} %"]
    lines[0] += f" (the least {100 * farm['least_busy']:.0f} %)" if farm["workers"] > 1 else ""
    lines += [f"no more work for {', '.join(farm['drained'])}: replicas failed there"] if farm["drained"] else []
    lines += [f"stopped: {farm['stopping']}"] if farm["stopping"] else []
    return lines + [f"last error: {error}" for error in farm["errors"][-2:]]


def _jobs_of_stages(history: list[dict[str, Any]]) -> dict[str, list[SubmittedJob]]:
    """Return the jobs of each stage's last submission: the one that does it, then one that merges an array's parts."""
    jobs: dict[str, list[SubmittedJob]] = {}
    for submission in history:
        stages = {stage for job in submission["jobs"] for stage in job.stages}
        jobs |= {stage: [job for job in submission["jobs"] if stage in job.stages] for stage in stages}
    return jobs


def _views(job: SubmittedJob, views: list[JobView] | None) -> list[JobView]:
    return [view for view in views or [] if view.job.partition("_")[0] == job.job and view.name == job.name]


def _is_completed(views: list[JobView]) -> bool:
    return bool(views) and all(view.state == "COMPLETED" for view in views)


def _joined(row: dict[str, Any], job: SubmittedJob, views: list[JobView], done: set[str]) -> dict[str, Any]:
    """Return what the job adds to a row."""
    news: dict[str, Any] = {"job": job.job, "slurm": _summary(job, views)}
    if row["state"] == "done":
        return news | {"slurm": f"job {job.job}"}
    active = [view for view in views if not view.is_over]
    lost = [view for view in views if view.is_over and view.state != "COMPLETED"]
    if active and all(view.state == "PENDING" for view in active):
        news["state"] = "requeued" if any(view.restarts for view in active) else "queued"
    elif not set(job.stages[: job.stages.index(row["stage"])]) <= done:
        return news  # the job is at, or came to its end in, an earlier stage
    elif active:
        news["state"] = "running"
    elif lost and row["state"] != "running":  # else somebody has started it again without Slurm
        news["state"] = "cancelled" if all(view.state == "CANCELLED" for view in lost) and not row["error"] else "failed"
    if active and not lost:
        news |= {"error": "", "traceback": ""}  # of an earlier attempt
    state = news.get("state", row["state"])
    if state in ("running", "failed", "cancelled"):
        shown = (lost or [view for view in active if view.state == "RUNNING"] or views)[:1]
        news |= _log(job, shown, row, state)
    return news


def _summary(job: SubmittedJob, views: list[JobView]) -> str:
    """Say in one line what Slurm says of a job: state, nodes, reason, how often it went back into the queue."""
    if not views or _is_completed(views):
        return f"job {job.job}"
    counts = Counter(_WORDS.get(view.state, view.state.lower()) for view in views)
    parts = [", ".join(f"{n} {state}" if len(views) > 1 else state for state, n in counts.items())]
    nodes = sorted({view.nodes for view in views if view.state == "RUNNING" and view.nodes})
    parts += [f"on {','.join(nodes)}"] if nodes else []
    restarts = sum(view.restarts for view in views)
    parts += [f"requeued {restarts} time{'s' if restarts > 1 else ''}"] if restarts else []
    parts += sorted({f"({view.why})" for view in views if view.why and view.state != "COMPLETED"})
    return f"job {job.job}: {' '.join(parts)}"


def _log(job: SubmittedJob, shown: list[JobView], row: dict[str, Any], state: str) -> dict[str, Any]:
    """Return where the log is and its last lines, unless the traceback says it all."""
    task = shown[0].job.partition("_")[2] if shown else ""
    log = job.log(int(task or 0))
    if not log.is_file():
        never_ran = bool(shown) and shown[0].state == "CANCELLED" and not shown[0].nodes
        if state != "failed" or never_ran:
            return {}
        hint = f"there is no log {log}: the nodes may not see this folder; choose an --out on a file system that all share"
        return {"log_end": [hint]}
    return {"log": str(log), "log_end": [] if row["traceback"] and state == "failed" else _tail(log, _LOG_LINES.get(state, 8))}


def _tail(path: Path, n_lines: int) -> list[str]:
    """Return the last lines of a log, and before them what srun says of ranks that were lost, which others' traces bury."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 16384))
        text = file.read().decode(errors="replace").rpartition(_NEW_ATTEMPT)[2]
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("submitit INFO")]
    return [line for line in lines[:-n_lines] if _LOST_RANK.match(line)][:3] + lines[-n_lines:]
