"""Collective variables: what a surrogate of trajectories generates. They do not determine a structure."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Labels:
    """What trajectories differ by: the temperature, say.

    Attributes
    ----------
    names : tuple of str
    values : np.ndarray, shape=(n_labels, n_names)
        The labels that there are; one without values where trajectories are all alike.
    seen : np.ndarray, shape=(n_labels,)
        False for those that training knows nothing of.
    """

    names: tuple[str, ...]
    values: np.ndarray
    seen: np.ndarray

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Values (n, n_names) as networks see them: of mean zero and unit variance over the labels seen."""
        known = self.values[self.seen]
        spread = known.std(axis=0)
        return np.asarray((values - known.mean(axis=0)) / np.where(spread > 0, spread, 1.0))

    def text(self, number: int) -> str:
        """Write a label."""
        return ", ".join(f"{name} {value:g}" for name, value in zip(self.names, self.values[number], strict=True))


class CollectiveVariables(Representation):
    """Named features of frames, each to zero mean and unit variance over the training set; torsions as (cos, sin).

    Attributes
    ----------
    names, units : tuple of str
    mean, scale : np.ndarray, shape=(n_cvs,)
        0 and 1 for torsions.
    labels : Labels
        What trajectories differ by.
    """

    name = "cvs"
    target: ClassVar[str] = "none: collective variables of a surrogate of trajectories have no weights"
    density = "none"
    density_note: ClassVar[str] = "collective variables do not determine a structure"

    def __init__(
        self,
        system: MolecularSystem,
        names: tuple[str, ...],
        units: tuple[str, ...],
        mean: np.ndarray,
        scale: np.ndarray,
        labels: Labels | None = None,
    ):
        self.system, self.names, self.units, self.mean, self.scale = system, names, units, mean, scale
        self.labels = labels or Labels((), np.zeros((1, 0)), np.ones(1, dtype=bool))
        self._angles = np.array([unit in ("radians", "rad") for unit in units])
        self.n_torus, self.n_euclidean = int(self._angles.sum()), int((~self._angles).sum())

    @classmethod
    def fit(
        cls, system: MolecularSystem, config: RepresentationConfig, positions_nm: np.ndarray, weights: np.ndarray
    ) -> CollectiveVariables:
        raise InputError("representation.name 'cvs' serves surrogates of trajectories: set surrogate.name to gan")

    @classmethod
    def of_series(
        cls, system: MolecularSystem, train: TrajectorySet, held_out: TrajectorySet | None = None
    ) -> CollectiveVariables:
        """Learn means and scales from training trajectories, one after the other: they may lie on disk.

        Of held-out ones only what they are labelled by is read.
        """
        angles = np.array([unit in ("radians", "rad") for unit in train.units])
        n = sum(train.n_frames)
        mean = sum(np.asarray(part, np.float64).sum(axis=0) for part in train.features) / n
        square = sum(((np.asarray(part, np.float64) - mean) ** 2).sum(axis=0) for part in train.features) / n
        scale = np.where(square > 0, np.sqrt(square), 1.0)
        seen = list(dict.fromkeys(train.conditions))
        unseen = [] if held_out is None else [row for row in dict.fromkeys(held_out.conditions) if row not in seen]
        values = np.array([*seen, *unseen], dtype=np.float64).reshape(len(seen) + len(unseen), -1)
        labels = Labels(train.condition_names, values, np.arange(len(values)) < len(seen))
        return cls(system, train.feature_names, train.units, np.where(angles, 0.0, mean), np.where(angles, 1.0, scale), labels)

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
        tensors = {
            "mean": torch.as_tensor(self.mean), "scale": torch.as_tensor(self.scale),
            "labels": torch.as_tensor(self.labels.values), "seen": torch.as_tensor(self.labels.seen),
        }  # fmt: skip
        return tensors, {"names": list(self.names), "units": list(self.units), "conditions": list(self.labels.names)}

    @classmethod
    def from_state(
        cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, object]
    ) -> CollectiveVariables:
        names, units, conditions = (
            tuple(map(str, values[key]))  # type: ignore[call-overload]
            for key in ("names", "units", "conditions")
        )
        labels = Labels(conditions, tensors["labels"].numpy(), tensors["seen"].numpy())
        return cls(system, names, units, tensors["mean"].numpy(), tensors["scale"].numpy(), labels)
