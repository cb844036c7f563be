"""What `benchmark scaling` measures on the ranks that it was started on."""

from __future__ import annotations

import os
import platform
import socket
import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hpc_molgen.efficiency.suites.scaling_inputs import Inputs, Points
from hpc_molgen.efficiency.suites.scaling_model import jitter
from hpc_molgen.efficiency.suites.training_processes import time_all_reduce
from hpc_molgen.efficiency.suites.training_workloads import make_trainer, parameter_bytes, synchronise, time_steps
from hpc_molgen.training.distributed import ProcessGroup
from hpc_molgen.training.loop import Trainer


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    fractions : tuple of int
        The step's time is measured for the batch divided by each of these.
    measure_s : float
        Of every kind of step in every round.
    reduce_bytes : tuple of int
        Beside the bytes of the gradients.
    """

    fractions: tuple[int, ...] = (64, 16, 4, 2, 1)
    n_rounds: int = 5
    measure_s: float = 1.0
    reduce_bytes: tuple[int, ...] = (4, 2**12, 2**16, 2**20, 2**22, 2**24)
    reduce_repeats: int = 30


QUICK = Effort(n_rounds=3, measure_s=0.1)  # for a plan where nothing was measured before


def fit_items(largest: int, fractions: tuple[int, ...]) -> list[int]:
    """Numbers of items for which the time of a step is measured."""
    return sorted({max(1, largest // fraction) for fraction in fractions})


def measure(inputs: Inputs, group: ProcessGroup, effort: Effort, seed: int) -> Points:
    """Time steps without exchange for several numbers of items, then steps and all-reduces of all ranks (a collective)."""
    workload, weak = inputs.workload, inputs.weak_items
    settings = {"precision": inputs.precision, "compile": inputs.compile}
    alone = ProcessGroup(0, 1, group.device)
    items = sorted({*fit_items(max(workload.batch_size, weak), effort.fractions), workload.batch_size, weak})
    trainers = {n: make_trainer(workload, n, alone, seed, **settings) for n in items}
    together: dict[str, Trainer] = {}
    if group.size > 1:
        if group.size <= workload.batch_size:
            together["strong"] = make_trainer(workload, workload.batch_size, group, seed, **settings)
        together["weak"] = make_trainer(workload, weak * group.size, group, seed, **settings)
    try:
        curve, steps = _rounds(trainers, together, group, effort)
        varying = jitter(time_steps(trainers[items[-1]], max(10, _n_steps(trainers[items[-1]], group, 2 * effort.measure_s))))
    finally:
        for trainer in [*trainers.values(), *together.values()]:
            trainer.batches.close()
    n_bytes = sorted({*effort.reduce_bytes, sum(map(sum, parameter_bytes(workload)))}) if group.size > 1 else []
    reduces = [
        group.largest(statistics.median(time_all_reduce((n,), effort.reduce_repeats, str(group.device))))[0] for n in n_bytes
    ]
    if group.size == 1:  # one rank has nothing to exchange: its steps are those of the curve
        steps = {"strong": curve[workload.batch_size], "weak": curve[weak]}
    return Points(
        surrogate=inputs.surrogate,
        precision=inputs.precision,
        compile=inputs.compile,
        device=group.device.type,
        device_name=torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else platform.machine(),
        batch_size=workload.batch_size,
        items_per_rank=weak,
        ranks=group.size,
        nodes=count_nodes(group),
        items=tuple(items),
        step_s=tuple(statistics.median(curve[n]) for n in items),
        jitter=group.largest(varying)[0],
        strong_s=tuple(steps.get("strong", ())),
        weak_s=tuple(steps["weak"]),
        all_reduce_bytes=tuple(n_bytes),
        all_reduce_s=tuple(reduces),
    )


def _rounds(
    trainers: dict[int, Trainer], together: dict[str, Trainer], group: ProcessGroup, effort: Effort
) -> tuple[dict[int, list[float]], dict[str, list[float]]]:
    """Seconds of a step for each trainer in each round: means over ranks, and of the slowest rank where they exchange."""
    everyone: list[tuple[int | str, Trainer]] = [*trainers.items(), *together.items()]
    for _, trainer in everyone:
        _block_s(trainer, 2)  # compilation, caches, connections
    n_steps = {key: _n_steps(trainer, group, effort.measure_s) for key, trainer in everyone}
    curve: dict[int, list[float]] = {n: [] for n in trainers}
    steps: dict[str, list[float]] = {name: [] for name in together}
    for number in range(effort.n_rounds):
        for key, trainer in everyone if number % 2 == 0 else reversed(everyone):
            group.largest(0.0)  # all begin at once
            seconds = _block_s(trainer, n_steps[key])
            if isinstance(key, int):
                curve[key].append(float(group.sum(torch.tensor(seconds))) / group.size)
            else:
                steps[key].append(group.largest(seconds)[0])
    return curve, steps


def _n_steps(trainer: Trainer, group: ProcessGroup, measure_s: float) -> int:
    return max(2, int(measure_s / group.largest(_block_s(trainer, 2))[0]))


def _block_s(trainer: Trainer, n_steps: int) -> float:
    """Mean seconds of steps that a GPU may have queued one behind the other."""
    synchronise(trainer.group.device)
    started = time.perf_counter()
    for _ in range(n_steps):
        trainer.train_step()
    synchronise(trainer.group.device)
    return (time.perf_counter() - started) / n_steps


def count_nodes(group: ProcessGroup) -> int:
    """Return on how many nodes the ranks run, by Slurm's names for them or their own (a collective)."""
    name = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    names: list[str | None] = [name] * group.size
    if group.size > 1:
        dist.all_gather_object(names, name)
    return len(set(names))
