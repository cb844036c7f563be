"""A campaign's report as one tidy table, report.csv: a line for each figure, behind the record that it is of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from hpc_molgen.efficiency import sheet
from hpc_molgen.efficiency.costs import Prices
from hpc_molgen.efficiency.suites import campaign_figures, campaign_tables, campaign_verdict
from hpc_molgen.efficiency.suites.campaign_folder import FAULTS, Campaign

COLUMNS = ("record", *sheet.COLUMNS)
_OF_RUNS = ("delta_f", "passages", "weights", "break_even", "accuracy")  # what it takes from the runs' own tables
_Line = tuple[Any, ...]


def rows(campaign: Campaign, prices: Prices) -> Iterator[_Line]:
    """Yield all lines; a part that its records do not hold as expected ends there, as the report says in its section."""
    parts: tuple[Callable[[], Iterator[_Line]], ...] = (
        lambda: _verdict(campaign), lambda: _runs(campaign), lambda: _costs(campaign, prices), lambda: _weights(campaign),
        lambda: _targets(campaign), lambda: _scaling(campaign),
    )  # fmt: skip
    return chain.from_iterable(map(_whole_lines, parts))


def _whole_lines(part: Callable[[], Iterator[_Line]]) -> Iterator[_Line]:
    try:
        yield from part()
    except FAULTS:
        return


def _verdict(campaign: Campaign) -> Iterator[_Line]:
    for name, record in campaign.of_suite("verdict"):
        found = campaign_verdict.methods(record)
        md, surrogate = (campaign_verdict.best(found, kind) for kind in ("MD", "surrogate"))
        if md is not None and surrogate is not None:
            value, low, high, _ = campaign_verdict.ratio_of(md, surrogate)
            yield name, "verdict", "time of the best MD over its own", surrogate.row["name"], value, low, high, "1"
        for method in found:
            for seed, seconds in enumerate(method.times):
                if seconds is not None and method.row["kind"] != "biased by design":
                    quantity = f"to {campaign_verdict.TARGET}, seed {seed}"
                    yield name, "verdict", quantity, method.row["name"], seconds, None, None, "CPU s"


def _runs(campaign: Campaign) -> Iterator[_Line]:
    for run in campaign.runs:
        yield from ((run.name, *row) for row in sheet.rows_of(run.data) if row.section in _OF_RUNS)


def _costs(campaign: Campaign, prices: Prices) -> Iterator[_Line]:
    for line in campaign_tables.cost_lines(campaign):
        figures = [
            ("cpu_s", line.cpu_s, "CPU s"), ("core_h", line.cpu_s / 3600, "core hours"), ("wall_s", line.wall_s, "s"),
            ("gpu_h", line.gpu_h, "GPU hours"), ("joules", line.joules, "J"), ("load_average_1min", line.load, "1"),
            ("money", prices.money(line.cpu_s, line.gpu_h or 0.0) if prices.known else None, "money"),
        ]  # fmt: skip
        yield from (
            (line.source, "costs", name, line.stage, value, None, None, unit)
            for name, value, unit in figures
            if value is not None
        )


def _weights(campaign: Campaign) -> Iterator[_Line]:
    for one in campaign_tables.weights(campaign):
        if one.source not in campaign.records:
            continue  # those of runs come with their own tables
        for number, seed in enumerate(one.seeds):
            for key in ("ess_fraction", "ess_clipped_fraction", "k_hat"):
                if seed.get(key) is not None:
                    yield one.source, "weights", f"{key}, seed {number}", one.what, seed[key], None, None, "1"


def _targets(campaign: Campaign) -> Iterator[_Line]:
    for name, record in campaign.records.items():
        for target in record["targets"]:
            yield name, "targets", "reached", target["name"], int(target["reached"]), None, None, "1: yes"
            measured = target["measured"]
            value = measured.get("mean") if isinstance(measured, dict) else measured
            if isinstance(value, int | float):
                yield name, "targets", "measured", target["name"], value, None, None, ""


def _scaling(campaign: Campaign) -> Iterator[_Line]:
    makers = {
        "training": campaign_figures.training_points,
        "farm": campaign_figures.farm_points,
        "training, modelled": campaign_figures.plan_points,
    }
    for name, make in makers.items():
        for points in make(campaign):
            for rank, efficiency in zip(points.ranks, points.efficiency, strict=True):
                quantity = f"efficiency on {rank} ranks, {points.kind}"
                yield name, "scaling", quantity, points.name, efficiency, None, None, "1"
