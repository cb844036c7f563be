"""The picture of the `verdict` suite: half-width of dF(phi > 0) against core-seconds from zero, a line for each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.efficiency.figures import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION, canvas
from hpc_molgen.efficiency.suites.verdict_scores import TARGET_KT, Series, Truth

COLOURS = (BLACK, ORANGE, BLUE, GREEN, VERMILLION, "#56B4E9", "#CC79A7", GREY)  # Okabe and Ito, for colour-blind readers
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (4, 1.2, 1, 1.2)))  # of the first methods, the next ones, and so on
MARKERS = "os^vDPXp*h<>8d"  # for grey print
POINTS = 200
GAP, NEAR = 1.28, 5.0  # ratio of the heights of two labels, and of the times within which they could overlap


def draw(
    folder: Path, name: str, series: Mapping[str, Sequence[Series]], labels: Mapping[str, str], biased: set[str], truth: Truth
) -> str | None:
    """Write FOLDER/NAME.png (and .svg); return the file's name, or None where no method has an interval.

    Thin lines are seeds, the bold one their median; it begins where the fixed costs are paid, and goes on, dotted, by 1/sqrt of
    the time since then. Markers at its ends tell it from others in grey print. A method whose weights are wrong by design
    (`biased`) is a flat line at the error of its last estimate.
    Methods without an interval are named below.
    """
    curves = {key: lines for key, many in series.items() if (lines := _lines(many, truth, biased=key in biased))}
    if not curves:
        return None
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with canvas(folder, name, 1, 4.4) as (_, axes):
        axis, ends = axes[0], {}
        for number, (key, many) in enumerate(series.items()):
            colour = COLOURS[number % len(COLOURS)]
            if key not in curves:
                continue
            style, marker = DASHES[number // len(COLOURS) % len(DASHES)], MARKERS[number % len(MARKERS)]
            for x, y in curves[key]:
                axis.plot(x, y, color=colour, lw=0.6, alpha=0.45, ls=style)
            x, y = median_curve(curves[key])
            axis.plot(x, y, color=colour, lw=2.4, ls=style, solid_capstyle="round")
            axis.plot(x[[0, -1]], y[[0, -1]], marker, color=colour, ms=5, mec="white", mew=0.4)
            if key not in biased and y[-1] > TARGET_KT:
                fixed = float(np.median([one.fixed_cpu_s for one in many]))
                beyond = np.geomspace(y[-1], TARGET_KT, 50)
                axis.plot(fixed + (x[-1] - fixed) * (y[-1] / beyond) ** 2, beyond, color=colour, lw=0.9, ls=":")
            ends[key] = (x[-1], y[-1], colour)
        axis.set(xscale="log", yscale="log", xlabel="core-seconds from zero, all counted (first markers: fixed costs paid)")
        latest = axis.get_xlim()[1]
        for x, y, colour in (end for key, end in ends.items() if key in biased):
            axis.plot([x, latest], [y, y], color=colour, lw=0.9, ls=":")
        axis.set_ylabel("half-width of the 95 % interval of dF(φ > 0) / kT")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            side.set_minor_formatter(NullFormatter())
        _room_for_labels(axis, ends, labels)
        axis.axhline(TARGET_KT, color=GREY, lw=0.8, ls=":")
        axis.annotate(f"{TARGET_KT:g} kT", (axis.get_xlim()[0], TARGET_KT), (3, 3), textcoords="offset points", color=GREY)
        missing = [labels[key] for key in series if key not in curves]
        if missing:
            text = f"no interval in the budget: {', '.join(missing)}"
            axis.text(0.01, 0.01, text, transform=axis.transAxes, color=GREY, fontsize=7.5)
    return f"{name}.png"


def _lines(many: Sequence[Series], truth: Truth, *, biased: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Times and half-widths of each seed that has an interval; of a biased method, its error instead, once."""
    lines = []
    for one in many:
        known = one.known
        if not known:
            continue
        x = np.array([point.cpu_s for point in known])
        y = np.array([point.half_width_kt for point in known], dtype=np.float64)
        if biased:
            last = known[-1].free_energy_kt
            assert last is not None
            y = np.full(len(x), max(abs(last - truth.free_energy_kt), 1e-3))
        lines.append((x, y))
    return lines


def median_curve(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Median of curves (x, y), interpolated between the logarithms, over the times that all of them have."""
    low, high = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    if low >= high:  # nothing in common: the curve of the middle seed
        return sorted(lines, key=lambda line: float(line[0][-1]))[len(lines) // 2]
    grid = np.geomspace(low, high, POINTS)
    values = [np.interp(np.log(grid), np.log(x), np.log(y)) for x, y in lines]
    return grid, np.exp(np.median(values, axis=0))


def _room_for_labels(axis: Any, ends: Mapping[str, tuple[float, float, str]], labels: Mapping[str, str]) -> None:
    """Name each line at its end; names that would overlap move up."""
    from matplotlib.patheffects import withStroke

    low, high = axis.get_xlim()
    axis.set_xlim(low, high * (high / low) ** 0.12)
    placed: list[tuple[float, float]] = []
    for key, (x, y, colour) in sorted(ends.items(), key=lambda item: item[1][1]):
        place = y
        for other_x, other_place in placed:  # from the lowest
            if abs(np.log(x / other_x)) < np.log(NEAR) and place < other_place * GAP:
                place = other_place * GAP
        placed.append((x, place))
        style: dict[str, Any] = {"color": colour, "va": "center", "fontsize": 8.5, "zorder": 5}
        axis.text(x * 1.1, place, labels[key], **style, path_effects=[withStroke(linewidth=2.5, foreground="white")])
    bottom, top = axis.get_ylim()
    axis.set_ylim(min(bottom / 1.6, TARGET_KT / 2), max(top, *(1.2 * place for _, place in placed)))
