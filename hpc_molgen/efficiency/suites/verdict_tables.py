"""Text of the `verdict` suite: answer, targets, tables and notes, from the curves of all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.efficiency.suites.verdict_curves import EXTRAPOLATED, NEVER, Outcome, covers, crossing, price, time_to
from hpc_molgen.efficiency.suites.verdict_scores import NORMAL, TARGET_KT, Series, Truth

QUESTION = "From zero, which method gives the converged ensemble of alanine dipeptide first, everything counted?"
MD, PARTICLES, SURROGATE, BIASED = "MD", "particles", "surrogate", "biased by design"


@dataclass(frozen=True)
class Entry:
    """One method with all its seeds.

    Attributes
    ----------
    key, name, short : str
    kind : str
        `MD`, `PARTICLES`, `SURROGATE` or `BIASED`.
    knows_cv : bool
        Whether it was told that phi is slow.
    series : list of Series
        One for each seed.
    """

    key: str
    name: str
    short: str
    kind: str
    knows_cv: bool
    series: list[Series]

    @property
    def certified(self) -> bool:
        """Whether the weights of every seed can be trusted (Pareto k-hat <= 0.7, where there are importance weights)."""
        return self.kind != BIASED and all(one.facts.get("certified", True) for one in self.series)

    @property
    def outcomes(self) -> list[Outcome]:
        """When each seed reaches the target."""
        return [time_to(one) for one in self.series]

    @property
    def median_s(self) -> float | None:
        """Median time to the target; None where a seed has none, or the weights are not to be trusted."""
        times = [outcome.cpu_s for outcome in self.outcomes]
        known = [time for time in times if time is not None]
        return float(np.median(known)) if known and len(known) == len(times) and self.certified else None

    def covered(self, truth: Truth) -> tuple[int, int]:
        """How many of the last intervals hold the truth, of how many that there are."""
        found = [covers(one, truth) for one in self.series]
        return sum(value is True for value in found), sum(value is not None for value in found)


def eligible(entry: Entry, truth: Truth) -> bool:
    """Whether a method can be called first: a time, trusted weights, and intervals of which most hold the truth."""
    inside, of = entry.covered(truth)
    return entry.median_s is not None and 2 * inside > of


def best(entries: Sequence[Entry], truth: Truth, kinds: Sequence[str], *, blind: bool = False) -> Entry | None:
    """Return the method of these kinds with the smallest time to the target; `blind`: that was not told of phi."""
    own = [entry for entry in entries if entry.kind in kinds and eligible(entry, truth) and not (blind and entry.knows_cv)]
    return min(own, key=lambda entry: entry.median_s or np.inf, default=None)


def results(entries: Sequence[Entry], truth: Truth) -> dict[str, Any]:
    """Return everything as data, for each method."""
    share = 1 / (1 + float(np.exp(truth.free_energy_kt)))
    rivals = {"best MD": best(entries, truth, [MD]), "best MD that was not told of phi": best(entries, truth, [MD], blind=True)}
    found = {}
    for entry in entries:
        model, (inside, of) = price(entry.series), entry.covered(truth)
        row: dict[str, Any] = {"name": entry.name, "kind": entry.kind, "knows_cv": entry.knows_cv, "certified": entry.certified}
        row |= {"median_s": entry.median_s, "outcomes": entry.outcomes, "inside": inside, "intervals": of}
        row["cpu_s_per_effective_sample"] = model.per_effective_sample(share) if model and entry.certified else None
        row["fixed_cpu_s"] = spread(one.fixed_cpu_s for one in entry.series)
        row["ratios"] = {name: ratio(rival, entry) for name, rival in rivals.items()} if entry.kind != MD else {}
        row["series"] = entry.series
        found[entry.key] = row
    return found


def ratio(md: Entry | None, other: Entry) -> dict[str, Any] | None:
    """Times to the target of MD over those of another method, seed by seed; and where their curves cross."""
    if md is None or md.median_s is None or other.median_s is None:
        return None
    pairs = zip(md.outcomes, other.outcomes, strict=True)
    values = [a.cpu_s / b.cpu_s for a, b in pairs if a.cpu_s is not None and b.cpu_s is not None]
    own, its = price(other.series), price(md.series)
    where = crossing(own, its) if own and its else None
    return {"to": md.name, **spread(values), "crossing": where}


def answer(entries: Sequence[Entry], found: Mapping[str, Any], truth: Truth, skipped: Sequence[str]) -> list[str]:
    """Return the answer in sentences."""
    first, blind = best(entries, truth, [MD, PARTICLES, SURROGATE]), best(entries, truth, [MD, PARTICLES], blind=True)
    sentences = [
        f"The truth is dF(phi > 0) = {truth.free_energy_kt:.3f} +- {truth.half_width_kt:.3f} kT (95 %), from "
        f"{truth.facts['ladders']} ladders of {truth.facts['ns_per_ladder']:g} ns: {truth.facts['protocol']}."
    ]
    if first is None:
        sentences.append(f"No method comes to {TARGET_KT:g} kT, or can be extrapolated to it, in this budget.")
    else:
        who = {MD: "MD wins", SURROGATE: "A surrogate wins", PARTICLES: "Monte Carlo without a surrogate wins"}[first.kind]
        sentences.append(f"{who}: first at {TARGET_KT:g} kT (95 %) is {first.name}, after {_seconds(first)}.")
    if blind is not None and blind is not first:
        sentences.append(f"Without being told that phi is slow: {blind.name}, after {_seconds(blind)}.")
    surrogate = best(entries, truth, [SURROGATE])
    if surrogate is None:
        sentences.append("No surrogate has certified weights, intervals that hold the truth and a time to the target.")
    else:
        sentences.append(f"The best surrogate, {surrogate.name}, needs {_seconds(surrogate)}.")
        for name, value in found[surrogate.key]["ratios"].items():
            if value is not None:
                where = value["crossing"].words if value["crossing"] else "not known"
                sentences.append(
                    f"The time of the {name} ({value['to']}) over its own is {_number(value)}; its curve is below: {where}."
                )
    sentences += [_bias(entry, truth) for entry in entries if entry.kind == BIASED]
    return [*sentences, *skipped]


def _bias(entry: Entry, truth: Truth) -> str:
    errors = [one.known[-1].free_energy_kt - truth.free_energy_kt for one in entry.series if one.known]  # type: ignore[operator]
    if not errors:
        return f"The {entry.name} has no estimate in this budget."
    return f"The {entry.name}, is off by {_number(spread(errors))} kT, however long it samples."


def _number(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.2g}" + (f" +- {value['sd']:.1g} (spread over {value['n']} seeds)" if value["n"] > 1 else "")


def _seconds(entry: Entry) -> str:
    times = [outcome.cpu_s for outcome in entry.outcomes if outcome.cpu_s is not None]
    how = " (extrapolated)" if any(outcome.kind == EXTRAPOLATED for outcome in entry.outcomes) else ""
    return f"{entry.median_s:,.0f} CPU s{how}, seeds {min(times):,.0f} to {max(times):,.0f}"


def _time_words(entry: Entry) -> str:
    if entry.kind == BIASED:
        return "never: biased"
    words = []
    for outcome, one in zip(entry.outcomes, entry.series, strict=True):
        if outcome.cpu_s is None:
            seen = one.facts.get("groups_with_phi_positive", 0)
            words.append(NEVER if not seen else f"not reached: phi > 0 in {seen} of {one.facts['groups']}")
        else:
            words.append(f"{outcome.cpu_s:,.0f}" + ("*" if outcome.kind == EXTRAPOLATED else ""))
    text = " / ".join(dict.fromkeys(words)) if len(set(words)) == 1 else " / ".join(words)
    return text if entry.certified else f"({text}), not certified"


def tables(entries: Sequence[Entry], found: Mapping[str, Any], truth: Truth) -> list[dict[str, Any]]:
    """Return the tables: time to the target, what each method knew at its end, ratios and crossings."""
    reached = [
        [
            entry.name, "yes" if entry.knows_cv else "no", found[entry.key]["fixed_cpu_s"], _time_words(entry),
            f"{found[entry.key]['inside']} of {found[entry.key]['intervals']}", found[entry.key]["cpu_s_per_effective_sample"],
        ]
        for entry in entries
    ]  # fmt: skip
    columns = ["method", "told of phi", "fixed costs / CPU s", f"to {TARGET_KT:g} kT / CPU s", "intervals with the truth"]
    shown = [{
        "caption": f"Core-seconds from zero until the 95 % interval of dF(phi > 0) is +-{TARGET_KT:g} kT, seed by seed "
        "(*: extrapolated by 1/sqrt of the time since the fixed costs)",
        "columns": [*columns, "CPU s per effective sample of phi > 0"], "rows": reached,
    }]  # fmt: skip
    floor = truth.facts
    rows = [["two halves of the truth", None, None, None, floor["total_variation_of_halves"], floor["divergence_of_halves"],
             floor["energy_w1_of_halves_kt"], None, None]]  # fmt: skip
    rows += [_end_row(entry) for entry in entries]
    shown.append({
        "caption": "At the end of the budget (mean and spread over seeds)",
        "columns": ["method", "CPU s", "wall s", "dF(phi > 0) / kT, seed by seed", "total variation 60 x 60",
                    "Jensen-Shannon / nats", "energy W1 / kT", "k-hat", "spread of dF over seeds / expected"], "rows": rows,
    })  # fmt: skip
    compared = [
        [
            entry.name,
            name,
            {key: value[key] for key in ("mean", "sd", "n")},
            value["crossing"].words if value["crossing"] else None,
        ]
        for entry in entries
        for name, value in found[entry.key]["ratios"].items()
        if value is not None
    ]
    if compared:
        shown.append({
            "caption": f"Time of MD to {TARGET_KT:g} kT over that of others (above 1 MD is slower), and from which half-width "
            "on the other curve is below",
            "columns": ["method", "against", "ratio", "its curve is below MD's"], "rows": compared,
        })  # fmt: skip
    return shown


def seed_spread(entry: Entry) -> float | None:
    """Standard deviation of dF over seeds, over what the intervals of single seeds let expect."""
    ends = [one.checkpoints[-1] for one in entry.series if one.checkpoints]
    known = [(end.free_energy_kt, end.half_width_kt) for end in ends if end.half_width_kt is not None]
    if len(known) < 2:
        return None
    values, widths = np.array(known, dtype=np.float64).T
    return float(values.std(ddof=1) / np.sqrt(np.mean((widths / NORMAL) ** 2)))


def _end_row(entry: Entry) -> list[Any]:
    ends = [one.checkpoints[-1] for one in entry.series if one.checkpoints]
    if not ends:
        return [entry.name, *[None] * 8]
    found = [
        "-"
        if end.free_energy_kt is None or end.half_width_kt is None
        else f"{end.free_energy_kt:.2f} ± {end.half_width_kt:.2f}"
        for end in ends
    ]
    w1 = [end.energy_w1_kt for end in ends if end.energy_w1_kt is not None]
    k_hat = [value for one in entry.series if (value := one.facts.get("k_hat")) is not None and np.isfinite(value)]
    return [
        entry.name, spread(end.cpu_s for end in ends), spread(end.wall_s for end in ends), " / ".join(found),
        spread(end.total_variation for end in ends), spread(end.divergence for end in ends), spread(w1) if w1 else None,
        spread(k_hat) if k_hat else None, seed_spread(entry),
    ]  # fmt: skip


NOTES = [
    "Core-seconds (CPU s of all processes) are compared: machines are shared and noisy. Each method uses every core; wall "
    "seconds are in the table.",
    "Plain MD and tempering start at the system's own structure; with a bias rotatable torsions are spread. 'Told of phi': it "
    "uses a bias on phi, or reference data made with one. Equilibration, the first fifth of every curve of MD, counts as time.",
    "Constrained MD samples the ensemble of rigid X-H bonds: its dF can differ a little from the flexible molecule's, and its "
    "energies, which lack those bonds, are not compared.",
    "Intervals: MD by the jackknife over independent copies or ladders (Student's t; none where fewer than five have seen both "
    "sides), weighted samples by the delta method of the self-normalised estimate. A training's own spread is not in the "
    "interval of one seed: the spread of dF over seeds, beside what its intervals let expect, and the coverage show that. The "
    "truth's own interval is added when judging.",
    "A surrogate pays for reference data, held-out data, training, and every start of a process of its stages; after that each "
    "sample costs its share of sampling, ln q and energies. Variants with one seed share their reference data (paid by each), "
    "so their errors are not independent. A pupil pays for its teacher's training. A checkpoint is a prefix of the samples.",
    "The lengths and rates of training were chosen on other seeds. What that search has cost is in no method's time, though "
    "metrics.md would count it: about 180 CPU s for the brief flow, 130 for that of hot data, not known for the others.",
    "The curve's model is h = A / sqrt(t - F) with fixed costs F; the CPU seconds per effective sample are "
    "A^2 p (1 - p) / 1.96^2.",
    "The published DDPM has torsions from its network, a rigid geometry, and weights exp(-u) by this force field (there: "
    "MMFF94); its training frames come from our biased reference, reweighted, so it has seen phi > 0, which its own data had "
    "not.",
]
