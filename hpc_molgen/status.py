"""What the stages of a run are doing, from files alone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hpc_molgen import failures
from hpc_molgen.errors import InputError
from hpc_molgen.files import read_json
from hpc_molgen.locks import is_held
from hpc_molgen.run import STAGES, Run


def run_status(directory: Path) -> list[dict[str, Any]]:
    """Return state, progress and last error of each stage, from files alone (it never waits for the run)."""
    return rows_of(Run.open(directory))


def rows_of(run: Run) -> list[dict[str, Any]]:
    """Return the same of a run that is open, by its configuration in memory."""
    rows = []
    for stage in STAGES:
        row: dict[str, Any] = {
            "stage": stage, "state": "waiting", "progress": None, "eta_s": None, "rate": "", "error": "", "traceback": ""
        }  # fmt: skip
        folder = run.path(stage)
        if run.is_done(stage):
            row["state"] = "done"
        elif failed := failures.first([folder]):
            where = f" (rank {failed['rank']} on {failed['host']})" if failed.get("rank") else ""
            row |= {"state": "failed", "error": failed["error"] + where, "traceback": failed.get("traceback", "")}
        elif (folder / "inputs.json").is_file() and not (folder / "done.json").is_file():
            row["state"] = "running" if is_held(run.directory) else "interrupted"
        elif (folder / "done.json").is_file():
            row["state"] = "out of date"
        row |= _progress(folder)
        row["farm"] = _farm(folder) if stage == "farm" and row["state"] != "waiting" else None
        rows.append(row)
    return rows


def reached(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the stage that tells where a run is: what happens now, what is in the way, or what was done last."""
    busy = [row for row in rows if row["state"] in ("failed", "running", "interrupted")]
    done = 0
    while done < len(rows) and rows[done]["state"] == "done":
        done += 1
    stale = [row for row in rows[done : done + 1] if row["state"] == "out of date"]
    return [*busy, *stale, rows[max(0, done - 1)]][0]


def _farm(folder: Path) -> dict[str, Any] | None:
    """Return what the jobs of a farm tell of themselves (live*.json), added up, and how their replicas stand."""
    from hpc_molgen.farm import ledger

    jobs = []
    for path in sorted(folder.glob("live*.json")):
        with contextlib.suppress(InputError):
            jobs.append(read_json(path))
    if not jobs:
        return None
    found = ledger.standing(folder)
    busy = [share for job in jobs for share in job["busy"].values()]
    return {
        "n_replicas": jobs[0]["n_replicas"],
        "done": len(found.final) - found.n_failed,
        "failed": found.n_failed,
        "begun": len(found.share),
        "ns_per_day": sum(job["ns_per_day"] for job in jobs),
        "workers": len(busy),
        "busy": sum(busy) / len(busy) if busy else 0.0,
        "least_busy": min(busy, default=0.0),
        "drained": sorted({host for job in jobs for host in job["drained"]}),
        "stopping": "; ".join(sorted({job["stopping"] for job in jobs if job["stopping"]})),
        "errors": [error for job in jobs for error in job["errors"]][-5:],
    }


def _progress(folder: Path) -> dict[str, Any]:
    """Return progress, time left and rate of a stage from its progress files (one for each job of an array)."""
    records = []
    for path in sorted(folder.glob("progress*.json")):
        with contextlib.suppress(InputError):
            records.append(read_json(path))
    if not records:
        return {}
    left = [record["eta_s"] for record in records if record["eta_s"] is not None]
    of = max(len(records), records[0].get("of", 1))
    rate = records[0]["rate"] if of == 1 else f"{len(records)} of {of} jobs have begun"
    return {"progress": sum(record["progress"] for record in records) / of, "eta_s": max(left, default=None), "rate": rate}
