"""Weights on a double well of known free energy: the right ones are unbiased, exp(-u) alone is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from hpc_molgen.reweighting import importance_log_weights, normalised_weights, systematic_resample


def reduced_energy(x: np.ndarray) -> np.ndarray:
    """u(x) = 6 (x^2 - 1)^2 + x: the left well is deeper."""
    return 6 * (x**2 - 1) ** 2 + x


@pytest.fixture(scope="module")
def exact_difference() -> float:
    """-ln p(x > 0)/p(x <= 0) by quadrature."""
    right = quad(lambda x: np.exp(-reduced_energy(x)), 0, 4)[0]
    left = quad(lambda x: np.exp(-reduced_energy(x)), -4, 0)[0]
    return float(-np.log(right / left))


@pytest.fixture(scope="module")
def proposals() -> tuple[np.ndarray, np.ndarray]:
    """A surrogate that gives the right well 80 % instead of its 10 %, with its density."""
    rng = np.random.default_rng(1)
    right = rng.random(40_000) < 0.8
    x = rng.normal(np.where(right, 1.0, -1.0), 0.25)
    log_q = np.log(0.8 * norm.pdf(x, 1, 0.25) + 0.2 * norm.pdf(x, -1, 0.25))
    return x, log_q


def difference(x: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Free-energy difference and its standard error (delta method on the self-normalised estimate)."""
    share = weights / weights.sum()
    p = float(share[x > 0].sum())
    error = float(np.sqrt(np.sum(share**2 * ((x > 0) - p) ** 2)))
    return -np.log(p / (1 - p)), error / (p * (1 - p))


def test_right_weights_give_the_free_energy(exact_difference: float, proposals: tuple[np.ndarray, np.ndarray]) -> None:
    x, log_q = proposals
    found, error = difference(x, normalised_weights(importance_log_weights(reduced_energy(x), log_q)))
    assert error < 0.03
    assert abs(found - exact_difference) < 5 * error


def test_energies_alone_give_a_wrong_free_energy(exact_difference: float, proposals: tuple[np.ndarray, np.ndarray]) -> None:
    x, _ = proposals
    found, error = difference(x, np.exp(-reduced_energy(x)))
    assert abs(found - exact_difference) > 20 * error  # what the first published pipeline did: q is counted twice


def test_unweighted_samples_are_wrong_too(exact_difference: float, proposals: tuple[np.ndarray, np.ndarray]) -> None:
    x, _ = proposals
    found, error = difference(x, np.ones(len(x)))
    assert abs(found - exact_difference) > 20 * error


def test_resampled_structures_follow_the_boltzmann_distribution(
    exact_difference: float, proposals: tuple[np.ndarray, np.ndarray]
) -> None:
    x, log_q = proposals
    log_weights = importance_log_weights(reduced_energy(x), log_q)
    chosen = systematic_resample(log_weights, 20_000, np.random.default_rng(2))
    _, weighted_error = difference(x, normalised_weights(log_weights))
    found, error = difference(x[chosen], np.ones(20_000))
    assert abs(found - exact_difference) < 5 * np.hypot(error, weighted_error)
