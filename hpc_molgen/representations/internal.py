"""All 3N - 6 internal coordinates of a molecule, with the exact Jacobian."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from hpc_molgen.angles import wrap_angle
from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import Representation
from hpc_molgen.representations.symmetries import find_symmetries, fold_torsions, relabel, unfold_torsions
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.systems.torsions import Quad

if TYPE_CHECKING:
    from hpc_molgen.config import RepresentationConfig
    from hpc_molgen.systems.base import MolecularSystem

# a torsion whose circular standard deviation is above this (radians) counts as free: it lives on the torus (peptide bonds
# have 0.15 at 300 K, phi and psi within one basin 0.35 and more)
FREE_TORSION_SD = 0.35
# thermal vibration is 0.002 to 0.004 nm at 300 K; the rounding of an .xtc of rigid bonds looks like 0.0004 nm
RIGID_BOND_SD_NM = 8e-4
RIDGE = 1e-4
CHUNK = 4096  # frames whose intermediate results stay in the processor's cache


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean over the first axis."""
    return torch.einsum("n...,n->...", values, weights)


def circular_mean(angles: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Circular mean over the first axis."""
    return torch.atan2(weighted_mean(torch.sin(angles), weights), weighted_mean(torch.cos(angles), weights))


def circular_sd(angles: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Circular standard deviation sqrt(-2 ln R) over the first axis (Mardia and Jupp 2000, eq. 2.3.11)."""
    length = torch.hypot(weighted_mean(torch.sin(angles), weights), weighted_mean(torch.cos(angles), weights))
    return torch.sqrt(-2 * torch.log(length.clamp(1e-12, 1.0)))


def fourier_features(angles: torch.Tensor, harmonics: int = 3) -> torch.Tensor:
    """Cosines and sines of each angle up to `harmonics`, and products of first harmonics of each pair; (n, n_features)."""
    parts = [function(k * angles) for k in range(1, harmonics + 1) for function in (torch.cos, torch.sin)]
    for first, second in itertools.combinations(range(angles.shape[1]), 2):
        pair = [angles[:, first : first + 1] + sign * angles[:, second : second + 1] for sign in (1, -1)]
        parts += [function(angle) for angle in pair for function in (torch.cos, torch.sin)]
    return torch.cat(parts, dim=1) if angles.shape[1] else angles.new_zeros((len(angles), 0))


class InternalRepresentation(Representation):
    """Bonds, angles and torsions of a Z-matrix: free torsions on the torus, all else whitened.

    Exactness: features map one to one to conformations up to translation, rotation and the cyclic relabelling of
    equivalent end atoms (methyl hydrogens), with log|det J| in closed form. The torsion of a group of m equivalent atoms is
    described by m times the mean of their torsions, which relabelling leaves as it is; `canonicalise` chooses the one
    labelling whose mean torsion lies within pi/m of the group's centre, and the energy does not see the difference.
    The stiff coordinates e are whitened given the free torsions a: e = mean + B f(a) + L w, with Fourier features f,
    so that w has unit covariance; the shift has unit Jacobian and L a constant one.
    """

    name = "internal"
    target: ClassVar[str] = "the flexible molecule, all 3N - 6 internal coordinates"

    def __init__(self, zmatrix: ZMatrix, tensors: dict[str, torch.Tensor]) -> None:
        tensors = {name: value.contiguous() for name, value in tensors.items()}  # same bits before and after a file
        self.zmatrix = zmatrix
        self.symmetries = find_symmetries(zmatrix)
        self._centre = tensors["centre"]  # of every torsion, folded ones times their fold
        self._free = tensors["free"].bool()  # (N-3,)
        self._mean = tensors["mean"]
        self._shift = tensors["shift"]
        self._scale = tensors["scale"]  # lower triangular L
        self.n_torus = int(self._free.sum())
        self.n_euclidean = 3 * zmatrix.n_atoms - 6 - self.n_torus
        folds = float(sum(np.log(group.fold) for group in self.symmetries))
        self._log_det = float(torch.log(torch.diagonal(self._scale)).sum()) - folds

    @classmethod
    def fit(
        cls,
        system: MolecularSystem,
        config: RepresentationConfig,
        positions_nm: np.ndarray,
        weights: np.ndarray,
        free_torsions: tuple[Quad, ...] = (),
        *,
        flexible: bool = True,
        ridge: float = RIDGE,
    ) -> InternalRepresentation:
        """Learn constants from frames; `free_torsions` go to the torus even if they hardly move in these frames.

        A larger `ridge` of the regression on free torsions keeps the geometry sensible where there were no frames.

        Raises
        ------
        InputError
            When `flexible` and a bond does not vibrate: frames of MD with constraints do not cover the flexible molecule.
        """
        zmatrix = ZMatrix(system.topology)
        symmetries = find_symmetries(zmatrix)
        share = torch.as_tensor(weights, dtype=torch.float64)
        share = share / share.sum()
        x = torch.as_tensor(positions_nm, dtype=torch.float64)
        _, _, torsions = zmatrix.to_internal(x)
        centre = circular_mean(fold_torsions(torsions, symmetries), share)
        x = relabel(x, zmatrix, symmetries, centre)
        bonds, angles, torsions = zmatrix.to_internal(x)
        folded = fold_torsions(torsions, symmetries)
        centre = circular_mean(folded, share)
        free = circular_sd(folded, share) > FREE_TORSION_SD
        free[[row for atoms in free_torsions if (row := torsion_row(zmatrix, atoms)) is not None]] = True
        stiff = torch.cat([bonds, angles, wrap_angle(folded - centre)[:, ~free]], dim=1)
        features = fourier_features(wrap_angle(folded - centre)[:, free])
        mean = weighted_mean(stiff, share)
        if flexible:
            refuse_rigid_bonds(zmatrix, system, bonds, share, cls.name)
        design = features * share[:, None]
        centred = features - weighted_mean(features, share)
        penalty = ridge * torch.eye(features.shape[1], dtype=torch.float64)
        shift = (
            torch.linalg.solve(centred.T @ design + penalty, design.T @ (stiff - mean))
            if features.shape[1]
            else design.T @ stiff
        )
        residual = stiff - features @ shift
        mean = weighted_mean(residual, share)
        residual = residual - mean
        covariance = residual.T @ (residual * share[:, None])
        scale = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(mean), dtype=torch.float64))
        tensors = {"centre": centre, "free": free.to(torch.uint8), "mean": mean, "shift": shift, "scale": scale}
        return cls(zmatrix, tensors)

    def canonicalise(self, positions_nm: torch.Tensor) -> torch.Tensor:
        """Relabel equivalent end atoms so that each group's mean torsion lies in its central domain."""
        return relabel(positions_nm, self.zmatrix, self.symmetries, self._centre)

    def encode(self, positions_nm: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._encoded(part) for part in torch.split(positions_nm, CHUNK)])

    def _encoded(self, positions_nm: torch.Tensor) -> torch.Tensor:
        bonds, angles, torsions = self.zmatrix.to_internal(self.canonicalise(positions_nm.to(torch.float64)))
        around = wrap_angle(fold_torsions(torsions, self.symmetries) - self._centre)
        free = around[:, self._free]
        stiff = torch.cat([bonds, angles, around[:, ~self._free]], dim=1)
        residual = stiff - self._mean - self._shifted(free)
        white = torch.linalg.solve_triangular(self._scale, residual.T, upper=False).T
        return torch.cat([free, white], dim=1)

    def decode(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = features.to(torch.float64)
        free, white = wrap_angle(features[:, : self.n_torus]), features[:, self.n_torus :]
        stiff = self._mean + self._shifted(free) + white @ self._scale.T
        n_bonds, n_angles = self.zmatrix.n_atoms - 1, self.zmatrix.n_atoms - 2
        bonds, angles, rest = stiff[:, :n_bonds], stiff[:, n_bonds : n_bonds + n_angles], stiff[:, n_bonds + n_angles :]
        around = torch.empty((len(features), self.zmatrix.n_atoms - 3), dtype=torch.float64)
        around[:, self._free], around[:, ~self._free] = free, rest
        torsions = unfold_torsions(around, self._centre, self.symmetries)
        inside = (bonds > 0).all(1) & (angles > 0).all(1) & (angles < torch.pi).all(1) & (rest.abs() < torch.pi).all(1)
        positions, log_abs_det = self.zmatrix.to_positions(bonds.clamp(min=1e-3), angles.clamp(1e-6, torch.pi - 1e-6), torsions)
        log_abs_det = torch.where(inside, log_abs_det + self._log_det, torch.full_like(log_abs_det, -torch.inf))
        return positions, log_abs_det

    def _shifted(self, free: torch.Tensor) -> torch.Tensor:
        """What free torsions (n, n_torus) add to the mean of the stiff coordinates; zeros where no regression was made."""
        if not len(self._shift):
            return torch.zeros_like(self._mean)
        found: torch.Tensor = fourier_features(free) @ self._shift
        return found

    def pulled_back(self, features: torch.Tensor, positions_nm: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        of_free, of_stiff = self._pulled_back(positions_nm, gradient)
        if self.n_torus and len(self._shift):
            with torch.enable_grad():
                free = features[:, : self.n_torus].detach().double().requires_grad_(True)
                (through_shift,) = torch.autograd.grad(fourier_features(free), free, of_stiff @ self._shift.T)
            of_free = of_free + through_shift
        return torch.cat([of_free, of_stiff @ self._scale], dim=1)

    def pulled_back_at_rest(self, positions_nm: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """As `pulled_back`, but with the stiff coordinates held while the free torsions turn; (n, n_features)."""
        of_free, of_stiff = self._pulled_back(positions_nm, gradient)
        return torch.cat([of_free, of_stiff @ self._scale], dim=1)

    def _pulled_back(self, positions_nm: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients by the free torsions (n, n_torus) and by the stiff coordinates (n, n_euclidean) in nm and radians."""
        of_bonds, of_angles, of_torsions = self.zmatrix.pulled_back(positions_nm, gradient)
        of_around = of_torsions.clone()
        for group in self.symmetries:  # as in `unfold_torsions`
            leader, *others = (row - 3 for row in group.rows)
            of_around[:, leader] = of_torsions[:, leader] / group.fold
            of_around[:, others] -= of_around[:, leader, None]
        return of_around[:, self._free], torch.cat([of_bonds, of_angles, of_around[:, ~self._free]], dim=1)

    def torsion_column(self, atoms: Quad) -> int | None:
        """Column of the feature that is the torsion about the bond atoms[1]-atoms[2], or None."""
        columns = {index: column for column, index in enumerate(torch.nonzero(self._free).flatten().tolist())}
        row = torsion_row(self.zmatrix, atoms)
        return None if row is None else columns.get(row)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        tensors = {"centre": self._centre, "free": self._free.to(torch.uint8), "mean": self._mean}
        return {**tensors, "shift": self._shift, "scale": self._scale}, {"rows": rows_of(self.zmatrix)}

    @classmethod
    def from_state(
        cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, object]
    ) -> InternalRepresentation:
        zmatrix = ZMatrix(system.topology)
        if values.get("rows") != rows_of(zmatrix):
            raise InputError("the representation was made by another version, with other internal coordinates: train again")
        return cls(zmatrix, tensors)


def refuse_rigid_bonds(
    zmatrix: ZMatrix, system: MolecularSystem, bonds_nm: torch.Tensor, share: torch.Tensor, name: str
) -> None:
    """Check that every bond (n, N-1) of weighted frames vibrates; `name` is that of the representation.

    Raises
    ------
    InputError
        For frames of MD with constraints, which do not cover the flexible molecule.
    """
    spread = torch.sqrt(weighted_mean((bonds_nm - weighted_mean(bonds_nm, share)) ** 2, share))
    if float(spread.min()) < RIGID_BOND_SD_NM:
        rigid = zmatrix.rows[1 + int(spread.argmin())]
        names = [str(system.topology.atom(index)) for index in (rigid.a, rigid.atom)]
        raise InputError(
            f"the bond {names[0]} - {names[1]} varies by {float(spread.min()):.1e} nm only: the reference was run with "
            f"constraints, so '{name}' coordinates cannot cover the flexible molecule; use flexible MD, or "
            "representation.name: torsion"
        )


def rows_of(zmatrix: ZMatrix) -> list[list[int]]:
    """Return what each row of a Z-matrix is measured from, as files hold it."""
    return [[row.atom, row.a, row.b, row.c, row.sibling, row.fold] for row in zmatrix.rows]


def torsion_row(zmatrix: ZMatrix, atoms: Quad) -> int | None:
    """Index among the torsions of the one that turns the bond atoms[1]-atoms[2] and is the torsion of these atoms."""
    for index, row in enumerate(zmatrix.rows[3:]):
        if row.proper and atoms in ((row.atom, row.a, row.b, row.c), (row.c, row.b, row.a, row.atom)):
            return index
    return None
