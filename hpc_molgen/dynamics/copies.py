"""One protocol for many copies at once: minimise, equilibrate, record; what walkers and replicas share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_molgen import interrupts
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.kernel import built_variants, load_library
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.dynamics.modified import TorsionBias, modified_system
from hpc_molgen.dynamics.tempering import ParallelTempering
from hpc_molgen.systems.base import MolecularSystem


@dataclass(frozen=True)
class CopyProtocol:
    """How copies are run; lengths in ps."""

    timestep_fs: float
    friction_per_ps: float
    constraints: str
    minimise_iterations: int
    equilibration_ps: float
    production_ps: float
    save_every_ps: float
    temperature_kelvin: float

    @property
    def equilibration_steps(self) -> int:
        """Steps before the first that counts."""
        return round(self.equilibration_ps * 1e3 / self.timestep_fs)

    @property
    def steps_per_frame(self) -> int:
        """Steps between two frames."""
        return max(1, round(self.save_every_ps * 1e3 / self.timestep_fs))

    @property
    def n_frames(self) -> int:
        """Frames of the production."""
        return max(1, round(self.production_ps * 1e3 / self.timestep_fs / self.steps_per_frame))

    @property
    def n_steps(self) -> int:
        """Steps of one copy, equilibration included."""
        return self.equilibration_steps + self.n_frames * self.steps_per_frame

    @property
    def simulated_ns(self) -> float:
        """Length of one copy, equilibration included."""
        return self.n_steps * self.timestep_fs * 1e-6


@dataclass(frozen=True)
class CopyFrames:
    """What one copy recorded.

    Attributes
    ----------
    positions_nm : np.ndarray, shape=(n_frames, n_atoms, 3), float32
    potential_kj_mol : np.ndarray, shape=(n_frames,)
        Without bias, float64, of the recorded positions.
    time_ps : np.ndarray, shape=(n_frames,)
        Since the production began.
    minimised_kj_mol : float
    finite : bool
        False when this copy blew up.
    """

    positions_nm: np.ndarray
    potential_kj_mol: np.ndarray
    time_ps: np.ndarray
    minimised_kj_mol: float
    finite: bool


def copies_per_batch(device: str = "cpu") -> int:
    """Copies that one worker runs at once: one full vector of the kernel, so that as little as possible is lost with a kill."""
    variants = built_variants()
    return int(load_library(variants[0]).hm_lanes_f32()) if variants and device == "cpu" else 64


def simulate_copies(
    system: MolecularSystem,
    starts_nm: Sequence[np.ndarray],
    seeds: list[int],
    protocol: CopyProtocol,
    bias: TorsionBias | None = None,
) -> tuple[list[CopyFrames], str]:
    """Run one copy from each start, on one core; return their frames and what computed them.

    Dynamics runs in float32 like GPU codes do; minimisation and the recorded energies are float64.

    Parameters
    ----------
    starts_nm : sequence of np.ndarray, each of shape=(n_atoms, 3)
    seeds : list of int
        A copy's trajectory depends on its start and its seed, not on the other copies.
    """
    modified = modified_system(system, constraints=protocol.constraints, bias=bias)
    batched = BatchedSystem(modified, "float32", threads=1)
    exact = BatchedSystem(system, "float64", threads=1)
    start, energy = np.array(starts_nm, dtype=np.float64), np.full(len(starts_nm), np.nan)
    if protocol.minimise_iterations:
        start, _ = minimise(BatchedSystem(modified, "float64", threads=1), start, max_iterations=protocol.minimise_iterations)
        energy = exact.energies(start)
    dynamics = BatchedDynamics(
        batched, start, seeds, temperature_kelvin=protocol.temperature_kelvin, timestep_fs=protocol.timestep_fs,
        friction_per_ps=protocol.friction_per_ps, unbiased=exact,
    )  # fmt: skip
    dynamics.step(protocol.equilibration_steps)
    positions = np.empty((protocol.n_frames, *start.shape), dtype=np.float32)
    for frame in range(protocol.n_frames):
        interrupts.check()
        dynamics.step(protocol.steps_per_frame)
        positions[frame] = dynamics.positions_nm
    return _as_frames(exact, positions, energy, protocol), batched.description


def simulate_ladders(
    system: MolecularSystem, starts_nm: Sequence[np.ndarray], seeds: list[int], protocol: CopyProtocol,
    hotter_kelvin: Sequence[float], swap_every_ps: float,
) -> tuple[list[CopyFrames], str]:  # fmt: skip
    """Run one ladder of parallel tempering from each start, on one core; return the frames of its lowest temperature.

    Parameters
    ----------
    hotter_kelvin : sequence of float
        Temperatures above the protocol's, ascending.
    swap_every_ps : float
        Time between swaps; it is shortened so that a whole number of them fits between two frames.
    """
    modified = modified_system(system, constraints=protocol.constraints)
    batched = BatchedSystem(modified, "float32", threads=1)
    exact = BatchedSystem(system, "float64", threads=1)
    temperatures = np.array([protocol.temperature_kelvin, *hotter_kelvin])
    start = np.array(starts_nm, dtype=np.float64)
    start, _ = minimise(BatchedSystem(modified, "float64", threads=1), start, max_iterations=protocol.minimise_iterations)
    swaps = max(1, int(np.ceil(protocol.save_every_ps / swap_every_ps)))
    ladders = ParallelTempering(
        batched, np.repeat(start[:, None], len(temperatures), axis=1), temperatures, seeds,
        steps_per_swap=max(1, protocol.steps_per_frame // swaps), timestep_fs=protocol.timestep_fs,
        friction_per_ps=protocol.friction_per_ps,
    )  # fmt: skip
    ladders.run(max(1, protocol.equilibration_steps // ladders.steps_per_swap))
    positions = np.empty((protocol.n_frames, *start.shape), dtype=np.float32)
    for frame in range(protocol.n_frames):
        interrupts.check()
        ladders.run(swaps)
        positions[frame] = ladders.coldest_nm
    description = f"{batched.description}, parallel tempering of {len(temperatures)} temperatures"
    return _as_frames(exact, positions, exact.energies(start), protocol), description


def _as_frames(
    exact: BatchedSystem, positions: np.ndarray, minimised_kj_mol: np.ndarray, protocol: CopyProtocol
) -> list[CopyFrames]:
    """Cut positions (n_frames, n_copies, n_atoms, 3) into copies, energies recomputed in float64."""
    n_copies = positions.shape[1]
    potential = exact.energies(positions.reshape(-1, *positions.shape[2:])).reshape(protocol.n_frames, -1)
    time_ps = (1 + np.arange(protocol.n_frames)) * protocol.steps_per_frame * protocol.timestep_fs * 1e-3
    finite = np.isfinite(potential).all(axis=0) & np.isfinite(positions).all(axis=(0, 2, 3))
    return [
        CopyFrames(positions[:, copy], potential[:, copy], time_ps, float(minimised_kj_mol[copy]), bool(finite[copy]))
        for copy in range(n_copies)
    ]
