"""The record of a benchmark: what ran, where, at what cost, and its text for people."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.workers import Stopwatch, available_cores

SCHEMA_VERSION = 1
_PACKAGES = ("hpc-molgen", "numpy", "scipy", "torch", "openmm", "mdtraj")


class Costs:
    """CPU and wall seconds of the stages of a benchmark, with the load average at the end of each."""

    def __init__(self) -> None:
        self.stages: list[dict[str, Any]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Measure a block in this process; what it does in others it adds to the yielded entry itself."""
        watch = Stopwatch()
        entry: dict[str, Any] = {"stage": name, "cpu_s": 0.0, "wall_s": 0.0}
        yield entry
        entry["cpu_s"] += watch.cpu_s
        entry["wall_s"] += watch.wall_s
        entry["load_average_1min"] = os.getloadavg()[0]
        self.stages.append(entry)


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Mean, sample standard deviation, number of repeats and the values themselves."""
    array = np.array(list(values), dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return {"mean": float(array.mean()), "sd": deviation, "n": len(array), "values": [float(value) for value in array]}


def complete_record(record: dict[str, Any], name: str, size: str, seed: int) -> dict[str, Any]:
    """Put what every record holds in front of what a suite returned."""
    return {
        "schema_version": SCHEMA_VERSION,
        "suite": name,
        "size": size,
        "seed": seed,
        "date_utc": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "command": f"hpc-molgen benchmark {name} --size {size} --seed {seed} --out DIR",
        "software": software_versions(),
        "git_commit": git_commit(),
        "hardware": hardware(),
        **record,
    }


def software_versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    versions = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of the source tree, with "-dirty" if it differs from it; None outside a repository."""
    folder = str(Path(__file__).parent)
    try:
        commit = subprocess.run(
            ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", folder, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("-dirty" if changed else "")


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory and load average; no host name."""
    return {
        "cpu": _cpu_model(),
        "cores_available": available_cores(),
        "cores_of_machine": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average_at_end": list(os.getloadavg()),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def render_markdown(record: dict[str, Any]) -> str:
    """Return the record as text: question, answer, targets, tables, costs, how to repeat it.

    A suite's own part of the record holds `question`, `answer` (sentences), `targets` (name, target, measured, reached), `tables` (caption,
    columns, rows), `costs` and `notes`.
    """
    hardware_line = ", ".join(f"{key} {_text(value)}" for key, value in record["hardware"].items())
    software_line = ", ".join(f"{key} {value}" for key, value in record["software"].items())
    lines = [f"# {record['suite']} ({record['size']})", "", record["question"], ""]
    lines += [f"- {sentence}" for sentence in record["answer"]] + [""]
    targets = [
        [target["name"], target["target"], target["measured"], "yes" if target["reached"] else "**no**"]
        for target in record["targets"]
    ]
    lines += _table("Targets", ["figure", "target", "measured", "reached"], targets)
    for table in record["tables"]:
        lines += _table(table["caption"], table["columns"], table["rows"])
    columns = ["stage", "cpu_s", "wall_s", "load_average_1min"]
    rows = [[stage[column] for column in columns] for stage in record["costs"]]
    lines += _table("Costs", ["stage", "CPU s", "wall s", "load average (1 min)"], rows)
    lines += [f"- {note}" for note in record["notes"]]
    lines += ["", f"Repeat: `{record['command']}`", "", f"Hardware: {hardware_line}", "", f"Software: {software_line}"]
    lines += ["", f"Commit: {record['git_commit'] or 'none'}; seed {record['seed']}; {record['date_utc']} UTC", ""]
    return "\n".join(lines)


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
