"""The report on a run of many molecules: a line for each, which leads to its own report, sums, and a verdict on all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hpc_molgen.efficiency import exclusions, molecules_figures, report, series_costs
from hpc_molgen.efficiency.costs import Prices
from hpc_molgen.efficiency.document import Picture, Section
from hpc_molgen.efficiency.exclusions import LeftOut
from hpc_molgen.efficiency.molecules_findings import GIVEN, UNSEEN, Findings, Molecule, collect, decide
from hpc_molgen.efficiency.record import SCHEMA_VERSION, stage_provenance, verdict_record
from hpc_molgen.efficiency.tables import Table, number, share, unbroken
from hpc_molgen.efficiency.verdict import Verdict, interval_text
from hpc_molgen.provenance import provenance

if TYPE_CHECKING:
    from hpc_molgen.analysis.free_energy import Estimate
    from hpc_molgen.run import Run

_QUALITY = (
    "Left: effective sample size of the importance weights as they are, without annealing. Right: divergence from held-out MD "
    "in the first plane of torsions, over its noise floor, of raw (crosses) and corrected samples."
)
_COSTS = "CPU seconds of every molecule, all attempts, without its farm."
_SHARE = "The shared training is divided evenly among all molecules that use it, seen or not."


def write_report(run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    """Write report/report.{html,md,json,csv} and report/figures of the whole; return the figures of the stage.

    Parameters
    ----------
    run : Run
        The whole.
    runs : sequence of Run
        Its molecules, whose reports are written.

    Raises
    ------
    InputError
        When a report of one of them is not there.
    """
    findings = collect(run, runs)
    verdict = decide(findings)
    directory = run.path("report", "figures")
    molecules_figures.quality(directory, findings.molecules)
    molecules_figures.costs(directory, findings.molecules)
    left_out = _left_out(run, findings)
    parts = [_molecules(findings), _cost(run, findings), Section(exclusions.TITLE, (), (), (exclusions.table(left_out),))]
    report.render(run, f"{len(runs)} molecules", verdict, _key_figures(findings, verdict), _target(findings), parts)
    report.write_data(run, _record(run, findings, verdict, left_out))
    return report.figures_of(verdict)


def _target(findings: Findings) -> str:
    """Return what the weights are exact for."""
    targets = sorted({molecule.target for molecule in findings.molecules if molecule.target})
    without = [molecule.name for molecule in findings.molecules if not molecule.target]
    parts = [f"Target of the weights: {'; '.join(targets)}."] if targets else []
    return " ".join([*parts, *([f"No importance weights: {', '.join(without)}."] if without else [])])


def _key_figures(findings: Findings, verdict: Verdict) -> list[tuple[str, str]]:
    """Return the numbers beside the verdict."""
    unseen, medians = findings.of_role(UNSEEN), findings.medians
    rows = [(f"{sum(check.passed for check in verdict.checks)} of {len(verdict.checks)}", "molecules certified")]
    if unseen:
        certified = sum(molecule.certified for molecule in unseen)
        rows += [
            (f"{certified} of {len(unseen)}", "unseen molecules certified"),
            (share(medians["ess_fraction"]), "median effective sample size, unseen molecules"),
            (f"{number(medians['ratio'])} x noise floor", "median divergence after correction, unseen molecules"),
        ]
    if findings.training:
        rows.append((f"{number(findings.training['cpu_s'])} CPU s", "for the shared training"))
    rows.append((f"{number(findings.totals['reference_cpu_s'])} CPU s", "for the reference MD of all molecules"))
    return rows


def _molecules(findings: Findings) -> Section:
    """Return what the samples of every molecule are worth."""
    moved = any(molecule.annealed for molecule in findings.molecules)
    columns = [
        "molecule", "shared surrogate", "atoms", "free torsions", "ESS", *(["ESS after annealing"] if moved else []), "k-hat",
        "D / floor, raw", "D / floor, corrected", "dF / kT, corrected", "dF / kT, held-out MD", "certified",
        "first reason why not",
    ]  # fmt: skip
    rows = [_quality_cells(molecule, moved) for molecule in findings.molecules]
    text_columns = (0, 1, len(columns) - 2, len(columns) - 1)
    planes = sorted({molecule.observable for molecule in findings.molecules if molecule.observable})
    where = f", in {', '.join(planes)}" if planes else ""
    note = (
        "ESS: Kish's, of unclipped importance weights as they are. k-hat: of the same weights. D / floor: Jensen-Shannon "
        f"divergence from held-out MD over that of two halves of MD{where}; a dash where no plane of torsions is compared. "
        "dF: of the torsion named there being above 0, with 95 % intervals."
    )
    note += " After annealing: of the weights of samples that were moved, which their estimates come from." if moved else ""
    links = {molecule.name: f"../molecules/{molecule.name}/report/report" for molecule in findings.molecules}
    table = Table("Every molecule", tuple(columns), rows, note, text_columns, links)
    return Section("Molecules", (_surrogate_words(findings),), (Picture("quality", _QUALITY),), (table,))


def _surrogate_words(findings: Findings) -> str:
    training, unseen = findings.training, findings.of_role(UNSEEN)
    names = ", ".join(molecule.name for molecule in unseen)
    not_seen = f" It has not seen {names}." if unseen else ""
    if training is None:
        text = "No surrogate was trained here for all of them together."
        return f"{text}{f' The given one has not seen {names}.' if unseen else ''} Names lead to the molecules' own reports."
    return (
        f"One surrogate of {training['n_parameters']:,} parameters learnt from {training['n_items']:,} frames of "
        f"{', '.join(training['molecules'])}.{not_seen} Names lead to the molecules' own reports."
    )


def _quality_cells(molecule: Molecule, moved: bool) -> list[str]:
    return [
        molecule.name,
        molecule.role,
        str(molecule.n_atoms),
        "-" if molecule.n_torsions is None else str(molecule.n_torsions),
        share(molecule.ess_fraction),
        *([share(molecule.annealed_ess_fraction)] if moved else []),
        number(molecule.k_hat, 2),
        number(molecule.ratio["raw"]),
        number(molecule.ratio["corrected"]),
        _delta_f_cell(molecule.cv, molecule.delta_f["corrected"]),
        _delta_f_cell(molecule.cv, molecule.delta_f["held_out"]),
        "yes" if molecule.certified else "no",
        molecule.reason or "-",
    ]


def _delta_f_cell(cv: str, estimate: Estimate | None) -> str:
    return unbroken(f"{cv}: {interval_text(estimate)}") if estimate is not None else "-"


def _cost(run: Run, findings: Findings) -> Section:
    """Return what every molecule cost, and the sums."""
    shared = findings.training is not None
    columns = ("molecule", "shared surrogate", "reference MD", "own part", *(["shared training"] if shared else []), "farm")
    rows = []
    for molecule in findings.molecules:
        parts = [molecule.reference_cpu_s, molecule.own_cpu_s, *([molecule.training_part_cpu_s] if shared else [])]
        rows.append([molecule.name, molecule.role, *map(number, [*parts, molecule.farm_cpu_s])])
    note = "All attempts, start-up included. Own part: featurize, sample, correct, and training for this molecule alone."
    note += f" {_SHARE}" if shared else ""
    links = {molecule.name: f"../molecules/{molecule.name}/report/report" for molecule in findings.molecules}
    tables = (Table("Cost of every molecule / CPU s", columns, rows, note, (0, 1), links), _sums(run, findings))
    return Section("Costs", (), (Picture("costs", f"{_COSTS} {_SHARE}" if shared else _COSTS),), tables)


def _sums(run: Run, findings: Findings) -> Table:
    prices, totals = Prices.of(run), findings.totals
    names = {
        "reference_cpu_s": f"reference MD of all {len(findings.molecules)} molecules",
        **({"reference_of_seen_cpu_s": "of it, MD of those that the surrogate learnt from"} if findings.training else {}),
        **({"training_cpu_s": "shared training"} if findings.training else {}),
        "own_cpu_s": "own parts of all molecules",
        "farm_cpu_s": "farms of all molecules",
    }
    sums = [(text, totals[name]) for name, text in names.items()]
    sums.append(("sum", sum(totals[name] for name in names if name != "reference_of_seen_cpu_s")))
    rows = [
        [text, number(cpu_s), number(cpu_s / 3600), *([number(prices.money(cpu_s))] if prices.known else [])]
        for text, cpu_s in sums
    ]
    columns = ("what", "CPU s", "core hours", *(["money"] if prices.known else []))
    return Table("Costs of the whole", columns, rows, prices.words() if prices.known else "")


def _left_out(run: Run, findings: Findings) -> list[LeftOut]:
    """Return what the figures of the whole do not hold; what each molecule leaves out stands in its own report."""
    rows = []
    if unseen := findings.of_role(UNSEEN):
        why = "kept from the shared surrogate, to see whether it carries over (unseen)"
        rows.append(LeftOut("frames of unseen molecules", ", ".join(molecule.name for molecule in unseen), why))
    if given := findings.of_role(GIVEN):
        why = "it was trained elsewhere, which counts as free here"
        rows.append(LeftOut("training of the surrogate", f"of {', '.join(molecule.name for molecule in given)}", why))
    groups = {
        "importance weights": [molecule.name for molecule in findings.molecules if molecule.ess_fraction is None],
        "divergence in a plane": [molecule.name for molecule in findings.molecules if not molecule.observable],
    }
    whys = {"importance weights": "its run has none", "divergence in a plane": "fewer than two torsions are compared there"}
    rows += [LeftOut(what, f"of {', '.join(names)}", whys[what]) for what, names in groups.items() if names]
    rows.append(LeftOut("what each molecule leaves out", "see its report", "told there, with the reasons"))
    return [*rows, *exclusions.of_costs(run)]


def _record(run: Run, findings: Findings, verdict: Verdict, left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """Return everything as data: report.json."""
    reasons = [f"{check.name}: {check.detail}" for check in verdict.checks if not check.passed]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": run.config.name,
        "verdict": verdict_record(verdict) | {"reasons": reasons},
        "molecules": [asdict(molecule) for molecule in findings.molecules],
        "surrogate": findings.training,
        "unseen_medians": findings.medians,
        "totals": findings.totals,
        "costs": series_costs.record(run),
        "left_out": [asdict(row) for row in left_out],
        "provenance": {"report": provenance(), "stages": stage_provenance(run)},
        "config": run.config.model_dump(mode="json"),
    }
