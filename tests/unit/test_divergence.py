"""Divergences against closed forms and their own symmetries."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from hpc_molgen.analysis.divergence import (
    jensen_shannon,
    noise_floor,
    ramachandran_histogram,
    seam_share,
    torsion_histogram,
)
from hpc_molgen.errors import InputError


def test_jensen_shannon_is_in_nats_between_zero_and_ln_2():
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert jensen_shannon(p, p) == 0.0
    assert jensen_shannon(p, q) == pytest.approx(np.log(2), rel=1e-12)
    assert jensen_shannon(p, np.array([0.5, 0.5])) == pytest.approx(
        0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2)
    )


def test_jensen_shannon_is_the_square_of_scipys_distance():
    generator = np.random.default_rng(1)
    p, q = generator.random((60, 60)), generator.random((60, 60))
    assert jensen_shannon(p, q) == pytest.approx(jensenshannon(p.ravel(), q.ravel()) ** 2, rel=1e-9)
    assert jensen_shannon(p, q) == pytest.approx(jensen_shannon(q, 7 * p), rel=1e-12)  # symmetric, any normalisation


def test_histograms_are_normalised_and_wrap():
    generator = np.random.default_rng(2)
    angles = generator.uniform(-np.pi, np.pi, (500, 2))
    histogram = ramachandran_histogram(angles)
    assert histogram.shape == (60, 60)
    assert histogram.sum() == pytest.approx(1.0)
    turned = angles + 2 * np.pi * generator.integers(-2, 3, angles.shape)
    np.testing.assert_array_equal(ramachandran_histogram(turned), histogram)
    assert torsion_histogram(angles[:, 0]).shape == (100,)
    # phi runs along the first axis; -pi is the same angle as +pi and no angle is lost
    corner = ramachandran_histogram(np.array([[-np.pi + 0.01, np.pi - 0.01], [-np.pi, np.pi]]))
    assert corner[0, -1] == pytest.approx(0.5)
    assert corner[-1, -1] == pytest.approx(0.5)


def test_weights_are_counts():
    angles = np.array([[0.1, 0.2], [1.0, -1.0], [2.0, 2.5]])
    repeated = np.repeat(angles, [3, 1, 2], axis=0)
    weights = np.array([3.0, 1.0, 2.0])
    np.testing.assert_allclose(ramachandran_histogram(angles, weights), ramachandran_histogram(repeated))
    np.testing.assert_allclose(torsion_histogram(angles[:, 0], weights), torsion_histogram(repeated[:, 0]))


def test_divergence_of_two_samples_of_one_distribution_is_what_theory_says():
    """Mean of D for multinomial samples of sizes n, m over K bins: (K - 1) / 8 (1 / n + 1 / m) to first order."""
    generator, bins, n, m = np.random.default_rng(3), 10, 20_000, 40_000
    values = [
        jensen_shannon(
            ramachandran_histogram(generator.uniform(-np.pi, np.pi, (n, 2)), bins=bins),
            ramachandran_histogram(generator.uniform(-np.pi, np.pi, (m, 2)), bins=bins),
        )
        for _ in range(20)
    ]
    expected = (bins**2 - 1) / 8 * (1 / n + 1 / m)
    assert np.mean(values) == pytest.approx(expected, abs=4 * expected * np.sqrt(2 / (bins**2 - 1) / 20))


def test_noise_floor_at_equal_n():
    generator = np.random.default_rng(4)
    first, second = generator.normal(0, 0.5, (4000, 2)), generator.normal(0, 0.5, (4000, 2))
    full, thinned = noise_floor(first, second), noise_floor(first, second, 1000, seed=1, n_repeats=4)
    assert (full.n_first, full.spread, len(full.divergences)) == (4000, 0.0, 1)
    assert (thinned.n_first, thinned.n_second, len(thinned.divergences)) == (1000, 4000, 4)
    assert thinned.mean > full.mean
    assert 0 < thinned.spread < thinned.mean
    np.testing.assert_array_equal(thinned.divergences, noise_floor(first, second, 1000, seed=1, n_repeats=4).divergences)
    with pytest.raises(InputError, match="4000"):
        noise_floor(first, second, 4001)


def test_seam_share_of_uniform_angles():
    angles = np.linspace(-np.pi, np.pi, 360_000, endpoint=False)
    for width in (1.0, 2.0, 5.0, 180.0):
        assert seam_share(angles, width) == pytest.approx(width / 180, rel=1e-3)
    assert seam_share(np.radians([179.5, -179.5, 0.0, 541.0]), 2.0) == pytest.approx(0.75)
    assert seam_share(np.radians([180.0, 0.0]), 1.0, weights=np.array([3.0, 1.0])) == pytest.approx(0.75)


def test_bad_input_is_one_clear_error():
    with pytest.raises(InputError, match="shape"):
        ramachandran_histogram(np.zeros((5, 3)))
    with pytest.raises(InputError, match="not finite"):
        ramachandran_histogram(np.array([[0.0, np.nan]]))
    with pytest.raises(InputError, match="not finite"):
        torsion_histogram(np.array([]))
    with pytest.raises(InputError, match="weights"):
        torsion_histogram(np.zeros(3), weights=np.array([1.0, -1.0, 1.0]))
    with pytest.raises(InputError, match="same bins"):
        jensen_shannon(np.ones(3), np.ones(4))
    with pytest.raises(InputError, match="empty"):
        jensen_shannon(np.zeros(3), np.ones(3))
