"""Generator and critics of time series: convolutions in time, coarse to fine and fine to coarse, and tuples of frames.

None takes statistics over a batch, and every operation can be differentiated twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

_MARGIN = 2  # frames that the two convolutions of a block cost on either side
_LIFT = 1  # and the one that reads the latent sequence
FADING = (2.0, 16.0, 128.0)  # frames in which a generator forgets the frame that it starts from


def draw_weights(network: nn.Module) -> None:
    """Draw weights with variance 1 / fan-in and set biases to zero.

    With these, untrained series of any length have a variance of order one, as standardised data do, and an untrained
    critic has gradients of a norm of order one, which the penalty asks for. torch's own defaults make both ten times smaller.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv1d | nn.Linear):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _skip(inward: int, outward: int) -> nn.Module:
    return nn.Identity() if inward == outward else nn.Conv1d(inward, outward, 1)


class Refinement(nn.Module):
    """Twice as many frames, with inputs of their own (noise, and what guides): x + W2 silu(W1 silu(x) + W0 own), x repeated."""

    def __init__(self, inward: int, outward: int, n_own: int) -> None:
        super().__init__()
        self.own, self.skip = nn.Conv1d(n_own, outward, 3), _skip(inward, outward)
        self.first, self.second = nn.Conv1d(inward, outward, 3), nn.Conv1d(outward, outward, 3)

    def forward(self, x: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Shapes (n, inward, n_coarse), (n, n_own, n_fine + 4) -> (n, outward, n_fine)."""
        x = x.repeat_interleave(2, dim=2)[:, :, : own.shape[2]]
        change = self.first(nn.functional.silu(x)) + self.own(own)
        out: torch.Tensor = self.skip(x)[:, :, _MARGIN:-_MARGIN] + self.second(nn.functional.silu(change))
        return out


class Generator(nn.Module):
    """Time series of any length from noise: a coarse latent sequence, whose frames each level doubles.

    Each level adds noise channels of its own: so slow motions come from the latent sequence and the coarse levels, and fast
    fluctuations need not be unfolded from them. All weights act alike on all frames and nothing is padded (a level makes a
    margin more than the next one keeps), so one pass makes a stationary series as long as the noise is.

    What guides a series is a further input of every level: labels, the same at all frames, and the frame that it starts from,
    which fades with the time from there (`FADING` frames). A series with a start is stationary once that has faded.

    Parameters
    ----------
    widths : sequence of int
        Hidden channels of each level, coarsest first; the frames of one are half of the next one's.
    latent : int
        Channels of the latent sequence.
    n_noise : int
        Channels of the noise of the finer levels.
    n_conditions : int
        Labels that a series depends on.
    starts : bool
        Whether it continues a given frame.
    """

    def __init__(
        self, n_channels: int, widths: Sequence[int], latent: int, n_noise: int, n_conditions: int = 0, starts: bool = False
    ) -> None:
        super().__init__()
        self.n_channels, self.latent, self.noise_channels = n_channels, latent, n_noise
        n_guides = n_conditions + (len(FADING) * (n_channels + 1) if starts else 0)
        self.lift = nn.Conv1d(latent + n_guides, widths[0], 1 + 2 * _LIFT)
        self.first, self.second = nn.Conv1d(widths[0], widths[0], 3), nn.Conv1d(widths[0], widths[0], 3)
        self.levels = nn.ModuleList([Refinement(a, b, n_noise + n_guides) for a, b in itertools.pairwise(widths)])
        self.out = nn.Conv1d(widths[-1], n_channels, 1)
        draw_weights(self)
        # after draw_weights: of each channel, how fast a series leaves the frame that it starts from
        self.leaving = nn.Parameter(torch.full((n_channels,), math.log(FADING[1]))) if starts else None

    def shapes(self, n_frames: int) -> list[tuple[int, int]]:
        """Channels and frames of the noise of each level, coarsest first, that `n_frames` frames need."""
        frames = [n_frames]
        for _ in self.levels:
            frames.insert(0, -(-(frames[0] + 2 * _MARGIN) // 2))
        coarse = (self.latent, frames[0] + 2 * (_MARGIN + _LIFT))
        return [coarse, *((self.noise_channels, n + 2 * _MARGIN) for n in frames[1:])]

    def n_noise(self, n_frames: int) -> int:
        """Noise values that a series takes."""
        return sum(channels * frames for channels, frames in self.shapes(n_frames))

    def forward(
        self, noise: torch.Tensor, n_frames: int, condition: torch.Tensor | None = None, start: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Series (n, n_frames, n_channels) from standard normal noise (n, n_noise).

        Parameters
        ----------
        condition : torch.Tensor, shape=(n, n_conditions), optional
        start : torch.Tensor, shape=(n, n_channels), optional
            The frame before the first one.
        """
        shapes = self.shapes(n_frames)
        parts = torch.split(noise, [channels * frames for channels, frames in shapes], dim=1)
        drawn = (part.reshape(len(noise), *shape) for part, shape in zip(parts, shapes, strict=True))
        latent, *fine = (self._guided(part, number, condition, start) for number, part in enumerate(drawn))
        x = self.lift(latent)
        x = x[:, :, _MARGIN:-_MARGIN] + self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
        for level, part in zip(self.levels, fine, strict=True):
            x = level(x, part)
        out: torch.Tensor = self.out(nn.functional.silu(x)).transpose(1, 2)
        if start is not None:
            assert self.leaving is not None
            elapsed = torch.arange(1, n_frames + 1, device=out.device, dtype=out.dtype)[:, None]
            out = out + start[:, None] * torch.exp(-elapsed / self.leaving.exp())
        return out

    def _guided(
        self, noise: torch.Tensor, number: int, condition: torch.Tensor | None, start: torch.Tensor | None
    ) -> torch.Tensor:
        """Add what guides the series to the noise of a level (0: the latent sequence) as further channels."""
        n_frames, channels = noise.shape[2], [noise]
        if condition is not None:
            channels.append(condition[:, :, None].expand(-1, -1, n_frames))
        if start is not None:
            fading = self._fading(number, n_frames, noise)
            both = torch.cat([start, torch.ones_like(start[:, :1])], dim=1)
            channels.append((both[:, :, None, None] * fading).flatten(1, 2))
        return torch.cat(channels, dim=1) if len(channels) > 1 else noise

    def _fading(self, number: int, n_frames: int, like: torch.Tensor) -> torch.Tensor:
        """exp(-t / tau) of each tau of `FADING` (n_fading, n_frames), t the frames since the start at frames of a level."""
        scale = 2 ** (len(self.levels) - number)  # frames for each of this level; a level's frame p is the next one's 2 p - 2
        own = torch.arange(n_frames, device=like.device, dtype=like.dtype) - (_MARGIN if number else _MARGIN + _LIFT)
        elapsed = 1 + scale * own - 2 * (scale - 1) + (scale - 1) / 2
        taus = torch.tensor(FADING, device=like.device, dtype=like.dtype)
        return torch.exp(-elapsed.clamp(min=0) / taus[:, None])


class Reduction(nn.Module):
    """Half as many frames: means of two plus W2 silu(W1 silu(x)), the second convolution with stride 2."""

    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.first, self.skip = nn.Conv1d(inward, outward, 3, padding=1), _skip(inward, outward)
        self.second = nn.Conv1d(outward, outward, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (n, inward, n_frames) -> (n, outward, n_frames // 2)."""
        change = self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
        n, x = x.shape[2] // 2 * 2, self.skip(x)
        halved = 0.5 * (x[:, :, 0:n:2] + x[:, :, 1:n:2])  # as avg_pool1d does, whose gradients of gradients cost 13 % of a step
        out: torch.Tensor = halved + change
        return out


class WindowCritic(nn.Module):
    """A number for each time series.

    It reads the means over time of local features at every level, which hold the statistics of the series at every time
    scale, and the few frames of the last level, which hold its course.

    Parameters
    ----------
    widths : sequence of int
        Hidden channels of each level, finest first.
    """

    def __init__(self, n_frames: int, n_channels: int, widths: Sequence[int], n_conditions: int = 0) -> None:
        super().__init__()
        # Means over time change with one frame as 1 / n_frames: this factor gives gradients a norm of order one.
        self.scale = math.sqrt(n_frames)
        self.lift = nn.Conv1d(n_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList([Reduction(a, b) for a, b in itertools.pairwise(widths)])
        last = n_frames >> (len(widths) - 1)
        self.head = nn.Linear(sum(widths) + widths[-1] * last + n_conditions, widths[-1])
        # no bias: it drops out of every difference of values, so its gradient is rounding, which Adam would make a random walk
        self.out = nn.Linear(widths[-1], 1, bias=False)
        draw_weights(self)

    def forward(self, series: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Critic's value (n,) of series (n, n_frames, n_channels)."""
        x = self.lift(series.transpose(1, 2))
        features = [nn.functional.silu(x).mean(dim=2)]
        for level in self.levels:
            x = level(x)
            features.append(nn.functional.silu(x).mean(dim=2))
        features.append(nn.functional.silu(x).flatten(1))
        if condition is not None:
            features.append(condition)
        # The value is a small difference of large numbers: bfloat16 would round it away, and the head is cheap.
        with torch.autocast(device_type=series.device.type, enabled=False):
            joined = torch.cat(features, dim=1).to(self.head.weight.dtype)
            value: torch.Tensor = self.scale * self.out(nn.functional.silu(self.head(joined))).squeeze(1)
        return value


class TupleCritic(nn.Module):
    """A number for each tuple of frames, such as (x_t, x_(t + tau)), at several lags tau.

    Parameters
    ----------
    n_values : int
        Channels times frames of a tuple.
    fourier : int
        Waves cos(w x) and sin(w x) of the values as further inputs, w normal with a standard deviation of `frequency`: networks
        of plain values are slow to see how sharp a density is (Tancik et al. 2020, arXiv 2006.10739).
    """

    frequencies: torch.Tensor

    def __init__(
        self, n_values: int, n_lags: int, hidden: int, n_conditions: int = 0, fourier: int = 0, frequency: float = 1.0
    ) -> None:
        super().__init__()
        self.lags = nn.Parameter(torch.empty(n_lags, hidden))
        self.register_buffer("frequencies", frequency * torch.randn(n_values, fourier))
        self.first = nn.Linear(n_values + 2 * fourier + n_conditions, hidden)
        self.second, self.third = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, 1, bias=False)
        draw_weights(self)
        nn.init.normal_(self.lags)

    def forward(self, tuples: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Critic's values (n, n_lags, n_tuples) of tuples (n, n_lags, n_tuples, n_values)."""
        with torch.autocast(device_type=tuples.device.type, enabled=False):
            values = tuples.to(self.first.weight.dtype)
            inputs = [values]
            if self.frequencies.shape[1]:
                waves = values @ self.frequencies
                inputs += [torch.cos(waves), torch.sin(waves)]
            if condition is not None:
                inputs.append(condition[:, None, None].expand(*tuples.shape[:3], -1))
            x = nn.functional.silu(self.first(torch.cat(inputs, dim=3)) + self.lags[:, None])
            x = x + nn.functional.silu(self.second(x))
            x = x + nn.functional.silu(self.third(x))
            value: torch.Tensor = self.out(x).squeeze(3)
        return value


class Critics(nn.Module):
    """Critics of several time scales: of whole windows, and of tuples of frames at several lags; one of them may be absent."""

    def __init__(self, window: nn.Module | None, tuples: TupleCritic | None) -> None:
        super().__init__()
        self.window, self.tuples = window, tuples


def tuples_at(series: torch.Tensor, lags: Sequence[int], uniform: torch.Tensor, n_members: int) -> torch.Tensor:
    """Return tuples (n, n_lags, n_tuples, n_members * n_channels) of frames of series (n, n_frames, n_channels).

    Parameters
    ----------
    uniform : torch.Tensor, shape=(n, n_lags, n_tuples)
        In [0, 1): where each tuple begins.
    """
    lag = torch.as_tensor(lags, device=series.device)[None, :, None]
    room = series.shape[1] - (n_members - 1) * lag
    starts = (uniform.to(series.device, torch.float64) * room).long()
    rows = torch.arange(len(series), device=series.device)[:, None, None]
    return torch.cat([series[rows, starts + number * lag] for number in range(n_members)], dim=3)


def by_increments(tuples: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Return tuples as their middle frame and the increments from each frame to the next, these over their spread.

    So a critic whose slope is bounded sees steps as well as positions, though steps over short lags are small.

    Parameters
    ----------
    tuples : torch.Tensor, shape=(n, n_lags, n_tuples, n_members * n_channels)
    spread : torch.Tensor, shape=(n_lags, n_channels)
    """
    n_channels = spread.shape[1]
    members = torch.split(tuples, n_channels, dim=3)
    steps = [(after - before) / spread[:, None] for before, after in itertools.pairwise(members)]
    return torch.cat([members[len(members) // 2], *steps], dim=3)
