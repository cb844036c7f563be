"""GROMACS in the suite `peers`: the same molecule in vacuum by it and by the batched engine, in turn, (phi, psi) compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.analysis.divergence import jensen_shannon, ramachandran_histogram
from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.gromacs import GromacsProblem, gromacs_path, gromacs_version
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.efficiency.suites.gromacs import Gromacs, children_cpu_s
from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.efficiency.suites.verdict_methods import phi_psi
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.workers import Stopwatch, one_thread

VACUUM = "alanine-dipeptide-vacuum"


@dataclass(frozen=True)
class VacuumSettings:
    """Steps of 1 fs of one run of GROMACS, and between frames; rounds; copies of the batched engine, which share the steps."""

    n_steps: int = 2_000_000
    save_every: int = 1_000
    n_rounds: int = 3
    n_copies: int = 64


def vacuum_side_by_side(settings: VacuumSettings, folder: Path, seed: int) -> dict[str, Any] | None:
    """Return ns a day and (phi, psi) of both by round; None without GROMACS.

    Flexible molecule, 1 fs, one thread each. Divergence is of the frames of all rounds; the floor is that of half of the
    batched engine's copies from the other half, at a half of the frames: twice what two sets of all frames would show.

    Raises
    ------
    GromacsProblem
        When a tool of GROMACS fails or its energy differs from OpenMM's.
    """
    executable = gromacs_path()
    if executable is None:
        return None
    system = load_system(SystemConfig(name=VACUUM))
    rates: dict[str, list[float]] = {"gromacs": [], "batched": []}
    angles: dict[str, list[np.ndarray]] = {"gromacs": [], "batched": []}
    energy_error = 0.0
    for number in range(settings.n_rounds):
        for name in list(rates) if number % 2 == 0 else list(reversed(rates)):
            own_seed = derive_seed(seed, "vacuum", name, number)
            if name == "gromacs":
                own = folder / f"gromacs-{number}"
                own.mkdir()
                program = Gromacs(
                    executable, system, system.positions_nm, own, settings.n_steps, own_seed % 2**31, settings.save_every
                )
                energy_error = max(energy_error, program.error_kj_mol)
                rate, frames = _gromacs(program, settings)
            else:
                rate, frames = _batched(system, settings, own_seed)
            rates[name].append(rate)
            angles[name].append(phi_psi(system, frames))
    return {
        "version": gromacs_version(executable),
        "energy_error_kj_mol": energy_error,
        "ns_per_core_day": {name: spread(values) for name, values in rates.items()},
        "batched_over_gromacs": spread(np.array(rates["batched"]) / np.array(rates["gromacs"])),
        **_agreement(angles),
    }


def _gromacs(program: Gromacs, settings: VacuumSettings) -> tuple[float, np.ndarray]:
    """Nanoseconds a day and core, start-up not counted, and the frames after the first fifth."""
    cpu_s = children_cpu_s()
    program.run()
    spent = children_cpu_s() - cpu_s - program.method("", "", {}).overhead_s[0]
    frames = program.frames()
    if spent <= 0:
        raise GromacsProblem(f"its run of {settings.n_steps:,} steps took no longer than its start: more steps are needed")
    return settings.n_steps * 1e-6 / spent * 86_400, frames[len(frames) // 5 :]


def _batched(system: MolecularSystem, settings: VacuumSettings, seed: int) -> tuple[float, np.ndarray]:
    """The same of as many steps in all, in copies that start at the minimised structure and run apart for a fifth first."""
    with one_thread():
        batched = BatchedSystem(system, "float32", threads=1)
        starts, _ = minimise(batched, np.repeat(system.positions_nm[None], settings.n_copies, axis=0), max_iterations=300)
        seeds = [derive_seed(seed, "copy", copy) for copy in range(settings.n_copies)]
        dynamics = BatchedDynamics(batched, starts, seeds, temperature_kelvin=system.temperature_kelvin, timestep_fs=1.0)
        n_steps = max(settings.save_every, settings.n_steps // settings.n_copies)
        dynamics.step(n_steps // 5)
        watch, frames = Stopwatch(), []
        for _ in range(max(1, n_steps // settings.save_every)):
            dynamics.step(settings.save_every)
            frames.append(dynamics.positions_nm)
    done = len(frames) * settings.save_every * settings.n_copies
    return done * 1e-6 / max(watch.cpu_s, 1e-6) * 86_400, np.concatenate(frames)


def _agreement(angles: dict[str, list[np.ndarray]]) -> dict[str, float]:
    """Divergence of (phi, psi) between the two, and between two parts of the batched engine's rounds."""
    n = min(sum(map(len, parts)) for parts in angles.values())
    first, second = (ramachandran_histogram(np.concatenate(parts)[:n]) for parts in angles.values())
    own = angles["batched"]
    halves = [ramachandran_histogram(np.concatenate(own)[part::2]) for part in (0, 1)]
    return {"n_frames": float(n), "jsd_60": jensen_shannon(first, second), "jsd_60_floor": jensen_shannon(*halves)}
