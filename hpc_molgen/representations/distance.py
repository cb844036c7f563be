"""Distances between the beads of a coarse-grained chain, or its soft contact map: principal components of all pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import Representation
from hpc_molgen.representations.embedding import (
    ELEMENTS,
    as_matrix,
    classical_scaling,
    majorise,
    shortest_paths,
    superposed_rmsd_nm,
)
from hpc_molgen.representations.handedness import learn_handedness, right_handed

if TYPE_CHECKING:
    from hpc_molgen.config import RepresentationConfig
    from hpc_molgen.systems.base import MolecularSystem

FEWEST_BEADS = 4  # of a torsion, without which there is no handedness
MOST_BEADS = 100  # 4,950 pairs, whose principal components take half a minute and a gigabyte
SHARE_KEPT = 0.999  # of the variance: what is left of distances is about a bond's thermal vibration (0.007 nm)
NOISE = 0.2  # of a surrogate, relative to what a distance varies by: decides which of its distances are believed
FLOOR_NM = 0.003  # no distance is known better
SHORTEST_NM = 0.1  # beads nearer than this are no chain: what features say of them counts as this
SLACK = 0.95  # times the least distance of two beads in the frames: nearer ones clash
SATURATED = 0.01  # contacts nearer than this to 0 or 1 bound the distance, and do not tell it
FEW_BOUND = 0.1  # weight of such a bound, over that of a distance that is told as badly as one at the bound
CHUNK = 4096  # frames that are encoded at once


@dataclass(frozen=True)
class Measure:
    """What is told of each distance d: d itself, or the soft contact 1 / (1 + exp((d - contact_nm) / width_nm))."""

    of: Literal["distances", "contacts"]
    contact_nm: float
    width_nm: float

    def of_distance(self, distance_nm: torch.Tensor) -> torch.Tensor:
        """Values of distances, of any shape."""
        return distance_nm if self.of == "distances" else torch.sigmoid((self.contact_nm - distance_nm) / self.width_nm)

    def bounds_nm(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Least and largest distance that values stand for, and |d distance / d value| there, each of the shape of `value`."""
        if self.of == "distances":
            distance = value.clamp(min=SHORTEST_NM)
            return distance, distance, torch.ones_like(value)
        inside = value.clamp(SATURATED, 1 - SATURATED)
        distance = (self.contact_nm - self.width_nm * torch.logit(inside)).clamp(min=SHORTEST_NM)
        lower = torch.where(value > 1 - SATURATED, torch.full_like(distance, SHORTEST_NM), distance)
        upper = torch.where(value < SATURATED, torch.full_like(distance, torch.inf), distance)
        return lower, upper, self.width_nm / (inside * (1 - inside))


class DistanceRepresentation(Representation):
    """Whitened principal components of all pairwise distances, or of soft contacts, of a chain of beads.

    Moving, turning or reflecting the chain changes no feature. `decode` goes back from features to distances, by classical
    scaling to coordinates, and relaxes these by majorisation of the stress: each distance counts by how well features tell it,
    and bonds, too, by what frames say of their lengths. Of the two mirror images it takes the more likely one by a handedness
    that is learnt from the virtual torsions of the frames; a surrogate's chain whose parts are of different hand stays so.

    There is no density. N (N - 1) / 2 distances of N beads lie on a surface of 3N - 6 dimensions, and a feature vector of a
    surrogate is never exactly on it: whole families of feature vectors decode to one conformation. Components that are left out
    lose volume besides, and a frame and its mirror image have the same features. ln q of features says nothing about ln q of
    conformations, so the zeros that `decode` gives for log|det J| mean nothing, and weights are not made of them.

    Parameters
    ----------
    measure : Measure
    tensors : dict of torch.Tensor
        "pairs" (n_pairs, 2); "mean", "spread" (standard deviation), "lost" (that of what components leave out), each
        (n_pairs,), of the values of the training frames; "axes" (n_pairs, n_features) and "scale" (n_features,) of the
        components; "bonds" (n_bonds,), columns of the pairs that are bonded, "bond_nm", "bond_spread_nm" (n_bonds,);
        "nearest_nm" (n_pairs,), least distances in the frames; "handedness".
    """

    name = "distance"
    target: ClassVar[str] = "none: samples of the surrogate as they are"
    density = "none"
    density_note: ClassVar[str] = "its features are more numbers than a conformation has degrees of freedom"
    exact_gradient: ClassVar[bool] = False

    def __init__(self, n_beads: int, measure: Measure, tensors: dict[str, torch.Tensor]) -> None:
        self.n_beads, self.measure = n_beads, measure
        self.tensors = {name: value.contiguous() for name, value in tensors.items()}  # same bits before and after a file
        self.n_torus, self.n_euclidean = 0, len(self.tensors["scale"])

    @classmethod
    def fit(
        cls, system: MolecularSystem, config: RepresentationConfig, positions_nm: np.ndarray, weights: np.ndarray
    ) -> DistanceRepresentation:
        """Learn components, bond lengths and handedness from frames.

        Raises
        ------
        InputError
            When the system is not one of beads, or frames vary in fewer directions than components are asked for.
        """
        bonded = bead_bonds(system)
        measure = Measure(config.distance_of, config.contact_nm, config.contact_width_nm)
        x = torch.as_tensor(positions_nm, dtype=torch.float64)
        share = torch.as_tensor(weights, dtype=torch.float64)
        share = share / share.sum()
        pairs = torch.triu_indices(system.n_atoms, system.n_atoms, 1).T.contiguous()
        number = {pair: column for column, pair in enumerate(map(tuple, pairs.tolist()))}
        bonds = torch.tensor([number[pair] for pair in bonded])
        lengths = pair_distances_nm(x, pairs[bonds])
        bond_nm = share @ lengths
        found = _components(x, pairs, measure, share, config.components)
        return cls(
            system.n_atoms,
            measure,
            found
            | {"pairs": pairs, "bonds": bonds, "bond_nm": bond_nm, "bond_spread_nm": (share @ (lengths - bond_nm) ** 2).sqrt()}
            | {"nearest_nm": torch.stack([pair_distances_nm(part, pairs).amin(0) for part in torch.split(x, CHUNK)]).amin(0)}
            | {"handedness": learn_handedness(x, share)},
        )

    def encode(self, positions_nm: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._encoded(part.to(torch.float64)) for part in torch.split(positions_nm, CHUNK)])

    def _encoded(self, positions_nm: torch.Tensor) -> torch.Tensor:
        values = self.measure.of_distance(pair_distances_nm(positions_nm, self.tensors["pairs"]))
        return (values - self.tensors["mean"]) @ self.tensors["axes"] / self.tensors["scale"]

    @torch.no_grad()
    def decode(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parts = torch.split(features.to(torch.float64), max(1, ELEMENTS // self.n_beads**2))
        positions = torch.cat([self._decoded(part) for part in parts])
        return positions, torch.zeros(len(positions), dtype=torch.float64)

    def _decoded(self, features: torch.Tensor) -> torch.Tensor:
        values = self.tensors["mean"] + (features * self.tensors["scale"]) @ self.tensors["axes"].T
        lower, upper, slope = self.measure.bounds_nm(values)
        variance = (self.tensors["lost"].square() + (NOISE * self.tensors["spread"]).square()) * slope.square() + FLOOR_NM**2
        weight = torch.where(lower < upper, FEW_BOUND, 1.0) / variance
        self._with_bonds(lower, upper, weight)
        nearest = SLACK * self.tensors["nearest_nm"]
        low, high, weights = (
            as_matrix(value, self.tensors["pairs"], self.n_beads)
            for value in (torch.maximum(lower, nearest), torch.maximum(upper, nearest), FLOOR_NM**2 * weight)
        )
        relaxed = majorise(classical_scaling(torch.maximum(shortest_paths(high), low)), low, high, weights)
        clash = pair_distances_nm(relaxed, self.tensors["pairs"]) < nearest
        if clash.any():  # beads far nearer than in any frame: that they keep apart is as certain as a bond
            apart = as_matrix(clash.double(), self.tensors["pairs"], self.n_beads) > 0
            bound = as_matrix(nearest[None], self.tensors["pairs"], self.n_beads).expand_as(low)
            low, high = torch.where(apart, bound, low), torch.where(apart, torch.inf, high)
            relaxed = majorise(relaxed, low, high, torch.where(apart, 1.0, weights))
        return right_handed(relaxed, self.tensors["handedness"])

    def _with_bonds(self, lower_nm: torch.Tensor, upper_nm: torch.Tensor, weight: torch.Tensor) -> None:
        """Enter into distances (n, n_pairs) what is known of bonds: the mean of two estimates, by their precision."""
        bonds, prior = self.tensors["bonds"], 1 / (self.tensors["bond_spread_nm"].square() + FLOOR_NM**2)
        told = torch.where(lower_nm[:, bonds] < upper_nm[:, bonds], 0.0, weight[:, bonds])
        known = torch.where(told > 0, lower_nm[:, bonds], 0.0)
        length = (told * known + prior * self.tensors["bond_nm"]) / (told + prior)
        lower_nm[:, bonds], upper_nm[:, bonds], weight[:, bonds] = length, length, told + prior

    def pulled_back(self, features: torch.Tensor, positions_nm: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        raise InputError("representation.name 'distance' has no density of conformations, so it has no gradient of one either")

    def round_trip(self, positions_nm: np.ndarray) -> dict[str, float]:
        """Return how well conformations (n, n_beads, 3) come back from their features.

        Returns
        -------
        dict
            positions_rms_nm (after superposition), distances_rms_nm, bonds_rms_nm, right_handed (share that came back nearer to
            itself than to its mirror image), n_frames, and for contacts saturated (share of pairs that are only bounded).
        """
        x = torch.as_tensor(positions_nm, dtype=torch.float64)
        features = self.encode(x)
        back, _ = self.decode(features)
        mirror = x * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
        away, as_mirror = superposed_rmsd_nm(back, x), superposed_rmsd_nm(back, mirror)
        difference = pair_distances_nm(back, self.tensors["pairs"]) - pair_distances_nm(x, self.tensors["pairs"])
        bonds = difference[:, self.tensors["bonds"]]
        found = {
            "positions_rms_nm": torch.minimum(away, as_mirror).square().mean().sqrt(),
            "distances_rms_nm": difference.square().mean().sqrt(),
            "bonds_rms_nm": bonds.square().mean().sqrt(),
            "right_handed": (away <= as_mirror).double().mean(),
        }
        if self.measure.of == "contacts":
            lower, upper, _ = self.measure.bounds_nm(self.measure.of_distance(pair_distances_nm(x, self.tensors["pairs"])))
            found["saturated"] = (lower < upper).double().mean()
        return {name: float(value) for name, value in found.items()} | {"n_frames": len(x)}

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        return self.tensors, {"measure": asdict(self.measure)}

    @classmethod
    def from_state(
        cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, Any]
    ) -> DistanceRepresentation:
        return cls(system.n_atoms, Measure(**values["measure"]), tensors)


def bead_bonds(system: MolecularSystem) -> list[tuple[int, int]]:
    """Return the bonded pairs of beads, the smaller index first.

    Raises
    ------
    InputError
        When the system does not consist of one bead for each residue, or has too few or too many of them.
    """
    topology = system.topology
    if any(residue.n_atoms != 1 for residue in topology.residues):
        raise InputError(
            f"representation.name 'distance' is for models of one bead for each residue (C-alpha atoms, say); {system.name} "
            f"has {system.n_atoms} atoms in {topology.n_residues} residues, and distances of beads would not determine the "
            "others: use 'internal', 'torsion' or 'residue'"
        )
    if not FEWEST_BEADS <= system.n_atoms <= MOST_BEADS:
        raise InputError(
            f"representation.name 'distance' serves {FEWEST_BEADS} to {MOST_BEADS} beads, as the covariance of all "
            f"pairs has to be diagonalised; {system.name} has {system.n_atoms}"
        )
    return sorted((min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds)


def pair_distances_nm(positions_nm: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Distances (n, n_pairs) in positions (n, n_beads, 3)."""
    distances: torch.Tensor = torch.linalg.norm(positions_nm[:, pairs[:, 0]] - positions_nm[:, pairs[:, 1]], dim=2)
    return distances


def _components(
    positions_nm: torch.Tensor, pairs: torch.Tensor, measure: Measure, share: torch.Tensor, n_asked: int | None
) -> dict[str, torch.Tensor]:
    """Return mean, spread, axes and scale of the principal components, and what they leave out, of weighted frames."""
    parts = torch.split(torch.arange(len(positions_nm)), CHUNK)

    def values(rows: torch.Tensor) -> torch.Tensor:
        return measure.of_distance(pair_distances_nm(positions_nm[rows], pairs))

    mean = torch.stack([share[rows] @ values(rows) for rows in parts]).sum(0)
    covariance = mean.new_zeros((len(mean), len(mean)))
    for rows in parts:
        centred = values(rows) - mean
        covariance += centred.T @ (centred * share[rows, None])
    variances, axes = (found.flip(-1) for found in torch.linalg.eigh(covariance))  # the largest first
    n_most = min(int((variances > 1e-10 * variances[0]).sum()), len(positions_nm) - 1)
    n = n_asked
    if n is None:
        kept = variances.cumsum(0) / variances.clamp(min=0).sum()
        n = min(n_most, int((kept < SHARE_KEPT).sum()) + 1)
    if not 0 < n <= n_most:
        raise InputError(f"representation.components {n}: the training frames vary in {n_most} directions only")
    axes = axes * torch.sign(axes[axes.abs().argmax(0), torch.arange(len(axes))])  # eigenvectors have no sign of their own
    spread = torch.diagonal(covariance)
    lost = (spread - axes[:, :n].square() @ variances[:n]).clamp(min=0)
    return {"mean": mean, "spread": spread.sqrt(), "lost": lost.sqrt(), "axes": axes[:, :n], "scale": variances[:n].sqrt()}
