"""Wrapping angles, for arrays and for tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def wrap(angle_rad: np.ndarray) -> np.ndarray:
    """Wrap angles into (-pi, pi]."""
    wrapped: np.ndarray = -((np.pi - np.asarray(angle_rad)) % (2 * np.pi) - np.pi)
    return wrapped


def wrap_angle(angle_rad: torch.Tensor) -> torch.Tensor:
    """Wrap a tensor of angles into (-pi, pi]."""
    return -((np.pi - angle_rad).remainder(2 * np.pi) - np.pi)
