"""The trajectory surrogate: a Wasserstein GAN with gradient penalty."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from hpc_molgen.errors import InputError
from hpc_molgen.seeding import torch_generator
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.surrogates.gan.network import Critics, Generator, TupleCritic, WindowCritic, by_increments, tuples_at
from hpc_molgen.surrogates.gan.perceptron import PerceptronCritic, PerceptronGenerator

COARSEST = 8  # frames that the critic of windows may read at once
SLICES = 64
SAMPLE_VALUES = 2**24  # of the widest hidden layer, at once: 64 MiB in float32


class TrajectoryGan(Surrogate):
    """Whole time series of collective variables from noise, in one shot; it knows no ln q.

    The losses are those of Gulrajani et al. 2017 (arXiv 1704.00028, algorithm 1): a critic's is
    D(G(z)) - D(x) + gradient_penalty (|grad D(x_hat)| - 1)^2 with x_hat on the straight line between x and G(z), the
    generator's is -D(G(z)). There are critics of several time scales, whose losses add up: one of tuples of frames
    (x_t, x_(t + tau), x_(t + 2 tau)) at lags tau = 1, 2, 4, ... (averaged over lags and tuples), and one of whole windows.
    The first sees transition densities and how one step depends on the last one, and is much cheaper; it sees tuples as a
    frame and the steps between frames, these standardised at each lag (`adapt`).

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
    fourier : int
    frequency : float
        Waves of the values of a tuple that its critic is given, and the standard deviation of their angular frequencies.
    window_weight, tuple_weight : float
        Of the two losses; 0 leaves a critic out, though not the last one.
    critic_updates : int
        Updates of the critics for each one of the generator.
    gradient_penalty : float
    noise : int
        Noise channels of each level finer than the latent sequence.
    n_conditions : int
        Labels that a series depends on: the last ones of the channels of a batch, the same at all frames.
    start_frame : bool
        Whether a series continues a given frame, so that series can be joined. The windows of a batch are a frame longer then:
        the first one is given. The critics judge it with the others, and a quarter of the tuples begins at it.

    Raises
    ------
    InputError
        If a hyperparameter is out of its range.
    """

    of: ClassVar[Literal["structures", "trajectories"]] = "trajectories"
    has_log_density = False
    spread: torch.Tensor
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
        fourier: int = 32,
        frequency: float = 1.0,
        window_weight: float = 0.0,
        tuple_weight: float = 1.0,
        critic_updates: int = 5,
        gradient_penalty: float = 10.0,
        noise: int = 4,
        n_conditions: int = 0,
        start_frame: bool = False,
    ) -> None:
        super().__init__()
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.hyperparameters = given
        _check(given)
        self.critic_updates, self.gradient_penalty = critic_updates, gradient_penalty
        self.n_conditions, self.start_frame = n_conditions, start_frame
        self.window_weight, self.tuple_weight, self.n_tuples = window_weight, tuple_weight, tuples
        self.lag_frames = [
            2**k for k in range(lags) if 2**k * 2 * (tuple_frames - 1) <= n_frames and architecture == "convolutional"
        ]
        self.sample_batch = max(1, SAMPLE_VALUES // (max(hidden, n_channels) * n_frames))
        window: nn.Module
        judged = n_frames + start_frame
        if architecture == "convolutional":
            n_levels = min(levels, max(1, n_frames.bit_length() - 2))
            widths = [min(widest, hidden * 2**level) for level in range(n_levels + 1)]
            halvings = max(1, (n_frames // COARSEST).bit_length())
            critic_widths = [min(widest, hidden * 2**level) for level in range(halvings + 1)]
            window = WindowCritic(judged, n_channels, critic_widths, n_conditions)
            self.generator: Generator | PerceptronGenerator = Generator(
                n_channels, widths[::-1], latent, noise, n_conditions, start_frame
            )
        else:
            window = PerceptronCritic(judged, n_channels, hidden, n_conditions)
            n_given = n_conditions + n_channels * start_frame
            self.generator = PerceptronGenerator(n_frames, n_channels, hidden, latent, n_given)
        self.tuple_frames = tuple_frames
        sizes = n_channels * tuple_frames, len(self.lag_frames), tuple_hidden, n_conditions, fourier, frequency
        self.register_buffer("spread", torch.ones(len(self.lag_frames), n_channels))
        of_tuples = TupleCritic(*sizes) if self.lag_frames and tuple_weight else None
        if of_tuples is None:
            self.window_weight = window_weight or 1.0  # the only critic there is
        self.critic = Critics(window if self.window_weight else None, of_tuples)

    def adapt(self, items: torch.Tensor) -> None:
        """Learn how far frames at each lag are apart, of windows (n, n_frames, ...)."""
        series, *_ = self._divide(items)
        for number, lag in enumerate(self.lag_frames):
            apart = (series[:, lag:] - series[:, :-lag]).std(dim=(0, 1))
            self.spread[number] = torch.where(apart > 0, apart, torch.ones_like(apart))

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
        series, condition, start = self._divide(batch)
        if part == "generator":
            # Detached weights: the critics take no part in this update, and nothing in them has to be switched off and on.
            frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
            fake = _joined(start, self.generator(noise[0].to(batch), self.hyperparameters["n_frames"], condition, start))
            return -torch.func.functional_call(_Judged(self), frozen, (fake, noise[1], condition))  # type: ignore[no-any-return]
        fake = _joined(start, self._fake(noise[0].to(batch), condition, start))
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
        series, condition, start = self._divide(batch)
        fake = _joined(start, self._fake(noise[0].to(batch), condition, start))
        if self.critic.window is not None:
            return _gap(self.critic.window, fake, series, condition)
        assert self.critic.tuples is not None
        real, made = (self.tuples(x, noise[1]) for x in (series, fake))
        return _gap(self.critic.tuples, made, real, condition).mean(dim=(1, 2))

    @torch.no_grad()
    def held_out_distance(self, batch: torch.Tensor, seed: int) -> float:
        """Sliced Wasserstein-1 distance of generated from held-out pairs (x_t, x_(t + tau) - x_t), averaged over lags.

        Lags are 1, 2, 4, ... up to a quarter of a window. Steps are in units of their spread in the held-out windows, and
        positions as they are, along `SLICES` random directions (Bonneel et al. 2015, J. Math. Imaging Vis. 51, 22).
        """
        series, condition, start = self._divide(batch)
        generator = torch_generator(seed, "held-out distance")
        n_frames, n_channels = self.hyperparameters["n_frames"], series.shape[2]
        noise = torch.randn((len(batch), self.generator.n_noise(n_frames)), generator=generator).to(batch)
        made = _joined(start, self._fake(noise, condition, start))
        directions = torch.randn((2 * n_channels, SLICES), generator=generator).to(batch)
        directions = directions / directions.norm(dim=0)
        lags = [2**k for k in range(n_frames.bit_length()) if 2**k <= max(1, n_frames // 4)]
        total = 0.0
        for lag in lags:
            begins = torch.randint(series.shape[1] - lag, (len(batch), 8), generator=generator).to(batch.device)
            rows = torch.arange(len(batch), device=batch.device)[:, None]
            steps = [(x[rows, begins], x[rows, begins + lag] - x[rows, begins]) for x in (series, made)]
            spread = steps[0][1].std(dim=(0, 1)).clamp(min=1e-6)
            pairs = [torch.cat([at, step / spread], dim=2).flatten(0, 1) @ directions for at, step in steps]
            real, generated = (pair.sort(dim=0).values for pair in pairs)
            total += float((real - generated).abs().mean()) / len(lags)
        return total

    def tuples(self, series: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        """Tuples (n, n_lags, n_tuples, tuple_frames * n_channels) of series, as the critic sees them.

        They begin where the numbers `begins` (n, n_lags, n_tuples) in [0, 1) say.
        """
        if self.start_frame:
            begins = begins * (torch.arange(self.n_tuples, device=begins.device) % 4 > 0)
        return by_increments(tuples_at(series, self.lag_frames, begins, self.tuple_frames), self.spread)

    def _divide(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Series, conditions (n, n_conditions) or None, and first frames (n, n_channels) or None, of a batch."""
        n_channels = self.hyperparameters["n_channels"]
        series = batch[:, :, :n_channels]
        return series, batch[:, 0, n_channels:] if self.n_conditions else None, series[:, 0] if self.start_frame else None

    @torch.no_grad()
    def _fake(
        self,
        noise: torch.Tensor,
        condition: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        n_frames: int | None = None,
    ) -> torch.Tensor:
        """Series (n, n_frames, n_channels) in the dtype of the noise, whatever autocast does inside."""
        length = n_frames or self.hyperparameters["n_frames"]
        out: torch.Tensor = self.generator(noise, length, condition, start).to(noise.dtype)
        return out

    def sample(self, n: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw `n` series.

        Parameters
        ----------
        n, seed : int
        n_frames : int, optional
            Of each series; as trained by default.
        conditions : torch.Tensor, shape=(n, n_conditions), optional
        start : torch.Tensor, shape=(n, n_channels), optional
            The frames that the series continue, which are not part of them.
        segment : int, optional
            Make the series of segments of so many frames, each of which continues the last frame of the one before it. As many
            as trained by default, of a surrogate that was trained to continue a frame: what it makes further away from there
            depends on times since that frame that it has never seen. All frames at once otherwise.
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
        start, longest = options.get("start"), trained if self.start_frame else n_frames
        segment = min(options.get("segment") or longest, n_frames)
        if (start is not None) != self.start_frame or (segment < n_frames and not self.start_frame):
            known = "begins at frames that it is given (start)" if self.start_frame else "was not trained to continue frames"
            raise InputError(f"this surrogate {known}: surrogate.start_frame")
        generator, like = torch_generator(seed, "sample"), next(self.parameters())
        series = like.new_empty((n, n_frames, self.hyperparameters["n_channels"]))
        batch = max(1, self.sample_batch * trained // segment)
        for first in range(0, n, batch):
            rows = series[first : first + batch]
            own, last = (None if part is None else part[first : first + batch].to(like) for part in (conditions, start))
            for begin in range(0, n_frames, segment):
                piece = rows[:, begin : begin + segment]
                n_noise = self.generator.n_noise(piece.shape[1])
                noise = torch.randn((len(rows), n_noise), generator=generator).to(like)
                piece.copy_(self._fake(noise, own, last, piece.shape[1]))
                last = piece[:, -1] if self.start_frame else None
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


def _joined(start: torch.Tensor | None, series: torch.Tensor) -> torch.Tensor:
    """Put the first frame before series that continue it."""
    return series if start is None else torch.cat([start[:, None].to(series), series], dim=1)


def _gap(critic: nn.Module, fake: torch.Tensor, real: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
    """Difference of a critic's values of generated and real items, both in one call of the critic."""
    both = None if condition is None else torch.cat([condition, condition])
    values: torch.Tensor = critic(torch.cat([fake, real]), both)
    return values[: len(fake)] - values[len(fake) :]


def _check(hyperparameters: dict[str, Any]) -> None:
    """Refuse hyperparameters out of range."""
    least = {
        "n_frames": 4, "n_channels": 1, "hidden": 1, "widest": 1, "levels": 1, "latent": 1, "lags": 0, "tuples": 1,
        "tuple_frames": 2, "tuple_hidden": 1, "fourier": 0, "critic_updates": 1, "noise": 1, "n_conditions": 0,
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
