"""What failed first in a stage: one record in its folder, or one for each job of an array."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hpc_molgen import interrupts
from hpc_molgen.errors import EnvironmentProblem, HpcMolgenError, InputError
from hpc_molgen.files import read_json, write_json
from hpc_molgen.workers import Workers

# what gloo and NCCL say on the other ranks when one has gone
_LOST_RANK = ("Connection closed by peer", "Connection reset by peer", "remote process exiting prematurely")


def note(folder: Path, error: BaseException, workers: Workers) -> None:
    """Record `error` unless another rank has recorded its own: what the others meet then is only the trace of the first.

    A signal that comes meanwhile (launchers end the ranks of a job in which one has failed) is only noted.
    """
    with interrupts.deferred():
        _note(folder, error, workers)


def _note(folder: Path, error: BaseException, workers: Workers) -> None:
    text = str(error) if isinstance(error, HpcMolgenError) else f"{type(error).__name__}: {error}"
    trace = "" if isinstance(error, HpcMolgenError) else "".join(traceback.format_exception(error))
    if any(sign in text for sign in _LOST_RANK):  # the one that failed first could not leave word
        text, trace = f"another rank was lost: killed, out of memory, or with its node ({text.splitlines()[0]})", ""
    record = {
        "error": text,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "rank": workers.rank,
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "traceback": trace,
    }
    partial = folder / f".failed-{workers.rank}-{os.getpid()}"
    with contextlib.suppress(EnvironmentProblem, OSError):  # a link appears whole or, where there is one, not at all
        write_json(partial, record)
        os.link(partial, folder / _name(workers))
        _tell_job(folder.name, record)
    partial.unlink(missing_ok=True)


def forget(folder: Path, workers: Workers) -> None:
    """Remove what a new attempt makes obsolete: everything, but in an array not what its other jobs may have left."""
    others = {f"failed-{number:05d}.json" for number in range(workers.share[1])} - {_name(workers)}
    for path in folder.glob("failed*.json"):
        if path.name not in others:
            path.unlink(missing_ok=True)


def first(folders: Iterable[Path]) -> dict[str, Any] | None:
    """Return the record of what failed first: error, traceback, time, rank and host."""
    records = []
    for path in (path for folder in folders for path in folder.glob("failed*.json")):
        with contextlib.suppress(InputError):  # a new attempt has just removed it
            records.append(read_json(path))
    return min(records, key=lambda record: str(record["time"]), default=None)


def _name(workers: Workers) -> str:
    number, of = workers.share
    return "failed.json" if of == 1 else f"failed-{number:05d}.json"


def _tell_job(stage: str, record: dict[str, Any]) -> None:
    """Leave the failure for the end of a Slurm job's log, where other ranks' traces would bury it; see launch/job.sh."""
    requeue = os.environ.get(interrupts.REQUEUE)
    if requeue and (record["traceback"] or record["rank"]):
        text = f"hpc-molgen: {stage} failed first on rank {record['rank']} ({record['host']}):\n"
        Path(f"{requeue}.error").write_text(text + (record["traceback"] or record["error"]).rstrip() + "\n")
