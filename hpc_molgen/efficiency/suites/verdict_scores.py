"""Scores of the `verdict` suite: dF(phi > 0) with its interval, and distances to the truth, at the checkpoints of a curve.

A curve is a list of checkpoints: what a method knows after so many CPU seconds from zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import wasserstein_distance

from hpc_molgen import reweighting
from hpc_molgen.analysis.divergence import jensen_shannon
from hpc_molgen.angles import wrap
from hpc_molgen.efficiency.suites import tempering
from hpc_molgen.efficiency.suites.verdict_sums import Sums, side_by_side, sum_frames

TARGET_KT = 0.1
STEP = 1.2  # ratio of the times of two checkpoints
MIN_GROUPS = 5  # that have seen both sides, for an interval
NORMAL = float(ndtri(0.975))


@dataclass(frozen=True)
class Truth:
    """What all methods are compared with.

    Attributes
    ----------
    free_energy_kt, half_width_kt : float
        dF(phi > 0) and half of its 95 % interval.
    histogram : np.ndarray, shape=(2, 60, 60)
        Of two halves of the ladders.
    energies_kt, energy_weights : np.ndarray, shape=(n,)
    facts : dict
        How it was made.
    """

    free_energy_kt: float
    half_width_kt: float
    histogram: np.ndarray
    energies_kt: np.ndarray
    energy_weights: np.ndarray
    facts: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """What a method knows after so much work.

    Attributes
    ----------
    cpu_s, wall_s : float
        Since it began from zero.
    free_energy_kt, half_width_kt : float or None
        dF(phi > 0) and half of its own 95 % interval; None where too few groups have seen both sides (`MIN_GROUPS`).
    total_variation, divergence : float
        Of (phi, psi) on 60 x 60 bins against the truth; Jensen-Shannon, in nats.
    energy_w1_kt : float or None
        Wasserstein-1 distance of the potential energies; None for constrained molecules, whose energies lack the bonds.
    n_frames : int
    """

    cpu_s: float
    wall_s: float
    free_energy_kt: float | None
    half_width_kt: float | None
    total_variation: float
    divergence: float
    energy_w1_kt: float | None
    n_frames: int


@dataclass(frozen=True)
class Series:
    """One method with one seed: its curve.

    Attributes
    ----------
    key : str
        Of the method.
    repeat : int
    fixed_cpu_s : float
        Spent before the first frame that counts: bias scan and minimisation, or data and training.
    checkpoints : list of Checkpoint
    facts : dict
        What else is known: k-hat, simulated ns, the parts of the fixed costs.
    """

    key: str
    repeat: int
    fixed_cpu_s: float
    checkpoints: list[Checkpoint]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> list[Checkpoint]:
        """Checkpoints that have an interval."""
        return [point for point in self.checkpoints if point.half_width_kt is not None]


def group_free_energy(sums: Sums) -> tuple[float | None, float | None]:
    """Return dF in kT and half of its 95 % interval, by the jackknife over groups (`tempering.estimate`).

    None for both where fewer than `MIN_GROUPS` groups have seen phi > 0, or phi <= 0: the jackknife of a logarithm says nothing
    of a state that a few groups happened to find.
    """
    alive = sums.total > 0
    inside, total = sums.inside[alive], sums.total[alive]
    if min(np.count_nonzero(inside > 0), np.count_nonzero(inside < total)) < MIN_GROUPS:
        return None, None
    found = tempering.free_energy(inside, total)
    return (None, None) if found["half_width"] is None else (found["value"], found["half_width"])


def weighted_free_energy(inside: np.ndarray, log_weights: np.ndarray) -> tuple[float | None, float | None]:
    """Return dF in kT and half of its 95 % interval for independent samples with importance weights.

    The delta method for a self-normalised estimate: with normalised weights w and indicators x, p = sum w x has the variance
    sum w^2 (x - p)^2 (Owen 2013, Monte Carlo theory, methods and examples, eq. 9.9), and dF = -ln[p / (1 - p)] the standard
    error sqrt(var) / [p (1 - p)].

    Parameters
    ----------
    inside : np.ndarray, shape=(n,), bool
    log_weights : np.ndarray, shape=(n,)
        Unnormalised; -inf for samples without weight.
    """
    if np.isneginf(log_weights).all():
        return None, None
    weights = reweighting.normalised_weights(log_weights)
    share = float(weights[inside].sum())
    other = float(weights[~inside].sum())
    seen = min(np.count_nonzero(weights[inside]), np.count_nonzero(weights[~inside]))
    if share <= 0 or other <= 0 or seen < 2:
        return None, None
    error = float(np.sqrt(np.sum((weights * (inside - share)) ** 2))) / (share * other)
    return float(np.log(other / share)), NORMAL * error


def checkpoint(sums: Sums, found: tuple[float | None, float | None], truth: Truth, cpu_s: float, wall_s: float) -> Checkpoint:
    """Compare sums with the truth; `found` is dF with its half-width."""
    own, true = sums.histogram.sum(axis=0), truth.histogram.sum(axis=0)
    w1 = None
    if len(sums.energies_kt) and sums.energy_weights.sum() > 0:
        w1 = float(wasserstein_distance(sums.energies_kt, truth.energies_kt, sums.energy_weights, truth.energy_weights))
    return Checkpoint(cpu_s, wall_s, *found, total_variation(own, true), jensen_shannon(own, true), w1, sums.n_frames)


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Return half of the summed absolute differences of two histograms of the same bins, normalised here: between 0 and 1."""
    return float(0.5 * np.abs(p / p.sum() - q / q.sum()).sum())


def grouped_checkpoints(
    phi_psi_rad: np.ndarray, log_weights: np.ndarray, energies_kt: np.ndarray, units: np.ndarray, truth: Truth,
    fixed_s: tuple[float, float], sample_s: tuple[float, float],
) -> list[Checkpoint]:  # fmt: skip
    """Checkpoints of weighted samples that are independent only between units (populations, chains), of which ever more come.

    Parameters
    ----------
    phi_psi_rad, log_weights, energies_kt, fixed_s, sample_s
        As in `weighted_checkpoints`.
    units : np.ndarray, shape=(n,), int
    """
    weights = np.exp(log_weights - log_weights.max())
    order = np.argsort(units, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(units[order])) + 1)
    parts = [sum_frames(phi_psi_rad[row, None], weights[row, None], energies_kt[row], weights[row]) for row in rows]
    ends, points = np.cumsum([len(row) for row in rows]), []
    for n in prefixes(len(parts), MIN_GROUPS):
        sums = side_by_side(parts[:n])
        spent = [fixed + float(ends[n - 1]) * each for fixed, each in zip(fixed_s, sample_s, strict=True)]
        points.append(checkpoint(sums, group_free_energy(sums), truth, spent[0], spent[1]))
    return points


def prefixes(n: int, first: int = 200) -> list[int]:
    """Numbers of samples at which weighted samples are looked at, from about `first`: growing by `STEP`, the last one n."""
    found = [n]
    while found[-1] / STEP >= max(1, min(first, n)):
        found.append(int(found[-1] / STEP))
    return found[::-1]


def weighted_checkpoints(
    phi_psi_rad: np.ndarray, log_weights: np.ndarray, energies_kt: np.ndarray, truth: Truth,
    fixed_s: tuple[float, float], sample_s: tuple[float, float],
) -> list[Checkpoint]:  # fmt: skip
    """Checkpoints of independent weighted samples, of which a method would have drawn ever more.

    Parameters
    ----------
    phi_psi_rad : np.ndarray, shape=(n, 2)
    log_weights, energies_kt : np.ndarray, shape=(n,)
    fixed_s, sample_s : (float, float)
        CPU and wall seconds before the first sample, and of each.
    """
    inside, points = wrap(phi_psi_rad[:, 0]) > 0, []
    for n in prefixes(len(log_weights)):
        if np.isneginf(log_weights[:n]).all():
            continue
        weights = reweighting.normalised_weights(log_weights[:n])
        sums = sum_frames(phi_psi_rad[:n, None], weights[:, None], energies_kt[:n], weights)
        spent = [fixed + n * each for fixed, each in zip(fixed_s, sample_s, strict=True)]
        points.append(checkpoint(sums, weighted_free_energy(inside[:n], log_weights[:n]), truth, spent[0], spent[1]))
    return points
