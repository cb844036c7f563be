"""What the suite `generalisation` says: sentences, targets and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hpc_molgen.efficiency.suites.rounds import target, target_sentence

ZERO, FEW, ENERGIES, SCRATCH = "zero-shot", "few-shot", "own energies", "from scratch"
LARGEST_K_HAT = 0.7
QUESTION = (
    "Does one surrogate of the torsions of many peptides carry over to residues that it has never seen, with exact weights by "
    "their own energies, and from how many molecules on is that cheaper than running MD of each?"
)
NOTES = [
    "Zero-shot: the shared surrogate as it is; the residue gives its force field alone, by which stiff coordinates are "
    "relaxed and scaled. Few-shot: tuned on plain MD of 100 ps and as much on samples of its own. Own energies: one "
    "round of training on its own weighted samples, no MD. From scratch: a diffusion of all internal coordinates, trained on "
    "the training half of that residue's MD. MD: parallel tempering in the batched engine at 1 fs, flexible, of which all "
    "else is judged by the held-out half; no bias, longer step or heavier hydrogen was tried, which a residue may gain "
    "a factor of two or so from.",
    "Divergences from held-out MD: Jensen-Shannon in nats, 60 x 60 bins for (phi, psi) and 100 for each chi (their mean); the "
    "noise floor is that of training MD, and both are thinned to the same Kish size; beside it that of all training frames. "
    "ESS is Kish's of unclipped importance weights, without annealing. Effective samples count by the state (basins of the "
    "backbone, rotamers of each chi; of 2 % at least) for which they are fewest: of weights p(1-p)/var(p), of MD with its "
    "correlation in time, one seed. The flip of a flat ring or of a carboxylate is no change of state.",
    "CPU seconds, start-up of the stages featurize, train and sample included, that of MD as well. Cost of n effective "
    "samples: setup and data, then n times the cost of a sample (with ln q and energy) over its worth; MD: equilibration, then "
    "n times that of an effective sample. Weights with k-hat above 0.7 are not certified: their costs and ratios are not "
    "compared.",
]


def record_of(results: dict[str, Any], size: str) -> dict[str, Any]:
    """Return the sentences, targets, tables and notes of the record."""
    targets = _targets(results)
    return {
        "question": QUESTION,
        "answer": [target_sentence(targets, size), *_sentences(results)],
        "targets": targets,
        "tables": [*_quality(results), _costs_of(results), _seen(results), _whole(results)],
        "notes": NOTES,
    }


def certified(row: dict[str, Any]) -> bool:
    """Whether weights may be used at all."""
    return row["k_hat"] is not None and row["k_hat"] <= LARGEST_K_HAT and row["n_effective"] > 0


def cost_of(row: dict[str, Any], n: float) -> float:
    """CPU seconds of `n` effective samples by a surrogate that is there; infinite where its weights are not certified."""
    if not certified(row):
        return math.inf
    return float(row["setup_cpu_s"] + row["data_cpu_s"] + n * row["sample_cpu_s"] * row["n"] / row["n_effective"])


def tried(row: dict[str, Any]) -> float:
    """CPU seconds after which it was known that weights are not certified."""
    return float(row["setup_cpu_s"] + row["data_cpu_s"] + row["n"] * row["sample_cpu_s"])


def cost_of_md(row: dict[str, Any], n: float) -> float:
    """CPU seconds of `n` effective samples by MD from the start."""
    return float(row["equilibration_cpu_s"] + n * row["cpu_s_per_effective"])


def totals(results: dict[str, Any]) -> dict[str, Any]:
    """What all residues of the set cost by the shared surrogate and by MD, and from how many new molecules on it pays.

    The shared side pays the MD of the residues that it learns from (held-out half included), training, and its samples for all
    of them; residues whose weights are not certified are left to MD, after the samples that showed it. A new molecule saves
    what its MD costs more than that; break-even is where savings have paid the data and the training.
    """
    n, shared = results["n_effective"], results["shared"]["train_cpu_s"]
    data = sum(row["md"]["cpu_s"] for row in results["seen"])
    rows = [(row, row["md"]) for row in results["seen"]] + [(row["methods"][ZERO], row["md"]) for row in results["unseen"]]
    md = [cost_of_md(own, n) for _, own in rows]
    by = [cost_of(row, n) if certified(row) else own + tried(row) for (row, _), own in zip(rows, md, strict=True)]
    saved = float(np.mean([whole - own for own, whole in list(zip(by, md, strict=True))[len(results["seen"]) :]]))
    return {
        "n_molecules": len(rows), "data_cpu_s": data, "train_cpu_s": shared, "samples_cpu_s": sum(by),
        "surrogate_cpu_s": data + shared + sum(by), "md_cpu_s": sum(md),
        "left_to_md": sum(not certified(row) for row, _ in rows),
        "saved_cpu_s": saved, "break_even": (data + shared) / saved if saved > 0 else None,
    }  # fmt: skip


def strict_ratio(row: dict[str, Any]) -> float:
    """Divergence of (phi, psi) of corrected samples over the floor of all training MD; infinite without certified weights.

    Thinned to the Kish size of weights that are worth nothing, training MD is as far from held-out MD as anything: so weights
    have to be certified, and the floor that all frames set is not eased by their number.
    """
    return float(row["corrected_phi_psi"]["divergence"] / row["raw_phi_psi"]["floor"]) if certified(row) else math.inf


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.median(known)) if len(known) == len(values) and known else None


def _targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    zero = [row["methods"][ZERO] for row in results["unseen"]]
    slower = [1 / row["speed"][ZERO]["ratio_cpu"]["mean"] for row in results["unseen"]]
    ess = _median([100 * row["ess_fraction"] for row in zero])
    equal = float(np.median([row["corrected_phi_psi"]["ratio"] if certified(row) else math.inf for row in zero]))
    strict = float(np.median([strict_ratio(row) for row in zero]))
    whole = totals(results)
    n = whole["n_molecules"]
    share = whole["surrogate_cpu_s"] / whole["md_cpu_s"] if whole["md_cpu_s"] > 0 else None
    return [
        target("unseen residues, corrected: median divergence of (phi, psi) / floor of as many frames", "<= 2", equal, equal),
        target("the same / floor of all training frames, however few samples count", "<= 2", strict, strict),
        target("unseen residues: median ESS / %", ">= 10", ess, ess),
        target(f"{n} molecules by the surrogate, all costs, over {n} runs of MD of equal accuracy", "<= 1", share, share),
        target(
            "sampling: CPU s of the shared surrogate over that of one residue alone, median",
            "<= 3",
            _median(slower),
            _median(slower),
        ),
    ]


def _sentences(results: dict[str, Any]) -> list[str]:
    n, whole = results["n_effective"], totals(results)
    pays, pays_not, uncertified = [], [], []
    for row in results["unseen"]:
        zero, md = row["methods"][ZERO], cost_of_md(row["md"], n)
        if not certified(zero):
            uncertified.append(row["name"])
        elif cost_of(zero, n) < md:
            pays.append(f"{row['name']} ({md / cost_of(zero, n):.1f} times)")
        else:
            pays_not.append(f"{row['name']} ({cost_of(zero, n) / md:.1f} times dearer)")
    found = [
        f"Once it is trained, {n:,} effective samples of an unseen residue are cheaper than MD for {', '.join(pays) or 'none'}"
        + (f"; not for {', '.join(pays_not)}" if pays_not else "")
        + (f"; no certified weights for {', '.join(uncertified)}" if uncertified else "") + "."
    ]  # fmt: skip
    if whole["break_even"] is None:
        found.append("With data and training it never breaks even: an unseen residue saves nothing on average.")
    else:
        found.append(
            f"Its data and training ({whole['data_cpu_s'] + whole['train_cpu_s']:,.0f} CPU s) are paid back by "
            f"{math.ceil(whole['break_even']):,} molecules that it has not seen, each of which saves "
            f"{whole['saved_cpu_s']:,.0f} CPU s."
        )
    found.append(
        f"All {whole['n_molecules']} residues with {n:,} effective samples each: {whole['surrogate_cpu_s']:,.0f} CPU s by the "
        f"surrogate (MD of the {len(results['seen'])} that it learns from, training and samples"
        + (f"; {whole['left_to_md']} left to MD" if whole["left_to_md"] else "")
        + f"), {whole['md_cpu_s']:,.0f} CPU s by MD of each."
    )
    return found


def _if_certified(row: dict[str, Any], value: float | None) -> float | None:
    """A ratio to a floor as small as weights that count for nothing would always be near one."""
    return value if certified(row) else None


def _ratio(row: dict[str, Any], name: str) -> float | None:
    return row[name]["ratio"] if name in row else None


def _quality(results: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [
        [
            row["name"], kind, own["corrected_phi_psi"]["floor"], own["raw_phi_psi"]["divergence"], _ratio(own, "raw_phi_psi"),
            own["corrected_phi_psi"]["divergence"], *(_if_certified(own, value) for value in (
                _ratio(own, "corrected_phi_psi"), strict_ratio(own))), _ratio(own, "raw_chi"),
            _if_certified(own, _ratio(own, "corrected_chi")), 100 * own["ess_fraction"], own["k_hat"],
        ]
        for row in results["unseen"]
        for kind, own in row["methods"].items()
    ]  # fmt: skip
    columns = [
        "residue", "surrogate", "floor of (phi, psi)", "raw", "raw / its floor", "corrected", "corrected / floor",
        "corrected / floor of all MD", "chi, raw / its floor", "chi, corrected / floor", "ESS / %", "k-hat",
    ]  # fmt: skip
    return [
        {
            "caption": "Residues that the shared surrogate has not seen: divergence from held-out MD",
            "columns": columns,
            "rows": rows,
        }
    ]


def _costs_of(results: dict[str, Any]) -> dict[str, Any]:
    n = results["n_effective"]
    rows = []
    for row in results["unseen"]:
        md = row["md"]
        for kind, own in row["methods"].items():
            each = own["sample_cpu_s"] * own["n"] / own["n_effective"] if own["n_effective"] else None
            cost = cost_of(own, n)
            finite = cost if math.isfinite(cost) else None
            rows.append([row["name"], kind, own["data_cpu_s"], own["setup_cpu_s"], own["n_effective"], each, finite,
                         cost_of_md(md, n) / cost if finite else None])  # fmt: skip
        rows.append([row["name"], f"MD, slowest: {md['slowest']}", md["equilibration_cpu_s"], 0.0, md["n_effective"],
                     md["cpu_s_per_effective"], cost_of_md(md, n), 1.0])  # fmt: skip
    columns = [
        "residue", "way", "its own MD before / CPU s", "setup / CPU s", "effective samples made", "CPU s for one",
        f"CPU s for {n:,}", "MD over it",
    ]  # fmt: skip
    return {
        "caption": f"Cost of {n:,} effective samples of an unseen residue, the shared training not counted",
        "columns": columns,
        "rows": rows,
    }


def _seen(results: dict[str, Any]) -> dict[str, Any]:
    n = results["n_effective"]
    rows = []
    for row in results["seen"]:
        cost, md = cost_of(row, n), cost_of_md(row["md"], n)
        finite = cost if math.isfinite(cost) else None
        rows.append([row["name"], _ratio(row, "raw_phi_psi"), _ratio(row, "corrected_phi_psi"), _ratio(row, "corrected_chi"),
                     100 * row["ess_fraction"], row["k_hat"], finite, md])  # fmt: skip
    columns = [
        "residue", "raw / its floor", "corrected / floor", "chi, corrected / floor", "ESS / %", "k-hat",
        f"CPU s for {n:,}, data and training not counted", "by MD",
    ]  # fmt: skip
    return {"caption": "Residues that it has learnt from", "columns": columns, "rows": rows}


def _whole(results: dict[str, Any]) -> dict[str, Any]:
    whole = totals(results)
    rows = [
        ["MD of the residues that it learns from", whole["data_cpu_s"], None],
        ["shared training", whole["train_cpu_s"], None],
        [f"setup and samples of all {whole['n_molecules']}", whole["samples_cpu_s"], None],
        ["sum", whole["surrogate_cpu_s"], whole["md_cpu_s"]],
    ]
    return {
        "caption": "All residues at equal accuracy / CPU s",
        "columns": ["", "shared surrogate", "MD of each"],
        "rows": rows,
    }
