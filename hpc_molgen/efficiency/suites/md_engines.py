"""The engines that the suite `md` compares: OpenMM's platforms, one copy each, and the batched engine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.dynamics.langevin import BatchedDynamics
from hpc_molgen.dynamics.modified import modified_system
from hpc_molgen.efficiency.suites.rounds import Method, pinned
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem

_NS_A_DAY = 1e-6 * 86_400  # of one fs a second


@dataclass(frozen=True)
class Protocol:
    """A time step and what makes it possible."""

    name: str
    timestep_fs: float
    constraints: str = "none"
    hydrogen_mass_amu: float | None = None


PROTOCOLS = {
    "1fs": Protocol("1 fs, flexible", 1.0),
    "2fs": Protocol("2 fs, X-H constrained", 2.0, "hbonds"),
    "3fs": Protocol("3 fs, X-H constrained, hydrogens of 3.024 u", 3.0, "hbonds", 3.024),
}


@dataclass(frozen=True)
class EngineSettings:
    """How every engine runs.

    Attributes
    ----------
    n_copies : int
        Of the batched engine.
    n_steps : int
        Of one call.
    warm_steps : int
        Before the first round.
    """

    n_copies: int = 64
    n_steps: int = 100
    warm_steps: int = 500


def start_dynamics(
    batched: BatchedSystem, starts_nm: np.ndarray, n: int, timestep_fs: float, seed: int, warm_steps: int
) -> BatchedDynamics:
    """Return `n` copies at 300 K after `warm_steps`, from `starts_nm` (any number, n_atoms, 3) repeated."""
    positions = np.tile(starts_nm, (-(-n // len(starts_nm)), 1, 1))[:n]
    seeds = [derive_seed(seed, "copy", copy) for copy in range(n)]
    dynamics = BatchedDynamics(batched, positions, seeds, temperature_kelvin=300.0, timestep_fs=timestep_fs)
    dynamics.step(warm_steps)
    return dynamics


@dataclass(frozen=True)
class Run:
    """One engine under way: what is timed, and the kinetic energies (n_copies,) seen after each call."""

    method: Method
    kinetic_kj_mol: list[np.ndarray]
    n_freedoms: int


def make_runs(
    key: str, system: MolecularSystem, protocol: str, starts_nm: np.ndarray, settings: EngineSettings, seed: int
) -> list[Run]:
    """Every engine of this machine on one system with one protocol."""
    runs = [openmm_run(key, system, protocol, platform, starts_nm, settings, seed) for platform in ("Reference", "CPU")]
    return runs + [batched_run(key, system, protocol, dtype, starts_nm, settings, seed) for dtype in ("float32", "float64")]


def _label(key: str, protocol: str, engine: str) -> str:
    return f"{key} {protocol} {engine}"


def _n_freedoms(system: MolecularSystem, protocol: Protocol) -> int:
    return 3 * system.n_atoms - int(modified_system(system, constraints=protocol.constraints).getNumConstraints())


def openmm_run(
    key: str, system: MolecularSystem, protocol: str, platform: str, starts_nm: np.ndarray, settings: EngineSettings, seed: int
) -> Run:
    """One copy on a platform of OpenMM; the CPU platform is kept on one core, where it is fastest."""
    chosen, core = PROTOCOLS[protocol], max(os.sched_getaffinity(0)) if platform == "CPU" else None
    with pinned(core):
        engine = Engine(
            system,
            platform,
            derive_seed(seed, "openmm", key, protocol, platform),
            timestep_fs=chosen.timestep_fs,
            constraints=chosen.constraints,
            hydrogen_mass_amu=chosen.hydrogen_mass_amu,
        )
        engine.set_positions(starts_nm[0], draw_velocities=True)
        engine.step(settings.warm_steps)
    kinetic: list[np.ndarray] = []
    method = Method(
        _label(key, protocol, platform.lower()),
        f"OpenMM {platform}" + (", 1 thread, pinned" if core is not None else ""),
        lambda: engine.step(settings.n_steps),
        settings.n_steps * chosen.timestep_fs * _NS_A_DAY,
        _label(key, protocol, "reference"),
        {"system": key, "protocol": protocol, "engine": platform, "n_copies": 1},
        lambda: kinetic.append(next(engine.simulate(1, 1)).kinetic_kj_mol),
        core=core,
    )
    return Run(method, kinetic, _n_freedoms(system, chosen))


def batched_run(
    key: str, system: MolecularSystem, protocol: str, dtype: str, starts_nm: np.ndarray, settings: EngineSettings, seed: int
) -> Run:
    """Many copies in the batched engine on one thread."""
    chosen = PROTOCOLS[protocol]
    molecule = modified_system(system, constraints=chosen.constraints, hydrogen_mass_amu=chosen.hydrogen_mass_amu)
    batched = BatchedSystem(molecule, dtype, threads=1, compiled=False)
    dynamics = start_dynamics(batched, starts_nm, settings.n_copies, chosen.timestep_fs, seed, settings.warm_steps)
    kinetic: list[np.ndarray] = []
    method = Method(
        _label(key, protocol, f"batched {dtype}"),
        f"{batched.description}, {settings.n_copies} copies",
        lambda: dynamics.step(settings.n_steps),
        settings.n_copies * settings.n_steps * chosen.timestep_fs * _NS_A_DAY,
        _label(key, protocol, "reference"),
        {"system": key, "protocol": protocol, "engine": batched.backend, "dtype": dtype, "n_copies": settings.n_copies},
        lambda: kinetic.append(dynamics.kinetic_kj_mol),
    )
    return Run(method, kinetic, _n_freedoms(system, chosen))
