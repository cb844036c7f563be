"""The latent space of a time-lagged autoencoder: it finds what is slow, by its seed alone, and survives its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from hpc_molgen.config import RepresentationConfig, SystemConfig
from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import load_representation
from hpc_molgen.representations.latent import Encoder, LatentVariables, distance_pairs, distances, learn_encoder
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.trajectories import TrajectorySet

LAG = 5
CONFIG = RepresentationConfig(name="latent", latent_lag_frames=LAG, latent_steps=300)


def hidden(n_walkers: int = 6, n_frames: int = 1500, n_fast: int = 24) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A slow jump between two wells and a slow oscillator, of small amplitude, turned into many fast and large coordinates.

    Returns
    -------
    features, slow : list of np.ndarray, each of shape=(n_frames, n_fast + 2), (n_frames, 2)
    """
    generator = np.random.default_rng(7)
    mixing = np.linalg.qr(generator.normal(size=(n_fast + 2, n_fast + 2)))[0]
    features, slow = [], []
    for _ in range(n_walkers):
        own = np.zeros((n_frames, 2))
        own[0] = generator.choice([-1.0, 1.0]), generator.normal()
        for t in range(1, n_frames):
            flipped = generator.random() < 0.01  # correlation 0.98 a frame
            own[t, 0] = -own[t - 1, 0] if flipped else own[t - 1, 0]
            own[t, 1] = 0.9 * own[t - 1, 1] + np.sqrt(1 - 0.81) * generator.normal()
        fast = np.empty((n_frames, n_fast))
        fast[0] = generator.normal(size=n_fast)
        for t in range(1, n_frames):
            fast[t] = 0.3 * fast[t - 1] + np.sqrt(1 - 0.09) * generator.normal(size=n_fast)
        wells = own + 0.2 * generator.normal(size=own.shape)
        together = np.concatenate([0.5 * wells, fast * np.linspace(1, 4, n_fast)], axis=1)
        features.append(together @ mixing)
        slow.append(own)
    return features, slow


@pytest.fixture(scope="module")
def learned() -> tuple[Encoder, dict]:
    features, _ = hidden()
    return learn_encoder(lambda: features, CONFIG, 3)


def autocorrelation(series: list[np.ndarray]) -> float:
    together = np.concatenate(series)
    centred = [(part - together.mean()) / together.std() for part in series]
    return float(np.mean([np.mean(part[:-LAG] * part[LAG:]) for part in centred]))


def test_slow_coordinates_are_found_and_ordered(learned: tuple[Encoder, dict]) -> None:
    """z1 is the jump between wells, z2 the oscillator; on walkers that were not trained on, too. PCA finds noise."""
    encoder, about = learned
    features, slow = hidden(n_walkers=9)
    for part in (slice(0, 6), slice(6, 9)):
        latents = [encoder(x) for x in features[part]]
        together, known = np.concatenate(latents), np.concatenate(slow[part])
        correlations = np.corrcoef(together.T, known.T)[:2, 2:]
        assert abs(correlations[0, 0]) > 0.9 and abs(correlations[1, 1]) > 0.8
        x = np.concatenate(features[part])
        axis = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[2][0]
        principal = autocorrelation([own @ axis for own in features[part]])
        times = [autocorrelation([z[:, k] for z in latents]) for k in (0, 1)]
        assert times[0] > 0.75 and times[0] > times[1] > 0.3 and abs(principal) < 0.1
    assert about["autocorrelations"] == pytest.approx(
        [autocorrelation([encoder(x)[:, k] for x in features[:6]]) for k in (0, 1)], abs=0.02
    )


def test_latents_are_standardised_and_grow_with_a_feature(learned: tuple[Encoder, dict]) -> None:
    features, _ = hidden()
    together, x = np.concatenate([learned[0](part) for part in features]), np.concatenate(features)
    assert together.mean(axis=0) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(np.cov(together.T), np.eye(2), atol=1e-3)
    correlations = np.corrcoef(together.T, x.T)[:2, 2:]
    assert all(row[np.abs(row).argmax()] > 0 for row in correlations)


def curved(n_walkers: int = 5, n_frames: int = 1200) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """An angle that diffuses slowly on three quarters of a circle, whose cosine and sine hide in ten fast coordinates."""
    generator = np.random.default_rng(11)
    mixing = np.linalg.qr(generator.normal(size=(12, 12)))[0]
    angles = []
    for _ in range(n_walkers):
        free = generator.uniform(0, 1.5 * np.pi) + np.cumsum(0.15 * generator.normal(size=n_frames))
        angles.append(np.abs((free + 1.5 * np.pi) % (3 * np.pi) - 1.5 * np.pi) - 0.75 * np.pi)  # reflecting ends
    slow = [np.stack([np.cos(own), np.sin(own)], axis=1) + 0.05 * generator.normal(size=(n_frames, 2)) for own in angles]
    return [np.concatenate([x, 2 * generator.normal(size=(n_frames, 10))], axis=1) @ mixing for x in slow], angles


def test_a_curved_coordinate_is_one_number() -> None:
    """The angle's order along the circle, by one latent coordinate: the best linear one is a sine, which comes back."""
    features, angles = curved()
    config = CONFIG.model_copy(update={"latent": 1, "latent_steps": 600})
    found, about = learn_encoder(lambda: features, config, 3)
    linear, _ = learn_encoder(lambda: features, config.model_copy(update={"latent_steps": 1}), 3)
    known = np.concatenate(angles)
    bent, straight = (abs(spearmanr(np.concatenate([f(x)[:, 0] for x in features]), known)[0]) for f in (found, linear))
    assert bent > 0.97 and straight < 0.94
    assert about["loss_set_apart"] < 0.98 * about["loss_linear"] and about["best_step"] > 0


def test_the_seed_alone_decides() -> None:
    features, _ = curved(3, 600)
    config = CONFIG.model_copy(update={"latent": 1})
    first, _ = learn_encoder(lambda: features, config, 3)
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    again, _ = learn_encoder(lambda: iter(features), config, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, first.tensors[key]) for key, value in again.tensors.items())
    other, _ = learn_encoder(lambda: features, config, 4)
    assert not torch.equal(other.tensors["network.line.weight"], first.tensors["network.line.weight"])


def test_the_best_weights_are_those_of_walkers_set_apart(learned: tuple[Encoder, dict]) -> None:
    """With little data the loss on what is set apart turns up again: the weights are those of its least value."""
    features, _ = hidden(n_walkers=3, n_frames=120)
    short, about = learn_encoder(lambda: features, CONFIG, 3)
    losses = [check["set_apart"] for check in about["curve"]]
    assert about["loss_set_apart"] == min(losses) < losses[-1] and about["best_step"] < 300
    # what is predictable of 26 whitened coordinates: two slow ones; nothing is known of more than 0.4^5 of the others
    assert learned[1]["loss_set_apart"] < 1.0 and short.n_latent == 2
    single, _ = learn_encoder(lambda: features[:1], CONFIG, 3)
    assert np.isfinite(single(features[1])).all()
    with pytest.raises(InputError, match="longest training walker has 120"):
        learn_encoder(lambda: features, CONFIG.model_copy(update={"latent_lag_frames": 120}), 3)
    with pytest.raises(InputError, match="vary in 1 directions only"):
        learn_encoder(lambda: features, CONFIG.model_copy(update={"latent_components": 1}), 3)


def test_it_survives_its_file(tmp_path: Path) -> None:
    """Learned on wobbling chains of Trp-cage: features, channels and all that is known come back."""
    cage = load_system(SystemConfig(name="trp-cage"))
    generator = np.random.default_rng(1)
    stretch = np.cumsum(generator.normal(size=(3, 600)), axis=1) * 0.01 + 1
    walkers = [cage.positions_nm * s[:, None, None] + 0.02 * generator.normal(size=(600, 20, 3)) for s in stretch]
    config = RepresentationConfig(name="latent", cvs=("rg",), latent=1, latent_components=10, latent_steps=200)
    variables = LatentVariables.learn(cage, config, lambda: walkers, 1)
    series = TrajectorySet(tuple(map(variables.measure, walkers)), variables.names, variables.units, 1.0, ("a", "b", "c"))
    variables = variables.standardised(series)
    assert variables.names == ("rg", "z1") and variables.units == ("nanometers", "dimensionless") and variables.n_channels == 2
    values = variables.measure(walkers[0])
    assert np.corrcoef(np.concatenate(series.features).T)[0, 1] > 0.95  # it grows with the size, which is all that is slow
    variables.save(tmp_path / "r.safetensors", cage)
    again = load_representation(tmp_path / "r.safetensors", cage)
    assert isinstance(again, LatentVariables) and again.about == variables.about and again.cvs == ("rg",)
    np.testing.assert_array_equal(again.measure(walkers[0]), values)
    np.testing.assert_allclose(again.features(again.channels(values)), values, atol=1e-5)
    turned = walkers[0][:, :, [1, 2, 0]] + 3.0
    np.testing.assert_allclose(again.measure(turned), values, atol=1e-6)


def test_distances_of_chains_and_of_small_molecules(alanine: MolecularSystem) -> None:
    chain = load_system(SystemConfig(name="alpha-synuclein"))
    pairs = distance_pairs(chain)
    assert len(pairs) == 276 and set(np.diff(np.unique(pairs))) == {6}
    x = np.random.default_rng(2).normal(size=(3, 140, 3))
    assert distances(x, pairs)[2, 0] == pytest.approx(np.linalg.norm(x[2, 0] - x[2, 6]))
    assert len(distance_pairs(alanine)) == 45  # of ten heavy atoms
    with pytest.raises(InputError, match="no structures with distances"):
        distance_pairs(load_system(SystemConfig(name="triple-well")))


def test_tica_finds_the_same_slow_coordinates_by_linear_algebra(learned: tuple[Encoder, dict], tmp_path: Path) -> None:
    """Against deeptime's own transform of the whitened features, to rounding; against what is known to be slow, as above."""
    from deeptime.decomposition import TICA

    features, slow = hidden()
    encoder, about = learn_encoder(lambda: features, CONFIG.model_copy(update={"latent_by": "tica"}), 3)
    together, known = np.concatenate([encoder(x) for x in features]), np.concatenate(slow)
    np.testing.assert_allclose(together.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(together.T, ddof=0), np.eye(2), atol=1e-6)
    correlations = np.corrcoef(together.T, known.T)[:2, 2:]
    assert abs(correlations[0, 0]) > 0.9 and abs(correlations[1, 1]) > 0.8
    white = [(x - encoder.tensors["mean"].numpy()) @ encoder.tensors["whiten"].numpy() for x in features]
    plain = TICA(lagtime=LAG, dim=2).fit_from_timeseries(white).fetch_model()
    theirs = np.concatenate([plain.transform(part) for part in white])
    assert np.abs(np.corrcoef(together.T, theirs.T)[:2, 2:]).diagonal() == pytest.approx([1, 1], abs=1e-3)
    assert about["by"] == "tica" and "curve" not in about and learned[1]["by"] == "autoencoder"
