"""What the curves of the `verdict` suite say: time to an accuracy, coverage of the truth, and where two of them cross.

The model of a curve, for extrapolation and for crossings, is h(t) = A / sqrt(t - F): half-width h of the 95 % interval, time t,
fixed costs F, and A^2, the price of precision in kT^2 CPU s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_molgen.efficiency.suites.verdict_scores import NORMAL, TARGET_KT, Series, Truth

REACHED, EXTRAPOLATED, NEVER = "reached", "extrapolated", "not reached: no crossing seen"


@dataclass(frozen=True)
class Outcome:
    """When a curve gets to an accuracy.

    Attributes
    ----------
    kind : str
        `REACHED`, `EXTRAPOLATED` or `NEVER`.
    cpu_s : float or None
    """

    kind: str
    cpu_s: float | None


def time_to(series: Series, target_kt: float = TARGET_KT) -> Outcome:
    """Return when the half-width stays at or below `target_kt`.

    The first checkpoint from which on it does; else the last one's time, scaled by 1 / sqrt(time since the fixed costs).
    """
    known = series.known
    if not known or series.checkpoints[-1].half_width_kt is None:
        return Outcome(NEVER, None)
    widths = [point.half_width_kt or 0.0 for point in known]
    if widths[-1] > target_kt:
        beyond = (known[-1].cpu_s - series.fixed_cpu_s) * (widths[-1] / target_kt) ** 2
        return Outcome(EXTRAPOLATED, series.fixed_cpu_s + beyond)
    above = [number for number, width in enumerate(widths) if width > target_kt]
    return Outcome(REACHED, known[above[-1] + 1 if above else 0].cpu_s)


def covers(series: Series, truth: Truth) -> bool | None:
    """Whether the last interval holds the truth, whose own interval is added in quadrature; None without an interval."""
    last = series.checkpoints[-1] if series.checkpoints else None
    if last is None or last.free_energy_kt is None or last.half_width_kt is None:
        return None
    return abs(last.free_energy_kt - truth.free_energy_kt) <= float(np.hypot(last.half_width_kt, truth.half_width_kt))


@dataclass(frozen=True)
class Price:
    """The model of a curve: fixed CPU seconds F and the price of precision A^2 in kT^2 CPU s."""

    fixed_cpu_s: float
    precision: float

    def time_to(self, half_width_kt: float) -> float:
        """CPU seconds until the half-width is that small."""
        return self.fixed_cpu_s + self.precision / half_width_kt**2

    def per_effective_sample(self, share: float) -> float:
        """CPU seconds for one effective sample of a state of probability `share`: n of them give 1.96 / sqrt(n p (1 - p))."""
        return self.precision * share * (1 - share) / NORMAL**2


def price(series: Sequence[Series]) -> Price | None:
    """Median over seeds of F, and of A^2 at the end of each curve; None where a seed has none."""
    ends = [(one.fixed_cpu_s, one.known[-1]) for one in series if one.known and one.checkpoints[-1].half_width_kt is not None]
    if not ends or len(ends) < len(series):
        return None
    precision = [(point.half_width_kt or 0.0) ** 2 * (point.cpu_s - fixed) for fixed, point in ends]
    return Price(float(np.median([fixed for fixed, _ in ends])), float(np.median(precision)))


@dataclass(frozen=True)
class Crossing:
    """Where the first of two curves goes below the second.

    Attributes
    ----------
    half_width_kt, cpu_s : float or None
        None where they do not cross.
    words : str
    """

    half_width_kt: float | None
    cpu_s: float | None
    words: str


def crossing(surrogate: Price, md: Price) -> Crossing:
    """Solve F_S + A_S^2 / h^2 = F_M + A_M^2 / h^2 for the half-width h below which the surrogate is cheaper."""
    fixed, gain = surrogate.fixed_cpu_s - md.fixed_cpu_s, md.precision - surrogate.precision
    if gain <= 0:
        return Crossing(None, None, "never" if fixed >= 0 else "ahead only while MD pays its own fixed costs")
    if fixed <= 0:
        return Crossing(None, None, "ahead from the beginning")
    half_width = float(np.sqrt(gain / fixed))
    cpu_s = md.time_to(half_width)
    return Crossing(half_width, cpu_s, f"below {half_width:.2g} kT, after {cpu_s:,.0f} CPU s")
