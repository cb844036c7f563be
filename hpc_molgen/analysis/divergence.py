"""Divergences between ensembles of torsions, with fixed bins and their noise floor.

Every table that compares two methods uses these definitions (facts/metrics.md). Bins cover the period and so never depend on
the generated set; the Jensen-Shannon *divergence* in nats is primary (maximum ln 2) and its square root, the *distance*, is
printed beside it by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import rel_entr

from hpc_molgen.angles import wrap
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import numpy_generator

TORSION_BINS = 100
RAMACHANDRAN_BINS = 60
PERIOD = (-np.pi, np.pi)


def torsion_histogram(angle_rad: np.ndarray, weights: np.ndarray | None = None, bins: int = TORSION_BINS) -> np.ndarray:
    """Normalised histogram of one torsion over its period.

    Parameters
    ----------
    angle_rad : np.ndarray, shape=(n,)
        Any real values; they are wrapped.
    weights : np.ndarray, shape=(n,), optional
        Statistical weights, not necessarily normalised.

    Returns
    -------
    np.ndarray, shape=(bins,)
        Probabilities; bin i covers -pi + 2 pi i / bins onwards.

    Raises
    ------
    InputError
        For no angles, values that are not finite, or weights that do not fit.
    """
    angles = _checked(angle_rad, 1)
    counts, _ = np.histogram(wrap(angles), bins=bins, range=PERIOD, weights=_checked_weights(weights, len(angles)))
    return _normalised(counts)


def ramachandran_histogram(
    phi_psi_rad: np.ndarray, weights: np.ndarray | None = None, bins: int = RAMACHANDRAN_BINS
) -> np.ndarray:
    """Normalised histogram of two torsions over the torus.

    Parameters
    ----------
    phi_psi_rad : np.ndarray, shape=(n, 2)
        Any real values; they are wrapped.
    weights : np.ndarray, shape=(n,), optional
        Statistical weights, not necessarily normalised.

    Returns
    -------
    np.ndarray, shape=(bins, bins)
        Probabilities, phi along the first axis.

    Raises
    ------
    InputError
        For no angles, values that are not finite, or weights that do not fit.
    """
    angles = _checked(phi_psi_rad, 2)
    phi, psi = wrap(angles).T
    counts, _, _ = np.histogram2d(phi, psi, bins=bins, range=(PERIOD, PERIOD), weights=_checked_weights(weights, len(angles)))
    return _normalised(counts)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two histograms of the same bins, in nats.

    D = (KL(p | m) + KL(q | m)) / 2 with m = (p + q) / 2 (Lin 1991, IEEE Trans. Inf. Theory 37, 145): between 0 and ln 2. The
    *distance* (scipy.spatial.distance.jensenshannon) is its square root.

    Parameters
    ----------
    p, q : np.ndarray, same shape
        Non-negative; normalised here.

    Raises
    ------
    InputError
        When shapes differ or a histogram is empty, negative or not finite.
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if p.shape != q.shape:
        raise InputError(f"histograms of shapes {p.shape} and {q.shape} cannot be compared: use the same bins for both")
    p, q = _normalised(p), _normalised(q)
    middle = 0.5 * (p + q)
    divergence = 0.5 * float(rel_entr(p, middle).sum() + rel_entr(q, middle).sum())
    return min(max(divergence, 0.0), float(np.log(2)))


@dataclass(frozen=True)
class NoiseFloor:
    """Divergence between two independent halves of a reference, for several thinnings of the first.

    Attributes
    ----------
    divergences : np.ndarray, shape=(n_repeats,)
        In nats.
    n_first, n_second : int
        Points on the two sides.
    """

    divergences: np.ndarray
    n_first: int
    n_second: int

    @property
    def mean(self) -> float:
        """Mean divergence in nats."""
        return float(self.divergences.mean())

    @property
    def spread(self) -> float:
        """Standard deviation over thinnings (0 for one)."""
        return float(self.divergences.std(ddof=1)) if len(self.divergences) > 1 else 0.0


def noise_floor(
    first_rad: np.ndarray,
    second_rad: np.ndarray,
    n: int | None = None,
    *,
    seed: int = 0,
    n_repeats: int = 5,
    bins: int = RAMACHANDRAN_BINS,
) -> NoiseFloor:
    """Divergence that a perfect surrogate with `n` samples would still show, from two halves of the reference.

    Parameters
    ----------
    first_rad, second_rad : np.ndarray, shape=(n_frames, 2)
        The training half and the held-out half, split by trajectory.
    n : int, optional
        The first half is thinned to `n` frames at random, without replacement, `n_repeats` times: a floor at the n of the
        generated set. None keeps all frames, once.

    Raises
    ------
    InputError
        When the first half has fewer than `n` frames.
    """
    first, second = _checked(first_rad, 2), ramachandran_histogram(second_rad, bins=bins)
    if n is None or n == len(first):
        divergence = jensen_shannon(ramachandran_histogram(first, bins=bins), second)
        return NoiseFloor(np.array([divergence]), len(first), len(second_rad))
    if not 0 < n < len(first):
        raise InputError(f"a floor at n = {n} needs at least as many frames in the first half; it has {len(first)}")
    divergences = []
    for repeat in range(n_repeats):
        chosen = numpy_generator(seed, "noise floor", n, repeat).choice(len(first), n, replace=False)
        divergences.append(jensen_shannon(ramachandran_histogram(first[chosen], bins=bins), second))
    return NoiseFloor(np.array(divergences), n, len(second_rad))


def seam_share(angle_rad: np.ndarray, width_deg: float, weights: np.ndarray | None = None) -> float:
    """Share of angles within `width_deg` degrees of the seam at +-180 degrees.

    A surrogate that does not know that angles are periodic loses or piles up probability there.

    Parameters
    ----------
    angle_rad : np.ndarray, shape=(n,)
    width_deg : float
        Between 0 and 180.
    weights : np.ndarray, shape=(n,), optional
    """
    angles = _checked(angle_rad, 1)
    near = np.abs(wrap(angles)) > np.pi - np.radians(width_deg)
    return float(np.average(near, weights=_checked_weights(weights, len(angles))))


def _checked(angles_rad: np.ndarray, n_dimensions: int) -> np.ndarray:
    angles = np.asarray(angles_rad, dtype=np.float64)
    wanted = "(n,)" if n_dimensions == 1 else "(n, 2)"
    if angles.ndim != n_dimensions or (n_dimensions == 2 and angles.shape[1] != 2):
        raise InputError(f"angles of shape {angles.shape}: the shape must be {wanted}")
    if len(angles) == 0 or not np.isfinite(angles).all():
        n_bad = int((~np.isfinite(angles)).sum())
        raise InputError(f"{len(angles)} angles with {n_bad} values that are not finite: finite ones are needed")
    return angles


def _checked_weights(weights: np.ndarray | None, n: int) -> np.ndarray | None:
    if weights is None:
        return None
    checked = np.asarray(weights, dtype=np.float64)
    if checked.shape != (n,) or not np.isfinite(checked).all() or (checked < 0).any():
        raise InputError(f"weights of shape {checked.shape}: {n} finite, non-negative values are needed")
    return checked


def _normalised(counts: np.ndarray) -> np.ndarray:
    total = counts.sum()
    if not np.isfinite(total) or total <= 0 or (counts < 0).any():
        raise InputError("a histogram must be non-negative, finite and not empty")
    probabilities: np.ndarray = np.asarray(counts, dtype=np.float64) / total
    return probabilities
