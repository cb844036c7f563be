"""CMAPTorsionForce for the batched engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import openmm

from hpc_molgen.dynamics.custom import base
from hpc_molgen.dynamics.custom.base import CustomTerm

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class CorrectionMapTerm(CustomTerm):
    """Correction maps over pairs of torsions (MacKerell et al. 2004, J. Comput. Chem. 25, 1400).

    Attributes
    ----------
    first, second : np.ndarray, shape=(4, n_terms)
        Atoms of the torsions.
    size, offset : np.ndarray, shape=(n_terms, 1)
        Cells along one side of a term's map; where in `coefficients` that map begins.
    coefficients : np.ndarray, shape=(4, 4, n_cells)
        Of t^k u^l, with t and u from 0 to 1 in each cell of each map; kJ/mol.
    """

    first: np.ndarray
    second: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    coefficients: np.ndarray

    def build(self, dtype: torch.dtype, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Put the maps on a device."""
        import torch

        atoms = torch.as_tensor(np.concatenate([self.first, self.second]), dtype=torch.long, device=device)
        table = torch.as_tensor(self.coefficients.reshape(16, -1), dtype=dtype, device=device)
        size, offset = (torch.as_tensor(a, dtype=torch.long, device=device) for a in (self.size, self.offset))
        per_radian = torch.as_tensor(self.size / (2 * np.pi), dtype=dtype, device=device)

        def cell(angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            place = torch.remainder(angle, 2 * np.pi) * per_radian
            # clamped as an integer: an exploded copy is not a number, but must not reach beyond the table
            index = torch.minimum(place.detach().long().clamp(min=0), size - 1)
            return index, place - index

        def energy(x: torch.Tensor) -> torch.Tensor:
            places = base.points(x, atoms)
            row, t = cell(base.torsion(*places[:4]))
            column, u = cell(base.torsion(*places[4:]))
            index = (offset + row * size + column).reshape(-1)
            c = table.index_select(1, index).reshape(4, 4, *t.shape)
            in_u = ((c[:, 3] * u + c[:, 2]) * u + c[:, 1]) * u + c[:, 0]
            return (((in_u[3] * t + in_u[2]) * t + in_u[1]) * t + in_u[0]).sum(0)

        return energy


def bicubic_coefficients(energy: np.ndarray) -> np.ndarray:
    """Coefficients of the tensor product of periodic cubic splines through a map.

    Parameters
    ----------
    energy : np.ndarray, shape=(size, size)

    Returns
    -------
    np.ndarray, shape=(4, 4, size, size)
        Of t^k u^l in each cell.
    """
    size = len(energy)
    one = np.eye(size)
    after = np.roll(one, 1, axis=1)  # the matrix that gives the value at the next point
    before = after.T
    slope = np.linalg.solve(before + 4 * one + after, 3 * (after - before))  # of the spline, per cell
    along = np.stack([one, slope, 3 * (after - one) - 2 * slope - after @ slope, 2 * (one - after) + slope + after @ slope])
    coefficients: np.ndarray = np.einsum("kia,ab,ljb->klij", along, energy, along, optimize=True)
    return coefficients


def read_cmap(force: openmm.CMAPTorsionForce) -> CustomTerm:
    """Return a CMAPTorsionForce as a term."""
    pieces: list[np.ndarray] = []
    sizes: list[int] = []
    for index in range(force.getNumMaps()):
        size, energy = force.getMapParameters(index)
        values = np.array([value._value if hasattr(value, "_value") else value for value in energy], dtype=np.float64)
        pieces.append(bicubic_coefficients(values.reshape(size, size, order="F")).reshape(4, 4, -1))
        sizes.append(size)
    starts = np.cumsum([0, *(size * size for size in sizes)])
    rows = np.array([force.getTorsionParameters(i) for i in range(force.getNumTorsions())], dtype=np.int64).reshape(-1, 9)
    which = rows[:, 0]
    return CorrectionMapTerm(
        "CMAPTorsionForce",
        True,
        np.ascontiguousarray(rows[:, 1:5].T),
        np.ascontiguousarray(rows[:, 5:].T),
        np.array(sizes, dtype=np.int64)[which][:, None],
        starts[which][:, None],
        np.concatenate(pieces, axis=2) if pieces else np.zeros((4, 4, 0)),
    )
