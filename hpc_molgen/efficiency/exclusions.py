"""What a report leaves out of its figures, how much of it, and why: all of it read from the run, none said of every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.efficiency.baseline import protocols
from hpc_molgen.efficiency.record import stage_provenance
from hpc_molgen.efficiency.tables import Table, number, share
from hpc_molgen.efficiency.verdict import Z_LIMIT, doubt_of
from hpc_molgen.reweighting import K_HAT_LIMIT
from hpc_molgen.run import STAGES, stage_costs

if TYPE_CHECKING:
    from hpc_molgen.efficiency.document import Results
    from hpc_molgen.run import Run

TITLE = "What was left out, and why"
MOST_ERRORS = 5  # different ones that are told


@dataclass(frozen=True)
class LeftOut:
    """One thing that a figure does not hold: what, how much of it, and why."""

    what: str
    amount: str
    why: str


def table(rows: Sequence[LeftOut]) -> Table:
    """Return the table of a report."""
    cells = [[row.what, row.amount, row.why] for row in rows]
    return Table("Left out, not run, or not counted", ("what", "how much", "why"), cells, "", (0, 1, 2))


def collect(run: Run, results: Results) -> list[LeftOut]:
    """Return what the report on structures leaves out, in the order of the stages."""
    return [
        *of_reference(run),
        *_samples(results),
        *_coverage(results),
        *_observables(results),
        *_comparison(run, results),
        *of_farm(run, _records(results)),
        *of_costs(run),
    ]


def of_reference(run: Run) -> list[LeftOut]:
    """Return what of the reference was not used, and results of other settings in the run's folder."""
    config, rows = run.config.reference, []
    if config.trajectories:
        rows.append(LeftOut("cost of the reference MD", "not known", "trajectories were imported: they count as free"))
    elif config.equilibration_ps > 0:
        amount = f"{config.equilibration_ps:g} ps of each of {config.n_walkers} walkers"
        rows.append(
            LeftOut("equilibration of the reference", amount, "walkers still remember their starts; its cost is counted")
        )
    if config.training_kelvin is not None:
        why = f"they ran at {config.training_kelvin:g} K, and the comparison is at {run.system.temperature_kelvin:g} K"
        rows.append(LeftOut("walkers that training saw", "from every comparison", why))
    others = Counter(path.name.split(".old-")[0] for path in run.directory.glob("*.old-*") if path.is_dir())
    if others:
        amount = ", ".join(f"{n} of {stage}" for stage, n in sorted(others.items()))
        rows.append(LeftOut("results of other settings", amount, "kept in STAGE.old-*; their costs are in the table of costs"))
    return rows


def _samples(results: Results) -> list[LeftOut]:
    evidence, diagnostics, rows = results.evidence, results.evidence.diagnostics, []
    rows += [
        LeftOut(
            row.label, f"{row.n_infinite:,} of {row.n:,}", "energy not finite: weight zero, and not in the table of energies"
        )
        for row in results.findings.energies
        if row.n_infinite
    ]
    zero = int(np.isneginf(evidence.log_weight).sum())
    if diagnostics["weighted"] and zero:
        rows.append(
            LeftOut("raw samples", f"{zero:,} of {len(evidence.log_weight):,}", "weight zero in every corrected figure")
        )
    failed, written = (diagnostics[f"failed_fractions_of_{name}"] for name in ("samples", "structures"))
    if failed["any"] > 0:
        kept = "kept, as weights decide" if diagnostics["weighted"] else "kept, as there are no weights to decide"
        why = f"{kept}; of the PDB files {share(written['any'])} fail one and are marked so in their manifest"
        rows.append(LeftOut("samples that fail a check of structures", share(failed["any"]), why))
    unread = results.evidence.structures["n_files"] - results.evidence.structures["n_read"]
    if unread:
        rows.append(LeftOut("PDB files read back", f"{unread} not read", "every n-th file is enough to compare torsions"))
    islands = diagnostics.get("annealed", {}).get("failures", [])
    rows += _grouped("islands of moved samples", islands, "not at the Boltzmann distribution")
    if not diagnostics["weighted"]:
        rows.append(LeftOut("corrected samples", "all", f"the run has no importance weights, as {doubt_of(diagnostics)}"))
    elif doubt := doubt_of(diagnostics):
        rows.append(LeftOut("certified weights", "all", f"the weights are estimates: {doubt}"))
    for row in results.temperatures:
        if row["k_hat"] > K_HAT_LIMIT:
            why = f"Pareto k-hat {number(row['k_hat'], 2)}, above {K_HAT_LIMIT:g}"
            rows.append(LeftOut(f"ensemble at {row['kelvin']:g} K", "not certified", why))
    return rows


def _coverage(results: Results) -> list[LeftOut]:
    evidence, rows = results.evidence, []
    rows += [LeftOut("torsions", "see there", note) for note in evidence.torsions.notes]
    found = evidence.diagnostics.get("coverage")
    if not found:
        return [*rows, LeftOut("coverage of held-out MD", "not checked", "'correct' was made by an earlier version")]
    if found["skipped"]:
        rows.append(LeftOut("ln q of held-out MD", "not compared", found["skipped"]))
    elif found["n_frames"] < len(evidence.held_out):
        amount = f"{len(evidence.held_out) - found['n_frames']:,} of {len(evidence.held_out):,} frames"
        why = f"it was computed of {found['n_frames']:,} (correct.check_frames), as it costs time"
        rows.append(LeftOut("ln q of held-out MD", amount, why))
    return rows + [LeftOut("a mode of the ensemble", "missing", reason) for reason in found["missing"]]


def _observables(results: Results) -> list[LeftOut]:
    """Return the observables that are not certified, each with its reason."""
    evidence, findings = results.evidence, results.findings
    if not results.verdict.gate_passed:
        return [LeftOut("certified observables", "none", "the quality gate did not pass, as said under the verdict")]
    assert evidence.corrected is not None
    md, corrected = (findings.basins.get(part.label, {}) for part in (evidence.held_out, evidence.corrected))
    rows = []
    for name in md:
        if name in results.certified:
            continue
        error = float(np.hypot(md[name].standard_error, corrected[name].standard_error))
        if name == "other":
            why = "what no named basin holds is no state, and is not compared"
        elif md[name].value <= 0 or corrected[name].value <= 0:
            why = "one side never saw it"
        else:
            off = abs(md[name].value - corrected[name].value) / error
            why = f"share differs from held-out MD by {off:.1f} standard errors (at most {Z_LIMIT:g})"
        rows.append(LeftOut(f"share of {name}", "not certified", why))
    return rows


def _comparison(run: Run, results: Results) -> list[LeftOut]:
    """Return the MD that did not compete, and ways of counting that this run has no figures for."""
    rows, config, speeds = [], run.config.reference, results.speeds
    wanted = {
        f"{protocol.label}; {platform}" for protocol in protocols(run.config) for platform in {s.platform for s in speeds}
    }
    rows += [
        LeftOut(label, "no speed", "it blew up in the measurement") for label in sorted(wanted - {s.label for s in speeds})
    ]
    kinds = {
        "parallel tempering": bool(config.tempering_kelvin),
        "MD with a static bias": config.bias_torsion is not None and not config.tempering_kelvin,
        "plain MD": config.bias_torsion is None and not config.tempering_kelvin,
    }
    own = "imported trajectories" if config.trajectories else next(name for name, is_own in kinds.items() if is_own)
    for name, is_own in kinds.items():
        if config.trajectories or not is_own:
            rows.append(LeftOut(f"{name} as a competitor", "not run", f"the reference of this run is {own}"))
    if results.plain["available"] and results.plain["passages"] == 0:
        amount = f"0 passages in {number(results.plain['simulated_ns'])} ns"
        rows.append(LeftOut("price of plain MD", amount, "the farm's plain MD gives a bound, and no estimate"))
    if not results.contests:
        return [*rows, LeftOut("comparison of costs", "none made", "the quality gate did not pass")]
    first = results.contests[0]
    for speed in speeds:
        if speed.label not in first.md:
            rows.append(
                LeftOut(speed.label, "not in the break-even", "it is in seconds of a GPU, and the reference's cost is not")
            )
    rows += [
        LeftOut(f"break-even, {scenario.name}", "not available", "training saw frames of the reference")
        for scenario in first.scenarios
        if scenario.fixed_cpu_s is None
    ]
    return [*rows, LeftOut("spread over trainings", "1 training", f"one seed ({run.config.seed}): its luck is in no interval")]


def _records(results: Results) -> list[dict[str, Any]] | None:
    return results.evidence.farm.records if results.evidence.farm else None


def of_farm(run: Run, records: Sequence[Mapping[str, Any]] | None) -> list[LeftOut]:
    """Return replicas that failed, those that were begun again, and what every replica discards."""
    if records is None:
        return [LeftOut("farm", "not run", "the stage has not run, or no replica finished")]
    config, rows = run.config.farm, []
    failed = [record for record in records if record["state"] != "done"]
    rows += _grouped("replicas of the farm", [str(record["error"]) for record in failed], "in quarantine")
    again = [record for record in records if record["state"] == "done" and int(record.get("attempts", 1)) > 1]
    if again:
        why = "they blew up, and were begun again with new seeds: the attempts before are not in any figure"
        rows.append(LeftOut("attempts of replicas", f"{len(again)} of {len(records)} replicas", why))
    start = config.heating_ps + config.constant_volume_ps + config.equilibration_ps
    if start > 0:
        rows.append(LeftOut("start of every replica", f"{start:g} ps", "heating and equilibration; its cost is counted"))
    return rows


def of_costs(run: Run) -> list[LeftOut]:
    """Return what the costs do not hold: joules, and time of GPUs that is not counted."""
    spent = {stage: stage_costs(run, stage) for stage in STAGES if stage != "report"}
    begun = [stage for stage, cost in spent.items() if cost["attempts"]]
    without, rows = [stage for stage in begun if spent[stage].get("joules") is None], []
    if without:
        amount = "of any stage" if without == begun else f"of {', '.join(without)}"
        rows.append(LeftOut("joules", amount, "no counter (RAPL, NVML) could be read there, and none is estimated"))
    gpus = sorted({gpu for stage in stage_provenance(run).values() for gpu in stage["gpus"]})
    if gpus:
        why = f"stages saw {', '.join(gpus)}; GPU hours are the wall time of training and sampling alone, and no counter's"
        rows.append(LeftOut("GPU hours of other stages", "not counted", why))
    return rows


def _grouped(what: str, errors: Iterable[str], state: str) -> list[LeftOut]:
    """One row for each different error, the most frequent first."""
    counted = Counter(error.splitlines()[0] if error else "no reason was recorded" for error in errors).most_common()
    rows = [LeftOut(what, f"{n} {state}", error) for error, n in counted[:MOST_ERRORS]]
    rest = sum(n for _, n in counted[MOST_ERRORS:])
    return rows + ([LeftOut(what, f"{rest} {state}", "other errors, see the manifest")] if rest else [])
