"""Figures of the report on many molecules; seen and unseen ones differ by marker, filling and label, not by colour alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.efficiency import figures
from hpc_molgen.efficiency.molecules_findings import ALONE, GIVEN, SEEN, UNSEEN

if TYPE_CHECKING:
    from hpc_molgen.efficiency.molecules_findings import Molecule

_STYLES: dict[str, dict[str, Any]] = {
    SEEN: {"marker": "o", "color": figures.BLUE, "mfc": figures.BLUE, "label": "the surrogate learnt from it"},
    UNSEEN: {"marker": "s", "color": figures.VERMILLION, "mfc": "white", "label": "unseen"},
    GIVEN: {"marker": "^", "color": figures.GREEN, "mfc": figures.GREEN, "label": "surrogate from elsewhere"},
    ALONE: {"marker": "D", "color": figures.BLACK, "mfc": figures.BLACK, "label": "surrogate of its own"},
}
_RAW = {"marker": "x", "color": figures.GREY, "label": "raw samples"}
_COSTS = (
    ("reference_cpu_s", "reference MD", figures.GREY, ""),
    ("own_cpu_s", "own part", figures.BLUE, "///"),
    ("training_part_cpu_s", "share of the shared training", figures.ORANGE, "..."),
)
TALLEST_INCHES = 9.5


def quality(directory: Path, molecules: Sequence[Molecule]) -> None:
    """Draw ESS, and divergence over the noise floor, of every molecule."""
    with _rows(directory, "quality", molecules, 2) as (left, right):
        for row, molecule in enumerate(molecules):
            style = {**_STYLES[molecule.role], "ls": "", "ms": 5}
            if molecule.ess_fraction:
                left.plot(100 * molecule.ess_fraction, row, **style)
            raw, corrected = molecule.ratio["raw"], molecule.ratio["corrected"]
            if raw is not None and corrected is not None:
                right.plot([raw, corrected], [row, row], color=figures.GREY, lw=0.6)
            if raw is not None:
                right.plot(raw, row, **_RAW, ls="", ms=4.5)
            if corrected is not None:
                right.plot(corrected, row, **style)
        _percent_axis(left, [100 * molecule.ess_fraction for molecule in molecules if molecule.ess_fraction])
        left.set_xlabel("effective sample size / %")
        right.axvline(1, color=figures.BLACK, lw=0.7, ls="--")
        right.set_xlabel("divergence / noise floor (dashed: 1)")
        shown = {text: handle for axis in (left, right) for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
        if shown:
            left.figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown))


def _percent_axis(axis: Any, values: list[float]) -> None:
    """Make the axis of ESS logarithmic, up to 100 %, with plain numbers."""
    if not values:
        return
    axis.set_xscale("log")
    lowest = min(values) / 1.6
    axis.set_xlim(lowest, 120)
    marks = [digit * 10.0**power for power in range(-6, 3) for digit in (1, 3)]
    ticks = [mark for mark in marks if lowest <= mark <= 100]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def costs(directory: Path, molecules: Sequence[Molecule]) -> None:
    """Draw what every molecule cost, by what it was for."""
    with _rows(directory, "costs", molecules, 1) as (axis,):
        start = np.zeros(len(molecules))
        for name, label, colour, hatch in _COSTS:
            seconds = np.array([getattr(molecule, name) for molecule in molecules])
            if seconds.any():
                look = {"color": colour, "edgecolor": "white", "hatch": hatch, "lw": 0.4}
                axis.barh(range(len(molecules)), seconds, left=start, label=label, height=0.7, **look)
            start += seconds
        axis.set_xlabel("CPU s")
        axis.figure.legend(loc="outside upper center", ncols=len(_COSTS))


@contextmanager
def _rows(directory: Path, name: str, molecules: Sequence[Molecule], columns: int) -> Iterator[list[Any]]:
    """Give axes with a line for each molecule, the first on top."""
    height = min(TALLEST_INCHES, 1.3 + 0.2 * len(molecules))
    with figures.canvas(directory, name, columns, height, sharey=True) as (_, axes):
        axes[0].set_yticks(range(len(molecules)), [molecule.label for molecule in molecules])
        axes[0].set_ylim(len(molecules) - 0.5, -0.5)
        yield axes
