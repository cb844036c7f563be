"""What got better and what got worse from one record of a suite to another, with significance.

Every repeated measurement of a record's results (a `spread`: mean, deviation, number, values) that both records hold at one
place is compared: the ratio of the means with its 95 % interval, and Welch's test (Welch 1947, Biometrika 34, 28) of the
logarithms where all values are positive, of the values where not. As a record holds dozens of them, Holm's procedure (Holm
1979, Scand. J. Stat. 6, 65) keeps the chance that any unchanged one of a comparison is called a change below 5 %.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.efficiency.suites.schema import read_record
from hpc_molgen.errors import InputError

LEVEL = 0.05  # of all comparisons together
MIN_REPEATS = 3
# what a measurement's name says of the direction in which it gets better; the first that fits counts
_BETTER = (
    (
        +1,
        r"per_(cpu_|wall_)?s$|per_s$|ns_per_(core_)?day|^ratio|_over_openmm$|_over_gromacs$|utilisation|^gain$|halving$|ess_fraction$",
    ),
    (-1, r"_m?s$|wait|overhead|share_lost|jsd|js_distance|over_floor|over_reference$|k_hat$"),
)


@dataclass(frozen=True)
class Change:
    """One measurement in two records.

    Attributes
    ----------
    name : str
        Its place in the results.
    before, after : float
        Means.
    ratio, low, high : float
        after / before and its 95 % interval; nan where values are not positive.
    p : float
        Of Welch's test that nothing has changed, before Holm's procedure; nan with fewer than `MIN_REPEATS` repeats.
    direction : int
        +1 where more is better, -1 where less is, 0 where the name does not tell.
    significant : bool
        After Holm's procedure over all measurements that were judged.
    """

    name: str
    before: float
    after: float
    ratio: float
    low: float
    high: float
    p: float
    direction: int
    significant: bool = False

    @property
    def verdict(self) -> str:
        """The word that tables use."""
        if np.isnan(self.p):
            return "too few repeats"
        if not self.significant:
            return "no change seen"
        if self.direction == 0:
            return "changed"
        return "better" if (self.after - self.before) * self.direction > 0 else "WORSE"


def compare_records(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Compare the repeated measurements of two records.

    Raises
    ------
    InputError
        When they are of different suites or sizes, or share no repeated measurement.
    """
    for key in ("suite", "size"):
        if before.get(key) != after.get(key):
            raise InputError(f"records of different {key}s cannot be compared: {before.get(key)} and {after.get(key)}")
    old, new = (dict(repeated(record.get("results"))) for record in (before, after))
    names = [name for name in old if name in new]
    if not names:
        raise InputError(f"the two records of '{before.get('suite')}' share no repeated measurement (of at least two values)")
    changes = [_change(name, np.array(old[name], dtype=float), np.array(new[name], dtype=float)) for name in names]
    return _holm(changes)


def repeated(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[float]]]:
    """Yield place and values of every repeated measurement in a record's results."""
    if isinstance(value, dict):
        if {"mean", "sd", "n", "values"} <= set(value):
            if value["n"] > 1 and np.isfinite(np.array(value["values"], dtype=float)).all():
                yield " / ".join(path), value["values"]
            return
        for key, inner in value.items():
            yield from repeated(inner, (*path, str(key)))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from repeated(inner, (*path, str(index)))


def _change(name: str, before: np.ndarray, after: np.ndarray) -> Change:
    from scipy import stats

    last = name.rpartition(" / ")[2]
    direction = next((sign for sign, pattern in _BETTER if re.search(pattern, last)), 0)
    positive = bool((before > 0).all() and (after > 0).all())
    ratio = float(after.mean() / before.mean()) if positive else float("nan")
    low = high = p = float("nan")
    if min(len(before), len(after)) >= MIN_REPEATS:
        a, b = (np.log(after), np.log(before)) if positive else (after, before)
        if max(a.std(), b.std()) > 0:
            test = stats.ttest_ind(a, b, equal_var=False)
            p = float(test.pvalue)
            if positive:
                interval = test.confidence_interval(0.95)
                ratio, low, high = (float(np.exp(value)) for value in (a.mean() - b.mean(), interval.low, interval.high))
        else:  # numbers that are counted and do not vary
            p = float(a.mean() == b.mean())
            low = high = ratio
    return Change(name, float(before.mean()), float(after.mean()), ratio, low, high, p, direction)


def _holm(changes: list[Change]) -> list[Change]:
    judged = sorted((change.p, index) for index, change in enumerate(changes) if not np.isnan(change.p))
    marked = list(changes)
    for rank, (p, index) in enumerate(judged):
        if p > LEVEL / (len(judged) - rank):
            break
        marked[index] = replace(changes[index], significant=True)
    return marked


def compare_files(files: Sequence[Path]) -> tuple[str, bool]:
    """Compare two records; return the text for people, and whether nothing got worse.

    Raises
    ------
    InputError
        When there are not two, or they cannot be compared.
    """
    if len(files) != 2:
        raise InputError("compare takes two records: hpc-molgen benchmark compare BEFORE.json AFTER.json")
    before, after = files
    records = [read_record(path) for path in (before, after)]
    changes = compare_records(*records)
    worse = [change for change in changes if change.verdict == "WORSE"]
    better = [change for change in changes if change.verdict == "better"]
    judged = sum(not np.isnan(change.p) for change in changes)
    lines = [
        f"# {records[0]['suite']} ({records[0]['size']}): {after.name} against {before.name}", "",
        f"{len(worse)} of {judged} measurements got worse, {len(better)} better (Welch, Holm, level {LEVEL:g}).", "",
    ]  # fmt: skip
    lines += _differences(records[0]["provenance"], records[1]["provenance"])
    lines += ["| measurement | before | after | after / before | verdict |", "|---|---|---|---|---|"]
    order = {"WORSE": 0, "better": 1, "changed": 2}
    for change in sorted(changes, key=lambda change: order.get(change.verdict, 3)):
        ratio = f"{change.ratio:.3g}" + (f" [{change.low:.3g}, {change.high:.3g}]" if np.isfinite(change.low) else "")
        lines.append(f"| {change.name} | {change.before:.4g} | {change.after:.4g} | {ratio} | {change.verdict} |")
    return "\n".join(lines) + "\n", not worse


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Say what else differs: a ratio of two machines says nothing of the software."""
    words = {"cpu": "processor", "cores": "cores", "gpus": "GPUs", "git_commit": "commit", "python": "Python"}
    lines = [
        f"- {word}: {before.get(key)} before, {after.get(key)} after"
        for key, word in words.items()
        if before.get(key) != after.get(key)
    ]
    changed = {
        name: (before["packages"].get(name), after["packages"].get(name))
        for name in sorted({*before["packages"], *after["packages"]})
        if before["packages"].get(name) != after["packages"].get(name)
    }
    lines += [f"- {name}: {old} before, {new} after" for name, (old, new) in changed.items()]
    if any(before.get(key) != after.get(key) for key in ("cpu", "cores", "gpus")):
        lines.insert(0, "**Different hardware: compare ratios inside a record, not seconds.**")
    return [*lines, ""] if lines else []
