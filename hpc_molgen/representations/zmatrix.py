"""Bond, angle and torsion coordinates of one molecule: which atoms define them, and the map to positions and back."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from hpc_molgen.angles import wrap_angle
from hpc_molgen.errors import InputError
from hpc_molgen.systems.bonds import branches, spanning_tree
from hpc_molgen.systems.torsions import named_torsions, neighbours_of

if TYPE_CHECKING:
    import mdtraj


@dataclass(frozen=True)
class Row:
    """One atom placed by a bond to `a`, an angle with `b` and a torsion about b-a with `c` (-1: none).

    Attributes
    ----------
    sibling : int
        Row whose torsion this row's torsion is measured from (atoms on the same bond turn together); -1: absolute.
    fold : int
        Symmetry of the torsion: 3 for a methyl group, whose hydrogens cannot be told apart by the energy.
    proper : bool
        True when the torsion turns the bond b-a, so that it may be free to rotate.
    """

    atom: int
    a: int
    b: int
    c: int
    sibling: int = -1
    fold: int = 1
    proper: bool = False


class ZMatrix:
    """Z-matrix of one connected molecule, 3N - 6 coordinates.

    The coordinates of row i are bond r, angle theta and torsion tau: row 1 has r alone, row 2 has r and theta.
    Of the atoms beyond a bond the one that a named torsion (phi, chi1, torsion1, ...) ends in comes first, else that with
    the largest subtree, so that named torsions are coordinates.

    Parameters
    ----------
    topology : mdtraj.Topology
        One molecule with bonds.

    Raises
    ------
    InputError
        If the molecule has fewer than four atoms or is not connected by bonds.
    """

    def __init__(self, topology: mdtraj.Topology) -> None:
        self.n_atoms = int(topology.n_atoms)
        self._elements = [atom.element.symbol for atom in topology.atoms]
        self._neighbours = neighbours_of(topology)
        quads = [quad for kind in named_torsions(topology).values() for quad in kind]
        self._named = {pair for a, b, c, d in quads for pair in ((b, a), (c, d))}  # of an atom and its last one
        if self.n_atoms < 4:
            raise InputError(f"internal coordinates need at least four atoms, this molecule has {self.n_atoms}")
        self.rows = self._build()
        if len(self.rows) != self.n_atoms:
            raise InputError(
                f"internal coordinates need one molecule connected by bonds, but bonds reach {len(self.rows)} of the "
                f"{self.n_atoms} atoms: remove solvent and ions, or add the missing CONECT records"
            )

    def _build(self) -> list[Row]:
        parents = spanning_tree(self._neighbours, self._elements)
        children = branches(parents, self._elements)
        for atom, branch in children.items():
            branch.sort(key=lambda child: (atom, child) not in self._named)  # the others keep their order
        first = next(iter(parents))
        second = children[first][0]
        third = children[second][0]
        rows = [Row(first, -1, -1, -1), Row(second, first, -1, -1), Row(third, second, first, -1)]
        placed = {first: 0, second: 1, third: 2}
        frames = {first: (second, third), second: (first, third), third: (second, first)}
        queue = [third, second, first]
        while queue:
            a = queue.pop(0)
            b, c = frames[a]
            waiting = [child for child in children[a] if child not in placed]
            self._add_children(rows, placed, a, b, c, waiting, proper=a != second)
            for child in waiting:
                frames[child] = (a, b)
            queue = [child for child in waiting if children[child]] + queue
        return rows

    def _add_children(
        self, rows: list[Row], placed: dict[int, int], a: int, b: int, c: int, waiting: list[int], *, proper: bool
    ) -> None:
        kinds = Counter((self._elements[child], len(self._neighbours[child])) for child in waiting)
        alike = len(kinds) == 1 and len(self._neighbours[waiting[0]]) == 1 if waiting else False
        # not two, as of a carboxylate: impropers of Amber force fields tell one from the other, by 0.1 kT or so
        fold = 3 if proper and alike and len(waiting) == 3 and len(self._neighbours[a]) == 4 else 1
        leader = -1
        for child in waiting:
            row = Row(child, a, b, c, leader, fold if leader < 0 else 1, proper and leader < 0)
            placed[child] = len(rows)
            leader = placed[child] if leader < 0 else leader
            rows.append(row)

    def to_internal(self, positions_nm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return bonds (n, N-1), angles (n, N-2) and torsions (n, N-3) of positions (n, N, 3), in nm and radians.

        Torsions of rows with a sibling are differences to the sibling's, wrapped into (-pi, pi].
        """
        x = positions_nm
        atom, a, b = (torch.tensor(column) for column in zip(*((row.atom, row.a, row.b) for row in self.rows), strict=True))
        bonds = torch.linalg.vector_norm(x[:, atom[1:]] - x[:, a[1:]], dim=-1)
        u = x[:, atom[2:]] - x[:, a[2:]]
        v = x[:, b[2:]] - x[:, a[2:]]
        angles = torch.atan2(torch.linalg.vector_norm(torch.linalg.cross(u, v), dim=-1), (u * v).sum(-1))
        torsions = self.torsions(x, range(3, len(self.rows)))
        leaders = torch.tensor([row.sibling - 3 if row.sibling >= 0 else -1 for row in self.rows[3:]])
        follows = leaders >= 0
        offsets = torch.where(follows, torsions[:, leaders.clamp(min=0)], torch.zeros_like(torsions))
        return bonds, angles, wrap_angle(torsions - offsets)

    def torsions(self, positions_nm: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Return the torsions (n, n_rows) of some rows, in (-pi, pi], not as differences to a sibling's."""
        atoms = [(row.atom, row.a, row.b, row.c) for row in (self.rows[number] for number in rows)]
        columns = (torch.tensor(column) for column in zip(*atoms, strict=True))
        return _torsion(*(positions_nm[:, column] for column in columns))

    def to_positions(
        self, bonds: torch.Tensor, angles: torch.Tensor, torsions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Place the atoms; return positions (n, N, 3) and log|det J| (n,).

        The volume element is that of all 3N positions with overall translation and rotation (volume V times 8 pi^2, constant)
        divided out: sum of 2 ln r over all bonds and of ln sin(theta) over all angles (Herschbach, Johnston and Rapp 1959,
        J. Chem. Phys. 31, 1652). Rows are placed one after another with the batch contiguous (Parsons et al. 2005, J.
        Comput. Chem. 26, 1063).
        """
        r, theta, tau = (values.T.contiguous() for values in (bonds, angles, torsions))  # samples last, for speed
        leaders = torch.tensor([row.sibling - 3 if row.sibling >= 0 else -1 for row in self.rows[3:]])
        tau = torch.where((leaders >= 0)[:, None], tau + tau[leaders.clamp(min=0)], tau)
        along, across = -r[1:] * torch.cos(theta), r[1:] * torch.sin(theta)
        side, above = across[1:] * torch.cos(tau), across[1:] * torch.sin(tau)
        zero = torch.zeros_like(r[0])
        placed: dict[int, torch.Tensor] = {self.rows[0].atom: torch.stack([zero, zero, zero])}
        placed[self.rows[1].atom] = torch.stack([zero, zero, r[0]])
        third = self.rows[2]
        placed[third.atom] = placed[third.a] + torch.stack([across[0], zero, along[0]])
        frames: dict[tuple[int, int, int], torch.Tensor] = {}
        for number, row in enumerate(self.rows[3:]):
            atoms = row.a, row.b, row.c
            if atoms not in frames:  # atoms on the same bond share it
                frames[atoms] = _frame(*(placed[atom] for atom in atoms))
            axis, beside, normal = frames[atoms]
            placed[row.atom] = placed[row.a] + along[number + 1] * axis + side[number] * beside + above[number] * normal
        positions = torch.stack([placed[atom] for atom in range(self.n_atoms)]).permute(2, 0, 1).contiguous()
        log_abs_det = 2 * torch.log(r).sum(0) + torch.log(torch.sin(theta)).sum(0)
        return positions, log_abs_det

    def pulled_back(
        self, positions_nm: torch.Tensor, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients by bonds (n, N-1), angles (n, N-2) and torsions (n, N-3) of sum(positions * gradient) + log|det J|.

        Both arguments are (n, N, 3), `gradient` a constant.
        A coordinate moves the atoms that hang on it as a rigid body, along its bond, about its angle's normal or about its
        torsion's axis: what counts is the force and the torque on that body (Abe, Braun, Noguti and Go 1984, Comput. Chem. 8,
        239). Of a row that others follow the torsion turns these as well.
        """
        x, push = (values.permute(2, 1, 0).contiguous() for values in (positions_nm, gradient))  # samples last, for speed
        atom, a, b = (torch.tensor(column) for column in zip(*((row.atom, row.a, row.b) for row in self.rows), strict=True))
        hanging = self._hanging.to(x)
        force, torque = torch.matmul(hanging, push), torch.matmul(hanging, _cross(x, push))  # of rows from 1 on
        torque = torque - _cross(x[:, a[1:]], force)
        bond, lengths = _unit(x[:, atom[1:]] - x[:, a[1:]])
        axis, _ = _unit(x[:, a[2:]] - x[:, b[2:]])
        normal, sines = _unit(_cross(bond[:, 1:], axis))
        cosines = -(bond[:, 1:] * axis).sum(0)
        of_bonds = (bond * force).sum(0) + 2 / lengths
        of_angles = (normal * torque[:, 1:]).sum(0) + cosines / sines
        of_torsions = self._turning.to(x).T @ (axis[:, 1:] * torque[:, 2:]).sum(0)
        return of_bonds.T, of_angles.T, of_torsions.T

    @functools.cached_property
    def _hanging(self) -> torch.Tensor:
        """For each row from 1 on (N-1, N): one for its atom and for those that are placed from it, zero for others."""
        hanging = torch.zeros((self.n_atoms, self.n_atoms))
        for row in reversed(self.rows):
            hanging[row.atom, row.atom] = 1
            if row.a >= 0:
                hanging[row.a] += hanging[row.atom]
        return hanging[[row.atom for row in self.rows[1:]]]

    @functools.cached_property
    def _turning(self) -> torch.Tensor:
        """Which torsions (N-3, N-3; by row) a torsion (by column) turns: its own, and those that are counted from it."""
        turning = torch.eye(self.n_atoms - 3)
        for number, row in enumerate(self.rows[3:]):
            if row.sibling >= 0:
                turning[number, row.sibling - 3] = 1
        return turning


def _cross(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Cross product of vectors whose components are the first axis: several times as fast as `torch.linalg.cross`."""
    return torch.stack([u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]])


def _unit(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit vectors, and lengths; components are the first axis."""
    length = torch.sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2])
    return u / length, length


def _torsion(i: torch.Tensor, j: torch.Tensor, k: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    first, axis, third = j - i, k - j, last - k
    normal_1, normal_2 = torch.linalg.cross(first, axis), torch.linalg.cross(axis, third)
    sine = torch.linalg.vector_norm(axis, dim=-1) * (first * normal_2).sum(-1)
    return torch.atan2(sine, (normal_1 * normal_2).sum(-1))


def _frame(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Unit vectors along the bond b-a, beside it in the plane of c, and normal to that plane, stacked: shape (3, 3, n)."""
    axis, _ = _unit(a - b)
    normal, _ = _unit(_cross(b - c, axis))
    return torch.stack([axis, _cross(normal, axis), normal])
