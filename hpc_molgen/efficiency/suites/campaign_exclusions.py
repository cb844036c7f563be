"""What a campaign's report leaves out, and why: as its records, its runs and its files say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hpc_molgen.efficiency.suites.campaign_folder import FAULTS, Campaign, RunReport
from hpc_molgen.efficiency.suites.campaign_verdict import Method, methods
from hpc_molgen.efficiency.tables import Table, number, share
from hpc_molgen.reweighting import K_HAT_LIMIT

_SAYS_SO = re.compile(
    r"left out|skipped|not (measured|compared|run|used|shown|checked|shared)|was no GPU|ran on a GPU|not found|assumed|"
    r"no strong scaling|not known|too coarse|kept from earlier|took part in no|extrapolat",
    re.IGNORECASE,
)


def table(campaign: Campaign, problems: list[tuple[str, str]]) -> Table:
    """Return all that is in no figure; `problems` are sections of this report that could not be made."""
    rows = [[name, "the file", reason] for name, reason in campaign.unread]
    rows += [["this report", section, reason] for section, reason in problems]
    rows += [list(row) for row in campaign.faults]
    rows += [list(row) for row in _suites(campaign)]
    for name, record in campaign.records.items():
        rows += [[name, "by its notes", sentence] for sentence in _sentences(record)]
    for name, record in campaign.measured("verdict"):
        rows += _told(name, _not_ranked(record))
    for run in campaign.runs:
        rows += _told(run.name, _of_run(run))
    return Table("Left out, not run, or not counted", ("where", "what", "why"), rows, "", (0, 1, 2))


def _told(name: str, found: Iterator[tuple[str, str]]) -> list[list[str]]:
    """Return what was found of a record or a run, up to where it is not what was expected."""
    rows = []
    try:
        for what, why in found:
            rows.append([name, what, why])
    except FAULTS as fault:
        rows.append([name, "what it leaves out itself", f"not known: it lacks what tells ({type(fault).__name__}: {fault})"])
    return rows


def _suites(campaign: Campaign) -> Iterator[tuple[str, str, str]]:
    """Yield the suites of this version that have no record here, and records that another one of their suite stands before."""
    from hpc_molgen.efficiency.suites import SUITES

    absent = [suite for suite in SUITES if not any(campaign.of_suite(suite))]
    if absent:
        yield "this folder", f"suites {', '.join(absent)}", "there is no record of them"
    shown, *others = [name for name, _ in campaign.of_suite("verdict")] or [""]
    for name in others:
        yield name, "the verdict", f"{shown} is of a larger size, or newer"
    for name, record in campaign.records.items():
        if record["size"] == "smoke":
            yield name, "its speeds", "size smoke: it shows that the suite works, its clock is too coarse"


def _sentences(record: Mapping[str, Any]) -> list[str]:
    """Return the sentences of a record's notes and answer that say what is not in it."""
    texts = [*record["notes"], *record["answer"]]
    parts = [part for text in texts for part in re.split(r"(?<=[.!?])\s+(?=[A-Z*])", text)]
    return [part.replace("**", "") for part in parts if _SAYS_SO.search(part)]


def _not_ranked(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the methods of the suite `verdict` that are not ranked, and why."""
    yield from ((str(method.row["name"]), why) for method in methods(record) if (why := _why_not_ranked(method)))


def _why_not_ranked(method: Method) -> str:
    """Return why a method of the suite `verdict` is not ranked; "" where it is."""
    row = method.row
    if method.eligible:
        return ""
    if row["kind"] == "biased by design":
        return "biased by design: its estimates do not come to the truth however long it samples"
    if method.untimed:
        return "one of its times is not above 0, so that nothing is a multiple of it"
    if not row["certified"]:
        return "not certified: " + ("; ".join(_doubts(row["series"])) or "its weights are not to be trusted")
    if row["median_s"] is None:
        reached = sum(time is not None for time in method.times)
        return f"no time to the target: {reached} of {len(method.times)} seeds have an interval at the end of their budget"
    return f"only {row['inside']} of {row['intervals']} intervals hold the truth"


def _doubts(series: list[Mapping[str, Any]]) -> list[str]:
    doubts = []
    for one in series:
        facts, k_hat = one.get("facts") or {}, (one.get("facts") or {}).get("k_hat")
        reasons = list(facts.get("missing") or [])
        if k_hat is not None and k_hat > K_HAT_LIMIT:
            reasons.append(f"k-hat {number(k_hat, 2)}")
        doubts += [f"seed {one.get('repeat', '?')}: {reason}" for reason in reasons]
    return doubts


def _of_run(run: RunReport) -> Iterator[tuple[str, str]]:
    """Yield what a run's report lists itself, or, of an older version, what its figures show."""
    if "left_out" in run.data:
        yield from ((f"{row['what']} ({row['amount']})", row["why"]) for row in run.data["left_out"])
        return
    verdict = run.data["verdict"]
    if not verdict.get("gate_passed"):
        yield "certified figures", "; ".join(verdict.get("reasons") or []) or "the quality gate did not pass"
    contests = run.data.get("break_even") or {}
    for scenario, star in (contests.get("slowest") or {}).get("n_star", {}).items():
        if star["words"].startswith("not available"):
            yield f"break-even, {scenario}", "not available in this run"
    if (skipped := (run.data.get("coverage") or {}).get("skipped")) is not None and skipped:
        yield "ln q of held-out MD", skipped
    failed = ((run.data.get("weights") or {}).get("failed_fractions_of_samples") or {}).get("any")
    if failed:
        yield f"samples that fail a check of structures ({share(failed)})", "kept, as weights decide"
    farm = run.data.get("farm") if run.of_structures else None
    if farm and farm.get("n_failed"):
        yield f"replicas of the farm ({farm['n_failed']} of {farm['n_replicas']})", "they failed; see the run's own report"
    if not run.data.get("costs"):
        yield "costs", "its report.json, of an older version, does not hold them"
    yield "its own list of what was left out", "its report is of an older version, which has none"
