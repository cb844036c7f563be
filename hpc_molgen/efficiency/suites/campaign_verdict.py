"""Who wins, in one sentence: from the record of the suite `verdict`, or else from the report of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_molgen.efficiency.suites.campaign_folder import Campaign, RunReport
from hpc_molgen.efficiency.tables import Table, number, unbroken

TARGET = "dF(phi > 0) ± 0.1 kT"
_KINDS = {"MD": "best MD", "surrogate": "best surrogate", "particles": "best Monte Carlo without training"}


@dataclass(frozen=True)
class Answer:
    """The verdict of a campaign, for the template.

    Attributes
    ----------
    headline, sentence : str
    remarks : str
        What belongs to it and has no place in one sentence.
    gate_passed : bool
        Whether there is a comparison at all.
    """

    headline: str
    sentence: str
    remarks: str
    gate_passed: bool
    checks: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Method:
    """One method of the suite `verdict`: its times to the target, seed by seed."""

    key: str
    row: Mapping[str, Any]

    @property
    def times(self) -> list[float | None]:
        """Core-seconds of each seed; None where it did not get there."""
        return [outcome["cpu_s"] for outcome in self.row["outcomes"]]

    @property
    def eligible(self) -> bool:
        """Whether it may be called best: a time for every seed, trusted weights, and intervals of which most hold the truth."""
        timed = self.row["median_s"] is not None and not self.untimed
        return timed and bool(self.row["certified"]) and 2 * self.row["inside"] > self.row["intervals"]

    @property
    def untimed(self) -> bool:
        """Whether one of its times is not above 0, so that it has no ratio to another."""
        return any(time is not None and time <= 0 for time in self.times)

    @property
    def words(self) -> str:
        """Name and time."""
        known = [time for time in self.times if time is not None]
        extrapolated = any(outcome["kind"] == "extrapolated" for outcome in self.row["outcomes"])
        seeds = f", seeds {number(min(known))} to {number(max(known))}" if len(known) > 1 else ", one seed"
        return (
            f"{self.row['name']}: {number(self.row['median_s'])} core-seconds{seeds}{', extrapolated' if extrapolated else ''}"
        )


def methods(record: Mapping[str, Any]) -> list[Method]:
    """Return the methods of a verdict record."""
    return [Method(key, row) for key, row in record["results"].items()]


def best(found: Sequence[Method], kind: str) -> Method | None:
    """Return the method of a kind that is first at the target."""
    own = [method for method in found if method.row["kind"] == kind and method.eligible]
    return min(own, key=lambda method: float(method.row["median_s"]), default=None)


def who_wins(low: float, high: float) -> str:
    """Return who wins by the 95 % interval of the time of the best MD over that of the best surrogate."""
    return "the surrogate wins" if low > 1 else "MD wins" if high < 1 else "neither wins within the error bars"


def ratio_of(md: Method, other: Method) -> tuple[float, float, float, int]:
    """Time of MD over that of another method: geometric mean over seeds, its 95 % interval, and the number of pairs.

    The interval is Student's t of the logarithms; infinitely wide with one seed.
    """
    pairs = [(a, b) for a, b in zip(md.times, other.times, strict=False) if a is not None and b is not None]
    logs = np.log([a / b for a, b in pairs])
    middle, half = float(logs.mean()), float("inf")
    if len(logs) > 1:
        from scipy.stats import t as student

        half = float(student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
    return float(np.exp(middle)), float(np.exp(middle - half)), float(np.exp(middle + half)), len(logs)


def answer(campaign: Campaign) -> Answer:
    """Return the verdict: of the record of the suite `verdict`, of a run's report, or that there is none."""
    for name, record in campaign.measured("verdict"):
        for found in campaign.guarded(name, "its verdict", _of_record, name, record):
            return found
    runs = [run for run in campaign.runs if run.of_structures]
    for run in sorted(runs, key=lambda run: not run.data["verdict"].get("gate_passed")):
        for found in campaign.guarded(run.name, "its verdict", _of_run, run):
            return found
    text = (
        "There is no verdict: the folder holds neither a record of the suite 'verdict' that can be judged by (one of size "
        "smoke cannot) nor the report of a run on structures."
    )
    return Answer("No verdict", text, "", False)


def _of_record(name: str, record: Mapping[str, Any]) -> Iterator[Answer]:
    yield of_record(name, record)


def _of_run(run: RunReport) -> Iterator[Answer]:
    verdict = run.data["verdict"]
    remarks = (
        f"From the report of the run '{run.name}', one seed; there is no record of the suite 'verdict' in this folder that can "
        "be judged by."
    )
    yield Answer(str(verdict["headline"]), verdict["sentence"], remarks, bool(verdict.get("gate_passed")))


def of_record(name: str, record: Mapping[str, Any]) -> Answer:
    """Return the verdict of a record of the suite `verdict`."""
    found = methods(record)
    md, surrogate, particles = (best(found, kind) for kind in _KINDS)
    origin = f"From {name}.json, {record['date_utc']} UTC, {record['provenance']['cpu']}."
    if md is None or surrogate is None:
        missing = " and ".join(_KINDS[kind] for kind, one in (("MD", md), ("surrogate", surrogate)) if one is None)
        text = f"No winner at {TARGET}: there is no {missing} with a time for every seed, trusted weights and true intervals."
        known = [one.words for one in (md, surrogate, particles) if one is not None]
        return Answer("No winner", text, f"{'; '.join(known)}. {origin}" if known else origin, False)
    value, low, high, n = ratio_of(md, surrogate)
    who = who_wins(low, high)
    spread = f"[{number(low, 2)}, {number(high, 2)}] (95 %, Student's t of the logarithms over {n} seeds)" if n > 1 else (
        "with one seed, so without an interval"
    )  # fmt: skip
    sentence = (
        f"To {TARGET} from zero, everything counted, {who}: the time of the best MD ({md.words}) over that of the best "
        f"surrogate ({surrogate.words}) is {number(value)} {spread}."
    )
    headline = who[0].upper() + who[1:]
    remarks = []
    if particles is not None:
        over = ratio_of(particles, surrogate)
        first = over[2] < 1 and ratio_of(particles, md)[2] < 1
        headline += "; Monte Carlo without training beats both" if first else ""
        remarks.append(f"Without a surrogate: {particles.words}.")
    blind = best([one for one in found if not one.row["knows_cv"]], "MD")
    if blind is not None and blind.key != md.key:
        ratio = ratio_of(blind, surrogate)
        remarks.append(
            f"MD that was not told that phi is slow: {blind.words}; its time over the surrogate's is {number(ratio[0])} "
            f"[{number(ratio[1], 2)}, {number(ratio[2], 2)}]."
        )
    return Answer(headline, sentence, " ".join([*remarks, origin]), True)


def table(record: Mapping[str, Any]) -> Table:
    """Return the times of all methods to the target, the first at the top; those that cannot be ranked below."""
    found = sorted(methods(record), key=lambda one: (not one.eligible, one.row["median_s"] or np.inf))
    md = best(found, "MD")
    rows = []
    for one in found:
        known = [time for time in one.times if time is not None]
        seeds = " / ".join("-" if time is None else number(time) for time in one.times)
        seeds = "never" if one.row["kind"] == "biased by design" else seeds
        ratio = "-"
        if md is not None and one.eligible and one is not md:
            value, low, high, n = ratio_of(md, one)
            ratio = unbroken(f"{number(value, 2)} [{number(low, 2)}, {number(high, 2)}]") if n > 1 else number(value, 2)
        extrapolated = _yes(known and any(outcome["kind"] == "extrapolated" for outcome in one.row["outcomes"]))
        rows.append([
            one.row["name"], one.row["kind"], _yes(one.row["knows_cv"]), number(one.row["fixed_cpu_s"]["mean"]), seeds,
            extrapolated, f"{one.row['inside']} of {one.row['intervals']}", _yes(one.row["certified"]), ratio,
        ])  # fmt: skip
    columns = (
        "method", "kind", "told of phi", "fixed costs", f"to {TARGET}, seed by seed", "extrapolated",
        "intervals with the truth", "certified", "time of the best MD over its own",
    )  # fmt: skip
    note = (
        "Core-seconds from zero: reference data, training, validation and every start of a process included. Ratios: geometric "
        "mean over seeds, 95 % interval by Student's t of the logarithms. What has none is not ranked: see what was left out."
    )
    return Table(f"Core-seconds from zero to {TARGET}", columns, rows, note, (0, 1, 2, 5, 7))


def _yes(value: object) -> str:
    return "yes" if value else "no"
