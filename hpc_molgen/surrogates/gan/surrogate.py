"""The trajectory surrogate: a Wasserstein GAN with gradient penalty."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from hpc_molgen.errors import InputError
from hpc_molgen.seeding import torch_generator
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.surrogates.gan.network import Critic, Generator

SAMPLE_VALUES = 2**24  # of the widest hidden layer, at once: 64 MiB in float32


class TrajectoryGan(Surrogate):
    """Whole time series of collective variables from noise, in one shot; it knows no ln q.

    The losses are those of Gulrajani et al. 2017 (arXiv 1704.00028, algorithm 1): the critic's is
    D(G(z)) - D(x) + gradient_penalty (|grad D(x_hat)| - 1)^2 with x_hat on the straight line between x and G(z), the
    generator's is -D(G(z)).

    Parameters
    ----------
    n_frames, n_channels : int
        Shape of a series. Channels are expected to be standardised.
    hidden, latent : int
        Channels of the hidden layers of both networks; length of the latent vector behind the coarse course of a series.
    critic_updates : int
        Updates of the critic for each one of the generator.
    gradient_penalty : float

    Raises
    ------
    InputError
        If a hyperparameter is out of its range.
    """

    of: ClassVar[Literal["structures", "trajectories"]] = "trajectories"
    has_log_density = False
    adam_betas = (0.0, 0.9)
    twice_differentiated = ("critic",)

    def __init__(
        self,
        n_frames: int,
        n_channels: int,
        hidden: int = 64,
        latent: int = 32,
        critic_updates: int = 5,
        gradient_penalty: float = 10.0,
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "n_frames": n_frames, "n_channels": n_channels, "hidden": hidden, "latent": latent,
            "critic_updates": critic_updates, "gradient_penalty": gradient_penalty,
        }  # fmt: skip
        _check(self.hyperparameters)
        self.critic_updates, self.gradient_penalty = critic_updates, gradient_penalty
        self.sample_batch = max(1, SAMPLE_VALUES // (hidden * n_frames))
        self.critic = Critic(n_frames, n_channels, hidden)
        self.generator = Generator(n_frames, n_channels, hidden, latent)

    def parts(self) -> dict[str, nn.Module]:
        return {"critic": self.critic, "generator": self.generator}

    def updates(self) -> tuple[str, ...]:
        return ("critic",) * self.critic_updates + ("generator",)

    def averaged(self) -> tuple[str, ...]:
        return ("generator",)

    def draw_noise(self, part: str, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw what the generator makes a series of (n, n_noise); for the critic also the share (n,) of data in x_hat."""
        normal = torch.randn((n, self.generator.n_noise), generator=generator)
        if part == "generator":
            return (normal,)
        return normal, torch.rand(n, generator=generator)

    def loss(self, part: str, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if part == "generator":
            # Detached weights: the critic takes no part in this update, and nothing in it has to be switched off and on.
            frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
            value: torch.Tensor = torch.func.functional_call(self.critic, frozen, (self.generator(noise[0].to(batch)),))
            return -value
        fake = self._fake(noise[0].to(batch))
        share = noise[1].to(batch)[:, None, None]
        penalty = self.penalty(share * batch + (1 - share) * fake)
        return self._gap(fake, batch) + self.gradient_penalty * penalty

    def penalty(self, series: torch.Tensor) -> torch.Tensor:
        """Squared distance (n,) from one of the norm of the critic's gradient at series (n, n_frames, n_channels)."""
        # bfloat16 would make a gradient of a gradient worthless.
        with torch.enable_grad(), torch.autocast(device_type=series.device.type, enabled=False):
            at = series.detach().requires_grad_()
            # An item's value depends on that item alone, so the gradient of the sum holds the gradient of each.
            (gradient,) = torch.autograd.grad(self.critic(at).sum(), at, create_graph=True)
            norm = torch.sqrt(gradient.square().sum(dim=(1, 2)) + 1e-12)  # the slope of a bare root is infinite at zero
            return (norm - 1).square()

    @torch.no_grad()
    def held_out_loss(self, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """D(G(z)) - D(x) of each item: minus the critic's estimate of the Wasserstein distance (over a Lipschitz constant)."""
        return self._gap(self._fake(noise[0].to(batch)), batch)

    def _gap(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Difference (n,) of the critic's values of generated and real series, both in one call of the critic."""
        values: torch.Tensor = self.critic(torch.cat([fake, real]))
        return values[: len(fake)] - values[len(fake) :]

    @torch.no_grad()
    def _fake(self, noise: torch.Tensor) -> torch.Tensor:
        """Series (n, n_frames, n_channels) in the dtype of the noise, whatever autocast does inside."""
        out: torch.Tensor = self.generator(noise).to(noise.dtype)
        return out

    def sample(self, n: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw `n` series.

        Parameters
        ----------
        n, seed : int
        log_density : bool
            Only false is possible.

        Returns
        -------
        torch.Tensor, shape=(n, n_frames, n_channels); None

        Raises
        ------
        InputError
            If ln q is asked for.
        """
        if options.get("log_density"):
            raise InputError("a trajectory surrogate knows no ln q, so its samples have no weights: set log_density to false")
        generator = torch_generator(seed, "sample")
        like = next(self.parameters())
        series = like.new_empty((n, self.hyperparameters["n_frames"], self.hyperparameters["n_channels"]))
        for rows in torch.split(series, self.sample_batch):
            rows.copy_(self._fake(self.draw_noise("generator", len(rows), generator)[0].to(like)))
        return series, None


def _check(hyperparameters: dict[str, Any]) -> None:
    """Refuse hyperparameters out of range."""
    least = {"n_frames": 4, "n_channels": 1, "hidden": 1, "latent": 1, "critic_updates": 1}
    for name, bound in least.items():
        value = hyperparameters[name]
        if not isinstance(value, int) or value < bound:
            raise InputError(f"surrogate.{name}: {value!r}; it must be a whole number of at least {bound}")
    penalty = hyperparameters["gradient_penalty"]
    if not (math.isfinite(penalty) and penalty > 0):
        raise InputError(f"surrogate.gradient_penalty: {penalty!r}; it must be a positive number (10 is usual)")
