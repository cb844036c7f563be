"""Path weights against closed forms: with a normalised target their mean is one, whatever network and steps are."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import iv

from hpc_molgen.surrogates.diffusion.path import Step, log_wrapped_normal, path_steps, sample_path
from hpc_molgen.surrogates.diffusion.process import HALF_PI
from hpc_molgen.surrogates.diffusion.surrogate import DiffusionSurrogate
from hpc_molgen.surrogates.prior import draw_prior

KAPPA, MU, SD, MEAN = 2.0, 2.6, 0.6, 0.5  # of an angle (von Mises), and of a normal coordinate


def exact_velocity(features: torch.Tensor, phi: float) -> torch.Tensor:
    """Velocity (n, 2) of that pair; the angle's from its Fourier series, the other's from the posterior mean."""
    k = torch.arange(1, 14, dtype=torch.float64)  # coefficients beyond are below 1e-10
    cosine, sine = max(0.0, math.cos(phi)), math.sin(phi)
    weight = torch.as_tensor(2 * iv(k.numpy(), KAPPA) / iv(0, KAPPA)) * cosine ** (k**2)
    turned = k * (features[:, :1] - MU)
    density = 1 + (weight * torch.cos(turned)).sum(1)
    slope = (weight / cosine * k * torch.sin(turned)).sum(1) if phi < HALF_PI else weight[0] * torch.sin(turned[:, 0])
    x = features[:, 1]
    clean = MEAN + SD**2 * cosine / (cosine**2 * SD**2 + sine**2) * (x - cosine * MEAN)
    return torch.stack([sine * slope / density, (cosine * x - clean) / sine], dim=1)


def wrong_velocity(features: torch.Tensor, phi: float) -> torch.Tensor:
    return 0.7 * exact_velocity(features, phi) + 0.05


def log_target(features: torch.Tensor) -> torch.Tensor:
    angle, x = features.T
    von_mises = KAPPA * torch.cos(angle - MU) - math.log(2 * math.pi * iv(0, KAPPA))
    return von_mises - (x - MEAN) ** 2 / (2 * SD**2) - math.log(math.sqrt(2 * math.pi) * SD)


def weights(velocity: object, n_steps: int, share: float, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, 2) and path weights (n,), not normalised."""
    generator = torch.Generator().manual_seed(seed)
    start = draw_prior(n, 1, 1, generator).double()
    features, log_ratio = sample_path(velocity, start, path_steps(n_steps, 1, share), generator)  # type: ignore[arg-type]
    return features, torch.exp(log_target(features) - log_ratio)


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("n_steps", [3, 8, 24])
@pytest.mark.parametrize("velocity", [exact_velocity, wrong_velocity])
def test_weights_are_unbiased_for_any_network_and_any_number_of_steps(velocity: object, n_steps: int, share: float) -> None:
    """Z = 1, and four moments of the target, each within 5 standard errors of unnormalised averages."""
    n = 40_000
    features, weight = weights(velocity, n_steps, share, n, 11)
    angle, x = features.T
    resultant = iv(1, KAPPA) / iv(0, KAPPA)
    found_and_expected = [
        (torch.ones_like(x), 1.0),
        (torch.cos(angle - MU), resultant),
        (torch.sin(angle - MU), 0.0),
        (x, MEAN),
        ((x - MEAN) ** 2, SD**2),
    ]
    for values, expected in found_and_expected:
        terms = weight * values
        error = float(terms.std()) / math.sqrt(n)
        assert error < 0.1 and abs(float(terms.mean()) - expected) < 5 * error
    assert float(angle.abs().max()) <= math.pi


def test_without_weights_few_steps_are_biased() -> None:
    """What the weights repair is there: raw samples of three steps miss the variance by many standard errors."""
    features, weight = weights(exact_velocity, 3, 0.0, 40_000, 12)
    square = (features[:, 1] - MEAN) ** 2
    raw_error = float(square.std()) / math.sqrt(len(square))
    assert abs(float(square.mean()) - SD**2) > 15 * raw_error
    weighted = weight * square
    assert abs(float(weighted.mean()) - SD**2) < 5 * float(weighted.std()) / math.sqrt(len(square))


def test_weights_become_equal_as_steps_become_many() -> None:
    """With the exact network Var(w) falls like 1/N, and that of 80 steps is small."""

    def relative_variance(n_steps: int) -> float:
        weight = weights(exact_velocity, n_steps, 0.0, 10_000, 13)[1]
        return float(weight.var() / weight.mean() ** 2)

    coarse, fine = relative_variance(20), relative_variance(80)
    assert fine < 0.1 and 2 < coarse / fine < 8


@pytest.mark.parametrize("sd", [0.05, 0.5, 1.25, 1.35, 3.0])
def test_wrapped_normal_is_a_density_and_the_sum_over_images(sd: float) -> None:
    grid = -math.pi + 2 * math.pi * torch.arange(2000, dtype=torch.float64) / 2000
    found = log_wrapped_normal(grid, sd).exp()
    images = grid[:, None] + 2 * math.pi * torch.arange(-30, 31, dtype=torch.float64)
    expected = torch.exp(-(images**2) / (2 * sd**2)).sum(1) / (math.sqrt(2 * math.pi) * sd)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert float(found.sum()) * 2 * math.pi / 2000 == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(log_wrapped_normal(grid + 4 * math.pi, sd).exp(), found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("then", "now"), [(0.0, 0.2), (0.4, 0.5), (1.3, 1.5), (1.4, HALF_PI)])
def test_kernels_are_densities(then: float, now: float) -> None:
    """Both kernels integrate to one over the angle and the coordinate, the steps to the data and from the prior among them."""
    step = Step(then, now, 1)
    n = 800
    x = torch.linspace(-9, 9, n, dtype=torch.float64)
    angle = -math.pi + 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    points = torch.stack(torch.meshgrid(angle, x, indexing="ij"), dim=-1).reshape(-1, 2)
    point = torch.tensor([[3.0, 0.4]], dtype=torch.float64)
    cell = float(x[1] - x[0]) * 2 * math.pi / n
    mean = step.mean(point, exact_velocity(point, now))
    assert float(step.log_reverse(mean, points).exp().sum()) * cell == pytest.approx(1, abs=1e-6)
    assert float(step.log_forward(point, points).exp().sum()) * cell == pytest.approx(1, abs=1e-6)


def test_noising_steps_compose_to_the_kernel_of_the_process() -> None:
    """Factors and variances of the steps up to a level are those of one step from the data."""
    steps = path_steps(20, 1)[::-1][:15]
    whole = Step(0.0, steps[-1].now, 1)
    kept, rest, angles = 1.0, 0.0, 0.0
    for step in steps:
        rest = step.kept**2 * rest + step.forward_sd[1] ** 2
        angles += step.forward_sd[0] ** 2
        kept *= step.kept
    assert kept == pytest.approx(whole.kept) and kept == pytest.approx(math.cos(whole.now))
    assert rest == pytest.approx(math.sin(whole.now) ** 2) and angles == pytest.approx(whole.forward_sd[0] ** 2)
    assert path_steps(20, 1)[0].to_prior and path_steps(20, 1)[-1].then == 0 and path_steps(20, 1)[-1].reverse_sd[1] > 0


def test_surrogate_gives_the_ratio_of_its_own_path() -> None:
    """The sampler `path` of a surrogate: float64 ratios, the same for the same seed, and none unless asked for."""
    surrogate = DiffusionSurrogate(2, 3, hidden=16, depth=1)
    features, log_ratio = surrogate.sample(50, 4, sampler="path", n_steps=7)
    again, same = surrogate.sample(50, 4, sampler="path", n_steps=7)
    assert log_ratio is not None and same is not None and log_ratio.dtype == features.dtype == torch.float64
    assert torch.equal(features, again) and torch.equal(log_ratio, same) and log_ratio.shape == (50,)
    # untrained: its reverse chain is exact for uniform angles and standard normal numbers, up to its widest wrapped normal
    from hpc_molgen.surrogates.prior import log_prior

    assert (log_ratio - log_prior(features, 2)).abs().max() < 0.02
    assert surrogate.sample(50, 4, sampler="path", n_steps=7, log_density=False)[1] is None
