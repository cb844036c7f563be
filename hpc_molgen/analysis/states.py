"""Named states of time series by cores: populations, transitions and mean first-passage times."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_molgen.analysis.series import Series


@dataclass(frozen=True)
class States:
    """States along one coordinate, a linear combination of features.

    A frame inside a core belongs to that state; between cores it belongs to the state that was last visited, so that
    trembling about a barrier is no transition (milestoning; Schuette et al. 2011, J. Chem. Phys. 134, 204105). Populations
    are cut halfway between cores.

    Attributes
    ----------
    names : tuple of str
    cores : tuple of (float, float)
        Intervals of the coordinate, ascending.
    direction : np.ndarray, shape=(n_features,)
    """

    names: tuple[str, ...]
    cores: tuple[tuple[float, float], ...]
    direction: np.ndarray

    def coordinate(self, part: np.ndarray) -> np.ndarray:
        """Return the coordinate (n_frames,) of a trajectory."""
        along: np.ndarray = np.asarray(part, np.float64) @ self.direction
        return along

    @property
    def boundaries(self) -> np.ndarray:
        """Halfway between one core and the next."""
        return np.array([(a[1] + b[0]) / 2 for a, b in itertools.pairwise(self.cores)])

    def populations(self, series: Series) -> np.ndarray:
        """Return the share of frames of each trajectory in each state, shape=(n_trajectories, n_states)."""
        rows = []
        for part in series:
            place = np.searchsorted(self.boundaries, self.coordinate(part))
            rows.append(np.bincount(place, minlength=len(self.names)) / len(part))
        return np.array(rows)

    def visited(self, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the states whose cores are entered, one after the other, and the frames of these entries."""
        coordinate = self.coordinate(part)
        inside = np.full(len(coordinate), -1)
        for state, (low, high) in enumerate(self.cores):
            inside[(coordinate >= low) & (coordinate <= high)] = state
        frames = np.flatnonzero(inside >= 0)
        found = inside[frames]
        entered = np.concatenate([[True], found[1:] != found[:-1]]) if len(found) else np.zeros(0, bool)
        return found[entered], frames[entered]

    def transitions(self, series: Series) -> np.ndarray:
        """Return counts of transitions of each trajectory, shape=(n_trajectories, n_states, n_states)."""
        n = len(self.names)
        counts = np.zeros((len(series), n, n))
        for row, part in enumerate(series):
            visited, _ = self.visited(part)
            np.add.at(counts[row], (visited[:-1], visited[1:]), 1)
        return counts

    def passage_times(self, series: Series, start: int, end: int) -> np.ndarray:
        """Return first-passage times in frames: from each entry of `start` after having been in `end`, to the entry of `end`.

        The first time is counted from the first entry of `start`; passages that a trajectory does not finish are left out.
        """
        times = []
        for part in series:
            visited, frames = self.visited(part)
            begun: int | None = None
            for state, frame in zip(visited.tolist(), frames.tolist(), strict=True):
                if state == start and begun is None:
                    begun = frame
                elif state == end and begun is not None:
                    times.append(frame - begun)
                    begun = None
        return np.array(times, dtype=np.float64)


def states_of(
    names: Sequence[str], cores: Sequence[tuple[float, float]], weights: dict[str, float], feature_names: Sequence[str]
) -> States:
    """Return states along the sum of `weights` times features."""
    direction = np.array([weights.get(name, 0.0) for name in feature_names])
    return States(tuple(names), tuple((float(a), float(b)) for a, b in cores), direction)
