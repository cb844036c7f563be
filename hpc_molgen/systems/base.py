"""The type that every molecular system has."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.units import kt_kj_mol

if TYPE_CHECKING:
    import mdtraj


@dataclass(frozen=True)
class MolecularSystem:
    """A molecule with its energy function and temperature; frozen, and it pickles.

    Attributes
    ----------
    name : str
        Name for people.
    topology : mdtraj.Topology
        Atoms, residues, bonds.
    system_xml : str
        The serialised `openmm.System`: flexible (no constraints) unless it holds rigid water.
    positions_nm : np.ndarray, shape=(n_atoms, 3)
        One sensible structure, not minimised.
    temperature_kelvin : float
        Temperature of the Boltzmann distribution.
    force_field : tuple of str
        OpenMM force field files that built it; empty when the energy function came from elsewhere.
    description : str
        One line for the report: force field, solvent model.
    """

    name: str
    topology: mdtraj.Topology
    system_xml: str
    positions_nm: np.ndarray
    temperature_kelvin: float
    force_field: tuple[str, ...] = field(default=())
    description: str = ""

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return int(self.topology.n_atoms)

    @property
    def kt_kj_mol(self) -> float:
        """Thermal energy in kJ/mol."""
        return kt_kj_mol(self.temperature_kelvin)

    @functools.cached_property
    def key(self) -> str:
        """Hash of all that defines the reduced energy: parameters, atoms and temperature."""
        parameters = re.sub(r'openmmVersion="[^"]*"', "", self.system_xml)
        atoms = " ".join(f"{atom.residue.name}{atom.residue.index}:{atom.name}" for atom in self.topology.atoms)
        text = f"{parameters}\n{atoms}\n{self.temperature_kelvin!r}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def at(self, kelvin: float) -> MolecularSystem:
        """Return the same molecule at another temperature."""
        return replace(self, temperature_kelvin=float(kelvin))

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
