"""Equivalent end atoms (a methyl's hydrogens), which the energy cannot tell apart: their groups, and one labelling of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpc_molgen.angles import wrap_angle
from hpc_molgen.representations.zmatrix import ZMatrix

SAME = 1e-9  # radians: rounding


@dataclass(frozen=True)
class Symmetry:
    """A group of equivalent end atoms (a methyl's hydrogens): rows leader, next, ... in cyclic order."""

    rows: tuple[int, ...]

    @property
    def fold(self) -> int:
        """Number of equivalent atoms."""
        return len(self.rows)


def find_symmetries(zmatrix: ZMatrix) -> list[Symmetry]:
    """Return the groups of equivalent end atoms whose torsion the Z-matrix folds."""
    groups = []
    for leader, row in enumerate(zmatrix.rows):
        if row.fold > 1:
            followers = [number for number, other in enumerate(zmatrix.rows) if other.sibling == leader]
            groups.append(Symmetry((leader, *followers)))
    return groups


def _deviations(offsets: torch.Tensor) -> torch.Tensor:
    """Sum over followers of the deviation of their offset (n, fold - 1) from the leader from the ideal one; (n,)."""
    fold = offsets.shape[1] + 1
    ideal = torch.arange(1, fold, dtype=offsets.dtype) * (2 * torch.pi / fold)
    handed = torch.sign(offsets[:, :1])  # which way round the labels go
    return wrap_angle(offsets - handed * ideal).sum(-1)


def _offsets(torsions: torch.Tensor, group: Symmetry) -> torch.Tensor:
    return torsions[:, [row - 3 for row in group.rows[1:]]]


def fold_torsions(torsions: torch.Tensor, symmetries: list[Symmetry]) -> torch.Tensor:
    """Replace each leader's torsion by m times the mean torsion of its group, wrapped."""
    folded = torsions.clone()
    for group in symmetries:
        leader = group.rows[0] - 3
        folded[:, leader] = wrap_angle(group.fold * torsions[:, leader] + _deviations(_offsets(torsions, group)))
    return folded


def unfold_torsions(around: torch.Tensor, centre: torch.Tensor, symmetries: list[Symmetry]) -> torch.Tensor:
    """Inverse of `fold_torsions` in the central domain: `around` are deviations from `centre`."""
    torsions = wrap_angle(around + centre)
    for group in symmetries:
        leader = group.rows[0] - 3
        total = around[:, leader] + centre[leader]
        torsions[:, leader] = wrap_angle((total - _deviations(_offsets(torsions, group))) / group.fold)
    return torsions


def best_shift(positions_nm: torch.Tensor, zmatrix: ZMatrix, group: Symmetry, centre: torch.Tensor) -> torch.Tensor:
    """Return by how much (n,) the labels of a group have to be shifted so that its mean torsion is nearest to its centre.

    The same conformation under another labelling gets another shift, to the same labels: those of shift zero are one of each
    `fold` labellings. Far from the ideal geometry several may have the same mean, of which the nearest leader decides.
    """
    torsions, middle = zmatrix.torsions(positions_nm, group.rows), centre[group.rows[0] - 3] / group.fold
    distances = []
    for shift in range(group.fold):
        shifted = torsions.roll(-shift, dims=1)
        mean = shifted[:, 0] + _deviations(wrap_angle(shifted[:, 1:] - shifted[:, :1])) / group.fold
        distances.append(wrap_angle(mean - middle).abs())
    distance = torch.stack(distances, dim=1)
    nearest = distance <= distance.amin(dim=1, keepdim=True) + SAME
    return torch.where(nearest, wrap_angle(torsions - middle).abs(), torch.inf).argmin(dim=1)


def relabel(positions_nm: torch.Tensor, zmatrix: ZMatrix, symmetries: list[Symmetry], centre: torch.Tensor) -> torch.Tensor:
    """Shift the labels within each group cyclically so that the mean torsion lies within pi/m of centre/m."""
    result = positions_nm.clone()
    for group in symmetries:
        atoms = torch.tensor([zmatrix.rows[row].atom for row in group.rows])
        best = best_shift(positions_nm, zmatrix, group, centre)
        source = atoms[(torch.arange(group.fold) + best[:, None]) % group.fold]
        result[:, atoms] = positions_nm.gather(1, source[:, :, None].expand(-1, -1, 3))
    return result
