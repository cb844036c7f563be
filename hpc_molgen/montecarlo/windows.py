"""Windows of a capped peptide as peptides of their own: which of the molecule's internal coordinates a fragment knows.

The caps of a fragment stand for the neighbours. What is taken from it are the Z-matrix rows of the molecule that hang on the
window's own torsions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from hpc_molgen.errors import InputError
from hpc_molgen.representations.internal import FREE_TORSION_SD, circular_sd, torsion_row
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.systems.torsions import atoms_beyond, named_torsions

if TYPE_CHECKING:
    import mdtraj

_ACE, _NME = {"CH3": "CA", "C": "C", "O": "O"}, {"N": "N", "H": "H", "C": "CA"}  # atoms of neighbours that those of caps are


@dataclass(frozen=True)
class Window:
    """Residues `first` to `first` + `n` - 1 of a capped peptide, counted from 1 (0 is ACE), as a peptide of their own."""

    first: int
    n: int

    @property
    def residues(self) -> range:
        """Numbers of its residues."""
        return range(self.first, self.first + self.n)


@dataclass(frozen=True)
class Turn:
    """Which torsions of a window turn at once: those of some residues; of them all, or of "backbone" or "side chain" alone."""

    residues: tuple[int, ...]
    part: Literal["all", "backbone", "side chain"] = "all"

    @property
    def name(self) -> str:
        """In words: "1-2", "3, backbone"."""
        return "-".join(map(str, self.residues)) + ("" if self.part == "all" else f", {self.part}")


def windows_of(n_residues: int, n: int) -> list[Window]:
    """Return all windows of `n` residues, each one residue further than the one before."""
    if not 1 <= n <= n_residues:
        raise InputError(f"a peptide of {n_residues} residues has windows of 1 to {n_residues} of them, not of {n}")
    return [Window(first, n) for first in range(1, n_residues - n + 2)]


@dataclass(frozen=True)
class Columns:
    """Which coordinates of a molecule (bonds, angles, torsions of its Z-matrix, in one row) a window gives.

    Attributes
    ----------
    torsions : list of int
        That may turn about their bond: backbone and side chain.
    owners : list of int
        The residue of each of them.
    backbone : list of bool
        Whether it is phi or psi.
    stiff : list of int
        All other coordinates of the same atoms, but those of rings and those that turn methyl groups: these stay.
    stiff_owners : list of int
    """

    torsions: list[int]
    owners: list[int]
    backbone: list[bool]
    stiff: list[int]
    stiff_owners: list[int]

    def of(self, residues: Collection[int]) -> tuple[list[int], list[int]]:
        """Places of the torsions, and of the stiff coordinates, that belong to some residues."""
        turned, moved = ([k for k, owner in enumerate(own) if owner in residues] for own in (self.owners, self.stiff_owners))
        return turned, moved

    def turned(self, turn: Turn) -> list[int]:
        """Places of the torsions that turn."""
        asked = {"all": (True, False), "backbone": (True,), "side chain": (False,)}[turn.part]
        return [k for k in self.of(turn.residues)[0] if self.backbone[k] in asked]


def internal_coordinates(zmatrix: ZMatrix, positions_nm: torch.Tensor) -> torch.Tensor:
    """Bonds, angles and torsions (n, 3N - 6) of positions (n, N, 3), in nm and radians."""
    return torch.cat(zmatrix.to_internal(positions_nm.double()), dim=1)


def backbone_columns(zmatrix: ZMatrix, topology: mdtraj.Topology) -> np.ndarray:
    """Columns of phi and psi of each residue but the caps, shape=(n_residues, 2).

    Raises
    ------
    InputError
        Where one of them is no coordinate of the Z-matrix.
    """
    named, first = named_torsions(topology), 2 * zmatrix.n_atoms - 3
    rows = [[torsion_row(zmatrix, quad) for quad in named[kind]] for kind in ("phi", "psi")]
    if any(row is None for kind in rows for row in kind) or len(rows[0]) != len(rows[1]):
        raise InputError("phi and psi of every residue must be coordinates: is this a peptide with both caps?")
    return np.array(rows, dtype=np.int64).T + first


def mapped_positions(
    topology: mdtraj.Topology, window: Window, fragment: mdtraj.Topology, positions_nm: np.ndarray
) -> np.ndarray:
    """Put the atoms of a fragment in the place of those of the molecule that they are or stand for; others are nan.

    Parameters
    ----------
    topology : mdtraj.Topology
        Of the molecule.
    window : Window
    fragment : mdtraj.Topology
    positions_nm : np.ndarray, shape=(n, n_atoms of the fragment, 3)

    Returns
    -------
    np.ndarray, shape=(n, n_atoms of the molecule, 3)

    Raises
    ------
    InputError
        When the residues or atoms of the fragment are not those of the window.
    """
    places = {(atom.residue.index, atom.name): atom.index for atom in topology.atoms}
    names = [residue.name for residue in topology.residues][window.first : window.first + window.n]
    if [residue.name for residue in fragment.residues][1:-1] != names:
        raise InputError(f"this fragment is not made of the residues {'-'.join(names)} of the window")
    found = np.full((len(positions_nm), topology.n_atoms, 3), np.nan)
    for atom in fragment.atoms:
        number = atom.residue.index
        residue, name = window.first - 1 + number, atom.name
        stands = _ACE if number == 0 and window.first > 1 else None
        stands = _NME if number == window.n + 1 and residue < topology.n_residues - 1 else stands
        place = places.get((residue, name if stands is None else stands.get(name, "")))
        if place is None and stands is None:
            raise InputError(f"atom {atom} of the fragment is not in the molecule")
        if place is not None:
            found[:, place] = positions_nm[:, atom.index]
    return found


def _turning(topology: mdtraj.Topology, zmatrix: ZMatrix, window: Window) -> list[tuple[int, int]]:
    """Z-matrix rows of the atoms that hang on the torsions of the window, each with the residue whose torsions these are."""
    atoms, rows = list(topology.atoms), []
    for number, row in enumerate(zmatrix.rows):
        atom = atoms[row.atom]
        of_next = atom.name in ("N", "H", "CA") or (atom.residue.name == "NME" and atom.name == "C")
        owner = atom.residue.index - of_next
        if number >= 3 and owner in window.residues and not (atom.residue.name == "NME" and not of_next):
            rows.append((number, owner))
    return rows


def columns_of(topology: mdtraj.Topology, zmatrix: ZMatrix, window: Window, coordinates: torch.Tensor) -> Columns:
    """Return what a window gives; `coordinates` (n, 3N - 6) of its fragment tell which side chain torsions move."""
    n_atoms = zmatrix.n_atoms
    ring = {
        (bond[0].index, bond[1].index): atoms_beyond(topology, bond[0].index, bond[1].index) is None for bond in topology.bonds
    }
    backbone = set(backbone_columns(zmatrix, topology).ravel().tolist())
    torsions: list[tuple[int, int]] = []
    stiff: list[tuple[int, int]] = []
    uniform = torch.full((len(coordinates),), 1 / len(coordinates), dtype=torch.float64)
    for number, owner in _turning(topology, zmatrix, window):
        row, column = zmatrix.rows[number], 2 * n_atoms - 3 + number - 3
        bond_in_ring, axis_in_ring = (ring.get((a, b), ring.get((b, a), False)) for a, b in ((row.atom, row.a), (row.a, row.b)))
        if not bond_in_ring:
            stiff += [(number - 1, owner), (n_atoms - 1 + number - 2, owner)]
        if row.fold > 1 or axis_in_ring:
            continue
        moves = row.proper and float(circular_sd(coordinates[:, column : column + 1], uniform)[0]) > FREE_TORSION_SD
        if moves or column in backbone:
            torsions.append((column, owner))
        elif not bond_in_ring:
            stiff.append((column, owner))
    (columns, owners), (others, of_others) = (map(list, zip(*found, strict=True)) for found in (torsions, sorted(stiff)))
    return Columns(columns, owners, [column in backbone for column in columns], others, of_others)
