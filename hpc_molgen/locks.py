"""The lock of a run directory, which also shows whether all ranks see the same directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hpc_molgen.containers import own_image
from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.workers import Workers

VISIBLE_WITHIN_S = 20.0  # network file systems keep what they know of a folder for seconds


@contextlib.contextmanager
def hold(directory: Path, workers: Workers) -> Iterator[None]:
    """Refuse a second program on the same run directory; the lock goes with the process that holds it.

    The jobs of an array share the lock, and each has one of its own besides.

    Raises
    ------
    EnvironmentProblem
        When the directory is in use, cannot be written, or is not the same one on all nodes.
    """
    handles: list[IO[str]] = []
    number, of = workers.share
    own = "lock" if of == 1 else f"lock-{number:05d}"
    holder, problem = f"{os.getpid()} on {socket.gethostname()}", ""
    try:
        if workers.is_root:
            problem = _take(directory / "lock", holder, handles, alone=of == 1)
            if not problem and of > 1:
                problem = _take(directory / own, holder, handles, alone=True)
        problem, holder = workers.from_root(lambda: (problem, holder))
        problem = problem or _not_shared(directory / own, holder, workers)
        if problem:
            raise EnvironmentProblem(problem)
        yield
    finally:
        for handle in handles:
            handle.close()


def is_held(directory: Path) -> bool:
    """Return whether somebody works on the run now."""
    try:
        with open(directory / "lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _take(path: Path, holder: str, handles: list[IO[str]], *, alone: bool) -> str:
    """Lock a file, alone or together with others, and leave our name in it; return what is in the way."""
    try:
        handle = open(path, "a+")  # noqa: SIM115 (held until the end of `hold`)
        handles.append(handle)
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        handle.truncate(0)
        handle.write(f"{holder}\n")
        handle.flush()
    except BlockingIOError:
        other = path.read_text().strip()
        hint = "; if one launcher started both, --cleanenv, --containall or --pid keeps them apart" if own_image() else ""
        return f"{path.parent}: another hpc-molgen ({other}) works on this run; wait or choose another --out{hint}"
    except OSError as error:
        return f"{path.parent}: cannot be written ({error}); choose another --out"
    return ""


def _not_shared(path: Path, holder: str, workers: Workers) -> str:
    """Return a message when a rank does not see what the root has just written into the run directory."""
    if workers.size == 1:
        return ""
    deadline, seen = time.monotonic() + VISIBLE_WITHIN_S, False
    while not seen:
        with contextlib.suppress(OSError):
            seen = path.read_text().strip() == holder
        if time.monotonic() > deadline:
            break
        time.sleep(0.0 if seen else 0.2)
    blind = sorted({host for host in workers.gather("" if seen else socket.gethostname()) if host})
    if not blind:
        return ""
    root = holder.rsplit(" on ", maxsplit=1)[-1]
    return (
        f"{path.parent}: what {root} writes there is not seen on {', '.join(blind)}: the folder is on a disk of one machine. "
        "Choose an --out on a file system that all nodes share"
    )
