"""Does a surrogate that knows ln q cover the ensemble? Answers that need no reference free energy, from ln w = -u - ln q.

The same ln w on both sides: of the surrogate's own samples, and of held-out frames of molecular dynamics (MD). Samples alone
cannot show a mode that the surrogate lacks: their weights look equal, and a share of the partition function is missing. Frames
of MD show it, if MD has been there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logsumexp

from hpc_molgen.analysis.free_energy import Estimate, Shares, clamped, multiplicities
from hpc_molgen.analysis.kinetics import statistical_inefficiency
from hpc_molgen.reweighting import kish_ess, normalised_weights, pareto_k, systematic_resample, weighted_quantile

LIMIT = 300.0  # |ln w - ln Z| beyond this counts as this: nothing that is computed sees the difference


@dataclass(frozen=True)
class LogWeights:
    """ln w = -u - ln q of samples of the surrogate and of frames of the Boltzmann distribution.

    Attributes
    ----------
    samples : np.ndarray, shape=(n_samples,)
        Of independent samples of q; -inf where the energy is infinite.
    frames : np.ndarray, shape=(n_frames,)
        Of MD frames, in the order of time within their trajectory; inf where q is zero.
    frame_weights : np.ndarray, shape=(n_frames,)
        Boltzmann weights of the frames (of biased MD, say), summing to one.
    units : np.ndarray, shape=(n_frames,)
        Independent part (trajectory) that each frame belongs to.
    """

    samples: np.ndarray
    frames: np.ndarray
    frame_weights: np.ndarray
    units: np.ndarray

    @property
    def centre(self) -> float:
        """By the samples: ln Z, the logarithm of their mean weight."""
        return float(logsumexp(self.samples) - np.log(len(self.samples)))

    def relative(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ln w - `centre` of samples (n_samples,) and frames (n_frames,), within +-`LIMIT`."""
        frames = np.where(np.isnan(self.frames), np.inf, self.frames)  # no density is no coverage
        shifted = [np.clip(part - self.centre, -LIMIT, LIMIT) for part in (self.samples, frames)]
        return shifted[0], shifted[1]


@dataclass(frozen=True)
class DensityCheck:
    """What ln w of samples and of frames say about each other; intervals by bootstrap over samples and trajectories.

    Attributes
    ----------
    reverse_ess, forward_ess : Estimate
        Kish's ESS as a fraction, (E_q w)^2 / E_q w^2 from the samples and 1 / (E_p w E_p 1/w) from the frames: the same number
        if the surrogate covers p.
    log_z_samples, log_z_frames, log_z_bar : Estimate
        ln of the partition function: ln E_q w, -ln E_p 1/w, and the Bennett acceptance ratio of both (q has ln Z = 0).
    deficit : Estimate
        log_z_bar - log_z_samples, its replicates drawn jointly. exp(-deficit) is the share that the samples know of.
    overlap : float
        Of q and p: 0 none, 1 all (the scalar overlap of pymbar; Klimovich, Shirts and Mobley 2015, J. Comput. Aided Mol. Des.
        29, 397).
    bar_error : float
        Asymptotic standard error of BAR by pymbar, with as many frames as are decorrelated.
    n_decorrelated : int
    beyond_percentile, beyond_largest : Estimate
        Share of p with ln w above the 99.9th percentile of the weighted samples (0.001 is expected), and above all samples.
    largest_share : float
        Of the samples' weight that the heaviest has.
    """

    reverse_ess: Estimate
    forward_ess: Estimate
    log_z_samples: Estimate
    log_z_frames: Estimate
    log_z_bar: Estimate
    deficit: Estimate
    overlap: float
    bar_error: float
    n_decorrelated: int
    beyond_percentile: Estimate
    beyond_largest: Estimate
    largest_share: float
    k_hat: float


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep pymbar from announcing that JAX is missing, and from changing how NumPy treats overflow."""
    logger = logging.getLogger("pymbar")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logger.setLevel(before)


def bennett(samples: np.ndarray, frames: np.ndarray) -> tuple[float, float]:
    """Return ln Z of p and its asymptotic standard error by the Bennett acceptance ratio (1976, J. Comput. Phys. 22, 245).

    Parameters
    ----------
    samples, frames : np.ndarray, shape=(n_samples,), (n_frames,)
        Finite ln w of independent samples of q and of independent frames of p, within some hundreds of ln Z.

    Returns
    -------
    float, float
        nan where the two have too little in common.
    """
    shift = 10.0 - float(np.median(samples))  # pymbar's tolerance is relative: keep the answer away from zero
    with _quiet():
        from pymbar.other_estimators import bar
        from pymbar.utils import BoundsError, ConvergenceError, ParameterError

        try:
            found = bar(-(samples + shift), frames + shift, method="bisection", relative_tolerance=1e-10)
        except (BoundsError, ConvergenceError, ParameterError, FloatingPointError):
            return float("nan"), float("nan")
    if found["Delta_f"] == 0.0:  # how pymbar says that it found nothing
        return float("nan"), float("nan")
    return -float(found["Delta_f"]) - shift, float(found["dDelta_f"])


def decorrelated_frames(values: np.ndarray, weights: np.ndarray, units: np.ndarray) -> int:
    """Return how many independent frames (n,) of equal weight are as good: Kish's size of the weights over g of the values."""
    inefficiency = statistical_inefficiency(np.clip(values, -LIMIT, LIMIT), units)
    if not np.isfinite(inefficiency):  # a constant has no correlation time
        inefficiency = 1.0
    with np.errstate(divide="ignore"):
        kish = kish_ess(np.log(weights))
    return int(np.clip(np.round(kish / max(inefficiency, 1.0)), 2, len(values)))


def check_density(given: LogWeights, n_replicates: int, generator: np.random.Generator) -> DensityCheck:
    """Compare ln w of a surrogate's samples with ln w of MD frames.

    BAR is solved by pymbar for samples and as many frames as are decorrelated, drawn by their weights. Its optimal bridge then
    takes all weighted frames, ln Z = ln Z_0 + ln [n_q E_q f(x) / (n_p E_p f(-x))] with x = ln w - ln Z_0 - ln(n_q / n_p), and
    bootstrap replicates keep that bridge (Meng and Wong 1996, Stat. Sinica 6, 831, section 3).

    Parameters
    ----------
    given : LogWeights
    n_replicates : int
        Bootstrap draws, of samples and of units.
    generator : np.random.Generator
    """
    samples, frames = given.relative()
    weights = given.frame_weights / given.frame_weights.sum()
    n_frames = decorrelated_frames(frames, weights, given.units)
    with np.errstate(divide="ignore"):
        drawn = frames[systematic_resample(np.log(weights), n_frames, generator)]
    bar_log_z, bar_error = bennett(samples, drawn)
    ratio = np.log(len(samples) / n_frames)
    f_samples, f_frames = expit(samples - bar_log_z - ratio), expit(bar_log_z + ratio - frames)
    of_samples = np.stack([np.exp(samples), np.exp(2 * samples), f_samples])
    heavy = weighted_quantile(samples, normalised_weights(samples), 0.999)
    of_frames = weights * np.stack(
        [np.ones(len(frames)), np.exp(frames), np.exp(-frames), f_frames, frames > heavy, frames > samples.max()]
    )
    _, rows = np.unique(given.units, return_inverse=True)
    by_unit = np.array([np.bincount(rows, values) for values in of_frames])
    n_units = int(by_unit.shape[1])
    columns = _columns(of_samples.mean(axis=1), by_unit.sum(axis=1), bar_log_z, ratio)
    drawn_samples, drawn_units = (_replicates(values, n_replicates, generator) for values in (of_samples, by_unit))
    spread = _columns(drawn_samples, drawn_units, bar_log_z, ratio)
    own = {"reverse_ess": len(samples), "log_z_samples": len(samples)}
    found = {name: _estimate(columns[name], spread[name], own.get(name, n_units)) for name in columns}
    absolute = {name: _moved(found[name], given.centre) for name in ("log_z_samples", "log_z_frames", "log_z_bar")}
    for name in ("beyond_percentile", "beyond_largest", "reverse_ess", "forward_ess"):
        absolute[name] = clamped(found[name], 0.0, 1.0)
    posterior = np.sum(f_samples * (1 - f_samples)) + n_frames * np.sum(weights * f_frames * (1 - f_frames))
    return DensityCheck(
        **absolute,
        deficit=found["deficit"],
        overlap=float(posterior * (1 / len(samples) + 1 / n_frames)),
        bar_error=bar_error,
        n_decorrelated=n_frames,
        largest_share=float(normalised_weights(given.samples).max()),
        k_hat=pareto_k(given.samples),
    )


def _columns(samples: np.ndarray, frames: np.ndarray, bar_log_z: float, ratio: float) -> dict[str, np.ndarray]:
    """Return all figures from means over samples (3, ...) and sums over frames (6, ...)."""
    total, w, inverse, f_frames, heavy, beyond = frames
    w, inverse, f_frames = w / total, inverse / total, f_frames / total
    with np.errstate(divide="ignore", invalid="ignore"):
        by_samples = np.log(samples[0])
        bar = bar_log_z + ratio + np.log(samples[2]) - np.log(f_frames)
        return {
            "reverse_ess": samples[0] ** 2 / samples[1],
            "forward_ess": 1 / (w * inverse),
            "log_z_samples": by_samples,
            "log_z_frames": -np.log(inverse),
            "log_z_bar": bar,
            "deficit": bar - by_samples,
            "beyond_percentile": heavy / total,
            "beyond_largest": beyond / total,
        }


def _replicates(values: np.ndarray, n_replicates: int, generator: np.random.Generator) -> np.ndarray:
    """Means over units drawn with replacement, shape=(n_rows, n_replicates), of rows of values (n_rows, n_units)."""
    totals, n_drawn = np.zeros((len(values), n_replicates)), np.zeros(n_replicates)
    for block, counts in multiplicities(values.shape[1], n_replicates, generator):
        totals += values[:, block] @ counts
        n_drawn += counts.sum(axis=0)
    means: np.ndarray = totals / n_drawn
    return means


def _estimate(value: np.ndarray, replicates: np.ndarray, n_units: int) -> Estimate:
    finite = replicates[np.isfinite(replicates)]
    if not len(finite):
        return Estimate(float(value), float("nan"), float("nan"))
    return Shares(value, finite, n_units).interval(float(value), finite)


def _moved(found: Estimate, by: float) -> Estimate:
    return Estimate(found.value + by, found.low + by, found.high + by, found.standard_error)


def relative_densities(given: LogWeights, labels: np.ndarray, n_basins: int) -> np.ndarray:
    """Return how dense q is in each basin (n_basins,): 1 as where the samples are, 0 not at all, nan without frames.

    The median of q / p = 1 / w over the basin's frames, over the median in the weighted samples. It does not depend on how
    often MD was in the basin. (The mean of 1 / w would be q / p exactly, but a single frame of a low weight can make it large.)

    Parameters
    ----------
    given : LogWeights
    labels : np.ndarray, shape=(n_frames,), int
        Basin of each frame.
    n_basins : int
    """
    samples, frames = given.relative()
    usual = weighted_quantile(samples, normalised_weights(given.samples), 0.5)
    inside = [labels == basin for basin in range(n_basins)]
    own = [weighted_quantile(frames[rows], given.frame_weights[rows], 0.5) for rows in inside]
    return np.exp(usual - np.array(own))
