"""What the report on generated trajectories leaves out, and why."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.efficiency import exclusions
from hpc_molgen.efficiency.exclusions import LeftOut
from hpc_molgen.efficiency.series_findings import HELD_OUT, SeriesFindings

if TYPE_CHECKING:
    from hpc_molgen.efficiency.verdict import Verdict
    from hpc_molgen.run import Run


def collect(run: Run, findings: SeriesFindings, verdict: Verdict) -> list[LeftOut]:
    """Return what is in no figure, in the order of the stages."""
    rows = [*exclusions.of_reference(run), *_labels(findings), *_kinetics(findings)]
    if not verdict.gate_passed:
        rows.append(LeftOut("certified trajectories", "none", "the quality gate did not pass, as said under the verdict"))
    rows.append(LeftOut("importance weights", "none exist", "a surrogate of trajectories knows no ln q"))
    rows.append(LeftOut("comparison of costs with MD", "none made", "without weights an effective sample has no price"))
    if not findings.others:
        rows.append(LeftOut("other surrogates", "none beside", "report.others names no run"))
    rows += exclusions.of_farm(run, _records(run))
    if findings.seeds is not None and findings.seeds.covered < 1:
        amount = f"{100 * (1 - findings.seeds.covered):.0f} % of the clusters"
        rows.append(
            LeftOut("short MD from generated frames", amount, "the Markov state model of the farm does not connect them")
        )
    return rows + exclusions.of_costs(run)


def _labels(findings: SeriesFindings) -> list[LeftOut]:
    unseen = [name for name in findings.labels if name.endswith("(unseen)")]
    return [LeftOut(name, "from all tables but that of labels", "training never saw this label") for name in unseen]


def _kinetics(findings: SeriesFindings) -> list[LeftOut]:
    rows = []
    if findings.states is None:
        rows.append(LeftOut("populations, transitions, passage times", "none", "report.states names no states"))
    for name, part in findings.sets.items():
        lags = [str(lag) for lag, row in zip(findings.lags, part.timescales, strict=True) if not np.isfinite(row[0, 0])]
        if lags:
            why = "the Markov state model has no such timescale there"
            rows.append(LeftOut(f"implied timescale of {name}", f"lags {', '.join(lags)}", why))
    columns = len(findings.bins.columns)
    if len(findings.feature_names) > columns:
        rest = ", ".join(findings.feature_names[columns:])
        rows.append(LeftOut("divergence and surfaces", rest, "they are of the first features alone"))
    if findings.sets[HELD_OUT].n_trajectories < 2:
        rows.append(LeftOut("intervals of held-out MD", "none", "there is one trajectory: nothing to draw from"))
    return rows


def _records(run: Run) -> list[dict[str, Any]] | None:
    path = run.path("farm", "manifest.jsonl")
    if not run.path("farm", "done.json").is_file() or not path.is_file():
        return None
    return [json.loads(line) for line in path.read_text().splitlines()]
