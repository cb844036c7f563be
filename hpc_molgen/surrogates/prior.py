"""What surrogates of structures begin from: uniform angles, and normal numbers behind them."""

from __future__ import annotations

import math

import torch


def draw_prior(n: int, n_torus: int, n_euclidean: int, generator: torch.Generator) -> torch.Tensor:
    """Draw features (n, n_torus + n_euclidean) on the CPU."""
    uniform = (2 * torch.rand((n, n_torus), generator=generator) - 1) * math.pi
    return torch.cat([uniform, torch.randn((n, n_euclidean), generator=generator)], dim=1)


def log_prior(features: torch.Tensor, n_torus: int, log_variance: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Log-density (n,) of the prior: uniform angles, normal rest, of variance one or exp(log_variance) (n,)."""
    rest = features[:, n_torus:]
    variance = torch.as_tensor(log_variance, dtype=features.dtype, device=features.device)
    constant = n_torus * math.log(2 * math.pi) + 0.5 * rest.shape[1] * (math.log(2 * math.pi) + variance)
    return -0.5 * (rest**2).sum(-1) * torch.exp(-variance) - constant
