"""The pocket of a complex of beads: which beads are ligand, haem and lining, the way out, and the ligand's coordinates.

All of it follows from the topology (a residue named LIG is the ligand, one named HEM the haem, with its iron named FE) and the
native positions. Directions are those of the laboratory: the models of `protein_ligand` hold the far part of the receptor in
place, so nothing has to be superposed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpc_molgen.errors import InputError

if TYPE_CHECKING:
    import mdtraj

    from hpc_molgen.systems.base import MolecularSystem

LIGAND, HAEM, IRON = "LIG", "HEM", "FE"
CONTACT_NM = 0.9  # between a bead of the ligand and one of the receptor, in the native structure
FORMED_NM, FORMED_WIDTH_NM = 0.2, 0.05  # a contact counts half at this much over its native length
N_DIRECTIONS, CROWDING_NM = 500, 0.4


@dataclass(frozen=True)
class Pocket:
    """Native geometry of a binding site.

    Attributes
    ----------
    ligand, receptor : np.ndarray of int
        Their beads; those of the haem are the receptor's.
    iron : int or None
        The haem's iron.
    contacts : np.ndarray of int, shape=(n_contacts, 2)
        Receptor bead and ligand bead, in order of the receptor bead's place along the way out, deepest first.
    lengths_nm : np.ndarray, shape=(n_contacts,)
        Their native lengths.
    centre_nm : np.ndarray, shape=(3,)
        Where the mean of the ligand's beads is.
    axes : np.ndarray, shape=(3, 3)
        Rows: two directions across, and the way out.
    """

    ligand: np.ndarray
    receptor: np.ndarray
    iron: int | None
    contacts: np.ndarray
    lengths_nm: np.ndarray
    centre_nm: np.ndarray
    axes: np.ndarray

    @property
    def lining(self) -> np.ndarray:
        """Beads of the receptor that touch the ligand in the native structure, ascending."""
        return np.unique(self.contacts[:, 0])

    def local(self, positions_nm: np.ndarray) -> np.ndarray:
        """Return coordinates (..., 3) of points across, across and outward, from the centre."""
        return np.asarray((np.asarray(positions_nm, dtype=np.float64) - self.centre_nm) @ self.axes.T)


def find_pocket(topology: mdtraj.Topology, native_nm: np.ndarray) -> Pocket:
    """Return the pocket of the ligand.

    Raises
    ------
    InputError
        When there is no ligand, or nothing of the receptor near it.
    """
    ligand = np.array([atom.index for atom in topology.atoms if atom.residue.name == LIGAND], dtype=int)
    if not len(ligand):
        raise InputError(f"observables: coordinates of a ligand need a residue named {LIGAND}, and this molecule has none")
    irons = [atom.index for atom in topology.atoms if (atom.residue.name, atom.name) == (HAEM, IRON)]
    receptor = np.setdiff1d(np.arange(topology.n_atoms), ligand)
    native = np.asarray(native_nm, dtype=np.float64)
    apart = np.linalg.norm(native[receptor][:, None] - native[ligand][None], axis=2)
    rows, columns = np.nonzero(apart < CONTACT_NM)
    if not len(rows):
        raise InputError(f"observables: nothing of the receptor is within {CONTACT_NM} nm of the ligand's beads")
    centre = native[ligand].mean(axis=0)
    axes = _frame(way_out(native[receptor] - centre))
    outward = (native[receptor[rows]] - centre) @ axes[2]
    order = np.lexsort((columns, rows, outward))
    return Pocket(
        ligand=ligand,
        receptor=receptor,
        iron=irons[0] if irons else None,
        contacts=np.stack([receptor[rows], ligand[columns]], axis=1)[order],
        lengths_nm=apart[rows, columns][order],
        centre_nm=centre,
        axes=axes,
    )


def way_out(around_nm: np.ndarray) -> np.ndarray:
    """Return the direction (3,) from the origin that passes the least of the points (n, 3), of `N_DIRECTIONS` on a sphere."""
    number = np.arange(N_DIRECTIONS)
    height = 1 - (2 * number + 1) / N_DIRECTIONS
    turn = np.pi * (3 - np.sqrt(5)) * number  # the golden angle
    flat = np.sqrt(1 - height**2)
    directions = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1)
    along = around_nm @ directions.T
    beside2 = (around_nm**2).sum(axis=1)[:, None] - along**2
    crowding = np.where(along > 0, np.exp(-beside2 / (2 * CROWDING_NM**2)), 0.0).sum(axis=0)
    return np.asarray(directions[int(crowding.argmin())])


def _frame(axis: np.ndarray) -> np.ndarray:
    beside = np.cross(axis, np.eye(3)[int(np.abs(axis).argmin())])
    beside /= np.linalg.norm(beside)
    return np.array([beside, np.cross(axis, beside), axis])


def _centre(pocket: Pocket, x: np.ndarray) -> np.ndarray:
    return np.asarray(x[:, pocket.ligand].mean(axis=1))


def _distance(pocket: Pocket, x: np.ndarray) -> np.ndarray:
    target = x[:, pocket.lining].mean(axis=1) if pocket.iron is None else x[:, pocket.iron]
    return np.asarray(np.linalg.norm(_centre(pocket, x) - target, axis=1))


def _displacement(pocket: Pocket, x: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(_centre(pocket, x) - pocket.centre_nm, axis=1))


def _formed(pocket: Pocket, x: np.ndarray) -> np.ndarray:
    i, j = pocket.contacts.T
    excess = np.linalg.norm(x[:, i] - x[:, j], axis=2) - pocket.lengths_nm - FORMED_NM
    return np.asarray(0.5 - 0.5 * np.tanh(excess / (2 * FORMED_WIDTH_NM)))


def _inner(pocket: Pocket, x: np.ndarray) -> np.ndarray:
    return _formed(pocket, x)[:, : (len(pocket.contacts) + 1) // 2]


def _place(axis: int) -> Callable[[Pocket, np.ndarray], np.ndarray]:
    return lambda pocket, x: pocket.local(_centre(pocket, x))[:, axis]


def _tilt(pocket: Pocket, x: np.ndarray) -> np.ndarray:
    along = x[:, pocket.ligand[-1]] - x[:, pocket.ligand[0]]
    return np.asarray(along @ pocket.axes[2] / np.maximum(np.linalg.norm(along, axis=1), 1e-12))


def _spread(beads: Callable[[Pocket], np.ndarray]) -> Callable[[Pocket, np.ndarray], np.ndarray]:
    def spread(pocket: Pocket, x: np.ndarray) -> np.ndarray:
        part = x[:, beads(pocket)]
        return np.asarray(np.sqrt(((part - part.mean(axis=1, keepdims=True)) ** 2).sum(axis=2).mean(axis=1)))

    return spread


COORDINATES: dict[str, tuple[Callable[[Pocket, np.ndarray], np.ndarray], str]] = {
    "ligand_distance": (_distance, "nanometers"),
    "ligand_displacement": (_displacement, "nanometers"),
    "pocket_contacts": (lambda pocket, x: _formed(pocket, x).mean(axis=1), "dimensionless"),
    "pocket_contacts_inner": (lambda pocket, x: _inner(pocket, x).mean(axis=1), "dimensionless"),
    "ligand_outward": (_place(2), "nanometers"),
    "ligand_across_1": (_place(0), "nanometers"),
    "ligand_across_2": (_place(1), "nanometers"),
    "ligand_tilt": (_tilt, "dimensionless"),
    "ligand_rg": (_spread(lambda pocket: pocket.ligand), "nanometers"),
    "pocket_radius": (_spread(lambda pocket: pocket.lining), "nanometers"),
}


def pocket_coordinate(system: MolecularSystem, name: str) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """Return a function of positions (n, n_atoms, 3) that gives (n,) values, and its unit.

    Parameters
    ----------
    name : str
        "ligand_distance": from the mean of the ligand's beads to the iron (to the mean of the lining where there is no haem);
        "ligand_displacement": of that mean from its native place; "pocket_contacts": smooth share of the native contacts;
        "pocket_contacts_inner": of the deeper half of them; "ligand_outward", "ligand_across_1", "ligand_across_2": the
        displacement's components along the way out and across it; "ligand_tilt": cosine between the ligand's first to last bead
        and the way out; "ligand_rg"; "pocket_radius": root mean square distance of the lining beads from their mean.

    Raises
    ------
    InputError
        As `find_pocket`, and for the tilt of a single bead.
    """
    pocket = find_pocket(system.topology, system.positions_nm)
    if len(pocket.ligand) < 2 and name == "ligand_tilt":
        raise InputError(f"observables: {name} needs a ligand of two beads or more, and that of {system.name} has one")
    function, unit = COORDINATES[name]
    return lambda positions_nm: function(pocket, np.asarray(positions_nm, dtype=np.float64)), unit
