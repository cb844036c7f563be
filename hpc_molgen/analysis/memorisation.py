"""Whether generated series copy what was trained on: distances to the nearest windows of training and of held-out data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_molgen.analysis.series import Series
from hpc_molgen.errors import InputError


@dataclass(frozen=True)
class Memorisation:
    """Distance of generated windows to the nearest training window, over that to the nearest held-out window.

    Attributes
    ----------
    ratio, low, high : float
        Below 1: nearer to what was trained on. The 95 % interval comes from a bootstrap over generated trajectories and over
        trajectories of the two sets.
    nearer_to_training : float
        Share of generated windows; one half without memorisation.
    n_windows, length : int
        Generated windows, and frames of each.
    """

    ratio: float
    low: float
    high: float
    nearer_to_training: float
    n_windows: int
    length: int


def memorisation(
    generated: Series, train: Series, held_out: Series, length: int, generator: np.random.Generator,
    n_windows: int = 400, n_candidates: int = 100_000, n_bootstrap: int = 500,
) -> Memorisation:  # fmt: skip
    """Compare generated windows with equally many windows of training and of held-out trajectories.

    A window is compared with windows that begin at every few frames of the two sets, so that a copy is found wherever it was
    cut; features are divided by their deviations in the training set, and the distance is the root mean square over a window.

    Parameters
    ----------
    length : int
        Frames of a window.
    n_windows : int
        Of the generated set, spread over its trajectories.
    n_candidates : int
        At most so many windows of either set.

    Raises
    ------
    InputError
        When no trajectory of a set is that long.
    """
    scale = np.concatenate([np.asarray(part, np.float32) for part in train]).std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    n = min(len(train), len(held_out))
    sides = [[np.asarray(part, np.float32) / scale for part in side[:n]] for side in (train, held_out)]
    frames = min(sum(max(0, len(part) - length + 1) for part in side) for side in sides)
    stride = max(1, frames // n_candidates)
    own = _spread_windows([np.asarray(part, np.float32) / scale for part in generated], length, n_windows)
    queries = np.concatenate([windows for windows in own if len(windows)])
    owner = np.repeat(np.arange(len(own)), [len(windows) for windows in own])
    nearest = [
        np.array([_nearest(queries, _windows(part, length, stride)) for part in side if len(part) >= length]) for side in sides
    ]
    if not all(len(side) for side in nearest):
        raise InputError(f"no trajectory is as long as a window of {length} frames")

    def ratio(to_train: np.ndarray, to_held_out: np.ndarray, rows: np.ndarray) -> float:
        return float(to_train.min(axis=0)[rows].mean() / to_held_out.min(axis=0)[rows].mean())

    rows_of = [np.flatnonzero(owner == number) for number in np.unique(owner)]
    replicates = []
    for _ in range(n_bootstrap):
        picked = [side[np.unique(generator.integers(len(side), size=len(side)))] for side in nearest]
        rows = np.concatenate([rows_of[i] for i in generator.integers(len(rows_of), size=len(rows_of))])
        replicates.append(ratio(picked[0], picked[1], rows))
    low, high = np.quantile(replicates, [0.025, 0.975])
    closer = nearest[0].min(axis=0) < nearest[1].min(axis=0)
    value = ratio(nearest[0], nearest[1], np.arange(len(queries)))
    return Memorisation(value, float(low), float(high), float(closer.mean()), len(queries), length)


def _windows(part: np.ndarray, length: int, stride: int) -> np.ndarray:
    """Windows (n, length * n_features) of one trajectory."""
    view = np.lib.stride_tricks.sliding_window_view(part, length, axis=0)[::stride]
    return np.ascontiguousarray(view).reshape(len(view), -1)


def _spread_windows(series: Series, length: int, n_windows: int) -> list[np.ndarray]:
    each = max(1, n_windows // max(1, len(series)))
    found = []
    for part in series:
        starts = np.unique(np.linspace(0, len(part) - length, each).astype(int)) if len(part) >= length else np.empty(0, int)
        found.append(np.array([part[s : s + length].T.reshape(-1) for s in starts], np.float32).reshape(len(starts), -1))
    return found


def _nearest(queries: np.ndarray, windows: np.ndarray, block: int = 20_000) -> np.ndarray:
    """Root mean square distance (n_queries,) to the nearest of the windows."""
    own = (queries**2).sum(axis=1)
    best = np.full(len(queries), np.inf, np.float32)
    for start in range(0, len(windows), block):
        part = windows[start : start + block]
        squared = own[:, None] - 2 * queries @ part.T + (part**2).sum(axis=1)
        best = np.minimum(best, squared.min(axis=1))
    nearest: np.ndarray = np.sqrt(np.maximum(best, 0) / queries.shape[1])
    return nearest
