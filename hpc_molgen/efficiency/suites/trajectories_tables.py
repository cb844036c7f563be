"""Targets, sentences and tables of the `trajectories` suite, from its results."""

from __future__ import annotations

from typing import Any

from hpc_molgen.efficiency.series_findings import GENERATED, MARKOV
from hpc_molgen.efficiency.suites.record import in_words, spread
from hpc_molgen.efficiency.suites.rounds import target, target_sentence

QUESTION = (
    "How many frames a second does a generator of whole trajectories make, against molecular dynamics and a Markov state model "
    "of the same data, and are its populations and kinetics those of held-out MD?"
)
NOTES = [
    "Quality: spread over seeds, each with data and a training of its own. Divergence of two features over that of training "
    "from held-out MD; of increments and correlation times the feature that is off most; slowest implied timescale at the lag "
    "of the Chapman-Kolmogorov test; score: sum of the deviations over their tolerances (0 is held-out MD itself, 4 or less is "
    "good).",
    "Speed: rounds in turn on one thread, the generator of the first seed; ± is the standard deviation over rounds. Its ratio "
    "to MD and the frames from which on it pays are printed only if every seed passes the quality gate of the report.",
    "A generated frame is worth as much as a frame of MD only where correlation times agree. The MD that trains and judges is "
    "OpenMM's, as for any system; a loop of numpy over many copies, which only such a toy has, is what the generator has to "
    "beat.",
]
_SCORES = {
    "divergence_over_floor": "divergence over floor",
    "population_deviation": "largest deviation of a population",
    "increments_over_md": "increments / MD",
    "correlation_time_over_md": "correlation time / MD",
    "timescale_over_md": "slowest timescale / MD",
    "transitions_over_md": "transitions / MD",
    "score": "score",
}


def record_of(results: dict[str, Any], size: str) -> dict[str, Any]:
    """Question, answer, targets, tables and notes."""
    targets = _targets(results)
    return {
        "question": QUESTION,
        "answer": [target_sentence(targets, size), *_answer(results)],
        "targets": targets,
        "tables": [_quality_table(results), _speed_table(results), _length_table(results)],
        "notes": NOTES,
    }


def certified(results: dict[str, Any]) -> bool:
    """Whether the trajectories of every seed pass the quality gate."""
    return all(row["certified"] for row in results["seeds"])


def _targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    ours, chain = results["quality"][GENERATED], results["quality"][MARKOV]
    timescale, increments = (
        spread(abs(value - 1) for value in ours[key]["values"]) for key in ("timescale_over_md", "increments_over_md")
    )
    passed = sum(row["certified"] for row in results["seeds"])
    return [
        target("divergence over the noise floor", "<= 2", ours["divergence_over_floor"], ours["divergence_over_floor"]["mean"]),
        target("slowest implied timescale off by, mean over seeds", "<= 0.15", timescale, timescale["mean"]),
        target("increments off by, mean over seeds", "<= 0.03", increments, increments["mean"]),
        target("score over that of the Markov state model", "<= 1", ours["score"]["mean"] / chain["score"]["mean"],
               ours["score"]["mean"] / chain["score"]["mean"]),
        target("seeds whose trajectories pass the gate", f">= {len(results['seeds'])}", float(passed), passed),
    ]  # fmt: skip


def _answer(results: dict[str, Any]) -> list[str]:
    ours, chain, speeds, paid = (results["quality"][GENERATED], results["quality"][MARKOV], results["speeds"], results["bill"])
    lines = [
        f"{sum(row['certified'] for row in results['seeds'])} of {len(results['seeds'])} seeds pass the quality gate; score "
        f"{in_words(ours['score'])} against {in_words(chain['score'])} of a Markov state model of the same data, which takes "
        f"{speeds['markov']['fit_cpu_s']:.1f} CPU s to fit where the generator takes {paid['training_cpu_s']['mean']:,.0f}.",
        f"Slowest implied timescale {in_words(ours['timescale_over_md'])} times that of MD, transitions "
        f"{in_words(ours['transitions_over_md'])} times.",
    ]
    if not certified(results):
        failed = sorted({name for row in results["seeds"] for name, check in row["checks"].items() if not check["passed"]})
        return [*lines, f"Not certified, so no speed-up is printed; failed checks: {', '.join(failed)}."]
    md, rate = fastest_md(results), speeds["generator"]["per_cpu_s"]
    gain = spread(a / b for a, b in zip(rate["values"], md["per_cpu_s"]["values"], strict=True))
    n = pays_from(results)
    return [
        *lines,
        f"The generator makes {rate['mean']:,.0f} frames a CPU second, {in_words(gain)} times as many as the fastest MD "
        f"({md['method']}, {md['per_cpu_s']['mean']:,.0f}); data and training counted it is cheaper "
        + ("never." if n is None else f"from {n:,.0f} frames on."),
    ]


def fastest_md(results: dict[str, Any]) -> dict[str, Any]:
    """Return the speed of the fastest molecular dynamics that was measured."""
    found: dict[str, Any] = max(
        (results["speeds"][label] for label in ("md", "numpy") if label in results["speeds"]),
        key=lambda row: row["per_cpu_s"]["mean"],
    )
    return found


def pays_from(results: dict[str, Any]) -> float | None:
    """Frames from which on data, training and generation cost less than as many frames of the fastest MD; None: never.

    Also None where a GPU trained, whose time CPU seconds do not hold.
    """
    paid, speeds = results["bill"], results["speeds"]
    gain = 1 / fastest_md(results)["per_cpu_s"]["mean"] - 1 / speeds["generator"]["per_cpu_s"]["mean"]
    fixed = paid["data_cpu_s"]["mean"] + paid["training_cpu_s"]["mean"]
    return fixed / gain if gain > 0 and not paid["on_gpu"] else None


def _quality_table(results: dict[str, Any]) -> dict[str, Any]:
    rows = [[name, *(found[key] for key in _SCORES)] for name, found in results["quality"].items()]
    return {"caption": "Against held-out MD (mean ± sd over seeds)", "columns": ["set", *_SCORES.values()], "rows": rows}


def _speed_table(results: dict[str, Any]) -> dict[str, Any]:
    passed, rows = certified(results), []
    for label, found in results["speeds"].items():
        ratio = found["ratio_cpu"] if passed or label != "generator" else "not certified"
        rows.append([found["method"], found["per_cpu_s"], found["per_wall_s"], ratio])
    columns = ["method", "frames per CPU s", "frames per wall s", "times OpenMM (CPU)"]
    caption = (
        f"Frames a second on one thread; MD that trained and judged: {results['bill']['data_cpu_s']['mean']:,.0f} CPU s a seed"
    )
    return {"caption": caption, "columns": columns, "rows": rows}


def _length_table(results: dict[str, Any]) -> dict[str, Any]:
    rows = [[found["method"], found["per_cpu_s"], found["ratio_cpu"]] for found in results["lengths"].values()]
    columns = ["one call", "frames per CPU s", "over the shortest"]
    return {"caption": "The generator's throughput against length", "columns": columns, "rows": rows}
