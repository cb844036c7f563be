"""The flow surrogate: splines against plain torch and autograd, exact ln q, densities that integrate to one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_molgen.angles import wrap_angle
from hpc_molgen.config import RunConfig, TrainConfig
from hpc_molgen.errors import InputError
from hpc_molgen.surrogates.base import load_surrogate, surrogate_class
from hpc_molgen.surrogates.flow import splines
from hpc_molgen.surrogates.flow.splines import circular_spline, line_spline, n_parameters, plain_unit_spline, unit_spline
from hpc_molgen.surrogates.flow.surrogate import FlowSurrogate
from hpc_molgen.surrogates.prior import log_prior
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import process_group
from hpc_molgen.training.loop import Trainer

D, N, BINS = 3, 37, 5  # 37: no multiple of a vector's length


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow(n_torus: int, n_euclidean: int, seed: int = 0, **options: int) -> FlowSurrogate:
    """A small flow far from the identity, in float64."""
    torch.manual_seed(seed)
    made = FlowSurrogate(n_torus, n_euclidean, **({"layers": 4, "hidden": 16, "bins": 4, "torus_bins": 6} | options)).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


@pytest.mark.parametrize("variant", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("circular", [True, False])
@pytest.mark.parametrize("inverse", [True, False])
def test_the_library_computes_what_plain_torch_does(
    variant: str, circular: bool, inverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients of all that a spline depends on, in both precisions, in every variant that this machine runs."""
    monkeypatch.setenv("HPC_MOLGEN_KERNEL", variant)
    splines._library.cache_clear()
    assert splines._library() is not None, "was the package installed without a C++ compiler?"
    weights = drawn(D, N, seed=3), drawn(D, N, seed=4)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 5e-3)):
        results = []
        for function in (unit_spline, plain_unit_spline):
            # beyond both ends too
            x = (1.2 * torch.rand((D, N), generator=torch.Generator().manual_seed(1)) - 0.1).to(dtype)
            logits = 2 * drawn(3 * BINS - (not circular), D, N, seed=2).to(dtype)
            inside = ((x > 0) & (x < 1)).to(dtype)
            x.requires_grad_(), logits.requires_grad_()
            image, log_slope = function(x, logits, circular=circular, inverse=inverse)
            total = (inside * (weights[0].to(dtype) * image + weights[1].to(dtype) * log_slope)).sum()
            results.append((image, log_slope, *torch.autograd.grad(total, (x, logits))))
        for own, plain in zip(*results, strict=True):
            torch.testing.assert_close(own, plain, rtol=tolerance, atol=tolerance)
    splines._library.cache_clear()


def test_splines_are_one_to_one_and_know_their_slopes() -> None:
    for function, x, apart in (
        (circular_spline, wrap_angle(3 * drawn(D, N)), wrap_angle),
        (lambda x, p, inverse: line_spline(x, p, 3.0, inverse=inverse), 3 * drawn(D, N), lambda x: x),  # some beyond the bound
    ):
        parameters, x = drawn(n_parameters(BINS), D, N, seed=2), x.requires_grad_()
        image, log_slope = function(x, parameters, inverse=False)
        (slope,) = torch.autograd.grad(image.sum(), x)
        torch.testing.assert_close(log_slope, slope.log(), rtol=1e-9, atol=1e-9)
        back, back_slope = function(image, parameters, inverse=True)
        torch.testing.assert_close(apart(back - x), torch.zeros_like(x), rtol=0, atol=1e-8)
        torch.testing.assert_close(back_slope, -log_slope, rtol=1e-7, atol=1e-7)
        same, none = function(x, torch.zeros_like(parameters), inverse=False)
        torch.testing.assert_close(same, x.detach(), rtol=1e-12, atol=1e-12)
        assert none.abs().max() < 1e-12


def test_a_spline_on_the_circle_has_no_seam() -> None:
    """Image and slope on the two sides of where its first bin begins, which the turn has moved there, are the same."""
    parameters = drawn(n_parameters(BINS), D, 1, seed=2)
    (first, slope), (second, other_slope) = (
        circular_spline(sign * 1e-9 - parameters[-1], parameters, inverse=False) for sign in (-1, 1)
    )
    torch.testing.assert_close(wrap_angle(first - second), torch.zeros_like(first), rtol=0, atol=1e-7)
    torch.testing.assert_close(slope, other_slope, rtol=0, atol=1e-6)


def test_mixed_precision_is_that_of_the_network_alone() -> None:
    """bf16 has 8 bits: the loss follows that of float32 to a few per cent of its spread, gradients are finite."""
    made, items = flow(2, 4).float(), torch.cat([wrap_angle(drawn(256, 2)), drawn(256, 4, seed=1)], dim=1).float()
    plain = made.loss("flow", items, ())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = made.loss("flow", items, ())
    mixed.sum().backward()
    assert mixed.dtype == torch.float32 and not torch.equal(mixed, plain)
    assert (mixed - plain).abs().mean() < 0.05 * plain.std()
    assert all(torch.isfinite(parameter.grad).all() for parameter in made.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("n_torus", "n_euclidean"), [(3, 4), (2, 0), (0, 5), (1, 1)])
def test_the_density_is_that_of_the_map(n_torus: int, n_euclidean: int) -> None:
    """ln q of samples, in both directions, is ln of the prior minus ln|det| of the Jacobian by autograd."""
    made = flow(n_torus, n_euclidean)
    features, log_q = made.sample(50, 1)
    assert log_q is not None and features.shape == (50, n_torus + n_euclidean) and features.std() > 0.1
    torch.testing.assert_close(made.log_density(features), log_q, rtol=1e-5, atol=1e-5)
    base = torch.cat([drawn(5, n_torus, seed=5), drawn(5, n_euclidean, seed=6)], dim=1)
    images, densities = made._moved(base)
    for row, image, density in zip(base, images, densities, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: made._moved(x[None])[0][0], row)
        expected = log_prior(row[None], n_torus)[0] - torch.linalg.slogdet(jacobian)[1]
        assert density.item() == pytest.approx(expected.item(), abs=1e-8)
        assert made.log_density(image[None]).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(("n_torus", "n_euclidean"), [(3, 4), (0, 5), (2, 1)])
def test_a_flow_that_is_right_has_no_path_gradient(n_torus: int, n_euclidean: int) -> None:
    """The score of the flow itself teaches the layers of the rest nothing, at any sample; ln q is what it is without scores."""
    made = flow(n_torus, n_euclidean)
    features = torch.cat([drawn(50, n_torus, seed=5), drawn(50, n_euclidean, seed=6)], dim=1)
    log_q, score = made.log_density_and_gradient(features)
    items = torch.cat([features, features.new_zeros(50, 1), score], dim=1)
    loss = made.loss("flow", items, ())
    torch.testing.assert_close(loss, -log_q)
    loss.sum().backward()
    of_rest = [parameter.grad for layer in made._of_rest for parameter in layer.parameters()]
    assert max(float(grad.abs().max()) for grad in of_rest if grad is not None) < 1e-10
    score[:, n_torus:] += 0.1  # of another density
    made.loss("flow", torch.cat([features, features.new_zeros(50, 1), score], dim=1), ()).sum().backward()
    assert max(float(grad.abs().max()) for grad in of_rest if grad is not None) > 0.1


def test_path_gradients_have_the_mean_of_those_of_likelihood() -> None:
    """Of items of another flow with its scores; four standard errors, of each weight's difference over the items."""
    truth, made = flow(2, 3, seed=1), flow(2, 3, seed=2)
    for parameter, own in zip(made.parameters(), truth.parameters(), strict=True):
        parameter.data = own.data + 0.02 * parameter.data
    features, _ = truth.sample(4000, 3)
    _, score = truth.log_density_and_gradient(features)
    items = torch.cat([features, features.new_zeros(4000, 1), score], dim=1)
    layer = made._of_rest[1].conditioner.out.bias
    gradients = {}
    for name, batch in (("likelihood", features), ("path", items)):
        parts = [torch.autograd.grad(made.loss("flow", part, ()).mean(), layer)[0] for part in batch.split(40)]
        gradients[name] = torch.stack(parts)
    difference = gradients["path"] - gradients["likelihood"]
    error = difference.std(0) / math.sqrt(len(difference))
    assert (difference.mean(0).abs() < 4 * error).all()
    signal, noise = gradients["path"].mean(0).abs(), {name: values.std(0) for name, values in gradients.items()}
    assert (signal > 8 * noise["path"] / 10).any()  # there is something to agree on
    assert (noise["path"] < 0.5 * noise["likelihood"]).all()


def test_the_density_integrates_to_one() -> None:
    made = flow(1, 1)
    angle, x = (torch.linspace(-edge, edge, n + 1, dtype=torch.float64)[:-1] for edge, n in ((math.pi, 200), (20.0, 1600)))
    grid = torch.cartesian_prod(angle, x)
    total = made.log_density(grid).exp().sum() * (2 * math.pi / 200) * (40.0 / 1600)
    assert float(total) == pytest.approx(1.0, abs=2e-3)


def test_training_finds_a_known_density(tmp_path: Path) -> None:
    """Two correlated angles and a number that depends on them: the Kullback-Leibler divergence from the truth is small."""
    generator = np.random.default_rng(3)
    mixture = generator.random(20000) < 0.3
    first = np.where(mixture, generator.vonmises(-2.5, 6, 20000), generator.vonmises(2.0, 3, 20000))
    second = generator.vonmises(first + 1.0, 4)
    third = generator.normal(0.5 * np.cos(first), 0.5 + 0.2 * np.sin(second) ** 2)
    items = torch.as_tensor(np.stack([first, second, third], axis=1), dtype=torch.float32)
    items[:, :2] = wrap_angle(items[:, :2])

    def log_vonmises(x: np.ndarray, mean: np.ndarray | float, kappa: float) -> np.ndarray:
        return np.asarray(kappa * np.cos(x - mean) - np.log(2 * np.pi * np.i0(kappa)))

    width = 0.5 + 0.2 * np.sin(second) ** 2
    truth = np.log(0.3 * np.exp(log_vonmises(first, -2.5, 6)) + 0.7 * np.exp(log_vonmises(first, 2.0, 3)))
    truth += log_vonmises(second, first + 1.0, 4) - 0.5 * ((third - 0.5 * np.cos(first)) / width) ** 2
    truth -= np.log(width * np.sqrt(2 * np.pi))
    data = TrainingSet(items[:15000], torch.ones(15000)), TrainingSet(items[15000:], torch.ones(5000))
    torch.manual_seed(0)
    made = FlowSurrogate(2, 1, layers=4, hidden=32, bins=8, torus_bins=12)
    config = TrainConfig(n_steps=300, batch_size=256, learning_rate=5e-3, device="cpu", validate_every=200)
    trained = Trainer(made, config, *data, tmp_path, process_group("cpu"), 1).run()
    assert isinstance(trained, FlowSurrogate)
    gap = truth[15000:] - trained.log_density(items[15000:]).numpy()
    error = gap.std() / math.sqrt(len(gap))
    assert -4 * error < gap.mean() < 0.04 + 4 * error, (gap.mean(), error)
    trained.save(tmp_path / "flow.safetensors", "flow", "key")
    again = load_surrogate(tmp_path / "flow.safetensors", "key")
    assert torch.equal(again.sample(10, 1)[0], trained.sample(10, 1)[0])


def test_what_a_flow_cannot_be() -> None:
    with pytest.raises(InputError, match="two features"):
        FlowSurrogate(1, 0)
    config = RunConfig.model_validate({"surrogate": {"name": "flow", "layers": 6}})
    assert surrogate_class(config.surrogate.name) is FlowSurrogate and not config.makes_trajectories
