"""What the suite `correction` says: sentences, targets and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from hpc_molgen.efficiency.costs import break_even, samples_in_words
from hpc_molgen.efficiency.suites.correction_outcome import Outcome, effective
from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.efficiency.suites.rounds import target, target_sentence

SURROGATE, PARTICLES, MD = "surrogate", "without training", "MD"
BIASED_MD = "MD, many copies at once, 2 fs, heavy hydrogens, a bias that flattens phi"
REFERENCE_MD = "MD as the reference was made: 1 fs, a bias that flattens phi"
MANY = 1000  # effective samples that are wanted from zero
AHEAD = 10  # times biased MD that the best surrogate should make
QUESTION = "How many effective samples a second does each way of correcting to the Boltzmann distribution give?"
NOTES = (
    "CPU seconds a way: drawing, ln q, energies and correction, on one thread (of MD: all threads). Not in them: what is paid "
    "once, which stands in 'from zero': reference MD with its held-out half, features, training, every start of a process, the "
    "comparison with held-out MD by ln q; scaling of coordinates; bias scan and minimisation. Where a GPU works these are the "
    "seconds of its host, which flatter it: compare wall seconds there.",
    "Effective samples: of independent weighted samples Kish's ESS of unclipped weights; of chains, annealed particles and MD, "
    "which are correlated, the number of independent samples that would know dF(phi > 0) as well (jackknife over islands, "
    "chains, populations or copies; of the reference its statistical inefficiency). The column 'by phi > 0' counts all ways by "
    "the latter. It exceeds the number of samples where a way draws phi > 0 more often than the Boltzmann distribution does.",
    "A jackknife over few parts is itself uncertain by 20 to 40 %; the spread over repeats shows it. ± is the standard "
    "deviation over repeats.",
    "Certified: in every repeat k-hat <= 0.7, no sample has more than a tenth of the weight, both sides of phi have been seen "
    "by five independent parts, ln q of the ODE comes back from the prior within 0.1 (root mean square), and held-out MD shows "
    "no part of the ensemble that is missed (basins of which fewer than five effective samples are expected are not asked "
    "for). Speeds are printed where all that is so. Ways without training have no held-out MD, and MD is taken as it is.",
    "MD with a bias, and surrogates whose reference was made by it, were told that phi is slow; Monte Carlo without training "
    "was not. Steps and levels of the diffusion are those that the suite `density` found with other seeds.",
    "'Pays against biased MD from': effective samples from which on all costs are below those of biased MD, by mean rates.",
)


def summary(name: str, kind: str, outcomes: Sequence[Outcome], truth_kt: tuple[float, float]) -> dict[str, Any]:
    """Return the figures of a way, those of repeats as `spread`."""
    share = float(1 / (1 + np.exp(truth_kt[0])))
    counts = [effective(one, share) for one in outcomes]
    reasons = list(dict.fromkeys(reason for one in outcomes for reason in one.reasons))
    found: dict[str, Any] = {"name": name, "kind": kind, "certified": not reasons, "reasons": reasons}
    found["fixed_cpu_s"] = spread(one.fixed_cpu_s for one in outcomes)
    found["samples_per_cpu_s"] = spread(one.n / one.cpu_s for one in outcomes)
    for part in dict.fromkeys(part for one in outcomes for part in one.parts):
        each = spread(1e6 * one.parts.get(part, 0.0) / max(one.n, 1) for one in outcomes)
        found[f"{part.replace(' ', '_').replace(',', '')}_us_per_sample"] = each
    for label in ("ess_fraction", "ess_clipped_fraction", "largest_share", "k_hat"):
        found[label] = _spread([None if one.weights is None else getattr(one.weights, label) for one in outcomes])
    found["forward_ess"] = _spread([one.facts.get("forward_ess") for one in outcomes])
    for label, column in (("", "counted"), ("phi_", "phi")):
        numbers = [count[column] if found["certified"] else None for count in counts]
        rates = [None if number is None else number / one.cpu_s for number, one in zip(numbers, outcomes, strict=True)]
        walls = [None if number is None else number / one.wall_s for number, one in zip(numbers, outcomes, strict=True)]
        zero = [None if not rate else one.fixed_cpu_s + MANY / rate for rate, one in zip(rates, outcomes, strict=True)]
        found |= {f"{label}effective_per_cpu_s": _spread(rates), f"{label}effective_per_wall_s": _spread(walls)}
        found[f"{label}to_{MANY}_effective_cpu_s"] = _spread(zero)
    found["free_energy"] = [_estimate(one, truth_kt) for one in outcomes]
    return found | {"outcomes": [asdict(one) | {"effective": count} for one, count in zip(outcomes, counts, strict=True)]}


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Spread over repeats; None where one is not known, or infinite."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return spread(known) if known and len(known) == len(values) else None


def _estimate(outcome: Outcome, truth_kt: tuple[float, float]) -> dict[str, Any] | None:
    value, half = outcome.free_energy_kt, outcome.half_width_kt
    if value is None or half is None:
        return None
    return {"value_kt": value, "half_width_kt": half, "holds": abs(value - truth_kt[0]) <= float(np.hypot(half, truth_kt[1]))}


def record_of(results: Mapping[str, Any], size: str, truth_kt: tuple[float, float], device: str) -> dict[str, Any]:
    """Return question, answer, targets, tables and notes of the record."""
    targets = _targets(results)
    return {
        "question": QUESTION,
        "answer": [target_sentence(targets, size), *_answer(results)],
        "targets": targets,
        "tables": [_rate_table(results), _zero_table(results), _truth_table(results, truth_kt), _part_table(results)],
        "notes": [*NOTES, f"Surrogates were asked on: {device}; islands and chains are moved by the CPU."],
    }


def best(results: Mapping[str, Any], kind: str, figure: str = "effective_per_cpu_s", sign: int = 1) -> dict[str, Any] | None:
    """Return the certified way of a kind that has most (or, with `sign` -1, least) of a figure."""
    own = [row for row in results.values() if row["kind"] == kind and row[figure] is not None]
    found: dict[str, Any] | None = max(own, key=lambda row: sign * row[figure]["mean"], default=None)
    return found


def _answer(results: Mapping[str, Any]) -> list[str]:
    sentences = []
    for kind, words in ((SURROGATE, "surrogate"), (PARTICLES, "way without training"), (MD, "MD")):
        found = best(results, kind)
        if found is None:
            sentences.append(f"No {words} is certified.")
        else:
            sentences.append(
                f"The fastest {words}, training not counted: {found['name']}, {_number(found['effective_per_cpu_s'])} "
                f"effective samples per CPU second."
            )
    for plain, moved, words in (
        ("flow", "flow-annealed", "the annealed flow"), ("diffusion-ode", "diffusion-chains", "chains of the diffusion"),
    ):  # fmt: skip
        a, b = (results[key]["phi_effective_per_cpu_s"] for key in (plain, moved))
        if a is not None and b is not None:
            sentences.append(f"By phi > 0: {words}, {b['mean'] / a['mean']:.2g} times the effective samples of its weights.")
    figure = f"to_{MANY}_effective_cpu_s"
    first = [found for kind in (SURROGATE, PARTICLES, MD) if (found := best(results, kind, figure, -1)) is not None]
    words = "; ".join(
        f"{row['name']}, {_number(row[figure])} CPU s" for row in sorted(first, key=lambda row: row[figure]["mean"])
    )
    sentences.append(f"{MANY:,} effective samples from zero, everything paid: {words or 'no way is certified'}.")
    wrong = [row["name"] for row in results.values() if not row["certified"]]
    return sentences + ([f"Not certified: {'; '.join(wrong)}."] if wrong else [])


def _number(found: Mapping[str, Any]) -> str:
    return f"{_three(found['mean'])} ± {_three(found['sd'])}"


def _three(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _targets(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    ways = [row for row in results.values() if row["kind"] != MD]
    certified = sum(row["certified"] for row in ways)
    estimates = [one for row in results.values() if row["certified"] for one in row["free_energy"] if one is not None]
    holds = 100 * sum(one["holds"] for one in estimates) / len(estimates) if estimates else None
    zero = f"to_{MANY}_effective_cpu_s"
    figures: list[tuple[str, str, float | None]] = [
        (f"ways, of {len(ways)}, that are certified in every repeat", f">= {len(ways)}", float(certified)),
        ("95 % intervals of dF(phi > 0) of certified ways and MD that hold the converged value / %", ">= 80", holds),
        ("best surrogate: effective samples per CPU second over those of biased MD", f">= {AHEAD}",
         _over_md(results, "effective_per_cpu_s")),
        ("best surrogate: the same, both counted by phi > 0", f">= {AHEAD}", _over_md(results, "phi_effective_per_cpu_s")),
        (f"best surrogate: CPU seconds to {MANY:,} effective samples from zero, over those of biased MD", "<= 1",
         _over_md(results, zero, -1)),
    ]  # fmt: skip
    return [target(name, limit, value, value) for name, limit, value in figures]


def _over_md(results: Mapping[str, Any], figure: str, sign: int = 1) -> float | None:
    found, md = best(results, SURROGATE, figure, sign), results["md-bias"][figure]
    return None if found is None or md is None else float(found[figure]["mean"] / md["mean"])


def _effective(row: Mapping[str, Any], figure: str) -> Any:
    if not row["certified"]:
        return "not certified"
    return row[figure]


def _percent(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if found is None else spread(100 * value for value in found["values"])


def _rate_table(results: Mapping[str, Any]) -> dict[str, Any]:
    columns = [
        "way", "samples / CPU s", "ESS / %", "clipped / %", "largest share / %", "k-hat", "forward ESS / %",
        "effective / CPU s", "by phi > 0 / CPU s",
    ]  # fmt: skip
    rows = [
        [
            row["name"], row["samples_per_cpu_s"],
            *(_percent(row[name]) for name in ("ess_fraction", "ess_clipped_fraction", "largest_share")), row["k_hat"],
            _percent(row["forward_ess"]), _effective(row, "effective_per_cpu_s"), _effective(row, "phi_effective_per_cpu_s"),
        ]
        for row in results.values()
    ]  # fmt: skip
    return {"caption": "Effective samples per CPU second, training not counted", "columns": columns, "rows": rows}


def _zero_table(results: Mapping[str, Any]) -> dict[str, Any]:
    columns = [
        "way", "paid once / CPU s", f"to {MANY:,} effective / CPU s", "by phi > 0 / CPU s", "pays against biased MD from",
        "why not certified",
    ]  # fmt: skip
    rows = [
        [
            row["name"], row["fixed_cpu_s"], _effective(row, f"to_{MANY}_effective_cpu_s"),
            _effective(row, f"phi_to_{MANY}_effective_cpu_s"), _pays(row, results["md-bias"]),
            "; ".join(row["reasons"]) or None,
        ]
        for row in results.values()
    ]  # fmt: skip
    return {"caption": f"{MANY:,} effective samples from zero, everything paid", "columns": columns, "rows": rows}


def _pays(row: Mapping[str, Any], md: Mapping[str, Any]) -> str | None:
    own, its = row["effective_per_cpu_s"], md["effective_per_cpu_s"]
    if row is md or own is None or its is None:
        return None
    fixed = row["fixed_cpu_s"]["mean"] - md["fixed_cpu_s"]["mean"]
    return samples_in_words(float(break_even(fixed, 1 / its["mean"], 1 / own["mean"])))


def _truth_table(results: Mapping[str, Any], truth_kt: tuple[float, float]) -> dict[str, Any]:
    rows = []
    for row in results.values():
        found = row["free_energy"]
        words = ["-" if one is None else f"{one['value_kt']:.3f} ± {one['half_width_kt']:.3f}" for one in found]
        known = [one for one in found if one is not None]
        holds = f"{sum(one['holds'] for one in known)} of {len(known)}"
        rows.append([row["name"], " / ".join(words), holds, "yes" if row["certified"] else "no"])
    caption = f"dF(phi > 0) / kT, repeat by repeat; converged: {truth_kt[0]:.3f} ± {truth_kt[1]:.3f} (suite `tempering`)"
    return {"caption": caption, "columns": ["way", "dF(phi > 0) / kT", "intervals that hold it", "certified"], "rows": rows}


def _part_table(results: Mapping[str, Any]) -> dict[str, Any]:
    ending = "_us_per_sample"
    rows = [
        [row["name"], name.removesuffix(ending).replace("_", " "), value]
        for row in results.values()
        for name, value in row.items()
        if name.endswith(ending)
    ]
    return {"caption": "Where the time goes", "columns": ["way", "part", "CPU us / sample"], "rows": rows}
