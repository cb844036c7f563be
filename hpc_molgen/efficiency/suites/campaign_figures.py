"""Figures of a campaign's report, drawn again from the numbers of its records, or taken as they lie in the folder."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.efficiency import figures
from hpc_molgen.efficiency.suites.campaign_folder import Campaign

_OWN = (("-", "o", figures.BLACK), ((0, (4, 1.6)), "s", figures.BLUE), ((0, (6, 1.5, 1, 1.5)), "^", figures.VERMILLION),
        ((0, (8, 2)), "D", figures.GREEN), ((0, (3, 1, 1, 1, 1, 1)), "v", figures.ORANGE))  # fmt: skip

_SCALING = "its scaling"


def verdict_curves(folder: Path, name: str, record: Mapping[str, Any]) -> bool:
    """Draw precision against core-seconds from zero as the suite `verdict` does; False where the record holds no curves."""
    from hpc_molgen.efficiency.suites.verdict_figure import draw
    from hpc_molgen.efficiency.suites.verdict_scores import Series, Truth

    rows = {key: row for key, row in record["results"].items() if row.get("series")}
    if not rows or "truth" not in record:
        return False
    series = {key: [_series(one, Series) for one in row["series"]] for key, row in rows.items()}
    short = _short_names()
    labels = {
        key: short.get(key, row["name"]) + ("" if row["certified"] or _biased(row) else " (not certified)")
        for key, row in rows.items()
    }
    empty = np.empty(0)
    own = record["truth"]
    truth = Truth(own["free_energy_kt"], own["half_width_kt"], np.empty((2, 0, 0)), empty, empty, {})
    return draw(folder, name, series, labels, {key for key, row in rows.items() if _biased(row)}, truth) is not None


def _biased(row: Mapping[str, Any]) -> bool:
    return bool(row["kind"] == "biased by design")


def _series(values: Mapping[str, Any], kind: Any) -> Any:
    """Make a curve of what a record holds of it; keys of other versions are passed over."""
    from hpc_molgen.efficiency.suites.verdict_scores import Checkpoint

    def known(row: Mapping[str, Any], of: Any) -> dict[str, Any]:
        names = {field.name for field in dataclasses.fields(of)}
        return {name: value for name, value in row.items() if name in names}

    points = [Checkpoint(**known(point, Checkpoint)) for point in values["checkpoints"]]
    return kind(**(known(values, kind) | {"checkpoints": points}))


def _short_names() -> dict[str, str]:
    """Return the short names that this version's methods have in figures."""
    from hpc_molgen.efficiency.suites import verdict_samplers
    from hpc_molgen.efficiency.suites.verdict_methods import MD_METHODS
    from hpc_molgen.efficiency.suites.verdict_surrogates import SURROGATES

    registries: tuple[Mapping[str, Any], ...] = (MD_METHODS, verdict_samplers.PARTICLES, SURROGATES)
    names = {key: str(method.short) for registry in registries for key, method in registry.items()}
    return names | {verdict_samplers.DDPM: verdict_samplers.DDPM_SHORT}


@dataclasses.dataclass(frozen=True)
class Points:
    """Speed on several numbers of ranks, over that on the fewest.

    Attributes
    ----------
    name, kind : str
        `kind`: "strong", "weak" or "modelled".
    ranks, efficiency, spread : list
        Efficiency 1 is ideal.
    """

    name: str
    kind: str
    ranks: list[int]
    efficiency: list[float]
    spread: list[float]


def training_points(campaign: Campaign) -> Iterator[Points]:
    """Yield what the suite `training` measured of one and of two processes, and `scaling` of any number of ranks."""
    for name, record in campaign.measured("training"):
        yield from campaign.guarded(name, _SCALING, _two_processes, record)
    runs = [
        run
        for name, record in campaign.measured("scaling")
        for run in campaign.guarded(name, _SCALING, _runs_of_scaling, record)
    ]
    groups = defaultdict[tuple[str, str], list[_Run]](list)
    for run in sorted(runs, key=lambda run: run.ranks):
        groups[run.kind, run.of].append(run)
    for (kind, of), own in groups.items():
        if len(own) > 1:
            base, fewest = float(own[0].seconds.mean()), own[0].ranks
            ratios = [base / run.seconds / (run.ranks / fewest if kind == "strong" else 1.0) for run in own]
            efficiency, deviations = [float(ratio.mean()) for ratio in ratios], [_sd(ratio) for ratio in ratios]
            yield Points(of, kind, [run.ranks for run in own], efficiency, deviations)


def _two_processes(record: Mapping[str, Any]) -> Iterator[Points]:
    for row in (record["results"] or {}).get("processes", {}).values():
        if "ratio" in row:
            half = row["ratio"]["mean"] / 2, row["ratio"]["sd"] / 2
            yield Points(row["words"], "strong", [1, 2], [1.0, half[0]], [0.0, half[1]])


@dataclasses.dataclass(frozen=True)
class _Run:
    """Seconds of a step on one number of ranks; only runs of the same kind `of` the same are compared."""

    kind: str
    of: str
    ranks: int
    seconds: np.ndarray


def _runs_of_scaling(record: Mapping[str, Any]) -> Iterator[_Run]:
    """Yield strong and weak scaling of a record scaling-<ranks>, with all that another must have in common with it."""
    points = (record["results"] or {}).get("points")
    if not points:
        return
    compiled = " compiled" if points.get("compile") else ""
    of = f"{points['surrogate']} {points['precision']}{compiled}, {points['device_name']}"
    work = {"strong": f"batch of {points['batch_size']}", "weak": f"{points['items_per_rank']} items a rank"}
    for kind, words in work.items():
        seconds = np.array(points[f"{kind}_s"], dtype=np.float64)
        if not (seconds > 0).all():
            raise ValueError("a step that takes no time")
        if len(seconds):
            yield _Run(kind, f"{of}, {words}, size {record['size']}", int(points["ranks"]), seconds)


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def farm_points(campaign: Campaign) -> Iterator[Points]:
    """Yield strong and weak scaling of the farm; of older records what a second rank brought."""
    for name, record in campaign.measured("farm"):
        yield from campaign.guarded(name, _SCALING, _of_farm, record)


def _of_farm(record: Mapping[str, Any]) -> Iterator[Points]:
    results = record["results"] or {}
    scaling = results.get("scaling") or {}
    for kind in ("strong", "weak"):
        if (own := scaling.get(kind)) and len(own["ranks"]) > 1:
            spreads = own["efficiency"]
            efficiency, deviations = [one["mean"] for one in spreads], [one["sd"] for one in spreads]
            yield Points("farm", kind, list(own["ranks"]), efficiency, deviations)
    if not scaling and "gain" in results:
        gain = results["gain"]
        yield Points("farm", "weak", [1, 2], [1.0, gain["mean"] / 2], [0.0, gain["sd"] / 2])


def plan_points(campaign: Campaign) -> Iterator[Points]:
    """Yield what the model of `scaling --plan` says."""
    for name, record in campaign.measured("scaling"):
        yield from campaign.guarded(name, _SCALING, _of_plan, record)


def _of_plan(record: Mapping[str, Any]) -> Iterator[Points]:
    for kind in ("strong", "weak"):
        rows = (record["results"] or {}).get(kind) or []
        if len(rows) > 1:
            ranks, efficiency = [row["n_ranks"] for row in rows], [row["efficiency"] for row in rows]
            yield Points(f"{kind} scaling", "modelled", ranks, efficiency, [0.0] * len(rows))


def scaling(folder: Path, name: str, panels: Mapping[str, list[Points]]) -> None:
    """Draw a panel for each title: efficiency against ranks, the ideal line at 1."""
    with figures.canvas(folder, name, len(panels), 2.9, sharey=True) as (_, axes):
        for axis, (title, found) in zip(axes, panels.items(), strict=True):
            for number, points in enumerate(found):
                dashes, marker, colour = _OWN[number % len(_OWN)]
                label = points.name if points.kind == "modelled" else f"{points.name}, {points.kind}"
                label = textwrap.fill(label, 30)
                axis.errorbar(points.ranks, points.efficiency, points.spread if any(points.spread) else None, color=colour,
                              ls=dashes, marker=marker, ms=4, capsize=2.5, lw=1.3, label=label)  # fmt: skip
            axis.axhline(1.0, color=figures.GREY, lw=1.0, ls=(0, (1, 1.5)), label="ideal")
            ranks = sorted({rank for points in found for rank in points.ranks})
            axis.set_xscale("log", base=2)
            shown = ranks if len(ranks) <= 6 else ranks[:: -(-len(ranks) // 6)]
            axis.set_xticks(shown, [str(rank) for rank in shown])
            axis.minorticks_off()
            axis.set_xlim(ranks[0] / 1.25, ranks[-1] * 1.25)
            axis.set_xlabel("ranks")
            axis.set_title(title)
            axis.legend(loc="best", handlelength=3.2, fontsize=6.5)
        axes[0].set_ylim(bottom=0.0)
        axes[0].set_ylabel("speed / (ranks x speed of one)")
