"""The report stage: read the run, measure the MD baseline, compute, draw, decide, and write report.html, .md and .json."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen import __version__
from hpc_molgen.analysis import kinetics
from hpc_molgen.efficiency import document, economics, figures
from hpc_molgen.efficiency.baseline import measure_speeds
from hpc_molgen.efficiency.costs import collect_costs
from hpc_molgen.efficiency.document import Results
from hpc_molgen.efficiency.evidence import Evidence, gather
from hpc_molgen.efficiency.findings import TICA_LAG_PS, Findings, analyse
from hpc_molgen.efficiency.record import report_record, stage_provenance
from hpc_molgen.efficiency.verdict import decide, gate
from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.files import write_json
from hpc_molgen.provenance import provenance

if TYPE_CHECKING:
    from hpc_molgen.run import Run

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run: Run) -> dict[str, Any]:
    """Write report/report.{html,md,json} and report/figures; return the figures of the stage.

    Raises
    ------
    InputError
        When a stage that the report needs has not run.
    """
    evidence = gather(run)
    findings = analyse(evidence, run.system.kt_kj_mol, run.config.report.bootstrap_samples, run.config.seed)
    results = _conclude(run, evidence, findings)
    lag = _draw(run, results)
    results = replace(results, tica_lag=lag)
    try:
        _render(run, results)
    except OSError as error:
        raise EnvironmentProblem(
            f"{run.path('report')}: cannot be written ({error}); make space and run the report again"
        ) from error
    write_json(run.path("report", "report.json"), report_record(run, results))
    verdict = results.verdict
    return {"gate_passed": verdict.gate_passed, "headline": verdict.headline, "sentence": verdict.sentence}


def _conclude(run: Run, evidence: Evidence, findings: Findings) -> Results:
    """Costs, quality gate, and only behind it the comparison of costs."""
    costs, speeds = collect_costs(run), measure_speeds(run.system, run.config)
    cv = evidence.torsions.names[0] if evidence.torsions.names else ""
    held_out, raw = (findings.delta_f.get(part.label) for part in (evidence.held_out, evidence.raw))
    corrected = findings.delta_f.get("corrected samples")
    passages = findings.passages.get(evidence.held_out.label, 0)
    checks = gate(cv, bool(evidence.diagnostics["weighted"]), evidence.diagnostics.get("k_hat"), passages, held_out, corrected)
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
    if evidence.training_log:
        figures.training(directory, evidence.training_log)
    if results.contests:
        titles = {"slowest": "all observables converged", "dF": f"dF({names[0]} > 0) alone"}
        figures.break_even(directory, results.contests, results.costs, titles)
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


def _render(run: Run, results: Results) -> None:
    import jinja2

    parts = document.sections(run, results)
    images = {
        name: "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
        for part in parts
        for name, path in ((picture.name, run.path("report", "figures", f"{picture.name}.svg")) for picture in part.pictures)
    }
    values = {
        "name": run.config.name,
        "system": run.system.name,
        "version": __version__,
        "date": time.strftime("%Y-%m-%d"),
        "verdict": results.verdict,
        "key_figures": document.key_figures(run, results),
        "target": document.target_note(results.evidence.diagnostics),
        "sections": parts,
        "images": images,
        "machines": _machines(run),
        "software": provenance(),
        "config": _config_text(run),
    }
    for name in ("report.html", "report.md"):
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=name.endswith("html"), trim_blocks=True, lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )  # fmt: skip
        text = environment.get_template(f"{name}.j2").render(values)
        partial = run.path("report", f"{name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(run.path("report", name))


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
