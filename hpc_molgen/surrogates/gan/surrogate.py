"""The trajectory surrogate: a Wasserstein GAN with gradient penalty."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from hpc_molgen.errors import InputError
from hpc_molgen.seeding import torch_generator
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.surrogates.gan.network import Critics, Generator, TupleCritic, WindowCritic, tuples_at
from hpc_molgen.surrogates.gan.perceptron import PerceptronCritic, PerceptronGenerator

COARSEST = 8  # frames that the critic of windows may read at once
SAMPLE_VALUES = 2**24  # of the widest hidden layer, at once: 64 MiB in float32


class TrajectoryGan(Surrogate):
    """Whole time series of collective variables from noise, in one shot; it knows no ln q.

    The losses are those of Gulrajani et al. 2017 (arXiv 1704.00028, algorithm 1): a critic's is
    D(G(z)) - D(x) + gradient_penalty (|grad D(x_hat)| - 1)^2 with x_hat on the straight line between x and G(z), the
        generator's is -D(G(z)). There are critics of several time scales, whose losses add up: one of tuples of frames
    (x_t, x_(t + tau), x_(t + 2 tau)) at lags tau = 1, 2, 4, ... (averaged over lags and tuples), and one of whole windows.
    The first sees transition densities and how one step depends on the last one, and is much cheaper.

    Parameters
    ----------
    n_frames : int
        Of the windows trained on; what is generated may be of any length (of this one for perceptrons).
    n_channels : int
        Of a series, expected to be standardised.
    architecture : {"convolutional", "perceptron"}
        "perceptron": the published networks, a critic of windows alone and no average of the generator's weights.
    hidden, widest : int
        Channels of the finest level of generator and critic; they double with each coarser level up to `widest`.
    levels : int
        Times that the generator doubles its frames. (The critic of windows halves them down to a few.)
    latent : int
        Channels of the coarse latent sequence (of the latent vector for perceptrons).
    lags : int
        Lags 1, 2, 4, ... of the critic of tuples, of which those are left out that do not fit a window twice; 0 for none.
    tuples, tuple_frames : int
        Tuples for each lag and window, and frames of each: 2 for pairs.
    tuple_hidden : int
        Width of the critic of tuples.
    window_weight, tuple_weight : float
        Of the two losses; 0 leaves a critic out, though not the last one.
    critic_updates : int
        Updates of the critics for each one of the generator.
    gradient_penalty : float
    n_conditions : int
        Numbers that a series depends on: the last ones of the channels of a batch, the same at all frames.

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
        architecture: str = "convolutional",
        hidden: int = 16,
        widest: int = 128,
        levels: int = 4,
        latent: int = 16,
        lags: int = 6,
        tuples: int = 8,
        tuple_frames: int = 3,
        tuple_hidden: int = 64,
        window_weight: float = 0.0,
        tuple_weight: float = 1.0,
        critic_updates: int = 5,
        gradient_penalty: float = 10.0,
        n_conditions: int = 0,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.hyperparameters = given
        _check(given)
        self.critic_updates, self.gradient_penalty, self.n_conditions = critic_updates, gradient_penalty, n_conditions
        self.window_weight, self.tuple_weight, self.n_tuples = window_weight, tuple_weight, tuples
        self.lag_frames = [
            2**k for k in range(lags) if 2**k * 2 * (tuple_frames - 1) <= n_frames and architecture == "convolutional"
        ]
        self.sample_batch = max(1, SAMPLE_VALUES // (max(hidden, n_channels) * n_frames))
        window: nn.Module
        if architecture == "convolutional":
            n_levels = min(levels, max(1, n_frames.bit_length() - 2))
            widths = [min(widest, hidden * 2**level) for level in range(n_levels + 1)]
            halvings = max(1, (n_frames // COARSEST).bit_length())
            critic_widths = [min(widest, hidden * 2**level) for level in range(halvings + 1)]
            window = WindowCritic(n_frames, n_channels, critic_widths, n_conditions)
            self.generator: Generator | PerceptronGenerator = Generator(n_channels, widths[::-1], latent, n_conditions)
        else:
            window = PerceptronCritic(n_frames, n_channels, hidden, n_conditions)
            self.generator = PerceptronGenerator(n_frames, n_channels, hidden, latent, n_conditions)
        self.tuple_frames = tuple_frames
        sizes = n_channels * tuple_frames, len(self.lag_frames), tuple_hidden, n_conditions
        of_tuples = TupleCritic(*sizes) if self.lag_frames and tuple_weight else None
        if of_tuples is None:
            self.window_weight = window_weight or 1.0  # the only critic there is
        self.critic = Critics(window if self.window_weight else None, of_tuples)

    def parts(self) -> dict[str, nn.Module]:
        return {"critic": self.critic, "generator": self.generator}

    def updates(self) -> tuple[str, ...]:
        return ("critic",) * self.critic_updates + ("generator",)

    def averaged(self) -> tuple[str, ...]:
        return ("generator",) if isinstance(self.generator, Generator) else ()

    def draw_noise(self, part: str, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw what the generator makes a series of (n, n_noise), and where tuples begin (n, n_lags, n_tuples).

        For the critics also the shares of data in x_hat: (n,) of windows, (n, n_lags, n_tuples) of tuples.
        """
        n_frames, shape = self.hyperparameters["n_frames"], (n, len(self.lag_frames), self.n_tuples)
        normal = torch.randn((n, self.generator.n_noise(n_frames)), generator=generator)
        begins = torch.rand(shape, generator=generator)
        if part == "generator":
            return normal, begins
        return normal, begins, torch.rand(n, generator=generator), torch.rand(shape, generator=generator)

    def loss(self, part: str, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        series, condition = self._divide(batch)
        if part == "generator":
            # Detached weights: the critics take no part in this update, and nothing in them has to be switched off and on.
            frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
            fake = self.generator(noise[0].to(batch), self.hyperparameters["n_frames"], condition)
            return -torch.func.functional_call(_Judged(self), frozen, (fake, noise[1], condition))  # type: ignore[no-any-return]
        fake = self._fake(noise[0].to(batch), condition)
        total = batch.new_zeros(len(batch))
        if self.critic.window is not None:
            share = noise[2].to(batch)[:, None, None]
            total = total + self.window_weight * self._critic_loss(self.critic.window, series, fake, share, condition)
        if self.critic.tuples is not None:
            real, made = (self.tuples(x, noise[1]) for x in (series, fake))
            of_tuples = self._critic_loss(self.critic.tuples, real, made, noise[3].to(batch)[..., None], condition)
            total = total + self.tuple_weight * of_tuples.mean(dim=(1, 2))
        return total

    def _critic_loss(
        self, critic: nn.Module, real: torch.Tensor, fake: torch.Tensor, share: torch.Tensor, condition: torch.Tensor | None
    ) -> torch.Tensor:
        """Loss of a critic of windows (n,), or of tuples (n, n_lags, n_tuples)."""
        penalty = self.penalty(share * real + (1 - share) * fake, condition, critic)
        return _gap(critic, fake, real, condition) + self.gradient_penalty * penalty

    def penalty(self, items: torch.Tensor, condition: torch.Tensor | None, critic: nn.Module) -> torch.Tensor:
        """Squared distance from one of the norm of a critic's gradient at windows (n,) or tuples (n, n_lags, n_tuples)."""
        # bfloat16 would make a gradient of a gradient worthless.
        with torch.enable_grad(), torch.autocast(device_type=items.device.type, enabled=False):
            at = items.detach().requires_grad_()
            # An item's value depends on that item alone, so the gradient of the sum holds the gradient of each.
            (gradient,) = torch.autograd.grad(critic(at, condition).sum(), at, create_graph=True)
            inner = (1, 2) if items.dim() == 3 else (3,)
            norm = torch.sqrt(gradient.square().sum(dim=inner) + 1e-12)  # the slope of a bare root is infinite at zero
            return (norm - 1).square()

    @torch.no_grad()
    def held_out_loss(self, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """D(G(z)) - D(x) of each item: minus the critic's estimate of the Wasserstein distance (over a Lipschitz constant)."""
        series, condition = self._divide(batch)
        fake = self._fake(noise[0].to(batch), condition)
        if self.critic.window is not None:
            return _gap(self.critic.window, fake, series, condition)
        assert self.critic.tuples is not None
        real, made = (self.tuples(x, noise[1]) for x in (series, fake))
        return _gap(self.critic.tuples, made, real, condition).mean(dim=(1, 2))

    def tuples(self, series: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        """Tuples (n, n_lags, n_tuples, tuple_frames * n_channels) of series, beginning where the numbers in [0, 1) say."""
        return tuples_at(series, self.lag_frames, begins, self.tuple_frames)

    def _divide(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Series and conditions (n, n_conditions), or None, of a batch (n, n_frames, n_channels + n_conditions)."""
        if not self.n_conditions:
            return batch, None
        return batch[:, :, : -self.n_conditions], batch[:, 0, -self.n_conditions :]

    @torch.no_grad()
    def _fake(self, noise: torch.Tensor, condition: torch.Tensor | None = None, n_frames: int | None = None) -> torch.Tensor:
        """Series (n, n_frames, n_channels) in the dtype of the noise, whatever autocast does inside."""
        out: torch.Tensor = self.generator(noise, n_frames or self.hyperparameters["n_frames"], condition).to(noise.dtype)
        return out

    def sample(self, n: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw `n` series.

        Parameters
        ----------
        n, seed : int
        n_frames : int, optional
            Of each series; as trained by default.
        conditions : torch.Tensor, shape=(n, n_conditions), optional
        log_density : bool
            Only false is possible.

        Returns
        -------
        torch.Tensor, shape=(n, n_frames, n_channels); None

        Raises
        ------
        InputError
            If ln q is asked for, or a length or conditions that this surrogate cannot serve.
        """
        if options.get("log_density"):
            raise InputError("a trajectory surrogate knows no ln q, so its samples have no weights: set log_density to false")
        trained, conditions = self.hyperparameters["n_frames"], options.get("conditions")
        n_frames = options.get("n_frames") or trained
        if n_frames != trained and not isinstance(self.generator, Generator):
            raise InputError(f"sample.n_frames {n_frames}: perceptrons make the {trained} frames that they were trained on")
        if (0 if conditions is None else conditions.shape[1]) != self.n_conditions:
            raise InputError(f"this surrogate wants {self.n_conditions} conditions for each series")
        generator, like = torch_generator(seed, "sample"), next(self.parameters())
        series = like.new_empty((n, n_frames, self.hyperparameters["n_channels"]))
        batch, n_noise = max(1, self.sample_batch * trained // n_frames), self.generator.n_noise(n_frames)
        for first in range(0, n, batch):
            rows = series[first : first + batch]
            own = None if conditions is None else conditions[first : first + batch].to(like)
            rows.copy_(self._fake(torch.randn((len(rows), n_noise), generator=generator).to(like), own, n_frames))
        return series, None


class _Judged(nn.Module):
    """What the critics think of generated series, as a module that `functional_call` can give their weights to."""

    def __init__(self, gan: TrajectoryGan) -> None:
        super().__init__()
        self.window, self.tuples = gan.critic.window, gan.critic.tuples
        self._cut, self._weights = gan.tuples, (gan.window_weight, gan.tuple_weight)

    def forward(self, series: torch.Tensor, begins: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        value = series.new_zeros(len(series))
        if self.window is not None:
            value = value + self._weights[0] * self.window(series, condition)
        if self.tuples is not None:
            of_tuples = self.tuples(self._cut(series, begins), condition)
            value = value + self._weights[1] * of_tuples.mean(dim=(1, 2))
        return value


def _gap(critic: nn.Module, fake: torch.Tensor, real: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    """Difference of a critic's values of generated and real items, both in one call of the critic."""
    both = None if condition is None else torch.cat([condition, condition])
    values: torch.Tensor = critic(torch.cat([fake, real]), both)
    return values[: len(fake)] - values[len(fake) :]


def _check(hyperparameters: dict[str, Any]) -> None:
    """Refuse hyperparameters out of range."""
    least = {
        "n_frames": 4, "n_channels": 1, "hidden": 1, "widest": 1, "levels": 1, "latent": 1, "lags": 0, "tuples": 1,
        "tuple_frames": 2, "tuple_hidden": 1, "critic_updates": 1, "n_conditions": 0,
    }  # fmt: skip
    for name, bound in least.items():
        value = hyperparameters[name]
        if not isinstance(value, int) or value < bound:
            raise InputError(f"surrogate.{name}: {value!r}; it must be a whole number of at least {bound}")
    penalty = hyperparameters["gradient_penalty"]
    if not (math.isfinite(penalty) and penalty > 0):
        raise InputError(f"surrogate.gradient_penalty: {penalty!r}; it must be a positive number (10 is usual)")
    architecture = hyperparameters["architecture"]
    if architecture not in ("convolutional", "perceptron"):
        raise InputError(f"surrogate.architecture: there is no '{architecture}'; there are: convolutional, perceptron")
