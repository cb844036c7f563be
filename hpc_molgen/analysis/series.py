"""Time series of collective variables: histograms, correlation in time, increments, drift (facts/metrics.md).

A set of series is a sequence of arrays (n_frames, n_features), one for each trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc_molgen.analysis.divergence import jensen_shannon
from hpc_molgen.errors import InputError

BINS = {1: 100, 2: 50}  # of the range of the reference, in one and in two dimensions
Series = Sequence[np.ndarray]


class Bins:
    """Bins over the range of a reference, with one bin beyond either end: whatever a surrogate makes is counted.

    Parameters
    ----------
    reference : sequence of np.ndarray, each of shape=(n_frames, n_features)
    columns : tuple of int
        One or two features.
    """

    def __init__(self, reference: Series, columns: tuple[int, ...]) -> None:
        self.columns = columns
        self.edges = []
        for column in columns:
            low, high = min(part[:, column].min() for part in reference), max(part[:, column].max() for part in reference)
            if not high > low:
                raise InputError(f"feature {column} of the reference does not vary: there is nothing to compare")
            self.edges.append(np.linspace(low, high, BINS[len(columns)] + 1))

    def counts(self, series: Series) -> np.ndarray:
        """Return how many frames fall into each bin, shape=(n_trajectories, n_bins)."""
        size = len(self.edges[0]) + 1
        rows = []
        for part in series:
            place = np.zeros(len(part), dtype=np.intp)
            for column, edges in zip(self.columns, self.edges, strict=True):
                inside = np.searchsorted(edges, part[:, column], side="right")
                inside[part[:, column] == edges[-1]] -= 1  # the last bin holds its upper edge
                place = place * size + inside
            rows.append(np.bincount(place, minlength=size ** len(self.columns)))
        return np.array(rows, dtype=np.float64)

    def divergence(self, first: Series, second: Series) -> float:
        """Jensen-Shannon divergence of two sets, in nats."""
        return jensen_shannon(self.counts(first).sum(axis=0), self.counts(second).sum(axis=0))


def autocorrelation(series: Series, column: int, n_lags: int) -> np.ndarray:
    """Autocorrelation (n_lags + 1,) of one feature about the mean of all frames, averaged over trajectories.

    Lags that no trajectory is long enough for are nan.
    """
    from scipy import fft

    mean = np.average([part[:, column].mean() for part in series], weights=[len(part) for part in series])
    products, pairs = np.zeros(n_lags + 1), np.zeros(n_lags + 1)
    for part in series:
        centred = np.asarray(part[:, column], np.float64) - mean
        size = fft.next_fast_len(2 * len(centred), real=True)
        correlation = fft.irfft(np.abs(fft.rfft(centred, size)) ** 2, size)
        n = min(n_lags + 1, len(centred))
        products[:n] += correlation[:n]
        pairs[:n] += len(centred) - np.arange(n)
    correlation = np.divide(products, pairs, out=np.full(n_lags + 1, np.nan), where=pairs > 0)
    normalised: np.ndarray = correlation / correlation[0]
    return normalised


def increments(series: Series, lag: int = 1) -> list[np.ndarray]:
    """Return x(t + lag) - x(t) of each trajectory."""
    return [np.asarray(part[lag:], np.float64) - part[:-lag] for part in series if len(part) > lag]


def increment_deviation(series: Series, column: int, lag: int = 1) -> float:
    """Return the standard deviation of the increments of one feature."""
    parts = [part[:, column] for part in increments(series, lag)]
    return float(np.concatenate(parts).std())


def drift(series: Series, column: int, n_windows: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return means of one feature in consecutive windows, and their standard errors over trajectories, both (n_windows,).

    Of a stationary process all windows have one mean; a generator that knows where a series begins and ends drifts.
    """
    means = np.array([[window.mean() for window in np.array_split(part[:, column], n_windows)] for part in series])
    error = means.std(axis=0, ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.full(n_windows, np.nan)
    return means.mean(axis=0), error
