"""What the suite `fragments` says: sentences, targets and tables, all from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import t as student

from hpc_molgen.efficiency.suites.record import in_words, spread
from hpc_molgen.efficiency.suites.rounds import target, target_sentence

QUESTION = "Can a larger molecule be sampled in pieces: fragments by themselves, joined on the torsions that they share?"
RAW, TEMPERING = "joined, raw", "parallel tempering"
APART, SEEDS_APART, GAIN, ALIVE = 4.0, 2.0, 1.0, 0.01
NOTES = (
    "A window's fragment is the capped peptide of its residues, sampled by parallel tempering (300 to 600 K; one library for "
    "all windows of the same residues). Its density is von Mises kernels on the torsions with 5 % uniform, times a normal "
    "density of bonds, angles and other torsions given those. Joined from left to right, each window is drawn given the "
    "residues that it shares with the one before.",
    "Moves: a window (or a residue of it, given the others) gets other torsions from its density, stiff coordinates come "
    "along, and the test of Metropolis and Hastings is that of the whole molecule: exact, however poor the library. A sweep is "
    "all windows and a Hamiltonian move of all atoms (velocity Verlet, accepted or not), for what no window knows. Without the "
    "latter methyl groups and the ends of the caps stay as the starts have them.",
    "CPU seconds are from nothing: libraries, densities, joining and moves; minimisation and all of tempering. The first "
    "quarter of moves and of tempering is discarded. Tempering of the whole starts from the extended molecule: from "
    "torsions all over the torus, as of the libraries, too much is still at phi > 0 after as long. The moves start from joined "
    "molecules by weight.",
    "Effective samples: frames over g of the share of a basin (the larger of Geyer's and batch means), of the residue that is "
    "slowest. Helix is alphaR, PPII holds C7eq. Errors of shares are over chains and over ladders; ± is the standard deviation "
    "over seeds. Seeds apart: that of shares over their errors within a seed, root mean square; one if starts are forgotten, "
    "and effective samples are fewer than printed by its square where it is larger.",
    "Divergence: Jensen-Shannon, (phi, psi) on 60 x 60 bins, mean over residues, over that between the reference's two halves. "
    "The whole reference has half of that noise, so a method with little noise of its own is below one.",
    "The compact molecule has caps where 1L2Y has charges, its torsions, and is minimised; unfolded starts are the joined "
    "molecules with the largest weights, minimised. A residue has turned when phi or psi at the end differ by more than 60 "
    "degrees from the start. Molecular dynamics (2 fs, flexible, hydrogens of 3.024 u, float32) had the CPU time of the moves; "
    "the libraries, which serve all starts, are counted in a column of their own.",
)


def record_of(results: Mapping[str, Any], size: str) -> dict[str, Any]:
    """Return question, answer, targets, tables and notes of the record."""
    targets = _targets(results)
    return {
        "question": QUESTION,
        "answer": [target_sentence(targets, size), *_of_peptide(results), *_of_cage(results["cage"])],
        "targets": targets,
        "tables": [_methods(results), _shares(results), _ways(results), *_cage_tables(results["cage"])],
        "notes": list(NOTES),
    }


def main_name(results: Mapping[str, Any]) -> str:
    """Name of the way whose runs were repeated."""
    return str(next(name for name in results["methods"] if name not in (RAW, TEMPERING, "gain")))


def verdict(found: Mapping[str, Any], limit: float = GAIN) -> str:
    """Whether a ratio over repeats (a `spread`) is above `limit` by its 95 % interval (Student's t of logarithms)."""
    if found["n"] < 2:
        return "is not known to pay from one seed"
    logs = np.log(np.maximum(found["values"], 1e-12))
    half = float(student.ppf(0.975, len(logs) - 1)) * float(logs.std(ddof=1)) / np.sqrt(len(logs))
    interval = f"95 %: {np.exp(logs.mean() - half):.2g} to {np.exp(logs.mean() + half):.2g}"
    if logs.mean() - half > np.log(limit):
        return f"pays ({interval})"
    return (
        f"does not pay ({interval})" if logs.mean() + half < np.log(limit) else f"is level within the error bars ({interval})"
    )


def _targets(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    joined, gain = results["methods"][main_name(results)], results["methods"]["gain"]
    folded, unfolded = (results["cage"]["starts"][name] for name in ("folded", "unfolded"))
    slowest = gain["slowest"]
    rows = [
        target(f"{results['peptide']}: shares of basins apart from the reference, the worst / standard errors", f"<= {APART:g}",
               joined["worst_difference"], joined["worst_difference"]["mean"]),
        target(f"{results['peptide']}: seeds apart / standard errors within one", f"<= {SEEDS_APART:g}",
               joined["seeds_apart"], joined["seeds_apart"]),
        target(f"{results['peptide']}: effective samples a CPU second over parallel tempering, slowest basin", f">= {GAIN:g}",
               slowest, None if slowest is None else slowest["mean"]),
    ]  # fmt: skip
    for name, found in (("folded", folded), ("unfolded", unfolded)):
        ratio = found["moves"]["per_cpu_s"] / found["md"]["per_cpu_s"] if found["md"]["per_cpu_s"] > 0 else None
        rows.append(
            target(
                f"{results['cage']['name']}, {name}: residues turned a CPU second over molecular dynamics",
                f">= {GAIN:g}",
                ratio,
                ratio,
            )
        )
    return rows


def _of_peptide(results: Mapping[str, Any]) -> list[str]:
    methods, name = results["methods"], main_name(results)
    joined, tempered, raw, gain = methods[name], methods[TEMPERING], methods[RAW], methods["gain"]
    sentences = [
        f"{results['peptide']}: joined and moved, its (phi, psi) are at {in_words(joined['over_floor'])} noise floors; "
        f"parallel tempering of it in the same {joined['cpu_s']['mean']:.0f} CPU s at {in_words(tempered['over_floor'])}; "
        f"joined alone, without any move of the whole, at {in_words(raw['over_floor'])}.",
        f"Shares of basins differ from the reference by at most {in_words(joined['worst_difference'])} standard errors with "
        f"the moves, by {in_words(raw['worst_difference'])} without them.",
    ]
    if gain["slowest"] is None:
        return [*sentences, "Parallel tempering has not seen all basins in this time, so there is no ratio of speeds."]
    parts = ", ".join(f"{kind} {in_words(value)}" for kind, value in gain.items() if kind != "slowest" and value is not None)
    sentences.append(
        f"Effective samples a CPU second over those of parallel tempering, libraries counted: {in_words(gain['slowest'])} for "
        f"the slowest basin ({parts}): sampling {results['peptide']} in pieces {verdict(gain['slowest'])}."
    )
    return sentences


def _of_cage(cage: Mapping[str, Any]) -> list[str]:
    sentences = []
    for name, found in cage["starts"].items():
        turned = [share for residues, share in found["far"].items() if "-" in residues]
        dead, own, other = sum(share < ALIVE for share in turned), found["moves"], found["md"]
        apart = (own["per_cpu_s"] - other["per_cpu_s"]) / max(np.hypot(own["per_cpu_s_error"], other["per_cpu_s_error"]), 1e-12)
        words = "more than" if apart > 2 else "fewer than" if apart < -2 else "as many, within the error bars, as"
        paid = own["cpu_s"] / (own["cpu_s"] + cage["library_cpu_s"])
        outcome = "pay" if own["per_cpu_s"] * paid > other["per_cpu_s"] else "pay once the libraries are there"
        outcome = outcome if apart > 2 else "do not pay"
        sentences.append(
            f"{cage['name']}, {name}: {100 * np.median(turned):.2g} % (median of {len(turned)} windows) of the proposals for a "
            f"window are accepted and turn it, {100 * np.median(_best(found['far'])):.2g} % of those for a residue in its best "
            f"way; {dead} windows stay below {100 * ALIVE:g} %. In a CPU second {own['per_cpu_s']:.2g} ± "
            f"{own['per_cpu_s_error']:.2g} residues turn ({own['per_cpu_s'] * paid:.2g} with the libraries counted), {words} "
            f"the {other['per_cpu_s']:.2g} ± {other['per_cpu_s_error']:.2g} of molecular dynamics: pieces {outcome}."
        )
    return sentences


def _best(far: Mapping[str, float]) -> list[float]:
    """Share of accepted far proposals of the best way to turn each residue: it alone, or its backbone alone."""
    best = dict[str, float]()
    for name, share in far.items():
        if "-" not in name:
            residue = name.partition(",")[0]
            best[residue] = max(best.get(residue, 0.0), share)
    return list(best.values())


def _methods(results: Mapping[str, Any]) -> dict[str, Any]:
    columns = [
        "method", "CPU s", "frames", "divergence / nats", "over the floor", "worst difference / standard errors",
        "seeds apart / standard errors", *(f"effective / CPU s, {name}" for name in results["reference"]["n_effective"]),
    ]  # fmt: skip
    rows = []
    for name, row in results["methods"].items():
        if name == "gain":
            continue
        divergence = spread(np.mean([part["values"] for part in row["divergence_nats"]], axis=0))
        speeds = [row.get("effective_per_cpu_s", {}).get(kind) for kind in results["reference"]["n_effective"]]
        rows.append([name, row["cpu_s"], row["n"], divergence, row["over_floor"], row["worst_difference"], row["seeds_apart"],
                     *speeds])  # fmt: skip
    reference = results["reference"]
    floor = float(np.mean(reference["floor_nats"]))
    rows.append(["reference: one half from the other", None, float(reference["n_frames"]), floor, 1.0, None, None,
                 *[None] * len(reference["n_effective"])])  # fmt: skip
    return {"caption": f"{results['peptide']}, from nothing, in the same CPU time", "columns": columns, "rows": rows}


def _shares(results: Mapping[str, Any]) -> dict[str, Any]:
    kinds = results["reference"]["shares"]
    columns = ["residue", "basin", "reference / %", "standard error", f"{main_name(results)} / %", "tempering / %", "raw / %"]
    rows: list[list[Any]] = []
    for kind, shares in kinds.items():
        for residue, share in enumerate(shares):
            found = [
                spread([100 * value for value in results["methods"][name]["shares"][kind][residue]["value"]["values"]])
                for name in (main_name(results), TEMPERING, RAW)
            ]
            rows.append([str(residue + 1), kind, 100 * share["value"], 100 * share["standard_error"], *found])
    return {"caption": "Shares of basins", "columns": columns, "rows": rows}


def _ways(results: Mapping[str, Any]) -> dict[str, Any]:
    kinds = list(results["reference"]["n_effective"])
    columns = [
        "moves", "a window, accepted / %", "a residue, accepted / %", "energies / CPU s",
        *(f"effective / CPU s, {kind}" for kind in kinds), "effective / CPU s, energy",
    ]  # fmt: skip
    rows = []
    for name, row in results["ways"].items():
        windows = [share for residues, share in row["acceptance"].items() if "-" in residues]
        single = [share for residues, share in row["acceptance"].items() if "-" not in residues]
        mean = [100 * float(np.mean(shares)) if shares else None for shares in (windows, single)]
        speeds = [row["sampling_effective_per_cpu_s"].get(kind) for kind in kinds]
        rows.append([name, *mean, row["energies_per_cpu_s"], *speeds, row["energy_effective_per_cpu_s"]])
    caption = "Ways of moving, one short run each; effective samples a CPU second of the moves alone"
    return {"caption": caption, "columns": columns, "rows": rows}


def _cage_tables(cage: Mapping[str, Any]) -> list[dict[str, Any]]:
    starts = cage["starts"]
    columns_of_windows = ["window", *(f"{name}: {what} / %" for name in starts for what in ("accepted", "and turned"))]
    pairs = [residues for residues in next(iter(starts.values()))["acceptance"] if "-" in residues]
    rows: list[list[Any]] = [
        [f"{pair} {name}", *(100 * found[kind][pair] for found in starts.values() for kind in ("acceptance", "far"))]
        for pair, name in zip(pairs, cage["windows"], strict=True)
    ]
    windows = {"caption": f"{cage['name']}: proposals for windows of two residues", "columns": columns_of_windows, "rows": rows}
    columns = [
        "start", "method", "CPU s", "residues turned of a copy", "standard error", "turned / CPU s", "libraries counted",
        "radius of gyration / nm",
    ]  # fmt: skip
    rows = []
    for name, found in starts.items():
        for label, key, extra in (("fragment moves", "moves", cage["library_cpu_s"]), ("molecular dynamics", "md", 0.0)):
            own = found[key]
            counted = own["per_cpu_s"] * own["cpu_s"] / (own["cpu_s"] + extra)
            rows.append([name, label, own["cpu_s"], own["residues_turned"], own["residues_turned_error"], own["per_cpu_s"],
                         counted, own["rg_nm"]])  # fmt: skip
    residues = [name for name in next(iter(starts.values()))["acceptance"] if "-" not in name]
    columns_of_residues = ["residue", *columns_of_windows[1:]]
    single: list[list[Any]] = [
        [name, *(100 * found[kind][name] for found in starts.values() for kind in ("acceptance", "far"))] for name in residues
    ]
    caption = f"{cage['name']}: proposals for one residue, given the others"
    alone = {"caption": caption, "columns": columns_of_residues, "rows": single}
    return [
        windows,
        alone,
        {"caption": f"{cage['name']} ({cage['n_atoms']} atoms): what turns", "columns": columns, "rows": rows},
    ]
