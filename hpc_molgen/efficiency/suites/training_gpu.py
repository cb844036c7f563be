"""Training on a GPU against batch size, precision and compilation: the part of `training` that runs only where one is."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hpc_molgen.efficiency.suites.record import Costs, spread
from hpc_molgen.efficiency.suites.rounds import Method, interleaved
from hpc_molgen.efficiency.suites.training_workloads import Workload, make_trainer, synchronise, time_steps
from hpc_molgen.training.distributed import ProcessGroup
from hpc_molgen.training.loop import Trainer
from hpc_molgen.training.speed import count_flops, matmul_flops_per_s
from hpc_molgen.workers import Stopwatch

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class GpuTraining:
    """Batch sizes of each workload, and how long each is measured.

    Attributes
    ----------
    compiled : bool
        Whether compiled training takes part (compiled anew for each batch size).
    steps_per_call : int
        Steps between two looks at the clock, which wait for the GPU.
    """

    batches: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {"diffusion": (1024, 4096, 16_384, 65_536), "gan": (128, 1024, 8192)}
    )
    compiled: bool = True
    n_rounds: int = 5
    measure_s: float = 0.5
    steps_per_call: int = 10


def training_on_gpu(
    workloads: dict[str, Workload], settings: GpuTraining, seed: int, costs: Costs, device: str = "cuda"
) -> list[dict[str, Any]]:
    """Samples a second of every workload for each batch size, in float32 and bf16, eager and compiled; one row each.

    Ratios are to eager float32 with the same batch in the same round. `utilisation` is the model FLOP utilisation against
    a large matrix product in the same precision on the same device; `busy_share` the share of a step in which kernels run.
    """
    rows = []
    for name, workload in workloads.items():
        for batch_size in settings.batches[name]:
            rows += _one_batch(workload, batch_size, settings, seed, costs, torch.device(device))
    return rows


def _one_batch(
    workload: Workload, batch_size: int, settings: GpuTraining, seed: int, costs: Costs, device: torch.device
) -> list[dict[str, Any]]:
    from hpc_molgen.compilers import has_compiler

    methods, trainers, watch = [], dict[str, Trainer](), Stopwatch()
    kinds = [(precision, compiled) for compiled in (False, True) for precision in DTYPES]
    try:
        for precision, compiled in kinds:
            if compiled and not (settings.compiled and has_compiler(str(device))):
                continue
            label = f"{precision} {'compiled' if compiled else 'eager'}"
            facts: dict[str, Any] = {"precision": precision, "compiled": compiled, "batch_size": batch_size}
            trainer = make_trainer(
                workload, batch_size, ProcessGroup(0, 1, device), seed, precision=precision, compile=compiled
            )
            trainers[label] = trainer
            time_steps(trainer, 3)  # compilation
            facts |= {"memory_mib": _peak_memory(trainer), "busy_share": busy_share(trainer)}
            work = _steps(trainer, settings.steps_per_call)
            methods.append(Method(label, label, work, settings.steps_per_call * batch_size, "float32 eager", facts))
        flops = _flops(workload, batch_size, seed, device)
        costs.add(f"GPU: {workload.words}, batch {batch_size}: first steps, compilation", watch.cpu_s, watch.wall_s, gpus=1)
        before = {label: (trainer.step, trainer.batches.wait_s) for label, trainer in trainers.items()}
        with costs.stage(f"GPU: {workload.words}, batch {batch_size}: rounds", gpus=1):
            results = interleaved(methods, settings.n_rounds, settings.measure_s)
        peaks = {precision: matmul_flops_per_s(device, dtype) for precision, dtype in DTYPES.items()}
        peaks["bf16"] = max(peaks.values())  # mixed precision has both kinds; processors without bf16 units emulate it
        for label, row in results.items():
            trainer, speeds = trainers[label], row["per_wall_s"]["values"]
            row["words"], row["device_name"] = workload.words, device_name(device)
            row["step_ms"] = spread(1e3 * batch_size / speed for speed in speeds)
            row["utilisation"] = spread(speed / batch_size * flops / peaks[row["precision"]] for speed in speeds)
            n_steps, waited_s = (
                now - then for now, then in zip((trainer.step, trainer.batches.wait_s), before[label], strict=True)
            )
            row["wait_share"] = waited_s / n_steps / (row["step_ms"]["mean"] / 1e3)
    finally:
        for trainer in trainers.values():
            trainer.batches.close()
    return list(results.values())


def _steps(trainer: Trainer, n: int) -> Callable[[], None]:
    def work() -> None:
        for _ in range(n):
            trainer.train_step()
            trainer.step += 1
        synchronise(trainer.group.device)

    return work


def _flops(workload: Workload, batch_size: int, seed: int, device: torch.device) -> float:
    """Operations of a step: they grow with the items, and are counted on few."""
    n = min(batch_size, 256)
    trainer = make_trainer(workload, n, ProcessGroup(0, 1, device), seed)
    try:
        return count_flops(trainer.train_step) * batch_size / n
    finally:
        trainer.batches.close()


def _peak_memory(trainer: Trainer) -> float | None:
    """Peak MiB that torch holds during a step (of everything on the GPU); None where it does not count (on CPUs)."""
    device = trainer.group.device
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    time_steps(trainer, 1)
    return torch.cuda.max_memory_allocated(device) / 2**20


def busy_share(trainer: Trainer, n_steps: int = 2) -> float:
    """Share of the wall time of some steps in which kernels (on CPUs: operators) run, by torch's profiler.

    The profiler itself slows the launching of kernels, so the true share is somewhat higher.
    """
    on_gpu = trainer.group.device.type == "cuda"
    activities, work = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], _steps(trainer, n_steps)
    with profile(activities=activities) as profiled:
        started = time.perf_counter()
        work()
        wall_s = time.perf_counter() - started
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return float(sum(getattr(event, name) for event in profiled.key_averages())) / 1e6 / wall_s


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the kind of processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
