"""Figures of the report on generated trajectories; sets differ by colour, dashes and markers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.efficiency import figures
from hpc_molgen.efficiency.series_findings import GENERATED, HELD_OUT, MARKOV, SeriesFindings

if TYPE_CHECKING:
    from hpc_molgen.analysis.series import Bins

_COLOURS = {HELD_OUT: figures.BLACK, GENERATED: figures.ORANGE, MARKOV: figures.BLUE}
_DASHES: dict[str, Any] = {HELD_OUT: "-", GENERATED: (0, (4, 1.6)), MARKOV: (0, (6, 1.5, 1, 1.5))}
_MARKERS = {HELD_OUT: "o", GENERATED: "^", MARKOV: "s"}
_OF_FEATURES = ("", "o", "s", "^", "v", "D", "x", "+")
_LIMIT_KT = 8.0


def draw(directory: Path, findings: SeriesFindings) -> None:
    """Draw all figures."""
    _surfaces(directory, findings)
    _times(directory, findings)


def _surfaces(directory: Path, findings: SeriesFindings) -> None:
    shown = {name: findings.series[name] for name in (HELD_OUT, GENERATED, MARKOV)}
    with figures.canvas(directory, "surfaces", len(shown) + 1, 2.4) as (figure, axes):
        draw_surfaces(figure, axes[:-1], shown, findings.bins, findings.feature_names)
        draw_courses(axes[-1], {name: shown[name] for name in (HELD_OUT, GENERATED)}, findings.feature_names[0])


def draw_surfaces(figure: Any, axes: list[Any], shown: dict[str, list[np.ndarray]], bins: Bins, names: tuple[str, ...]) -> None:
    """Draw the free energy of the first features of some sets, in kT above the minimum of the first set."""
    plane = len(bins.columns) == 2
    top = None
    for axis, (name, series) in zip(axes, shown.items(), strict=True):
        counts = bins.counts(series).sum(axis=0)
        share = counts / counts.sum()
        top = share.max() if top is None else top
        with np.errstate(divide="ignore"):
            surface = -np.log(share / top)
        if plane:
            x, y = bins.edges
            inside = surface.reshape(len(x) + 1, len(y) + 1)[1:-1, 1:-1]
            image = axis.imshow(
                np.where(np.isfinite(inside), inside, np.nan).T, origin="lower", extent=(x[0], x[-1], y[0], y[-1]),
                cmap="YlGnBu_r", vmin=0, vmax=_LIMIT_KT, aspect="auto", interpolation="nearest",
            )  # fmt: skip
            axis.set_ylabel(names[1])
        else:
            centres = 0.5 * (bins.edges[0][1:] + bins.edges[0][:-1])
            axis.plot(centres, surface[1:-1], color=_COLOURS[name])
            axis.set_ylim(0, _LIMIT_KT)
        axis.set_xlabel(names[0])
        axis.set_title(name, color=_COLOURS[name], fontweight="bold")
    if plane:
        figure.colorbar(image, ax=axes, label="kT", shrink=0.85, extend="max", aspect=25)


def draw_courses(axis: Any, shown: dict[str, list[np.ndarray]], name: str) -> None:
    """Draw the first feature of the first trajectory of some sets, one below the other."""
    height = 1.2 * np.ptp(next(iter(shown.values()))[0][:, 0])
    for offset, (own, series) in enumerate(shown.items()):
        axis.plot(series[0][:2000, 0] - offset * height, color=_COLOURS[own], lw=0.5)
    axis.set_xlabel("frame")
    axis.set_yticks([])
    axis.set_title(f"{name} of one trajectory")


def _times(directory: Path, findings: SeriesFindings) -> None:
    with figures.canvas(directory, "kinetics", 3, 2.5) as (_, axes):
        correlation, scales, test = axes
        for name in (HELD_OUT, GENERATED, MARKOV):
            part = findings.sets[name]
            for column, curve in enumerate(part.autocorrelations):
                style = {"marker": _OF_FEATURES[column % len(_OF_FEATURES)], "markevery": max(1, len(curve) // 8), "ms": 3}
                line = {"color": _COLOURS[name], "ls": _DASHES[name], "lw": 1}
                correlation.plot(curve, label=name if column == 0 else None, **line, **style)
            for number_of in range(part.timescales.shape[1]):
                values = part.timescales[:, number_of]
                line = {"color": _COLOURS[name], "ls": _DASHES[name], "marker": _MARKERS[name], "ms": 3}
                scales.plot(findings.lags, values[:, 0], **line)
                scales.fill_between(findings.lags, values[:, 1], values[:, 2], color=_COLOURS[name], alpha=0.2, lw=0)
        correlation.set_xlabel("lag / frames")
        correlation.set_ylabel("autocorrelation")
        correlation.legend()
        scales.set(xscale="log", yscale="log", xlabel="lag / frames", ylabel="implied timescales / frames")
        for name, (predicted, estimated) in findings.chapman_kolmogorov.items():
            for state in range(predicted.shape[1]):
                x = findings.ck_lag * np.arange(1, len(predicted) + 1)
                test.plot(x, predicted[:, state], color=_COLOURS[name], ls=_DASHES[name], lw=1)
                test.plot(x, estimated[:, state], color=_COLOURS[name], marker=_MARKERS[name], ls="", ms=3.5)
        test.set_xlabel(f"multiples of lag {findings.ck_lag} / frames")
        test.set_ylabel("probability to be where one was")
