"""Markov state models of time series by deeptime: implied timescales and Chapman-Kolmogorov, with bootstrap intervals.

Clusters come from the reference alone; every set that is compared is assigned to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_molgen.analysis.series import Series
from hpc_molgen.errors import InputError

N_CENTRES = 100
_FIT_FRAMES = 50_000


@dataclass(frozen=True)
class Clusters:
    """Centres of k-means of a reference; features are divided by their deviations there.

    Attributes
    ----------
    centres : np.ndarray, shape=(n_centres, n_features)
    scale : np.ndarray, shape=(n_features,)
    """

    centres: np.ndarray
    scale: np.ndarray

    def assign(self, series: Series) -> list[np.ndarray]:
        """Return the cluster (n_frames,) of each frame of each trajectory."""
        from scipy.spatial import cKDTree

        tree = cKDTree(self.centres)
        return [np.asarray(tree.query(np.asarray(part, np.float64) / self.scale)[1], dtype=np.int32) for part in series]


def fit_clusters(reference: Series, seed: int, n_centres: int = N_CENTRES) -> Clusters:
    """Fit k-means to the frames of a reference (at most 50,000 of them, evenly taken)."""
    from deeptime.clustering import KMeans

    frames = np.concatenate([np.asarray(part, np.float64) for part in reference])
    scale = np.where(frames.std(axis=0) > 0, frames.std(axis=0), 1.0)
    chosen = frames[:: max(1, len(frames) // _FIT_FRAMES)] / scale
    model = KMeans(min(n_centres, len(chosen)), fixed_seed=seed % 2**31, max_iter=100, progress=None).fit(chosen).fetch_model()
    return Clusters(np.asarray(model.cluster_centers), scale)


class Counts:
    """Transition counts of discrete trajectories at one lag, kept apart by trajectory so that these can be drawn again.

    Parameters
    ----------
    discrete : sequence of np.ndarray of int, each of shape=(n_frames,)
    n_states : int
    lag : int
        In frames; counts slide along the trajectory.
    """

    def __init__(self, discrete: Sequence[np.ndarray], n_states: int, lag: int) -> None:
        self.lag, self.n_states = lag, n_states
        pairs = [part[:-lag].astype(np.int64) * n_states + part[lag:] for part in discrete if len(part) > lag]
        if not pairs:
            raise InputError(f"no trajectory is longer than the lag of {lag} frames")
        self.by_trajectory = np.array([np.bincount(part, minlength=n_states**2) for part in pairs], dtype=np.float64)

    def timescales(self, n: int, multiplicity: np.ndarray | None = None) -> np.ndarray:
        """Return the `n` slowest implied timescales in frames, nan where there are none.

        Of the reversible maximum-likelihood model of the largest connected set (Trendelkamp-Schroer et al. 2015, J. Chem.
        Phys. 143, 174101).

        Parameters
        ----------
        multiplicity : np.ndarray, shape=(n_trajectories,), optional
            How often each trajectory is taken.
        """
        model = self.model(multiplicity)
        found = np.full(n, np.nan)
        if model is not None:
            values = model.timescales(n)[:n]
            found[: len(values)] = values
        return found

    def model(self, multiplicity: np.ndarray | None = None):  # type: ignore[no-untyped-def]
        """Return deeptime's Markov state model, or None where it cannot be made."""
        from deeptime.markov import TransitionCountModel
        from deeptime.markov.msm import MaximumLikelihoodMSM

        weights = np.ones(len(self.by_trajectory)) if multiplicity is None else multiplicity
        counts = (weights @ self.by_trajectory).reshape(self.n_states, self.n_states)
        try:
            connected = TransitionCountModel(counts, counting_mode="sliding", lagtime=self.lag).submodel_largest()
            if connected.n_states < 2:
                return None
            return MaximumLikelihoodMSM(reversible=True).fit(connected).fetch_model()
        except (ValueError, RuntimeError):  # no connected set, or the estimate does not converge
            return None


def implied_timescales(
    discrete: Sequence[np.ndarray], n_states: int, lags: Sequence[int], n: int, n_bootstrap: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return implied timescales in frames, and 95 % intervals from a bootstrap over trajectories.

    Returns
    -------
    values : np.ndarray, shape=(n_lags, n)
    intervals : np.ndarray, shape=(n_lags, n, 2)
        nan for fewer than two trajectories.
    """
    values, intervals = np.full((len(lags), n), np.nan), np.full((len(lags), n, 2), np.nan)
    for row, lag in enumerate(lags):
        counts = Counts(discrete, n_states, lag)
        values[row] = counts.timescales(n)
        n_trajectories = len(counts.by_trajectory)
        if n_trajectories < 2:
            continue
        drawn = generator.multinomial(n_trajectories, np.full(n_trajectories, 1 / n_trajectories), n_bootstrap)
        replicates = np.array([counts.timescales(n, np.asarray(times, np.float64)) for times in drawn])
        intervals[row] = np.nanquantile(replicates, [0.025, 0.975], axis=0).T
    return values, intervals


def chapman_kolmogorov(
    discrete: Sequence[np.ndarray], sets: np.ndarray, lag: int, multiples: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities to be in the set where one was, predicted by the model at `lag` and estimated at its multiples.

    Parameters
    ----------
    sets : np.ndarray, shape=(n_states,)
        Which set each cluster belongs to.
    multiples : sequence of int

    Returns
    -------
    predicted, estimated : np.ndarray, shape=(n_multiples, n_sets)
        nan where a model cannot be made.
    """
    n_states, n_sets = len(sets), int(sets.max()) + 1
    base = Counts(discrete, n_states, lag).model()
    predicted, estimated = np.full((len(multiples), n_sets), np.nan), np.full((len(multiples), n_sets), np.nan)
    for row, multiple in enumerate(multiples):
        estimates = ((base, multiple, predicted), (Counts(discrete, n_states, lag * multiple).model(), 1, estimated))
        for model, power, where in estimates:
            if model is None:
                continue
            members = sets[np.asarray(model.count_model.state_symbols)]
            moved = np.linalg.matrix_power(model.transition_matrix, power)
            for number in range(n_sets):
                inside = members == number
                weight = model.stationary_distribution * inside
                if weight.sum() > 0:
                    where[row, number] = weight / weight.sum() @ moved @ inside
    return predicted, estimated
