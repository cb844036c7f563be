"""The only door to OpenMM's dynamics and energies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
from openmm import unit

from hpc_molgen.dynamics.modified import TorsionBias, modified_system
from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import local_rank


@dataclass(frozen=True)
class Frames:
    """Consecutive frames of one trajectory.

    Attributes
    ----------
    positions_nm : np.ndarray, shape=(n, n_atoms, 3)
    potential_kj_mol : np.ndarray, shape=(n,)
        Potential energy, the bias (if any) not included.
    kinetic_kj_mol : np.ndarray, shape=(n,)
    time_ps : np.ndarray, shape=(n,)
    """

    positions_nm: np.ndarray
    potential_kj_mol: np.ndarray
    kinetic_kj_mol: np.ndarray
    time_ps: np.ndarray


def available_platforms() -> list[str]:
    """Names of OpenMM's platforms on this machine."""
    return [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]


class Engine:
    """Dynamics, energies and minimisation of one molecular system on one OpenMM platform.

    Parameters
    ----------
    system : MolecularSystem
        What to simulate.
    platform : str
        A platform's name, or "auto": the fastest for this system by a short measurement.
    seed : int
        Seed of velocities and noise (from `derive_seed`).
    timestep_fs, friction_per_ps : float
        Of the Langevin-middle integrator (Zhang et al. 2019, J. Phys. Chem. A 123, 6056).
    constraints : str
        "none", or "hbonds" for constrained X-H bonds.
    hydrogen_mass_amu : float, optional
        Heavy hydrogens: mass moved from the bonded heavy atom.
    bias : TorsionBias, optional
        Static bias.
    temperature_kelvin, pressure_bar : float, optional
        Other than the system's temperature; a Monte Carlo barostat for periodic systems.
    device_index : int, optional
        Which visible GPU; by default the n-th for the n-th rank or worker process of this node.
    """

    def __init__(
        self,
        system: MolecularSystem,
        platform: str = "auto",
        seed: int = 1,
        *,
        timestep_fs: float = 1.0,
        friction_per_ps: float = 1.0,
        constraints: str = "none",
        hydrogen_mass_amu: float | None = None,
        bias: TorsionBias | None = None,
        temperature_kelvin: float | None = None,
        pressure_bar: float | None = None,
        device_index: int | None = None,
    ) -> None:
        self.system = system
        self.seed = seed
        self.timestep_fs = timestep_fs
        self.temperature_kelvin = temperature_kelvin or system.temperature_kelvin
        if platform == "auto":
            platform = fastest_platform(system)
        if platform not in available_platforms():
            raise InputError(f"OpenMM has no platform '{platform}' here; it has: {', '.join(available_platforms())}")
        self.platform = platform
        openmm_system = modified_system(system, constraints=constraints, hydrogen_mass_amu=hydrogen_mass_amu, bias=bias)
        if pressure_bar is not None:
            barostat = openmm.MonteCarloBarostat(pressure_bar * unit.bar, self.temperature_kelvin * unit.kelvin)
            barostat.setRandomNumberSeed(seed)
            openmm_system.addForce(barostat)
        integrator = openmm.LangevinMiddleIntegrator(
            self.temperature_kelvin * unit.kelvin, friction_per_ps / unit.picosecond, timestep_fs * unit.femtosecond
        )
        integrator.setRandomNumberSeed(seed)
        integrator.setConstraintTolerance(1e-8)
        self._context = openmm.Context(
            openmm_system, integrator, openmm.Platform.getPlatformByName(platform), _platform_properties(platform, device_index)
        )
        self._integrator = integrator
        self.set_positions(system.positions_nm)

    def set_positions(self, positions_nm: np.ndarray, *, draw_velocities: bool = False) -> None:
        """Place the atoms; `draw_velocities` draws Maxwell-Boltzmann velocities from the seed."""
        self._context.setPositions(np.asarray(positions_nm, dtype=np.float64))
        if draw_velocities:
            self._context.applyConstraints(1e-8)
            self._context.setVelocitiesToTemperature(self.temperature_kelvin * unit.kelvin, self.seed)

    @property
    def positions_nm(self) -> np.ndarray:
        """Current positions, shape=(n_atoms, 3)."""
        state = self._context.getState(getPositions=True)
        positions: np.ndarray = state.getPositions(asNumpy=True)._value
        return positions

    @property
    def box_volume_nm3(self) -> float:
        """Volume of the periodic box."""
        return float(self._context.getState().getPeriodicBoxVolume().value_in_unit(unit.nanometer**3))

    def step(self, n_steps: int) -> None:
        """Advance by `n_steps` without recording."""
        self._integrator.step(n_steps)

    def simulate(self, n_frames: int, steps_per_frame: int, block: int = 1000, n_atoms: int | None = None) -> Iterator[Frames]:
        """Run from the current positions and velocities, yielding `n_frames` frames in blocks.

        `n_atoms` keeps the first atoms alone: the solute of a box of water.

        Raises
        ------
        FloatingPointError
            When positions or energy are not finite any more.
        """
        for start in range(0, n_frames, block):
            size = min(block, n_frames - start)
            positions = np.empty((size, n_atoms or self.system.n_atoms, 3), dtype=np.float32)
            energies = np.empty((size, 2))
            for frame in range(size):
                self._integrator.step(steps_per_frame)
                state = self._context.getState(getPositions=True, getEnergy=True, groups={0})
                positions[frame] = state.getPositions(asNumpy=True)._value[:n_atoms]
                energies[frame] = state.getPotentialEnergy()._value, state.getKineticEnergy()._value
            if not np.isfinite(energies).all() or not np.isfinite(positions).all():
                raise FloatingPointError(f"{self.system.name}: not finite after {start + size} frames (seed {self.seed})")
            times = (start + 1 + np.arange(size)) * steps_per_frame * self.timestep_fs * 1e-3
            yield Frames(positions, energies[:, 0], energies[:, 1], times)

    def reduced_energy(self, positions_nm: np.ndarray) -> np.ndarray:
        """Return U / kT of each conformation, without bias; +inf where OpenMM's energy is not finite.

        Parameters
        ----------
        positions_nm : np.ndarray, shape=(n, n_atoms, 3)

        Returns
        -------
        np.ndarray, shape=(n,), float64
        """
        energies = np.empty(len(positions_nm))
        for index, positions in enumerate(np.asarray(positions_nm, dtype=np.float64)):
            try:
                self._context.setPositions(positions)
                energies[index] = self._context.getState(getEnergy=True, groups={0}).getPotentialEnergy()._value
            except openmm.OpenMMException:  # positions that are not finite
                energies[index] = np.inf
        return np.where(np.isfinite(energies), energies, np.inf) / self.system.kt_kj_mol

    def minimise(self, max_iterations: int = 0) -> float:
        """Minimise from the current positions (0: to convergence); return the energy in kJ/mol."""
        openmm.LocalEnergyMinimizer.minimize(self._context, maxIterations=max_iterations)
        return float(self._context.getState(getEnergy=True, groups={0}).getPotentialEnergy()._value)


def _platform_properties(platform: str, device_index: int | None) -> dict[str, str]:
    if platform == "CPU":
        return {"Threads": "1"}  # many independent replicas: one thread each is fastest below about 1000 atoms
    if platform in ("CUDA", "HIP", "OpenCL"):
        properties = {"Precision": "mixed"}
        index = local_rank() % n_visible_gpus() if device_index is None and platform != "OpenCL" else device_index
        if index is not None:
            properties["DeviceIndex"] = str(index)
        return properties
    return {}


def n_visible_gpus() -> int:
    """Number of GPUs that the scheduler's mask shows (at least 1)."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if os.environ.get(name):
            return len(os.environ[name].split(","))
    return max(1, len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))


_measured: dict[str, dict[str, float]] = {}


def platform_speeds(system: MolecularSystem, measure_s: float = 0.1) -> dict[str, float]:
    """Return steps per second of each platform for `system`, by a short measurement (kept per process).

    On CPUs it compares Reference and CPU with one thread each: for small molecules Reference is several times faster.
    A GPU platform, where present, takes part as well.
    """
    if system.key not in _measured:
        speeds: dict[str, float] = {}
        for platform in available_platforms():
            if platform == "Reference" and system.n_atoms > 1000 and len(available_platforms()) > 1:
                continue  # its cost grows with the square of the atoms; a single step would take seconds
            try:  # a negligible time step: the structure stays where it is, however strained
                engine = Engine(system, platform, seed=1, timestep_fs=1e-6)
                engine.step(2)
            except openmm.OpenMMException:
                continue  # a platform that is compiled in but has no device
            n_steps, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < measure_s:
                engine.step(1 if system.n_atoms > 1000 else 10)
                n_steps += 1 if system.n_atoms > 1000 else 10
            speeds[platform] = n_steps / elapsed
        _measured[system.key] = speeds
    return dict(_measured[system.key])


def fastest_platform(system: MolecularSystem) -> str:
    """Return OpenMM's platform that makes most steps per second for `system`."""
    asked = os.environ.get("HPC_MOLGEN_PLATFORM", "auto")
    if asked not in ("auto", "batched"):  # the batched engine is no platform of OpenMM's
        return asked
    speeds = platform_speeds(system)
    return max(speeds, key=lambda name: speeds[name])
