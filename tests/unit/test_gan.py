"""The trajectory surrogate: its losses against finite differences and item by item, its files, and what it learns."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from hpc_molgen.errors import InputError
from hpc_molgen.surrogates.base import load_surrogate
from hpc_molgen.surrogates.gan.surrogate import TrajectoryGan

SIZES = {"n_frames": 11, "n_channels": 2, "hidden": 6, "latent": 3}


def small(seed: int = 0, **changes: int | float) -> TrajectoryGan:
    """A small GAN in float64 with biases that are not zero."""
    torch.manual_seed(seed)
    gan = TrajectoryGan(**{**SIZES, **changes}).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in gan.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return gan


def data(gan: TrajectoryGan, n: int, seed: int = 1) -> torch.Tensor:
    shape = (n, gan.hyperparameters["n_frames"], gan.hyperparameters["n_channels"])
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def noise_of(gan: TrajectoryGan, part: str, n: int, seed: int = 2) -> tuple[torch.Tensor, ...]:
    drawn = gan.draw_noise(part, n, torch.Generator().manual_seed(seed))
    assert all(len(values) == n for values in drawn)
    return tuple(values.double() for values in drawn)


@torch.no_grad()
def slopes(gan: TrajectoryGan, series: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Central differences (n_frames, n_channels) of the critic at one series, one value at a time."""
    moves = step * torch.eye(series.numel(), dtype=torch.float64).reshape(-1, *series.shape)
    return ((gan.critic(series + moves) - gan.critic(series - moves)) / (2 * step)).reshape(series.shape)


def test_critic_loss_is_the_formula_with_gradients_by_finite_differences() -> None:
    gan = small(gradient_penalty=7.0)
    batch, (z, share) = data(gan, 5), noise_of(gan, "critic", 5)
    found = gan.loss("critic", batch, (z, share))
    assert found.shape == (5,) and (share >= 0).all() and (share < 1).all()
    with torch.no_grad():
        for index in range(5):
            fake = gan.generator(z[index : index + 1])[0]
            norm = slopes(gan, share[index] * batch[index] + (1 - share[index]) * fake).norm()
            gap = gan.critic(fake[None])[0] - gan.critic(batch[index : index + 1])[0]
            assert float(found[index]) == pytest.approx(float(gap + 7 * (norm - 1) ** 2), rel=1e-7)


def test_gradient_of_the_critic_loss_holds_the_second_derivatives() -> None:
    """Along a random direction of each weight array: the penalty's gradient is a derivative of a derivative."""
    gan = small(gradient_penalty=100.0)  # so that the penalty is most of the loss
    batch, noise = data(gan, 3), noise_of(gan, "critic", 3)
    gan.loss("critic", batch, noise).sum().backward()
    for name, parameter in gan.critic.named_parameters():
        assert parameter.grad is not None
        direction, step, values = torch.randn_like(parameter), 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
            values.append(float(gan.loss("critic", batch, noise).sum().detach()))
            with torch.no_grad():
                parameter.sub_(sign * step * direction)
        slope = (values[0] - values[1]) / (2 * step)
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-5), name


def test_a_flat_critic_has_finite_gradients() -> None:
    gan = small()
    with torch.no_grad():
        gan.critic.out.weight.zero_()
    losses = gan.loss("critic", data(gan, 4), noise_of(gan, "critic", 4))
    losses.sum().backward()
    assert torch.allclose(losses, torch.full_like(losses, 10.0), atol=1e-4)  # |0 - 1|^2 times the penalty's weight
    for parameter in gan.critic.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()


def test_generator_loss_is_minus_the_value_of_what_it_makes() -> None:
    gan = small()
    noise = noise_of(gan, "generator", 4)
    losses = gan.loss("generator", data(gan, 4), noise)
    direct = -gan.critic(gan.generator(noise[0]))
    assert torch.equal(losses, direct)
    expected = torch.autograd.grad(direct.sum(), list(gan.generator.parameters()))
    losses.sum().backward()
    for parameter, gradient in zip(gan.generator.parameters(), expected, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


def test_held_out_loss_is_the_difference_of_values() -> None:
    gan = small()
    batch, noise = data(gan, 4), noise_of(gan, "critic", 4)
    found = gan.held_out_loss(batch, noise)
    assert not found.requires_grad
    assert torch.allclose(found, gan.critic(gan.generator(noise[0])) - gan.critic(batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", ["critic", "generator"])
def test_loss_of_an_item_depends_on_that_item_alone(part: str) -> None:
    gan = small()
    batch, noise = data(gan, 6), noise_of(gan, part, 6)
    together = gan.loss(part, batch, noise)
    for index in range(6):
        row = slice(index, index + 1)
        alone = gan.loss(part, batch[row], tuple(values[row] for values in noise))
        assert float(together[index].detach()) == pytest.approx(float(alone.detach()), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("part", "other"), [("critic", "generator"), ("generator", "critic")])
def test_update_of_a_part_leaves_the_other_alone(part: str, other: str) -> None:
    gan = small()
    gan.loss(part, data(gan, 3), noise_of(gan, part, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in gan.parts()[part].parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in gan.parts()[other].parameters())


def test_penalty_is_in_full_precision_under_autocast() -> None:
    gan = small(hidden=16, n_frames=32).float()
    batch = data(gan, 8).float()
    noise = gan.draw_noise("critic", 8, torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, rounded = gan.penalty(batch), gan.critic.lift(batch.transpose(1, 2))
        losses, values = gan.loss("critic", batch, noise), gan.critic(batch)
    assert rounded.dtype == torch.bfloat16 and mixed.dtype == losses.dtype == values.dtype == torch.float32
    assert torch.equal(mixed, gan.penalty(batch))
    losses.sum().backward()
    found = torch.cat([parameter.grad.flatten() for parameter in gan.critic.parameters() if parameter.grad is not None])
    gan.zero_grad()
    gan.loss("critic", batch, noise).sum().backward()
    exact = torch.cat([parameter.grad.flatten() for parameter in gan.critic.parameters() if parameter.grad is not None])
    assert float(torch.nn.functional.cosine_similarity(found, exact, dim=0)) > 0.99


@pytest.mark.parametrize("n_frames", [4, 5, 8, 9, 37, 64])
def test_any_length_makes_series_of_all_its_noise(n_frames: int) -> None:
    gan = small(n_frames=n_frames, n_channels=3)
    z = noise_of(gan, "generator", 2)[0].requires_grad_()
    series = gan.generator(z)
    assert series.shape == (2, n_frames, 3) and series.dtype == torch.float64
    series.square().sum().backward()
    assert z.grad is not None and (z.grad != 0).all()
    seen = series.detach().requires_grad_()
    gan.critic(seen).sum().backward()
    assert seen.grad is not None and (seen.grad != 0).all()


def test_ends_of_a_series_are_like_its_middle() -> None:
    """Equal noise everywhere gives equal frames everywhere: nothing marks the ends, as padding with zeros would."""
    gan = small(n_frames=37)
    with torch.no_grad():
        gan.generator.coarse.weight.zero_()
        gan.generator.coarse.bias.zero_()
        series = gan.generator(torch.ones((1, gan.generator.n_noise), dtype=torch.float64))
    assert torch.allclose(series, series[:, :1].expand_as(series), rtol=0, atol=1e-12)
    assert series.abs().min() > 1e-3


@pytest.mark.parametrize("n_frames", [32, 1024])
def test_untrained_networks_have_the_scale_of_standardised_data(n_frames: int) -> None:
    """The variance of series and the norm of the critic's gradients are of order one at every length."""
    torch.manual_seed(0)
    gan = TrajectoryGan(n_frames, 2, hidden=32, latent=8)
    series = gan.sample(16, seed=0)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(gan.critic(series).sum(), series)
    assert 0.2 < float(series.detach().var()) < 6
    assert 0.3 < float(gradient.square().sum(dim=(1, 2)).sqrt().mean()) < 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_repeats_by_seed(dtype: torch.dtype) -> None:
    gan = small(n_frames=37).to(dtype)
    gan.sample_batch = 3
    series, log_density = gan.sample(7, seed=5)
    assert log_density is None and series.shape == (7, 37, 2) and series.dtype == dtype and not series.requires_grad
    assert torch.equal(series, gan.sample(7, seed=5, log_density=False)[0])
    assert not torch.isclose(series, gan.sample(7, seed=6)[0]).all(dim=(1, 2)).any()
    assert len({float(item[0, 0]) for item in series}) == 7
    assert gan.sample(0, seed=5)[0].shape == (0, 37, 2)
    with pytest.raises(InputError, match="knows no ln q"):
        gan.sample(7, seed=5, log_density=True)


def test_gan_rebuilds_itself_from_its_file(tmp_path: Path) -> None:
    gan = small(critic_updates=3, gradient_penalty=2.5).float()
    gan.save(tmp_path / "s.safetensors", "gan", "key")
    loaded = load_surrogate(tmp_path / "s.safetensors", "key")
    assert isinstance(loaded, TrajectoryGan) and loaded.hyperparameters == gan.hyperparameters
    assert loaded.updates() == ("critic", "critic", "critic", "generator")
    assert torch.equal(loaded.sample(5, 1)[0], gan.sample(5, 1)[0])
    batch = data(gan, 2).float()
    noise = gan.draw_noise("critic", 2, torch.Generator().manual_seed(3))
    assert torch.equal(loaded.loss("critic", batch, noise), gan.loss("critic", batch, noise))


def test_weights_grow_with_the_logarithm_of_the_length() -> None:
    counts = [sum(p.numel() for p in TrajectoryGan(n, 2, hidden=64, latent=32).parameters()) for n in (64, 512, 4096)]
    assert counts[2] < 3 * counts[0]
    assert counts[2] - counts[1] == counts[1] - counts[0]  # three levels more each time


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_frames", 3), ("n_channels", 0), ("hidden", 0), ("latent", 0), ("critic_updates", 0), ("n_frames", 16.5),
     ("gradient_penalty", 0.0), ("gradient_penalty", -1.0), ("gradient_penalty", math.nan)],
)  # fmt: skip
def test_hyperparameters_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"surrogate\.{name}: {value}; it must be"):
        TrajectoryGan(**{**SIZES, name: value})  # type: ignore[arg-type]


def autoregressive(phi: torch.Tensor, n: int, n_frames: int, generator: torch.Generator) -> torch.Tensor:
    """Stationary AR(1) series (n, n_frames, len(phi)) of unit variance; their autocorrelation at lag k is phi^k."""
    eps = torch.randn((n, n_frames, len(phi)), generator=generator)
    frames = [eps[:, 0]]
    for t in range(1, n_frames):
        frames.append(phi * frames[-1] + torch.sqrt(1 - phi**2) * eps[:, t])
    return torch.stack(frames, dim=1)


def variance_and_autocorrelation(gan: TrajectoryGan) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each channel (n_channels,), about zero, the autocorrelation at lag one."""
    series = gan.sample(4000, seed=9)[0]
    variance = series.square().mean(dim=(0, 1))
    return variance, (series[:, 1:] * series[:, :-1]).mean(dim=(0, 1)) / variance


def train(gan: TrajectoryGan, series: torch.Tensor, n_steps: int, generator: torch.Generator) -> TrajectoryGan:
    """Alternating updates at a falling learning rate; returns the GAN with the moving average of the generator."""
    averaged = copy.deepcopy(gan)
    optimisers = {
        name: torch.optim.Adam(part.parameters(), lr=8e-3, betas=gan.adam_betas) for name, part in gan.parts().items()
    }
    for step in range(n_steps):
        for part in gan.updates():
            items = series[torch.randint(len(series), (48,), generator=generator)]
            loss = gan.loss(part, items, gan.draw_noise(part, len(items), generator)).mean()
            optimisers[part].zero_grad()
            loss.backward()
            optimisers[part].param_groups[0]["lr"] = 4e-3 * (1 + math.cos(math.pi * step / n_steps))
            optimisers[part].step()
        with torch.no_grad():
            for mean, last in zip(averaged.generator.parameters(), gan.generator.parameters(), strict=True):
                mean.lerp_(last, 1 - min(0.95, (1 + step) / (10 + step)))
    return averaged


def test_gan_learns_autoregressive_series() -> None:
    """Over the seeds 0 to 21 the largest errors were 0.38 of a variance and 0.15 of an autocorrelation.

    Untrained networks of these seeds have variances from 0.2 to 5.8 and autocorrelations of 0.4 to 0.9 in both channels; this
    seed is one where all four numbers begin outside of the tolerance.
    """
    phi = torch.tensor([0.9, -0.5])
    generator = torch.Generator().manual_seed(14)
    torch.manual_seed(14)
    gan = TrajectoryGan(32, 2, hidden=8, latent=4, critic_updates=2)
    variance, correlation = variance_and_autocorrelation(gan)
    assert ((variance - 1).abs() > 0.45).all() and ((correlation - phi).abs() > 0.2).all()
    averaged = train(gan, autoregressive(phi, 4096, 32, generator), 100, generator)
    variance, correlation = variance_and_autocorrelation(averaged)
    assert ((variance - 1).abs() < 0.45).all() and ((correlation - phi).abs() < 0.2).all()
