"""What every representation offers, and its registry."""

from __future__ import annotations

import abc
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch

from hpc_molgen.errors import InputError
from hpc_molgen.tensorfiles import load_tensors, save_tensors

if TYPE_CHECKING:
    from hpc_molgen.config import RepresentationConfig
    from hpc_molgen.systems.base import MolecularSystem
    from hpc_molgen.systems.graph import MolecularGraph

REPRESENTATIONS = {
    "torsion": "hpc_molgen.representations.torsion:TorsionRepresentation",
    "cvs": "hpc_molgen.representations.cvs:CollectiveVariables",
    "latent": "hpc_molgen.representations.latent:LatentVariables",
    "internal": "hpc_molgen.representations.internal:InternalRepresentation",
    "relaxed": "hpc_molgen.representations.relaxed:RelaxedRepresentation",
    "cartesian": "hpc_molgen.representations.cartesian:CartesianRepresentation",
    "residue": "hpc_molgen.representations.residue:ResidueRepresentation",
    "distance": "hpc_molgen.representations.distance:DistanceRepresentation",
}


class Representation(abc.ABC):
    """A map between positions and features: `n_torus` angles in (-pi, pi], then `n_euclidean` real numbers.

    Attributes
    ----------
    n_torus, n_euclidean : int
        Sizes of the two parts of a feature vector.
    target : str
        In words, the distribution for which weights made with `decode` are exact; every table prints it.
    density : {"exact", "estimated", "none"}
        "exact": ln q of positions (up to rigid motion) follows from ln q of features by `decode`'s Jacobian, on the surface
        that `target` names; "estimated": the map is not one to one, or its Jacobian only approximate: weights are estimates and
        are never certified; "none": no density of positions, and no weights.
    density_note : str
        In words, why `density` is not "exact"; empty where it is.
    needs_frames : bool
        Whether `fit` learns from frames; otherwise from energies alone.
    exact_gradient : bool
        Whether `pulled_back` gives the whole gradient, so that surrogates may learn from it.
    """

    name: ClassVar[str]
    target: ClassVar[str]
    density: ClassVar[Literal["exact", "estimated", "none"]] = "exact"
    density_note: ClassVar[str] = ""
    needs_frames: ClassVar[bool] = True
    exact_gradient: ClassVar[bool] = True
    n_torus: int
    n_euclidean: int

    @classmethod
    @abc.abstractmethod
    def fit(
        cls, system: MolecularSystem, config: RepresentationConfig, positions_nm: np.ndarray, weights: np.ndarray
    ) -> Representation:
        """Learn constants (means, scales) from training frames (n, n_atoms, 3) with normalised weights (n,)."""

    @abc.abstractmethod
    def encode(self, positions_nm: torch.Tensor) -> torch.Tensor:
        """Features (n, n_torus + n_euclidean), float64, of positions (n, n_atoms, 3)."""

    def graph(self) -> MolecularGraph:
        """Return the molecule with its free torsions as a graph, for a surrogate that serves many molecules.

        Raises
        ------
        InputError
            Where torsions do not mean the same in every molecule.
        """
        raise InputError(f"representation.name '{self.name}' has no graph: surrogate.name transferable needs 'relaxed'")

    def encode_torus(self, positions_nm: torch.Tensor) -> torch.Tensor:
        """The angles alone (n, n_torus) of what `encode` gives."""
        return self.encode(positions_nm)[:, : self.n_torus]

    @abc.abstractmethod
    def decode(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (n, n_atoms, 3) and log|det d positions / d features| (n,), both float64.

        A feature vector outside the domain of the map (an angle beyond 0..pi, say) has log|det J| = -inf: its weight is zero.
        """

    def pulled_back(
        self,
        features: torch.Tensor,
        positions_nm: torch.Tensor,  # noqa: ARG002
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        """Gradient by features (n, n_features) of sum(positions * gradient) + log|det J|, `gradient` (n, n_atoms, 3) constant.

        `positions_nm` are those that `decode` gave. Where log|det J| = -inf the result means nothing.
        """
        with torch.enable_grad():
            variable = features.detach().double().requires_grad_(True)
            positions, log_abs_det = self.decode(variable)
            inside = torch.isfinite(log_abs_det)
            work = (positions * gradient).sum((1, 2))[inside].sum() + log_abs_det[inside].sum()
            (found,) = torch.autograd.grad(work, variable)
        return found

    def round_trip(self, positions_nm: np.ndarray) -> dict[str, float]:  # noqa: ARG002
        """Return how well conformations (n, n_atoms, 3) come back from their features; empty where nothing is lost."""
        return {}

    @abc.abstractmethod
    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """Return the tensors and the JSON-able values that `from_state` rebuilds the representation from."""

    @classmethod
    @abc.abstractmethod
    def from_state(cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, object]) -> Representation:
        """Rebuild what `state` returned."""

    @property
    def n_features(self) -> int:
        """Length of a feature vector."""
        return self.n_torus + self.n_euclidean

    def save(self, path: Path, system: MolecularSystem) -> None:
        """Write a safetensors file with the constants."""
        tensors, values = self.state()
        save_tensors(path, tensors, {"name": self.name, "system_key": system.key, "values": values})


def representation_class(name: str) -> type[Representation]:
    """Return the class registered under `name`."""
    if name not in REPRESENTATIONS:
        raise InputError(f"representation.name: there is no '{name}'; there are: {', '.join(REPRESENTATIONS)}")
    module, class_name = REPRESENTATIONS[name].split(":")
    found: type[Representation] = getattr(importlib.import_module(module), class_name)
    return found


def load_representation(path: Path, system: MolecularSystem) -> Representation:
    """Read a file of `Representation.save`.

    Raises
    ------
    InputError
        If the file cannot be read or belongs to another system.
    """
    tensors, about = load_tensors(path, "representation", system.key)
    return representation_class(about["name"]).from_state(system, tensors, about["values"])
