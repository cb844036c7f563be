"""The record of a benchmark: what ran, where, at what cost, and its text for people."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen import containers
from hpc_molgen.energy import EnergyMeter
from hpc_molgen.files import plain_values
from hpc_molgen.provenance import provenance
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    from hpc_molgen.efficiency.costs import StageCost

log = logging.getLogger(__name__)
SCHEMA_VERSION = 1


class Costs:
    """Costs of a benchmark's stages: CPU and wall seconds, core and GPU hours, joules of the machine, load at its end."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []

    def add_stage(self, name: str, cost: StageCost) -> None:
        """Enter what a stage of a run of the pipeline took."""
        self.add(name, cost.cpu_s, cost.wall_s, cost.joules, 3600 * cost.gpu_h / cost.wall_s if cost.wall_s > 0 else 0.0)

    @contextmanager
    def stage(self, name: str, gpus: int = 0) -> Iterator[dict[str, Any]]:
        """Measure a block, which keeps `gpus` GPUs busy; the yielded entry holds the result after it.

        Programs count that the block starts and waits for.
        """
        watch, meter = Stopwatch(children=True), EnergyMeter()
        entry: dict[str, Any] = {}
        yield entry
        entry.update(self.add(name, watch.cpu_s, watch.wall_s, meter.joules, gpus))

    def add(
        self, name: str, cpu_s: float, wall_s: float, joules: float | None = None, gpus: float | None = None
    ) -> dict[str, Any]:
        """Enter what was measured elsewhere; `gpus` None: not known whether it kept one busy."""
        entry = {
            "stage": name, "cpu_s": cpu_s, "wall_s": wall_s, "core_h": cpu_s / 3600,
            "gpu_h": None if gpus is None else gpus * wall_s / 3600,
            "load_average_1min": os.getloadavg()[0], "joules": joules,
        }  # fmt: skip
        self.stages.append(entry)
        log.info("%s: %.1f CPU s, %.1f s", name, cpu_s, wall_s)
        return entry


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, number of repeats and the values themselves."""
    array = np.array(list(values), dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {"mean": float(array.mean()), "sd": deviation, "n": len(array), "values": [float(value) for value in array]}


def finite(value: Any) -> Any:
    """Return what tables can hold: a number or a `spread` as it is, None where it is not finite."""
    numbers = [value.get("mean"), value.get("sd")] if isinstance(value, dict) else [value]
    if all(isinstance(number, str | bool) or (number is not None and np.isfinite(number)) for number in numbers):
        return value
    return None


def in_words(values: dict[str, Any]) -> str:
    """Write a `spread` as mean ± standard deviation."""
    return f"{values['mean']:.3g} ± {values['sd']:.2g}"


def complete_record(
    record: dict[str, Any], name: str, size: str, seed: int, load: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Put what every record holds in front of what a suite returned; `load` is what a `LoadWatch` has seen.

    Numbers that are not finite become null, in tables with their whole spread.
    """
    cells = [{**table, "rows": [[_cell(value) for value in row] for row in table["rows"]]} for table in record["tables"]]
    judged = [{**row, "measured": _cell(row["measured"])} for row in record["targets"]]
    record = {**record, "tables": cells, "targets": judged}
    complete: dict[str, Any] = plain_values({
        "schema_version": SCHEMA_VERSION,
        "suite": name,
        "size": size,
        "seed": seed,
        "date_utc": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "command": f"hpc-molgen benchmark {name} --size {size} --seed {seed} --out DIR",
        "provenance": {**provenance(), "load_average": list(os.getloadavg())},
        "load": load,
        **record,
    })  # fmt: skip
    return complete


def _cell(value: Any) -> Any:
    return [_cell(inner) for inner in value] if isinstance(value, list) else finite(value)


def render_markdown(record: dict[str, Any]) -> str:
    """Return the record as text: question, answer, targets, tables, costs, how to repeat it.

    A suite's own part of the record holds `question`, `answer` (sentences), `targets` (name, target, measured, reached),
    `tables` (caption, columns, rows), `costs` and `notes`, and may hold `figures` (file, caption).
    """
    origin = record["provenance"]
    packages = ", ".join(f"{key} {value}" for key, value in {"hpc_molgen": origin["hpc_molgen"], **origin["packages"]}.items())
    load = "/".join(f"{value:.2f}" for value in origin["load_average"])
    hardware = f"{origin['cpu']}, {origin['cores']} cores, {origin['memory_gib']} GiB, load average at the end {load}"
    lines = [f"# {record['suite']} ({record['size']})", "", record["question"], ""]
    lines += [f"- {sentence}" for sentence in record["answer"]] + [""]
    for figure in record.get("figures", []):
        lines += [f"![{figure['caption']}]({figure['file']})", ""]
    targets = [
        [target["name"], target["target"], target["measured"], "yes" if target["reached"] else "**no**"]
        for target in record["targets"]
    ]
    lines += _table("Targets", ["figure", "target", "measured", "reached"], targets) if targets else []
    for table in record["tables"]:
        lines += _table(table["caption"], table["columns"], table["rows"])
    columns = {"stage": "stage", "cpu_s": "CPU s", "core_h": "core hours", "wall_s": "wall s"}
    if any(stage.get("gpu_h") for stage in record["costs"]):
        columns["gpu_h"] = "GPU hours"
    columns["load_average_1min"] = "load average (1 min)"
    if any(stage.get("joules") is not None for stage in record["costs"]):
        columns["joules"] = "joules of the machine"
    rows = [[stage.get(column) for column in columns] for stage in record["costs"]]
    lines += _table("Costs", list(columns.values()), rows)
    lines += [f"- {note}" for note in record["notes"]]
    lines += ["", f"Repeat: `{record['command']}`", "", f"Hardware: {hardware}{_load(record.get('load'))}", ""]
    container = containers.in_words(origin["container"])
    commit = f"commit {origin['git_commit'] or 'none'}{', ' if container else ''}{container}"
    lines += [f"Software: Python {origin['python']}, {packages}; {commit}", ""]
    lines += [f"Seed {record['seed']}; {record['date_utc']} UTC", ""]
    return "\n".join(lines)


def _load(load: dict[str, Any] | None) -> str:
    if not load:
        return ""
    average, others = load["load_average_1min"], load["others_busy_cores"]
    text = f"; during the run {average['mean']:.2f} on average, at most {average['max']:.2f}"
    return text + (f"; other programs kept {others['mean']:.2f} cores busy, at most {others['max']:.2f}" if others else "")


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [f"**{caption}**", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(_text(value) for value in row)} |" for row in rows] + [""]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict) and "mean" in value:
        return _number(value["mean"]) + (f" ± {_number(value['sd'], 2)}" if value["n"] > 1 else "")
    if isinstance(value, list):
        return "/".join(_text(item) for item in value)
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float, digits: int = 3) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"
