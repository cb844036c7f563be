"""Torch on a GPU against the number of copies: the part of the suites `energies` and `md` that runs only where one is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.compilers import has_compiler
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import BatchedDynamics
from hpc_molgen.efficiency.suites.openmm_loop import OpenMMLoop
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.rounds import Method, interleaved, kinetic_temperature
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GpuSettings:
    """Numbers of copies, and how long each is measured.

    Attributes
    ----------
    batches : tuple of int
    compiled : bool
        Whether compiled torch takes part (it is compiled anew for each shape).
    n_steps : int
        Steps of one call of dynamics.
    """

    batches: tuple[int, ...] = (1000, 10_000, 100_000, 1_000_000)
    compiled: bool = True
    n_rounds: int = 5
    measure_s: float = 0.2
    n_steps: int = 50


def gpu_present() -> bool:
    """Return whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def _synchronise(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)


class _Memory:
    """Peak of the memory that torch took since this was made, in bytes; None where it does not count (on CPUs)."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch, self._device = torch, device
        if device != "cpu":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def per(self, n: int) -> float | None:
        """Bytes for each of `n`."""
        if self._device == "cpu":
            return None
        return (self._torch.cuda.max_memory_allocated(self._device) - self._before) / n


def _kinds_of_torch(settings: GpuSettings, device: str) -> list[tuple[str, bool]]:
    compiled = (False, True) if settings.compiled and has_compiler(device) else (False,)
    return [(dtype, how) for dtype in ("float32", "float64") for how in compiled]


def energies_on_gpu(
    system: MolecularSystem, frames: np.ndarray, settings: GpuSettings, loop: OpenMMLoop, judged: np.ndarray, costs: Costs,
    device: str = "cuda",
) -> list[dict[str, Any]]:  # fmt: skip
    """Speed, memory and error of energies and forces in torch, for every number of copies; one row each.

    Parameters
    ----------
    frames, judged : np.ndarray, shape=(n, n_atoms, 3)
        What is computed (repeated to the number of copies), and what is compared with `loop`.
    """
    import torch

    few = frames[:: max(1, len(frames) // 500)][:500]
    functions: dict[str, Callable[[], object]] = {
        "energies": lambda: loop.energies(few), "forces": lambda: loop.energies_and_forces(few)
    }  # fmt: skip
    methods = [Method(kind, "OpenMM Reference, loop", work, len(few), kind) for kind, work in functions.items()]
    expected = loop.energies(judged)
    watch = Stopwatch()
    for dtype, compiled in _kinds_of_torch(settings, device):
        batched = BatchedSystem(system, dtype, device, backend="torch", compiled=compiled)
        error = float(np.abs(batched.energies(judged) - expected).max())
        for n in settings.batches:
            for kind in functions:
                memory = _Memory(device)
                tiled = np.tile(frames, (-(-n // len(frames)), 1, 1))[:n].astype(dtype)
                work = _evaluation(batched, torch.from_numpy(tiled).to(device), kind, device)
                work()
                facts = {"kind": kind, "n": n, "dtype": dtype, "compiled": compiled, "energy_error_kj_mol": error}
                facts["bytes_per_copy"] = memory.per(n)
                methods.append(Method(f"{batched.description} {n} {kind}", batched.description, work, n, kind, facts))
    costs.add("GPU: first calls, compilations included", watch.cpu_s, watch.wall_s, gpus=1)
    with costs.stage("GPU: rounds", gpus=1):
        results = interleaved(methods, settings.n_rounds, settings.measure_s)
    return [results[method.label] for method in methods if method.facts]


def _evaluation(batched: BatchedSystem, positions: torch.Tensor, kind: str, device: str) -> Callable[[], None]:
    function = batched.energies if kind == "energies" else batched.energies_and_forces

    def work() -> None:
        function(positions)
        _synchronise(device)

    return work


def dynamics_on_gpu(
    system: MolecularSystem, starts_nm: np.ndarray, settings: GpuSettings, seed: int, costs: Costs, yardstick: Method,
    device: str = "cuda",
) -> list[dict[str, Any]]:  # fmt: skip
    """Speed of flexible dynamics of 1 fs in torch, for every number of copies; one row each, speeds in ns a day.

    Parameters
    ----------
    starts_nm : np.ndarray, shape=(n, n_atoms, 3)
        Repeated to the number of copies.
    yardstick : Method
        OpenMM's dynamics with the same step, in ns a day.
    """
    methods, runs, watch = [yardstick], {}, Stopwatch()
    for dtype, compiled in _kinds_of_torch(settings, device):
        for n in settings.batches:
            memory = _Memory(device)
            batched = BatchedSystem(system, dtype, device, backend="torch", compiled=compiled)
            if compiled:
                batched.energies_and_forces(starts_nm[:1])
            positions = np.tile(starts_nm, (-(-n // len(starts_nm)), 1, 1))[:n]
            seeds = [derive_seed(seed, "gpu", copy) for copy in range(n)]
            dynamics = BatchedDynamics(batched, positions, seeds, temperature_kelvin=system.temperature_kelvin)
            dynamics.step(2)
            label, kinetic = f"{batched.description} {n}", list[np.ndarray]()
            runs[label] = (dynamics, kinetic)
            facts = {"n": n, "dtype": dtype, "compiled": compiled, "bytes_per_copy": memory.per(n)}
            ns_a_day = n * settings.n_steps * 1e-6 * 86_400
            methods.append(
                Method(
                    label, batched.description, _steps(dynamics, settings.n_steps), ns_a_day, yardstick.label, facts,
                    _keep_kinetic(dynamics, kinetic),
                )
            )  # fmt: skip
    costs.add("GPU: first steps, compilations included", watch.cpu_s, watch.wall_s, gpus=1)
    with costs.stage("GPU: rounds", gpus=1):
        results = interleaved(methods, settings.n_rounds, settings.measure_s)
    for label, (_, kinetic) in runs.items():
        results[label]["temperature"] = kinetic_temperature(np.array(kinetic), 3 * system.n_atoms)
    return [results[label] for label in runs]


def _steps(dynamics: BatchedDynamics, n_steps: int) -> Callable[[], None]:
    return lambda: dynamics.step(n_steps)


def _keep_kinetic(dynamics: BatchedDynamics, kinetic: list[np.ndarray]) -> Callable[[], None]:
    return lambda: kinetic.append(dynamics.kinetic_kj_mol)
