"""The report on generated trajectories: sections, tables and data; its figures and costs are in files beside this."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hpc_molgen.efficiency import exclusions, series_costs
from hpc_molgen.efficiency.document import Picture, Section
from hpc_molgen.efficiency.series_findings import GENERATED, HELD_OUT, SeriesFindings, SetFindings
from hpc_molgen.efficiency.series_verdict import interval, score, slowest, timescale
from hpc_molgen.efficiency.tables import Table, number

if TYPE_CHECKING:
    from hpc_molgen.efficiency.exclusions import LeftOut
    from hpc_molgen.run import Run

_NOTE = "Intervals: 95 %, bootstrap over trajectories."
TARGET = "No importance weights exist for generated trajectories: a surrogate of trajectories knows no ln q. They are raw."


def sections(run: Run, findings: SeriesFindings, left_out: list[LeftOut]) -> list[Section]:
    """Return the document; `left_out` is what `series_exclusions.collect` found."""
    labels = [_labels(findings)] if findings.labels else []
    seeds = [_seeds(run, findings)] if findings.seeds else []
    ends = [series_costs.section(run, findings), Section(exclusions.TITLE, (), (), (exclusions.table(left_out),))]
    return [_distribution(findings), _kinetics(findings), *labels, _copies(findings), *seeds, *ends]


def key_figures(findings: SeriesFindings) -> list[tuple[str, str]]:
    """Return the numbers beside the verdict."""
    ours, reference = findings.sets[GENERATED], findings.sets[HELD_OUT]
    return [
        (f"{ours.divergence / findings.floor:.2f} x noise floor", "divergence from held-out MD"),
        (f"{interval(slowest(findings, ours))} frames", "slowest implied timescale, generated"),
        (f"{interval(slowest(findings, reference))} frames", "slowest implied timescale, held-out MD"),
        (number(findings.memorisation.ratio), "distance to training over distance to held-out windows (1: no copies)"),
    ]


def record(findings: SeriesFindings) -> dict[str, Any]:
    """Return what report.json holds of the findings."""
    return {
        "feature_names": findings.feature_names,
        "states": findings.states.names if findings.states else (),
        "dt_ps": findings.dt_ps,
        "lags": findings.lags,
        "noise_floor": findings.floor,
        "memorisation": asdict(findings.memorisation),
        "scores": {name: score(findings, name) for name in findings.sets},
        "sets": {name: _plain(part) for name, part in findings.sets.items()},
        "labels": {
            name: {"noise_floor": part.floor, "scores": {own: score(part, own) for own in part.sets}}
            | {own: _plain(measured) for own, measured in part.sets.items()}
            for name, part in findings.labels.items()
        },
        "seams": [asdict(ratio) for ratio in findings.seams],
        "seeds": asdict(findings.seeds) if findings.seeds else None,
        "others": {name: asdict(other) for name, other in findings.others.items()},
        "chapman_kolmogorov": {
            name: {"lag": findings.ck_lag, "predicted": predicted, "estimated": estimated}
            for name, (predicted, estimated) in findings.chapman_kolmogorov.items()
        },
    }


def _plain(part: SetFindings) -> dict[str, Any]:
    tables = {what: getattr(part, what).items() for what in ("transitions", "passages")}
    pairs = {what: {f"{i} {j}": asdict(value) for (i, j), value in items} for what, items in tables.items()}
    return asdict(part) | pairs


def _distribution(findings: SeriesFindings) -> Section:
    names = findings.feature_names
    rows = []
    for name, part in findings.sets.items():
        shares = [interval(value) for value in part.populations]
        size = f"{part.n_trajectories} x {part.n_frames // part.n_trajectories:,}"
        rows.append([name, size, number(part.divergence), number(part.divergence / findings.floor), *shares])
    states = findings.states.names if findings.states else ()
    columns = ("set", "trajectories x frames", "divergence / nats", "over the floor", *(f"share {state}" for state in states))
    note = (
        f"Jensen-Shannon divergence of {' and '.join(names[: len(findings.bins.columns)])} from held-out MD; bins from "
        f"held-out MD with one beyond each end. Noise floor: held-out against training MD. {_NOTE}"
    )
    pictures = (Picture("surfaces", "Free energy of the first features, in kT above the minimum, and one trajectory of each."),)
    return Section("Distribution", (), pictures, (Table("Divergence and populations", columns, rows, note),))


def _kinetics(findings: SeriesFindings) -> Section:
    rows = []
    for name, part in findings.sets.items():
        correlation = [interval(value) for value in part.correlation_times]
        scales = [interval(timescale(part, row)) for row in range(len(findings.lags))]
        increments = [number(value, 4) for value in part.increments]
        rows.append([name, *increments, *correlation, *scales, number(part.drift, 2), number(score(findings, name))])
    names = findings.feature_names
    columns = (
        "set", *(f"increment of {name}" for name in names), *(f"correlation time of {name}" for name in names),
        *(f"timescale, lag {lag}" for lag in findings.lags), "drift / standard errors", "score",
    )  # fmt: skip
    times = Table(
        "Time", columns, rows,
        "Frames. Increments: standard deviation of one step. Correlation times are integrated, about the mean of each label; "
        "timescales are of Markov state models on the clusters of training MD. Drift: the largest deviation of the mean of one "
        f"of ten windows. Score: sum of the deviations over their tolerances, 4 or less is good. {_NOTE}",
    )  # fmt: skip
    tables = [times]
    if findings.states:
        tables += [
            _pairs(findings, "transitions", "Transitions per 10,000 frames"),
            _pairs(findings, "passages", "Mean first-passage times / frames"),
        ]
    pictures = (Picture("kinetics", "Autocorrelation of each feature, implied timescales, and the Chapman-Kolmogorov test."),)
    return Section("Kinetics", (), pictures, tuple(tables))


def _labels(findings: SeriesFindings) -> Section:
    rows = []
    for name, part in findings.labels.items():
        for own, measured in part.sets.items():
            shares = [interval(value) for value in measured.populations]
            times = [interval(value) for value in measured.correlation_times]
            over = number(measured.divergence / part.floor) if own == GENERATED else "-"
            size = f"{measured.n_trajectories} x {measured.n_frames // measured.n_trajectories:,}"
            increments = [number(value, 4) for value in measured.increments]
            rows.append([name, own, size, over, *shares, *increments, *times, interval(slowest(part, measured))])
    states = findings.states.names if findings.states else ()
    names = findings.feature_names
    columns = (
        "label", "set", "trajectories x frames", "divergence over the floor", *(f"share {state}" for state in states),
        *(f"increment of {name}" for name in names), *(f"correlation time of {name}" for name in names), "slowest timescale",
    )  # fmt: skip
    note = (
        "One generator serves all labels. Divergence from the same label's held-out MD, over that of its training MD; of an "
        "unseen label, which is generated by interpolation and enters no other table, over that of two parts of its held-out "
        f"MD. Times in frames. {_NOTE}"
    )
    return Section("Labels", (), (), (Table("Agreement by label", columns, rows, note),))


def _pairs(findings: SeriesFindings, what: str, title: str) -> Table:
    assert findings.states is not None
    names, pairs = findings.states.names, list(findings.sets[HELD_OUT].transitions)
    rows = [[name, *(interval(getattr(part, what)[pair]) for pair in pairs)] for name, part in findings.sets.items()]
    return Table(title, ("set", *(f"{names[i]} to {names[j]}" for i, j in pairs)), rows, f"From core to core. {_NOTE}")


def _copies(findings: SeriesFindings) -> Section:
    near = findings.memorisation
    text = (
        f"Of {near.n_windows} generated windows of {near.length} frames, {100 * near.nearer_to_training:.0f} % lie nearer "
        f"to the training set than to an equally large held-out set; the ratio of the mean distances is {near.ratio:.3f} "
        f"[{near.low:.3f}, {near.high:.3f}] (1: no memorising)."
    )
    return Section("Memorising", (text,))


def _seeds(run: Run, findings: SeriesFindings) -> Section:
    found, states = findings.seeds, findings.states
    assert found is not None and states is not None
    kelvin = run.config.farm.temperature_kelvin or run.system.temperature_kelvin
    reference = findings.sets[HELD_OUT].populations
    rows = [
        [state, number(counted), interval(estimate), interval(theirs)]
        for state, counted, estimate, theirs in zip(states.names, found.counted, found.populations, reference, strict=True)
    ]
    text = (
        f"{found.n_replicas} replicas at {kelvin:g} K started at generated frames, rare ones first, and have "
        f"{found.n_frames:,} frames. A Markov state model of them at a lag of {found.lag} frames connects "
        f"{100 * found.covered:.0f} % of the clusters; its stationary distribution undoes the choice of the starts, as far as "
        "the model is Markovian."
    )
    columns = ("state", "share of frames", "share by the model", f"share in {HELD_OUT}")
    return Section("Short MD from generated frames", (text,), (), (Table("Populations", columns, rows, _NOTE),))
