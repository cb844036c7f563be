"""Trp-cage, NLYIQWLKDGGPSSGRPPPS, as a structure-based C-alpha model: it folds and unfolds many times in a minute.

The native structure is that of the PDB file in `system.pdb` (1L2Y, say), or is built from the backbone torsions of its first
model: no file is needed and none is downloaded. A chain of 20 beads folds downhill: the share of native contacts has one
maximum at every temperature, so there are no two states to jump between.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mdtraj
import numpy as np
import openmm

from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.structure_based import build_model, chain_topology, contacts_of
from hpc_molgen.systems.torsions import place_atom

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig

_CODE = {
    "N": "ASN", "L": "LEU", "Y": "TYR", "I": "ILE", "Q": "GLN", "W": "TRP", "K": "LYS", "D": "ASP", "G": "GLY", "P": "PRO",
    "S": "SER", "R": "ARG",
}  # fmt: skip
SEQUENCE = [_CODE[letter] for letter in "NLYIQWLKDGGPSSGRPPPS"]
# degrees, of residues 2 to 20 and 1 to 19, read from 1L2Y, model 1 (facts/md.md, section 3); amides are trans
PHI = (-44, -66, -65, -65, -73, -65, -60, -78, 111, 55, -58, -82, -124, 68, -144, -70, -69, -77, -78)
PSI = (-56, -51, -31, -46, -30, -43, -43, -26, -9, 8, -124, -29, 19, 13, 25, 131, 160, 146, 124)
HEAVY_CONTACT_NM = 0.6  # between heavy atoms
# residues, counted from 1, with heavy atoms that near each other in 1L2Y, model 1: the built backbone has no side chains
_CONTACTS = (
    (1, 5), (1, 6), (2, 6), (2, 7), (2, 19), (2, 20), (3, 7), (3, 8), (3, 18), (3, 19), (4, 8), (4, 9), (5, 9), (5, 16),
    (6, 10), (6, 11), (6, 12), (6, 14), (6, 16), (6, 17), (6, 18), (6, 19), (7, 11), (7, 12), (9, 13), (9, 14), (9, 16),
    (10, 14), (11, 15), (11, 16), (12, 16),
)  # fmt: skip
CONTACTS = [(i - 1, j - 1) for i, j in _CONTACTS]


def trp_cage(config: SystemConfig) -> MolecularSystem:
    """Return the model.

    Raises
    ------
    InputError
        When a PDB file is named that holds another molecule.
    """
    if config.pdb is None:
        alpha, contacts = backbone(), CONTACTS
        source = "built from backbone torsions"
    else:
        alpha, contacts = _from_pdb(Path(config.pdb))
        source = Path(config.pdb).name
    return MolecularSystem(
        name="Trp-cage",
        topology=chain_topology(SEQUENCE),
        system_xml=openmm.XmlSerializer.serialize(build_model(alpha, contacts)),
        positions_nm=alpha,
        temperature_kelvin=config.temperature_kelvin,
        description=f"structure-based C-alpha model, {len(contacts)} native contacts, {source}",
    )


def backbone() -> np.ndarray:
    """Return positions of the C-alpha atoms (20, 3), in nm, of a backbone of ideal geometry with these torsions."""
    # Engh and Huber 1991, Acta Cryst. A 47, 392: bonds in nm, angles in degrees
    n = np.zeros(3)
    alpha = np.array([0.1458, 0.0, 0.0])
    carbon = alpha + 0.1525 * np.array([-np.cos(np.radians(111.0)), np.sin(np.radians(111.0)), 0.0])
    alphas = [alpha]
    for phi, psi in zip(PHI, PSI, strict=True):
        following = place_atom(carbon, alpha, n, 0.1329, 116.6, psi)
        next_alpha = place_atom(following, carbon, alpha, 0.1458, 121.7, 180.0)
        n, alpha, carbon = following, next_alpha, place_atom(next_alpha, following, carbon, 0.1525, 111.0, phi)
        alphas.append(alpha)
    return np.array(alphas)


def _from_pdb(path: Path) -> tuple[np.ndarray, list[tuple[int, int]]]:
    try:
        found = mdtraj.load(str(path))[0]
    except Exception as error:  # mdtraj's readers raise bare exceptions of many kinds
        raise InputError(f"{path}: not a PDB file that mdtraj can read ({error})") from error
    names = [residue.name for residue in found.topology.residues]
    if names != SEQUENCE:
        raise InputError(f"{path}: holds {' '.join(names[:5])} ... of {len(names)} residues, and Trp-cage is {SEQUENCE[0]} ...")
    x = found.xyz[0].astype(np.float64)
    heavy = {
        residue.index: x[[atom.index for atom in residue.atoms if atom.element.symbol != "H"]]
        for residue in found.topology.residues
    }
    return x[found.topology.select("name CA")], contacts_of(heavy, HEAVY_CONTACT_NM)
