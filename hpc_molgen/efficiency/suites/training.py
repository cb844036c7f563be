"""Suite `training`: samples a second that training makes, with one process and with two, what limits them, and when it is done.

Each workload trains through the `Trainer`'s own step and DDP over gloo. Two processes, each pinned to a core, take orders in
rounds: the whole batch on one of them, half of it alone and beside a stranger, and the whole batch together. They are two in
every size: more ranks are the suite `scaling`. Beside that, surrogates are trained on one core until their samples are good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_molgen.efficiency.suites import training_tables as tables
from hpc_molgen.efficiency.suites.record import Costs, spread
from hpc_molgen.efficiency.suites.rounds import target_sentence
from hpc_molgen.efficiency.suites.scaling_model import buckets
from hpc_molgen.efficiency.suites.training_gpu import GpuTraining, training_on_gpu
from hpc_molgen.efficiency.suites.training_processes import AllReduce, Operations, Pair, Peak, Steps, Timing, pair_of_processes
from hpc_molgen.efficiency.suites.training_quality import LONG_LEARNERS, SMALL_LEARNERS, Quality, time_to_quality
from hpc_molgen.efficiency.suites.training_workloads import SMALL_WORKLOADS, WORKLOADS, Workload, parameter_bytes
from hpc_molgen.errors import InputError
from hpc_molgen.workers import Stopwatch

DDP_BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True)
class Size:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    measure_s : float
        Of every kind of step in every round, at least three steps.
    reduce_repeats : int
        All-reduces of a step's gradients in every round.
    """

    workloads: dict[str, Workload] = field(default_factory=lambda: WORKLOADS)
    n_rounds: int = 7
    measure_s: float = 2.0
    reduce_repeats: int = 30
    gpu: GpuTraining = field(default_factory=GpuTraining)
    quality: Quality = field(default_factory=Quality)


SIZES = {
    "laptop": Size(),
    "smoke": Size(
        workloads=SMALL_WORKLOADS,
        n_rounds=2,
        measure_s=0.02,
        reduce_repeats=3,
        gpu=GpuTraining(batches={"diffusion": (256, 1024), "gan": (32,)}, compiled=False, n_rounds=2, measure_s=0.05),
        quality=Quality(
            SMALL_LEARNERS,
            n_copies=16,
            equilibration_ps=1.0,
            production_ps=20.0,
            every_ps=0.1,
            n_samples=400,
            n_thinnings=3,
            first_step=8,
        ),
    ),
    "cluster": Size(
        n_rounds=20,
        measure_s=10.0,
        reduce_repeats=100,
        gpu=GpuTraining(n_rounds=15, measure_s=5.0),
        quality=Quality(LONG_LEARNERS, n_copies=256, production_ps=1500.0, n_seeds=10),
    ),
}


def training(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record."""
    del out
    if size not in SIZES:
        raise InputError(f"the suite 'training' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs, notes = SIZES[size], Costs(), list[str]()
    results = {}
    with pair_of_processes(seed) as pair:
        for name, workload in settings.workloads.items():
            watch, before_s = Stopwatch(), pair.cpu_s
            results[name] = compare_processes(pair, workload, settings)
            what = f"{workload.words}: rounds of one and two processes (CPU seconds of their work)"
            costs.add(what, pair.cpu_s - before_s, watch.wall_s)
    if pair.n == 1:
        notes.append("This process may use one core only, so two processes were not compared with one.")
    gpu = []
    if torch.cuda.is_available():
        gpu = training_on_gpu(settings.workloads, settings.gpu, seed, costs)
    else:
        notes.append("There was no GPU: precisions and the compiler were not compared.")
    quality = time_to_quality(settings.quality, seed, costs)
    targets = tables.targets(results)
    return {
        "question": tables.QUESTION,
        "answer": [target_sentence(targets, size), *tables.answer(results), *tables.quality_answer(quality)],
        "targets": targets,
        "tables": [*tables.tables(results), *tables.gpu_tables(gpu), *tables.quality_tables(quality)],
        "costs": costs.stages,
        "notes": [*tables.NOTES, *notes],
        "results": {"processes": results, "gpu": gpu, **quality},
        "config": dataclasses.asdict(settings),
    }


def compare_processes(pair: Pair, workload: Workload, settings: Size) -> dict[str, Any]:
    """Rounds of all kinds of steps of one workload; speeds, their ratios, and the parts of a step of two processes."""
    whole, half = workload.batch_size, workload.batch_size // 2
    sizes = tuple(n for update in parameter_bytes(workload) for n in buckets(update, DDP_BUCKET_BYTES))
    flops = pair.alone(0, Operations(workload, whole))
    lengths = {n: pair.together(Steps(workload, n, 1))[0].mean_s for n in (whole, half)}
    if pair.n == 2:
        pair.together(Steps(workload, whole, 1, exchange=True))

    def steps(n: int, *, exchange: bool = False) -> Steps:
        return Steps(workload, n, max(3, round(settings.measure_s / lengths[half if exchange else n])), exchange)

    peaks: list[float] = []
    seen: dict[str, list[list[Timing]]] = {}
    turns: dict[str, Callable[[int], list[Timing]]] = {"one": lambda core: [pair.alone(core % pair.n, steps(whole))]}
    if pair.n == 2:
        turns |= {
            "half alone": lambda core: [pair.alone(core, steps(half))],
            "half beside": lambda _: pair.together(steps(half)),
            "whole beside": lambda _: pair.together(steps(whole)),
            "two": lambda _: pair.together(steps(whole, exchange=True)),
            "all-reduce": lambda _: pair.together(AllReduce(sizes, settings.reduce_repeats)),
        }
    for number in range(settings.n_rounds):
        peaks.append(pair.alone(number % pair.n, Peak()))
        for name in list(turns) if number % 2 == 0 else list(reversed(turns)):
            seen.setdefault(name, []).append(turns[name](number % 2))
    facts = {
        "workload": dataclasses.asdict(workload), "words": workload.words, "items": workload.items,
        "gradient_bytes": sum(sizes), "exchanges": len(sizes), "flops_per_step": flops,
    }  # fmt: skip
    return {**facts, **_one(seen["one"], whole, flops, peaks), **(_two(seen, whole, flops, peaks) if pair.n == 2 else {})}


def _one(rounds: list[list[Timing]], batch: int, flops: float, peaks: list[float]) -> dict[str, Any]:
    """Speed of one process; `utilisation` is the share of the speed of a matrix product on the same core and round."""
    seconds = [answers[0].mean_s for answers in rounds]
    return {
        "one_per_s": spread(batch / s for s in seconds),
        "one_ms": spread(1e3 * s for s in seconds),
        "one_utilisation": spread(flops / s / peak for s, peak in zip(seconds, peaks, strict=True)),
        "one_wait_share": spread(answers[0].drawing_s / sum(answers[0].seconds) for answers in rounds),
    }


def _two(seen: dict[str, list[list[Timing]]], batch: int, flops: float, peaks: list[float]) -> dict[str, Any]:
    """Speed of two processes over that of one, the factors that it is made of, and the parts of a step.

    The ratio is the product of three: what halving the batch of a process brings (2, less what does not shrink, more what
    then fits into caches), what the neighbour's use of memory and clock costs, and what exchange and waiting cost.
    """
    means = {name: np.array([[t.mean_s for t in answers] for answers in rounds]) for name, rounds in seen.items()}
    one, alone = means["one"][:, 0], means["half alone"][:, 0]
    beside, two = means["half beside"].mean(axis=1), means["two"].max(axis=1)
    own_drawing = np.array([_drawing_s(answers) for answers in seen["half beside"]])
    parts = {
        "draw": np.array([_drawing_s(answers) for answers in seen["two"]]),
        "compute": beside - own_drawing,
        "all_reduce": means["all-reduce"].max(axis=1),
        "wait": np.array([_waiting_s(answers) for answers in seen["half beside"]]),
    }
    parts["rest"] = two - sum(parts.values())
    return {
        "two_per_s": spread(batch / two),
        "two_ms": spread(1e3 * two),
        "two_utilisation": spread(flops / two / (2 * np.array(peaks))),
        "two_wait_share": spread(parts["draw"] / two),
        "ratio": spread(one / two),
        "ratio_cpu": spread(_cpu_s(seen["one"]) / _cpu_s(seen["two"])),
        "factors": {"halving": spread(one / alone), "sharing": spread(alone / beside), "exchange": spread(beside / two)},
        "ceiling_half": spread(one / beside),
        "ceiling_whole": spread(2 * one / means["whole beside"].mean(axis=1)),
        "parts_ms": {name: spread(1e3 * values) for name, values in parts.items()},
        "parts_share": {name: spread(values / two) for name, values in parts.items()},
    }


def _cpu_s(rounds: list[list[Timing]]) -> np.ndarray:
    """CPU seconds of a step of one process in each round, which other programs on the machine change little; (n_rounds,)."""
    return np.array([np.mean([timing.cpu_s / len(timing.seconds) for timing in answers]) for answers in rounds])


def _drawing_s(answers: list[Timing]) -> float:
    return float(np.mean([timing.drawing_s / len(timing.seconds) for timing in answers]))


def _waiting_s(answers: list[Timing]) -> float:
    """By how much the slower of two processes exceeds their mean, step by step, when they do not know of each other."""
    seconds = np.array([timing.seconds for timing in answers])
    return float((seconds.max(axis=0) - seconds.mean(axis=0)).mean())
