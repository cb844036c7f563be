"""A campaign's report as one tidy table, report.csv: a line for each figure, behind the record that it is of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hpc_molgen.efficiency import sheet
from hpc_molgen.efficiency.costs import Prices
from hpc_molgen.efficiency.suites import campaign_figures, campaign_tables, campaign_verdict, campaign_weights
from hpc_molgen.efficiency.suites.campaign_folder import Campaign, RunReport

COLUMNS = ("record", *sheet.COLUMNS)
_OF_RUNS = ("delta_f", "passages", "weights", "break_even", "accuracy")  # what it takes from the runs' own tables
_Line = tuple[Any, ...]


def rows(campaign: Campaign, prices: Prices) -> list[_Line]:
    """Return all lines; a record or a run that holds a part otherwise than expected has none of it, as `faults` then say."""
    parts: dict[str, Callable[[], Iterator[_Line]]] = {
        "verdict": lambda: _verdict(campaign), "runs": lambda: _runs(campaign), "costs": lambda: _costs(campaign, prices),
        "weights": lambda: _weights(campaign), "targets": lambda: _targets(campaign), "scaling": lambda: _scaling(campaign),
    }  # fmt: skip
    return [line for name, part in parts.items() for line in campaign.guarded("report.csv", f"all lines of {name}", part)]


def _verdict(campaign: Campaign) -> Iterator[_Line]:
    for name, record in campaign.measured("verdict"):
        yield from campaign.guarded(name, "its verdict in report.csv", _verdict_of, name, record)


def _verdict_of(name: str, record: Mapping[str, Any]) -> Iterator[_Line]:
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
        yield from campaign.guarded(run.name, "its figures in report.csv", _run, run)


def _run(run: RunReport) -> Iterator[_Line]:
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
    for one in campaign_weights.weights(campaign):
        if one.source not in campaign.records:
            continue  # those of runs come with their own tables
        for key in ("ess_fraction", "ess_clipped_fraction", "k_hat"):
            for number, value in enumerate(one.values(key)):
                if value is not None:
                    yield one.source, "weights", f"{key}, seed {number}", one.what, value, None, None, "1"


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
