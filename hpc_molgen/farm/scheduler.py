"""Running a farm: a dispatcher on the root, workers that ask it, and how they talk (in one process, by pipes, by MPI)."""

from __future__ import annotations

import collections
import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from hpc_molgen import interrupts
from hpc_molgen.errors import EnvironmentProblem, HpcMolgenError
from hpc_molgen.farm.dispatcher import Dispatcher
from hpc_molgen.farm.plan import Task
from hpc_molgen.workers import Workers, available_cores, follow_parent, pin

Ask = Callable[[Sequence[dict[str, Any]], str], dict[str, Any]]
RunTask = Callable[[Task, Any, Callable[[list[dict[str, Any]]], bool]], list[dict[str, Any]]]
Tick = Callable[[], None]
TICK_S = 0.05
TELL_EVERY_S = 0.5  # trivial tasks are told of together
MAX_RESTARTS = 3  # of each local process
_ASK, _ANSWER = 7, 8


@dataclass(frozen=True)
class Work:
    """What workers run, and how; it pickles.

    Attributes
    ----------
    run_task : callable
        A module's function, such as `replica.run_task`.
    job : object
        Given to it with every task.
    at_once : int, optional
        No more processes than this on one machine.
    """

    run_task: RunTask
    job: Any
    at_once: int | None = None


def work_through(ask: Ask, work: Work) -> None:
    """Run what `ask` says until it says stop; problems and signals are told, and end this worker alone."""
    reply = ask([], "work")
    told: list[dict[str, Any]] = []
    try:
        while "stop" not in reply:
            if "wait_s" in reply:
                deadline = time.monotonic() + reply["wait_s"]
                while time.monotonic() < deadline:
                    interrupts.check()
                    time.sleep(TICK_S)
                reply = ask([], "work")
                continue
            told = _run_tasks(reply["tasks"], ask, work)
            reply = ask(told, "work")
    except KeyboardInterrupt:
        ask([{"event": "interrupted"}], "end")
    except HpcMolgenError as problem:
        ask([{"event": "problem", "error": str(problem), "kind": type(problem).__name__}], "end")
    except Exception as problem:
        text = f"{type(problem).__name__}: {problem}"
        ask([{"event": "problem", "error": text, "kind": "bug", "traceback": traceback.format_exc()}], "end")


def _run_tasks(tasks: Sequence[Task], ask: Ask, work: Work) -> list[dict[str, Any]]:
    """Run tasks in order; return the records that have not been told yet."""
    told: list[dict[str, Any]] = []
    left = False
    last = time.monotonic()

    def report(records: list[dict[str, Any]]) -> bool:
        nonlocal told, left, last
        records, told, last = [*told, *records], [], time.monotonic()
        left = bool(ask(records, "leave?").get("leave"))
        return left

    for task in tasks:
        interrupts.check()
        told += work.run_task(task, work.job, report)
        if left or (time.monotonic() - last > TELL_EVERY_S and report([])):
            break
    return told


def run_farm(workers: Workers, n_tasks: int, dispatcher: Dispatcher | None, work: Work, tick: Tick) -> None:
    """Let all workers of this job work until nothing is left or the dispatcher stops them.

    Parameters
    ----------
    dispatcher : Dispatcher or None
        On the root.
    tick : callable
        Called on the root every now and then.
    """
    if workers.comm is not None and not workers.is_torchrun:
        _run_mpi(workers.comm, dispatcher, work, tick)
    elif dispatcher is not None:
        n_processes = min(n_workers(workers), n_tasks, work.at_once or n_tasks)
        with interrupts.deferred():  # whoever works or waits looks for signals, and tells the dispatcher
            if n_processes > 1:
                _Processes(dispatcher, work, n_processes, tick).run()
            else:
                _run_here(dispatcher, work, tick)


def n_workers(workers: Workers) -> int:
    """How many will ask: MPI's ranks, or processes on the cores of this machine (beside torchrun's ranks, which wait)."""
    if workers.comm is None:
        return workers.n_processes
    return available_cores() if workers.is_torchrun else workers.size


class _Guard:
    """Answers for a dispatcher whose ledger cannot be written any more, and calls `tick` now and then."""

    def __init__(self, dispatcher: Dispatcher, tick: Tick) -> None:
        self._dispatcher, self._tick, self._last = dispatcher, tick, 0.0

    def exchange(self, worker: int, host: str, records: Sequence[dict[str, Any]], wants: str) -> dict[str, Any]:
        """Call the dispatcher's."""
        try:
            return self._dispatcher.exchange(worker, host, records, wants)
        except EnvironmentProblem as problem:
            self._dispatcher.stop(str(problem), problem)
            return self._dispatcher.exchange(worker, host, [], wants)

    def tick(self) -> None:
        """Sync the ledger, and show progress."""
        if time.monotonic() - self._last > TICK_S:
            try:
                self._dispatcher.ledger.sync()
            except EnvironmentProblem as problem:
                self._dispatcher.stop(str(problem), problem)
            self._tick()
            self._last = time.monotonic()


def _run_here(dispatcher: Dispatcher, work: Work, tick: Tick) -> None:
    guard, host = _Guard(dispatcher, tick), socket.gethostname()

    def ask(records: Sequence[dict[str, Any]], wants: str) -> dict[str, Any]:
        guard.tick()
        return guard.exchange(0, host, records, wants)

    work_through(ask, work)
    guard.tick()


# ---------------------------------------------------------------------- processes of this machine


class _Processes:
    """Local worker processes; one that dies is replaced, and its task goes back."""

    def __init__(self, dispatcher: Dispatcher, work: Work, n: int, tick: Tick) -> None:
        self._guard, self._dispatcher, self._work = _Guard(dispatcher, tick), dispatcher, work
        self._context = multiprocessing.get_context("spawn")
        self._host, self._n = socket.gethostname(), n
        self._numbers: dict[Connection, int] = {}
        self._processes: dict[int, Any] = {}
        self._restarts: collections.Counter[int] = collections.Counter()
        self._cores = sorted(os.sched_getaffinity(0))

    def run(self) -> None:
        try:
            for number in range(self._n):
                self._start(number)
            asked_to_end = False
            while self._numbers:
                self._serve()
                self._guard.tick()
                if interrupts.came() and not asked_to_end:
                    asked_to_end = True
                    self._dispatcher.stop("interrupted")
                    self._signal(signal.SIGTERM)
        finally:
            self._signal(signal.SIGTERM)
            for process in self._processes.values():
                process.join(30)
                if process.is_alive():
                    process.kill()
                    process.join()

    def _start(self, number: int) -> None:
        here, there = self._context.Pipe()
        with interrupts.starting_children():
            place = number, self._cores[number % len(self._cores)]
            arguments = (there, place, self._n, os.getpid(), self._work)
            process = self._context.Process(target=_serve_process, args=arguments, daemon=True)
            process.start()
        there.close()
        self._processes[number], self._numbers[here] = process, number

    def _serve(self) -> None:
        for ready in wait(list(self._numbers), timeout=TICK_S):
            assert isinstance(ready, Connection)
            number = self._numbers[ready]
            try:
                records, wants = ready.recv()
                ready.send(self._guard.exchange(number, self._host, records, wants))
            except (EOFError, OSError):
                del self._numbers[ready]
                self._ended(number)

    def _ended(self, number: int) -> None:
        """A process is gone: having been told to stop, or dead."""
        process = self._processes[number]
        process.join(10)
        if process.exitcode == 0:
            return
        code = process.exitcode
        why = f"its process was killed by signal {-code}" if code is not None and code < 0 else f"its process ended with {code}"
        self._dispatcher.lost(number, why)
        self._restarts[number] += 1
        if self._restarts[number] > MAX_RESTARTS:
            text = f"worker process {number} died {MAX_RESTARTS + 1} times ({why}); is there memory left?"
            self._dispatcher.stop(text, EnvironmentProblem(text))
        elif not self._dispatcher.stopping:
            self._start(number)

    def _signal(self, number: int) -> None:
        for process in self._processes.values():
            if process.is_alive():
                with contextlib.suppress(OSError):
                    os.kill(process.pid, number)


def _serve_process(connection: Connection, place: tuple[int, int], n_processes: int, parent: int, work: Work) -> None:
    follow_parent(parent)
    pin(n_processes, lambda: place)
    interrupts.listen(signal.SIGTERM)

    def ask(records: Sequence[dict[str, Any]], wants: str) -> dict[str, Any]:
        connection.send((list(records), wants))
        reply: dict[str, Any] = connection.recv()
        return reply

    with interrupts.deferred():
        work_through(ask, work)
    connection.close()


# ---------------------------------------------------------------------- MPI


def _run_mpi(comm: Any, dispatcher: Dispatcher | None, work: Work, tick: Tick) -> None:
    """Rank 0 answers in a thread while its main thread works like the others; MPI is the thread's alone meanwhile."""
    host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    if dispatcher is None:
        with interrupts.deferred():
            work_through(lambda records, wants: _ask_root(comm, host, records, wants), work)
        return
    guard = _Guard(dispatcher, tick)
    thread = threading.Thread(target=_answer, args=(comm, dispatcher, guard), daemon=True)
    thread.start()
    with interrupts.deferred():
        work_through(lambda records, wants: guard.exchange(0, host, records, wants), work)
    thread.join()
    guard.tick()


def _ask_root(comm: Any, host: str, records: Sequence[dict[str, Any]], wants: str) -> dict[str, Any]:
    comm.send((host, list(records), wants), dest=0, tag=_ASK)
    for pause in _pauses():
        if comm.iprobe(source=0, tag=_ANSWER):
            reply: dict[str, Any] = comm.recv(source=0, tag=_ANSWER)
            return reply
        time.sleep(pause)
    raise AssertionError


def _answer(comm: Any, dispatcher: Dispatcher, guard: _Guard) -> None:
    """Serve the other ranks until all of them have been told to stop."""
    from mpi4py import MPI

    status, pauses = MPI.Status(), _pauses()
    try:
        while not dispatcher.is_over:
            if comm.iprobe(source=MPI.ANY_SOURCE, tag=_ASK, status=status):
                rank = status.Get_source()
                host, records, wants = comm.recv(source=rank, tag=_ASK)
                comm.send(guard.exchange(rank, host, records, wants), dest=rank, tag=_ANSWER)
                pauses = _pauses()
            else:
                guard.tick()
                time.sleep(next(pauses))
    except BaseException:
        traceback.print_exc()
        comm.Abort(1)  # without answers all ranks would wait for ever
        raise


def _pauses() -> Iterator[float]:
    """Asleep, not spinning: the core may be another rank's; short at first, so that quick answers are not missed."""
    pause = 1e-4
    while True:
        yield pause
        pause = min(1.5 * pause, 1e-2)
