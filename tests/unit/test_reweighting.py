"""Weights, effective sample sizes, Pareto k-hat, resampling: known values and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from hpc_molgen.errors import InputError
from hpc_molgen.reweighting import clipped, diagnose, importance_log_weights, kish_ess, pareto_k, systematic_resample


def test_ess_of_known_weights() -> None:
    assert kish_ess(np.zeros(10)) == pytest.approx(10)
    assert kish_ess(np.log([1.0, 1.0, 2.0])) == pytest.approx(16 / 6)
    assert kish_ess(np.array([0.0, -np.inf, -np.inf])) == pytest.approx(1)
    assert kish_ess(np.array([5000.0, 5000.0])) == pytest.approx(2)  # no overflow


def test_clipping_sets_the_top_to_the_largest_that_remains() -> None:
    log_weights = np.concatenate([np.zeros(19_998), [3.0, 9.0]])
    assert np.sort(clipped(log_weights))[-3:].tolist() == [0.0, 0.0, 0.0]
    diagnostics = diagnose(log_weights)
    assert diagnostics.ess_clipped_fraction == pytest.approx(1) and diagnostics.ess_fraction < 0.9


def test_one_large_weight_is_not_certified() -> None:
    log_weights = np.random.default_rng(0).normal(size=5000) * 6
    diagnostics = diagnose(log_weights)
    assert diagnostics.k_hat > 0.7 and not diagnostics.certified
    assert diagnostics.largest_share == pytest.approx(np.exp(log_weights.max()) / np.exp(log_weights).sum())


@pytest.mark.parametrize("k", [0.1, 0.4, 0.7, 1.0])
def test_pareto_k_of_a_known_tail(k: float) -> None:
    """Weights of a generalised Pareto distribution: standard deviation of the estimate (1 + k)/sqrt(M) (Smith 1987)."""
    n, m = 200_000, 3 * np.sqrt(200_000)
    estimates = [pareto_k(np.log(1 + np.random.default_rng(seed).pareto(1 / k, n))) for seed in range(4)]
    assert abs(np.mean(estimates) - k) < 5 * (1 + k) / np.sqrt(4 * m) + 0.02  # 0.02: prior towards 0.5


def test_pareto_k_agrees_with_arviz() -> None:
    """The reference implementation of PSIS, on weights like ours."""
    stats = pytest.importorskip("arviz_stats.base").array_stats
    for seed in range(5):
        log_weights = np.random.default_rng(seed).normal(size=4000) * (0.5 + 0.5 * seed)
        _, expected = stats.psislw(-log_weights)  # it takes log-likelihoods, of which weights are the inverse
        assert pareto_k(log_weights) == pytest.approx(float(expected), abs=0.02)


def test_no_tail_and_too_few_samples() -> None:
    assert pareto_k(np.zeros(1000)) == -np.inf
    assert pareto_k(np.array([0.0, 1.0, 2.0])) == np.inf and not diagnose(np.array([0.0, 1.0, 2.0])).certified


def test_a_surrogate_without_density_is_refused() -> None:
    for nothing in (None, np.full(5, np.nan)):
        with pytest.raises(InputError, match=r"no ln q.*exp\(-u\) alone"):
            importance_log_weights(np.zeros(5), nothing)


def test_impossible_samples_have_no_weight() -> None:
    log_weights = importance_log_weights(np.array([1.0, np.inf, 2.0, np.nan]), np.array([0.0, 0.0, np.inf, 0.0]))
    assert log_weights.tolist() == [-1.0, -np.inf, -np.inf, -np.inf]
    with pytest.raises(InputError, match="weight zero"):
        importance_log_weights(np.full(3, np.inf), np.zeros(3))


def test_systematic_resampling_is_exact_to_one_count() -> None:
    weights = np.random.default_rng(3).dirichlet(np.ones(50))
    counts = np.bincount(systematic_resample(np.log(weights), 1000, np.random.default_rng(4)), minlength=50)
    assert counts.sum() == 1000 and (np.abs(counts - 1000 * weights) < 1).all()
