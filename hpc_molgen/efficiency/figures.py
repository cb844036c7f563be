"""Figures of the report, each as PNG and SVG: reference black, raw orange, corrected blue, farm green (Okabe and Ito).

These colours differ for colour-blind readers; for grey print sets differ by their dashes and markers too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.analysis.divergence import RAMACHANDRAN_BINS, ramachandran_histogram
from hpc_molgen.efficiency.evidence import Conformations, Evidence, Farm

if TYPE_CHECKING:
    from hpc_molgen.analysis.kinetics import TicaModel
    from hpc_molgen.efficiency.costs import CostBook
    from hpc_molgen.efficiency.economics import Contest
    from hpc_molgen.efficiency.findings import Findings

BLACK, ORANGE, BLUE, GREEN, VERMILLION, GREY = "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#8a8f98"
COLOURS = {
    "held-out MD": BLACK,
    "training MD": GREY,
    "all MD": "#4b4f57",
    "raw samples": ORANGE,
    "corrected samples": BLUE,
}
DASHES: dict[str, Any] = {"held-out MD": "-", "raw samples": (0, (4, 1.6)), "corrected samples": (0, (6, 1.5, 1, 1.5))}
MARKERS = {"held-out MD": "o", "training MD": "s", "all MD": "D", "raw samples": "^", "corrected samples": "v"}
WIDTH_INCHES = 7.1  # the text width of A4
MAP_LIMIT_KT = 8.0
PROFILE_LIMIT_KT = 14.0  # samples that follow the Boltzmann distribution do not resolve more
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.4,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "svg.hashsalt": "hpc_molgen",  # the same run gives the same file
    "figure.dpi": 100,
}


@contextmanager
def canvas(directory: Path, name: str, columns: int, height_inches: float, **layout: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Give axes in one row, then write NAME.png and NAME.svg into the directory."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        FigureCanvasAgg(figure)
        axes = np.atleast_1d(figure.subplots(1, columns, **layout)).tolist()
        yield figure, axes
        directory.mkdir(parents=True, exist_ok=True)
        figure.savefig(directory / f"{name}.png", dpi=180)
        figure.set_layout_engine("none")  # it is laid out: once more for the second file would double the time
        figure.savefig(directory / f"{name}.svg", metadata={"Date": None})


def _degrees_axis(axis: Any, label: str) -> None:
    axis.set_ticks([-180, -90, 0, 90, 180])
    axis.set_label_text(f"{label} / degrees")


def maps(directory: Path, evidence: Evidence) -> None:
    """Free-energy maps on a common scale, continued beyond +-180 degrees so that the seam lies inside."""
    parts = [evidence.held_out, evidence.raw, *([evidence.corrected] if evidence.corrected else [])]
    histograms = [ramachandran_histogram(part.torsions_rad, part.weights) for part in parts]
    top, beyond = float(histograms[0].max()), RAMACHANDRAN_BINS // 12
    edge = 180 + beyond * 360 / RAMACHANDRAN_BINS
    with canvas(directory, "maps", len(parts), 2.75, sharey=True) as (figure, axes):
        for axis, part, histogram in zip(axes, parts, histograms, strict=True):
            with np.errstate(divide="ignore"):
                surface = -np.log(np.pad(histogram, beyond, mode="wrap") / top)
            surface[~np.isfinite(surface)] = np.nan
            extent = (-edge, edge, -edge, edge)
            image = axis.imshow(
                surface.T, origin="lower", extent=extent, cmap="YlGnBu_r", vmin=-0.5, vmax=MAP_LIMIT_KT, interpolation="nearest"
            )
            for seam in (-180, 180):
                axis.axvline(seam, color=BLACK, lw=0.6, ls=(0, (3, 3)))
                axis.axhline(seam, color=BLACK, lw=0.6, ls=(0, (3, 3)))
            axis.set_title(part.label, color=COLOURS[part.label], fontweight="bold")
            _degrees_axis(axis.xaxis, evidence.torsions.names[0])
        _degrees_axis(axes[0].yaxis, evidence.torsions.names[1])
        figure.colorbar(image, ax=axes, label="-ln(p / highest p of MD)  (kT)", shrink=0.85, extend="max", aspect=25)


def profile(directory: Path, evidence: Evidence, findings: Findings) -> None:
    """Free energy along the CV with intervals, and the free-energy differences of all sets."""
    cv = evidence.torsions.names[0]
    shown = [label for label in ("held-out MD", "raw samples", "corrected samples") if label in findings.profiles]
    with canvas(directory, "profile", 2, 2.9, gridspec_kw={"width_ratios": [2.1, 1]}) as (_, axes):
        left, right = axes
        for label in shown:
            curve = findings.profiles[label]
            x = np.degrees(curve.centres_rad)
            left.fill_between(x, curve.low, np.minimum(curve.high, 1e3), color=COLOURS[label], alpha=0.22, lw=0)
            left.plot(x, curve.value, color=COLOURS[label], ls=DASHES[label], label=label)
        highest = float(np.nanmax(findings.profiles["held-out MD"].value))
        left.set_ylim(-0.5, min(highest + 3.0, PROFILE_LIMIT_KT))
        left.set_xlim(-180, 180)
        _degrees_axis(left.xaxis, cv)
        left.set_ylabel("free energy / kT")
        kt = findings.profiles["held-out MD"].kt_kj_mol
        second = left.secondary_yaxis("right", functions=(lambda f: f * kt, lambda f: f / kt))
        second.set_ylabel("kJ/mol")
        left.legend(loc="upper left")
        order = [label for label in COLOURS if label in findings.delta_f]
        for row, name in enumerate(order):
            estimate = findings.delta_f[name]
            if np.isfinite([estimate.value, estimate.low, estimate.high]).all():
                # a skewed bootstrap may leave its own estimate outside
                ends = np.maximum([[estimate.value - estimate.low], [estimate.high - estimate.value]], 0.0)
                right.errorbar(estimate.value, row, xerr=ends, fmt=MARKERS[name], color=COLOURS[name], capsize=2.5, ms=4)
            else:
                right.text(0.5, row, "no estimate", transform=right.get_yaxis_transform(), ha="center", va="center", color=GREY)
        reference = findings.delta_f["held-out MD"]
        if np.isfinite([reference.low, reference.high]).all():
            right.axvspan(reference.low, reference.high, color=BLACK, alpha=0.08, lw=0)
        right.set_yticks(range(len(order)), order)
        right.set_ylim(len(order) - 0.5, -0.5)
        right.set_xlabel(f"dF({cv} > 0) / kT")


def energies(directory: Path, evidence: Evidence) -> None:
    """Distributions of the reduced energy before and after the correction, against held-out MD."""
    reference = evidence.held_out
    low, high = np.quantile(reference.reduced_energy[np.isfinite(reference.reduced_energy)], [0.0005, 0.9995])
    low, high = low - 0.05 * (high - low), high + 0.15 * (high - low)
    bins = np.linspace(low, high, 81)
    with canvas(directory, "energies", 1, 2.7) as (_, (axis,)):
        for part in [reference, evidence.raw, *([evidence.corrected] if evidence.corrected else [])]:
            density, _ = np.histogram(part.reduced_energy, bins, weights=part.weights)
            beyond = float(part.weights[~((part.reduced_energy >= low) & (part.reduced_energy <= high))].sum())
            label = part.label + (f" ({beyond:.1%} of the weight outside the axis)" if beyond > 5e-4 else "")
            if part is reference:
                axis.stairs(density / np.diff(bins), bins, fill=True, color=BLACK, alpha=0.15)
            style = {"color": COLOURS[part.label], "ls": DASHES[part.label], "lw": 1.4}
            axis.stairs(density / np.diff(bins), bins, label=label, **style)
        axis.set_xlabel("reduced potential energy u = U / kT")
        axis.set_ylabel("probability density / (1/kT)")
        axis.set_xlim(low, high)
        axis.legend()


def weights(directory: Path, corrected: Conformations) -> None:
    """Sorted weights and their cumulative share."""
    ordered = np.sort(corrected.weights)[::-1]
    rank = np.arange(1, len(ordered) + 1)
    with canvas(directory, "weights", 2, 2.5) as (_, (left, right)):
        positive = ordered > ordered[0] * 1e-12
        left.loglog(rank[positive], ordered[positive] * len(ordered), color=BLUE)
        left.axhline(1, color=GREY, lw=0.8, ls="--")
        left.set_xlabel("rank of the sample")
        left.set_ylabel("weight / mean weight")
        left.minorticks_off()
        left.set_ylim(bottom=max(1e-6, float(ordered[positive][-1]) * len(ordered)))
        left.annotate("equal weights", (1, 1), (2, 3), textcoords="offset points", color=GREY, fontsize=7)
        right.plot(100 * rank / len(rank), 100 * np.cumsum(ordered), color=BLUE)
        right.plot([0, 100], [0, 100], color=GREY, lw=0.8, ls="--")
        right.set_xlabel("samples, heaviest first / %")
        right.set_ylabel("share of the total weight / %")
        right.set_xlim(0, 100)
        right.set_ylim(0, 101)


def training(directory: Path, log: list[dict[str, Any]]) -> None:
    """Loss on training batches and on held-out walkers."""
    with canvas(directory, "training", 1, 2.4) as (_, (axis,)):
        for key, colour, label, style in (
            ("loss", GREY, "training batches", "-"),
            ("held_out_loss", BLUE, "held-out walkers (EMA)", "o-"),
        ):
            points = [(record["step"], record[key]) for record in log if key in record]
            if points:
                axis.plot(*np.array(points).T, style, color=colour, label=label, ms=3.5)
        axis.set_xlabel("training step")
        axis.set_ylabel("loss")
        axis.legend()


def farm(directory: Path, frames: Farm) -> None:
    """Potential energy and heavy-atom RMSD of every replica."""
    with canvas(directory, "farm", 2, 2.5) as (_, axes):
        for axis, values, label in zip(
            axes,
            (frames.energy_kj_mol, frames.rmsd_nm),
            ("potential energy / (kJ/mol)", "heavy-atom RMSD to the start / nm"),
            strict=True,
        ):
            for replica in np.unique(frames.replica):
                chosen = frames.replica == replica
                axis.plot(frames.time_ps[chosen], values[chosen], color=GREEN, lw=0.5, alpha=0.35)
            times, rows = np.unique(np.round(frames.time_ps, 6), return_inverse=True)
            medians = [float(np.median(values[rows == row])) for row in range(len(times))]
            axis.plot(times, medians, color=BLACK, lw=1.2, label="median of the replicas")
            axis.set_xlabel("time after equilibration / ps")
            axis.set_ylabel(label)
            axis.legend()


def tica(directory: Path, evidence: Evidence, model: TicaModel, lag: str) -> None:
    """Farm frames on the components of the reference."""
    assert evidence.farm is not None
    reference, frames = model.project(evidence.reference_rotatable_rad), model.project(evidence.farm.rotatable_rad)
    both = np.concatenate([reference, frames])
    span = [(float(column.min()), float(column.max())) for column in both.T]
    with canvas(directory, "tica", 1, 3.1) as (figure, (axis,)):
        density, x, y = np.histogram2d(reference[:, 0], reference[:, 1], 80, span, weights=evidence.reference.weights)
        with np.errstate(divide="ignore"):
            surface = -np.log(density / density.max())
        surface[~np.isfinite(surface)] = np.nan
        image = axis.imshow(
            surface.T, origin="lower", extent=(x[0], x[-1], y[0], y[-1]), aspect="auto", cmap="Greys_r", vmin=-1, vmax=11
        )
        axis.scatter(frames[:, 0], frames[:, 1], s=5, color=GREEN, alpha=0.6, lw=0, label="farm frames", rasterized=True)
        first = np.unique(evidence.farm.replica, return_index=True)[1]
        axis.scatter(
            frames[first, 0],
            frames[first, 1],
            s=26,
            facecolor="white",
            edgecolor=GREEN,
            lw=1.3,
            label="first frame of a replica",
        )
        axis.set_xlabel(f"component 1 (lag {lag})")
        axis.set_ylabel("component 2")
        axis.legend(loc="best", markerscale=1.5, frameon=True)
        figure.colorbar(image, ax=axis, label="-ln p of the reference, weighted (kT)", shrink=0.9)


def break_even(directory: Path, contests: list[Contest], costs: CostBook, names: dict[str, str]) -> None:
    """Cost against effective samples, for MD and for the surrogate, with n* and n_0."""
    paid = costs.data + costs.training + costs.validation + costs.checks
    chosen = [contest for contest in contests if contest.name != "Kish"]
    with canvas(directory, "break-even", len(chosen), 3.0, sharey=True) as (figure, axes):
        for axis, contest in zip(axes, chosen, strict=True):
            star = contest.scenarios[0].n_star
            top = 30 * max(value for value in (star, contest.n_0, contest.n_drawn, 100) if np.isfinite(value))
            n = np.geomspace(1, top, 120)
            md, surrogate = contest.md[contest.best], contest.surrogate
            for cost, fixed, colour, label, dashes in (
                (md, costs.equilibration, BLACK, "best MD", "-"),
                (surrogate, paid, BLUE, "surrogate, everything paid", (0, (4, 1.6))),
            ):
                low, high = cost.interval()
                axis.fill_between(n, fixed + n * low, np.minimum(fixed + n * high, 1e12), color=colour, alpha=0.15, lw=0)
                axis.plot(n, fixed + n * cost.value, color=colour, ls=dashes, label=label)
            axis.plot(
                n,
                costs.training + n * surrogate.value,
                color=BLUE,
                ls=(0, (6, 1.5, 1, 1.5)),
                lw=1,
                label="surrogate, data there",
            )
            axis.set_xscale("log")
            axis.set_yscale("log")
            for row, (value, name) in enumerate(((contest.n_0, "n$_0$"), (star, "n*"), (contest.n_drawn, "drawn"))):
                if np.isfinite(value) and value >= 1:
                    colour = VERMILLION if name == "n*" else GREY
                    axis.axvline(value, color=colour, lw=1.4 if name == "n*" else 0.8, ls=":")
                    place: dict[str, Any] = {
                        "xycoords": ("data", "axes fraction"),
                        "textcoords": "offset points",
                        "ha": "right",
                    }
                    axis.annotate(name, (value, 0.0), (-2, 3 + 9 * row), color=colour, **place)
            axis.set_xlabel("effective samples")
            axis.set_title(names[contest.name])
            axis.minorticks_off()
        axes[0].set_ylim(bottom=axes[0].get_ylim()[0] / 12)  # room for the names of the lines
        axes[0].set_ylabel("cost / CPU-core seconds")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
