"""Molecular dynamics of the suite `peers`: the data of all, and replica exchange by openmmtools and by this package."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm

from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.dynamics.modified import modified_system
from hpc_molgen.dynamics.tempering import ParallelTempering, geometric_ladder
from hpc_molgen.efficiency.suites.verdict_methods import phi_psi
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch, one_thread


@dataclass(frozen=True)
class Walkers:
    """The data: groups of independent walkers of plain MD, X-H constrained; 24 ns and a frame per ps in each, as published."""

    n_groups: int = 4
    per_group: int = 16
    production_ps: float = 1500.0
    equilibration_ps: float = 20.0
    save_every_ps: float = 1.0
    timestep_fs: float = 2.0

    @property
    def n_frames(self) -> int:
        """Of one walker."""
        return round(self.production_ps / self.save_every_ps)


@dataclass(frozen=True)
class Exchange:
    """Replica exchange: the same ladder, step and swaps for both programs; ladders side by side in this package's."""

    n_temperatures: int = 4
    hottest_kelvin: float = 600.0
    swap_every_ps: float = 0.2
    n_swaps: int = 1500
    timestep_fs: float = 2.0
    n_ladders: int = 8
    discarded: float = 0.1


@dataclass(frozen=True)
class Trajectories:
    """(phi, psi) along trajectories, and what they cost.

    Attributes
    ----------
    angles_rad : np.ndarray, shape=(n_trajectories, n_frames, 2)
    cpu_s, wall_s : float
    ns : float
        Of all copies together, equilibration included.
    facts : dict
    """

    angles_rad: np.ndarray
    cpu_s: float
    wall_s: float
    ns: float
    facts: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """A group of walkers that one process runs."""

    system: MolecularSystem
    settings: Walkers
    seed: int


def plain_md(group: Group) -> Trajectories:
    """Run the walkers of a group at once in the batched engine on one thread, all from the minimised structure."""
    system, settings, n = group.system, group.settings, group.settings.per_group
    with one_thread():
        watch = Stopwatch()
        batched = BatchedSystem(modified_system(system, constraints="hbonds"), "float32", threads=1)
        starts, _ = minimise(batched, np.repeat(system.positions_nm[None], n, axis=0), max_iterations=300)
        dynamics = BatchedDynamics(
            batched, starts, [derive_seed(group.seed, "walker", walker) for walker in range(n)],
            temperature_kelvin=system.temperature_kelvin, timestep_fs=settings.timestep_fs,
        )  # fmt: skip
        dynamics.step(round(settings.equilibration_ps * 1e3 / settings.timestep_fs))
        n_steps, n_frames = round(settings.save_every_ps * 1e3 / settings.timestep_fs), settings.n_frames
        angles = np.empty((n, n_frames, 2))
        for frame in range(n_frames):
            dynamics.step(n_steps)
            angles[:, frame] = phi_psi(system, dynamics.positions_nm)
    ns = n * (settings.equilibration_ps + settings.production_ps) * 1e-3
    return Trajectories(angles, watch.cpu_s, watch.wall_s, ns, {"engine": batched.description})


def own_exchange(system: MolecularSystem, settings: Exchange, seed: int) -> Trajectories:
    """Run ladders side by side in the batched engine on one thread; frames at the lowest temperature."""
    with one_thread():
        watch = Stopwatch()
        batched = BatchedSystem(modified_system(system, constraints="hbonds"), "float32", threads=1)
        n = settings.n_ladders * settings.n_temperatures
        starts, _ = minimise(batched, np.repeat(system.positions_nm[None], n, axis=0), max_iterations=300)
        ladders = ParallelTempering(
            batched,
            starts.reshape(settings.n_ladders, settings.n_temperatures, system.n_atoms, 3),
            geometric_ladder(system.temperature_kelvin, settings.hottest_kelvin, settings.n_temperatures),
            seed, steps_per_swap=_steps(settings), timestep_fs=settings.timestep_fs,
        )  # fmt: skip
        frames = [block.positions_nm for block in ladders.simulate(settings.n_swaps, keep_positions=True)]
        angles = phi_psi(system, np.concatenate(frames)).swapaxes(0, 1)[:, int(settings.discarded * settings.n_swaps) :]
        facts = {"acceptance": float(ladders.acceptance.mean()), "engine": batched.description}
        return Trajectories(angles, watch.cpu_s, watch.wall_s, n * settings.n_swaps * settings.swap_every_ps * 1e-3, facts)


def _steps(settings: Exchange) -> int:
    return round(settings.swap_every_ps * 1e3 / settings.timestep_fs)


def openmmtools_version() -> str | None:
    """Return the version of openmmtools, or None where it is not installed."""
    from importlib import metadata

    try:
        return metadata.version("openmmtools")
    except metadata.PackageNotFoundError:
        return None


def openmmtools_exchange(system: MolecularSystem, settings: Exchange, seed: int, folder: Path) -> Trajectories:
    """Run one ladder by openmmtools' ParallelTemperingSampler on the Reference platform; frames at the lowest temperature.

    Swaps of all pairs (its default), Langevin dynamics by its BAOAB integrator, its own file for the frames; imports are not
    counted, its compilation and its analysis files are.
    """
    for name in ("openmmtools", "pymbar", "mpiplus"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _quiet():
        from openmmtools import cache, mcmc, states
        from openmmtools.multistate import MultiStateReporter, ParallelTemperingSampler
    from openmm import unit

    platform = openmm.Platform.getPlatformByName("Reference")
    cache.global_context_cache.empty()  # an earlier run in this process
    cache.global_context_cache.platform = platform
    np.random.seed(seed % 2**32)  # openmmtools draws its swaps from this one
    with tempfile.TemporaryDirectory(dir=folder) as name, one_thread(), _quiet():
        watch = Stopwatch()
        thermodynamic = states.ThermodynamicState(
            modified_system(system, constraints="hbonds"), system.temperature_kelvin * unit.kelvin
        )
        move = mcmc.LangevinDynamicsMove(
            timestep=settings.timestep_fs * unit.femtosecond, collision_rate=1 / unit.picosecond, n_steps=_steps(settings),
            reassign_velocities=False,
        )  # fmt: skip
        sampler = ParallelTemperingSampler(mcmc_moves=move, number_of_iterations=settings.n_swaps,
                                           online_analysis_interval=None)  # fmt: skip
        reporter = MultiStateReporter(str(Path(name) / "exchange.nc"), checkpoint_interval=settings.n_swaps,
                                      analysis_particle_indices=tuple(range(system.n_atoms)))  # fmt: skip
        sampler.create(
            thermodynamic, states.SamplerState(system.positions_nm * unit.nanometer), reporter,
            min_temperature=system.temperature_kelvin * unit.kelvin, max_temperature=settings.hottest_kelvin * unit.kelvin,
            n_temperatures=settings.n_temperatures,
        )  # fmt: skip
        sampler.minimize()
        sampler.run()
        positions = _coldest(reporter, settings.n_swaps)
        accepted, proposed = sampler._n_accepted_matrix.sum(), max(1, sampler._n_proposed_matrix.sum())
        reporter.close()
        angles = phi_psi(system, positions)[int(settings.discarded * settings.n_swaps) :]
        ns = settings.n_temperatures * settings.n_swaps * settings.swap_every_ps * 1e-3
        facts = {"acceptance": float(accepted / proposed), "version": openmmtools_version(), "cores": os.cpu_count()}
        return Trajectories(angles[None], watch.cpu_s, watch.wall_s, ns, facts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what it prints and warns of from the suite's log."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _coldest(reporter: Any, n: int) -> np.ndarray:
    """Return the positions at the lowest temperature after each iteration, shape=(n, n_atoms, 3)."""
    from openmm import unit

    found = []
    for iteration in range(1, n + 1):
        indices = np.asarray(reporter.read_replica_thermodynamic_states(iteration))
        sampler_states = reporter.read_sampler_states(iteration, analysis_particles_only=True)
        positions = sampler_states[int(np.flatnonzero(indices == 0)[0])].positions
        found.append(np.asarray(positions.value_in_unit(unit.nanometer)))
    return np.array(found)
