"""Running the replicas of one task, and whatever happens to them as records."""

from __future__ import annotations

from typing import Any

from hpc_molgen.errors import InputError
from hpc_molgen.farm.dispatcher import failed
from hpc_molgen.farm.job import Job, finished
from hpc_molgen.farm.pack import Pack, Report
from hpc_molgen.farm.plan import Task, read_start


def run_task(task: Task, job: Job, report: Report) -> list[dict[str, Any]]:
    """Run the replicas of a task to their end, or until `report` says to leave.

    Parameters
    ----------
    report : callable
        Called with the record of each chunk, when what it tells of lies on the disk; returns True to leave.

    Returns
    -------
    list of dict
        Records of what has ended: "done", "failed" (a start that cannot be read), "again" (blew up); and "ended" unless the
        task was left before its end.

    Raises
    ------
    EnvironmentProblem
        When files cannot be written: that concerns all replicas.
    KeyboardInterrupt
        When a signal has come; what was finished is written.
    """
    records, starts = [], {}
    for replica, name, log_weight in zip(task.replicas, task.names, task.log_weights, strict=True):
        found = finished(job, replica, name, log_weight)
        if found is None:
            try:
                starts[replica] = read_start(job.starts, name, job.system, job.folder)
                continue
            except InputError as problem:
                found = failed(replica, name, str(problem), task.attempt)
        records.append(found)
    left = False
    if starts:
        ended, left = Pack(task.only(list(starts), task.attempt), job, starts).run(report)
        records += ended
    return records if left else [*records, {"event": "ended", "pack": task.pack, "attempt": task.attempt}]
