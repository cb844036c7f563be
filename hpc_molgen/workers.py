"""Who does the work: MPI ranks, torchrun's ranks, or processes on the cores of this machine."""

from __future__ import annotations

import atexit
import concurrent.futures
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from hpc_molgen import interrupts, mpi_ranks
from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.torch_ranks import TorchComm

Item = TypeVar("Item")
Result = TypeVar("Result")

# the last one is what launch/job.sh hands to a container whose options keep the others out
_MPI_SIZE_VARIABLES = (
    "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "PMIX_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS", "HPC_MOLGEN_RANKS"
)  # fmt: skip


def launched_size() -> int:
    """Number of MPI ranks that a launcher says it started (1 without a launcher)."""
    for name in _MPI_SIZE_VARIABLES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def available_cores() -> int:
    """Cores that this process may use: by its affinity mask, and no more than Slurm gave it where masks are not set."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    n = len(os.sched_getaffinity(0))
    return min(n, int(given)) if given.isdigit() else n


SAY_BEFORE_ABORT_S = 0.5  # an abort also ends the launcher, and what it has not read from the ranks by then is lost


class ShareDone(Exception):
    """The items of this job's share are done; the other jobs of the array do theirs. `Run.stage` ends the stage quietly."""


class Workers:
    """Runs independent items on ranks or local processes; the results do not depend on how many there are.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm or TorchComm, optional
        Communicator; None uses local processes.
    n_processes : int
        Local processes when there is no communicator; 1 runs everything in this process.
    share : (int, int)
        Job k of an array of n jobs does items k, k + n, k + 2n, ... of every `map`; (0, 1) does all of them.
    """

    def __init__(self, comm: Any = None, n_processes: int = 1, share: tuple[int, int] = (0, 1)) -> None:
        self.comm, self.share = comm, share
        self.is_torchrun = isinstance(comm, TorchComm)
        self.n_processes = n_processes
        self.rank: int = comm.Get_rank() if comm is not None else 0
        self.size: int = comm.Get_size() if comm is not None else 1

    @classmethod
    def detect(cls, share: tuple[int, int] = (0, 1)) -> Workers:
        """Use the ranks that torchrun or an MPI launcher made, else every core of this machine.

        Raises
        ------
        EnvironmentProblem
            When a launcher started several ranks but MPI is missing or every rank sees a world of its own.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ:
            return cls(TorchComm(), share=share)
        size = launched_size()
        if size == 1:
            if not any(name in os.environ for name in _MPI_SIZE_VARIABLES):
                mpi_ranks.refuse_to_be_alone()
            return cls(n_processes=available_cores(), share=share)
        return cls(mpi_ranks.world(size), share=share)

    def turned(self, by: int) -> Workers:
        """Return the same workers with another number among the jobs of an array, where these take turns."""
        number, of = self.share
        return Workers(self.comm, self.n_processes, ((number + by) % of, of))

    @property
    def is_root(self) -> bool:
        """True on the one process that writes shared files."""
        return self.rank == 0

    @property
    def trains(self) -> bool:
        """True where training runs: on all of torchrun's ranks, on the root of all others."""
        return self.is_root or self.is_torchrun

    def leave_at_exit(self, exit_code: int) -> None:
        """Let a rank of torch's whose work is done end with `exit_code` and without the destructors of C++.

        Threads of gloo that still run then can abort the process ("terminate called without an active exception"), now and
        then even after the group was destroyed, and the launcher would take a finished run for a failed one.
        """
        if self.is_torchrun:
            atexit.register(_leave, exit_code)  # the last registered is the first called

    def abort(self, exit_code: int) -> None:
        """End every rank after an error on this one, so that none waits for ever in a collective.

        Torch's ranks are ended by their launcher once this one is gone; destroying their group first would wait for them.
        """
        if self.is_torchrun:
            _leave(exit_code)
        elif self.comm is not None:
            time.sleep(SAY_BEFORE_ABORT_S)
            self.comm.Abort(exit_code)

    @property
    def n_parallel(self) -> int:
        """How many items run at once."""
        return self.size if self.comm is not None else self.n_processes

    def barrier(self) -> None:
        """Wait for all ranks, asleep: MPI's own barrier would keep a core busy that another rank could use."""
        if self.comm is None:
            return
        if self.is_torchrun:
            self.comm.allgather(None)
            return
        request = self.comm.Ibarrier()
        while not request.Test():
            time.sleep(0.02)

    def from_root(self, function: Callable[[], Result]) -> Result:
        """Call `function` on the root and return its result on every rank."""
        if self.comm is None:
            return function()
        value = function() if self.is_root else None
        self.barrier()
        result: Result = self.comm.bcast(value)
        return result

    def gather(self, value: Result) -> list[Result]:
        """Return the values of all ranks, on every rank."""
        if self.comm is None:
            return [value]
        self.barrier()
        values: list[Result] = self.comm.allgather(value)
        return values

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        on_result: Callable[[Result], None] | None = None,
    ) -> list[Result]:
        """Apply a picklable `function` to every item; return all results in order, on every rank.

        `on_result` is called on the rank (or in the parent process) as results come in.

        Raises
        ------
        ShareDone
            When these workers had a share of the items alone, and it is done.
        """
        number, of = self.share
        if of == 1:
            return self._map(function, items, on_result)
        self._map(function, items[number::of], on_result)
        raise ShareDone

    def _map(
        self, function: Callable[[Item], Result], items: Sequence[Item], on_result: Callable[[Result], None] | None
    ) -> list[Result]:
        if self.comm is not None:
            mine = []
            for index in range(self.rank, len(items), self.size):
                interrupts.check()
                mine.append((index, function(items[index])))
                if on_result:
                    on_result(mine[-1][1])
            self.barrier()
            gathered = [pair for part in self.comm.allgather(mine) for pair in part]
            return [result for _, result in sorted(gathered, key=lambda pair: pair[0])]
        if self.n_processes == 1 or len(items) <= 1:
            results = []
            for item in items:
                interrupts.check()
                results.append(function(item))
                if on_result:
                    on_result(results[-1])
            return results
        return self._map_processes(function, items, on_result)

    def _map_processes(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        on_result: Callable[[Result], None] | None,
    ) -> list[Result]:
        context = multiprocessing.get_context("spawn")
        with interrupts.starting_children():
            cores = context.Queue()
        allowed, n_processes = sorted(os.sched_getaffinity(0)), min(self.n_processes, len(items))
        for number in range(n_processes):
            cores.put((number, allowed[number % len(allowed)]))
        executor = concurrent.futures.ProcessPoolExecutor(
            n_processes, context, _start_process, (cores, n_processes, os.getpid())
        )
        try:
            with interrupts.starting_children():
                futures = [executor.submit(function, item) for item in items]
            for future in concurrent.futures.as_completed(futures):
                interrupts.check()
                if on_result:
                    on_result(future.result())
            results = [future.result() for future in futures]
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
                process.join(5)  # so that its CPU time is counted
            # One of the executor's threads may be writing to a pipe that is full. Nobody reads it any more: without its other
            # end the write fails, and the thread ends, for which this process would wait at its exit.
            with contextlib.suppress(AttributeError, OSError):
                executor._call_queue._reader.close()  # type: ignore[attr-defined]
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        executor.shutdown()
        return results


def _leave(exit_code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def local_rank() -> int:
    """Number of this rank or worker process on its node, which chooses among the node's visible GPUs."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _start_process(cores: Any, n_processes: int, parent: int) -> None:
    follow_parent(parent)
    pin(n_processes, lambda: cores.get(timeout=10))


def follow_parent(parent: int) -> None:
    """Make a worker process quiet on Ctrl-C, and die with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "SIGKILL") and os.uname().sysname == "Linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


def pin(n_processes: int, choose: Callable[[], tuple[int, int]]) -> None:
    """Give a worker process the GPU of its number, and keep it on its core where there is one for each of `n_processes`."""
    number, core = choose()
    os.environ["LOCAL_RANK"] = str(number)
    if n_processes <= available_cores() == len(os.sched_getaffinity(0)):  # else other jobs may be on the first cores
        os.sched_setaffinity(0, {core})  # unpinned, OpenMM's CPU platform loses a factor of 2 to 4


def cpu_seconds() -> float:
    """CPU time of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Stopwatch:
    """Wall and CPU seconds of this process since it was made; `children` adds those of processes that it has waited for."""

    def __init__(self, *, children: bool = False) -> None:
        self._clock = cpu_seconds if children else time.process_time
        self._wall, self._cpu = time.perf_counter(), self._clock()

    @property
    def wall_s(self) -> float:
        """Wall-clock seconds so far."""
        return time.perf_counter() - self._wall

    @property
    def cpu_s(self) -> float:
        """CPU seconds so far, all threads."""
        return self._clock() - self._cpu


@contextlib.contextmanager
def pinned_processes(
    serve: Callable[..., None], arguments: Sequence[tuple[Any, ...]], cores: Sequence[int] | None = None
) -> Iterator[list[Connection]]:
    """Start processes for a comparison, each for a core; yield the pipes to them, with whose end they end.

    Parameters
    ----------
    serve : callable
        Called in each process as ``serve(connection, barrier, core, *arguments)``: carries out what comes by the connection
        until its other end is closed. A process that has no order waits there and takes no CPU time.
    arguments : sequence of tuple
        One for each process.
    cores : sequence of int, optional
        One for each process; by default the first ones that there are, and no more processes than that.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(arguments))
    connections: list[Connection] = []
    processes = []
    try:
        for core, own in zip(cores or sorted(os.sched_getaffinity(0)), arguments, strict=False):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, barrier, core, *own), daemon=True)
            process.start()
            there.close()
            connections.append(here)
            processes.append(process)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.terminate()
                process.join()


def receive(connection: Connection, patience_s: float) -> Any:
    """Return the answer of one of `pinned_processes`.

    Raises
    ------
    EnvironmentProblem
        When it has ended, or does not answer in time.
    """
    try:
        if connection.poll(patience_s):
            return connection.recv()
    except (EOFError, OSError) as error:
        raise EnvironmentProblem("a process of a comparison ended early (is there memory left?)") from error
    raise EnvironmentProblem(f"a process of a comparison did not answer within {patience_s:g} s")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: its sums have one order then, and CPU seconds of methods that thread differently compare."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
