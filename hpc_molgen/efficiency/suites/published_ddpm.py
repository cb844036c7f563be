"""Baselines of the `ramachandran` suite: the DDPM of the first published pipeline, and a kernel density estimate on the torus.

The DDPM is written anew from its description (facts/peers.md, section A). It is a baseline and so keeps what is weak in it: raw
radians in the plane, no averaging of weights, no validation, 1000 ancestral steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hpc_molgen.angles import wrap
from hpc_molgen.seeding import derive_seed, numpy_generator, torch_generator

TIME_EMBEDDING = 128
CHOSEN_BANDWIDTHS_DEG = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
_GRID = 720


@dataclass(frozen=True)
class PublishedSettings:
    """Hyperparameters as published."""

    hidden: int = 256
    n_layers: int = 4
    n_levels: int = 1000
    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0


class PublishedNetwork(nn.Module):
    """2 -> 256, four layers of 256 with SiLU, -> 2; the embedded time is added before each layer (363,266 weights)."""

    def __init__(self, settings: PublishedSettings) -> None:
        super().__init__()
        width = settings.hidden
        self.time = nn.Sequential(nn.Linear(TIME_EMBEDDING, width), nn.SiLU(), nn.Linear(width, width))
        self.input = nn.Linear(2, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(settings.n_layers)])
        self.output = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Predicted noise (n, 2) for points (n, 2) at levels (n or 1,)."""
        half = TIME_EMBEDDING // 2
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(half, device=x.device) / (half - 1))
        angle = level[:, None].to(x) * frequency
        time = self.time(torch.cat([torch.sin(angle), torch.cos(angle)], dim=1))
        h = self.input(x)
        for layer in self.layers:
            h = nn.functional.silu(layer(h + time))
        out: torch.Tensor = self.output(h)
        return out


class PublishedDdpm:
    """Denoising diffusion in R^2 (Ho et al. 2020) with the cosine schedule of Nichol and Dhariwal 2021, s = 0.008."""

    def __init__(self, settings: PublishedSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "published weights"))
            self.network = PublishedNetwork(settings)
        steps = torch.arange(settings.n_levels + 1, dtype=torch.float64) / settings.n_levels
        kept = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
        self.beta = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
        self.kept = torch.cumprod(1 - self.beta, dim=0)

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def train(self, angles_rad: np.ndarray) -> int:
        """Fit the network to angles (n, 2) in (-pi, pi]; return the number of optimiser steps."""
        settings, generator = self.settings, torch_generator(self.seed, "published training")
        data, kept = torch.from_numpy(angles_rad).float(), self.kept.float()
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs)
        n_steps = 0
        for _ in range(settings.epochs):
            for items in torch.split(torch.randperm(len(data), generator=generator), settings.batch_size):
                level = torch.randint(settings.n_levels, (len(items),), generator=generator)
                noise = torch.randn((len(items), 2), generator=generator)
                scale = kept[level][:, None]
                noisy = scale.sqrt() * data[items] + (1 - scale).sqrt() * noise
                loss = nn.functional.mse_loss(self.network(noisy, level), noise)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
                optimiser.step()
                n_steps += 1
            annealing.step()
        return n_steps

    @torch.no_grad()
    def sample(self, n: int, seed: int) -> np.ndarray:
        """Draw angles (n, 2), wrapped at the end, by ancestral sampling through every level with the posterior's variance."""
        generator = torch_generator(seed, "published sample")
        x = torch.randn((n, 2), generator=generator)
        for level in reversed(range(self.settings.n_levels)):
            beta, kept = float(self.beta[level]), float(self.kept[level])
            noise = self.network(x, torch.tensor([level]))
            x = (x - beta / math.sqrt(1 - kept) * noise) / math.sqrt(1 - beta)
            if level > 0:
                variance = beta * (1 - float(self.kept[level - 1])) / (1 - kept)
                x = x + math.sqrt(variance) * torch.randn((n, 2), generator=generator)
        return wrap(x.double().numpy())


def kernel_samples(angles_rad: np.ndarray, bandwidth_deg: float, n: int, seed: int) -> np.ndarray:
    """Draw (n, 2) angles from a wrapped-normal kernel density estimate of `angles_rad` (n_frames, 2)."""
    generator = numpy_generator(seed, "kernel sample")
    centres = angles_rad[generator.integers(len(angles_rad), size=n)]
    return wrap(centres + np.radians(bandwidth_deg) * generator.standard_normal(centres.shape))


def choose_bandwidth(first_rad: np.ndarray, second_rad: np.ndarray) -> float:
    """Bandwidth in degrees, of `CHOSEN_BANDWIDTHS_DEG`, by two-fold likelihood cross-validation.

    Parameters
    ----------
    first_rad, second_rad : np.ndarray, shape=(n, 2)
        Two parts of the training data, split by trajectory. The estimate is made on a grid of half a degree.
    """
    return max(
        CHOSEN_BANDWIDTHS_DEG,
        key=lambda width: _log_likelihood(first_rad, second_rad, width) + _log_likelihood(second_rad, first_rad, width),
    )


def _log_likelihood(fitted_rad: np.ndarray, tested_rad: np.ndarray, bandwidth_deg: float) -> float:
    wave = np.fft.fftfreq(_GRID, d=1 / _GRID)
    kernel = np.exp(-0.5 * (wave * np.radians(bandwidth_deg)) ** 2)
    smooth = np.fft.ifft2(np.fft.fft2(_grid_counts(fitted_rad)) * np.outer(kernel, kernel)).real / len(fitted_rad)
    return float((_grid_counts(tested_rad) * np.log(smooth.clip(min=1e-12))).sum() / len(tested_rad))


def _grid_counts(angles_rad: np.ndarray) -> np.ndarray:
    phi, psi = wrap(angles_rad).T
    counts: np.ndarray = np.histogram2d(phi, psi, bins=_GRID, range=((-np.pi, np.pi), (-np.pi, np.pi)))[0]
    return counts
