"""The report as data: everything that the pages show, for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.efficiency.costs import money
from hpc_molgen.files import read_json
from hpc_molgen.provenance import provenance
from hpc_molgen.run import STAGES

if TYPE_CHECKING:
    from hpc_molgen.analysis.free_energy import Estimate
    from hpc_molgen.efficiency.document import Results
    from hpc_molgen.efficiency.findings import Findings
    from hpc_molgen.efficiency.verdict import Verdict
    from hpc_molgen.run import Run

SCHEMA_VERSION = 1


def report_record(run: Run, results: Results) -> dict[str, Any]:
    """Everything of the report as data: report.json."""
    evidence, findings, verdict = results.evidence, results.findings, results.verdict
    labels = {"reference": evidence.held_out.label, "training": evidence.training.label, "all_md": evidence.reference.label}
    labels |= {"raw": evidence.raw.label, "corrected": "corrected samples"}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": run.config.name,
        "system": {"name": run.system.name, "key": run.system.key, "description": run.system.description},
        "verdict": verdict_record(verdict),
        "weights": {name: value for name, value in evidence.diagnostics.items() if name not in ("coverage", "temperatures")},
        "coverage": evidence.diagnostics.get("coverage"),
        "temperatures": results.temperatures,
        "torsions": {"names": evidence.torsions.names, "notes": evidence.torsions.notes},
        "delta_f": _delta_f(findings, labels, verdict.checks),
        "observables": [asdict(row) for row in results.observables],
        "passages": {name: findings.passages.get(labels[name]) for name in ("reference", "all_md")}
        | {"farm": findings.farm_passages},
        "profiles": findings.profiles,
        "basins": findings.basins,
        "divergences": [asdict(row) | {"distance": np.sqrt(row.value), "ratio": row.ratio} for row in findings.divergences],
        "negative_controls": [asdict(row) | {"ratio": row.ratio} for row in findings.controls],
        "seam_share": findings.seam,
        "energies": findings.energies,
        "effective_samples": _effective(
            findings, tuple(labels.values()) if verdict.gate_passed else tuple(labels.values())[:3]
        ),
        "structures": evidence.structures,
        "farm": {**evidence.farm.details, "plain_md": results.plain} if evidence.farm else None,
        "costs": results.costs.as_dict() | {"money": money(run, results.costs)},
        "baseline_md": [speed.as_dict() for speed in results.speeds],
        "break_even": {contest.name: contest.as_dict() for contest in results.contests}
        or {"available": False, "reason": "the quality gate did not pass"},
        "accuracy": results.accuracy.as_dict() if results.accuracy else None,
        "left_out": [asdict(row) for row in results.left_out],
        "provenance": {"report": provenance(), "stages": stage_provenance(run)},
        "config": run.config.model_dump(mode="json"),
    }


def verdict_record(verdict: Verdict) -> dict[str, Any]:
    """Return the verdict as data."""
    return {
        "sentence": verdict.sentence,
        "headline": verdict.headline,
        "gate_passed": verdict.gate_passed,
        "certified": verdict.gate_passed,
        "reasons": verdict.reasons,
        "checks": [asdict(check) for check in verdict.checks],
    }


def _effective(findings: Findings, labels: tuple[str, ...]) -> dict[str, Any]:
    """Effective samples of the sets that may be named: without a passed gate those of MD alone."""
    return {
        label: {name: {"share": e.share, "g_frames": e.inefficiency, "n_effective": e.n_effective} for name, e in found.items()}
        for label, found in findings.effective.items()
        if label in labels
    }


def stage_provenance(run: Run) -> dict[str, dict[str, Any]]:
    """Software and hardware of each finished stage."""
    stages = [stage for stage in STAGES if stage != "report" and run.path(stage, "done.json").is_file()]
    return {stage: read_json(run.path(stage, "done.json"))["provenance"] for stage in stages}


def _delta_f(findings: Findings, labels: dict[str, str], checks: tuple[Any, ...]) -> dict[str, Any]:
    found: dict[str, Estimate | None] = {name: findings.delta_f.get(label) for name, label in labels.items()}
    reference, corrected = found["reference"], found["corrected"]
    inside = reference is not None and corrected is not None and reference.low <= corrected.value <= reference.high
    consistent = any(check.name == "free energies agree" and check.passed for check in checks)
    return {"unit": "kT", **found, "consistent": consistent, "inside_reference_interval": bool(inside)}
