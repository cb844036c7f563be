"""Residues of a peptide or protein: their names, their torsions, and a vector of features for each, as input to a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpc_molgen.errors import InputError
from hpc_molgen.systems.torsions import Quad, atoms_beyond, named_torsions

if TYPE_CHECKING:
    import mdtraj

LETTERS = {
    "A": "ALA", "R": "ARG", "N": "ASN", "D": "ASP", "C": "CYS", "Q": "GLN", "E": "GLU", "G": "GLY", "H": "HIE", "I": "ILE",
    "L": "LEU", "K": "LYS", "M": "MET", "F": "PHE", "P": "PRO", "S": "SER", "T": "THR", "W": "TRP", "Y": "TYR", "V": "VAL",
}  # fmt: skip
# what a PDB file calls residues whose protonation force fields name: there the hydrogens tell it
PDB_NAMES = {"ASH": "ASP", "GLH": "GLU", "HID": "HIS", "HIE": "HIS", "HIP": "HIS", "LYN": "LYS", "CYM": "CYS"}
_ELSEWHERE = {
    "CYX": "CYS", "HSD": "HIS", "HSE": "HIS", "HSP": "HIS", "ASPP": "ASP", "GLUP": "GLU", "LSN": "LYS",
}  # fmt: skip
STANDARD = tuple(sorted({PDB_NAMES.get(name, name) for name in LETTERS.values()}))
PLACE = ("place", "from_start", "to_end")
STRUCTURE = {"helix": "H", "strand": "E", "coil": "C"}
KINDS = ("phi", "psi", "omega", "chi1", "chi2", "chi3", "chi4")


@dataclass(frozen=True)
class ResidueFeatures:
    """A vector for each amino acid of a molecule, caps, water, ions and ligands left out: nodes of a graph of residues.

    Attributes
    ----------
    values : np.ndarray, shape=(n_residues, n_columns), float64
    names : tuple of str
        What the columns are: the 20 residue types (one of them 1, the others 0; all 0 for another amino acid), then `place`
        (index over the last index of its chain, 0 to 1), `from_start` and `to_end` (residues between it and the ends of its
        chain), then `helix`, `strand` and `coil` (shares of the frames, which sum to one, or zeros where that is not known).
    residues : tuple of str
        As mdtraj writes them, ALA2.
    indices : np.ndarray, shape=(n_residues,), int
        Where they are in the topology, by which atoms and bonds find their row.
    """

    values: np.ndarray
    names: tuple[str, ...]
    residues: tuple[str, ...]
    indices: np.ndarray

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        rows = [dict(zip(self.names, row, strict=True)) for row in self.values.tolist()]
        own = zip(self.residues, self.indices.tolist(), rows, strict=True)
        return {"columns": list(self.names), "residues": [{"residue": name, "index": k, **row} for name, k, row in own]}


def residue_type(residue: mdtraj.core.topology.Residue) -> str | None:
    """Name of the amino acid among the 20, whatever its protonation; "" for another one, None for what is none."""
    own = str(residue.name)
    name = PDB_NAMES.get(own, _ELSEWHERE.get(own, own))
    if name in STANDARD:
        return name
    return "" if {"N", "CA", "C"} <= {atom.name for atom in residue.atoms} else None


def residue_features(
    topology: mdtraj.Topology, positions_nm: np.ndarray | None = None, weights: np.ndarray | None = None
) -> ResidueFeatures:
    """Describe each amino acid by its type, its place in the chain and its secondary structure.

    Parameters
    ----------
    topology : mdtraj.Topology
    positions_nm : np.ndarray, shape=(n_frames, n_atoms, 3), optional
        Frames whose secondary structure counts (Kabsch and Sander 1983, Biopolymers 22, 2577, by mdtraj's `compute_dssp` in its
        three simplified classes); shares are zero without frames, and where a residue lacks N, CA, C or O (C-alpha models).
    weights : np.ndarray, shape=(n_frames,), optional
        Of the frames, normalised or not; equal by default.

    Returns
    -------
    ResidueFeatures
        Of shape (n_residues, 26); no row where the molecule has no amino acid.
    """
    rows, kept = [], []
    for chain in topology.chains:
        own = [(residue, kind) for residue in chain.residues if (kind := residue_type(residue)) is not None]
        last = len(own) - 1
        for number, (residue, kind) in enumerate(own):
            place = [number / max(last, 1), float(number), float(last - number)]
            rows.append([float(kind == name) for name in STANDARD] + place)
            kept.append(residue)
    indices = np.array([residue.index for residue in kept], dtype=int)
    about = np.array(rows, dtype=np.float64).reshape(len(kept), len(STANDARD) + len(PLACE))
    shares = np.zeros((len(kept), len(STRUCTURE)))
    if positions_nm is not None and len(positions_nm) and kept:
        shares = _structure_shares(topology, positions_nm, weights)[indices]
    names = (*STANDARD, *PLACE, *STRUCTURE)
    return ResidueFeatures(np.concatenate([about, shares], axis=1), names, tuple(map(str, kept)), indices)


def _structure_shares(topology: mdtraj.Topology, positions_nm: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """Weighted shares (n_residues of the topology, 3) of frames in which each residue is helix, strand or coil."""
    import mdtraj

    found = mdtraj.compute_dssp(mdtraj.Trajectory(np.asarray(positions_nm, dtype=np.float32), topology), simplified=True)
    share = np.ones(len(found)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares: np.ndarray = np.stack([share @ (found == letter) for letter in STRUCTURE.values()], axis=1) / share.sum()
    return shares


def residue_torsions(topology: mdtraj.Topology, *, omega: bool = False) -> list[tuple[str, Quad]]:
    """Return the torsions phi, psi, (omega,) chi1 to chi4 with their names ("ALA2-phi"), residue after residue.

    Those about a bond in a ring are left out, for turning it breaks the ring: phi and chi of proline, and what lies between
    cysteines that are bonded. Omega is that of the bond to the next residue, so that of a cap ACE is among them.

    Raises
    ------
    InputError
        When there is none.
    """
    named = named_torsions(topology)
    found: list[tuple[int, int, str, Quad]] = []
    for order, kind in enumerate(KINDS):
        if kind == "omega" and not omega:
            continue
        for quad in named[kind]:
            residue = topology.atom(quad[1]).residue
            if atoms_beyond(topology, quad[1], quad[2]) is not None:
                found.append((residue.index, order, f"{residue}-{kind}", quad))
    if not found:
        raise InputError(
            "representation.name 'residue' is of peptides and proteins: this molecule has no torsion phi, psi or chi that can "
            "turn; use 'torsion' with four atom indices, or 'internal'"
        )
    return [(name, quad) for _, _, name, quad in sorted(found)]
