"""Analysis of time series against processes whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_molgen.analysis.baselines import autoregression, fit_markov_sampler, shuffled
from hpc_molgen.analysis.markov import Clusters, chapman_kolmogorov, fit_clusters, implied_timescales
from hpc_molgen.analysis.memorisation import memorisation
from hpc_molgen.analysis.series import Bins, autocorrelation, drift, increment_deviation
from hpc_molgen.analysis.states import States, states_of
from hpc_molgen.efficiency.seeds import populations_from
from hpc_molgen.efficiency.series_findings import centred_series
from hpc_molgen.trajectories import TrajectorySet

JUMP = 0.02  # probability a frame to leave either of two states for the other: a timescale of -1 / ln(1 - 2 * 0.02) frames


def two_states(n_trajectories: int, n_frames: int, seed: int, width: float = 0.2) -> list[np.ndarray]:
    """A symmetric two-state chain about -1 and 1, with normal noise in each of two features."""
    generator = np.random.default_rng(seed)
    flips = generator.random((n_trajectories, n_frames)) < JUMP
    sign = np.where(generator.random((n_trajectories, 1)) < 0.5, 1, -1) * np.cumprod(np.where(flips, -1, 1), axis=1)
    series = sign[:, :, None] * np.array([1.0, 0.5]) + width * generator.normal(size=(n_trajectories, n_frames, 2))
    return list(series.astype(np.float32))


def process(n_trajectories: int, n_frames: int, seed: int, memory: float = 0.9) -> list[np.ndarray]:
    """An Ornstein-Uhlenbeck process of unit variance."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n_trajectories, 1))
    out = np.empty((n_trajectories, n_frames, 1))
    for frame in range(n_frames):
        out[:, frame] = x
        x = memory * x + np.sqrt(1 - memory**2) * generator.normal(size=x.shape)
    return list(out)


def test_correlation_and_increments_of_a_known_process() -> None:
    """rho(t) = 0.9^t and a one-step deviation of sqrt(0.2), within 4 standard errors over trajectories."""
    series = process(64, 4000, 1)
    each = np.array([autocorrelation([part], 0, 20) for part in series])
    error = each.std(axis=0, ddof=1) / 8
    assert (np.abs(autocorrelation(series, 0, 20) - 0.9 ** np.arange(21))[1:] < 4 * error[1:]).all()
    each = np.array([increment_deviation([part], 0) for part in series])
    assert abs(increment_deviation(series, 0) - np.sqrt(0.2)) < 4 * each.std(ddof=1) / 8
    means, errors = drift(series, 0)
    assert (np.abs(means) < 4 * errors).all()
    ramp = [part + np.linspace(0, 1, len(part))[:, None] for part in series]
    means, errors = drift(ramp, 0)
    assert means[-1] - means[0] > 20 * errors[0]
    assert np.isnan(autocorrelation(process(2, 5, 1), 0, 8)[5:]).all()


def test_what_differs_between_labels_is_no_correlation_in_time() -> None:
    """White noise about a mean for each of two labels, which a third one is left out of: nothing is correlated."""
    generator = np.random.default_rng(4)
    rows = ((1.0,), (2.0,), (1.0,), (2.0,), (3.0,))
    parts = tuple(10 * row[0] + generator.normal(size=(4000, 1)) for row in rows)
    series = TrajectorySet(parts, ("x",), ("nm",), 1.0, tuple("abcde"), (), ("label",), rows)
    own = centred_series(series, {(1.0,), (2.0,)})
    assert len(own) == 4 and autocorrelation(list(parts[:4]), 0, 2)[1] > 0.9
    assert abs(autocorrelation(own, 0, 2)[1]) < 4 / np.sqrt(16000)


def test_bins_count_what_lies_outside() -> None:
    """Divergence of a set with a share s beyond the range: that of two classes, (1 - s/2) ln(1/(1 - s/2)) ... by hand."""
    reference = [np.linspace(0, 1, 101)[:, None]]
    bins = Bins(reference, (0,))
    counts = bins.counts(reference)[0]
    assert counts.sum() == 101 and counts[1:-1].sum() == 101 and len(counts) == 101 + 1
    outside = [np.concatenate([reference[0], np.full((101, 1), 7.0)])]
    share = 0.5
    p, q, m = np.array([1.0, 0.0]), np.array([1 - share, share]), np.array([1 - share / 2, share / 2])
    expected = 0.5 * (p[0] * np.log(p[0] / m[0]) + (q * np.log(q / m)).sum())
    assert bins.divergence(reference, outside) == pytest.approx(expected)
    plane = Bins(two_states(2, 100, 1), (0, 1))
    assert plane.counts(two_states(3, 50, 2)).sum(axis=1).tolist() == [50, 50, 50]


def test_states_transitions_and_passage_times() -> None:
    """Counts and mean first-passage times of the two-state chain, 0.02 a frame and 50 frames, within 4 standard errors."""
    series = two_states(100, 5000, 3)
    states = states_of(("left", "right"), ((-9, -0.5), (0.5, 9)), {"a": 1.0}, ("a", "b"))
    counts = states.transitions(series)
    leaving = (counts[:, 0, 1] + counts[:, 1, 0]) / 4999
    assert abs(leaving.mean() - JUMP) < 4 * leaving.std(ddof=1) / 10
    times = states.passage_times(series, 0, 1)
    assert abs(times.mean() - 1 / JUMP) < 4 * times.std() / np.sqrt(len(times))
    populations = states.populations(series)
    assert populations.shape == (100, 2) and np.allclose(populations.sum(axis=1), 1)
    assert abs(populations[:, 0].mean() - 0.5) < 4 * populations[:, 0].std(ddof=1) / 10
    visited, frames = states.visited(np.array([[0.0, 0], [1, 0], [0.1, 0], [1, 0], [-1, 0], [0, 0], [1, 0]]))
    assert visited.tolist() == [1, 0, 1] and frames.tolist() == [1, 4, 6]


def test_implied_timescales_and_chapman_kolmogorov() -> None:
    """-1 / ln(1 - 2 p) = 24.5 frames at every lag, inside the bootstrap interval or within 4 of its half-widths over 2."""
    series = two_states(40, 5000, 4)
    clusters = fit_clusters(series, seed=1, n_centres=20)
    discrete = clusters.assign(series)
    exact = -1 / np.log(1 - 2 * JUMP)
    values, intervals = implied_timescales(discrete, 20, (2, 5, 10, 20), 2, 50, np.random.default_rng(5))
    error = (intervals[:, 0, 1] - intervals[:, 0, 0]) / (2 * 1.96)
    assert (np.abs(values[:, 0] - exact) < 4 * error).all() and (error < 0.1 * exact).all()
    sets = (clusters.centres[:, 0] > 0).astype(int)
    predicted, estimated = chapman_kolmogorov(discrete, sets, 5, (1, 2, 4))
    expected = 0.5 * (1 + (1 - 2 * JUMP) ** (5 * np.array([1, 2, 4])))
    np.testing.assert_allclose(predicted, expected[:, None].repeat(2, axis=1), atol=0.02)
    np.testing.assert_allclose(estimated, predicted, atol=0.02)


def test_baselines_keep_what_they_promise() -> None:
    train = two_states(20, 4000, 6)
    generator = np.random.default_rng(7)
    mixed = shuffled(train, 20, 4000, generator)
    floor = Bins(train, (0, 1)).divergence(train, two_states(20, 4000, 8))
    assert Bins(train, (0, 1)).divergence(train, mixed) < 2 * floor
    assert abs(autocorrelation(mixed, 0, 1)[1]) < 4 / np.sqrt(80_000)
    smooth = process(20, 4000, 9)
    again = autoregression(smooth, 20, 4000, generator)
    assert autocorrelation(again, 0, 5)[5] == pytest.approx(0.9**5, abs=0.03)
    assert increment_deviation(again, 0) == pytest.approx(np.sqrt(0.2), rel=0.02)
    clusters = fit_clusters(train, seed=1, n_centres=10)
    chain = fit_markov_sampler(train, clusters).sample(40, 5000, generator)
    values, intervals = implied_timescales(clusters.assign(chain), 10, (5,), 1, 50, generator)
    assert abs(values[0, 0] + 1 / np.log(1 - 2 * JUMP)) < 4 * (intervals[0, 0, 1] - intervals[0, 0, 0]) / 3.92
    assert Bins(train, (0, 1)).divergence(train, chain) < 3 * floor


def test_memorisation_tells_copies_from_new_series() -> None:
    train, held_out, new = (two_states(10, 1000, seed) for seed in (10, 11, 12))
    generator = np.random.default_rng(13)
    honest = memorisation(new, train, held_out, 32, generator)
    assert honest.low < 1 < honest.high and 0.35 < honest.nearer_to_training < 0.65
    copies = [part[37:901] + 0.05 * generator.normal(size=(864, 2)).astype(np.float32) for part in train]
    copied = memorisation(copies, train, held_out, 32, generator)
    assert copied.ratio < 0.5 and copied.high < 0.8 and copied.nearer_to_training > 0.95


def test_clusters_use_the_scale_of_the_reference() -> None:
    clusters = Clusters(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([10.0, 1.0]))
    assert clusters.assign([np.array([[1.0, 0.0], [9.0, 0.0]])])[0].tolist() == [0, 1]


def test_short_md_from_rare_seeds_gives_the_populations_back() -> None:
    """A chain of ten places of known probabilities, started evenly on all of them: counts are off, the model is not."""
    generator = np.random.default_rng(5)
    n, energy = 10, 2.5 * np.cos(2 * np.pi * np.arange(10) / 9)  # a deep middle, in kT
    chain = np.zeros((n, n))
    for i in range(n):
        for j in (i - 1, i + 1):
            if 0 <= j < n:
                chain[i, j] = 0.4 * min(1.0, np.exp(-(energy[j] - energy[i])))
        chain[i, i] = 1 - chain[i].sum()
    exact = np.exp(-energy) / np.exp(-energy).sum()
    assert np.allclose(exact @ chain, exact)
    series = []
    for replica in range(400):
        place, course = replica % n, []
        for _ in range(40):
            course.append(place)
            place = int(generator.choice(n, p=chain[place]))
        series.append(np.array(course, dtype=float)[:, None])
    states = States(("low", "middle", "high"), ((0, 1), (4, 4), (8, 9)), np.ones(1))
    found = populations_from(series, Clusters(np.arange(n, dtype=float)[:, None], np.ones(1)), states, 2, 100, generator)
    assert found is not None and found.covered == 1 and found.n_frames == 16_000
    place = np.searchsorted(states.boundaries, np.arange(n))
    for state, (estimate, counted) in enumerate(zip(found.populations, found.counted, strict=True)):
        assert abs(estimate.value - exact[place == state].sum()) < 4 * estimate.standard_error
        assert estimate.low < estimate.value < estimate.high
        if state == 1:
            assert abs(counted - exact[place == 1].sum()) > 10 * estimate.standard_error
