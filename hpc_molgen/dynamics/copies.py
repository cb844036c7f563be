"""One protocol for many copies at once: minimise, equilibrate, record; what walkers and replicas share."""

from __future__ import annotations

import io
import logging
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.dynamics.modified import TorsionBias, modified_system
from hpc_molgen.dynamics.tempering import ParallelTempering
from hpc_molgen.files import write_atomically
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch

log = logging.getLogger(__name__)
CHECK_FRAMES = 200
CHECKPOINT_S = 30.0


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


@dataclass(frozen=True)
class CopyRun:
    """What `simulate_copies` and `simulate_ladders` return.

    Attributes
    ----------
    copies : list of CopyFrames
        In the order of the starts.
    engine : str
        What computed them.
    earlier_cpu_s, earlier_wall_s : float
        Spent before this process, in runs that were killed and left a checkpoint.
    """

    copies: list[CopyFrames]
    engine: str
    earlier_cpu_s: float
    earlier_wall_s: float


class Recorder:
    """Records frames and keeps a checkpoint by wall clock, so that a killed run of many copies goes on where it was.

    Parameters
    ----------
    path : Path or None
        The checkpoint; who wrote the results removes it. None keeps none.
    state, restore : callables
        Of the dynamics.
    """

    def __init__(
        self,
        path: Path | None,
        state: Callable[[], dict[str, np.ndarray]],
        restore: Callable[[Mapping[str, np.ndarray]], np.ndarray | None],
    ) -> None:
        self._path, self._state, self._restore = path, state, restore
        self._interval_s, self._last = CHECKPOINT_S, time.monotonic()
        self._watch, self.earlier = Stopwatch(), np.zeros(2)  # CPU and wall seconds of killed runs

    def record(self, equilibrate: Callable[[], None], frame: Callable[[], np.ndarray], n_frames: int) -> np.ndarray:
        """Return positions (frames, n_copies, n_atoms, 3), float32, of `n_frames` frames, or fewer if every copy blew up."""
        kept = self._load(n_frames)
        if not kept:
            equilibrate()
        while len(kept) < n_frames:
            kept.append(frame().astype(np.float32))
            if len(kept) % CHECK_FRAMES == 0 and not np.isfinite(kept[-1]).all(axis=(1, 2)).any():
                break
            if self._path is not None and time.monotonic() - self._last > self._interval_s:
                self._save(kept)
        return np.array(kept)

    def _save(self, kept: list[np.ndarray]) -> None:
        assert self._path is not None
        start, buffer = time.monotonic(), io.BytesIO()
        spent = self.earlier + np.array([self._watch.cpu_s, self._watch.wall_s])
        np.savez(buffer, frames=np.array(kept), spent=spent, **self._state())  # type: ignore[arg-type]
        write_atomically(self._path, buffer.getvalue())
        self._last = time.monotonic()
        self._interval_s = max(CHECKPOINT_S, 20 * (self._last - start))  # all frames are written again each time

    def _load(self, n_frames: int) -> list[np.ndarray]:
        if self._path is None or not self._path.is_file():
            return []
        try:
            with np.load(self._path, allow_pickle=False) as found:
                state = {name: found[name] for name in found.files}
            frames, spent = state.pop("frames"), state.pop("spent")
            rows = self._restore(state) if len(frames) <= n_frames else None
            if rows is not None:
                log.info("%s: goes on after %d of %d frames", self._path.parent, len(frames), n_frames)
                self.earlier = spent * len(rows) / frames.shape[1]
                return list(frames[:, rows])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s: damaged (%s); these copies start again", self._path, error)
        return []


def simulate_copies(
    system: MolecularSystem,
    starts_nm: Sequence[np.ndarray],
    seeds: list[int],
    protocol: CopyProtocol,
    bias: TorsionBias | None = None,
    checkpoint: Path | None = None,
) -> CopyRun:
    """Run one copy from each start, on one core.

    Dynamics runs in float32 like GPU codes do; minimisation and the recorded energies are float64.

    Parameters
    ----------
    starts_nm : sequence of np.ndarray, each of shape=(n_atoms, 3)
    seeds : list of int
        A copy's trajectory depends on its start and its seed, not on the other copies (see `BatchedDynamics`).
    checkpoint : Path, optional
        Where a long run keeps its state now and then; the same call, or one for some of the copies, goes on from it with
        the same bits. It stays until the caller, having written the results, removes it.
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
        friction_per_ps=protocol.friction_per_ps,
    )  # fmt: skip
    steps = protocol.steps_per_frame

    def frame() -> np.ndarray:
        dynamics.step(steps)
        return dynamics.positions_nm

    recorder = Recorder(checkpoint, dynamics.state, dynamics.restore)
    positions = recorder.record(lambda: dynamics.step(protocol.equilibration_steps), frame, protocol.n_frames)
    return CopyRun(_as_frames(exact, positions, energy, protocol), batched.description, *recorder.earlier)


def simulate_ladders(
    system: MolecularSystem, starts_nm: Sequence[np.ndarray], seeds: list[int], protocol: CopyProtocol,
    hotter_kelvin: Sequence[float], swap_every_ps: float, checkpoint: Path | None = None,
) -> CopyRun:  # fmt: skip
    """Run one ladder of parallel tempering from each start, on one core; return the frames of its lowest temperature.

    Parameters
    ----------
    hotter_kelvin : sequence of float
        Temperatures above the protocol's, ascending.
    swap_every_ps : float
        Time between swaps; the nearest that fits a whole number of times between two frames is taken.
    """
    modified = modified_system(system, constraints=protocol.constraints)
    batched = BatchedSystem(modified, "float32", threads=1)
    exact = BatchedSystem(system, "float64", threads=1)
    temperatures = np.array([protocol.temperature_kelvin, *hotter_kelvin])
    start = np.array(starts_nm, dtype=np.float64)
    start, _ = minimise(BatchedSystem(modified, "float64", threads=1), start, max_iterations=protocol.minimise_iterations)
    swaps = swaps_per_frame(protocol, swap_every_ps)
    ladders = ParallelTempering(
        batched, np.repeat(start[:, None], len(temperatures), axis=1), temperatures, seeds,
        steps_per_swap=protocol.steps_per_frame // swaps, timestep_fs=protocol.timestep_fs,
        friction_per_ps=protocol.friction_per_ps,
    )  # fmt: skip
    equilibration = protocol.equilibration_steps // ladders.steps_per_swap

    def frame() -> np.ndarray:
        ladders.run(swaps)
        return ladders.coldest_nm

    recorder = Recorder(checkpoint, ladders.state, ladders.restore)
    positions = recorder.record(lambda: ladders.run(equilibration), frame, protocol.n_frames)
    # a hot copy that blew up would leave its ladder without tempering, however sound the cold frames look
    sound = np.isfinite(ladders.dynamics.positions_nm).reshape(len(start), -1).all(axis=1)
    positions[-1, ~sound] = np.nan
    description = f"{batched.description}, parallel tempering of {len(temperatures)} temperatures"
    return CopyRun(_as_frames(exact, positions, exact.energies(start), protocol), description, *recorder.earlier)


def swaps_per_frame(protocol: CopyProtocol, swap_every_ps: float) -> int:
    """Swaps between two frames: the divisor of the frame's steps that comes nearest to what was asked for."""
    steps = protocol.steps_per_frame
    asked = steps * protocol.timestep_fs * 1e-3 / swap_every_ps
    return min((n for n in range(1, steps + 1) if steps % n == 0), key=lambda n: abs(np.log(n / asked)))


def _as_frames(
    exact: BatchedSystem, positions: np.ndarray, minimised_kj_mol: np.ndarray, protocol: CopyProtocol
) -> list[CopyFrames]:
    """Cut positions (n_frames, n_copies, n_atoms, 3) into copies, energies recomputed in float64."""
    n_frames, n_copies = positions.shape[:2]
    potential = exact.energies(positions.reshape(-1, *positions.shape[2:])).reshape(n_frames, -1)
    time_ps = (1 + np.arange(n_frames)) * protocol.steps_per_frame * protocol.timestep_fs * 1e-3
    finite = np.isfinite(potential).all(axis=0) & np.isfinite(positions).all(axis=(0, 2, 3))
    return [
        CopyFrames(positions[:, copy], potential[:, copy], time_ps, float(minimised_kj_mol[copy]), bool(finite[copy]))
        for copy in range(n_copies)
    ]
