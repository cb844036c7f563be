"""How well a free-energy difference is known after so many core-seconds from zero: by MD, and by the surrogate.

The half-width of the 95 % interval of dF(cv > 0) from n effective samples is h = 1.96 / sqrt(n p (1 - p)) kT, p being the share
of cv > 0, and n = (t - F) / c after t core-seconds with the fixed costs F and the price c of a sample: those of the break-even
for the free-energy difference alone. A curve is drawn from t = 0, where nothing is known, over F, where it begins to fall.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.efficiency import figures
from hpc_molgen.efficiency.tables import Table, number, unbroken

if TYPE_CHECKING:
    from hpc_molgen.efficiency.document import Results

TARGET_KT = 0.1
WIDEST_KT = 2.0  # an interval wider than that says nothing
_NORMAL = 1.96
BEST_MD, PAID, THERE, ALONE, AS_RUN = (
    "best MD", "surrogate, everything paid", "surrogate, data there", "surrogate, energies alone", "MD as this run ran it"
)  # fmt: skip
_LOOKS: dict[str, tuple[str, Any, str]] = {  # colour, dashes, marker; dotted is what is extrapolated
    BEST_MD: (figures.BLACK, "-", "o"),
    PAID: (figures.BLUE, (0, (4, 1.6)), "s"),
    THERE: (figures.VERMILLION, (0, (6, 1.5, 1, 1.5)), "^"),
    ALONE: (figures.VERMILLION, (0, (6, 1.5, 1, 1.5)), "^"),
    AS_RUN: (figures.GREY, (0, (8, 2)), "D"),
}


@dataclass(frozen=True)
class Curve:
    """One way to the free-energy difference.

    Attributes
    ----------
    name : str
    fixed_cpu_s : float
        Spent before the first effective sample.
    cpu_s_per_sample, low, high : float
        Price of one more, with its 95 % interval.
    n_known : float
        Effective samples that this run has of it; what lies beyond is extrapolated.
    """

    name: str
    fixed_cpu_s: float
    cpu_s_per_sample: float
    low: float
    high: float
    n_known: float


@dataclass(frozen=True)
class Accuracy:
    """All curves of a run.

    Attributes
    ----------
    cv : str
    share : float
        Of cv > 0, by all MD.
    curves : tuple of Curve
        The best MD first.
    """

    cv: str
    share: float
    curves: tuple[Curve, ...]

    def samples_for(self, half_width_kt: float | np.ndarray) -> Any:
        """Effective samples that give this half-width."""
        return _NORMAL**2 / (np.square(half_width_kt) * self.share * (1 - self.share))

    def seconds_to(self, curve: Curve, half_width_kt: float | np.ndarray = TARGET_KT) -> tuple[Any, Any, Any]:
        """Core-seconds from zero until the half-width is that small, and their interval by that of the price."""
        n = self.samples_for(half_width_kt)
        value, low, high = (curve.fixed_cpu_s + n * price for price in (curve.cpu_s_per_sample, curve.low, curve.high))
        return value, low, high

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the core-seconds to the target."""
        ends = ("value", "low", "high")
        rows = [
            {
                "name": curve.name,
                "fixed_cpu_s": curve.fixed_cpu_s,
                "cpu_s_per_sample": dict(zip(ends, (curve.cpu_s_per_sample, curve.low, curve.high), strict=True)),
                "n_known": curve.n_known,
                "cpu_s_to_target": dict(zip(ends, self.seconds_to(curve), strict=True)),
            }
            for curve in self.curves
        ]
        return {"cv": self.cv, "share": self.share, "target_kt": TARGET_KT, "curves": rows}


def of_results(results: Results) -> Accuracy | None:
    """Return the curves of a run that has passed its gate, None for another."""
    contest = next((one for one in results.contests if one.name == "dF"), None)
    if contest is None:
        return None
    evidence = results.evidence
    known = results.findings.effective[evidence.reference.label]["dF"]
    md = {"share": known.share, "n_effective": known.n_effective}
    return _accuracy(evidence.torsions.names[0], results.costs.as_dict(), contest.as_dict(), md)


def of_record(record: Mapping[str, Any]) -> Accuracy | None:
    """Return the same from a report.json, which may be of a version that did not draw it."""
    contest, sets = record["break_even"].get("dF"), record["effective_samples"]
    if contest is None:
        return None
    all_md = sets[list(sets)[2]]  # held-out MD, training MD, all MD
    return _accuracy(record["torsions"]["names"][0], record["costs"], contest, all_md["dF"])


def _accuracy(cv: str, costs: Mapping[str, Any], contest: Mapping[str, Any], md: Mapping[str, Any]) -> Accuracy | None:
    paid = sum(costs[name] for name in ("data", "training", "validation", "checks"))
    prices, drawn = contest["md_cpu_s_per_effective_sample"], contest["effective_samples_drawn"]
    own, best = contest["surrogate_cpu_s_per_effective_sample"], contest["best_md"]
    listed = [(BEST_MD, costs["equilibration"], prices[best], md["n_effective"]), (PAID, paid, own, drawn)]
    if costs.get("frames_trained_on", True):
        listed.append((THERE, costs["training"], own, drawn))
    else:
        listed.append((ALONE, costs["data"] + costs["training"], own, drawn))
    if best != "as run" and "as run" in prices:
        listed.append((AS_RUN, costs["equilibration"], prices["as run"], md["n_effective"]))
    curves = [
        Curve(name, fixed, price["value"], price["low"], float("inf") if price["high"] is None else price["high"], n_known)
        for name, fixed, price, n_known in listed
        if price["value"] is not None and np.isfinite(price["value"])
    ]
    return Accuracy(cv, md["share"], tuple(curves)) if curves and 0 < md["share"] < 1 else None


def draw(directory: Path, found: Accuracy, name: str = "accuracy") -> None:
    """Draw the curves twice: over time as it passes from zero, and over its logarithm."""
    with figures.canvas(directory, name, 2, 3.1, sharey=True) as (figure, axes):
        ends = [_draw_into(axis, found, logarithmic=logarithmic) for axis, logarithmic in zip(axes, (False, True), strict=True)]
        axes[0].set_yscale("log")
        axes[0].set_ylim(min(ends) / 1.15, WIDEST_KT * 1.25)
        axes[0].set_ylabel(f"95 % half-width of dF({found.cv} > 0) / kT")
        for axis in axes:
            ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2) if tick > min(ends) / 1.15]
            axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.axhline(TARGET_KT, color=figures.GREY, lw=0.8, ls=":")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=3.5)


def _draw_into(axis: Any, found: Accuracy, *, logarithmic: bool) -> float:
    """Draw all curves into one axis; return the smallest half-width in it."""
    times = [found.seconds_to(curve)[0] for curve in found.curves]
    fixed = [curve.fixed_cpu_s for curve in found.curves]
    if logarithmic:
        first, last = max(min(fixed) / 3, max(times) * 1e-6, 1e-2), 4 * max(times)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_xlabel("core-seconds from zero, logarithmic")
    else:
        first, last = 0.0, max(2.5 * max(fixed), 1.3 * min(times))
        axis.set_xlabel("core-seconds from zero")
    axis.set_xlim(first, last)
    lowest = TARGET_KT
    for curve in found.curves:
        colour, dashes, marker = _LOOKS[curve.name]
        n_last = max((last - curve.fixed_cpu_s) / curve.cpu_s_per_sample, found.samples_for(WIDEST_KT))
        smallest = max(_half_width(found, n_last), TARGET_KT / 10)
        lowest = min(lowest, smallest)
        widths = np.geomspace(WIDEST_KT, smallest / 3, 400)  # beyond the axis, which clips
        value, low, high = found.seconds_to(curve, widths)
        known = widths >= _half_width(found, max(curve.n_known, 1e-9))
        axis.fill_betweenx(widths, low, np.minimum(high, 1e3 * last), color=colour, alpha=0.13, lw=0)
        axis.plot([first, curve.fixed_cpu_s, *value[known]], [WIDEST_KT, WIDEST_KT, *widths[known]], color=colour, ls=dashes,
                  lw=1.5, label=curve.name)  # fmt: skip
        axis.plot(value[~known], widths[~known], color=colour, ls=(0, (1, 2)), lw=1.0)
        axis.plot(curve.fixed_cpu_s, WIDEST_KT, marker, color=colour, ms=4.5, mfc="white")
        if known.any() and not known.all():
            axis.plot(value[known][-1], widths[known][-1], marker, color=colour, ms=4.5)
    return lowest


def _half_width(found: Accuracy, n: float) -> float:
    return float(_NORMAL / np.sqrt(n * found.share * (1 - found.share)))


def caption(found: Accuracy) -> str:
    """Say what the figure shows."""
    return (
        f"Cost against accuracy, from zero: h = 1.96 / sqrt(n p (1 - p)) with p = {number(100 * found.share)} % and "
        "n = (t - F) / c, fixed costs F and price c of an effective sample as in the break-even for dF alone. Left and right "
        "are the same curves over time and over its logarithm. Along the top fixed costs are paid (open markers) and nothing "
        "is known. Full markers: what this run has, for the best MD the reference's length at its speed; dotted beyond: "
        "extrapolated by 1/sqrt. Bands: 95 % intervals of c. Data there: the surrogate's reference data are not counted, and "
        "the MD that goes on from them is not drawn. One training: its seed is not in the bands."
    )


def table(found: Accuracy) -> Table:
    """Core-seconds from zero to the target."""
    rows = []
    for curve in found.curves:
        value, low, high = found.seconds_to(curve)
        reached = "yes" if curve.n_known >= found.samples_for(TARGET_KT) else "no, extrapolated"
        seconds = unbroken(f"{number(value)} [{number(low)}, {number(high)}]")
        rows.append([curve.name, number(curve.fixed_cpu_s), number(curve.cpu_s_per_sample, 2), seconds, reached])
    columns = (
        "method",
        "fixed costs / CPU s",
        "CPU s per effective sample",
        f"CPU s to ± {TARGET_KT:g} kT",
        "reached in this run",
    )
    note = (
        f"Until the 95 % interval of dF({found.cv} > 0) is ± {TARGET_KT:g} kT; brackets by the 95 % interval of the price of a "
        "sample."
    )
    return Table(f"Core-seconds from zero to dF({found.cv} > 0) ± {TARGET_KT:g} kT", columns, rows, note, (0, 4))
