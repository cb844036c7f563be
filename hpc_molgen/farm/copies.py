"""Copies of a molecule that advance together: one in an OpenMM context, or a vector of them in the batched engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from hpc_molgen.config import FarmConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.dynamics.gromacs import GromacsBox, gromacs_path, gromacs_version
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.dynamics.modified import Restraint, modified_system
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.farm.protocol import Segment
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.units import BOLTZMANN_KJ_MOL_KELVIN

Recorded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Positions (n, n_copies, n_atoms, 3), float32; potential and kinetic energy (n, n_copies), kJ/mol."""

GROMACS_AGREEMENT_KJ_MOL = 2e-3  # of a box's energy per atom: single precision, and Ewald grids of their own


class Copies(Protocol):
    """What the farm asks of an engine."""

    engine: str
    description: str
    n_simulated_atoms: int
    degrees_of_freedom: int

    def minimise(self, temperature_kelvin: float) -> np.ndarray:
        """Minimise and draw velocities; return energies (n_copies,), kJ/mol."""

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the future depends on."""

    def restore(self, state: Mapping[str, np.ndarray]) -> bool:
        """Go on from a state that holds these copies, among others perhaps; False if it does not."""

    def run(self, segment: Segment, number: int, steps_per_frame: int) -> Recorded:
        """Run segment `number` and return its frames. Which numbers it draws depends on the seed and the segment alone."""


class OpenMMCopy:
    """One replica on one platform of OpenMM.

    Parameters
    ----------
    simulated : MolecularSystem
        What is run: the molecule, or a box of water around it whose first `n_atoms` atoms it is.
    """

    def __init__(self, simulated: MolecularSystem, n_atoms: int, config: FarmConfig, platform: str, seed: int) -> None:
        self._engine = Engine(
            simulated, platform, seed, timestep_fs=config.timestep_fs, friction_per_ps=config.friction_per_ps,
            constraints=config.constraints, hydrogen_mass_amu=config.hydrogen_mass_amu, pressure_bar=config.pressure_bar,
            temperature_kelvin=config.temperature_kelvin,
            restraint=Restraint(_heavy(simulated, n_atoms)) if config.restraint_kj_mol_nm2 else None,
        )  # fmt: skip
        self._config, self._n_atoms, self._seed = config, n_atoms, seed
        self._held = np.zeros((simulated.n_atoms, 3))
        self.engine, self.description = self._engine.platform, simulated.description
        self.n_simulated_atoms, self.degrees_of_freedom = simulated.n_atoms, self._engine.degrees_of_freedom

    def place(self, positions_nm: np.ndarray) -> None:
        """Put the atoms where they start, shape=(n_simulated_atoms, 3)."""
        self._engine.set_positions(positions_nm)

    def minimise(self, temperature_kelvin: float) -> np.ndarray:
        """Minimise and draw velocities; return energies (n_copies,), kJ/mol."""
        engine, energy = self._engine, np.nan
        if self._config.minimise_iterations:
            energy = engine.minimise(self._config.minimise_iterations)
        self._held = engine.positions_nm
        engine.hold(self._held)
        engine.temperature_kelvin = temperature_kelvin
        engine.set_positions(self._held, draw_velocities=True)
        return np.array([energy])

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the future depends on."""
        return self._engine.state() | {"held": self._held, "seeds": np.array([self._seed])}

    def restore(self, state: Mapping[str, np.ndarray]) -> bool:
        """Go on from a state."""
        if self._seed not in state["seeds"] or state["positions"].shape != self._held.shape:
            return False
        self._held = state["held"]
        self._engine.hold(self._held)
        self._engine.restart(state, self._seed)
        return True

    def run(self, segment: Segment, number: int, steps_per_frame: int) -> Recorded:
        """Run segment `number` and return its frames."""
        engine = self._engine
        engine.restart(
            engine.state(), segment_seed(self._seed, number), temperature_kelvin=segment.temperature_kelvin,
            restraint_kj_mol_nm2=segment.restraint_kj_mol_nm2, constant_volume=segment.pressure_bar is None,
        )  # fmt: skip
        if not segment.n_frames:
            engine.step(segment.n_steps)
        positions = np.empty((segment.n_frames, 1, self._n_atoms, 3), dtype=np.float32)
        energies = np.empty((2, segment.n_frames, 1))
        for frame in range(segment.n_frames):
            engine.step(steps_per_frame)
            positions[frame, 0], energies[0, frame, 0], energies[1, frame, 0] = engine.observe(self._n_atoms)
        return positions, energies[0], energies[1]


class GromacsCopy:
    """One replica in a box of water, run by GROMACS.

    Parameters
    ----------
    simulated : MolecularSystem
        A box of water around the molecule, which its first `n_atoms` atoms are.

    Raises
    ------
    InputError
        When GROMACS has no counterpart of the energy function, or its energy is not OpenMM's.
    EnvironmentProblem
        When GROMACS is not there.
    """

    def __init__(self, simulated: MolecularSystem, n_atoms: int, config: FarmConfig, seed: int) -> None:
        executable = gromacs_path()
        if executable is None:
            raise EnvironmentProblem(f"there is no executable gmx on {os.uname().nodename}, which farm.engine gromacs needs")
        system = modified_system(simulated, constraints=config.constraints, hydrogen_mass_amu=config.hydrogen_mass_amu)
        restrained = _heavy(simulated, n_atoms) if config.restraint_kj_mol_nm2 else np.empty(0, int)
        self._box = GromacsBox(
            executable, system, n_atoms, restrained.tolist(), timestep_fs=config.timestep_fs,
            friction_per_ps=config.friction_per_ps,
        )  # fmt: skip
        self._config, self._seed = config, seed
        self.engine, self.description = gromacs_version(executable), simulated.description
        self.n_simulated_atoms, self.degrees_of_freedom = simulated.n_atoms, self._box.degrees_of_freedom
        self._masses = np.array([system.getParticleMass(atom)._value for atom in range(simulated.n_atoms)])
        vectors = np.array([list(edge._value) for edge in system.getDefaultPeriodicBoxVectors()], np.float32)
        start = np.asarray(simulated.positions_nm, np.float32)
        self._state = {"positions": start, "velocities": np.zeros_like(start), "box": vectors, "held": start}
        self._simulated = simulated

    def minimise(self, temperature_kelvin: float) -> np.ndarray:
        """Minimise and draw velocities; return energies (n_copies,), kJ/mol."""
        positions, energy = self._state["positions"], np.nan
        if self._config.minimise_iterations:
            positions = self._box.minimise(positions, self._state["box"], self._config.minimise_iterations)
            energy = self._box.energy_kj_mol(positions, self._state["box"])
            _compare(self._simulated, positions, energy)
        spread = np.sqrt(BOLTZMANN_KJ_MOL_KELVIN * temperature_kelvin / self._masses)[:, None]
        drawn = np.random.default_rng(self._seed).standard_normal(positions.shape) * spread
        self._state |= {"positions": positions, "velocities": drawn.astype(np.float32), "held": positions}
        return np.array([energy])

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the future depends on."""
        return self._state | {"seeds": np.array([self._seed])}

    def restore(self, state: Mapping[str, np.ndarray]) -> bool:
        """Go on from a state."""
        if self._seed not in state["seeds"] or state["positions"].shape != self._state["positions"].shape:
            return False
        self._state = {name: state[name] for name in self._state}
        return True

    def run(self, segment: Segment, number: int, steps_per_frame: int) -> Recorded:
        """Run segment `number` and return its frames."""
        self._state, positions, energies = self._box.run(
            self._state, segment_seed(self._seed, number), segment.n_steps,
            steps_per_frame if segment.n_frames else segment.n_steps,
            temperature_kelvin=segment.temperature_kelvin, pressure_bar=segment.pressure_bar,
            spring_kj_mol_nm2=segment.restraint_kj_mol_nm2, constrain_start=number == 0,
        )  # fmt: skip
        n = segment.n_frames
        return positions[:n, None], energies[:n, :1], energies[:n, 1:]


_compared: set[str] = set()


def _compare(system: MolecularSystem, positions_nm: np.ndarray, energy_kj_mol: float) -> None:
    """Compare an energy of GROMACS with OpenMM's, once for each composition of a box in a worker."""
    key = f"{system.description} {system.n_atoms}"
    if key in _compared:
        return
    _compared.add(key)
    expected = float(Engine(system, "CPU").reduced_energy(positions_nm[None])[0]) * system.kt_kj_mol
    if not abs(energy_kj_mol - expected) <= GROMACS_AGREEMENT_KJ_MOL * system.n_atoms:
        raise InputError(
            f"GROMACS's energy of {system.name} is {energy_kj_mol:.1f} kJ/mol and OpenMM's {expected:.1f}: it does not run the "
            "same molecule; use farm.engine openmm, and report this"
        )


def _heavy(simulated: MolecularSystem, n_atoms: int) -> np.ndarray:
    """Return the heavy atoms among the first `n_atoms`."""
    solute = (atom for atom in simulated.topology.atoms if atom.index < n_atoms)
    return np.array([atom.index for atom in solute if atom.element is None or atom.element.symbol != "H"])


class BatchedCopies:
    """Replicas side by side in the batched engine, without water.

    Parameters
    ----------
    starts_nm : sequence of np.ndarray, each of shape (n_atoms, 3)
    seeds : sequence of int
    """

    def __init__(
        self, system: MolecularSystem, config: FarmConfig, starts_nm: Sequence[np.ndarray], seeds: Sequence[int]
    ) -> None:
        self._system, self._config, self._seeds = system, config, list(seeds)
        self._modified = modified_system(system, constraints=config.constraints, hydrogen_mass_amu=config.hydrogen_mass_amu)
        self._batched = BatchedSystem(self._modified, "float32", threads=1)
        self._exact = BatchedSystem(system, "float64", threads=1)
        self._starts = np.array(starts_nm, dtype=np.float64)
        self._dynamics = self._make_dynamics(self._starts, system.temperature_kelvin)
        self.engine, self.description, self.n_simulated_atoms = self._batched.description, system.description, system.n_atoms
        terms = self._batched.terms
        self.degrees_of_freedom = 3 * int((terms.masses_amu > 0).sum()) - len(terms.constraints)

    def _make_dynamics(self, positions_nm: np.ndarray, temperature_kelvin: float) -> BatchedDynamics:
        return BatchedDynamics(
            self._batched, positions_nm, self._seeds, temperature_kelvin=temperature_kelvin,
            timestep_fs=self._config.timestep_fs, friction_per_ps=self._config.friction_per_ps,
        )  # fmt: skip

    def minimise(self, temperature_kelvin: float) -> np.ndarray:
        """Minimise and draw velocities; return energies (n_copies,), kJ/mol."""
        start, energies = self._starts, np.full(len(self._seeds), np.nan)
        if self._config.minimise_iterations:
            exact = BatchedSystem(self._modified, "float64", threads=1)
            start, _ = minimise(exact, start, max_iterations=self._config.minimise_iterations)
            energies = np.asarray(self._exact.energies(start))
        self._dynamics = self._make_dynamics(start, temperature_kelvin)
        return energies

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the future depends on."""
        return {name: values.copy() for name, values in self._dynamics.state().items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> bool:
        """Go on from a state."""
        return self._dynamics.restore(state) is not None

    def run(self, segment: Segment, number: int, steps_per_frame: int) -> Recorded:  # noqa: ARG002
        """Run a segment and return its frames; a copy's random numbers depend on its seed and the step alone."""
        dynamics = self._dynamics
        dynamics.set_temperature(segment.temperature_kelvin)
        if not segment.n_frames:
            dynamics.step(segment.n_steps)
        positions = np.empty((segment.n_frames, *dynamics.positions_nm.shape), dtype=np.float32)
        kinetic = np.empty(positions.shape[:2])
        for frame in range(segment.n_frames):
            dynamics.step(steps_per_frame)
            positions[frame], kinetic[frame] = dynamics.positions_nm, dynamics.kinetic_kj_mol
        flat = positions.reshape(-1, *positions.shape[2:])
        potential = np.asarray(self._exact.energies(flat)).reshape(kinetic.shape) if len(flat) else kinetic
        return positions, potential, kinetic


def segment_seed(seed: int, number: int) -> int:
    """Return the seed of one segment of a replica."""
    return derive_seed(seed, "segment", number)


def kinetic_temperature(kinetic_kj_mol: np.ndarray, degrees_of_freedom: int) -> np.ndarray:
    """Return 2 K / (n k_B), same shape."""
    return 2 * kinetic_kj_mol / (degrees_of_freedom * BOLTZMANN_KJ_MOL_KELVIN)
