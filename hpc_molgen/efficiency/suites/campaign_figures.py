"""Figures of a campaign's report, drawn again from the numbers of its records, or taken as they lie in the folder."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.efficiency import figures
from hpc_molgen.efficiency.suites.campaign_folder import Campaign

_OWN = (("-", "o", figures.BLACK), ((0, (4, 1.6)), "s", figures.BLUE), ((0, (6, 1.5, 1, 1.5)), "^", figures.VERMILLION),
        ((0, (8, 2)), "D", figures.GREEN), ((0, (3, 1, 1, 1, 1, 1)), "v", figures.ORANGE))  # fmt: skip


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
    for _, record in campaign.of_suite("training"):
        for row in (record["results"] or {}).get("processes", {}).values():
            if "ratio" in row:
                half = row["ratio"]["mean"] / 2, row["ratio"]["sd"] / 2
                yield Points(row["words"], "strong", [1, 2], [1.0, half[0]], [0.0, half[1]])
    measured = [
        record["results"]["points"] for _, record in campaign.of_suite("scaling") if (record["results"] or {}).get("points")
    ]
    measured.sort(key=lambda points: int(points["ranks"]))
    for kind in ("strong", "weak"):
        own = [points for points in measured if points[f"{kind}_s"]]
        if len(own) > 1:
            first = own[0]
            grows = [points["ranks"] / first["ranks"] if kind == "strong" else 1.0 for points in own]
            base = float(np.mean(first[f"{kind}_s"]))
            ratios = [base / np.array(points[f"{kind}_s"]) / grow for points, grow in zip(own, grows, strict=True)]
            yield Points(
                f"{first['surrogate']}, {first['device_name']}", kind, [points["ranks"] for points in own],
                [float(ratio.mean()) for ratio in ratios], [_sd(ratio) for ratio in ratios],
            )  # fmt: skip


def _sd(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def farm_points(campaign: Campaign) -> Iterator[Points]:
    """Yield strong and weak scaling of the farm; of older records what a second rank brought."""
    for _, record in campaign.of_suite("farm"):
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
    for _, record in campaign.of_suite("scaling"):
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
