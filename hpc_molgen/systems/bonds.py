"""The graph of bonds: which of them are single, its rings, a tree over them, and its branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpc_molgen.errors import InputError

if TYPE_CHECKING:
    import mdtraj
    from mdtraj.core.topology import Bond

SINGLE, AMIDE = 1.0, 1.25  # as mdtraj turns its types of bonds into numbers
_VALENCES = {"C": 4, "Si": 4, "N": 3, "P": 3, "O": 2, "S": 2}


def spanning_tree(neighbours: list[list[int]], elements: list[str]) -> dict[int, int]:
    """Return the parent of each atom that bonds reach (-1: root), by breadth-first search.

    From the first heavy atom that ends a chain and has a long one behind it.

    Raises
    ------
    InputError
        When no three atoms form a chain.
    """
    heavy = [atom for atom, element in enumerate(elements) if element != "H"]
    ends = [atom for atom in heavy if sum(elements[other] != "H" for other in neighbours[atom]) == 1]
    for root in [*ends, *heavy, *range(len(elements))]:
        tree = {root: -1}
        queue = [root]
        for atom in queue:
            for other in neighbours[atom]:
                if other not in tree:
                    tree[other] = atom
                    queue.append(other)
        # the first three atoms must form a chain root - child - grandchild
        if any(tree[tree[atom]] == root for atom in queue[1:] if tree[atom] != root):
            return tree
    raise InputError("this molecule has no chain of three bonded atoms to start internal coordinates from")


def branches(tree: dict[int, int], elements: list[str]) -> dict[int, list[int]]:
    """Return the children of each atom of a spanning tree, those with the largest subtrees first."""
    children: dict[int, list[int]] = {atom: [] for atom in tree}
    for atom, parent in tree.items():
        if parent >= 0:
            children[parent].append(atom)
    size: dict[int, int] = {}
    for atom in reversed(tree):
        size[atom] = 1 + sum(size[child] for child in children[atom])
    for branch in children.values():
        branch.sort(key=lambda child: (-size[child], elements[child] == "H", child))
    return children


def smallest_ring(neighbours: list[list[int]], first: int, second: int) -> frozenset[int]:
    """Return the atoms of a smallest ring that the bond first-second closes; the two atoms alone where it closes none."""
    before = {first: first}
    queue = [first]
    for atom in queue:
        for other in neighbours[atom]:
            if other in before or (atom == first and other == second):
                continue
            before[other] = atom
            queue.append(other)
        if second in before:
            break
    ring = {first, second}
    atom = second
    while atom in before and atom != first:
        ring.add(atom)
        atom = before[atom]
    return frozenset(ring)


def linear_atoms(topology: mdtraj.Topology, neighbours: list[list[int]]) -> set[int]:
    """Return the atoms between two others in a straight line, of alkynes, nitriles and cumulenes: no torsion turns about them.

    By the orders of bonds where the topology has them; a carbon atom with two neighbours is one anyhow, where there are
    hydrogens (else it may be a bead, or have hydrogens that are not written).
    """
    orders: dict[int, list[int]] = {}
    for bond in topology.bonds:
        for atom in bond:
            orders.setdefault(atom.index, []).append(bond.order or 0)
    elements = [atom.element.symbol for atom in topology.atoms]
    two = [atom for atom, others in enumerate(neighbours) if len(others) == 2]
    by_order = {atom for atom in two if 3 in orders[atom] or orders[atom] == [2, 2]}
    return by_order | {atom for atom in two if elements[atom] == "C" and "H" in elements}


def is_single(bond: Bond, neighbours: list[list[int]], elements: list[str]) -> bool:
    """Whether a bond that is in no ring is single: by its order or its type where the topology has them.

    Where it does not, as after a PDB file, by counting: of the valences that neighbours leave open on one side of a double
    bond, all but one pair up among themselves, so their number is odd, on either side. It is even on both sides of a single
    bond between conjugated parts. Molecules without hydrogens, which may be united atoms or beads, have single bonds here.
    """
    if bond.order is not None:
        return bool(bond.order == SINGLE)
    if bond.type is not None:
        return float(bond.type) in (SINGLE, AMIDE)
    if "H" not in elements:
        return True
    i, j = (atom.index for atom in bond)
    return not all(_open_valences(*side, neighbours, elements) % 2 for side in ((i, j), (j, i)))


def _open_valences(start: int, other: int, neighbours: list[list[int]], elements: list[str]) -> int:
    """Number of valences left open by `start` and all atoms with open valences connected to it, but not through `other`."""
    spare = [max(0, _VALENCES.get(element, 0) - len(neighbours[atom])) for atom, element in enumerate(elements)]
    found, queue = {start, other}, [start]
    total = 0
    while queue:
        atom = queue.pop()
        total += spare[atom]
        new = {near for near in neighbours[atom] if spare[near] and spare[atom]} - found
        found |= new
        queue += new
    return total
