"""Free energies and populations with bootstrap intervals, for weighted frames of trajectories and for weighted samples.

Everything is a vector of shares: each frame carries a label (a bin, a basin, a side of zero) and a weight, and whole *units*
are drawn with replacement. A unit is a trajectory where frames are correlated in time, and a single sample where samples are
independent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpc_molgen.angles import wrap

PROFILE_BINS = 100
LEVEL = 0.95
MAX_PROFILE_ERROR_KJ_MOL = 4 * 4.184  # metrics.md: errors count where the reference is below 4 kcal/mol
BASINS = ("C5", "C7eq", "alphaR", "alphaL", "C7ax", "other")
_MULTINOMIAL_UNITS = 2000  # above: Poisson multiplicities, which need no table of all units at once
_UNITS_PER_BLOCK = 20_000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and standard error, all in the same unit.

    Attributes
    ----------
    value, low, high : float
        inf or nan where the data do not fix them: a state that was never visited has a free energy of inf.
    standard_error : float
        Standard deviation of the bootstrap replicates, corrected for the number of units.
    """

    value: float
    low: float
    high: float
    standard_error: float = float("nan")


@dataclass(frozen=True)
class Profile:
    """A free-energy profile over the period of a torsion, in kT above its minimum.

    Attributes
    ----------
    centres_rad : np.ndarray, shape=(n_bins,)
    value, low, high : np.ndarray, shape=(n_bins,)
        nan in bins that no frame visits. The interval is that of -ln p of each bin, shifted by the same constant as the value.
    kt_kj_mol : float
        kT, for the profile in kJ/mol.
    """

    centres_rad: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    kt_kj_mol: float


@dataclass(frozen=True)
class Shares:
    """Weighted shares of labels and their bootstrap replicates.

    Attributes
    ----------
    value : np.ndarray, shape=(n_labels,)
    replicates : np.ndarray, shape=(n_replicates, n_labels)
    n_units : int
        Trajectories or samples that were drawn with replacement.
    """

    value: np.ndarray
    replicates: np.ndarray
    n_units: int

    def interval(self, value: float, replicates: np.ndarray) -> Estimate:
        """Estimate with its percentile interval, widened for few units.

        The spread over G units is too small by sqrt((G-1)/G), and its own uncertainty asks for Student's t with G-1 degrees of
        freedom in the place of the normal distribution (Cameron, Gelbach and Miller 2008, Rev. Econ. Stat. 90, 414).
        """
        if self.n_units < 2 or not np.isfinite(value):
            return Estimate(value, float("nan"), float("nan"), float("inf"))
        # whole replicates: interpolation between a finite and an infinite one would give nan
        low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
        spread = float(np.std(replicates)) if np.isfinite(replicates).all() else float("inf")
        few = np.sqrt(self.n_units / (self.n_units - 1))
        widened = few * student_ratio(self.n_units - 1)
        return Estimate(value, float(value - widened * (value - low)), float(value + widened * (high - value)), few * spread)


def student_ratio(degrees: int) -> float:
    """Half-width of a 95 % interval of Student's t over that of the normal distribution."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(degrees, (1 + LEVEL) / 2) / ndtri((1 + LEVEL) / 2))


def multiplicities(n_units: int, n_replicates: int, generator: np.random.Generator) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield, block of units by block, how often each replicate draws each unit: shape=(n_units of the block, n_replicates)."""
    if n_units <= _MULTINOMIAL_UNITS:
        yield (
            slice(0, n_units),
            generator.multinomial(n_units, np.full(n_units, 1 / n_units), n_replicates).T.astype(np.float64),
        )
        return
    table = _poisson_table()
    for start in range(0, n_units, _UNITS_PER_BLOCK):
        block = slice(start, min(start + _UNITS_PER_BLOCK, n_units))
        yield block, table[generator.integers(0, 2**16, (block.stop - start, n_replicates), dtype=np.uint16)]


@functools.cache
def _poisson_table() -> np.ndarray:
    """Poisson(1) counts at 2^16 quantiles: a lookup is twenty times as fast as NumPy's sampler, and exact to 1e-5."""
    from scipy.special import pdtrik

    counts: np.ndarray = np.ceil(pdtrik((np.arange(2**16) + 0.5) / 2**16, 1.0)).clip(min=0)
    return counts


def bootstrap_shares(
    labels: np.ndarray,
    n_labels: int,
    weights: np.ndarray,
    units: np.ndarray | None,
    n_replicates: int,
    generator: np.random.Generator,
) -> Shares:
    """Weighted shares of labels, and the same for units drawn with replacement.

    Parameters
    ----------
    labels : np.ndarray, shape=(n,), int
        Between 0 and n_labels - 1.
    weights : np.ndarray, shape=(n,)
        Non-negative.
    units : np.ndarray, shape=(n,), optional
        Trajectory of each frame; None: each sample is a unit.
    """
    from scipy.sparse import coo_matrix

    _, rows = (None, np.arange(len(labels))) if units is None else np.unique(units, return_inverse=True)
    n_units = int(rows.max()) + 1
    sums = coo_matrix((weights, (rows, labels)), shape=(n_units, n_labels)).tocsr()
    totals = np.zeros((n_labels, n_replicates))
    for block, counts in multiplicities(n_units, n_replicates, generator):
        totals += sums[block].T @ counts
    value = np.asarray(sums.sum(axis=0)).ravel()
    replicates = np.divide(totals, totals.sum(axis=0), out=np.full_like(totals, np.nan), where=totals.sum(axis=0) > 0)
    return Shares(value / value.sum(), replicates.T[np.isfinite(replicates).all(axis=0)], n_units)


def free_energy_difference(
    cv_rad: np.ndarray, weights: np.ndarray, units: np.ndarray | None, n_replicates: int, generator: np.random.Generator
) -> Estimate:
    """Return dF(cv > 0) = -kT ln [p(cv > 0) / p(cv <= 0)] in kT.

    Parameters
    ----------
    cv_rad : np.ndarray, shape=(n,)
        Torsion, wrapped here.
    weights, units, n_replicates, generator
        As in `bootstrap_shares`.

    Returns
    -------
    Estimate
        +inf (or -inf) when cv > 0 (or cv <= 0) was never seen.
    """
    shares = bootstrap_shares((wrap(cv_rad) > 0).astype(int), 2, weights, units, n_replicates, generator)
    with np.errstate(divide="ignore"):
        value = float(np.log(shares.value[0]) - np.log(shares.value[1]))
        replicates = np.log(shares.replicates[:, 0]) - np.log(shares.replicates[:, 1])
    return shares.interval(value, replicates)


def profile(
    angle_rad: np.ndarray,
    weights: np.ndarray,
    units: np.ndarray | None,
    kt_kj_mol: float,
    n_replicates: int,
    generator: np.random.Generator,
    n_bins: int = PROFILE_BINS,
) -> Profile:
    """Return F_i = -ln p_i over `n_bins` bins of the period, in kT above its minimum, with 95 % intervals."""
    edges = np.linspace(-np.pi, np.pi, n_bins + 1)
    labels = np.clip(((wrap(angle_rad) + np.pi) / (2 * np.pi) * n_bins).astype(int), 0, n_bins - 1)
    shares = bootstrap_shares(labels, n_bins, weights, units, n_replicates, generator)
    with np.errstate(divide="ignore"):
        value, replicates = -np.log(shares.value), -np.log(shares.replicates)
    floor = float(np.min(value))
    rows = [shares.interval(float(v), column) for v, column in zip(value, replicates.T, strict=True)]
    unvisited = ~np.isfinite(value)
    columns = [np.where(unvisited, np.nan, [getattr(row, name) - floor for row in rows]) for name in ("value", "low", "high")]
    return Profile((edges[:-1] + edges[1:]) / 2, columns[0], columns[1], columns[2], kt_kj_mol)


def profile_error(reference: Profile, other: Profile) -> float:
    """Root mean square difference of two profiles in kT, over the bins where the reference is below 4 kcal/mol.

    The two are aligned by their mean over these bins; nan when the other profile has an empty bin among them.
    """
    low = reference.value < MAX_PROFILE_ERROR_KJ_MOL / reference.kt_kj_mol
    difference = (other.value - reference.value)[low]
    return float(np.std(difference)) if len(difference) else float("nan")


def basin_labels(phi_rad: np.ndarray, psi_rad: np.ndarray) -> np.ndarray:
    """Index into `BASINS` of each pair of backbone torsions (facts/peers.md, section A), shape=(n,).

    beta: psi > 60 or psi < -120 degrees. C5: phi < -110 or phi > 130, beta; C7eq (with PII): -110 <= phi < 0, beta; alphaR:
    phi < 0, not beta; alphaL: 0 < phi < 130, -30 < psi < 120; C7ax: 0 < phi < 130, -120 < psi <= -30; the rest is "other".
    """
    phi, psi = np.degrees(wrap(phi_rad)), np.degrees(wrap(psi_rad))
    beta = (psi > 60) | (psi < -120)
    right = (phi > 0) & (phi < 130)
    labels = np.full(len(phi), BASINS.index("other"))
    labels[beta & ((phi < -110) | (phi > 130))] = BASINS.index("C5")
    labels[beta & (phi >= -110) & (phi < 0)] = BASINS.index("C7eq")
    labels[~beta & (phi < 0)] = BASINS.index("alphaR")
    labels[right & (psi > -30) & (psi < 120)] = BASINS.index("alphaL")
    labels[right & (psi > -120) & (psi <= -30)] = BASINS.index("C7ax")
    return labels


def basin_populations(
    phi_rad: np.ndarray,
    psi_rad: np.ndarray,
    weights: np.ndarray,
    units: np.ndarray | None,
    n_replicates: int,
    generator: np.random.Generator,
) -> dict[str, Estimate]:
    """Return the population of each of `BASINS` with its interval."""
    shares = bootstrap_shares(basin_labels(phi_rad, psi_rad), len(BASINS), weights, units, n_replicates, generator)
    return {
        name: clamped(shares.interval(float(shares.value[index]), shares.replicates[:, index]), 0.0, 1.0)
        for index, name in enumerate(BASINS)
    }


def clamped(estimate: Estimate, low: float, high: float) -> Estimate:
    """Keep the interval of a share, widened for few units, between its bounds."""
    ends = np.clip([estimate.low, estimate.high], low, high)
    return Estimate(estimate.value, float(ends[0]), float(ends[1]), estimate.standard_error)
