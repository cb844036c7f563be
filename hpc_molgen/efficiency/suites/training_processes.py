"""Two processes, each pinned to a core of its own, that train alone, side by side, or together over gloo."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpc_molgen.efficiency.suites.training_workloads import ALONE, Workload, make_trainer, synchronise, time_steps
from hpc_molgen.training.distributed import ProcessGroup, process_group
from hpc_molgen.training.loop import Trainer
from hpc_molgen.training.speed import count_flops, matmul_flops_per_s
from hpc_molgen.workers import available_cores, pinned_processes, receive

PATIENCE_S = 300.0
WARM_STEPS = 2


@dataclass(frozen=True)
class Steps:
    """Order: training steps on `n_items`; with `exchange` these are the global batch and both processes share it."""

    workload: Workload
    n_items: int
    n_steps: int
    exchange: bool = False


@dataclass(frozen=True)
class AllReduce:
    """Order: all-reduces of float32 tensors of these sizes, one after the other, `n_repeats` times."""

    n_bytes: tuple[int, ...]
    n_repeats: int


@dataclass(frozen=True)
class Operations:
    """Order: the floating-point operations of a step on `n_items`."""

    workload: Workload
    n_items: int


@dataclass(frozen=True)
class Peak:
    """Order: the operations a second of a large matrix product on this core."""


@dataclass(frozen=True)
class Timing:
    """What a process answers.

    Attributes
    ----------
    seconds : list of float
        Wall seconds of each step or repeat.
    drawing_s, cpu_s : float
        Of all of them: wall seconds until the batches were drawn; CPU seconds of all threads.
    """

    seconds: list[float]
    drawing_s: float
    cpu_s: float

    @property
    def mean_s(self) -> float:
        """Wall seconds of a step."""
        return sum(self.seconds) / len(self.seconds)


Order = Steps | AllReduce | Operations | Peak


class Pair:
    """The processes, one for each of the first two cores that this one may use.

    A process that has no order waits in a pipe and takes no CPU time. `cpu_s` adds up what all orders took.
    """

    def __init__(self, connections: list[Connection]) -> None:
        self.connections = connections
        self.cpu_s = 0.0

    @property
    def n(self) -> int:
        """Number of processes (1 where there is one core)."""
        return len(self.connections)

    def alone(self, which: int, order: Order) -> Any:
        """One process does its order while the other sleeps: a `Timing` (of `Operations` and `Peak`: a number)."""
        self.connections[which].send((order, False))
        return self._receive(which)

    def together(self, order: Order) -> list[Any]:
        """Both begin at once; return the answer of each."""
        for connection in self.connections:
            connection.send((order, True))
        return [self._receive(which) for which in range(self.n)]

    def _receive(self, which: int) -> Any:
        answer = receive(self.connections[which], PATIENCE_S)
        self.cpu_s += getattr(answer, "cpu_s", 0.0)
        return answer


@contextmanager
def pair_of_processes(seed: int) -> Iterator[Pair]:
    """Start the processes; they end with the block."""
    size = min(2, available_cores())
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(Path(folder) / "store", rank, size, seed) for rank in range(size)]
        with pinned_processes(_serve, arguments) as connections:
            yield Pair(connections)


def _serve(connection: Connection, barrier: Any, core: int, store: Path, rank: int, size: int, seed: int) -> None:
    """Carry out every order that comes, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed parent leaves nobody in the middle of an exchange
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    worker = _Worker(seed, process_group("cpu"))
    while True:
        try:
            order, together = connection.recv()
        except EOFError:
            break
        worker.prepare(order)
        if together and size > 1:
            barrier.wait(PATIENCE_S)
        connection.send(worker.carry_out(order))
    if size > 1:
        dist.destroy_process_group()
    os._exit(0)  # threads of gloo that still run can abort a process that ends in the usual way


class _Worker:
    """Holds a trainer for each kind of step, and does what it is told."""

    def __init__(self, seed: int, group: ProcessGroup) -> None:
        self.seed, self.group = seed, group
        self.trainers: dict[tuple[str, int, bool], Trainer] = {}

    def prepare(self, order: Order) -> None:
        """Make what the order needs, outside the measured time."""
        if isinstance(order, Steps) and (key := _key(order)) not in self.trainers:
            group = self.group if order.exchange else ALONE
            self.trainers[key] = make_trainer(order.workload, order.n_items, group, self.seed)
            time_steps(self.trainers[key], WARM_STEPS)

    def carry_out(self, order: Order) -> Any:
        if isinstance(order, Operations | Peak):
            return count_operations(order, self.seed)
        cpu = time.process_time()
        if isinstance(order, AllReduce):
            seconds, drawing_s = time_all_reduce(order.n_bytes, order.n_repeats), 0.0
        else:
            trainer = self.trainers[_key(order)]
            before = trainer.batches.wait_s
            seconds = time_steps(trainer, order.n_steps)
            drawing_s = trainer.batches.wait_s - before
        return Timing(seconds, drawing_s, time.process_time() - cpu)


def _key(order: Steps) -> tuple[str, int, bool]:
    return order.workload.words, order.n_items, order.exchange


def count_operations(order: Operations | Peak, seed: int) -> float:
    """Carry out an order that is about operations."""
    if isinstance(order, Peak):
        return matmul_flops_per_s(torch.device("cpu"), torch.float32)
    return count_flops(make_trainer(order.workload, order.n_items, ALONE, seed).train_step)


def time_all_reduce(n_bytes: Sequence[int], n_repeats: int, device: str = "cpu") -> list[float]:
    """Wall seconds of all-reducing float32 tensors of these sizes one after the other, for each repeat (a collective)."""
    place = torch.device(device)
    tensors = [torch.zeros(math.ceil(n / 4), device=place) for n in n_bytes]
    seconds = []
    for repeat in range(n_repeats + 1):
        synchronise(place)
        started = time.perf_counter()
        for tensor in tensors:
            dist.all_reduce(tensor)
        synchronise(place)
        if repeat:  # the first opens connections
            seconds.append(time.perf_counter() - started)
    return seconds
