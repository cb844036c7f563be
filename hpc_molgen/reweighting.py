"""Importance weights from a surrogate to the Boltzmann distribution, what they are worth, and resampling."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import logsumexp

from hpc_molgen.errors import InputError

K_HAT_LIMIT = 0.7  # above: the variance of the estimate cannot be trusted (Vehtari et al. 2024, JMLR 25, 72)
CLIP_SHARE = 1e-4


@dataclass(frozen=True)
class WeightDiagnostics:
    """What a set of importance weights is worth (definitions: `facts/metrics.md`).

    Attributes
    ----------
    n : int
        Number of samples, those of weight zero included.
    ess : float
        Kish effective sample size (sum w)^2 / sum w^2 of the unclipped weights.
    ess_fraction, ess_clipped_fraction : float
        As fractions of n; clipped: the top 1e-4 of the weights set to the largest that remains.
    largest_share : float
        Largest weight over the sum of all.
    k_hat : float
        Shape of the generalised Pareto distribution fitted to the tail (inf when it cannot be fitted).
    certified : bool
        k_hat <= 0.7.
    """

    n: int
    ess: float
    ess_fraction: float
    ess_clipped_fraction: float
    largest_share: float
    k_hat: float
    certified: bool

    def as_dict(self) -> dict[str, float | int | bool]:
        """Return plain values for JSON."""
        return asdict(self)


def importance_log_weights(reduced_energy: np.ndarray, log_density: np.ndarray | None) -> np.ndarray:
    """Return ln w = -u - ln q; samples of infinite energy or outside the domain of q get -inf.

    Parameters
    ----------
    reduced_energy, log_density : np.ndarray, shape=(n,)
        u = U/kT and ln q *of the same coordinates*: for features decoded to positions, ln q of the features minus ln|det J|.

    Raises
    ------
    InputError
        When the surrogate has no ln q: exp(-u) alone is not a weight for samples that already follow a density.
    """
    if log_density is None or np.isnan(log_density).all():
        raise InputError(
            "this surrogate gives no ln q, so there are no importance weights: exp(-u) alone would count the surrogate's "
            "own density twice. Use a sampler with log_density, or correct.weights false for raw samples."
        )
    with np.errstate(invalid="ignore"):
        log_weights = -np.asarray(reduced_energy, dtype=np.float64) - np.asarray(log_density, dtype=np.float64)
    log_weights[~np.isfinite(log_weights)] = -np.inf
    if np.isneginf(log_weights).all():
        raise InputError("every sample has weight zero: no sample has a finite energy; train longer or check the system")
    return log_weights


def normalised_weights(log_weights: np.ndarray) -> np.ndarray:
    """Return weights (n,) that sum to one."""
    weights: np.ndarray = np.exp(log_weights - logsumexp(log_weights))
    return weights


def kish_ess(log_weights: np.ndarray) -> float:
    """Kish effective sample size (sum w)^2 / sum w^2."""
    return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights)))


def clipped(log_weights: np.ndarray, share: float = CLIP_SHARE) -> np.ndarray:
    """Set the top `share` of the weights to the largest that remains (Midgley et al. 2023, ICLR)."""
    n_top = max(1, round(share * len(log_weights)))
    limit = np.sort(log_weights)[-n_top - 1] if n_top < len(log_weights) else np.max(log_weights)
    limited: np.ndarray = np.minimum(log_weights, limit)
    return limited


def pareto_k(log_weights: np.ndarray) -> float:
    """Pareto k-hat of the upper tail of the weights (Vehtari et al. 2024, JMLR 25, 72, section 3).

    The tail holds min(n/5, 3 sqrt(n)) weights; the generalised Pareto distribution is fitted by Zhang and Stephens (2009,
    Technometrics 51, 316) and regularised towards 0.5 with the weight of ten observations.
    """
    n = len(log_weights)
    n_tail = int(np.ceil(min(0.2 * n, 3 * np.sqrt(n))))
    if n_tail < 5:
        return float("inf")
    ordered = np.sort(log_weights - np.max(log_weights))
    if ordered[-1] - ordered[-n_tail - 1] < 1e-12:
        return float("-inf")  # constant weights: no tail at all
    cutoff = max(ordered[-n_tail - 1], np.log(np.finfo(float).tiny))
    tail = np.exp(ordered[ordered > cutoff]) - np.exp(cutoff)
    if len(tail) < 5:
        return float("inf")
    k = _fit_generalised_pareto(tail)
    return float((len(tail) * k + 10 * 0.5) / (len(tail) + 10))


def _fit_generalised_pareto(excess: np.ndarray) -> float:
    """Shape k by the profile-posterior mean of Zhang and Stephens (2009); `excess` is sorted and positive."""
    n = len(excess)
    m = 30 + int(np.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile)
    k = np.mean(np.log1p(-theta[:, None] * excess), axis=1)
    log_likelihood = n * (np.log(-theta / k) - k - 1)
    posterior = np.exp(log_likelihood - logsumexp(log_likelihood))
    best = np.sum(theta * posterior)
    return float(np.mean(np.log1p(-best * excess)))


def weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """Return the smallest value (n,) at which that share of the weights (n,) is reached; nan without any weight."""
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    if not len(values) or cumulative[-1] <= 0:
        return float("nan")
    return float(values[order][np.searchsorted(cumulative, share * cumulative[-1]).clip(max=len(order) - 1)])


def diagnose(log_weights: np.ndarray) -> WeightDiagnostics:
    """Return the diagnostics that every table of weighted results prints."""
    n, ess, k_hat = len(log_weights), kish_ess(log_weights), pareto_k(log_weights)
    return WeightDiagnostics(
        n=n,
        ess=ess,
        ess_fraction=ess / n,
        ess_clipped_fraction=kish_ess(clipped(log_weights)) / n,
        largest_share=float(np.max(normalised_weights(log_weights))),
        k_hat=k_hat,
        certified=k_hat <= K_HAT_LIMIT,
    )


def systematic_resample(log_weights: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Return `n` indices drawn by systematic resampling (Kitagawa 1996, J. Comput. Graph. Stat. 5, 1), ascending.

    Each index appears floor(n w) or ceil(n w) times, with expectation n w.
    """
    points = (np.arange(n) + generator.random()) / n
    cumulative = np.cumsum(normalised_weights(log_weights))
    found = np.searchsorted(cumulative / cumulative[-1], points)
    indices: np.ndarray = np.minimum(found, len(log_weights) - 1)
    return indices
