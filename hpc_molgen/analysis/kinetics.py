"""Time correlation: statistical inefficiency, effective samples, passages between two states, TICA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_molgen.analysis.free_energy import multiplicities
from hpc_molgen.angles import wrap
from hpc_molgen.errors import InputError

CORE_DEG = (30.0, 130.0)  # |cv| of the two cores: clear of 0 and of the seam, both of which a torsion crosses by jitter


@dataclass(frozen=True)
class EffectiveSamples:
    """What correlated, weighted frames are worth for the share of one state.

    Attributes
    ----------
    share : float
        p = sum w A / sum w.
    inefficiency : float
        g of the influence series, in frames.
    n_effective : float
        p (1 - p) / var(p): the number of independent unweighted samples with the same variance; 0 when the state was never
        entered or never left.
    replicates : np.ndarray, shape=(n_replicates,)
        n_effective when whole trajectories are drawn with replacement.
    n_frames, n_trajectories : int
    """

    share: float
    inefficiency: float
    n_effective: float
    replicates: np.ndarray
    n_frames: int
    n_trajectories: int


def influence(indicator: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return psi_t = w_t (A_t - p) / mean(w), shape=(n,): the linearised ratio estimator p = sum w A / sum w.

    Its mean is zero, and the variance of p is that of the mean of psi, correlation in time included.
    """
    weights = np.asarray(weights, dtype=np.float64)
    share = np.average(indicator, weights=weights)
    result: np.ndarray = weights * (indicator - share) / weights.mean()
    return result


def effective_samples(
    indicator: np.ndarray,
    weights: np.ndarray,
    trajectory: np.ndarray,
    n_replicates: int,
    generator: np.random.Generator,
) -> EffectiveSamples:
    """Count the effective samples of correlated, weighted frames for the share of one state.

    Parameters
    ----------
    indicator : np.ndarray, shape=(n,), bool
        Whether a frame is in the state.
    weights : np.ndarray, shape=(n,)
    trajectory : np.ndarray, shape=(n,)
        Trajectory of each frame; frames of one are in the order of time.
    """
    share = float(np.average(indicator, weights=weights))
    parts = _split(influence(indicator, weights), trajectory)
    n_frames = len(indicator)
    if not 0 < share < 1:
        return EffectiveSamples(share, float("inf"), 0.0, np.zeros(n_replicates), n_frames, len(parts))
    tables = _Tables(parts)
    counts = generator.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), n_replicates).astype(np.float64)
    ones = np.ones((1, len(parts)))
    n_effective, inefficiency = tables.effective(ones, share)
    return EffectiveSamples(
        share=share,
        inefficiency=float(inefficiency[0]),
        n_effective=float(n_effective[0]),
        replicates=tables.effective(counts, share)[0],
        n_frames=n_frames,
        n_trajectories=len(parts),
    )


def independent_effective_samples(
    indicator: np.ndarray, weights: np.ndarray, n_replicates: int, generator: np.random.Generator
) -> EffectiveSamples:
    """Count the effective samples of independent, weighted samples: the same p (1 - p) / var(p), with g = 1 by construction.

    Parameters
    ----------
    indicator : np.ndarray, shape=(n,), bool
    weights : np.ndarray, shape=(n,)
    """
    inside, weights = np.asarray(indicator, dtype=bool), _relative(weights)
    sums = np.stack([weights * inside, weights * ~inside, weights**2 * inside, weights**2 * ~inside])
    totals = np.zeros((4, n_replicates))
    for block, counts in multiplicities(len(weights), n_replicates, generator):
        totals += sums[:, block] @ counts
    share = float(np.average(inside, weights=weights))
    n_effective = float(_independent(sums.sum(axis=1, keepdims=True))[0])
    return EffectiveSamples(share, 1.0, n_effective, _independent(totals), len(weights), len(weights))


def _relative(weights: np.ndarray) -> np.ndarray:
    """Weights over the largest; those that count for nothing become 0: arithmetic with subnormal squares is very slow."""
    relative: np.ndarray = np.asarray(weights, dtype=np.float64) / np.max(weights)
    relative[relative < 1e-100] = 0.0
    return relative


def _independent(totals: np.ndarray) -> np.ndarray:
    """Effective samples (n_replicates,) from sums of w and w^2 inside and outside the state, shape=(4, n_replicates)."""
    inside, outside, inside_2, outside_2 = totals
    # var(p) = [(1-p)^2 sum_in w^2 + p^2 sum_out w^2] / (sum w)^2 with p = inside / (inside + outside)
    spread = outside**2 * inside_2 + inside**2 * outside_2
    effective: np.ndarray = np.divide(
        inside * outside * (inside + outside) ** 2, spread, out=np.zeros_like(spread), where=spread > 0
    )
    return effective


def kish_replicates(weights: np.ndarray, n_replicates: int, generator: np.random.Generator) -> np.ndarray:
    """Bootstrap replicates (n_replicates,) of Kish's (sum w)^2 / sum w^2 of independent samples."""
    weights = _relative(weights)
    sums = np.stack([weights, weights**2])
    totals = np.zeros((2, n_replicates))
    for block, counts in multiplicities(len(weights), n_replicates, generator):
        totals += sums[:, block] @ counts
    result: np.ndarray = np.divide(totals[0] ** 2, totals[1], out=np.zeros(n_replicates), where=totals[1] > 0)
    return result


def statistical_inefficiency(series: np.ndarray, trajectory: np.ndarray) -> float:
    """Return g = 1 + 2 sum rho(t) in frames: the larger of Geyer's initial positive sequence and batch means (metrics.md).

    Parameters
    ----------
    series : np.ndarray, shape=(n,)
    trajectory : np.ndarray, shape=(n,)
        Correlations are counted within trajectories and averaged over them; the mean is that of all frames.
    """
    centred = np.asarray(series, dtype=np.float64) - np.mean(series)
    if not np.any(centred):
        return float("inf")
    parts = _split(centred, trajectory)
    return float(_Tables(parts).inefficiency(np.ones((1, len(parts))))[0])


def _split(series: np.ndarray, trajectory: np.ndarray) -> list[np.ndarray]:
    return [series[trajectory == number] for number in np.unique(trajectory)]


class _Tables:
    """Sums per trajectory from which g follows for any multiplicities of the trajectories.

    Parameters
    ----------
    parts : list of np.ndarray
        One series per trajectory, the common mean removed.
    """

    def __init__(self, parts: list[np.ndarray]) -> None:
        longest, total = max(map(len, parts)), sum(map(len, parts))
        self.n = np.array([len(part) for part in parts], dtype=np.float64)
        # products over n, not over n - t: var(mean) of independent trajectories holds exactly these sums
        self.products = np.array([_products(part, longest) for part in parts])
        length = max(1, min(int(np.sqrt(total)), *map(len, parts)))
        batches = [part[: len(part) // length * length].reshape(-1, length).mean(axis=1) for part in parts]
        self.batch_length = length
        self.batch_squares = np.array([np.sum(batch**2) for batch in batches])
        self.batch_numbers = np.array([len(batch) for batch in batches], dtype=np.float64)

    def inefficiency(self, counts: np.ndarray) -> np.ndarray:
        """G (n_replicates,) for trajectories taken `counts` (n_replicates, n_trajectories) times."""
        products = counts @ self.products
        variance = products[:, :1]
        correlation = np.divide(products, variance, out=np.zeros_like(products), where=variance > 0)
        pairs = correlation[:, 0:-1:2] + correlation[:, 1::2]
        positive = np.cumprod(pairs > 0, axis=1)
        geyer = 2 * np.sum(pairs * positive, axis=1) - 1  # Geyer 1992, Stat. Sci. 7, 473, section 3.3
        mean_square = variance[:, 0] / (counts @ self.n)
        batch_variance = (counts @ self.batch_squares) / (counts @ self.batch_numbers)
        batch = np.divide(self.batch_length * batch_variance, mean_square, out=np.zeros_like(geyer), where=mean_square > 0)
        larger: np.ndarray = np.maximum(np.maximum(geyer, batch), 0.0)
        return larger

    def effective(self, counts: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        """P (1 - p) / var(p) and g, both (n_replicates,), when the series is an influence function.

        The number of trajectories stays what it is: replicates vary what the correlations are, not how much was simulated.
        """
        inefficiency = self.inefficiency(counts)
        frames = counts @ self.n
        variance = (counts @ self.products[:, 0]) / frames * inefficiency / self.n.sum()
        effective = np.divide(share * (1 - share), variance, out=np.zeros_like(variance), where=variance > 0)
        return effective, inefficiency


def _products(series: np.ndarray, longest: int) -> np.ndarray:
    """Sums over t of x_t x_(t+k) for k = 0 .. longest (an odd last one dropped by the caller's pairs), by FFT."""
    from scipy import fft

    size = fft.next_fast_len(2 * len(series), real=True)
    transformed = fft.rfft(series, size)
    products = np.zeros(longest + longest % 2)
    products[: len(series)] = fft.irfft(np.abs(transformed) ** 2, size)[: len(series)]
    return products


def core_passages(cv_rad: np.ndarray, trajectory: np.ndarray) -> int:
    """Count full passages between cv < 0 and cv > 0, either way round and over either boundary (0 or +-180 degrees).

    A passage is counted when a trajectory enters one core (30 to 130 degrees, or -130 to -30) having last been in the other: a
    torsion that only trembles about 0 or about the seam crosses nothing.
    """
    degrees = np.degrees(wrap(cv_rad))
    inside = (np.abs(degrees) >= CORE_DEG[0]) & (np.abs(degrees) <= CORE_DEG[1])
    total = 0
    for number in np.unique(trajectory):
        visited = np.sign(degrees[inside & (trajectory == number)])
        total += int(np.count_nonzero(np.diff(visited)))
    return total


def frame_interval_ps(time_ps: np.ndarray, trajectory: np.ndarray) -> float | None:
    """Time between frames, or None when the frames carry no times."""
    steps = np.diff(time_ps)[np.diff(trajectory) == 0]
    interval = float(np.median(steps)) if len(steps) else 0.0
    return interval if interval > 0 else None


@dataclass(frozen=True)
class TicaModel:
    """Time-lagged independent components of a reference.

    Attributes
    ----------
    lag_frames : int
    mean : np.ndarray, shape=(n_features,)
    components : np.ndarray, shape=(n_features, 2)
    """

    lag_frames: int
    mean: np.ndarray
    components: np.ndarray

    def project(self, torsions_rad: np.ndarray) -> np.ndarray:
        """Return the two components (n, 2) of torsions (n, n_torsions)."""
        projected: np.ndarray = (_features(torsions_rad) - self.mean) @ self.components
        return projected


def _features(torsions_rad: np.ndarray) -> np.ndarray:
    return np.concatenate([np.cos(torsions_rad), np.sin(torsions_rad)], axis=1)


def fit_tica(torsions_rad: np.ndarray, trajectory: np.ndarray, lag_frames: int) -> TicaModel:
    """Fit two components to (cos, sin) of a reference (Perez-Hernandez et al. 2013, J. Chem. Phys. 139, 015102).

    Parameters
    ----------
    torsions_rad : np.ndarray, shape=(n, n_torsions)
    trajectory : np.ndarray, shape=(n,)
        Pairs of frames at the lag are taken within trajectories.

    Raises
    ------
    InputError
        When every trajectory is shorter than the lag.
    """
    from deeptime.decomposition import TICA
    from deeptime.util.data import TrajectoriesDataset

    parts = [_features(torsions_rad[trajectory == number]) for number in np.unique(trajectory)]
    parts = [part for part in parts if len(part) > lag_frames]
    if not parts:
        raise InputError(f"no trajectory is longer than the TICA lag of {lag_frames} frames")
    model = TICA(lagtime=lag_frames, dim=2, scaling=None).fit(TrajectoriesDataset.from_numpy(lag_frames, parts)).fetch_model()
    return TicaModel(lag_frames, np.asarray(model.mean_0), np.asarray(model.singular_vectors_left)[:, :2])
