"""Targets, sentences and tables of the `ramachandran` suite, from its scores."""

from __future__ import annotations

from typing import Any

SEAM_COLUMNS = ("seam_1_deg_over_reference", "seam_2_deg_over_reference", "seam_5_deg_over_reference")
QUESTION = (
    "How well does the torsion surrogate reproduce (phi, psi) of alanine dipeptide on trajectories that it never saw, "
    "against the noise of the data, a kernel density estimate and the DDPM of the first published pipeline, "
    "and what does each cost?"
)
NOTES = [
    "JSD: Jensen-Shannon divergence in nats on fixed bins over the period; the distance is its square root. "
    "Bins, n and code are the same for all methods.",
    "Walkers are split, never frames: the first half trains, the second is held out and is looked at by the scores alone.",
    "The noise floor is what the training half itself scores, thinned at random to the n of the samples. Its spread is over "
    "thinnings and does not contain the difference between the two halves, which all rows share.",
    "Spreads are standard deviations over draws (sampling seeds, and training seeds of ours), not standard errors of a mean.",
    "Hyperparameters of ours were chosen on molecular dynamics of another seed (2), whose frames are in neither half here.",
    "The published DDPM is written anew from its description, and trained once; its sampler uses the posterior's variance.",
    "All networks ran on one thread and drew samples in chunks of the same size; CPU seconds are of the process that worked.",
]


def _target(name: str, target: str, measured: float, reached: bool) -> dict[str, Any]:
    return {"name": name, "target": target, "measured": measured, "reached": bool(reached)}


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the figures with what they have to reach."""
    fast, ancestral, floor = results["fast"], results["ancestral"], results["floor"]
    divergence, kernel = fast["jsd_60"]["mean"], results["kernel"]["jsd_60"]["mean"]
    ratio = divergence / floor["jsd_60"]["mean"]
    seam = fast["seam_2_deg_over_reference"]
    seam_ratio = seam["mean"] if seam else float("nan")
    speed = fast["samples_per_cpu_s"]["mean"] / ancestral["samples_per_cpu_s"]["mean"]
    loss = divergence / ancestral["jsd_60"]["mean"]
    training, published = fast["training_cpu_s"]["mean"], results["published"]["training_cpu_s"]["mean"]
    evaluations = fast["n_evaluations"]
    listed = [
        _target("JSD 60 x 60 of ours over the equal-n noise floor", "<= 1.05", ratio, ratio <= 1.05),
        _target("JSD 60 x 60 of ours over the 4-degree kernel estimate's", "< 1", divergence / kernel, divergence < kernel),
        _target("our training over the published DDPM's (CPU s)", "<= 1", training / published, training <= published),
        _target("samples per CPU s, fast over ancestral", ">= 20", speed, speed >= 20),
        _target("JSD 60 x 60, fast over ancestral", "<= 1.05", loss, loss <= 1.05),
        _target("network evaluations of a fast sample", "<= 50", float(evaluations), evaluations <= 50),
    ]
    if seam:
        name = "psi within 2 degrees of +-180, ours over held-out"
        listed.insert(2, _target(name, "0.8 - 1.2", seam_ratio, 0.8 <= seam_ratio <= 1.2))
    return listed


def answer(
    results: dict[str, Any], reached: list[dict[str, Any]], data: dict[str, Any], train_costs: dict[str, Any]
) -> list[str]:
    """Sentences that answer the question, good or bad."""
    missed = [target["name"] for target in reached if not target["reached"]]
    figure = {label: result["jsd_60"]["mean"] for label, result in results.items()}
    fast = results["fast"]
    md, training, sampling = train_costs["cpu_s"], fast["training_cpu_s"]["mean"], fast["sampling_cpu_s"]["mean"]
    sentences = [
        f"{len(reached) - len(missed)} of {len(reached)} targets reached"
        + (f"; missed: {', '.join(missed)}." if missed else "."),
        f"JSD 60 x 60 of ours {figure['fast']:.4f} ({fast['n_training_seeds']} trainings, {fast['jsd_60']['n']} draws); "
        f"the floor at equal n {figure['floor']:.4f}, the 4-degree kernel density estimate {figure['kernel']:.4f}, "
        f"the published DDPM {figure['published']:.4f}.",
        f"Counting everything, ours costs {md + training + sampling:.0f} CPU s (data {md:.0f}, training {training:.0f}, "
        f"sampling {sampling:.1f}); its training data alone cost {md:.0f} and score {figure['full']:.4f}: "
        + ("on this one molecule, uncorrected, MD wins." if figure["full"] <= figure["fast"] else "here the surrogate wins."),
    ]
    train, held_out = data["train"], data["held_out"]
    sentences.append(
        f"phi in (0, 130) degrees was entered or left {train['phi_positive_crossings']} times in the training half and "
        f"{held_out['phi_positive_crossings']} times in the held-out half: a surrogate knows what its data knew."
    )
    return sentences


def scores(results: dict[str, Any], n_samples: int) -> dict[str, Any]:
    """The table of divergences and seam shares."""
    keys = ("jsd_60", "jsd_60_over_floor", "js_distance_60", "jsd_36", *SEAM_COLUMNS, "phi_positive_share")
    columns = ["method", "JSD 60 x 60", "over floor", "distance 60 x 60", "JSD 36 x 36"]
    columns += ["psi seam 1 deg", "2 deg", "5 deg", "phi in (0, 130) deg"]
    rows = [[result["method"], *(result.get(key) for key in keys)] for result in results.values()]
    caption = f"Agreement with the held-out half, {n_samples:,} samples (mean ± sd over draws; seam: relative to held-out)"
    return {"caption": caption, "columns": columns, "rows": rows}


def costs(results: dict[str, Any]) -> dict[str, Any]:
    """The table of costs by method."""
    keys = ("training_cpu_s", "sampling_cpu_s", "samples_per_cpu_s", "n_evaluations", "jsd_60_of_training_seeds")
    columns = ["method", "training CPU s", "sampling CPU s", "samples per CPU s", "network evaluations"]
    columns += ["JSD 60 x 60 over training seeds"]
    rows = [[result["method"], *(result[key] for key in keys)] for result in results.values() if "training_cpu_s" in result]
    return {"caption": "Cost of training and of one set of samples, one thread", "columns": columns, "rows": rows}


def populations(data: dict[str, Any], train_costs: dict[str, Any]) -> dict[str, Any]:
    """The table of what the two halves of the reference are."""
    names = {
        "n_frames": "frames",
        "alphar_share": "share of alphaR (mean ± sd over walkers)",
        "alphar_crossings": "crossings into or out of alphaR",
        "phi_positive_frames": "frames with phi in (0, 130) degrees",
        "phi_positive_crossings": "crossings into or out of phi in (0, 130) degrees",
        "seam_share_1_deg": "psi within 1 degree of +-180",
        "seam_share_2_deg": "within 2 degrees",
        "seam_share_5_deg": "within 5 degrees",
    }
    rows = [[name, data["train"][key], data["held_out"][key]] for key, name in names.items()]
    ns, cpu_s, platform = train_costs["ns"], train_costs["cpu_s"], train_costs["platform"]
    caption = f"Reference: the training half is {ns:.3g} ns and took {cpu_s:.0f} CPU s on OpenMM's {platform} platform"
    return {"caption": caption, "columns": ["", "training half", "held-out half"], "rows": rows}
