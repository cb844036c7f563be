"""The report on generated trajectories: sections, tables and figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.efficiency import figures
from hpc_molgen.efficiency.costs import Prices
from hpc_molgen.efficiency.document import Picture, Section
from hpc_molgen.efficiency.series_findings import GENERATED, HELD_OUT, MARKOV, TRAIN, SeriesFindings, SetFindings
from hpc_molgen.efficiency.series_verdict import interval, score, slowest, timescale
from hpc_molgen.efficiency.tables import Table, number
from hpc_molgen.files import read_json
from hpc_molgen.run import stage_costs

if TYPE_CHECKING:
    from hpc_molgen.analysis.series import Bins
    from hpc_molgen.run import Run

_COLOURS = {HELD_OUT: figures.BLACK, TRAIN: figures.GREY, GENERATED: figures.ORANGE, MARKOV: figures.BLUE}
_NOTE = "Intervals: 95 %, bootstrap over trajectories."
_LIMIT_KT = 8.0
TARGET = "No importance weights exist for generated trajectories: a surrogate of trajectories knows no ln q. They are raw."


def sections(run: Run, findings: SeriesFindings) -> list[Section]:
    """Return the document."""
    labels = [_labels(findings)] if findings.labels else []
    seeds = [_seeds(run, findings)] if findings.seeds else []
    return [_distribution(findings), _kinetics(findings), *labels, _copies(findings), *seeds, _costs(run, findings)]


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


def _costs(run: Run, findings: SeriesFindings) -> Section:
    rows, prices = [], Prices.of(run)
    for stage in ("reference", "featurize", "train", "sample"):
        cost = stage_costs(run, stage)
        rows.append([stage, number(cost["cpu_s"]), number(cost["wall_s"]), str(int(cost["attempts"]))])
        rows[-1] += [number(prices.money(cost["cpu_s"]))] if prices.known else []
    extra = ["-"] if prices.known else []
    rows += [
        [f"{name} (fit and sample)", number(part.made_cpu_s), "-", "-", *extra]
        for name, part in findings.sets.items()
        if part.made_cpu_s is not None
    ]
    rows += [[f"{name}: training", number(other.train_cpu_s), "-", "-", *extra] for name, other in findings.others.items()]
    train, sample = (read_json(run.path(stage, "done.json"))["details"] for stage in ("train", "sample"))
    text = (
        f"The surrogate has {train['n_parameters']:,} weights and was trained on {train['n_items']:,} windows. It makes "
        f"{sample['frames_per_cpu_s']:,.0f} frames per CPU second."
    )
    spent = stage_costs(run, "train")["cpu_s"]
    for name, other in findings.others.items():
        weights, time = other.n_parameters / train["n_parameters"], other.train_cpu_s / spent
        text += (
            f" {name} ({other.architecture}) has {other.n_parameters:,} weights, {weights:.1f} times as many, and its training "
            f"took {time:.2f} times as long; scores {score(findings, name):.3g} and {score(findings, GENERATED):.3g} (small is "
            "good)."
        )
    columns: tuple[str, ...] = ("stage", "CPU s", "wall s", "attempts")
    note = "All attempts."
    if prices.known:
        columns, note = (*columns, "money"), f"{note} {prices.words()}"
    return Section("Cost", (text,), (), (Table("Cost", columns, rows, note),))


# ---------------------------------------------------------------------- figures


def draw(directory: Path, findings: SeriesFindings) -> None:
    """Draw all figures."""
    _surfaces(directory, findings)
    _times(directory, findings)


def _surfaces(directory: Path, findings: SeriesFindings) -> None:
    shown = {name: findings.series[name] for name in (HELD_OUT, GENERATED, MARKOV)}
    with figures.canvas(directory, "surfaces", len(shown) + 1, 2.4) as (figure, axes):
        draw_surfaces(figure, axes[:-1], shown, findings.bins, findings.feature_names)
        draw_courses(axes[-1], {name: shown[name] for name in (HELD_OUT, GENERATED)}, findings.feature_names[0])


def draw_surfaces(figure: Any, axes: list[Any], shown: dict[str, list[np.ndarray]], bins: Bins, names: tuple[str, ...]) -> None:
    """Draw the free energy of the first features of some sets, in kT above the minimum of the first set."""
    plane = len(bins.columns) == 2
    top = None
    for axis, (name, series) in zip(axes, shown.items(), strict=True):
        counts = bins.counts(series).sum(axis=0)
        share = counts / counts.sum()
        top = share.max() if top is None else top
        with np.errstate(divide="ignore"):
            surface = -np.log(share / top)
        if plane:
            x, y = bins.edges
            inside = surface.reshape(len(x) + 1, len(y) + 1)[1:-1, 1:-1]
            image = axis.imshow(
                np.where(np.isfinite(inside), inside, np.nan).T, origin="lower", extent=(x[0], x[-1], y[0], y[-1]),
                cmap="YlGnBu_r", vmin=0, vmax=_LIMIT_KT, aspect="auto", interpolation="nearest",
            )  # fmt: skip
            axis.set_ylabel(names[1])
        else:
            centres = 0.5 * (bins.edges[0][1:] + bins.edges[0][:-1])
            axis.plot(centres, surface[1:-1], color=_COLOURS[name])
            axis.set_ylim(0, _LIMIT_KT)
        axis.set_xlabel(names[0])
        axis.set_title(name, color=_COLOURS[name], fontweight="bold")
    if plane:
        figure.colorbar(image, ax=axes, label="kT", shrink=0.85, extend="max", aspect=25)


def draw_courses(axis: Any, shown: dict[str, list[np.ndarray]], name: str) -> None:
    """Draw the first feature of the first trajectory of some sets, one below the other."""
    height = 1.2 * np.ptp(next(iter(shown.values()))[0][:, 0])
    for offset, (own, series) in enumerate(shown.items()):
        axis.plot(series[0][:2000, 0] - offset * height, color=_COLOURS[own], lw=0.5)
    axis.set_xlabel("frame")
    axis.set_yticks([])
    axis.set_title(f"{name} of one trajectory")


def _times(directory: Path, findings: SeriesFindings) -> None:
    with figures.canvas(directory, "kinetics", 3, 2.5) as (_, axes):
        correlation, scales, test = axes
        for name in (HELD_OUT, GENERATED, MARKOV):
            part = findings.sets[name]
            for column, curve in enumerate(part.autocorrelations):
                style = ("-", "--", ":", "-.")[column % 4]
                correlation.plot(curve, color=_COLOURS[name], ls=style, lw=1, label=name if column == 0 else None)
            for number_of in range(part.timescales.shape[1]):
                values = part.timescales[:, number_of]
                scales.plot(findings.lags, values[:, 0], color=_COLOURS[name], marker="o", ms=2.5)
                scales.fill_between(findings.lags, values[:, 1], values[:, 2], color=_COLOURS[name], alpha=0.2, lw=0)
        correlation.set_xlabel("lag / frames")
        correlation.set_ylabel("autocorrelation")
        correlation.legend()
        scales.set(xscale="log", yscale="log", xlabel="lag / frames", ylabel="implied timescales / frames")
        for name, (predicted, estimated) in findings.chapman_kolmogorov.items():
            for state in range(predicted.shape[1]):
                x = findings.ck_lag * np.arange(1, len(predicted) + 1)
                test.plot(x, predicted[:, state], color=_COLOURS[name], lw=1)
                test.plot(x, estimated[:, state], color=_COLOURS[name], marker="o", ls="", ms=3)
        test.set_xlabel(f"multiples of lag {findings.ck_lag} / frames")
        test.set_ylabel("probability to be where one was")
