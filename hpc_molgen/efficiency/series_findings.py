"""What is found of generated trajectories beside held-out MD, the noise floor and the baselines (facts/metrics.md)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.analysis.baselines import autoregression, fit_markov_sampler, shuffled
from hpc_molgen.analysis.free_energy import Estimate
from hpc_molgen.analysis.kinetics import statistical_inefficiency
from hpc_molgen.analysis.markov import Clusters, chapman_kolmogorov, fit_clusters, implied_timescales
from hpc_molgen.analysis.memorisation import Memorisation, memorisation
from hpc_molgen.analysis.series import Bins, Series, autocorrelation, drift, increment_deviation
from hpc_molgen.analysis.states import States, states_of
from hpc_molgen.config import GanConfig
from hpc_molgen.datasets import load_series
from hpc_molgen.efficiency.seeds import SeedFindings, read_seeds
from hpc_molgen.errors import InputError
from hpc_molgen.run import Run, stage_costs
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.trajectories import TrajectorySet, read_trajectories

if TYPE_CHECKING:
    from hpc_molgen.config import ReportConfig

HELD_OUT, TRAIN, GENERATED = "held-out MD", "training MD", "generated"
SHUFFLED, AUTOREGRESSION, MARKOV = "shuffled frames", "autoregression", "Markov state model"
N_TIMESCALES = 2


@dataclass(frozen=True)
class SetFindings:
    """One set of trajectories; the intervals are of a bootstrap over them (nan for a single one).

    Attributes
    ----------
    n_trajectories, n_frames : int
    made_cpu_s : float or None
        CPU seconds to fit and sample a baseline.
    divergence : float
        Of the first two features (one, where there is one) from held-out MD, in nats.
    populations : list of Estimate
        Of each state.
    transitions : dict
        (start, end) -> Estimate per 10,000 frames.
    passages : dict
        (start, end) -> Estimate of the mean first-passage time in frames.
    increments : list of float
        Standard deviation of one-step increments of each feature.
    correlation_times : list of Estimate
        Integrated autocorrelation time of each feature, in frames.
    timescales : np.ndarray, shape=(n_lags, N_TIMESCALES, 3)
        Value and interval of the implied timescales at each lag, in frames.
    autocorrelations : np.ndarray, shape=(n_features, n_lags)
    drift : float
        Largest deviation of a window's mean from the mean of all, in standard errors, over ten windows of every feature.
    """

    n_trajectories: int
    n_frames: int
    made_cpu_s: float | None
    divergence: float
    populations: list[Estimate]
    transitions: dict[tuple[int, int], Estimate]
    passages: dict[tuple[int, int], Estimate]
    increments: list[float]
    correlation_times: list[Estimate]
    timescales: np.ndarray
    autocorrelations: np.ndarray
    drift: float


@dataclass(frozen=True)
class OtherRun:
    """Another surrogate that is compared: its kind, its weights, and CPU seconds of its training."""

    architecture: str
    n_parameters: int
    train_cpu_s: float


@dataclass(frozen=True)
class SeriesFindings:
    """All sets, in the order of the tables, and what concerns two of them.

    Attributes
    ----------
    labels : dict
        The same for held-out MD and generated trajectories of each label; ours of unseen labels are in no other set.
    seams : list of Estimate
        For each feature the standard deviation of increments where segments were joined over that of the others; empty
        without seams.
    others : dict
        Surrogates of other runs, whose trajectories are among the sets.
    seeds : SeedFindings or None
        Of short MD from generated frames, where the farm has run and states are named.
    """

    feature_names: tuple[str, ...]
    units: tuple[str, ...]
    dt_ps: float
    states: States | None
    lags: tuple[int, ...]
    sets: dict[str, SetFindings]
    floor: float
    memorisation: Memorisation
    chapman_kolmogorov: dict[str, tuple[np.ndarray, np.ndarray]]
    ck_lag: int
    series: dict[str, list[np.ndarray]]
    bins: Bins
    labels: dict[str, SeriesFindings]
    seams: list[Estimate]
    others: dict[str, OtherRun]
    seeds: SeedFindings | None


def analyse_series(run: Run) -> SeriesFindings:
    """Compare the generated trajectories of a run, and baselines made of its training data, with held-out MD."""
    config, seed = run.config.report, run.config.seed
    train, all_held_out = load_series(run)
    all_generated = read_trajectories(run.path("sample", "trajectories.h5"))
    seen = set(train.conditions)
    held_out, generated = (_labelled(part, seen) for part in (all_held_out, all_generated))
    centred = {
        HELD_OUT: centred_series(all_held_out, seen),
        TRAIN: centred_series(train, seen),
        GENERATED: centred_series(all_generated, seen),
    }
    n, length = len(held_out), min(map(len, held_out))
    sides = {HELD_OUT: held_out, TRAIN: list(train.features), GENERATED: generated}
    clusters = fit_clusters(sides[TRAIN], derive_seed(seed, "clusters"), config.n_clusters)
    cost: dict[str, float] = {}
    for name, make in _baselines(clusters).items():
        started = time.process_time()
        sides[name] = make(sides[TRAIN], n, length, numpy_generator(seed, name))
        cost[name] = time.process_time() - started
    others = {}
    for name, directory in config.others.items():
        others[name], made = _other(Path(directory), name, set(sides), train)
        sides[name], centred[name] = _labelled(made, seen), centred_series(made, seen)
    states = _states(config, train.feature_names)
    bins = Bins(sides[HELD_OUT], tuple(range(min(2, len(train.feature_names)))))
    measure = _Measure(bins, states, clusters, config, seed, sides[HELD_OUT])
    sets = {name: measure(name, series, cost.get(name), centred.get(name)) for name, series in sides.items()}
    discrete = {name: clusters.assign(sides[name]) for name in (HELD_OUT, GENERATED)}
    ck_lag = config.lags[len(config.lags) // 2]
    members = _members(states, clusters)
    tests = {name: chapman_kolmogorov(own, members, ck_lag, config.ck_multiples) for name, own in discrete.items()}
    near = memorisation(
        sides[GENERATED], sides[TRAIN], sides[HELD_OUT], config.memorisation_frames, numpy_generator(seed, "memorisation")
    )
    found = SeriesFindings(
        feature_names=train.feature_names, units=train.units, dt_ps=train.dt_ps, states=states, lags=config.lags, sets=sets,
        floor=bins.divergence(sides[HELD_OUT], sides[TRAIN]), memorisation=near, chapman_kolmogorov=tests, ck_lag=ck_lag,
        series=sides, bins=bins, labels={}, seams=_seams(generated, run.config.segment_frames, seed),
        others=others, seeds=_seeds(run, clusters, states, ck_lag * train.dt_ps),
    )  # fmt: skip
    labels = dict.fromkeys((*train.conditions, *all_held_out.conditions)) if train.condition_names else {}
    for row in labels:
        name = ", ".join(f"{what} {value:g}" for what, value in zip(train.condition_names, row, strict=True))
        own = [_labelled(part, {row}) for part in (train, all_held_out, all_generated)]
        found.labels[name if own[0] else f"{name} (unseen)"] = _of_label(found, measure, *own)
    return found


def _other(directory: Path, name: str, taken: set[str], train: TrajectorySet) -> tuple[OtherRun, TrajectorySet]:
    """Return what another run trained and made.

    Raises
    ------
    InputError
        When it is no finished run on the same features.
    """
    run = Run.open(directory)
    made = read_trajectories(run.path("sample", "trajectories.h5"))
    if name in taken or made.feature_names != train.feature_names or made.condition_names != train.condition_names:
        raise InputError(f"report.others: {name} ({directory}) is of other features or labels, or its name is taken")
    config, details = run.config.surrogate, run.details("train")
    architecture = config.architecture if isinstance(config, GanConfig) else config.name
    return OtherRun(architecture, int(details["n_parameters"]), float(stage_costs(run, "train")["cpu_s"])), made


def _labelled(series: TrajectorySet, labels: set[tuple[float, ...]]) -> list[np.ndarray]:
    return [values for values, row in zip(series.features, series.conditions, strict=True) if row in labels]


def centred_series(series: TrajectorySet, labels: set[tuple[float, ...]]) -> list[np.ndarray]:
    """As `_labelled`, less the mean of each label: what differs between labels for ever is no correlation in time."""
    if not series.condition_names:
        return _labelled(series, labels)  # which may lie on disk
    means = {row: np.concatenate(_labelled(series, {row})).mean(axis=0) for row in set(series.conditions) & labels}
    return [values - means[row] for values, row in zip(series.features, series.conditions, strict=True) if row in labels]


def _of_label(
    found: SeriesFindings, measure: _Measure, train: Series, held_out: list[np.ndarray], generated: list[np.ndarray]
) -> SeriesFindings:
    """Return the findings of one label; the noise floor of an unseen one is that of two parts of its held-out MD."""
    bins = Bins(held_out, found.bins.columns)
    floor = bins.divergence(held_out, train) if train else bins.divergence(held_out[::2], held_out[1::2] or held_out)
    measure = dataclasses.replace(measure, bins=bins, held_out=held_out)
    sets = {HELD_OUT: measure(HELD_OUT, held_out, None), GENERATED: measure(GENERATED, generated, None)}
    return dataclasses.replace(found, sets=sets, floor=floor, labels={}, seams=[], series={}, bins=bins)


def _seeds(run: Run, clusters: Clusters, states: States | None, lag_ps: float) -> SeedFindings | None:
    if states is None:
        return None
    config = run.config.report
    return read_seeds(run, clusters, states, lag_ps, config.bootstrap_samples, numpy_generator(run.config.seed, "seeds"))


def _seams(generated: list[np.ndarray], segment: int | None, seed: int) -> list[Estimate]:
    """Return what `SeriesFindings.seams` holds, with intervals of a bootstrap over trajectories."""
    if segment is None or segment >= min(map(len, generated)):
        return []
    draws = _draws(len(generated), 200, numpy_generator(seed, "seams"))
    found = []
    for column in range(generated[0].shape[1]):
        squares = [np.diff(part[:, column].astype(np.float64)) ** 2 for part in generated]
        at = [np.arange(len(part)) % segment == segment - 1 for part in squares]
        pairs = zip(squares, at, strict=True)
        sums = np.array([[part[mask].sum(), mask.sum(), part[~mask].sum(), (~mask).sum()] for part, mask in pairs])

        def ratio(total: np.ndarray) -> np.ndarray:
            return np.asarray(np.sqrt(total[..., 0] / total[..., 1] * total[..., 3] / total[..., 2]))

        found.append(_interval(float(ratio(sums.sum(axis=0))), ratio(draws @ sums), len(generated)))
    return found


def _baselines(clusters: Clusters) -> dict[str, Callable[[Series, int, int, np.random.Generator], list[np.ndarray]]]:
    return {
        SHUFFLED: shuffled,
        AUTOREGRESSION: autoregression,
        MARKOV: lambda train, n, length, generator: fit_markov_sampler(train, clusters).sample(n, length, generator),
    }


def _states(config: ReportConfig, names: Sequence[str]) -> States | None:
    if config.states is None:
        return None
    return states_of(config.states.names, config.states.cores, config.states.along, names)


def _members(states: States | None, clusters: Clusters) -> np.ndarray:
    """Which state each cluster belongs to; halves along the first feature where no states are named."""
    centres = clusters.centres * clusters.scale
    if states is None:
        return np.asarray(centres[:, 0] > np.median(centres[:, 0]), dtype=int)
    return np.asarray(np.searchsorted(states.boundaries, states.coordinate(centres)))


@dataclass(frozen=True)
class _Measure:
    """Measures one set."""

    bins: Bins
    states: States | None
    clusters: Clusters
    config: ReportConfig
    seed: int
    held_out: Series

    def __call__(
        self, name: str, series: list[np.ndarray], made_cpu_s: float | None, centred: list[np.ndarray] | None = None
    ) -> SetFindings:
        """Measure `series`; correlations in time are those of `centred`, if given."""
        centred = series if centred is None else centred
        generator = numpy_generator(self.seed, "bootstrap", name)
        draws = _draws(len(series), self.config.bootstrap_samples, generator)
        values, intervals = implied_timescales(
            self.clusters.assign(series), len(self.clusters.centres), self.config.lags, N_TIMESCALES,
            min(50, self.config.bootstrap_samples), generator,
        )  # fmt: skip
        columns = range(series[0].shape[1])
        drifts = [np.abs((means - means.mean()) / error).max() for means, error in (drift(series, c) for c in columns)]
        transitions, passages, populations = self._kinetics(series, draws)
        return SetFindings(
            n_trajectories=len(series), n_frames=sum(map(len, series)), made_cpu_s=made_cpu_s,
            divergence=self.bins.divergence(self.held_out, series), populations=populations, transitions=transitions,
            passages=passages, increments=[increment_deviation(series, c) for c in columns],
            correlation_times=[_correlation_time(centred, c, draws) for c in columns],
            timescales=np.concatenate([values[:, :, None], intervals], axis=2),
            autocorrelations=np.array([autocorrelation(centred, c, self.config.memorisation_frames * 4) for c in columns]),
            drift=float(max(drifts)),
        )  # fmt: skip

    def _kinetics(self, series: list[np.ndarray], draws: np.ndarray) -> tuple[dict[Any, Any], dict[Any, Any], list[Estimate]]:
        states = self.states
        if states is None:
            return {}, {}, []
        lengths = np.array([len(part) for part in series], dtype=np.float64)
        shares, counts = states.populations(series) * lengths[:, None], states.transitions(series)
        populations = [_ratio(shares[:, i], lengths, draws) for i in range(len(states.names))]
        pairs = [(i, j) for i in range(len(states.names)) for j in range(len(states.names)) if i != j]
        transitions = {(i, j): _ratio(1e4 * counts[:, i, j], lengths, draws) for i, j in pairs}
        passages = {}
        for i, j in pairs:
            times = [states.passage_times([part], i, j) for part in series]
            sums, numbers = (np.array([f(own) for own in times], dtype=np.float64) for f in (np.sum, len))
            passages[i, j] = _ratio(sums, numbers, draws)
        return transitions, passages, populations


def _draws(n: int, n_bootstrap: int, generator: np.random.Generator) -> np.ndarray:
    """How often each trajectory is taken, shape=(n_bootstrap, n)."""
    return generator.multinomial(n, np.full(n, 1 / n), n_bootstrap).astype(np.float64)


def _ratio(above: np.ndarray, below: np.ndarray, draws: np.ndarray) -> Estimate:
    """Sum over sum, with its interval over trajectories."""
    value = float(above.sum() / below.sum()) if below.sum() > 0 else float("nan")
    totals = draws @ below
    replicates = np.divide(draws @ above, totals, out=np.full(len(draws), np.nan), where=totals > 0)
    return _interval(value, replicates, len(above))


def _interval(value: float, replicates: np.ndarray, n: int) -> Estimate:
    if n < 2 or not np.isfinite(replicates).any():
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.nanquantile(replicates, [0.025, 0.975])
    return Estimate(value, float(low), float(high), float(np.nanstd(replicates)))


def _correlation_time(series: list[np.ndarray], column: int, draws: np.ndarray) -> Estimate:
    """Integrated autocorrelation time g / 2 in frames; the interval is that of the mean of single trajectories' times."""
    flat = np.concatenate([part[:, column] for part in series])
    trajectory = np.repeat(np.arange(len(series)), [len(part) for part in series])
    value = statistical_inefficiency(flat, trajectory) / 2
    each = np.array([statistical_inefficiency(part[:, column], np.zeros(len(part))) / 2 for part in series])
    estimate = _ratio(each, np.ones(len(each)), draws)
    shift = value - estimate.value
    return Estimate(value, shift + estimate.low, shift + estimate.high, estimate.standard_error)
