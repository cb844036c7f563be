"""The published networks: perceptrons that make and judge a whole trajectory as one vector. The baseline `perceptron`."""

from __future__ import annotations

import itertools

import torch
from torch import nn


class PerceptronGenerator(nn.Module):
    """latent -> h -> 2h -> 4h -> n_frames x n_channels with ReLU, as published with h = 2048; its length is fixed."""

    def __init__(self, n_frames: int, n_channels: int, hidden: int, latent: int, n_conditions: int = 0) -> None:
        super().__init__()
        self.n_frames, self.n_channels, self.latent = n_frames, n_channels, latent
        widths = (latent + n_conditions, hidden, 2 * hidden, 4 * hidden)
        inner = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*inner, nn.Linear(widths[-1], n_frames * n_channels))

    def n_noise(self, n_frames: int) -> int:
        """Noise values that a series takes."""
        return self.latent

    def forward(
        self, noise: torch.Tensor, n_frames: int, condition: torch.Tensor | None = None, start: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Series (n, n_frames, n_channels) from noise (n, latent), and labels and a first frame that it is given."""
        given = torch.cat([part for part in (noise, condition, start) if part is not None], dim=1)
        out: torch.Tensor = self.layers(given).reshape(len(noise), self.n_frames, self.n_channels)
        return out


class PerceptronCritic(nn.Module):
    """n_frames x n_channels -> 4h -> 2h -> h -> 1 with leaky ReLU of slope 0.2, as published (which has two layers more)."""

    def __init__(self, n_frames: int, n_channels: int, hidden: int, n_conditions: int = 0) -> None:
        super().__init__()
        widths = (n_frames * n_channels + n_conditions, 4 * hidden, 2 * hidden, hidden)
        inner = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.LeakyReLU(0.2))]
        self.layers = nn.Sequential(*inner, nn.Linear(hidden, 1, bias=False))

    def forward(self, series: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Critic's value (n,) of series (n, n_frames, n_channels)."""
        flat = series.flatten(1)
        value: torch.Tensor = self.layers(flat if condition is None else torch.cat([flat, condition], dim=1)).squeeze(1)
        return value
