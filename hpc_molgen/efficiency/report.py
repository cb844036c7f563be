"""The report stage: read the run, measure the MD baseline, compute, draw, decide, and write report.html, .md and .json."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen import __version__, containers
from hpc_molgen.analysis import kinetics
from hpc_molgen.efficiency import (
    accuracy,
    coverage_report,
    document,
    economics,
    exclusions,
    figures,
    pages,
    raw_report,
    series_costs,
    series_exclusions,
    series_figures,
    series_report,
    sheet,
    temperature_report,
)
from hpc_molgen.efficiency.baseline import measure_speeds
from hpc_molgen.efficiency.costs import collect_costs
from hpc_molgen.efficiency.document import Results, Section
from hpc_molgen.efficiency.evidence import Evidence, gather
from hpc_molgen.efficiency.findings import TICA_LAG_PS, Findings, analyse
from hpc_molgen.efficiency.record import report_record, stage_provenance, verdict_record
from hpc_molgen.efficiency.series_findings import analyse_series
from hpc_molgen.efficiency.series_verdict import decide_series
from hpc_molgen.efficiency.verdict import Verdict, decide, doubt_of, gate
from hpc_molgen.files import write_atomically, write_json
from hpc_molgen.provenance import provenance

if TYPE_CHECKING:
    from hpc_molgen.run import Run


def write_report(run: Run) -> dict[str, Any]:
    """Write report/report.{html,md,json,csv} and report/figures; return the figures of the stage.

    Raises
    ------
    InputError
        When a stage that the report needs has not run.
    """
    if run.config.makes_trajectories:
        return _write_series_report(run)
    evidence = gather(run)
    findings = analyse(evidence, run.system.kt_kj_mol, run.config.report.bootstrap_samples, run.config.seed)
    results = _conclude(run, evidence, findings)
    results = replace(results, accuracy=accuracy.of_results(results), left_out=exclusions.collect(run, results))
    lag = _draw(run, results)
    results = replace(results, tica_lag=lag)
    target = document.target_note(results.evidence.diagnostics)
    render(run, run.system.name, results.verdict, document.key_figures(run, results), target, document.sections(run, results))
    write_data(run, report_record(run, results))
    return figures_of(results.verdict)


def write_data(run: Run, record: dict[str, Any]) -> None:
    """Write report.json, and its figures as the table report.csv."""
    write_json(run.path("report", "report.json"), record)
    write_atomically(run.path("report", "report.csv"), sheet.as_csv(sheet.rows_of(record)).encode())


def _write_series_report(run: Run) -> dict[str, Any]:
    """Write the report on a surrogate of trajectories."""
    findings = analyse_series(run)
    verdict = decide_series(findings, run.config.report.tolerance)
    series_figures.draw(run.path("report", "figures"), findings)
    left_out = series_exclusions.collect(run, findings, verdict)
    parts = series_report.sections(run, findings, left_out)
    render(run, run.system.name, verdict, series_report.key_figures(findings), series_report.TARGET, parts)
    record: dict[str, Any] = {"verdict": verdict_record(verdict), "findings": series_report.record(findings)}
    record |= {"costs": series_costs.record(run), "left_out": [asdict(row) for row in left_out], "provenance": provenance()}
    write_data(run, record)
    return figures_of(verdict)


def figures_of(verdict: Verdict) -> dict[str, Any]:
    """Return the figures of the stage."""
    return {"gate_passed": verdict.gate_passed, "headline": verdict.headline, "sentence": verdict.sentence}


def _conclude(run: Run, evidence: Evidence, findings: Findings) -> Results:
    """Costs, quality gate, and only behind it the comparison of costs."""
    costs, speeds = collect_costs(run), measure_speeds(run.system, run.config)
    cv = evidence.torsions.names[0] if evidence.torsions.names else ""
    held_out, raw = (findings.delta_f.get(part.label) for part in (evidence.held_out, evidence.raw))
    corrected = findings.delta_f.get("corrected samples")
    passages = findings.passages.get(evidence.held_out.label, 0)
    missing = coverage_report.missing(evidence.diagnostics)
    weighted, k_hat = bool(evidence.diagnostics["weighted"]), evidence.diagnostics.get("k_hat")
    annealed = evidence.diagnostics.get("annealed")
    checks = gate(cv, weighted, k_hat, passages, held_out, corrected, missing, annealed, doubt_of(evidence.diagnostics))
    certified, contests = [], []
    if all(check.passed for check in checks):
        certified = economics.certified_observables(evidence, findings)
        contests = economics.contests(evidence, findings, costs, speeds)
    return Results(
        evidence=evidence,
        findings=findings,
        costs=costs,
        speeds=speeds,
        plain=economics.plain_md(evidence, findings),
        certified=certified,
        contests=contests,
        verdict=decide(cv, checks, held_out, raw, corrected, contests),
        dt_ps=kinetics.frame_interval_ps(evidence.reference_time_ps, _units(evidence)),
        temperatures=temperature_report.collect(run, evidence.torsions, evidence.diagnostics),
        observables=raw_report.collect(run, evidence.diagnostics),
    )


def _units(evidence: Evidence) -> np.ndarray:
    units = evidence.reference.units
    return np.zeros(len(evidence.reference)) if units is None else units


def _draw(run: Run, results: Results) -> str:
    """Draw every figure that the run has data for; return the TICA lag in words, or ""."""
    directory, evidence = run.path("report", "figures"), results.evidence
    names = evidence.torsions.names
    if len(names) == 2:
        figures.maps(directory, evidence)
    if names:
        figures.profile(directory, evidence, results.findings)
    figures.energies(directory, evidence)
    if evidence.corrected is not None:
        figures.weights(directory, evidence.corrected)
    coverage_report.draw(directory, run, evidence.diagnostics)
    if evidence.training_log:
        figures.training(directory, evidence.training_log)
    if results.contests:
        titles = {"slowest": "all observables converged", "dF": f"dF({names[0]} > 0) alone"}
        figures.break_even(directory, results.contests, results.costs, titles)
    if results.accuracy:
        accuracy.draw(directory, results.accuracy)
    if evidence.farm is None:
        return ""
    figures.farm(directory, evidence.farm)
    return _draw_tica(directory, results)


def _draw_tica(directory: Path, results: Results) -> str:
    """Draw TICA where there are rotatable torsions and a trajectory longer than the lag."""
    evidence, units = results.evidence, _units(results.evidence)
    shortest = int(np.bincount(np.unique(units, return_inverse=True)[1]).min())
    wanted = round(TICA_LAG_PS / results.dt_ps) if results.dt_ps else 1
    lag = max(1, min(wanted, shortest // 10))
    if not evidence.torsions.rotatable or shortest < 20:
        return ""
    model = kinetics.fit_tica(evidence.reference_rotatable_rad, units, lag)
    words = f"{lag * results.dt_ps:.3g} ps" if results.dt_ps else f"{lag} frames"
    figures.tica(directory, evidence, model, words)
    return words


def render(
    run: Run, of_what: str, verdict: Verdict, key_figures: list[tuple[str, str]], target: str, parts: list[Section]
) -> None:
    """Write report.html and report.md.

    Parameters
    ----------
    run : Run
    of_what : str
        Name of the system, for the title.
    verdict : Verdict
    key_figures : list of (str, str)
        Numbers beside the verdict, and what they are.
    target : str
        What all tables are of.
    parts : list of Section

    Raises
    ------
    EnvironmentProblem
        When they cannot be written.
    """
    images = {
        picture.name: pages.embedded(run.path("report", "figures", f"{picture.name}.svg"))
        for part in parts
        for picture in part.pictures
    }
    values = {
        "name": run.config.name,
        "system": of_what,
        "version": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "verdict": verdict,
        "key_figures": key_figures,
        "target": target,
        "sections": parts,
        "images": images,
        "machines": _machines(run),
        "software": provenance(),
        "containers": _containers(run),
        "config": _config_text(run),
    }
    for name in ("report.html", "report.md"):
        write_atomically(run.path("report", name), pages.render(name, values).encode())


def _containers(run: Run) -> list[str]:
    """Return the images that the stages ran in, this report with them, in words."""
    stages: dict[str, list[str]] = {}
    for stage, found in {**stage_provenance(run), "report": provenance()}.items():
        text = containers.in_words(found["container"])
        stages.setdefault(text, []).append(stage)
    return [f"{', '.join(names)} {text}" for text, names in stages.items() if text]


def _machines(run: Run) -> list[list[str]]:
    """Hardware of each stage: stage, processor, cores, memory, GPUs, load average at the end."""
    rows = []
    for stage, found in stage_provenance(run).items():
        gpus = ", ".join(found["gpus"]) or "none"
        load = f"{found['load_average'][0]:.1f}"
        rows.append([stage, found["cpu"], str(found["cores"]), f"{found['memory_gib']:g}", gpus, load])
    return rows


def _config_text(run: Run) -> str:
    """Return the resolved configuration; files by their names alone, because folders are nobody's business."""
    import yaml

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [short(inner) for inner in value]
        return Path(value).name if isinstance(value, str) and value.startswith("/") else value

    text: str = yaml.safe_dump(short(run.config.model_dump(mode="json")), sort_keys=False)
    return text
