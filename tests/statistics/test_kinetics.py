"""Statistical inefficiency, effective samples, passages and TICA against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_molgen.analysis import kinetics
from hpc_molgen.errors import InputError
from tests.statistics.test_free_energy import two_state_trajectories


def autoregressive(coefficient: float, shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Stationary AR(1) series of unit variance, shape=(n_series, n_frames)."""
    noise = generator.normal(size=shape) * np.sqrt(1 - coefficient**2)
    series = np.empty(shape)
    series[:, 0] = generator.normal(size=shape[0])
    for frame in range(1, shape[1]):
        series[:, frame] = coefficient * series[:, frame - 1] + noise[:, frame]
    return series


def test_inefficiency_of_an_autoregressive_series() -> None:
    """g = (1 + a) / (1 - a); the mean of 20 repeats within 5 standard errors and 5 % (the larger of two is biased)."""
    generator, coefficient = np.random.default_rng(1), 0.9
    exact = (1 + coefficient) / (1 - coefficient)
    trajectory = np.repeat(np.arange(8), 4000)
    found = [
        kinetics.statistical_inefficiency(autoregressive(coefficient, (8, 4000), generator).ravel(), trajectory)
        for _ in range(20)
    ]
    error = np.std(found, ddof=1) / np.sqrt(20)
    assert abs(np.mean(found) - exact) < 5 * error + 0.05 * exact, (np.mean(found), error)


def test_white_noise_has_no_inefficiency() -> None:
    series = np.random.default_rng(2).normal(size=40_000)
    assert kinetics.statistical_inefficiency(series, np.zeros(40_000)) == pytest.approx(1, abs=0.15)


def test_constant_series_is_infinitely_inefficient() -> None:
    assert kinetics.statistical_inefficiency(np.ones(100), np.zeros(100)) == np.inf


@pytest.mark.parametrize("is_biased", [False, True])
def test_effective_samples_predict_the_variance_of_the_share(is_biased: bool) -> None:
    """P (1-p) / n_eff, averaged over 400 experiments, against the variance that they show: within 5 standard errors.

    With a bias the chain visits state 1 half of the time and weights make it rare again: n_eff then exceeds what frames of an
    unbiased chain with the same memory would give, and the prediction must still hold.
    """
    generator = np.random.default_rng(3)
    n_experiments, n_trajectories, n_frames = 400, 6, 600
    enter, leave = (0.05, 0.05) if is_biased else (0.02, 0.05)
    states = two_state_trajectories(n_experiments * n_trajectories, n_frames, enter, leave, generator)
    # weights vary within the states too, as those of a bias on a continuous coordinate do
    noise = generator.lognormal(sigma=0.5, size=states.shape)
    weights = np.where(states == 1, 0.05, 1.0) * noise if is_biased else np.ones(states.shape)
    trajectory = np.repeat(np.arange(n_trajectories), n_frames)
    shares, predicted = [], []
    for experiment in range(n_experiments):
        rows = slice(experiment * n_trajectories, (experiment + 1) * n_trajectories)
        found = kinetics.effective_samples(states[rows].ravel() == 1, weights[rows].ravel(), trajectory, 2, generator)
        shares.append(found.share)
        predicted.append(found.share * (1 - found.share) / found.n_effective)
    ratio = np.mean(predicted) / np.var(shares, ddof=1)
    assert abs(ratio - 1) < 5 * np.sqrt(2 / n_experiments), ratio


def test_effective_samples_of_a_two_state_chain() -> None:
    """g = (1 + l) / (1 - l) with l = 1 - a - b; replicates spread about the value."""
    generator, enter, leave = np.random.default_rng(4), 0.02, 0.05
    states = two_state_trajectories(20, 10_000, enter, leave, generator)
    eigenvalue = 1 - enter - leave
    found = kinetics.effective_samples(
        states.ravel() == 1, np.ones(states.size), np.repeat(np.arange(20), 10_000), 200, generator
    )
    assert found.inefficiency == pytest.approx((1 + eigenvalue) / (1 - eigenvalue), rel=0.15)
    assert found.n_effective == pytest.approx(states.size / found.inefficiency, rel=0.01)
    low, high = np.quantile(found.replicates, [0.025, 0.975])
    assert low < found.n_effective < high


def test_state_that_was_never_left_has_no_effective_samples() -> None:
    found = kinetics.effective_samples(np.ones(50, bool), np.ones(50), np.zeros(50), 10, np.random.default_rng(5))
    assert found.n_effective == 0


def test_influence_has_zero_mean() -> None:
    generator = np.random.default_rng(6)
    weights = generator.lognormal(size=1000)
    assert np.mean(kinetics.influence(generator.random(1000) < 0.3, weights)) == pytest.approx(0, abs=1e-12)


def test_independent_samples() -> None:
    generator = np.random.default_rng(7)
    inside = generator.random(20_000) < 0.2
    equal = kinetics.independent_effective_samples(inside, np.ones(20_000), 100, generator)
    assert equal.n_effective == pytest.approx(20_000)
    # weights that know nothing of the state: Kish's size; 20,000 samples know it to about 3 %
    weights = generator.lognormal(sigma=1.0, size=20_000)
    blind = kinetics.independent_effective_samples(inside, weights, 100, generator)
    kish = weights.sum() ** 2 / np.sum(weights**2)
    assert blind.n_effective == pytest.approx(kish, rel=0.15)
    assert np.mean(kinetics.kish_replicates(weights, 200, generator)) == pytest.approx(kish, rel=0.05)


def test_tiny_weights_are_not_slow_or_wrong() -> None:
    weights = np.array([1.0, 1.0, 1e-300, 1e-200])
    found = kinetics.independent_effective_samples(np.array([True, False, True, False]), weights, 10, np.random.default_rng(8))
    assert found.n_effective == pytest.approx(2)


@pytest.mark.parametrize(
    ("degrees", "passages"),
    [
        ([-60, -10, 10, -10, 10, -60], 0),  # trembles about zero
        ([-60, -170, 170, -175, 175, -60], 0),  # trembles about the seam
        ([-60, 0, 60], 1),  # over zero
        ([-100, -170, 170, 100], 1),  # over the seam
        ([-60, 60, -60, 60], 3),
        ([0, 180], 0),  # never in a core
        ([-60, 0, 60, 360 - 60], 2),  # wraps
    ],
)
def test_passages_between_cores(degrees: list[float], passages: int) -> None:
    assert kinetics.core_passages(np.radians(degrees), np.zeros(len(degrees))) == passages


def test_passages_do_not_join_trajectories() -> None:
    assert kinetics.core_passages(np.radians([-60, -60, 60, 60]), np.array([0, 0, 1, 1])) == 0


def test_frame_interval() -> None:
    assert kinetics.frame_interval_ps(np.array([0.1, 0.2, 0.3, 0.1, 0.2]), np.array([0, 0, 0, 1, 1])) == pytest.approx(0.1)
    assert kinetics.frame_interval_ps(np.zeros(4), np.zeros(4)) is None


def test_tica_finds_the_slow_torsion() -> None:
    generator = np.random.default_rng(9)
    slow = two_state_trajectories(4, 3000, 0.01, 0.01, generator).ravel() * 2.0 - 1.0 + generator.normal(0, 0.2, 12_000)
    fast = generator.uniform(-np.pi, np.pi, 12_000)
    torsions, trajectory = np.stack([fast, slow], axis=1), np.repeat(np.arange(4), 3000)
    model = kinetics.fit_tica(torsions, trajectory, 10)
    component = model.project(torsions)[:, 0]
    assert abs(np.corrcoef(component, np.sin(slow))[0, 1]) > 0.95
    with pytest.raises(InputError, match="lag of 5000 frames"):
        kinetics.fit_tica(torsions, trajectory, 5000)
