"""The report as a document: sections of text, figures and tables, from which the templates make HTML and Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hpc_molgen.efficiency import accuracy, cost_tables, coverage_report, exclusions, raw_report, tables, temperature_report
from hpc_molgen.efficiency.costs import Prices
from hpc_molgen.efficiency.evidence import N_BLOCKS
from hpc_molgen.efficiency.findings import FARM_PLAIN, FARM_WEIGHTED
from hpc_molgen.efficiency.tables import Table, number, share
from hpc_molgen.efficiency.verdict import doubt_of, interval_text
from hpc_molgen.reweighting import K_HAT_LIMIT

if TYPE_CHECKING:
    from hpc_molgen.efficiency.accuracy import Accuracy
    from hpc_molgen.efficiency.baseline import Speed
    from hpc_molgen.efficiency.costs import CostBook
    from hpc_molgen.efficiency.economics import Contest
    from hpc_molgen.efficiency.evidence import Evidence
    from hpc_molgen.efficiency.exclusions import LeftOut
    from hpc_molgen.efficiency.findings import Findings
    from hpc_molgen.efficiency.raw_report import ObservableRow
    from hpc_molgen.efficiency.verdict import Verdict
    from hpc_molgen.run import Run


@dataclass(frozen=True)
class Picture:
    """A figure by name and its caption; its file, from where the page lies, is figures/NAME.png unless it says otherwise."""

    name: str
    caption: str
    file: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with text, then figures, then tables."""

    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Results:
    """All that the document is written from."""

    evidence: Evidence
    findings: Findings
    costs: CostBook
    speeds: list[Speed]
    plain: dict[str, Any]
    certified: list[str]
    contests: list[Contest]
    verdict: Verdict
    tica_lag: str = ""
    dt_ps: float | None = None
    notes: list[str] = field(default_factory=list)
    temperatures: list[dict[str, Any]] = field(default_factory=list)
    observables: list[ObservableRow] = field(default_factory=list)
    accuracy: Accuracy | None = None
    left_out: list[LeftOut] = field(default_factory=list)


def target_note(diagnostics: dict[str, Any]) -> str:
    """Return what every table says about the weights."""
    doubt = doubt_of(diagnostics)
    if not diagnostics["weighted"]:
        return f"No importance weights exist in this run, as {doubt}. Generated samples are raw."
    of_paths = diagnostics.get("density") == "path"
    paths = " Path weights: of the whole stochastic path of a sample, not of its ln q." if of_paths else ""
    estimates = f" The weights are estimates, which are never certified: {doubt}." if doubt else ""
    return f"Target of the weights: {diagnostics['target']}.{paths}{estimates}"


def key_figures(run: Run, results: Results) -> list[tuple[str, str]]:
    """Return the numbers beside the verdict: (value, what it is)."""
    evidence, findings = results.evidence, results.findings
    rows = []
    if findings.delta_f:
        cv = evidence.torsions.names[0]
        rows.append((f"{interval_text(findings.delta_f[evidence.held_out.label])} kT", f"dF({cv} > 0), held-out MD"))
        ours = evidence.corrected or evidence.raw
        rows.append((f"{interval_text(findings.delta_f[ours.label])} kT", f"dF({cv} > 0), {ours.label}"))
    if evidence.corrected:
        diagnostics = evidence.diagnostics
        raw = diagnostics.get("importance", diagnostics)
        rows.append((f"{share(raw['ess_fraction'])} of {raw['n']:,}", "effective sample size, unclipped"))
        if "annealed" in diagnostics:
            rows.append((str(diagnostics["annealed"]["kind"]), "moves them, as these weights are worth too little"))
        else:
            rows.append((number(diagnostics["k_hat"], 2), "Pareto k-hat (at most 0.7)"))
    rows += [
        (f"{row.ratio:.2f} x noise floor", f"divergence of {row.observable} bins, {row.label}")
        for row in findings.divergences
        if " x " in row.observable and row.label == (evidence.corrected or evidence.raw).label
    ]
    rows += raw_report.key_figures(results.observables)
    rows.append((share(evidence.diagnostics["failed_fractions_of_structures"]["any"]), "of the PDB files fail a check"))
    total = sum(cost.cpu_s for cost in results.costs.stages)
    rows.append((f"{number(total / 60)} CPU min", f"for all stages of the run '{run.config.name}'"))
    return rows[:6]


def sections(run: Run, results: Results) -> list[Section]:
    """Return the sections in the order of reading, every table with the target of the weights in its note."""
    parts = [
        _conformations(run, results),
        _raw(run, results),
        _divergences(results),
        _energies_and_weights(results),
        _coverage(results),
        _temperatures(run, results),
        _structures(results),
        _costs(run, results),
        _training(run, results),
        _farm(run, results),
        Section(exclusions.TITLE, (), (), (exclusions.table(results.left_out),)),
    ]
    note = target_note(results.evidence.diagnostics)
    return [_with_note(part, note) for part in parts if part is not None]


def _with_note(section: Section, note: str) -> Section:
    noted = tuple(replace(table, note=f"{table.note} {note}".strip()) for table in section.tables)
    return replace(section, tables=noted)


def _reference_words(run: Run, results: Results) -> str:
    config, evidence = run.config.reference, results.evidence
    if config.trajectories:
        text = f"The reference is {evidence.reference.n_units} of the user's trajectories ({len(evidence.reference):,} frames)"
    else:
        bias = f", biased along {config.bias_torsion} and reweighted" if evidence.is_biased else ", unbiased"
        if config.tempering_kelvin:
            hottest = config.tempering_kelvin[-1]
            bias = f", each a ladder of parallel tempering up to {hottest:g} K, so that its time is no physical time"
        text = (
            f"The reference is {config.n_walkers} independent walkers of {config.production_ps:g} ps each "
            f"({len(evidence.reference):,} frames){bias}"
        )
    split = f"{evidence.training.n_units} of them train the surrogate and {evidence.held_out.n_units} are held out"
    words = f"{text}; {split}: all comparisons are with these."
    if evidence.held_out.n_units == 1:
        words += f" Intervals of a single trajectory come from {N_BLOCKS} contiguous blocks of it: too narrow where these are "
        words += "not independent."
    return words


def _conformations(run: Run, results: Results) -> Section:
    evidence, findings = results.evidence, results.findings
    text = [
        f"{run.system.name}: {run.system.description or 'energy function as given'}; {run.system.temperature_kelvin:g} K.",
        _reference_words(run, results),
    ]
    text += list(evidence.torsions.notes)
    if not evidence.torsions.names:
        return Section("Conformations", tuple(text))
    cv, pictures, shown = evidence.torsions.names[0], [], []
    sizes = f"{len(evidence.held_out):,} frames, {len(evidence.raw):,} samples"
    if len(evidence.torsions.names) == 2:
        pictures.append(Picture("maps", (
            f"({cv}, {evidence.torsions.names[1]}) of held-out MD, raw{' and corrected' if evidence.corrected else ''} samples "
            f"({sizes}), 60 x 60 bins on one "
            f"scale; white: not visited. "
            "The maps go on beyond the dashed lines at ±180 degrees: a trench or a ridge along them would be an artefact."
        )))  # fmt: skip
    pictures.append(Picture("profile", (
        f"Left: free energy along {cv}, 100 bins, lowest bin at zero. Right: dF({cv} > 0), the grey band repeats held-out MD. "
        f"Bands and bars are 95 % bootstrap intervals ({run.config.report.bootstrap_samples} draws) over trajectories for MD "
        f"and over samples for the others."
    )))  # fmt: skip
    shown.append(tables.free_energies(evidence, findings, run.system.kt_kj_mol))
    if findings.basins:
        shown.append(tables.populations(evidence, findings))
    return Section("Conformations and free energies", tuple(text), tuple(pictures), tuple(shown))


def _raw(run: Run, results: Results) -> Section | None:
    if results.evidence.diagnostics["weighted"]:
        return None
    shown = (raw_report.table(results.observables),) if results.observables else ()
    return Section(raw_report.TITLE, tuple(raw_report.text(run)), (), shown)


def _divergences(results: Results) -> Section | None:
    evidence, findings = results.evidence, results.findings
    if not findings.divergences:
        return None
    bias = " The bias makes the Kish size of MD smaller than its number of frames." if evidence.is_biased else ""
    smaller = "Corrected samples have an ESS below N, so set" if evidence.corrected else "Set"
    note = (
        f"Jensen-Shannon divergence from held-out MD ({len(evidence.held_out):,} frames, ESS {evidence.held_out.ess:,.0f}), "
        f"at most ln 2 = 0.693. {smaller} and floor are "
        "compared at equal size: both thinned at random to the smaller Kish size of the two (mean of 5). Noise floor: "
        "training half against held-out half of "
        f"the MD, split by trajectory. A ratio below 1 is possible: frames of MD are correlated in time, samples are not.{bias}"
    )
    controls = "Sets that are wrong on purpose, by the same code: what the divergence can see, and what it cannot at this size."
    shown = (
        tables.divergences(findings.divergences, "Divergence from held-out MD, and its noise floor", note),
        tables.divergences(findings.controls, "Negative controls", controls),
        tables.seams(evidence, findings),
    )
    return Section("Divergences", (), (), shown)


def _energies_and_weights(results: Results) -> Section:
    evidence = results.evidence
    pictures = [Picture("energies", (
        f"Reduced energy of held-out MD ({len(evidence.held_out):,} frames, reweighted), raw samples (n = "
        f"{len(evidence.raw):,})"
        + (" and corrected ones." if evidence.corrected else "; no weights exist.")
    ))]  # fmt: skip
    shown, text = [tables.energies(results.findings)], []
    if evidence.corrected:
        pictures.append(
            Picture(
                "weights",
                f"Importance weights of {len(evidence.raw):,} samples. Left: sorted. Right: share "
                f"of the total that the heaviest samples hold; dashed: equal weights.",
            )
        )
        shown.append(tables.weights(evidence.diagnostics))
    else:
        reason = doubt_of(results.evidence.diagnostics)
        text.append(f"This run has no importance weights, as {reason}. Nothing is corrected to the Boltzmann distribution.")
    return Section("Energies and weights", tuple(text), tuple(pictures), tuple(shown))


def _coverage(results: Results) -> Section:
    diagnostics = results.evidence.diagnostics
    pictures = (Picture("coverage", coverage_report.CAPTION),) if coverage_report.density_of(diagnostics) else ()
    return Section(
        coverage_report.TITLE, tuple(coverage_report.text(diagnostics)), pictures, coverage_report.tables(diagnostics)
    )


def _temperatures(run: Run, results: Results) -> Section | None:
    rows, names = results.temperatures, results.evidence.torsions.names
    if not rows:
        return None
    shown = temperature_report.table(rows, names[0] if names else "", K_HAT_LIMIT)
    return Section(temperature_report.TITLE, tuple(temperature_report.text(rows, run.config.sample.n_samples)), (), (shown,))


def _structures(results: Results) -> Section:
    return Section("Structures", (), (), (tables.structures(results.evidence.diagnostics, results.evidence.structures),))


def _costs(run: Run, results: Results) -> Section:
    evidence, passed = results.evidence, results.verdict.gate_passed
    shown = [cost_tables.stage_table(results.costs, Prices.of(run)), cost_tables.speed_table(results.speeds)]
    text, pictures = [_plain_words(results.plain, evidence)], []
    if results.findings.effective:
        shown.append(cost_tables.observables(evidence, results.findings, results.certified, results.dt_ps, passed))
    if results.accuracy:
        pictures.append(Picture("accuracy", accuracy.caption(results.accuracy)))
        shown.append(accuracy.table(results.accuracy))
    if results.contests:
        shown += [cost_tables.price_table(results.contests), cost_tables.break_even_table(results.contests)]
        pictures.append(Picture("break-even", (
            "Cost of n effective samples: C_MD = equilibration + n c_MD and C_S = data + training + validation + n c_S. Left "
            "and right differ in what counts as effective. Bands: 95 % intervals; "
            "n*: break-even; n₀: what the training data already hold; drawn: what this run drew."
        )))  # fmt: skip
        tempered = bool(run.config.reference.tempering_kelvin)
        others = "Other enhanced sampling was" if tempered else "Parallel tempering and other enhanced sampling were"
        text.append(
            "The MD that competes is the reference MD of this run (its effective samples are measured) at the speed of the "
            "fastest protocol and engine below, many copies at once where the batched engine knows the forces; data, "
            f"validation and equilibration stay at what this run paid. {others} not run: a better MD may exist."
        )
        text.append("Bias scan and process start are needed by both sides and enter neither.")
    else:
        text.append(
            "The quality gate did not pass, so costs of effective samples are not compared: a cheap sample of the "
            "wrong distribution has no price."
        )
    return Section("Costs and break-even" if results.contests else "Costs", tuple(text), tuple(pictures), tuple(shown))


def _plain_words(plain: dict[str, Any], evidence: Evidence) -> str:
    if not plain["available"]:
        return f"Plain, unbiased MD: nothing is known about its cost per passage here ({plain['reason']})."
    farm = f"the farm's {plain['simulated_ns']:.3g} ns ({plain['cpu_s']:.3g} CPU s)"
    seen = f"Plain, unbiased MD: {farm} hold {plain['passages']} full passages of {evidence.torsions.names[0]}"
    bound = number(plain["cpu_s_per_passage_at_least"], 2)
    if plain["cpu_s_per_passage"] is None:
        return f"{seen}, so one passage costs more than {bound} CPU s (95 %, rule of three); there is no estimate."
    return f"{seen}: {number(plain['cpu_s_per_passage'], 2)} CPU s each, more than {bound} (95 %)."


def _training(run: Run, results: Results) -> Section | None:
    if not results.evidence.training_log:
        return None
    details = run.details("train")
    own = details.get("n_rehearsed", 0)
    rehearsed = f" and {own:,} samples of its own" if own else ""
    text = (
        f"{run.config.surrogate.name} surrogate, {details['n_parameters']:,} parameters, {details['steps']:,} steps "
        f"of {run.config.train.batch_size:,} "
        f"on {details['n_items'] - own:,} frames{rehearsed}, {details['ranks']} rank(s) on {details['device']}. Last loss "
        f"{number(details['loss'], 4)} (training batches), {number(details['held_out_loss'], 4)} (held-out)."
    )
    caption = (
        "Loss of training batches (drawn by their Boltzmann weights, noisy) and of the averaged surrogate on held-out "
        "walkers with fixed noise."
    )
    return Section("Training", (text,), (Picture("training", caption),))


def _farm(run: Run, results: Results) -> Section | None:
    farm, config = results.evidence.farm, run.config.farm
    if farm is None:
        return Section("Farm", ("The farm has not run, or no replica finished.",))
    details = farm.details
    solvent = (
        "the energy function of the run"
        if config.solvent == "same"
        else "explicit TIP3P water (energies are those of the whole box)"
    )
    text = [
        f"{details['n_replicas']} replicas from the PDB files, {details['n_failed']} failed; {solvent}, "
        f"{config.timestep_fs:g} fs, "
        f"{'constrained X-H' if config.constraints == 'hbonds' else 'flexible'}; minimised, {config.equilibration_ps:g} ps "
        f"of equilibration, {config.production_ps:g} ps of production; "
        f"{number(details['simulated_ns'])} ns in all, {number(details['ns_per_day_per_core'])} ns/day/core on "
        f"{details['platform']}."
    ]
    pictures = [
        Picture(
            "farm",
            "Every frame of every replica (thin) and their median. RMSD of the heavy atoms to the PDB "
            "file before minimisation, after superposition.",
        )
    ]
    if results.tica_lag:
        kind = "biased MD" if results.evidence.is_biased else "parallel tempering"
        bias = (
            f" The reference frames come from {kind} and are fitted as they are: the components show slow directions, "
            "their time scales mean nothing."
            if results.evidence.is_biased or run.config.reference.tempering_kelvin
            else ""
        )
        pictures.append(Picture("tica", (
            f"Time-lagged independent components of all MD (cosine and sine of the "
            f"{len(results.evidence.torsions.rotatable)} rotatable torsions, lag {results.tica_lag}), "
            f"grey: weighted reference ({len(results.evidence.reference):,} frames); green: {len(farm.replica):,} farm "
            f"frames.{bias}"
        )))  # fmt: skip
    failed = [[str(r["replica"]), r["pdb"], str(r["attempts"]), r["error"]] for r in farm.records if r["state"] != "done"]
    shown = [Table("Failed replicas", ("replica", "structure", "attempts", "error"), failed, "", (0, 1, 3))] if failed else []
    findings = results.findings
    if FARM_PLAIN in findings.basins:
        reference = results.evidence.held_out.label
        shown.insert(0, tables.farm_populations(findings, (FARM_PLAIN, FARM_WEIGHTED), reference))
    return Section("Farm", tuple(text), tuple(pictures), tuple(shown))
