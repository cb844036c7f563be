"""Torsions by name, their values, and turning them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpc_molgen.errors import InputError
from hpc_molgen.systems.bonds import branches, is_single, linear_atoms, spanning_tree

if TYPE_CHECKING:
    import mdtraj

Quad = tuple[int, int, int, int]
MAX_LISTED = 40  # names in a message


def place_atom(a: np.ndarray, b: np.ndarray, c: np.ndarray, bond_nm: float, angle_deg: float, torsion_deg: float) -> np.ndarray:
    """Position of the atom bonded to `a`, at an angle with `b` and a torsion about b-a with `c`."""
    angle, torsion = np.radians(angle_deg), np.radians(torsion_deg)
    axis = (a - b) / np.linalg.norm(a - b)
    normal = np.cross(b - c, axis)
    normal /= np.linalg.norm(normal)
    side = np.cross(normal, axis)
    across = np.cos(torsion) * side + np.sin(torsion) * normal
    position: np.ndarray = a + bond_nm * (np.sin(angle) * across - np.cos(angle) * axis)
    return position


def torsion_angles(positions_nm: np.ndarray, atoms: Quad) -> np.ndarray:
    """Return the torsion of four atoms in radians, in (-pi, pi], IUPAC sign.

    Parameters
    ----------
    positions_nm : np.ndarray, shape=(..., n_atoms, 3)
    atoms : tuple of four int

    Returns
    -------
    np.ndarray, shape=(...)
    """
    a, b, c, d = (np.asarray(positions_nm, dtype=np.float64)[..., index, :] for index in atoms)
    first, axis, last = b - a, c - b, d - c
    normal_1, normal_2 = np.cross(first, axis), np.cross(axis, last)
    sine = np.linalg.norm(axis, axis=-1) * np.sum(first * normal_2, axis=-1)
    angle: np.ndarray = np.arctan2(sine, np.sum(normal_1 * normal_2, axis=-1))
    return angle


def named_torsions(topology: mdtraj.Topology) -> dict[str, list[Quad]]:
    """Return the torsions of each kind in the order of residues: phi, psi, chi1 to chi4, omega.

    Where there are none of a protein, all rotatable bonds have a torsion of the kind "torsion", in the order of their atoms.
    """
    named = _protein_torsions(topology)
    others = [] if any(named.values()) else rotatable_torsions(topology)
    named["omega"] = amide_torsions(topology)  # mdtraj's omega leaves out the caps ACE and NME
    return {**named, "torsion": others}


def _protein_torsions(topology: mdtraj.Topology) -> dict[str, list[Quad]]:
    from mdtraj.geometry import dihedral

    named = {}
    for name in ("phi", "psi", "chi1", "chi2", "chi3", "chi4"):
        quads = getattr(dihedral, f"indices_{name}")(topology)
        named[name] = [(int(a), int(b), int(c), int(d)) for a, b, c, d in quads]
    return named


def torsion_by_name(topology: mdtraj.Topology, name: str) -> Quad:
    """Return the atoms of a torsion: "phi", "psi2" (the second one), "torsion1", or four indices such as "4-6-8-14".

    Raises
    ------
    InputError
        For a name that the topology does not have; the message lists those it has.
    """
    if name.count("-") == 3 and name.replace("-", "").isdigit():
        a, b, c, d = (int(part) for part in name.split("-"))
        if max(a, b, c, d) >= topology.n_atoms or len({a, b, c, d}) < 4:
            raise InputError(f"torsion {name}: four different atoms below {topology.n_atoms} are needed")
        return a, b, c, d
    known = torsions_by_name(topology)
    if name not in known:
        names = ", ".join(sorted(known)[:MAX_LISTED]) or "none"
        more = ", ..." if len(known) > MAX_LISTED else ""
        raise InputError(
            f"there is no torsion '{name}' in this molecule; it has: {names}{more}; or give four atom indices i-j-k-l"
        )
    return known[name]


def torsions_by_name(topology: mdtraj.Topology) -> dict[str, Quad]:
    """Return all named torsions, by kind and number, and by kind alone where there is one of it."""
    known: dict[str, Quad] = {}
    for kind, quads in named_torsions(topology).items():
        known.update({f"{kind}{number}": quad for number, quad in enumerate(quads, start=1)})
        if len(quads) == 1:
            known[kind] = quads[0]
    # "chi1" is the first torsion of kind chi1 and also what "chi11" names
    return known


def neighbours_of(topology: mdtraj.Topology) -> list[list[int]]:
    """Return the atoms bonded to each atom."""
    neighbours: list[list[int]] = [[] for _ in range(topology.n_atoms)]
    for a, b in topology.bonds:
        neighbours[a.index].append(b.index)
        neighbours[b.index].append(a.index)
    return neighbours


def atoms_beyond(topology: mdtraj.Topology, near: int, far: int) -> list[int] | None:
    """Return the atoms on the `far` side of the bond near-far, or None when the bond lies in a ring."""
    neighbours = neighbours_of(topology)
    found, queue = {far}, [far]
    while queue:
        atom = queue.pop()
        for other in neighbours[atom]:
            if atom == far and other == near:
                continue
            if other == near:
                return None
            if other not in found:
                found.add(other)
                queue.append(other)
    return sorted(found)


def is_carbonyl(atom: int, elements: list[str], neighbours: list[list[int]]) -> bool:
    """Whether an atom is a carbon with an oxygen or sulphur that nothing else is bonded to."""
    return elements[atom] == "C" and any(elements[o] in "OS" and len(neighbours[o]) == 1 for o in neighbours[atom])


def amide_torsions(topology: mdtraj.Topology) -> list[Quad]:
    """Return one torsion X-C-N-Y for each amide bond, caps included, in the order of the atoms."""
    neighbours, elements = neighbours_of(topology), [atom.element.symbol for atom in topology.atoms]
    names = [atom.name for atom in topology.atoms]
    quads = []
    for first, second in topology.bonds:
        carbon, nitrogen = (first.index, second.index) if first.element.symbol == "C" else (second.index, first.index)
        if elements[nitrogen] != "N" or not is_carbonyl(carbon, elements, neighbours):
            continue
        before = [a for a in neighbours[carbon] if elements[a] == "C"]
        after = [a for a in neighbours[nitrogen] if elements[a] == "C" and a != carbon]
        if before and after:
            after.sort(key=lambda a: (names[a] != "CA", a))  # proline has two carbons there
            quads.append((before[0], carbon, nitrogen, after[0]))
    return sorted(quads, key=lambda quad: quad[1])


def rotatable_torsions(topology: mdtraj.Topology) -> list[Quad]:
    """Return one torsion for each rotatable bond: single, not in a ring, not an amide, no bare methyl at an end.

    Without named protein torsions in the topology they are in the order of the atoms of their bonds, and end in atoms that make
    them coordinates of the Z-matrix.
    """
    neighbours = neighbours_of(topology)
    elements = [atom.element.symbol for atom in topology.atoms]
    heavy = [[other for other in neighbours[atom] if elements[other] != "H"] for atom in range(topology.n_atoms)]
    linear = linear_atoms(topology, neighbours)
    pairs = []
    for bond in topology.bonds:
        i, j = (atom.index for atom in bond)
        amide = any(is_carbonyl(c, elements, neighbours) and elements[n] == "N" for c, n in ((i, j), (j, i)))
        if len(heavy[i]) < 2 or len(heavy[j]) < 2 or amide or {i, j} & linear:
            continue
        if is_single(bond, neighbours, elements) and atoms_beyond(topology, i, j) is not None:
            pairs.append((i, j))

    def last(atom: int, before: int) -> int:
        return min((o for o in heavy[atom] if o != before), key=lambda o: (len(neighbours[o]) == 1, o))

    quads = [(last(i, j), i, j, last(j, i)) for i, j in pairs]
    return quads if any(_protein_torsions(topology).values()) else _along_tree(quads, neighbours, elements)


def _along_tree(quads: list[Quad], neighbours: list[list[int]], elements: list[str]) -> list[Quad]:
    """Let torsions begin in the atom that leads to their bond in the spanning tree; the order of atoms."""
    if not quads:
        return []
    tree = spanning_tree(neighbours, elements)
    children = branches(tree, elements)
    found = []
    for a, b, c, d in quads:
        near, far, end = (b, c, d) if tree.get(c) == b else (c, b, a)
        if near not in tree:  # of another molecule
            found.append((a, b, c, d))
            continue
        # the first two branches of the root give its frame
        start = tree[near] if tree[near] >= 0 else next(child for child in children[near] if child != far)
        found.append((start, near, far, end) if near < far else (end, far, near, start))
    return sorted(found, key=lambda quad: (min(quad[1:3]), max(quad[1:3])))


def set_torsion(topology: mdtraj.Topology, positions_nm: np.ndarray, atoms: Quad, angle_rad: float) -> np.ndarray:
    """Return a copy of one conformation in which the torsion has the value `angle_rad`, the rest moved rigidly.

    Raises
    ------
    InputError
        When the torsion's bond lies in a ring.
    """
    moving = atoms_beyond(topology, atoms[1], atoms[2])
    if moving is None:
        raise InputError(
            f"torsion {'-'.join(map(str, atoms))} turns about a bond in a ring, as phi of proline does, and cannot be set: "
            "choose another one"
        )
    turn = angle_rad - float(torsion_angles(positions_nm, atoms))
    origin = positions_nm[atoms[1]]
    axis = positions_nm[atoms[2]] - origin
    axis = axis / np.linalg.norm(axis)
    relative = positions_nm[moving] - origin
    turned = (
        relative * np.cos(turn) + np.cross(axis, relative) * np.sin(turn) + np.outer(relative @ axis, axis) * (1 - np.cos(turn))
    )
    result = np.array(positions_nm, dtype=np.float64)
    result[moving] = origin + turned
    return result
