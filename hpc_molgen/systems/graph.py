"""A molecule as a graph of atoms, bonds and torsions: what a network has to know of it to serve molecules it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from openmm import unit

from hpc_molgen.angles import wrap
from hpc_molgen.errors import InputError
from hpc_molgen.systems.bonds import smallest_ring
from hpc_molgen.systems.residues import STANDARD, residue_features
from hpc_molgen.systems.torsions import Quad, neighbours_of, torsion_angles

if TYPE_CHECKING:
    from hpc_molgen.systems.base import MolecularSystem

ELEMENTS = ("H", "C", "N", "O", "S", "P", "F", "Cl", "Br", "I")
HYBRIDISATIONS = ("sp3", "sp2", "sp", "end")
HARMONICS = 6  # of the torsional energy; force fields stop there
FARTHEST = 6  # bonds between two torsions from which on all distances are alike
N_DISTANCES = FARTHEST + 1
ATOM_FEATURES = (
    *(f"element {name}" for name in (*ELEMENTS, "other")), "charge", *(f"{n} neighbours" for n in (1, 2, 3, 4)),
    "hydrogens", "in a ring", *HYBRIDISATIONS,
)  # fmt: skip
N_RESIDUE_TYPES = len(STANDARD)


@dataclass(frozen=True)
class MolecularGraph:
    """Atoms, bonds and torsions; all of it is invariant under translation and rotation, and `mirrored` gives the mirror image.

    Attributes
    ----------
    atoms : np.ndarray, shape=(n_atoms, n_features)
        `ATOM_FEATURES` (the charge in elementary charges), then the residue's features (`systems.residues`): type, place in the
        sequence, secondary structure of the system's own structure; zeros outside of amino acids.
    bonds : np.ndarray, shape=(n_directed_bonds, 2), int
        From, to; each bond both ways.
    ends : np.ndarray, shape=(n_torsions, 2), int
        The two atoms of the bond that a torsion turns: near, far.
    hanging : np.ndarray, shape=(n_hanging, 3), int
        Torsion, end (0: near, 1: far), atom bonded to that end beyond the bond.
    hanging_turn : np.ndarray, shape=(n_hanging,)
        By how much the torsion to that atom differs from the torsion itself, as angles of features (times the fold).
    fold : np.ndarray, shape=(n_torsions,)
        The feature of a torsion is so many times the torsion.
    centre : np.ndarray, shape=(n_torsions,)
        What is added to a feature to give the angle itself.
    energy : np.ndarray, shape=(n_torsions, 2 * HARMONICS)
        Cosine, then sine coefficients of the torsional energy of that bond by the angle of the feature, in kT, from 1 on.
    distance : np.ndarray, shape=(n_torsions, n_torsions), int
        Bonds between the bonds of two torsions, at most `FARTHEST`.
    side : np.ndarray, shape=(n_torsions, n_torsions), int
        The end of the first torsion's bond that is nearer to the second.
    turn : np.ndarray, shape=(n_torsions, n_torsions)
        By how much the torsion that leads from the first one's bond towards the second differs from the first; as
        `hanging_turn`.
    """

    atoms: np.ndarray
    bonds: np.ndarray
    ends: np.ndarray
    hanging: np.ndarray
    hanging_turn: np.ndarray
    fold: np.ndarray
    centre: np.ndarray
    energy: np.ndarray
    distance: np.ndarray
    side: np.ndarray
    turn: np.ndarray

    @property
    def n_torsions(self) -> int:
        """Number of torsions."""
        return len(self.ends)

    def mirrored(self) -> MolecularGraph:
        """Return the graph of the mirror image, of which every torsion has the opposite sign."""
        odd = np.concatenate([np.ones(HARMONICS), -np.ones(HARMONICS)])
        changed = {"hanging_turn": -self.hanging_turn, "turn": -self.turn, "centre": -self.centre, "energy": self.energy * odd}
        return replace(self, **changed)

    def anonymous(self) -> MolecularGraph:
        """Return the graph without the types of its residues, as of residues that a network has not been taught."""
        atoms = self.atoms.copy()
        atoms[:, len(ATOM_FEATURES) : len(ATOM_FEATURES) + N_RESIDUE_TYPES] = 0
        return replace(self, atoms=atoms)

    def residue_types(self) -> list[str]:
        """Return the types of its residues, sorted."""
        columns = self.atoms[:, len(ATOM_FEATURES) : len(ATOM_FEATURES) + N_RESIDUE_TYPES]
        return [name for number, name in enumerate(STANDARD) if columns[:, number].any()]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MolecularGraph:
        """Rebuild what `as_dict` returned."""
        whole = {"bonds": 2, "ends": 2, "hanging": 3, "distance": 0, "side": 0}
        arrays = {name: np.array(value, dtype=int if name in whole else float) for name, value in values.items()}
        return cls(**{name: array.reshape(-1, whole[name]) if whole.get(name) else array for name, array in arrays.items()})


def molecular_graph(
    system: MolecularSystem, torsions: Sequence[tuple[Quad, int]], centre: Sequence[float] = ()
) -> MolecularGraph:
    """Describe a molecule and some of its torsions.

    Parameters
    ----------
    system : MolecularSystem
    torsions : sequence of ((i, j, k, l), fold)
        Those that a surrogate moves, in the order of its features.
    centre : sequence of float, optional
        What is added to each feature; zeros by default.

    Raises
    ------
    InputError
        Without torsions.
    """
    if not torsions:
        raise InputError(
            f"{system.name}: no torsion of it turns freely, so there is nothing for a surrogate of torsions to move"
        )
    describe = _Describer(system, list(torsions))
    n = len(torsions)
    hanging = describe.hanging()
    pairs = [describe.pair(i, j) for i in range(n) for j in range(n)]
    distance, side, turn = (np.array(column).reshape(n, n) for column in zip(*pairs, strict=True))
    return MolecularGraph(
        atoms=describe.atoms(), bonds=np.array([(a, b) for a, near in enumerate(describe.neighbours) for b in near]),
        ends=np.array([(quad[1], quad[2]) for quad, _ in torsions]), hanging=np.array([row for row, _ in hanging]),
        hanging_turn=np.array([turned for _, turned in hanging]), fold=np.array([float(fold) for _, fold in torsions]),
        centre=np.array(centre, dtype=float) if len(centre) else np.zeros(n), energy=describe.energies(),
        distance=distance, side=side, turn=turn,
    )  # fmt: skip


class _Describer:
    """Reads what a graph holds from a system's topology, structure and force field."""

    def __init__(self, system: MolecularSystem, torsions: list[tuple[Quad, int]]) -> None:
        self.system, self.torsions = system, torsions
        self.neighbours = neighbours_of(system.topology)
        self._x = system.positions_nm
        self._energy = openmm.XmlSerializer.deserialize(system.system_xml)

    def _angle(self, *atoms: int) -> float:
        return float(torsion_angles(self._x, (atoms[0], atoms[1], atoms[2], atoms[3])))

    def atoms(self) -> np.ndarray:
        """Features of the atoms."""
        topology = self.system.topology
        elements = [atom.element.symbol if atom.element is not None else "" for atom in topology.atoms]
        charges, rings = _charges(self._energy), _in_rings(self.neighbours)
        residues = residue_features(topology, np.asarray(self._x)[None])
        of_residue = dict(zip(residues.indices.tolist(), residues.values, strict=True))
        nothing = np.zeros(residues.values.shape[1])
        rows = []
        for atom in topology.atoms:
            near, element = self.neighbours[atom.index], elements[atom.index]
            kind = _hybridisation(element, near, self._x, atom.index)
            row = [float(element == name) for name in ELEMENTS] + [float(element not in ELEMENTS), charges[atom.index]]
            row += [float(len(near) == n) for n in (1, 2, 3, 4)] + [sum(elements[other] == "H" for other in near) / 3]
            row += [float(atom.index in rings)] + [float(kind == name) for name in HYBRIDISATIONS]
            rows.append(np.concatenate([row, of_residue.get(atom.residue.index, nothing)]))
        return np.array(rows)

    def hanging(self) -> list[tuple[tuple[int, int, int], float]]:
        """What hangs on both ends of each torsion's bond, and at which angle from the torsion."""
        found = []
        for number, ((first, near, far, last), fold) in enumerate(self.torsions):
            own = self._angle(first, near, far, last)
            for atom in self.neighbours[near]:
                if atom != far:
                    found.append(((number, 0, atom), _wrapped(fold * (self._angle(atom, near, far, last) - own))))
            for atom in self.neighbours[far]:
                if atom != near:
                    found.append(((number, 1, atom), _wrapped(fold * (self._angle(first, near, far, atom) - own))))
        return found

    def energies(self) -> np.ndarray:
        """Fourier coefficients of the torsional energy about each bond, its ends rigid; in kT."""
        series = np.zeros((len(self.torsions), HARMONICS + 1), dtype=complex)
        axes = {pair: n for n, (quad, _) in enumerate(self.torsions) for pair in ((quad[1], quad[2]), (quad[2], quad[1]))}
        for force in self._energy.getForces():
            if not isinstance(force, openmm.PeriodicTorsionForce):
                continue
            for index in range(force.getNumTorsions()):
                a, b, c, d, n, phase, height = force.getTorsionParameters(index)
                number = axes.get((b, c))
                if number is None or a not in self.neighbours[b] or d not in self.neighbours[c]:
                    continue  # about another bond, or improper
                quad, fold = self.torsions[number]
                if n % fold or n > HARMONICS:
                    continue
                offset = self._angle(a, b, c, d) - self._angle(*quad)
                strength = height.value_in_unit(unit.kilojoule_per_mole) / self.system.kt_kj_mol
                series[number, n // fold] += strength * np.exp(1j * (n * offset - phase.value_in_unit(unit.radian)))
        return np.concatenate([series.real[:, 1:], -series.imag[:, 1:]], axis=1)

    def pair(self, i: int, j: int) -> tuple[int, int, float]:
        """Distance, side and turn of a pair of torsions."""
        (first, near, far, last), fold = self.torsions[i]
        if i == j:
            return 0, 0, 0.0
        goal = set(self.torsions[j][0][1:3])
        paths = [self._path(end, other, goal) for end, other in ((near, far), (far, near))]
        side = int(len(paths[1]) < len(paths[0]))
        path = paths[side]
        towards = path[1] if len(path) > 1 else next(iter(goal - {path[0]}))
        if towards in (near, far):  # both ends in one ring
            return 0, side, 0.0
        quad = (first, near, far, towards) if side else (towards, near, far, last)
        turn = fold * (self._angle(*quad) - self._angle(first, near, far, last))
        return min(len(path) - 1, FARTHEST), side, _wrapped(turn)

    def _path(self, start: int, other: int, goal: set[int]) -> list[int]:
        """Atoms of a shortest path from `start`, not through `other`, to one of `goal`; a long one where there is none."""
        before, queue = {start: -1}, [start]
        for atom in queue:
            if atom in goal:
                path = [atom]
                while before[path[-1]] >= 0:
                    path.append(before[path[-1]])
                return path[::-1]
            for near in self.neighbours[atom]:
                if near not in before and near != other:
                    before[near] = atom
                    queue.append(near)
        return [start] * 10_000


def _wrapped(angle: float) -> float:
    return float(wrap(np.array(angle)))


def _charges(energy: openmm.System) -> list[float]:
    """Partial charges in elementary charges; zeros without a NonbondedForce."""
    for force in energy.getForces():
        if isinstance(force, openmm.NonbondedForce):
            quantities = (force.getParticleParameters(index)[0] for index in range(force.getNumParticles()))
            return [charge.value_in_unit(unit.elementary_charge) for charge in quantities]
    return [0.0] * energy.getNumParticles()


def _in_rings(neighbours: list[list[int]]) -> set[int]:
    """Atoms of rings."""
    bonds = ((first, second) for first, near in enumerate(neighbours) for second in near if second > first)
    rings = (smallest_ring(neighbours, *bond) for bond in bonds)
    return {atom for ring in rings if len(ring) > 2 for atom in ring}


def _hybridisation(element: str, near: list[int], positions_nm: np.ndarray, atom: int) -> str:
    if element == "H" or not near:
        return "end"
    if len(near) >= 4:
        return "sp3"
    if len(near) == 3:
        return "sp3" if element == "N" and _pyramidal(near, positions_nm, atom) else "sp2"
    if element == "C":
        return "sp"
    return "sp3" if len(near) == 2 and element in "OS" else "sp2"


def _pyramidal(near: list[int], positions_nm: np.ndarray, atom: int) -> bool:
    arms = positions_nm[near] - positions_nm[atom]
    arms = arms / np.linalg.norm(arms, axis=1, keepdims=True)
    return abs(float(np.linalg.det(arms))) > 0.35  # 0.77 where all angles are tetrahedral, 0 in a plane
