"""All numbers of a report.json as one tidy table, report.csv: a line for each, with its interval and its unit.

The table is made from the JSON alone, so it holds what that holds and no more: no price of a sample where the gate has failed.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hpc_molgen.files import plain_values


class Row(NamedTuple):
    """One figure; `low` and `high` are its 95 % interval, where it has one."""

    section: str
    quantity: str
    set: str
    value: float
    low: float | None
    high: float | None
    unit: str


COLUMNS = Row._fields
_NO_FIGURES = {"schema_version", "name", "system", "torsions", "provenance", "config", "left_out"}
_ROLES = {"reference": 0, "training": 1, "all_md": 2, "raw": 3, "corrected": 4}  # place in the order of sets
_OF_ROLES = ("delta_f", "passages", "coverage")  # parts that name sets by their roles
_SETS_BELOW = {  # parts whose keys are names of sets, or of what the others are compared with
    *("profiles", "basins", "seam_share", "effective_samples", "scores", "sets", "chapman_kolmogorov", "labels", "others"),
    *("md_cpu_s_per_effective_sample", "n_star"),
}
_OF_FEATURES = ("increments", "correlation_times", "autocorrelations", "seams")
_UNITS = (  # of the last name of a path that fits one
    (r"^passed$", "1: yes"), (r"^(divergences?|negative_controls|noise_floor|floor.*|at_size|log_.*|deficit)$", "nats"),
    (r"^(delta_f|profiles)$|(^|_)kt$", "kT"), (r"^(n_star|n_0)$", "samples"), (r"^money$", "money"),
    (r"^transitions$", "per 10,000 frames"), (r"^(correlation_times|timescales|lags?|ck_lag|g_frames|length)$", "frames"),
    (r"^(ratio|distance|k_hat|score.*|seams|autocorrelations|predicted|estimated|memorisation)$", "1"),
    (r"^(data|validation|equilibration|shared_start|training|sampling|energies|checks)$", "CPU s"), (r"^passages$", "count"),
    (r"share|fraction|^(populations|counted|covered|overlap|relative_density|acceptance|beyond_.*)$|_ess$", "1"),
    (r"^(n|n_.*|ess|size|effective_samples_drawn|distinct_parents|attempts|steps_per_repeat)$", "count"),
    (r"kj_mol$", "kJ/mol"), (r"kelvin$", "K"), (r"_deg$", "degrees"), (r"_ps$", "ps"), (r"_fs$", "fs"), (r"_amu$", "u"),
    (r"^ns_per_cpu_s$|^baseline_md$", "ns per CPU s"), (r"per_day", "ns/day"), (r"_ns$", "ns"), (r"wall_s$|^loop_s$", "s"),
    (r"gpu_h$", "GPU hours"), (r"core_h$", "core hours"), (r"cpu_s", "CPU s"), (r"^drift$", "standard errors"),
    (r"^basins$|^advantage", "1"), (r"^joules$", "J"),
)  # fmt: skip
_OWN_UNITS = {"passages": "count", "energies": "kT", "effective_samples": "count"}  # of a structure's sections
_Found = tuple[tuple[str, ...], str, float, float | None, float | None]


def rows_of(record: Mapping[str, Any]) -> list[Row]:
    """Return the table of a report.json, as it is read or as it will be written.

    A quantity is named by its place in its section of the JSON.
    """
    plain: dict[str, Any] = plain_values(record)
    findings = plain.get("findings", {})
    walk = _Walk(list(plain.get("profiles") or plain.get("basins") or {}), findings)
    parts = {name: part for name, part in {**plain, **findings}.items() if name not in {*_NO_FIGURES, "findings"}}
    rows = [row for name, part in parts.items() for row in walk.section(name, part)]
    rows += [
        Row("costs", "core_h", stage["stage"], stage["cpu_s"] / 3600, None, None, "core hours")
        for stage in (plain.get("costs") or {}).get("stages", [])
    ]
    return rows


def as_csv(rows: Iterable[Sequence[Any]], columns: Sequence[str] = COLUMNS) -> str:
    """Write rows as CSV; what does not exist is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
    return text.getvalue()


class _Walk:
    """Goes through parts of a record and names what it finds.

    Parameters
    ----------
    sets : sequence of str
        Labels of the sets of conformations, in the order of `_ROLES`.
    series : mapping
        Findings on trajectories, for the names of sets, features, states and lags; empty for structures.
    """

    def __init__(self, sets: Sequence[str], series: Mapping[str, Any]) -> None:
        self._roles = {role: sets[place] for role, place in _ROLES.items() if place < len(sets)}
        self._roles |= {"frames": "held-out MD", "samples": "raw samples", "farm": "farm"}
        self._series, self._labels = series, set(series.get("sets", {}))

    def section(self, name: str, part: Any) -> Iterator[Row]:
        """Yield the rows of one part of the record."""
        if name == "profiles":
            yield from _profiles(part)
            return
        for path, of, value, low, high in self._numbers(part, (name,), ""):
            words = [word for word in path[1:] if word]
            quantity = " / ".join(words if words and words != ["standard_error"] else [name, *words])
            yield Row(name, quantity, of, value, low, high, self._unit(path))

    def _numbers(self, value: Any, path: tuple[str, ...], of: str) -> Iterator[_Found]:
        if isinstance(value, bool):
            if path[-1] == "passed":
                yield path, of, int(value), None, None
        elif isinstance(value, int | float):
            yield path, of, value, None, None
        elif isinstance(value, dict):
            yield from self._of_dict(value, path, of)
        elif isinstance(value, list) and "timescales" in path and len(value) == 3 and not isinstance(value[0], list):
            if value[0] is not None:
                yield path, of, *value
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from self._numbers(item, *self._item(path, index, item, of))

    def _of_dict(self, value: dict[str, Any], path: tuple[str, ...], of: str) -> Iterator[_Found]:
        if estimate := _estimate(value):
            key, found, low, high = estimate
            yield path if key == "value" else (*path, key), of, found, low, high
        done = {estimate[0], "low", "high"} if estimate else set()
        for name, inner in value.items():
            if name in done:
                continue
            label = self._roles.get(name) if path[0] in _OF_ROLES and not isinstance(inner, list) else None
            if path[-1] in _SETS_BELOW or name in self._labels:
                label = name
            if label is not None:  # what follows is no name of a set, unless it says so
                yield from self._numbers(inner, (*path, ""), f"{of}, {label}" if of else label)
            elif path[-1] in ("transitions", "passages") and " " in name:
                start, end = (self._state(int(number)) for number in name.split())
                yield from self._numbers(inner, (*path, f"{start} to {end}"), of)
            else:
                yield from self._numbers(inner, (*path, name), of)

    def _item(self, path: tuple[str, ...], index: int, item: Any, of: str) -> tuple[tuple[str, ...], str]:
        """Return path and set of one item of a list."""
        if isinstance(item, dict):
            return self._line(path, index, item, of)
        return (*path, self._name(path, index)), of

    def _line(self, path: tuple[str, ...], index: int, item: dict[str, Any], of: str) -> tuple[tuple[str, ...], str]:
        """The same of an item that says itself what it is of."""
        last = path[-1]
        if last == "stages":
            return path[:-1], str(item["stage"])
        if last in ("curves", "molecules"):  # of the section on accuracy: names are of methods
            return (*path, ""), str(item["name"])
        its_set = str(item["label"]) if "label" in item else f"{item['kelvin']:g} K" if "kelvin" in item else of
        named = tuple(str(item[key]) for key in ("observable", "name") if key in item)
        return (*path, *(named or (() if its_set != of else (self._name(path, index),)))), its_set

    def _name(self, path: tuple[str, ...], index: int) -> str:
        """Return what the item of a list is called by its place: a feature, a state, a lag; a number where nothing tells."""
        features, lags = self._series.get("feature_names", []), self._series.get("lags", [])
        if path[-1] in _OF_FEATURES and index < len(features):
            return str(features[index])
        if path[-1] in ("populations", "counted"):
            return self._state(index)
        return f"lag {lags[index]}" if path[-1] == "timescales" and index < len(lags) else str(index)

    def _state(self, index: int) -> str:
        states = self._series.get("states", [])
        return str(states[index]) if index < len(states) else f"state {index}"

    def _unit(self, path: tuple[str, ...]) -> str:
        """Return the unit that the last telling name of a path asks for; "" where none tells."""
        if self._series and path[-1] != "passed" and "passages" in path:
            return "frames"
        for name in reversed(path[1:]):
            for pattern, unit in _UNITS:
                if re.search(pattern, name):
                    return unit
        if not self._series and path[0] in _OWN_UNITS:
            return _OWN_UNITS[path[0]]
        return next((unit for pattern, unit in _UNITS if re.search(pattern, path[0])), "")


def _estimate(value: Mapping[str, Any]) -> tuple[str, float, float | None, float | None] | None:
    """Return name, value and interval of what has one; None for anything else, and for what does not exist.

    A break-even number has words, by which "never" (infinite) and "not available" differ, which are both null.
    """
    if not {"low", "high"} <= value.keys() or not {"value", "ratio"} & value.keys():
        return None
    key = "value" if "value" in value else "ratio"
    if value.get("words") == "never":
        return key, float("inf"), float("inf") if value["low"] is None else value["low"], float("inf")
    if value[key] is None:
        return None
    high = float("inf") if value["high"] is None and "words" in value else value["high"]
    return key, value[key], value["low"], high


def _profiles(part: Mapping[str, Any]) -> Iterator[Row]:
    for of, curve in part.items():
        rows = zip(curve["centres_rad"], curve["value"], curve["low"], curve["high"], strict=True)
        for centre, value, low, high in rows:
            if value is not None:
                yield Row("profiles", f"free energy at {np.degrees(centre):.1f} degrees", of, value, low, high, "kT")
