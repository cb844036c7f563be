"""Ctrl-C, SIGTERM and Slurm's warning (SIGUSR2): raised at once, and remembered in case a library swallows the exception."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
REQUEUE = "HPC_MOLGEN_REQUEUE"  # names the file by which a job tells its batch script why it left; see launch/job.sh

_came: signal.Signals | None = None


def _note(number: int, _: object) -> None:
    global _came  # noqa: PLW0603 (signal handlers have nowhere else to leave word)
    _came = _came or signal.Signals(number)  # the first says why: a launcher ends with SIGTERM what a warning has begun


def _raise(number: int, frame: object) -> None:
    _note(number, frame)
    raise KeyboardInterrupt


def install() -> None:
    """Turn SIGINT, SIGTERM and SIGUSR2 into KeyboardInterrupt."""
    listen(*SIGNALS)


def listen(*signals: signal.Signals) -> None:
    """Turn these signals into KeyboardInterrupt."""
    for number in signals:
        signal.signal(number, _raise)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Only note signals inside the block, for work that looks for them at its own boundaries with `came`."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        yield
        return
    handlers = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def starting_children() -> Iterator[None]:
    """Start processes inside the block: Ctrl-C and Slurm's warning, which go to all processes of a job, do not end them.

    They keep both blocked (one that is still being born would answer Ctrl-C with a traceback); their parent, which gets a
    signal that comes inside the block at its end, answers for them. Blocking alone would not do for the parent: another of
    its threads can take the signal, and Python then interrupts the main thread, halfway through a start.
    """
    signals = {signal.SIGINT, signal.SIGUSR2}
    before = _came
    with deferred():
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    if _came is not before and signal.getsignal(signal.SIGINT) is _raise:
        raise KeyboardInterrupt


def ignore() -> None:
    """Let no further signal interrupt a process that is already ending: launchers send them when a rank has failed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave_early() -> None:
    """Behave as if Slurm's warning had come: the job is to go back into the queue."""
    _note(signal.SIGUSR2, None)


def came() -> bool:
    """Return True once a signal has come: whatever error follows may be its trace in a library that met it halfway."""
    return _came is not None


def check() -> None:
    """Raise KeyboardInterrupt if a signal has come, even if its exception was lost; call it between pieces of work."""
    if came():
        raise KeyboardInterrupt


def keep_exit_code() -> None:
    """Let the process end with the exit code that it gives, although a signal met it inside an `exec` of some library.

    Python (3.8 to now) remembers a KeyboardInterrupt that leaves code compiled from a string, as dataclasses and named
    tuples compile theirs while they are imported, and ``python -m`` then ends by the signal whatever was caught and
    returned since. Each further string that is run makes it forget (CPython, Python/pythonrun.c, run_eval_code_obj).
    """
    exec("")


def leave_word() -> None:
    """Tell the batch script of a Slurm job which signal ended the work, so that it can put the job back into the queue."""
    path = os.environ.get(REQUEUE)
    if path and _came is not None:
        with contextlib.suppress(OSError), open(path, "a") as file:  # beside the words of other ranks
            file.write(_came.name + "\n")
