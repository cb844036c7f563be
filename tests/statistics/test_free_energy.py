"""Free energies, populations and their intervals against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_molgen.analysis import free_energy
from hpc_molgen.analysis.free_energy import BASINS, bootstrap_shares, free_energy_difference, profile, profile_error
from hpc_molgen.units import kt_kj_mol

KT = kt_kj_mol(300.0)


def two_state_trajectories(
    n_trajectories: int, n_frames: int, enter: float, leave: float, generator: np.random.Generator
) -> np.ndarray:
    """Stationary chains (n_trajectories, n_frames) of 0 and 1 with the probabilities of 0 -> 1 and 1 -> 0 per frame."""
    states = np.empty((n_trajectories, n_frames), dtype=int)
    states[:, 0] = generator.random(n_trajectories) < enter / (enter + leave)
    uniform = generator.random((n_trajectories, n_frames))
    for frame in range(1, n_frames):
        before = states[:, frame - 1]
        states[:, frame] = np.where(before == 1, uniform[:, frame] >= leave, uniform[:, frame] < enter)
    return states


@pytest.mark.parametrize("n", [1500, 30_000])  # multinomial and Poisson multiplicities
def test_difference_of_independent_samples_within_5_standard_errors(n: int) -> None:
    generator = np.random.default_rng(1)
    p = 0.1
    cv = np.where(generator.random(n) < p, 1.0, -1.0)
    found = free_energy_difference(cv, np.ones(n), None, 400, generator)
    exact_error = 1 / np.sqrt(n * p * (1 - p))  # of the log-odds
    assert abs(found.value - np.log((1 - p) / p)) < 5 * exact_error
    assert found.standard_error == pytest.approx(exact_error, rel=0.2)  # 400 draws know it to 3.5 %: 5 standard errors
    assert found.high - found.low == pytest.approx(2 * 1.96 * exact_error, rel=0.3)


def test_weights_turn_one_distribution_into_another() -> None:
    """Uniform angles with weights exp(k cos a) have the free energy -k cos a: every bin within 5 standard errors."""
    generator = np.random.default_rng(2)
    n, strength = 40_000, 2.0
    angles = generator.uniform(-np.pi, np.pi, n)
    weights = np.exp(strength * np.cos(angles))
    found = profile(angles, weights, None, KT, 300, generator)
    exact = -strength * np.cos(found.centres_rad)
    error = (found.high - found.low) / (2 * 1.96)
    offset = np.average(found.value - exact, weights=1 / error**2)  # the lowest bin is at zero, and it is a noisy one
    assert len(found.value) == 100
    assert np.nanmin(found.value) == 0
    assert (np.abs(found.value - exact - offset) < 5 * error).all()
    difference = free_energy_difference(angles - np.pi / 2, weights, None, 300, generator)
    grid = np.linspace(-np.pi, np.pi, 200_001)
    density = np.exp(strength * np.cos(grid))
    shifted = free_energy.wrap(grid - np.pi / 2) > 0
    exact_difference = np.log(density[~shifted].sum() / density[shifted].sum())
    assert abs(difference.value - exact_difference) < 5 * difference.standard_error


def test_interval_over_few_correlated_trajectories_covers_at_its_rate() -> None:
    """200 experiments of 8 correlated trajectories: coverage of the 95 % interval within 5 binomial standard errors."""
    generator = np.random.default_rng(3)
    n_experiments, n_trajectories, n_frames = 200, 8, 400
    states = two_state_trajectories(n_experiments * n_trajectories, n_frames, 0.02, 0.04, generator)
    exact, units = np.log(2.0), np.repeat(np.arange(n_trajectories), n_frames)
    covered = 0
    for experiment in range(n_experiments):
        cv = states[experiment * n_trajectories : (experiment + 1) * n_trajectories].ravel() - 0.5
        found = free_energy_difference(cv, np.ones(cv.size), units, 200, generator)
        covered += found.low <= exact <= found.high
    rate, error = covered / n_experiments, np.sqrt(0.95 * 0.05 / n_experiments)
    assert abs(rate - 0.95) < 5 * error, rate


def test_frames_as_units_would_not_cover() -> None:
    """The control of the test above: intervals that take correlated frames for independent ones are far too narrow."""
    generator = np.random.default_rng(4)
    states = two_state_trajectories(200 * 8, 400, 0.02, 0.04, generator).reshape(200, -1)
    covered = 0
    for experiment in states:
        found = free_energy_difference(experiment - 0.5, np.ones(experiment.size), None, 100, generator)
        covered += found.low <= np.log(2.0) <= found.high
    assert covered / 200 < 0.6


def test_state_that_was_never_visited_is_infinite_and_has_no_interval() -> None:
    found = free_energy_difference(np.full(100, -1.0), np.ones(100), None, 50, np.random.default_rng(5))
    assert found.value == np.inf
    assert found.standard_error == np.inf
    assert np.isnan(found.low)


def test_one_trajectory_has_no_interval() -> None:
    cv = np.tile([-1.0, 1.0], 50)
    found = free_energy_difference(cv, np.ones(100), np.zeros(100), 50, np.random.default_rng(6))
    assert found.value == 0
    assert np.isnan([found.low, found.high]).all()


def test_profile_error_ignores_offset_and_high_bins() -> None:
    generator = np.random.default_rng(7)
    angles = generator.vonmises(0, 3.0, 50_000)
    found = profile(angles, np.ones(len(angles)), None, KT, 50, generator)
    shifted = free_energy.Profile(found.centres_rad, found.value + 3.0, found.low, found.high, KT)
    assert profile_error(found, shifted) == pytest.approx(0, abs=1e-12)
    worse = free_energy.Profile(found.centres_rad, np.where(found.value > 7.0, 99.0, found.value), found.low, found.high, KT)
    assert profile_error(found, worse) == pytest.approx(0, abs=1e-12)  # 4 kcal/mol are 6.7 kT


@pytest.mark.parametrize(
    ("phi", "psi", "basin"),
    [
        (-150, 150, "C5"),
        (170, -170, "C5"),
        (-80, 80, "C7eq"),
        (-60, -40, "alphaR"),
        (-150, 0, "alphaR"),
        (60, 40, "alphaL"),
        (70, -60, "C7ax"),
        (60, 170, "other"),
        (150, 0, "other"),
    ],
)
def test_basins(phi: float, psi: float, basin: str) -> None:
    assert BASINS[free_energy.basin_labels(np.radians([phi]), np.radians([psi]))[0]] == basin


def test_populations_sum_to_one_and_follow_weights() -> None:
    generator = np.random.default_rng(8)
    phi, psi = generator.uniform(-np.pi, np.pi, (2, 20_000))
    found = free_energy.basin_populations(phi, psi, np.ones(20_000), None, 100, generator)
    assert sum(estimate.value for estimate in found.values()) == pytest.approx(1)
    exact = {"C5": (70 + 50) * 180 / 360**2, "alphaL": 130 * 150 / 360**2, "C7ax": 130 * 90 / 360**2}
    for name, share in exact.items():
        assert abs(found[name].value - share) < 5 * np.sqrt(share * (1 - share) / 20_000)
    shares = bootstrap_shares(np.array([0, 1]), 2, np.array([3.0, 1.0]), None, 20, generator)
    assert shares.value == pytest.approx([0.75, 0.25])
