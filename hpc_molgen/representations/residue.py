"""Torsions of every residue of a peptide or protein on the torus, the rest of the geometry at its conditional mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from hpc_molgen.representations.internal import InternalRepresentation, torsion_row
from hpc_molgen.representations.torsion import TorsionRepresentation
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.systems.residues import ResidueFeatures, residue_features, residue_torsions

if TYPE_CHECKING:
    from hpc_molgen.config import RepresentationConfig
    from hpc_molgen.systems.base import MolecularSystem

# hundreds of Fourier features of many torsions, and frames in a few basins: with the ridge of `internal` the geometry between
# basins is torn apart
RIDGE = 0.03


class ResidueRepresentation(TorsionRepresentation):
    """Residue after residue phi, psi, (omega,) chi1 to chi4, as far as they are coordinates of the Z-matrix and in no ring.

    Encoding and decoding are those of `TorsionRepresentation`, and so is what weights are exact for: this surface alone.

    Attributes
    ----------
    names : tuple of str, length n_torus
        Of the features, "ALA2-phi".
    residues : ResidueFeatures
        Type, place and secondary structure in the training frames of every residue, for networks on graphs of residues; the
        features of a conformation do not depend on it.
    """

    name = "residue"
    target: ClassVar[str] = (
        "the backbone and side-chain torsions of the residues alone, the rest of the geometry held at its conditional mean"
    )

    def __init__(
        self, internal: InternalRepresentation, columns: list[int], names: tuple[str, ...], residues: ResidueFeatures
    ) -> None:
        super().__init__(internal, columns)
        self.names, self.residues = names, residues

    @classmethod
    def fit(
        cls, system: MolecularSystem, config: RepresentationConfig, positions_nm: np.ndarray, weights: np.ndarray
    ) -> ResidueRepresentation:
        zmatrix, topology = ZMatrix(system.topology), system.topology
        named = residue_torsions(topology, omega=config.omega)
        named = [(name, quad) for name, quad in named if torsion_row(zmatrix, quad) is not None]
        names, quads = tuple(name for name, _ in named), tuple(quad for _, quad in named)
        internal = InternalRepresentation.fit(system, config, positions_nm, weights, quads, flexible=False, ridge=RIDGE)
        columns = [column for quad in quads if (column := internal.torsion_column(quad)) is not None]
        return cls(internal, columns, names, residue_features(topology, positions_nm, weights))

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        tensors, values = super().state()
        own = {"residues": torch.as_tensor(self.residues.values), "indices": torch.as_tensor(self.residues.indices)}
        about = {"names": list(self.names), "residues": list(self.residues.residues), "about": list(self.residues.names)}
        return tensors | own, values | about

    @classmethod
    def from_state(
        cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, object]
    ) -> ResidueRepresentation:
        plain = TorsionRepresentation.from_state(system, tensors, values)
        names, residues, about = (tuple(map(str, _listed(values[key]))) for key in ("names", "residues", "about"))
        described = ResidueFeatures(tensors["residues"].numpy(), about, residues, tensors["indices"].numpy())
        return cls(plain.internal, plain.columns, names, described)

    def about(self) -> dict[str, object]:
        """What the stage `featurize` writes for people: torsions by feature, and the features of each residue."""
        return {"torsions": list(self.names)} | self.residues.as_dict()


def _listed(value: object) -> list[object]:
    assert isinstance(value, list)
    return value
