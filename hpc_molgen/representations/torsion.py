"""Chosen torsions on the torus, the rest of the geometry at its conditional mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import Representation
from hpc_molgen.representations.internal import InternalRepresentation
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.systems.torsions import torsion_by_name

if TYPE_CHECKING:
    from hpc_molgen.config import RepresentationConfig
    from hpc_molgen.systems.base import MolecularSystem


class TorsionRepresentation(Representation):
    """Named torsions, or all free ones, for studies of (phi, psi) as in the first published pipelines.

    A feature is the torsion's deviation from its circular mean in the training frames. `decode` sets bonds, angles and
    stiff torsions to their mean given the chosen torsions (a regression on Fourier features), other free torsions to
    their circular mean, and returns log|det J| = 0: weights made with it are exact for exp(-u) on this surface alone.
    """

    name = "torsion"
    target: ClassVar[str] = "the chosen torsions alone, the rest of the geometry held at its conditional mean"

    def __init__(self, internal: InternalRepresentation, columns: list[int]) -> None:
        self.internal = internal
        self.columns = columns
        self.n_torus, self.n_euclidean = len(columns), 0

    @classmethod
    def fit(
        cls, system: MolecularSystem, config: RepresentationConfig, positions_nm: np.ndarray, weights: np.ndarray
    ) -> TorsionRepresentation:
        if config.torsions == "all":
            internal = InternalRepresentation.fit(system, config, positions_nm, weights, flexible=False)
            return cls(internal, list(range(internal.n_torus)))
        quads = tuple(torsion_by_name(system.topology, name) for name in config.torsions)
        internal = InternalRepresentation.fit(system, config, positions_nm, weights, quads, flexible=False)
        columns = []
        for name, atoms in zip(config.torsions, quads, strict=True):
            column = internal.torsion_column(atoms)
            if column is None:
                raise InputError(
                    f"representation.torsions: '{name}' turns no bond of the Z-matrix (it lies in a ring, or other atoms "
                    "define the torsion of its bond); leave it out, or use 'all' for every torsion that is free"
                )
            columns.append(column)
        return cls(internal, columns)

    def encode(self, positions_nm: torch.Tensor) -> torch.Tensor:
        return self.internal.encode(positions_nm)[:, self.columns]

    def decode(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        full = torch.zeros((len(features), self.internal.n_features), dtype=torch.float64)
        full[:, self.columns] = features.to(torch.float64)
        positions, log_abs_det = self.internal.decode(full)
        return positions, torch.zeros_like(log_abs_det)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        tensors, _ = self.internal.state()
        return tensors, {"columns": self.columns}

    @classmethod
    def from_state(
        cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, object]
    ) -> TorsionRepresentation:
        columns = values["columns"]
        assert isinstance(columns, list)
        return cls(InternalRepresentation(ZMatrix(system.topology), tensors), columns)
