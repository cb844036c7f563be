"""Torsions that turn freely at room temperature, by the rules of chemistry alone: no trajectory is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpc_molgen.errors import InputError
from hpc_molgen.systems.bonds import is_single, linear_atoms, smallest_ring
from hpc_molgen.systems.torsions import Quad, atoms_beyond, is_carbonyl, neighbours_of

if TYPE_CHECKING:
    import mdtraj

    from hpc_molgen.representations.zmatrix import ZMatrix


LARGEST_RING = 8  # atoms; of larger ones, closed by a disulfide say, no few torsions tell the shape


@dataclass(frozen=True)
class Rotor:
    """A free torsion of a Z-matrix.

    Attributes
    ----------
    row : int
        Among the torsions of the Z-matrix, from 0.
    atoms : tuple of four int
        The torsion's atoms; it turns the bond between the second and the third.
    fold : int
        The feature is this times the torsion: 3 for a methyl group.
    """

    row: int
    atoms: Quad
    fold: int


def free_rotors(topology: mdtraj.Topology, zmatrix: ZMatrix) -> list[Rotor]:
    """Return one torsion for each bond that turns, and those of saturated rings that tell how the ring is puckered.

    A bond turns if it is single and in no ring, and no amide, amidine or guanidine, whose torsions vibrate about a plane; a
    hydroxyl of an acid or a phenol is planar as well, but goes over to the other side. A ring of n atoms has n - 3 coordinates
    of its own (Cremer and Pople 1975, J. Am. Chem. Soc. 97, 1354): as many torsions about bonds between sp3 atoms are taken.

    Parameters
    ----------
    topology : mdtraj.Topology
    zmatrix : ZMatrix
        Of that molecule.

    Raises
    ------
    InputError
        For molecules with large rings.
    """
    neighbours = neighbours_of(topology)
    elements = [atom.element.symbol for atom in topology.atoms]
    linear = linear_atoms(topology, neighbours)
    single = {
        pair: is_single(bond, neighbours, elements)
        for bond in topology.bonds
        for pair in ((bond.atom1.index, bond.atom2.index), (bond.atom2.index, bond.atom1.index))
    }
    per_ring: dict[frozenset[int], int] = {}
    rotors = []
    for number, row in enumerate(zmatrix.rows[3:]):
        if not row.proper:
            continue
        near, far = row.b, row.a
        if atoms_beyond(topology, near, far) is None:
            ring = smallest_ring(neighbours, near, far)
            if len(ring) > LARGEST_RING:
                raise InputError(
                    f"{topology.atom(near)} - {topology.atom(far)} lie in a ring of {len(ring)} atoms, which has many shapes: "
                    "its free torsions are not independent; use representation.name: internal there"
                )
            saturated = all(len(neighbours[atom]) == 4 for atom in (near, far))
            if not saturated or per_ring.get(ring, 0) >= len(ring) - 3:
                continue
            per_ring[ring] = per_ring.get(ring, 0) + 1
        elif not single[near, far] or {near, far} & linear or _is_planar(near, far, elements, neighbours):
            continue
        rotors.append(Rotor(number, (row.c, row.b, row.a, row.atom), row.fold))
    return rotors


def _is_planar(i: int, j: int, elements: list[str], neighbours: list[list[int]]) -> bool:
    """Whether i-j is an amide, an amidine or a guanidine."""
    for carbon, nitrogen in ((i, j), (j, i)):
        if elements[carbon] == "C" and elements[nitrogen] == "N" and len(neighbours[nitrogen]) <= 3:
            others = [atom for atom in neighbours[carbon] if atom != nitrogen]
            if is_carbonyl(carbon, elements, neighbours) or (len(others) == 2 and any(elements[o] == "N" for o in others)):
                return True
    return False
