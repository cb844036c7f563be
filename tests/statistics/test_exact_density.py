"""Exact ln q against closed forms: Gaussian and von Mises targets with their exact velocity, and trained surrogates."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import iv, ive
from torch import nn

from hpc_molgen.config import TrainConfig
from hpc_molgen.errors import InputError
from hpc_molgen.surrogates.diffusion.integrators import EVALUATIONS, adams_weights
from hpc_molgen.surrogates.diffusion.process import HALF_PI, noise_angle, torus_sd, torus_velocity
from hpc_molgen.surrogates.diffusion.round_trip import round_trip
from hpc_molgen.surrogates.diffusion.surrogate import DiffusionSurrogate
from hpc_molgen.surrogates.prior import log_prior
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import ProcessGroup
from hpc_molgen.training.loop import Trainer

KAPPA, MU, SIGMA = 2.0, 2.6, 0.4


class ExactVelocity(nn.Module):
    """Velocity of a von Mises angle times an anisotropic Gaussian pair: (sd SIGMA, sd 1.7)."""

    def __init__(self) -> None:
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros((), dtype=torch.float64))
        k = np.arange(1, 30)
        self.coefficients = torch.as_tensor(2 * ive(k, KAPPA) / ive(0, KAPPA))
        self.k = torch.as_tensor(k, dtype=torch.float64)

    def embed_time(self, phi: torch.Tensor) -> torch.Tensor:
        return phi[:, None].double()

    def forward(self, features: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        phi = time[:, :1]
        cosine, sine = torch.cos(phi).clamp(min=0), torch.sin(phi)
        angle = self.k * (features[:, :1] - MU)
        density = 1 + (self.coefficients * cosine ** (self.k**2) * torch.cos(angle)).sum(1, keepdim=True)
        # d/da ln p, times -tan(phi): one cosine cancels
        slope = (self.coefficients * self.k * cosine ** (self.k**2 - 1) * torch.sin(angle)).sum(1, keepdim=True)
        variance = torch.tensor([SIGMA**2, 1.7**2], dtype=torch.float64)
        gaussian = features[:, 1:] * sine * cosine * (1 - variance) / (cosine**2 * variance + sine**2)
        return torch.cat([sine * slope / density, gaussian], dim=1)

    def velocity_and_divergence(self, features: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x: self(x[None], time)[0]))(features)
        return self(features, time), torch.diagonal(jacobian, dim1=1, dim2=2).sum(1)


def log_target(features: torch.Tensor) -> torch.Tensor:
    angle, x, y = features.double().T
    von_mises = KAPPA * torch.cos(angle - MU) - math.log(2 * math.pi * iv(0, KAPPA))
    return von_mises - x**2 / (2 * SIGMA**2) - y**2 / (2 * 1.7**2) - math.log(2 * math.pi * SIGMA * 1.7)


@pytest.fixture(scope="module")
def exact() -> DiffusionSurrogate:
    surrogate = DiffusionSurrogate(1, 2, hidden=8, depth=1)
    surrogate.network = ExactVelocity()  # type: ignore[assignment]
    return surrogate


def test_log_q_of_samples_is_the_closed_form(exact: DiffusionSurrogate) -> None:
    features, log_q = exact.sample(2000, 1, n_steps=40)
    assert log_q is not None
    assert (log_q - log_target(features)).abs().max() < 1e-4


def test_log_q_at_the_default_number_of_steps(exact: DiffusionSurrogate) -> None:
    """24 network evaluations: an error far below the spread of any log-weight."""
    features, log_q = exact.sample(2000, 2)
    assert log_q is not None
    error = (log_q - log_target(features)).abs()
    assert error.mean() < 0.01 and error.max() < 0.05


def test_log_q_of_given_points_is_the_closed_form(exact: DiffusionSurrogate) -> None:
    points = torch.stack([torch.linspace(-3.1, 3.1, 50), torch.linspace(-1, 1, 50), torch.linspace(3, -3, 50)], dim=1).double()
    assert (exact.log_density(points, n_steps=40) - log_target(points)).abs().max() < 1e-4


ORDERS = [("euler", 40, 1), ("heun", 20, 2), ("adams", 40, 3), ("rk4", 8, 4), ("dopri5", 6, 5)]


@pytest.mark.parametrize(("integrator", "n_steps", "order"), ORDERS)
def test_integrators_converge_with_their_order(exact: DiffusionSurrogate, integrator: str, n_steps: int, order: int) -> None:
    """Twice the steps: ln q of the same samples is 2**order times as exact, or 2**0.7 times less than that."""
    prior = exact.draw_prior(500, torch.Generator().manual_seed(4))

    def error(steps: int) -> float:
        found = exact.run_ode(prior, HALF_PI, 0.0, integrator, steps, divergence=True)  # type: ignore[arg-type]
        assert found.change is not None
        assert found.n_evaluations == steps * EVALUATIONS[integrator] + (integrator == "adams")
        log_q = log_prior(prior, 1) - found.change
        return float((log_q - log_target(found.features)).square().mean().sqrt())

    assert math.log2(error(n_steps) / error(2 * n_steps)) > order - 0.7


def test_adaptive_steps_keep_the_tolerance(exact: DiffusionSurrogate) -> None:
    errors, evaluations = [], []
    prior = exact.draw_prior(500, torch.Generator().manual_seed(5))
    for tolerance in (1e-2, 1e-4, 1e-8):
        found = exact.run_ode(prior, HALF_PI, 0.0, "adaptive", 0, tolerance, divergence=True)
        assert found.change is not None
        errors.append(float((log_prior(prior, 1) - found.change - log_target(found.features)).square().mean().sqrt()))
        evaluations.append(found.n_evaluations)
        assert errors[-1] < 20 * tolerance  # of some twenty steps
    assert errors[0] > errors[1] > errors[2] and evaluations[0] < evaluations[1] < evaluations[2]


def test_a_tolerance_beyond_the_precision_is_an_error() -> None:
    single = DiffusionSurrogate(1, 2, hidden=8, depth=1)
    torch.nn.init.normal_(single.network.torus_out.weight, generator=torch.Generator().manual_seed(1))
    with pytest.raises(InputError, match=r"sample\.tolerance"):
        single.sample(50, 1, integrator="adaptive", tolerance=1e-14)


def test_adams_weights_are_those_of_the_books() -> None:
    """Hairer, Norsett and Wanner 1993, section III.1, equation 1.5."""
    np.testing.assert_allclose(adams_weights(1), [1])
    np.testing.assert_allclose(adams_weights(2), [3 / 2, -1 / 2])
    np.testing.assert_allclose(adams_weights(3), [23 / 12, -16 / 12, 5 / 12])


def test_round_trips_are_as_exact_as_the_integrator(exact: DiffusionSurrogate) -> None:
    features, _ = exact.sample(400, 6)
    turned = features + torch.tensor([2 * math.pi, 0, 0], dtype=torch.float64)
    rough, fine = (round_trip(exact, turned, "rk4", steps) for steps in (4, 16))
    assert fine.features.shape == fine.log_density.shape == (400,) and fine.n_evaluations == 64
    assert fine.figures()["features_max"] < 1e-3 and fine.figures()["log_density_max"] < 1e-3
    assert rough.figures()["log_density_rms"] > 20 * fine.figures()["log_density_rms"]
    error = (exact.log_density(features, n_steps=4) - log_target(features)).square().mean().sqrt()
    assert 0.2 < rough.figures()["log_density_rms"] / float(error) < 5


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("sampler", ["ode", "ancestral"])
def test_samplers_reproduce_moments(exact: DiffusionSurrogate, sampler: str, schedule: str) -> None:
    """Mean resultant length, direction and both variances within 5 standard errors at n = 20,000."""
    n, exact.schedule = 20_000, schedule
    steps = 1000 if sampler == "ancestral" else 20
    features, _ = exact.sample(n, 3, sampler=sampler, n_steps=steps, log_density=False)
    angle, x, y = features.double().T
    centred = torch.stack([torch.cos(angle - MU), torch.sin(angle - MU)])
    expected = torch.tensor([iv(1, KAPPA) / iv(0, KAPPA), 0.0], dtype=torch.float64)
    error = centred.std(1) / math.sqrt(n)
    assert ((centred.mean(1) - expected).abs() < 5 * error + 2e-3).all()  # 2e-3: one step of 1000 in the noise level
    for values, sd in ((x, SIGMA), (y, 1.7)):
        assert abs(float(values.var()) / sd**2 - 1) < 5 * math.sqrt(2 / n) + 4e-3
        assert abs(float(values.mean())) < 5 * sd / math.sqrt(n)


def test_torus_velocity_is_the_score_of_the_wrapped_normal() -> None:
    delta = torch.linspace(-3.1, 3.1, 41, dtype=torch.float64)
    for phi in (0.05, 0.5, 0.9, 1.2, 1.3, 1.5):
        tau = float(torus_sd(torch.tensor(phi, dtype=torch.float64)))
        images = delta[:, None] + 2 * math.pi * torch.arange(-40, 41, dtype=torch.float64)
        share = torch.softmax(-(images**2) / (2 * tau**2), dim=1)
        expected = math.tan(phi) * (share * images).sum(1) / tau**2
        found = torus_velocity(delta, torch.full_like(delta, phi))
        assert (found - expected).abs().max() < 1e-9


def test_schedules_run_from_data_to_prior() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    for schedule in ("cosine", "linear"):
        phi = noise_angle(t, schedule)
        assert float(phi[0]) < 1e-6 and (phi.diff() > 0).all() and HALF_PI - 0.01 < float(phi[-1]) <= HALF_PI


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> DiffusionSurrogate:
    """A surrogate of two correlated, bimodal angles, trained for a few seconds."""
    rng = np.random.default_rng(0)
    first = np.where(rng.random(20_000) < 0.3, rng.vonmises(2.9, 6, 20_000), rng.vonmises(-1, 4, 20_000))
    second = rng.vonmises(np.pi, 3, 20_000) + 0.5 * np.sin(first)
    data = torch.as_tensor(np.stack([first, second], axis=1))
    torch.manual_seed(0)
    surrogate = DiffusionSurrogate(2, 0, hidden=48, depth=1)
    config = TrainConfig(n_steps=400, batch_size=512, learning_rate=3e-3, warmup_steps=20, validate_every=400)
    weights = torch.ones(len(data))
    directory = tmp_path_factory.mktemp("trained")
    group = ProcessGroup(0, 1, torch.device("cpu"))
    items = TrainingSet(data, weights)
    trainer = Trainer(surrogate, config, items, items, Path(directory), group, 1)
    return trainer.run()  # type: ignore[return-value]


def test_trained_density_integrates_to_one_over_the_torus(trained: DiffusionSurrogate) -> None:
    """The trapezoidal rule on a periodic function converges faster than any power: 96 x 96 points are plenty."""
    grid = -np.pi + 2 * np.pi * np.arange(96) / 96
    points = torch.as_tensor(np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2))
    log_q = trained.log_density(points, n_steps=16)
    integral = float(torch.exp(log_q).sum()) * (2 * math.pi / 96) ** 2
    assert integral == pytest.approx(1, abs=1e-3)


def test_samples_follow_the_density_that_is_reported_for_them(trained: DiffusionSurrogate) -> None:
    features, log_q = trained.sample(3000, 5, n_steps=16)
    assert log_q is not None
    assert (trained.log_density(features, n_steps=16) - log_q).abs().median() < 5e-3
    # E_q[1/q] over the samples is the area of the torus, within 5 standard errors
    inverse = torch.exp(-log_q)
    inside = torch.isfinite(inverse)
    clipped_area = float(((log_q > -6) * inverse)[inside].mean())
    grid = -np.pi + 2 * np.pi * np.arange(96) / 96
    points = torch.as_tensor(np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2))
    area = float((trained.log_density(points, n_steps=16) > -6).double().mean()) * (2 * math.pi) ** 2
    error = float(((log_q > -6) * inverse)[inside].std()) / math.sqrt(len(log_q))
    assert abs(clipped_area - area) < 5 * error + 0.02 * area  # 2 %: cells of the grid that the contour cuts
