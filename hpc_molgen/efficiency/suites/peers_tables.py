"""Targets, sentences and tables of the suite `peers`, from its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hpc_molgen.efficiency.series_findings import GENERATED, MARKOV
from hpc_molgen.efficiency.suites.peers_series import PUBLISHED, published_sizes
from hpc_molgen.efficiency.suites.record import in_words
from hpc_molgen.efficiency.suites.rounds import target, target_sentence

if TYPE_CHECKING:
    from hpc_molgen.efficiency.suites.peers import Settings

QUESTION = (
    "What do the published pipelines, openmmtools' replica exchange, GROMACS and a Markov state model reach on this machine, "
    "measured by the same code as this package, and at which cost?"
)
STRUCTURES = {
    "md": "plain MD: all frames of a group, the data of the others",
    "floor": "the same thinned to the samples' number: the noise floor",
    "markov": "Markov state model of the group, frames that it emits",
    "published": "published DDPM, 1000 ancestral steps, as drawn",
    "published weighted": "published DDPM, weights exp(-E/kT) as published",
    "ours": "our diffusion of (phi, psi), ODE, as drawn",
    "ours weighted": "our diffusion of (phi, psi), weights exp(-E/kT) / q",
}
DYNAMICS = {
    "md": "plain MD, batched engine",
    "openmmtools": "openmmtools",
    "own exchange": "this package's batched engine",
}
# what repetitions of the originals reached (facts/peers.md)
AGREE, ERRORS = 1.5, 4.0
REPORTED = {"jsd_60": 0.0231, "seam_2": 0.15, "kish_share": 0.027, "gan_increments": 0.71, "gan_transitions": 0.48}


def record_of(results: dict[str, Any], settings: Settings, skipped: Sequence[str], size: str) -> dict[str, Any]:
    """Question, answer, targets, tables and notes."""
    targets = _targets(results)
    shown = [_structures(results, settings), _weights(results), _dynamics(results), *_vacuum(results), *_series(results)]
    return {
        "question": QUESTION,
        "answer": [target_sentence(targets, size), *_answer(results), *skipped],
        "targets": targets,
        "tables": shown,
        "notes": _notes(settings, skipped),
    }


def vacuum_agrees(vacuum: dict[str, Any]) -> bool:
    """Whether both engines sample the same (phi, psi): their divergence is at most 1.5 times that of two parts of one."""
    return bool(vacuum["jsd_60"] <= AGREE * vacuum["jsd_60_floor"])


def exchange_gain(dynamics: dict[str, Any]) -> float | None:
    """Speed of this package's replica exchange over openmmtools'; None unless both have MD's share of alphaR.

    Within four standard errors of the difference from it, over the runs.
    """
    md = dynamics["md"]["alphar_share"]
    for name in ("openmmtools", "own exchange"):
        own = dynamics[name]["alphar_share"]
        error = (own["sd"] ** 2 / own["n"] + md["sd"] ** 2 / md["n"]) ** 0.5
        if abs(own["mean"] - md["mean"]) > ERRORS * error:
            return None
    return _ratio(dynamics["own exchange"]["ns_per_core_day"], dynamics["openmmtools"]["ns_per_core_day"])


def _ratio(above: dict[str, Any], below: dict[str, Any]) -> float:
    return float(above["mean"]) / max(float(below["mean"]), 1e-12)


def _targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    found, series, dynamics = results["structures"], results["series"]["quality"], results["dynamics"]
    ours, published = found["ours"], found["published"]
    rows = [
        ("divergence, our diffusion over the published DDPM", 1.0, _ratio(ours["jsd_60"], published["jsd_60"])),
        ("training, our diffusion over the published DDPM (CPU s)", 1.0,
         _ratio(ours["training_cpu_s"], published["training_cpu_s"])),
        ("score, our GAN over the published one", 1.0, _ratio(series[GENERATED]["score"], series[PUBLISHED]["score"])),
        ("score, our GAN over the Markov state model", 1.0, _ratio(series[GENERATED]["score"], series[MARKOV]["score"])),
    ]  # fmt: skip
    targets = [target(name, f"<= {limit:g}", value, value) for name, limit, value in rows]
    if "openmmtools" in dynamics:
        gain = exchange_gain(dynamics)
        targets.append(target("ns a day and core, own replica exchange over openmmtools'", ">= 1", gain, gain))
    if results["vacuum"]:
        ahead = results["vacuum"]["batched_over_gromacs"] if vacuum_agrees(results["vacuum"]) else None
        name = "ns a day and core in vacuum, batched engine over GROMACS"
        targets.append(target(name, ">= 1", ahead, ahead and ahead["mean"]))
    return targets


def _answer(results: dict[str, Any]) -> list[str]:
    found, series = results["structures"], results["series"]
    floor, cost = (
        {name: in_words(found[name][key]) for name in ("published", "ours", "markov")}
        for key in ("jsd_60_over_floor", "training_cpu_s")
    )
    weighted, divided = found["published weighted"], found["ours weighted"]
    scores, paid = ({name: in_words(row["score"]) for name, row in series["quality"].items()}, series["training_cpu_s"])
    return [
        f"The published DDPM draws (phi, psi) at {floor['published']} times the noise floor after {cost['published']} CPU s of "
        f"training, ours at {floor['ours']} after {cost['ours']}, a Markov state model at {floor['markov']} after "
        f"{cost['markov']}. The MD behind each took {in_words(found['data_cpu_s'])} CPU s and is at "
        f"{in_words(found['md']['jsd_60_over_floor'])} by itself.",
        "Its weights exp(-E/kT) on samples that already follow the Boltzmann distribution are worth "
        f"{_percent(weighted['ess_fraction'])} of the samples and {in_words(weighted['jsd_from_rigid'])} nats away from the "
        f"exact map of the rigid molecule that they mean; divided by q, as ours are, {_percent(divided['ess_fraction'])} and "
        f"{in_words(divided['jsd_from_rigid'])}.",
        *_exchange_words(results["dynamics"]),
        *_vacuum_words(results["vacuum"]),
        f"Trajectories: score {scores[PUBLISHED]} for the published GAN after {in_words(paid[PUBLISHED])} CPU s of training, "
        f"{scores[GENERATED]} for ours after {in_words(paid['generated'])}, {scores[MARKOV]} for a Markov state model (0: "
        "held-out MD, 4: every deviation at its tolerance).",
    ]


def _percent(values: dict[str, Any]) -> str:
    return f"{100 * values['mean']:.3g} ± {100 * values['sd']:.2g} %"


def _exchange_words(dynamics: dict[str, Any]) -> list[str]:
    if "openmmtools" not in dynamics:
        return []
    theirs, ours = dynamics["openmmtools"], dynamics["own exchange"]
    gain = exchange_gain(dynamics)
    if gain is None:
        return ["Replica exchange: a program's share of alphaR is not that of MD, so no speeds are compared."]
    return [
        f"Replica exchange of the same ladder: openmmtools makes {in_words(theirs['ns_per_core_day'])} ns a day and core, this "
        f"package {in_words(ours['ns_per_core_day'])} ({gain:,.0f} times); acceptance of neighbours' swaps "
        f"{in_words(ours['acceptance'])}, of all pairs by openmmtools {in_words(theirs['acceptance'])}."
    ]


def _vacuum_words(vacuum: dict[str, Any] | None) -> list[str]:
    if vacuum is None:
        return []
    if not vacuum_agrees(vacuum):
        return ["In vacuum GROMACS and the batched engine differ in (phi, psi) by more than noise: no speeds are compared."]
    return [
        f"In vacuum {vacuum['version']} makes {in_words(vacuum['ns_per_core_day']['gromacs'])} ns a day and core, the batched "
        f"engine {in_words(vacuum['batched_over_gromacs'])} times that; their energies differ by "
        f"{vacuum['energy_error_kj_mol']:.2g} kJ/mol at most, (phi, psi) by {vacuum['jsd_60']:.2g} nats where two halves of "
        f"the batched engine's differ by {vacuum['jsd_60_floor']:.2g}."
    ]


def _structures(results: dict[str, Any], settings: Settings) -> dict[str, Any]:
    keys = ("jsd_60", "jsd_60_over_floor", "jsd_36", "seam_over_md", "alphar_share", "training_cpu_s", "sampling_cpu_s")
    columns = ["method", "JSD 60 x 60", "over floor", "JSD 36 x 36", "psi within 2 degrees of the seam / MD", "share of alphaR"]
    columns += ["training CPU s", "sampling CPU s"]
    found = results["structures"]
    rows = [[name, *(found[method].get(key) for key in keys)] for method, name in STRUCTURES.items()]
    caption = f"(phi, psi) against held-out walkers, {settings.learning.n_samples:,} samples of each (mean ± sd over groups)"
    return {"caption": caption, "columns": columns, "rows": rows}


def _weights(results: dict[str, Any]) -> dict[str, Any]:
    keys = ("jsd_from_rigid", "ess_fraction", "largest_share", "k_hat", "alphar_share")
    columns = [
        "method",
        "JSD from the rigid molecule's exact map",
        "ESS / N",
        "largest weight's share",
        "k-hat",
        "share of alphaR",
    ]
    rows = [
        [STRUCTURES[method], *(results["structures"][method][key] for key in keys)]
        for method in ("published weighted", "ours weighted")
    ]
    return {"caption": "Weights of the molecule that is rigid but for (phi, psi)", "columns": columns, "rows": rows}


def _dynamics(results: dict[str, Any]) -> dict[str, Any]:
    keys = ("ns_per_core_day", "n_effective", "effective_per_cpu_s", "jsd_60", "alphar_share", "cpu_s")
    columns = ["method", "ns/day per busy core, all copies", "effective samples of alphaR", "of these per CPU s"]
    columns += ["JSD 60 x 60", "share of alphaR", "CPU s"]
    words = {"md": DYNAMICS["md"]} | {
        key: f"replica exchange, {name}" for key, name in DYNAMICS.items() if key != "md"
    }  # fmt: skip
    rows = [[words[method], *(found.get(key) for key in keys)] for method, found in results["dynamics"].items()]
    caption = "Dynamics: X-H constrained, 2 fs, frames at 300 K against held-out walkers (mean ± sd over runs)"
    return {"caption": caption, "columns": columns, "rows": rows}


def _vacuum(results: dict[str, Any]) -> list[dict[str, Any]]:
    vacuum = results["vacuum"]
    if vacuum is None:
        return []
    names = {"gromacs": vacuum["version"], "batched": "batched engine, float32"}
    rows = [[name, vacuum["ns_per_core_day"][key]] for key, name in names.items()]
    caption = "Vacuum, flexible, 1 fs, one thread each, in turn (mean ± sd over rounds)"
    return [{"caption": caption, "columns": ["engine", "ns/day per busy core"], "rows": rows}]


def _series(results: dict[str, Any]) -> list[dict[str, Any]]:
    series = results["series"]
    keys = (
        "divergence_over_floor",
        "increments_over_md",
        "correlation_time_over_md",
        "timescale_over_md",
        "transitions_over_md",
    )
    columns = ["set", "divergence over floor", "increments / MD", "correlation time / MD", "slowest timescale / MD"]
    columns += ["transitions / MD", "score", "training CPU s", "weights"]
    rows = [
        [name, *(found[key] for key in (*keys, "score")), series["training_cpu_s"].get(name),
         f"{series['n_parameters'][name]:,}" if name in series["n_parameters"] else None]
        for name, found in series["quality"].items()
    ]  # fmt: skip
    return [{"caption": "Triple well: trajectories against held-out walkers (mean ± sd over seeds)", "columns": columns,
             "rows": rows}]  # fmt: skip


def _notes(settings: Settings, skipped: Sequence[str]) -> list[str]:
    own, exchange, walkers, gan = settings.learning, settings.exchange, settings.walkers, published_sizes(settings.series)
    notes = [
        f"Data: {walkers.n_groups} groups of {walkers.per_group} walkers of {walkers.production_ps:g} ps, a frame each "
        f"{walkers.save_every_ps:g} ps, X-H constrained, {walkers.timestep_fs:g} fs. One group judges; each of the others "
        "teaches one network of each kind.",
        "The published networks are written anew from their descriptions and keep what is weak in them: raw radians, no "
        f"average of weights, whole windows as one vector. The DDPM trains for {own.published.epochs} epochs and draws in "
        f"{own.published.n_levels} steps; the GAN makes {gan['updates']:,} updates of its generator (published: 2,000 epochs "
        f"of 50 files, some 800) on windows of {gan['frames']:,} frames, its first layer is {gan['hidden']} wide (published: "
        "2,048), and its Adam has beta1 = 0.",
        f"What repetitions of the originals reached on other data (48 ns of MD): the DDPM {REPORTED['jsd_60']} nats, "
        f"{REPORTED['seam_2']:.0%} of the reference's share at the seam, {REPORTED['kish_share']:.1%} of its samples after "
        f"weights (of 100, with MMFF94); the GAN {REPORTED['gan_increments']} of MD's one-step deviation and "
        f"{REPORTED['gan_transitions']} of its transitions.",
        "Samples of (phi, psi) are not corrected to the flexible molecule: no price of an effective sample is printed for "
        "them. Weights are of the rigid molecule, whose map differs from MD's.",
        f"Replica exchange: {exchange.n_temperatures} temperatures to {exchange.hottest_kelvin:g} K, swaps every "
        f"{exchange.swap_every_ps:g} ps, {exchange.n_swaps * exchange.swap_every_ps:,.0f} ps of each copy; this package runs "
        f"{exchange.n_ladders} ladders side by side on one thread and swaps neighbours.",
        "A Markov state model emits frames of its data, so it cannot be better than they are.",
        f"Speeds are compared where both sides sample the same: shares of alphaR within {ERRORS:g} standard errors of MD's; in "
        f"vacuum a divergence of at most {AGREE:g} times that of two parts of one engine's frames.",
    ]
    if not any(text.startswith("openmmtools") for text in skipped):
        notes.append(
            "openmmtools runs one ladder on OpenMM's Reference platform (the fastest for a molecule of this size) and swaps "
            f"all pairs, so it has a {exchange.n_ladders}th of the frames."
        )
    return notes
