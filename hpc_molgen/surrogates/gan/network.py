"""Generator and critic of time series: convolutions in time, from coarse to fine and from fine to coarse.

Both hold a number of weights that grows with hidden^2 log2(n_frames). Neither takes statistics over a batch, and every
operation can be differentiated twice.
"""

from __future__ import annotations

import math

import torch
from torch import nn

COARSEST = 8  # frames that a dense layer may make or read at once
_MARGIN = 2  # frames that the two convolutions of a block cost on either side


def generator_frames(n_frames: int) -> list[int]:
    """Frames at each level of a generator, coarsest first: what the next level needs, which halves on the way down.

    Convolutions are not padded: a level makes a margin more than the next one keeps, so that zeros beyond the ends never
    mark the first and last frames of a stationary series.
    """
    frames = [n_frames]
    while frames[0] > COARSEST or len(frames) < 2:
        frames.insert(0, -(-(frames[0] + 2 * _MARGIN) // 2))
    return frames


def critic_frames(n_frames: int) -> list[int]:
    """Frames at each level of a critic, finest first."""
    frames = [n_frames]
    while frames[-1] > COARSEST or len(frames) < 2:
        frames.append(frames[-1] // 2)
    return frames


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


class Refinement(nn.Module):
    """Twice as many frames, with noise of their own: x + W2 silu(W1 silu(x) + W0 noise), x repeated."""

    def __init__(self, hidden: int, n_noise: int) -> None:
        super().__init__()
        self.noise = nn.Conv1d(n_noise, hidden, 3)
        self.first, self.second = nn.Conv1d(hidden, hidden, 3), nn.Conv1d(hidden, hidden, 3)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Shapes (n, hidden, n_coarse), (n, n_noise, n_fine + 4) -> (n, hidden, n_fine)."""
        x = x.repeat_interleave(2, dim=2)[:, :, : noise.shape[2]]
        change = self.first(nn.functional.silu(x)) + self.noise(noise)
        out: torch.Tensor = x[:, :, _MARGIN:-_MARGIN] + self.second(nn.functional.silu(change))
        return out


class Generator(nn.Module):
    """Time series from noise: a dense layer makes a few coarse frames of a latent vector, then each level doubles them.

    Each level adds noise channels of its own, one for each channel of the series: so slow motions come from the latent
    vector and the coarse levels, and fast fluctuations need not be unfolded from a global vector.
    """

    def __init__(self, n_frames: int, n_channels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.frames = generator_frames(n_frames)
        self.shapes = [(n_channels, frames + 2 * _MARGIN) for frames in self.frames[1:]]
        self.sizes = [latent, *(channels * frames for channels, frames in self.shapes)]
        self.coarse = nn.Linear(latent, hidden * self.frames[0])
        self.levels = nn.ModuleList([Refinement(hidden, n_channels) for _ in self.shapes])
        self.out = nn.Conv1d(hidden, n_channels, 1)
        draw_weights(self)

    @property
    def n_noise(self) -> int:
        """Noise values that one series takes."""
        return sum(self.sizes)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        """Series (n, n_frames, n_channels) from standard normal noise (n, n_noise)."""
        latent, *fine = torch.split(noise, self.sizes, dim=1)
        x = self.coarse(latent).reshape(len(noise), self.out.in_channels, self.frames[0])
        for level, shape, part in zip(self.levels, self.shapes, fine, strict=True):
            x = level(x, part.reshape(len(noise), *shape))
        out: torch.Tensor = self.out(nn.functional.silu(x)).transpose(1, 2)
        return out


class Reduction(nn.Module):
    """Half as many frames: means of two plus W2 silu(W1 silu(x)), the second convolution with stride 2."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.second = nn.Conv1d(hidden, hidden, 4, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (n, hidden, n_frames) -> (n, hidden, n_frames // 2)."""
        change = self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
        n = x.shape[2] // 2 * 2
        halved = 0.5 * (x[:, :, 0:n:2] + x[:, :, 1:n:2])  # as avg_pool1d does, whose gradients of gradients cost 13 % of a step
        out: torch.Tensor = halved + change
        return out


class Critic(nn.Module):
    """A number for each time series.

    It reads the means over time of local features at every level, which hold the statistics of the series at every time
    scale, and the few frames of the last level, which hold its course.
    """

    def __init__(self, n_frames: int, n_channels: int, hidden: int) -> None:
        super().__init__()
        frames = critic_frames(n_frames)
        # Means over time change with one frame as 1 / n_frames: this factor gives gradients a norm of order one.
        self.scale = math.sqrt(n_frames)
        self.lift = nn.Conv1d(n_channels, hidden, 3, padding=1)
        self.levels = nn.ModuleList([Reduction(hidden) for _ in frames[1:]])
        self.head = nn.Linear(hidden * (len(frames) + frames[-1]), hidden)
        # no bias: it drops out of every difference of values, so its gradient is rounding, which Adam would make a random walk
        self.out = nn.Linear(hidden, 1, bias=False)
        draw_weights(self)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        """Critic's value (n,) of series (n, n_frames, n_channels)."""
        x = self.lift(series.transpose(1, 2))
        features = [nn.functional.silu(x).mean(dim=2)]
        for level in self.levels:
            x = level(x)
            features.append(nn.functional.silu(x).mean(dim=2))
        features.append(nn.functional.silu(x).flatten(1))
        # The value is a small difference of large numbers: bfloat16 would round it away, and the head is cheap.
        with torch.autocast(device_type=series.device.type, enabled=False):
            joined = torch.cat(features, dim=1).to(self.head.weight.dtype)
            value: torch.Tensor = self.scale * self.out(nn.functional.silu(self.head(joined))).squeeze(1)
        return value
