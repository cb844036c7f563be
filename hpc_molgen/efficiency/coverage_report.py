"""Whether the surrogate covers the ensemble, for the report: text, tables, figure, and reasons for the gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen import coverage, datasets
from hpc_molgen.analysis.free_energy import Estimate
from hpc_molgen.efficiency import figures
from hpc_molgen.efficiency.tables import Table, number, share, share_interval, unbroken
from hpc_molgen.ensemble import read_ensemble

if TYPE_CHECKING:
    from hpc_molgen.run import Run

TITLE = "Does the surrogate cover the ensemble?"
FINDINGS = {"": "", "missing": "missing mode", "disputed": "MD not converged?", "beyond MD": "not seen by MD"}
FEW_UNITS = 8
MOST_ROWS = 12
AXIS_KT = 25.0  # from the centre; what lies further out is drawn at the edge
FLOOR = 2e-4  # where the logarithmic axis of the figure ends


def density_of(diagnostics: dict[str, Any]) -> dict[str, Any] | None:
    """Return the comparison by ln q from the correct stage's diagnostics, None where the run has none."""
    found = (diagnostics.get("coverage") or {}).get("density") if diagnostics["weighted"] else None
    return dict(found) if found else None


def missing(diagnostics: dict[str, Any]) -> list[str] | None:
    """Return the reasons why a mode is missing, empty when nothing says so; None when nothing was compared."""
    found = diagnostics.get("coverage")
    if not found or not (density_of(diagnostics) or found["basins"]):
        return None
    return list(found["missing"])


def text(diagnostics: dict[str, Any]) -> list[str]:
    """Return what the section says before its tables."""
    found = diagnostics.get("coverage")
    if not found:
        return ["Not checked: this run's stage 'correct' was made by an earlier version."]
    units = f"{found['n_units']} independent parts of held-out MD"
    lines = [f"No density of conformations was compared: {found['skipped']}."] if found["skipped"] else []
    if density_of(diagnostics):
        lines = [
            f"ln q of {found['n_frames']:,} frames, spread over {units}, took {number(found['cpu_s'])} CPU s with all that "
            "follows. Samples alone cannot show a mode that the surrogate lacks; frames of MD can, if MD has been there. "
            "How to read it: forward and reverse ESS, and the three ln Z, agree when the surrogate covers the ensemble; a "
            "forward ESS near zero, or an ln Z of the samples below BAR's, means conformations that it does not make."
        ]
    if found["n_units"] < FEW_UNITS:
        lines.append(f"With {units} the intervals are so wide that only coarse faults show.")
    lines += [f"Missing: {reason}." for reason in found["missing"]]
    lines += [f"Before the samples were moved: {reason}." for reason in found["before"]]
    named = {kind: [row["name"] for row in found["basins"] if row["finding"] == kind] for kind in FINDINGS}
    if named["disputed"]:
        lines.append(
            f"Basin {', '.join(named['disputed'])}: MD holds far more than the samples, but ln q is there as dense as "
            "elsewhere. It is MD's population that is in doubt."
        )
    if named["beyond MD"]:
        lines.append(
            f"Basin {', '.join(named['beyond MD'])}: the surrogate puts mass where held-out MD (almost) never was. The "
            "reference may be the one that misses it."
        )
    return lines


def tables(diagnostics: dict[str, Any]) -> tuple[Table, ...]:
    """Return the table of ln w, where there is ln q, and that of the basins."""
    found = diagnostics.get("coverage")
    if not found:
        return ()
    density = density_of(diagnostics)
    shown = [_density_table(density, found["log_q"])] if density else []
    if found["basins"]:
        shown.append(_basin_table(found["basins"], weighted=bool(diagnostics["weighted"])))
    return tuple(shown)


def _estimate(values: dict[str, float | None]) -> Estimate:
    """Undo what JSON made of an estimate; null is nan."""
    return Estimate(**{name: float("nan") if value is None else value for name, value in values.items()})


def _with_error(found: Estimate, error: float | None = None) -> str:
    largest = np.nanmax([found.standard_error, np.nan if error is None else error, 0.0])
    return unbroken(f"{found.value:.3f} ± {largest:.3f}") if np.isfinite(found.value) else "no estimate"


def _percent(found: Estimate) -> str:
    return "below 0.01 %" if found.high < 1e-4 else f"{share_interval(found)} %"


def _density_table(density: dict[str, Any], log_q: dict[str, Any]) -> Table:
    parts = {name: _estimate(value) for name, value in density.items() if isinstance(value, dict)}
    bar = _with_error(parts["log_z_bar"], density["bar_error"])
    rows = [
        ["reverse ESS, from the samples", _percent(parts["reverse_ess"])],
        ["forward ESS, from held-out MD", _percent(parts["forward_ess"])],
        ["ln Z, from the samples (ln of the mean of w)", _with_error(parts["log_z_samples"])],
        ["ln Z, from held-out MD (-ln of the mean of 1/w)", _with_error(parts["log_z_frames"])],
        ["ln Z, Bennett acceptance ratio of both", bar],
        ["ln Z, Bennett acceptance ratio minus samples", _with_error(parts["deficit"])],
        ["overlap of surrogate and MD (0 none, 1 all)", number(density["overlap"])],
        [
            "held-out MD with a larger w than the 99.9th percentile of the samples (0.1 % is expected)",
            _percent(parts["beyond_percentile"]),
        ],
        [
            f"held-out MD with a larger w than every sample (the heaviest sample stands for {share(density['largest_share'])})",
            _percent(parts["beyond_largest"]),
        ],
        [
            f"ln q of {log_q['n']} samples computed again from their positions, median difference ± half of the central 68 %",
            unbroken(f"{log_q['median']:+.4f} ± {log_q['spread']:.4f}") if log_q["n"] else "-",
        ],
    ]
    note = (
        "w = exp(-u) / q. Brackets: 95 % intervals; ±: standard errors; bootstrap over samples and over trajectories. Forward "
        "ESS: 1 / (E[w] E[1/w]) over held-out MD. Z: configuration integral without translation and rotation, in nm^(3N-6); "
        f"its value means nothing, differences do. The acceptance ratio takes the MD frames as {density['n_decorrelated']:,} "
        "independent ones."
    )
    return Table("Weights of samples against weights of held-out MD", ("quantity", "value"), rows, note)


def _basin_table(basins: list[dict[str, Any]], *, weighted: bool) -> Table:
    found = [row for row in basins if row["finding"]]
    shown = (
        basins if len(basins) <= MOST_ROWS else [row for index, row in enumerate(basins) if index < MOST_ROWS or row in found]
    )
    rows = []
    for row in shown:
        corrected = share_interval(_estimate(row["corrected"])) if weighted and row["corrected"] else "-"
        sets = [share_interval(_estimate(row[name])) for name in ("frames", "samples")]
        dense = number(row["relative_density"], 2) if weighted else "-"
        rows.append([row["name"], *sets, corrected, dense, FINDINGS[row["finding"]]])
    left_out = f" The {len(basins) - len(shown)} least populated ones are left out." if len(shown) < len(basins) else ""
    note = (
        "Percent, 95 % intervals. Density of q: median of q / p over the basin's MD frames, over that of the weighted samples; "
        "1: as elsewhere, 0: not covered. Missing mode: MD has mass there for certain, and the surrogate significantly less "
        f"than a tenth of it.{left_out}"
    )
    columns = ("basin", "held-out MD", "raw samples", "corrected samples", "density of q", "finding")
    return Table("Basins by MD and by the surrogate / %", columns, rows, note, (0, 5))


CAPTION = (
    "Weights of the samples (drawn from the surrogate) and of held-out MD frames (Boltzmann distributed), both over the mean "
    "weight by the acceptance ratio. Where the surrogate covers the ensemble the two have one range, MD somewhat to the right; "
    "MD frames far to the right of all samples are conformations that the surrogate does not make."
)


def draw(directory: Path, run: Run, diagnostics: dict[str, Any]) -> None:
    """Draw the distribution of ln w of the samples and of the MD frames that the correct stage has written."""
    density = density_of(diagnostics)
    if density is None:
        return
    checked = read_ensemble(run.path("correct", coverage.CHECKED), run.system)
    samples = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    log_z = _estimate(density["log_z_bar"]).value
    log_z = log_z if np.isfinite(log_z) else _estimate(density["log_z_samples"]).value
    sets = (
        ("samples, as drawn", samples.log_weight - log_z, np.full(len(samples), 1 / len(samples)), figures.ORANGE),
        ("held-out MD", coverage.log_weights_of(checked) - log_z, datasets.boltzmann_weights(checked), figures.BLACK),
    )
    ends = np.concatenate([np.quantile(values[np.isfinite(values)], [0.03, 1.0]) for _, values, _, _ in sets])
    bins = np.linspace(max(ends.min() - 2.0, -AXIS_KT), min(max(ends.max(), 1.0), AXIS_KT) + 0.5, 71)
    with figures.canvas(directory, "coverage", 1, 2.5) as (_, (axis,)):
        for label, values, weights, colour in sets:
            heights, _ = np.histogram(np.clip(values, bins[0], bins[-1]), bins, weights=weights)
            if colour == figures.BLACK:
                axis.stairs(heights / np.diff(bins), bins, fill=True, color=colour, alpha=0.15, baseline=FLOOR)
            axis.stairs(heights / np.diff(bins), bins, color=colour, label=label, lw=1.4, baseline=FLOOR)
        largest = float(np.max(sets[0][1]))
        axis.axvline(min(largest, float(bins[-1])), color=figures.GREY, lw=0.9, ls="--", label="largest weight of a sample")
        axis.set_xlabel("ln w - ln Z  (what lies beyond is at the edges)")
        axis.set_ylabel("probability density")
        axis.set_xlim(bins[0], bins[-1])
        axis.set_yscale("log")
        axis.set_ylim(bottom=FLOOR)
        axis.legend()
