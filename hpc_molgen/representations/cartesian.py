"""All atoms' Cartesian coordinates in a frame that the molecule carries with it, with the exact Jacobian."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import Representation
from hpc_molgen.representations.internal import CHUNK, circular_mean, refuse_rigid_bonds, rows_of, weighted_mean
from hpc_molgen.representations.symmetries import best_shift, find_symmetries, fold_torsions, relabel
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.systems.torsions import neighbours_of

if TYPE_CHECKING:
    from hpc_molgen.config import RepresentationConfig
    from hpc_molgen.systems.base import MolecularSystem

Frame = tuple[int, int, int]
"""Atoms a, b, c bonded in a chain: b is the origin, a lies on the z axis, and c in the half plane x > 0 of the plane xz."""
LEAST_SINE = 0.5  # of the angle a-b-c: near a straight line the plane of the three turns with every vibration
_LEAST_NM = 1e-6


class CartesianRepresentation(Representation):
    """Cartesian coordinates of all atoms in a body frame, whitened: 3N - 6 real numbers and no angle.

    Moving or turning the molecule as a whole changes no feature, because the frame goes with it; its mirror image has other
    ones. The features are |a - b|, x and z of c, and x, y, z of every other atom, minus their mean, times the inverse of the
    Cholesky factor L of their covariance.

    Exactness: with overall translation and rotation divided out as in `ZMatrix.to_positions`, the volume element of all 3N
    positions is |a - b|^2 x_c times those of the 3N - 6 coordinates (a in spherical coordinates about b, c in cylindrical ones
    about the axis), so ln q is that of `internal` for the same conformation. Equivalent end atoms (methyl hydrogens) are
    labelled as there: each conformation counts under one labelling alone, the one that `canonicalise` chooses, and features
    that decode to another one are outside of the domain. The integral over the domain is the one over all labellings divided by
    their number, again as of `internal`.
    """

    name = "cartesian"
    target: ClassVar[str] = "the flexible molecule, all 3N - 6 Cartesian coordinates in a body frame"

    def __init__(self, zmatrix: ZMatrix, frame: Frame, tensors: dict[str, torch.Tensor]) -> None:
        tensors = {name: value.contiguous() for name, value in tensors.items()}  # same bits before and after a file
        self.zmatrix, self.frame = zmatrix, frame
        self.symmetries = find_symmetries(zmatrix)
        self._columns = frame_columns(zmatrix.n_atoms, frame)
        self._centre = tensors["centre"]  # of every torsion, folded ones times their fold
        self._mean = tensors["mean"]
        self._scale = tensors["scale"]  # lower triangular L
        self.n_torus, self.n_euclidean = 0, 3 * zmatrix.n_atoms - 6
        self._log_det = float(torch.log(torch.diagonal(self._scale)).sum())

    @classmethod
    def fit(
        cls, system: MolecularSystem, config: RepresentationConfig, positions_nm: np.ndarray, weights: np.ndarray
    ) -> CartesianRepresentation:
        """Learn mean and covariance from frames.

        Raises
        ------
        InputError
            When a bond does not vibrate (frames of MD with constraints), or no three atoms make a frame.
        """
        zmatrix, frame = ZMatrix(system.topology), body_frame(system)
        symmetries = find_symmetries(zmatrix)
        share = torch.as_tensor(weights, dtype=torch.float64)
        share = share / share.sum()
        x = torch.as_tensor(positions_nm, dtype=torch.float64)
        bonds, _, torsions = zmatrix.to_internal(x)
        refuse_rigid_bonds(zmatrix, system, bonds, share, cls.name)
        centre = circular_mean(fold_torsions(torsions, symmetries), share)
        flat = in_frame(relabel(x, zmatrix, symmetries, centre), frame).flatten(1)[:, frame_columns(zmatrix.n_atoms, frame)]
        mean = weighted_mean(flat, share)
        covariance = (flat - mean).T @ ((flat - mean) * share[:, None])
        scale = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(mean), dtype=torch.float64))
        return cls(zmatrix, frame, {"centre": centre, "mean": mean, "scale": scale})

    def canonicalise(self, positions_nm: torch.Tensor) -> torch.Tensor:
        """Relabel equivalent end atoms so that each group's mean torsion lies in its central domain."""
        return relabel(positions_nm, self.zmatrix, self.symmetries, self._centre)

    def encode(self, positions_nm: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._encoded(part) for part in torch.split(positions_nm, CHUNK)])

    def _encoded(self, positions_nm: torch.Tensor) -> torch.Tensor:
        inside = in_frame(self.canonicalise(positions_nm.to(torch.float64)), self.frame)
        deviation = inside.flatten(1)[:, self._columns] - self._mean
        white: torch.Tensor = torch.linalg.solve_triangular(self._scale, deviation.T, upper=False).T
        return white

    def decode(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = self._mean + features.to(torch.float64) @ self._scale.T
        full = flat.new_zeros((len(flat), 3 * self.zmatrix.n_atoms))
        full[:, self._columns] = flat
        positions = full.reshape(len(flat), -1, 3)
        inside = (flat[:, 0] > 0) & (flat[:, 1] > 0)
        for group in self.symmetries:
            inside = inside & (best_shift(positions.detach(), self.zmatrix, group, self._centre) == 0)
        length, across = flat[:, 0].clamp(min=_LEAST_NM), flat[:, 1].clamp(min=_LEAST_NM)
        log_abs_det = 2 * torch.log(length) + torch.log(across) + self._log_det
        return positions, torch.where(inside, log_abs_det, torch.full_like(log_abs_det, -torch.inf))

    def pulled_back(self, features: torch.Tensor, positions_nm: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        of_flat = gradient.to(torch.float64).flatten(1)[:, self._columns]
        length, across = positions_nm.flatten(1)[:, self._columns[:2]].clamp(min=_LEAST_NM).T
        of_volume = torch.stack([2 / length, 1 / across], dim=1)
        return torch.cat([of_flat[:, :2] + of_volume, of_flat[:, 2:]], dim=1) @ self._scale

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        tensors = {"centre": self._centre, "mean": self._mean, "scale": self._scale}
        return tensors, {"rows": rows_of(self.zmatrix), "frame": list(self.frame)}

    @classmethod
    def from_state(
        cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, object]
    ) -> CartesianRepresentation:
        zmatrix, frame = ZMatrix(system.topology), values.get("frame")
        if values.get("rows") != rows_of(zmatrix) or not isinstance(frame, list):
            raise InputError("the representation was made by another version, with other coordinates: train again")
        a, b, c = frame
        return cls(zmatrix, (a, b, c), tensors)


def body_frame(system: MolecularSystem) -> Frame:
    """Choose three atoms bonded in a chain, for example N-CA-C of a central residue.

    By this order: no atom of a methyl group's like and no hydrogen, no atom with fewer than two heavy neighbours, the middle
    atom nearest to all others (by bonds), the lowest indices; of those that are not nearly on a straight line in the system's
    own structure.

    Raises
    ------
    InputError
        When every chain of three atoms is straight, or the molecule is no connected one of four atoms at least.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import shortest_path

    topology, zmatrix = system.topology, ZMatrix(system.topology)
    turning = {zmatrix.rows[row].atom for group in find_symmetries(zmatrix) for row in group.rows}
    hydrogens = {atom.index for atom in topology.atoms if atom.element is not None and atom.element.symbol == "H"}
    neighbours = neighbours_of(topology)
    inner = [len({*others} - hydrogens) > 1 for others in neighbours]
    pairs = np.array([(atom, other) for atom, others in enumerate(neighbours) for other in others]).T
    graph = coo_matrix((np.ones(pairs.shape[1]), tuple(pairs)), shape=(topology.n_atoms,) * 2).tocsr()
    remoteness = shortest_path(graph, unweighted=True).sum(axis=1)

    def rank(frame: Frame) -> tuple[int, int, int, float, Frame]:
        ends = sum(not inner[atom] for atom in frame)
        return len(turning & {*frame}), len(hydrogens & {*frame}), ends, float(remoteness[frame[1]]), frame

    chains = ((a, b, c) for b, others in enumerate(neighbours) for a, c in itertools.combinations(sorted(others), 2))
    for a, b, c in sorted(chains, key=rank):
        u, v = (system.positions_nm[end] - system.positions_nm[b] for end in (a, c))
        if np.linalg.norm(np.cross(u, v)) > LEAST_SINE * np.linalg.norm(u) * np.linalg.norm(v):
            return a, b, c
    raise InputError(
        f"representation.name 'cartesian': no three bonded atoms of {system.name} make a frame, for all of them lie nearly on "
        "straight lines; use 'internal'"
    )


def frame_columns(n_atoms: int, frame: Frame) -> torch.Tensor:
    """Columns (3 n_atoms - 6,) of flattened positions in the frame that are not zero by its definition."""
    a, b, c = frame
    others = [atom for atom in range(n_atoms) if atom not in (a, b, c)]
    return torch.tensor([3 * a + 2, 3 * c, 3 * c + 2, *(3 * atom + axis for atom in others for axis in range(3))])


def in_frame(positions_nm: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Return positions (n, n_atoms, 3) as seen from the frame's origin along its axes, which are right-handed."""
    a, b, c = frame
    relative = positions_nm - positions_nm[:, b : b + 1]
    along, beside = relative[:, a], relative[:, c]
    z = along / torch.linalg.vector_norm(along, dim=1, keepdim=True)
    across = beside - (beside * z).sum(1, keepdim=True) * z
    x = across / torch.linalg.vector_norm(across, dim=1, keepdim=True)
    return relative @ torch.stack([x, torch.linalg.cross(z, x), z], dim=2)
