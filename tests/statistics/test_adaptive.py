"""Starts of further rounds: a sample of the weighted ensemble, with most where the estimate is least certain."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_molgen.farm.adaptive import choose


def frames(generator: np.random.Generator, n_trajectories: int = 40, n_frames: int = 50) -> tuple[np.ndarray, ...]:
    """Trajectories that stay in states 0 to 3, or jump between 4 and 5 at every frame; each with a weight of its own."""
    kind = np.repeat(np.arange(n_trajectories) % 5, n_frames)
    state = np.where(kind == 4, 4 + generator.integers(2, size=len(kind)), kind)
    trajectory = np.repeat(np.arange(n_trajectories), n_frames)
    weights = np.repeat(generator.gamma(2.0, size=n_trajectories), n_frames)
    return state, weights / weights.sum(), trajectory


def test_what_is_constant_within_states_is_exact() -> None:
    state, weights, trajectory = frames(np.random.default_rng(1))
    choice = choose(state, weights, trajectory, 60, np.random.default_rng(2))
    values = np.array([0.3, -1.0, 7.0, 2.0, 5.0, -4.0])[state]
    w = np.exp(choice.log_weights)
    assert w.sum() == pytest.approx(1.0, abs=1e-12) and len(choice.frames) == 60
    assert (w * values[choice.frames]).sum() == pytest.approx((weights * values).sum(), abs=1e-12)


def test_the_rest_is_right_on_average() -> None:
    """Mean of any function over many choices, within 4 standard errors; too few starts for all states included."""
    generator = np.random.default_rng(3)
    state, weights, trajectory = frames(generator)
    values = generator.normal(size=len(state)) + state
    for n in (3, 25):
        means = []
        for seed in range(400):
            choice = choose(state, weights, trajectory, n, np.random.default_rng(seed))
            means.append((np.exp(choice.log_weights) * values[choice.frames]).sum())
        error = np.std(means, ddof=1) / np.sqrt(len(means))
        assert abs(np.mean(means) - (weights * values).sum()) < 4 * error


def test_uncertain_states_get_most() -> None:
    state, weights, trajectory = frames(np.random.default_rng(4))
    choice = choose(state, weights, trajectory, 206, np.random.default_rng(5))
    counts = np.bincount(state[choice.frames], minlength=6)
    assert counts.min() >= 1 and counts.sum() == 206
    expected = 1 + 200 * choice.relative_error / choice.relative_error.sum()
    assert np.abs(counts - expected).max() <= 1
    # 4 and 5 are visited by the same trajectories, half a time each, so each is as uncertain as the two together
    both = np.where(state == 5, 4, state)
    joint = choose(both, weights, trajectory, 50, np.random.default_rng(6))
    np.testing.assert_allclose(choice.relative_error[4:], joint.relative_error[4], rtol=0.15)


def test_the_error_is_that_of_repeated_experiments() -> None:
    """The standard error of a population over trajectories against its spread in 300 fresh sets, within 4 of its own errors."""
    populations, errors = [], []
    for seed in range(300):
        state, weights, trajectory = frames(np.random.default_rng(100 + seed), n_trajectories=100)
        choice = choose(state, weights, trajectory, 10, np.random.default_rng(seed))
        populations.append(choice.population)
        errors.append(choice.relative_error * choice.population)
    spread = np.std(populations, axis=0, ddof=1)
    told = np.mean(errors, axis=0)
    # kinds are dealt out in turn, so a state's number of trajectories does not vary and the estimate over trajectories,
    # which takes it for random, errs on the safe side
    assert (told > spread * (1 - 4 / np.sqrt(600))).all()


def test_frames_without_weight_are_never_drawn() -> None:
    state, weights, trajectory = frames(np.random.default_rng(7))
    weights = np.where(state == 2, 0.0, weights)
    choice = choose(state, weights / weights.sum(), trajectory, 30, np.random.default_rng(8))
    assert not (state[choice.frames] == 2).any() and np.isfinite(choice.log_weights).all()
