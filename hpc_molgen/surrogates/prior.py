"""What surrogates of structures begin from: uniform angles, and standard normal numbers behind them."""

from __future__ import annotations

import math

import torch


def draw_prior(n: int, n_torus: int, n_euclidean: int, generator: torch.Generator) -> torch.Tensor:
    """Draw features (n, n_torus + n_euclidean) on the CPU."""
    uniform = (2 * torch.rand((n, n_torus), generator=generator) - 1) * math.pi
    return torch.cat([uniform, torch.randn((n, n_euclidean), generator=generator)], dim=1)


def log_prior(features: torch.Tensor, n_torus: int) -> torch.Tensor:
    """Log-density (n,) of the prior: uniform angles, standard normal rest."""
    rest = features[:, n_torus:]
    return -0.5 * (rest**2).sum(-1) - 0.5 * rest.shape[1] * math.log(2 * math.pi) - n_torus * math.log(2 * math.pi)
