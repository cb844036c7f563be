"""What a repeat of a way of the suite `correction` gave: dF(phi > 0), weights, times, and how many samples count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_molgen.angles import wrap
from hpc_molgen.efficiency.suites import tempering
from hpc_molgen.efficiency.suites.verdict_methods import phi_psi
from hpc_molgen.efficiency.suites.verdict_scores import MIN_GROUPS, NORMAL, weighted_free_energy
from hpc_molgen.reweighting import WeightDiagnostics
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch


@dataclass(frozen=True)
class Outcome:
    """What one repeat of one way gave.

    Attributes
    ----------
    n : int
        Samples, or frames.
    cpu_s, wall_s : float
        Of drawing, ln q, energies and correction.
    fixed_cpu_s : float
        Before the first sample, and of the comparison with held-out MD.
    free_energy_kt, standard_error_kt, half_width_kt : float or None
        dF(phi > 0), and of its 95 % interval; None where too few independent parts have seen both sides.
    weights : WeightDiagnostics or None
        None where samples are correlated, so that their weights do not tell how many count.
    reasons : tuple of str
        Why the samples are not to be trusted; empty where they are.
    parts : dict
        CPU seconds by what they were spent on.
    facts : dict
        What else is known.
    """

    n: int
    cpu_s: float
    wall_s: float
    fixed_cpu_s: float
    free_energy_kt: float | None
    standard_error_kt: float | None
    half_width_kt: float | None
    weights: WeightDiagnostics | None
    reasons: tuple[str, ...] = ()
    parts: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


Difference = tuple[float | None, float | None, float | None]  # dF in kT, its standard error, half of its 95 % interval
NOT_KNOWN: Difference = (None, None, None)


def of_units(inside: np.ndarray, weights: np.ndarray, units: np.ndarray) -> Difference:
    """Return dF by the jackknife over independent parts, for weighted samples (n,)."""
    return of_groups(np.bincount(units, weights * inside), np.bincount(units, weights))


def of_groups(inside: np.ndarray, total: np.ndarray) -> Difference:
    """Return dF from the weights of groups (n_groups,); nothing where fewer than `MIN_GROUPS` have seen both sides."""
    inside, total = inside[total > 0], total[total > 0]
    if min(np.count_nonzero(inside > 0), np.count_nonzero(inside < total)) < MIN_GROUPS:
        return NOT_KNOWN
    found = tempering.free_energy(inside, total)
    return found["value"], found["standard_error"], found["half_width"]


def of_samples(system: MolecularSystem, positions_nm: np.ndarray, log_weight: np.ndarray) -> Difference:
    """Return dF of independent weighted samples; nothing where fewer than `MIN_GROUPS` of them are on either side."""
    inside, alive = inside_of(system, positions_nm), np.isfinite(log_weight)
    if min(np.count_nonzero(inside & alive), np.count_nonzero(~inside & alive)) < MIN_GROUPS:
        return NOT_KNOWN
    value, half_width = weighted_free_energy(inside, log_weight)
    return value, None if half_width is None else half_width / NORMAL, half_width


def inside_of(system: MolecularSystem, positions_nm: np.ndarray) -> np.ndarray:
    """Whether phi > 0, shape=(n,)."""
    inside: np.ndarray = wrap(phi_psi(system, positions_nm)[..., 0]) > 0
    return inside


def blind(found: Difference) -> list[str]:
    """Return why dF is not known, in words."""
    return ["too few independent parts have seen both sides of phi"] if found[1] is None else []


class Clock:
    """Adds up CPU and wall seconds by what they are spent on."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.wall_s, self._watch = 0.0, Stopwatch()

    def start(self) -> None:
        """Begin to count."""
        self._watch = Stopwatch()

    def enter(self, part: str) -> None:
        """Enter what has passed since the start, or the last entry."""
        self.parts[part] = self.parts.get(part, 0.0) + self._watch.cpu_s
        self.wall_s += self._watch.wall_s
        self.start()


def independent_samples(error_kt: float, share: float) -> float:
    """Return how many independent samples know dF of a state of probability `share` with that standard error."""
    return 1 / (error_kt**2 * share * (1 - share))


def effective(outcome: Outcome, share: float) -> dict[str, float | None]:
    """Return how many samples count: by the weights alone (Kish), and by what dF(phi > 0) is known to.

    Parameters
    ----------
    share : float
        Of phi > 0 in the Boltzmann distribution, p: n independent samples know dF to 1 / sqrt(n p (1 - p)).

    Returns
    -------
    dict
        kish (None where samples are correlated or have no weights), phi, and counted: the former where samples are independent,
        else the latter.
    """
    kish = outcome.weights.ess if outcome.weights is not None and not outcome.facts.get("moved") else None
    error = outcome.standard_error_kt
    phi = outcome.facts.get("n_effective") or (None if not error else independent_samples(error, share))
    return {"kish": kish, "phi": phi, "counted": kish if kish is not None else phi}
