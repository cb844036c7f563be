"""Which engine computes: the batched one or an OpenMM platform, by a short measurement on this machine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import numpy as np

from hpc_molgen.dynamics.batched import BatchedSystem, try_batched
from hpc_molgen.dynamics.engine import Engine, platform_speeds
from hpc_molgen.dynamics.langevin import BatchedDynamics
from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem

log = logging.getLogger(__name__)
BATCHED = "batched"
TORCH_COPIES = 128
_chosen: dict[tuple[str, str, int], str] = {}
_evaluators: dict[tuple[str, str], BatchedSystem | Engine] = {}


def choose_dynamics(system: MolecularSystem, asked: str, n_copies: int) -> str:
    """Return "batched" or a platform's name: what makes most steps per second of all copies on one core.

    Parameters
    ----------
    asked : str
        From the configuration: "auto" measures, a name is taken as it is.
    n_copies : int
        How many trajectories there are; few copies leave the batched engine's vectors half empty.

    Raises
    ------
    InputError
        When "batched" is asked for and a force is not known to the batched engine (the message names it).
    """
    asked = os.environ.get("HPC_MOLGEN_PLATFORM", "auto") if asked == "auto" else asked
    if asked == BATCHED:
        BatchedSystem(system, "float32")
    if asked != "auto":
        return asked
    key = (system.key, "dynamics", n_copies)
    if key not in _chosen:
        speeds = platform_speeds(system)
        batched = try_batched(system, "float32", threads=1)
        if batched is not None:
            speeds[BATCHED] = _batched_steps_per_s(batched, system, min(n_copies, _per_batch(batched)))
        _chosen[key] = _fastest("dynamics", "steps/s of all copies on one core", speeds)
    return _chosen[key]


def copies_per_batch(system: MolecularSystem) -> int:
    """Copies that one worker runs at once: one full vector of the kernel, so that little is lost with a kill; more in torch."""
    return _per_batch(BatchedSystem(system, "float32"))


def _per_batch(batched: BatchedSystem) -> int:
    return TORCH_COPIES if batched.native is None else batched.native.lanes


def _batched_steps_per_s(batched: BatchedSystem, system: MolecularSystem, n: int, measure_s: float = 0.1) -> float:
    starts = np.repeat(system.positions_nm[None], n, axis=0)
    # a negligible time step, as in `platform_speeds`: the structure stays where it is, however strained
    dynamics = BatchedDynamics(batched, starts, [1] * n, temperature_kelvin=system.temperature_kelvin, timestep_fs=1e-6)
    dynamics.step(1)
    n_steps, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < measure_s:
        dynamics.step(5)
        n_steps += 5
    return n * n_steps / elapsed


def choose_energies(system: MolecularSystem) -> str:
    """Return "batched" or a platform's name: what evaluates most energies per second on one core, in float64 if batched."""
    asked = os.environ.get("HPC_MOLGEN_PLATFORM", "auto")
    if asked != "auto":
        return asked
    key = (system.key, "energies", 0)
    if key not in _chosen:
        speeds = {name: _energies_per_s(system, name) for name in platform_speeds(system)}
        if try_batched(system, "float64", threads=1) is not None:
            speeds[BATCHED] = _energies_per_s(system, BATCHED)
        _chosen[key] = _fastest("energies", "energies/s on one core", speeds)
    return _chosen[key]


def _energies_per_s(system: MolecularSystem, name: str, measure_s: float = 0.05) -> float:
    evaluate = energy_function(system, name)
    n = 1 if system.n_atoms > 1000 else 256 if name == BATCHED else 16
    positions = np.repeat(system.positions_nm[None], n, axis=0)
    evaluate(positions)
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < measure_s:
        evaluate(positions)
        done += n
    return done / elapsed


def energy_function(system: MolecularSystem, name: str, n_expected: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from positions (n, n_atoms, 3) to reduced energies (n,), float64, of the named engine.

    Energies that are not finite become +inf. What evaluates them is kept for the next call in this process.

    Parameters
    ----------
    n_expected : int
        How many energies will be asked for in all: torch compiles where that pays.
    """
    key = (system.key, name)
    if key not in _evaluators:
        _evaluators[key] = BatchedSystem(system, "float64", threads=1) if name == BATCHED else Engine(system, name)
    evaluator, kt_kj_mol = _evaluators[key], system.kt_kj_mol
    if isinstance(evaluator, Engine):
        return evaluator.reduced_energy
    evaluator.prepare(n_expected)
    return lambda positions_nm: np.asarray(evaluator.energies(positions_nm)) / kt_kj_mol


def _fastest(what: str, unit: str, speeds: dict[str, float]) -> str:
    if not speeds:
        raise InputError(f"no engine can compute {what} of this system on this machine")
    best = max(speeds, key=lambda name: speeds[name])
    listed = ", ".join(f"{name} {speed:,.0f}" for name, speed in sorted(speeds.items(), key=lambda item: -item[1]))
    log.info("%s: %s (%s: %s)", what, best, unit, listed)
    return best
