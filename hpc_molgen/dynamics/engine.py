"""The only door to OpenMM's dynamics and energies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
from openmm import unit

from hpc_molgen import interrupts
from hpc_molgen.dynamics.modified import Restraint, TorsionBias, modified_system
from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import local_rank

GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")
CALL_S = 0.2  # of one call of OpenMM, during which no signal is heard
BAROSTAT_STEPS = 25


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
    integrator : str
        "langevin", or "brownian" for overdamped motion: Euler and Maruyama's scheme with D = kT / (m friction).
    restraint : Restraint, optional
        Springs, without strength until `restart` gives them some.
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
        integrator: str = "langevin",
        restraint: Restraint | None = None,
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
        self._restraint = restraint
        self._springs = None if restraint is None else restraint.add_to(openmm_system)
        self._barostat = None
        if pressure_bar is not None:
            self._barostat = openmm.MonteCarloBarostat(
                pressure_bar * unit.bar, self.temperature_kelvin * unit.kelvin, BAROSTAT_STEPS
            )
            self._barostat.setRandomNumberSeed(seed)
            openmm_system.addForce(self._barostat)
        conditions = self.temperature_kelvin * unit.kelvin, friction_per_ps / unit.picosecond, timestep_fs * unit.femtosecond
        kind = openmm.BrownianIntegrator if integrator == "brownian" else openmm.LangevinMiddleIntegrator
        moved_by = kind(*conditions)
        moved_by.setRandomNumberSeed(seed)
        moved_by.setConstraintTolerance(1e-8)
        self._context = openmm.Context(
            openmm_system, moved_by, openmm.Platform.getPlatformByName(platform), _platform_properties(platform, device_index)
        )
        self._integrator, self._call_steps = moved_by, 1
        self.degrees_of_freedom = degrees_of_freedom(openmm_system)
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

    def hold(self, positions_nm: np.ndarray) -> None:
        """Let the springs of the restraint pull to these positions, shape=(n_atoms, 3), from the next `restart` on."""
        if self._restraint is not None and self._springs is not None:
            for index, atom in enumerate(self._restraint.atoms):
                self._springs.setParticleParameters(index, int(atom), [float(x) for x in positions_nm[atom]])

    def state(self) -> dict[str, np.ndarray]:
        """Return what `restart` goes on from: positions and velocities (n_atoms, 3), box vectors (3, 3), float64."""
        state = self._context.getState(getPositions=True, getVelocities=True)
        return {
            "positions": np.array(state.getPositions(asNumpy=True)._value),
            "velocities": np.array(state.getVelocities(asNumpy=True)._value),
            "box": np.array(state.getPeriodicBoxVectors(asNumpy=True)._value),
        }

    def restart(
        self,
        state: Mapping[str, np.ndarray],
        seed: int,
        *,
        temperature_kelvin: float | None = None,
        restraint_kj_mol_nm2: float = 0.0,
        constant_volume: bool = False,
    ) -> None:
        """Go on from a state under other conditions, with random numbers that depend on `seed` alone.

        Nothing of what ran before in this context matters, so a run that is cut into such parts is the same bit for bit
        whether it was stopped between two of them or not, where forces are (Reference, and CPU with one thread). OpenMM's own
        checkpoints keep neither the random numbers of the CPU platform nor those of the barostat.
        """
        if temperature_kelvin is not None:
            self.temperature_kelvin = temperature_kelvin
        self._integrator.setRandomNumberSeed(seed)
        self._integrator.setTemperature(self.temperature_kelvin * unit.kelvin)
        if self._barostat is not None:
            self._barostat.setRandomNumberSeed(seed)
            self._barostat.setDefaultTemperature(self.temperature_kelvin * unit.kelvin)
            self._barostat.setFrequency(0 if constant_volume else BAROSTAT_STEPS)
        self._context.reinitialize()
        self._context.setPeriodicBoxVectors(*state["box"])
        self._context.setPositions(state["positions"])
        self._context.setVelocities(state["velocities"])
        if self._restraint is not None:
            self._context.setParameter(Restraint.NAME, restraint_kj_mol_nm2)

    def step(self, n_steps: int) -> None:
        """Advance by `n_steps` without recording; signals are heard every `CALL_S`."""
        done = 0
        while done < n_steps:
            interrupts.check()
            size, start = min(self._call_steps, n_steps - done), time.perf_counter()
            self._integrator.step(size)
            done += size
            if size == self._call_steps:
                elapsed = time.perf_counter() - start
                self._call_steps = max(1, round(self._call_steps * min(2.0, CALL_S / max(elapsed, 1e-9))))

    def observe(self, n_atoms: int | None = None) -> tuple[np.ndarray, float, float]:
        """Return positions (of the first `n_atoms`), potential energy without bias, and kinetic energy, in kJ/mol."""
        state = self._context.getState(getPositions=True, getEnergy=True, groups={0})
        positions: np.ndarray = state.getPositions(asNumpy=True)._value[:n_atoms]
        return positions, state.getPotentialEnergy()._value, state.getKineticEnergy()._value

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
                positions[frame], *energies[frame] = self.observe(n_atoms)
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


def degrees_of_freedom(system: openmm.System) -> int:
    """Return the degrees of freedom that kinetic energy is divided by: without constraints, and without what is removed."""
    masses = [system.getParticleMass(atom)._value for atom in range(system.getNumParticles())]
    constraints = [system.getConstraintParameters(number)[:2] for number in range(system.getNumConstraints())]
    free = int(3 * sum(mass > 0 for mass in masses) - sum(masses[i] > 0 or masses[j] > 0 for i, j in constraints))
    return free - 3 * any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())


def _platform_properties(platform: str, device_index: int | None) -> dict[str, str]:
    if platform == "CPU":
        # many independent replicas: one thread each is fastest below about 1000 atoms; PME would add its forces in any order
        return {"Threads": "1", "DeterministicForces": "true"}
    if platform in GPU_PLATFORMS:
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


def platform_of_boxes() -> str:
    """Return OpenMM's platform for what is too large to try all: that of a GPU if one works, else CPU."""
    return next((name for name in (*GPU_PLATFORMS, "CPU") if name in available_platforms() and _works(name)), "Reference")


def _works(platform: str) -> bool:
    system = openmm.System()
    system.addParticle(1.0)
    try:
        openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))
    except openmm.OpenMMException:  # compiled in, but there is no device
        return False
    return True


def fastest_platform(system: MolecularSystem) -> str:
    """Return OpenMM's platform that makes most steps per second for `system`."""
    asked = os.environ.get("HPC_MOLGEN_PLATFORM", "auto")
    if asked not in ("auto", "batched"):  # the batched engine is no platform of OpenMM's
        return asked
    speeds = platform_speeds(system)
    return max(speeds, key=lambda name: speeds[name])
