"""Parallel tempering inside one batch: copies exchange temperatures, which costs nothing there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import BatchedDynamics, Observable
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.units import BOLTZMANN_KJ_MOL_KELVIN


@dataclass(frozen=True)
class TemperingFrames:
    """Consecutive frames, one after each round of swaps attempted, ordered by temperature.

    Attributes
    ----------
    potential_kj_mol : np.ndarray, shape=(n_frames, n_ladders, n_temperatures)
    observables : dict of np.ndarray, each of shape=(n_frames, n_ladders, n_temperatures)
    copy : np.ndarray, shape=(n_frames, n_ladders, n_temperatures)
        Which copy of the ladder was at which temperature.
    time_ps : np.ndarray, shape=(n_frames,)
    positions_nm : np.ndarray, shape=(n_frames, n_ladders, n_atoms, 3), float32
        At the lowest temperature; empty unless asked for.
    """

    potential_kj_mol: np.ndarray
    observables: dict[str, np.ndarray]
    copy: np.ndarray
    time_ps: np.ndarray
    positions_nm: np.ndarray


def geometric_ladder(lowest_kelvin: float, highest_kelvin: float, n: int) -> np.ndarray:
    """Return `n` temperatures with equal ratios: equal acceptance where the heat capacity is constant."""
    return np.geomspace(lowest_kelvin, highest_kelvin, n)


class ParallelTempering:
    """Independent ladders of temperatures; in each, neighbours try to swap after every `steps_per_swap` steps.

    Swaps follow Sugita and Okamoto (1999, Chem. Phys. Lett. 314, 141): accepted with min(1, exp((b_i - b_j)(U_i - U_j))),
    velocities rescaled by the square root of the ratio of temperatures; even and odd pairs take turns.

    Parameters
    ----------
    batched : BatchedSystem
    positions_nm : np.ndarray, shape=(n_ladders, n_temperatures, n_atoms, 3)
    temperatures_kelvin : np.ndarray, shape=(n_temperatures,)
        Ascending.
    seed : int or sequence of int, one for each ladder
        Every copy's stream and the ladder's swaps derive from it; a ladder does not depend on those beside it.
    """

    def __init__(
        self,
        batched: BatchedSystem,
        positions_nm: np.ndarray,
        temperatures_kelvin: np.ndarray,
        seed: int | Sequence[int],
        *,
        steps_per_swap: int = 200,
        timestep_fs: float = 1.0,
        friction_per_ps: float = 1.0,
    ) -> None:
        self.temperatures_kelvin = np.asarray(temperatures_kelvin, dtype=np.float64)
        self.n_ladders, n = positions_nm.shape[:2]
        if n != len(self.temperatures_kelvin) or (np.diff(self.temperatures_kelvin) <= 0).any():
            raise InputError(f"{n} copies a ladder need as many ascending temperatures, not {self.temperatures_kelvin}")
        bases = (
            [derive_seed(int(seed), "ladder", k) for k in range(self.n_ladders)]
            if isinstance(seed, int | np.integer)
            else list(seed)
        )
        if len(bases) != self.n_ladders:
            raise InputError(f"{self.n_ladders} ladders need as many seeds, not {len(bases)}")
        self.dynamics = BatchedDynamics(
            batched,
            positions_nm.reshape(-1, *positions_nm.shape[2:]),
            [derive_seed(base, "tempering", copy) for base in bases for copy in range(n)],
            temperature_kelvin=np.tile(self.temperatures_kelvin, self.n_ladders),
            timestep_fs=timestep_fs,
            friction_per_ps=friction_per_ps,
        )
        self.steps_per_swap = steps_per_swap
        self._generators = [numpy_generator(base, "swaps") for base in bases]
        self._level = np.tile(np.arange(n), (self.n_ladders, 1))  # of each copy
        self._beta = 1 / (BOLTZMANN_KJ_MOL_KELVIN * self.temperatures_kelvin)
        self._round = 0
        self.accepted, self.attempted = np.zeros(n - 1), np.zeros(n - 1)

    @property
    def acceptance(self) -> np.ndarray:
        """Share of accepted swaps between neighbours, shape=(n_temperatures - 1,)."""
        return self.accepted / np.maximum(self.attempted, 1)

    def _swap(self, energy: np.ndarray) -> None:
        """Try one round of swaps; `energy` (n_ladders, n_temperatures) is ordered by copy."""
        first = self._round % 2
        self._round += 1
        copy_at = np.argsort(self._level, axis=1)  # which copy is at which temperature
        lower = np.arange(first, len(self._beta) - 1, 2)
        draws = np.array([generator.random(len(self._beta)) for generator in self._generators])[:, lower]
        rows = np.arange(self.n_ladders)[:, None]
        a, b = copy_at[:, lower], copy_at[:, lower + 1]
        log_ratio = (self._beta[lower] - self._beta[lower + 1]) * (energy[rows, a] - energy[rows, b])
        accept = np.log(draws) < log_ratio
        self.attempted[lower] += self.n_ladders
        self.accepted[lower] += accept.sum(0)
        level = self._level.copy()
        level[rows, a] = np.where(accept, lower + 1, lower)
        level[rows, b] = np.where(accept, lower, lower + 1)
        self._level = level
        self.dynamics.set_temperature(self.temperatures_kelvin[level].reshape(-1), rescale=True)

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the future depends on, for `restore`."""
        draws = json.dumps([generator.bit_generator.state for generator in self._generators])
        own = {"level": self._level, "round": np.array(self._round), "draws": np.array(draws)}
        return {**self.dynamics.state(), **own, "accepted": self.accepted, "attempted": self.attempted}

    def restore(self, state: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Go on from a `state` that holds these ladders; their rows in it, or None (see `BatchedDynamics.restore`)."""
        n = len(self.temperatures_kelvin)
        if "level" not in state or state["level"].shape[1] != n:
            return None
        copies = self.dynamics.restore(state)
        if copies is None:
            return None
        rows = copies[::n] // n
        self._level, self._round = state["level"][rows], int(state["round"])
        self.accepted, self.attempted = np.array(state["accepted"]), np.array(state["attempted"])
        draws = json.loads(str(state["draws"]))
        for generator, row in zip(self._generators, rows, strict=True):
            generator.bit_generator.state = draws[row]
        return rows

    def run(self, n_swaps: int) -> None:
        """Run `n_swaps` rounds, the swap after each, without recording."""
        for _ in range(n_swaps):
            self.dynamics.step(self.steps_per_swap)
            self._swap(self.dynamics.potential_kj_mol.reshape(self._level.shape))

    @property
    def coldest_nm(self) -> np.ndarray:
        """Positions at the lowest temperature, shape=(n_ladders, n_atoms, 3)."""
        copy_at = np.argsort(self._level, axis=1)[:, 0]
        positions = self.dynamics.positions_nm
        coldest: np.ndarray = positions.reshape(*self._level.shape, -1, 3)[np.arange(self.n_ladders), copy_at]
        return coldest

    def simulate(
        self,
        n_swaps: int,
        *,
        observables: Mapping[str, Observable] | None = None,
        keep_positions: bool = False,
        block: int = 1000,
    ) -> Iterator[TemperingFrames]:
        """Run `n_swaps` rounds and yield what was seen just before each, in blocks."""
        functions = dict(observables or {})
        shape = self._level.shape
        rows = np.arange(self.n_ladders)[:, None]
        for start in range(0, n_swaps, block):
            energies, copies, times, kept = [], [], [], []
            values: dict[str, list[np.ndarray]] = {name: [] for name in functions}
            for _ in range(min(block, n_swaps - start)):
                self.dynamics.step(self.steps_per_swap)
                energy = self.dynamics.potential_kj_mol.reshape(shape)
                copy_at = np.argsort(self._level, axis=1)
                energies.append(energy[rows, copy_at])
                copies.append(copy_at)
                times.append(self.dynamics.n_steps * self.dynamics.timestep_fs * 1e-3)
                positions = self.dynamics.positions_nm
                for name, function in functions.items():
                    values[name].append(function(positions).reshape(shape)[rows, copy_at])
                if keep_positions:
                    kept.append(self.coldest_nm.astype(np.float32))
                self._swap(energy)
            yield TemperingFrames(
                np.array(energies),
                {name: np.array(series) for name, series in values.items()},
                np.array(copies),
                np.array(times),
                np.array(kept, dtype=np.float32),
            )
