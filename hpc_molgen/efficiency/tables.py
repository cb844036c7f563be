"""Tables of the report: rows of text, the same for HTML and Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.analysis.free_energy import BASINS, Estimate, profile_error
from hpc_molgen.efficiency.verdict import interval_text

if TYPE_CHECKING:
    from hpc_molgen.efficiency.evidence import Conformations, Evidence
    from hpc_molgen.efficiency.findings import Divergence, Findings


@dataclass(frozen=True)
class Table:
    """A table with its caption; the first column holds names, the others values.

    `links` leads from such a name to a page, given from where the table's lies and without its ending, .html or .md.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    note: str = ""
    words: tuple[int, ...] = (0,)  # columns of text; the others hold numbers
    links: dict[str, str] = field(default_factory=dict)


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with `digits` significant digits; what does not exist is a dash."""
    if value is None or np.isnan(value):
        return "-"
    if np.isinf(value):
        return "infinite"
    if value != 0 and abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """Write a fraction in percent."""
    if value is None or not np.isfinite(value):
        return "-"
    return f"{100 * value:.2f} %" if value == 0 or value >= 5e-4 else f"{100 * value:.2g} %"


def share_interval(estimate: Estimate) -> str:
    """Write a share with its interval, in percent."""
    if not np.isfinite([estimate.low, estimate.high]).all():
        return share(estimate.value)
    return unbroken(f"{100 * estimate.value:.2f} [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]")


def unbroken(text: str) -> str:
    """Keep a value and its interval on one line."""
    return text.replace(" ", "\u00a0")


def _sets(evidence: Evidence) -> list[Conformations]:
    return [evidence.held_out, evidence.training, evidence.raw, *([evidence.corrected] if evidence.corrected else [])]


def _size(part: Conformations) -> str:
    if part.units is None:
        return f"{len(part):,} samples"
    if part.label == "corrected samples":
        return f"{len(part):,} annealed samples, {part.n_units} independent parts"
    return f"{len(part):,} frames, {part.n_units} trajectories"


def free_energies(evidence: Evidence, findings: Findings, kt_kj_mol: float) -> Table:
    """Free-energy differences of every set."""
    cv, held_out = evidence.torsions.names[0], findings.delta_f[evidence.held_out.label]
    rows = []
    for part in [evidence.held_out, evidence.training, evidence.reference, *_sets(evidence)[2:]]:
        found = findings.delta_f[part.label]
        scaled = Estimate(*(kt_kj_mol * v for v in (found.value, found.low, found.high, found.standard_error)))
        error = float(np.hypot(found.standard_error, held_out.standard_error))
        difference, profile = "-", "-"
        if part.label in (evidence.raw.label, "corrected samples"):
            known = np.isfinite(found.value - held_out.value) and np.isfinite(error)
            difference = unbroken(f"{found.value - held_out.value:+.2f} ± {error:.2f}") if known else "-"
            profile = number(profile_error(findings.profiles[evidence.held_out.label], findings.profiles[part.label]), 2)
        passages = str(findings.passages[part.label]) if part.label in findings.passages else "-"
        rows.append(
            [
                part.label,
                _size(part),
                passages,
                unbroken(interval_text(found)),
                unbroken(interval_text(scaled, 1)),
                difference,
                profile,
            ]
        )
    columns = (
        "set",
        "size",
        "passages",
        f"dF({cv} > 0) / kT",
        "the same / (kJ/mol)",
        "minus held-out MD / kT",
        "F profile, rms / kT",
    )
    note = (
        "dF = -kT ln[p(cv > 0) / p(cv <= 0)]; brackets are 95 % intervals (bootstrap over trajectories, widened for their "
        "small number by "
        "Student's t; over samples for generated sets); ± is one standard error of the difference. Passages: full ones "
        "between the cores "
        "30..130 and -130..-30 degrees, either way round. Last column: over bins where held-out MD is below 4 kcal/mol, "
        "aligned by the mean."
    )
    return Table(f"Free energy of {cv} > 0", columns, rows, note)


def populations(evidence: Evidence, findings: Findings) -> Table:
    """Populations of the named basins."""
    names = [part.label for part in (evidence.held_out, evidence.training)] + [part.label for part in _sets(evidence)[2:]]
    rows = [[basin, *(share_interval(findings.basins[name][basin]) for name in names)] for basin in BASINS]
    note = (
        "Percent, 95 % intervals as above. beta: psi > 60 or psi < -120 degrees. C5: phi < -110 or phi > 130, beta; C7eq "
        "(with PII): "
        "-110 <= phi < 0, beta; alphaR: phi < 0, not beta; alphaL: 0 < phi < 130, -30 < psi < 120; C7ax: 0 < phi < 130, -120 "
        "< psi <= -30."
    )
    return Table("Populations of the basins / %", ("basin", *names), rows, note)


def farm_populations(findings: Findings, farm_labels: tuple[str, ...], reference: str) -> Table:
    """Populations of the named basins in the frames of the farm, beside those of the reference."""
    names = (reference, *farm_labels)
    rows = [[basin, *(share_interval(findings.basins[name][basin]) for name in names)] for basin in BASINS]
    note = (
        "Percent, 95 % intervals (bootstrap over replicas). Weighted: a frame counts as the structure that its replica started "
        "from; structures drawn by weight count the same. The farm relaxes within basins; it does not cross between slow ones."
    )
    return Table("Basins of the farm / %", ("basin", *names), rows, note)


def divergences(rows: list[Divergence], title: str, note: str) -> Table:
    """Divergences with the noise floor at equal size."""
    sizes = ("n (ESS)", "D all / nats", "distance √D", "size compared", "D at that size", "noise floor", "ratio")
    columns = ("observable", "set", *sizes)
    body = []
    for row in rows:
        spread = f" ± {row.floor_spread:.4f}" if row.floor_spread else ""
        size = f"{row.n:,}" + (f" ({row.ess:,.0f})" if round(row.ess) != row.n else "")
        cells = [row.observable, row.label, size, f"{row.value:.4f}", f"{np.sqrt(row.value):.3f}", f"{row.size:,.0f}"]
        body.append([*cells, f"{row.at_size:.4f}", unbroken(f"{row.floor:.4f}{spread}"), f"{row.ratio:.2f}"])
    return Table(title, columns, body, note, (0, 1))


def seams(evidence: Evidence, findings: Findings) -> Table:
    """Share of each torsion near +-180 degrees."""
    names = [part.label for part in _sets(evidence)]
    rows = []
    for torsion in evidence.torsions.names:
        reference = findings.seam[evidence.held_out.label][torsion].value
        cells = []
        for name in names:
            found = findings.seam[name][torsion]
            ratio = f" (x {found.value / reference:.2f})" if reference > 0 and name != evidence.held_out.label else ""
            cells.append(share_interval(found) + ratio)
        rows.append([torsion, *cells])
    note = "Percent of the weight within 2 degrees of ±180, 95 % intervals; x: over held-out MD. "
    note += "A network that is not periodic digs a trench here."
    return Table("The seam / %", ("torsion", *names), rows, note)


def energies(findings: Findings) -> Table:
    """Reduced energies against held-out MD."""
    rows = []
    for row in findings.energies:
        distance = "-" if row.label == "held-out MD" else number(row.wasserstein)
        floor = " (noise floor)" if row.label == "training MD" else ""
        rows.append([row.label, f"{row.n:,}", number(row.mean, 4), number(row.spread), distance + floor, str(row.n_infinite)])
    columns = ("set", "n", "mean u / kT", "standard deviation / kT", "Wasserstein-1 from held-out / kT", "not finite")
    return Table(
        "Reduced energies", columns, rows, "Weighted means; samples whose energy is not finite are counted and left out."
    )


def weights(diagnostics: dict[str, Any]) -> Table:
    """What the importance weights are worth."""
    moved = diagnostics.get("annealed")
    diagnostics = diagnostics.get("importance", diagnostics)
    n, ess = int(diagnostics["n"]), float(diagnostics["ess"])
    rows = [
        ["samples N", f"{n:,}"],
        ["effective sample size (Kish), unclipped", f"{ess:,.1f} = {share(diagnostics['ess_fraction'])} of N"],
        [
            "the same with the top 1e-4 of the weights clipped (for comparison with the literature)",
            f"{share(diagnostics['ess_clipped_fraction'])} of N",
        ],
        ["largest share of one sample", share(diagnostics["largest_share"])],
        ["Pareto k-hat (at most 0.7 is trusted)", number(diagnostics["k_hat"], 3)],
        ["energy evaluations per effective sample", number(n / ess, 3)],
    ]
    if moved is not None:
        rows += [
            ["what estimates rest on, as these weights are worth too little", str(moved["kind"])],
            ["independent parts, of so many islands", f"{moved['independent_parts']}, {moved['islands']}"],
            ["energies with forces that it took", f"{moved['n_energies']:,}"],
            ["mean acceptance of Langevin moves", share(moved["acceptance"])],
        ]
        if "levels" in moved:
            rows += [["temperatures, mean", number(moved["levels"], 3)], ["ancestors that are left", f"{moved['ancestors']:,}"]]
        else:
            rows += [["mean acceptance of the surrogate's samples", share(moved["independence_acceptance"])]]
    return Table(
        "Importance weights",
        ("quantity", "value"),
        rows,
        "w = exp(-u) / q with q the density of the same coordinates, Jacobian included.",
    )


def structures(diagnostics: dict[str, Any], files: dict[str, Any]) -> Table:
    """Fractions that fail each check."""
    labels = {
        "bonds": "a bond off by more than 20 %",
        "clash": "non-bonded heavy atoms nearer than 0.2 nm",
        "chirality": "a mirrored C-alpha",
        "omega": "a cis amide",
        "energy": "energy above the 99.9th percentile of held-out MD",
        "any": "any of these",
    }
    samples, written = diagnostics["failed_fractions_of_samples"], diagnostics["failed_fractions_of_structures"]
    rows = [[text, share(samples[key]), share(written[key])] for key, text in labels.items()]
    note = f"{files['n_files']} PDB files"
    if "distinct_parents" in diagnostics:
        note += f" from {diagnostics['distinct_parents']} distinct samples"
    note += ", drawn by systematic resampling" + (" of the weights." if diagnostics["weighted"] else " with equal weights.")
    if files["max_deviation_deg"] is not None:
        note += f" Torsions measured in {files['n_read']} of the files differ from the sampled ones by at most "
        note += f"{files['max_deviation_deg']:.3f} degrees (PDB coordinates have three decimals)."
    return Table("Structures that fail a check", ("check", "of the raw samples", "of the PDB files"), rows, note)
