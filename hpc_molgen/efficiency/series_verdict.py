"""The quality gate of generated trajectories, and a score that baselines are compared by."""

from __future__ import annotations

import numpy as np

from hpc_molgen.analysis.free_energy import Estimate
from hpc_molgen.efficiency.series_findings import (
    AUTOREGRESSION,
    GENERATED,
    HELD_OUT,
    MARKOV,
    SHUFFLED,
    SeriesFindings,
    SetFindings,
)
from hpc_molgen.efficiency.verdict import Check, Verdict

DIVERGENCE_FLOORS = 2.0
POPULATION = 0.02
INCREMENTS = 0.03
TIMES = 0.15


def decide_series(findings: SeriesFindings, tolerance: float) -> Verdict:
    """Return the verdict on the generated trajectories.

    Parameters
    ----------
    tolerance : float
        Factor on all tolerances.
    """
    ours, reference = findings.sets[GENERATED], findings.sets[HELD_OUT]
    checks = [
        _divergence(findings, tolerance),
        *_populations(findings, tolerance),
        _increments(findings, tolerance),
        *_times(findings, tolerance),
        *_transitions(findings, tolerance),
        _memorisation(findings),
        *_labels(findings, tolerance),
        *_seams(findings, tolerance),
        *_beats(findings),
    ]
    passed = all(check.passed for check in checks)
    times = slowest(findings, ours), slowest(findings, reference)
    sentence = (
        f"Divergence from held-out MD {ours.divergence:.2g} nats (two halves of MD: {findings.floor:.2g}); slowest implied "
        f"timescale {interval(times[0])} frames against {interval(times[1])}; {_against_markov(findings)}"
    )
    failed = [check.name for check in checks if not check.passed]
    headline = "The trajectories pass the gate" if passed else f"The trajectories fail {len(failed)} of {len(checks)} checks"
    return Verdict(sentence=sentence, headline=headline, checks=tuple(checks))


def interval(estimate: Estimate, digits: int = 3) -> str:
    """Write a value with its interval."""
    if not np.isfinite([estimate.low, estimate.high]).all():
        return f"{estimate.value:.{digits}g}"
    return f"{estimate.value:.{digits}g} [{estimate.low:.{digits}g}, {estimate.high:.{digits}g}]"


def timescale(part: SetFindings, lag: int, number: int = 0) -> Estimate:
    """Return an implied timescale at the lag of that row."""
    return Estimate(*map(float, part.timescales[lag, number]))


def slowest(findings: SeriesFindings, part: SetFindings) -> Estimate:
    """Return the slowest implied timescale at the lag of the Chapman-Kolmogorov test."""
    return timescale(part, findings.lags.index(findings.ck_lag))


def score(findings: SeriesFindings, name: str) -> float:
    """Return divergence and kinetics of a set in one number: the sum of its deviations in units of their tolerances.

    Divergence over twice the floor, and the largest relative deviations of increments, correlation times and the slowest
    implied timescale, each over its tolerance. 4 is what a set has that meets each just so; no timescale counts as 100 %.
    """
    part, reference = findings.sets[name], findings.sets[HELD_OUT]
    slow, true = slowest(findings, part).value, slowest(findings, reference).value
    slow = slow if np.isfinite(slow) else 0.0
    increments = max(abs(a / b - 1) for a, b in zip(part.increments, reference.increments, strict=True))
    pairs = zip(part.correlation_times, reference.correlation_times, strict=True)
    correlation = max(abs(a.value / b.value - 1) for a, b in pairs)
    kinetic = increments / INCREMENTS + correlation / TIMES + abs(slow / true - 1) / TIMES
    return float(part.divergence / (DIVERGENCE_FLOORS * findings.floor) + kinetic)


def _divergence(findings: SeriesFindings, tolerance: float) -> Check:
    ratio = findings.sets[GENERATED].divergence / findings.floor
    limit = DIVERGENCE_FLOORS * tolerance
    detail = f"{ratio:.2f} times the noise floor of {findings.floor:.2g} nats (at most {limit:g})"
    return Check("divergence", ratio <= limit, detail)


def _populations(findings: SeriesFindings, tolerance: float) -> list[Check]:
    ours, reference = findings.sets[GENERATED].populations, findings.sets[HELD_OUT].populations
    if findings.states is None:
        return []
    worst = max(abs(a.value - b.value) for a, b in zip(ours, reference, strict=True))
    limit = POPULATION * tolerance
    return [Check("populations", worst <= limit, f"largest deviation {worst:.3f} (at most {limit:g})")]


def _increments(findings: SeriesFindings, tolerance: float) -> Check:
    ours, reference = findings.sets[GENERATED].increments, findings.sets[HELD_OUT].increments
    worst = max(abs(a / b - 1) for a, b in zip(ours, reference, strict=True))
    limit = INCREMENTS * tolerance
    return Check("increments", worst <= limit, f"standard deviation off by {100 * worst:.1f} % (at most {100 * limit:g})")


def _close(ours: Estimate, reference: Estimate, tolerance: float) -> bool:
    near = abs(ours.value / reference.value - 1) <= TIMES * tolerance
    return bool(near or reference.low <= ours.value <= reference.high)


def _times(findings: SeriesFindings, tolerance: float) -> list[Check]:
    ours, reference = findings.sets[GENERATED], findings.sets[HELD_OUT]
    checks = []
    pairs = [
        *zip(ours.correlation_times, reference.correlation_times, findings.feature_names, strict=True),
        (slowest(findings, ours), slowest(findings, reference), "slowest implied timescale"),
    ]
    for mine, theirs, name in pairs:
        what = name if name.startswith("slowest") else f"correlation time of {name}"
        detail = f"{interval(mine)} frames, held-out MD {interval(theirs)}"
        checks.append(Check(what, _close(mine, theirs, tolerance), detail))
    return checks


def _transitions(findings: SeriesFindings, tolerance: float) -> list[Check]:
    if findings.states is None:
        return []
    ours, reference = findings.sets[GENERATED].transitions, findings.sets[HELD_OUT].transitions
    outside, names = [], findings.states.names
    for (i, j), theirs in reference.items():
        middle, half = (theirs.low + theirs.high) / 2, tolerance * (theirs.high - theirs.low) / 2
        if not middle - half <= ours[i, j].value <= middle + half:
            outside.append(f"{names[i]} to {names[j]} {ours[i, j].value:.3g} against {interval(theirs)} per 10,000 frames")
    return [Check("transitions", not outside, "; ".join(outside) or "every pair of states inside the interval of held-out MD")]


def _memorisation(findings: SeriesFindings) -> Check:
    near = findings.memorisation
    detail = (
        f"distance to the nearest training window over that to the nearest held-out one: {near.ratio:.3f} [{near.low:.3f}, "
        f"{near.high:.3f}]"
    )
    return Check("memorisation", near.low <= 1 <= near.high, detail)


def _labels(findings: SeriesFindings, tolerance: float) -> list[Check]:
    """One check for each label: all that concerns distributions and times, of its trajectories alone."""
    checks = []
    for name, part in findings.labels.items():
        first = _divergence(part, tolerance), *_populations(part, tolerance)
        own = [*first, _increments(part, tolerance), *_times(part, tolerance)]
        failed = [f"{check.name}: {check.detail}" for check in own if not check.passed]
        checks.append(Check(name, not failed, "; ".join(failed) or f"its {len(own)} checks on distributions and times pass"))
    return checks


def _seams(findings: SeriesFindings, tolerance: float) -> list[Check]:
    if not findings.seams:
        return []
    limit = INCREMENTS * tolerance
    passed = all(ratio.low <= 1 + limit and ratio.high >= 1 - limit for ratio in findings.seams)
    ratios = ", ".join(f"{name} {interval(ratio)}" for name, ratio in zip(findings.feature_names, findings.seams, strict=True))
    return [Check("seams", passed, f"standard deviation of increments there over that elsewhere: {ratios}")]


def _beats(findings: SeriesFindings) -> list[Check]:
    ours, checks = score(findings, GENERATED), []
    perceptrons = [name for name, other in findings.others.items() if other.architecture == "perceptron"]
    for name in (SHUFFLED, AUTOREGRESSION, *perceptrons):
        theirs = score(findings, name)
        checks.append(Check(f"better than {name}", ours < theirs, f"score {ours:.3g} against {theirs:.3g} (small is good)"))
    return checks


def _against_markov(findings: SeriesFindings) -> str:
    ours, theirs = score(findings, GENERATED), score(findings, MARKOV)
    word = "better" if ours < theirs else "worse"
    return f"score {ours:.2g}, {word} than the {theirs:.2g} of a Markov state model of the same data."
