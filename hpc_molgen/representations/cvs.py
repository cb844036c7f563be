"""Collective variables: what a surrogate of trajectories generates. They do not determine a structure."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import Representation
from hpc_molgen.systems.observables import make_observables, values_of

if TYPE_CHECKING:
    from hpc_molgen.config import RepresentationConfig
    from hpc_molgen.systems.base import MolecularSystem
    from hpc_molgen.trajectories import TrajectorySet


class CollectiveVariables(Representation):
    """Named features of frames, each to zero mean and unit variance over the training set; torsions as (cos, sin).

    Attributes
    ----------
    names, units : tuple of str
    mean, scale : np.ndarray, shape=(n_cvs,)
        0 and 1 for torsions.
    """

    name = "cvs"
    target: ClassVar[str] = "none: collective variables of a surrogate of trajectories have no weights"

    def __init__(
        self, system: MolecularSystem, names: tuple[str, ...], units: tuple[str, ...], mean: np.ndarray, scale: np.ndarray
    ):
        self.system, self.names, self.units, self.mean, self.scale = system, names, units, mean, scale
        self._angles = np.array([unit in ("radians", "rad") for unit in units])
        self.n_torus, self.n_euclidean = int(self._angles.sum()), int((~self._angles).sum())

    @classmethod
    def fit(
        cls, system: MolecularSystem, config: RepresentationConfig, positions_nm: np.ndarray, weights: np.ndarray
    ) -> CollectiveVariables:
        raise InputError("representation.name 'cvs' serves surrogates of trajectories: set surrogate.name to gan")

    @classmethod
    def of_series(cls, system: MolecularSystem, train: TrajectorySet) -> CollectiveVariables:
        """Learn means and scales from training trajectories, one after the other: they may lie on disk."""
        angles = np.array([unit in ("radians", "rad") for unit in train.units])
        n = sum(train.n_frames)
        mean = sum(np.asarray(part, np.float64).sum(axis=0) for part in train.features) / n
        square = sum(((np.asarray(part, np.float64) - mean) ** 2).sum(axis=0) for part in train.features) / n
        scale = np.where(square > 0, np.sqrt(square), 1.0)
        return cls(system, train.feature_names, train.units, np.where(angles, 0.0, mean), np.where(angles, 1.0, scale))

    @property
    def n_channels(self) -> int:
        """Channels of a series as networks see it."""
        return 2 * self.n_torus + self.n_euclidean

    def channels(self, features: np.ndarray) -> np.ndarray:
        """Channels (n_frames, n_channels), float32, of features (n_frames, n_cvs): cosines, sines, then the others."""
        angles, others = features[:, self._angles], features[:, ~self._angles]
        scaled = (others - self.mean[~self._angles]) / self.scale[~self._angles]
        return np.concatenate([np.cos(angles), np.sin(angles), scaled], axis=1).astype(np.float32)

    def features(self, channels: np.ndarray) -> np.ndarray:
        """Features (..., n_cvs), float32, of channels (..., n_channels)."""
        out = np.empty((*channels.shape[:-1], len(self.names)), np.float32)
        cosine, sine, others = np.split(channels, [self.n_torus, 2 * self.n_torus], axis=-1)
        out[..., self._angles] = np.arctan2(sine, cosine)
        out[..., ~self._angles] = others * self.scale[~self._angles] + self.mean[~self._angles]
        return out

    def measure(self, positions_nm: np.ndarray) -> np.ndarray:
        """Features (n, n_cvs) of positions (n, n_atoms, 3)."""
        return values_of(make_observables(self.names, self.system, self.system.positions_nm), positions_nm)

    def encode(self, positions_nm: torch.Tensor) -> torch.Tensor:
        values = self.measure(positions_nm.numpy())
        order = np.argsort(~self._angles, kind="stable")
        return torch.as_tensor(((values - self.mean) / self.scale)[:, order])

    def decode(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        raise InputError("collective variables do not determine a structure: 'correct' takes near frames of the reference")

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        tensors = {"mean": torch.as_tensor(self.mean), "scale": torch.as_tensor(self.scale)}
        return tensors, {"names": list(self.names), "units": list(self.units)}

    @classmethod
    def from_state(
        cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, object]
    ) -> CollectiveVariables:
        names, units = (tuple(map(str, values[key])) for key in ("names", "units"))  # type: ignore[call-overload]
        return cls(system, names, units, tensors["mean"].numpy(), tensors["scale"].numpy())
