"""Internal coordinates measured from the structure that relaxes around given torsions: they need energies and no trajectory."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from hpc_molgen.angles import wrap_angle
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import minimise
from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import Representation
from hpc_molgen.representations.internal import InternalRepresentation
from hpc_molgen.representations.rotors import free_rotors
from hpc_molgen.representations.symmetries import find_symmetries, fold_torsions
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.seeding import torch_generator
from hpc_molgen.systems.graph import MolecularGraph, molecular_graph

if TYPE_CHECKING:
    from hpc_molgen.config import RepresentationConfig
    from hpc_molgen.systems.base import MolecularSystem

STEPS = 7  # of the relaxation that features are measured from
SETTLED_STEPS = 20  # of those that constants are taken from
LONGEST_STEP = 3.0  # standard deviations, all coordinates together
FIRST_SD = 0.003, 0.06, 0.1  # of bonds (nm), angles and stiff torsions (radians), before the first Hessian
ROUNDS, TRIALS, KEPT, HESSIANS = 2, 3000, 0.1, 64
SOFTEST = 0.1  # eigenvalue of a Hessian below which a trial structure is no minimum
SHIFT = 1e-3  # standard deviations, of finite differences
CHUNK = 2048


class RelaxedRepresentation(Representation):
    """Free torsions on the torus; all other coordinates as deviations from where they relax to given these torsions.

    Exactness: with s the stiff coordinates of `InternalRepresentation` (bonds, angles, other torsions), a the free torsions and
    z the Euclidean features, s = s*(a) + L z. The map s* is `STEPS` steps of a gradient ascent of -U/kT + log|det J| at fixed
    a: it does not matter for exactness how near to the optimum they come, as s* is a function of a alone, so that the map from
    z to s has a constant Jacobian. L L^T is the harmonic covariance (the inverse Hessian), averaged over relaxed structures of
    low energy. So z is nearly standard normal given a, for any molecule, without any trajectory: what is left to be learnt is
    the distribution of the free torsions.

    Which torsions are free follows from the bonds (`rotors`), and they are features as they are, not as deviations from a mean:
    so they mean the same in every molecule. They are, but for a constant, what quasi-harmonic theories call the soft
    coordinates (Go and Scheraga 1969, J. Chem. Phys. 51, 4751, integrate the stiff ones out; here they are sampled).

    Parameters
    ----------
    system : MolecularSystem
        Its forces must be known to the batched engine.
    internal : InternalRepresentation
        With these free torsions, no regression on them, and L as its scale.

    Attributes
    ----------
    rotors : list of Rotor
        The free torsions, in the order of the features.
    n_evaluations : int
        Energies with forces that this object has computed.
    """

    name = "relaxed"
    target: ClassVar[str] = InternalRepresentation.target
    needs_frames: ClassVar[bool] = False
    exact_gradient: ClassVar[bool] = False

    def __init__(self, system: MolecularSystem, internal: InternalRepresentation) -> None:
        self.system, self.internal = system, internal
        self.n_torus, self.n_euclidean = internal.n_torus, internal.n_euclidean
        self.rotors = free_rotors(system.topology, internal.zmatrix)
        self.n_evaluations = 0

    @classmethod
    def fit(
        cls,
        system: MolecularSystem,
        config: RepresentationConfig,
        positions_nm: np.ndarray,
        weights: np.ndarray,
    ) -> RelaxedRepresentation:
        """Learn L and the mean geometry from energies; frames are not looked at.

        Raises
        ------
        InputError
            If the structure of the system is far from any minimum of its energy.
        UnsupportedForce
            For forces that the batched engine does not know.
        """
        found = cls(system, _first_scale(system))
        found._take_scale_at_start()
        generator = torch_generator(0, "relaxed")
        for _ in range(ROUNDS):
            torsions = found._low_torsions(generator)
            found._take_scale(torsions)
        return found

    def graph(self) -> MolecularGraph:
        return molecular_graph(self.system, [(rotor.atoms, rotor.fold) for rotor in self.rotors])

    def encode_torus(self, positions_nm: torch.Tensor) -> torch.Tensor:
        zmatrix, symmetries = self.internal.zmatrix, self.internal.symmetries
        rows = [rotor.row for rotor in self.rotors]
        parts = []
        for part in torch.split(positions_nm.double(), CHUNK):
            _, _, torsions = zmatrix.to_internal(self.internal.canonicalise(part))
            parts.append(wrap_angle(fold_torsions(torsions, symmetries))[:, rows])
        return torch.cat(parts)

    def encode(self, positions_nm: torch.Tensor) -> torch.Tensor:
        inner = self.internal.encode(positions_nm)
        angles = inner[:, : self.n_torus]
        return torch.cat([angles, inner[:, self.n_torus :] - self.relaxed(angles)], dim=1)

    def decode(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = features.double()
        angles = wrap_angle(features[:, : self.n_torus])
        return self.internal.decode(torch.cat([angles, self.relaxed(angles) + features[:, self.n_torus :]], dim=1))

    def relaxed(self, angles: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
        """Return the stiff coordinates (n, n_euclidean), in units of L, that `steps` steps relax to at given free torsions.

        Barzilai and Borwein 1988, IMA J. Numer. Anal. 8, 141 (their second step length), each structure by itself.

        Parameters
        ----------
        angles : torch.Tensor, shape=(n, n_torus)
        """
        return torch.cat([self._relaxed(part, steps) for part in torch.split(angles.detach(), CHUNK)])

    def _relaxed(self, angles: torch.Tensor, steps: int) -> torch.Tensor:
        y = angles.new_zeros((len(angles), self.n_euclidean))
        before, pull_before = y, y
        length = y.new_full((len(y), 1), 0.5)
        for number in range(steps):
            _, pull = self._log_density(angles, y)
            if number:
                moved, change = y - before, pull_before - pull
                length = ((moved * change).sum(1) / (change * change).sum(1).clamp(min=1e-12)).clamp(0.1, 1.5)[:, None]
            step = length * pull
            step = step * (LONGEST_STEP / torch.linalg.vector_norm(step, dim=1, keepdim=True).clamp(min=LONGEST_STEP))
            before, pull_before, y = y, pull, y + step
        return y

    @torch.no_grad()
    def _log_density(self, angles: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """-U/kT + log|det J| (n,) at `y` in units of L, and its gradient by y (n, n_euclidean), which is finite everywhere."""
        positions, log_abs_det = self.internal.decode(torch.cat([angles, y], dim=1))
        energies, forces = self._batched.energies_and_forces(positions)
        self.n_evaluations += len(y)
        beta = 1 / self.system.kt_kj_mol
        inside = torch.isfinite(log_abs_det) & torch.isfinite(energies)
        value = torch.where(inside, log_abs_det - beta * energies, torch.full_like(energies, -torch.inf))
        pulled = self.internal.pulled_back_at_rest(positions, torch.nan_to_num(forces, 0.0, 0.0, 0.0) * beta)[:, self.n_torus :]
        return value, torch.nan_to_num(torch.where(inside[:, None], pulled, -y), 0.0, 0.0, 0.0)

    def pulled_back(self, features: torch.Tensor, positions_nm: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """As in the base class, but for how s* follows the torsions, which is left out.

        A move of Monte Carlo may drift along any vector that is a function of where it is: it stays exact.
        """
        del features
        return self.internal.pulled_back_at_rest(positions_nm, gradient)

    @functools.cached_property
    def _batched(self) -> BatchedSystem:
        return BatchedSystem(self.system, "float64", threads=1)

    def hessians(self, angles: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Second derivatives of U/kT - log|det J| by the stiff coordinates in units of L; (n, n_euclidean, n_euclidean).

        Central differences of gradients at `y` (n, n_euclidean).
        """
        size = self.n_euclidean
        shifts = SHIFT * torch.eye(size, dtype=torch.float64)
        found = []
        for angle, point in zip(angles, y, strict=True):
            around = torch.cat([point + shifts, point - shifts])
            _, pull = self._log_density(angle.expand(2 * size, -1), around)
            found.append((pull[size:] - pull[:size]) / (2 * SHIFT))
        hessian = torch.stack(found)
        return (hessian + hessian.transpose(1, 2)) / 2

    def _take_scale_at_start(self) -> None:
        """Newton steps from the system's own structure, which is minimised, and the scale of the harmonic molecule there."""
        starts, _ = minimise(
            BatchedSystem(self.system, "float32", threads=1), self.system.positions_nm[None], max_iterations=200
        )
        inner = self.internal.encode(torch.as_tensor(starts, dtype=torch.float64))
        angles, y = inner[:, : self.n_torus], inner[:, self.n_torus :]
        for _ in range(8):
            _, pull = self._log_density(angles, y)
            hessian = _lifted(self.hessians(angles, y))
            step = torch.linalg.solve(hessian, pull[:, :, None])[:, :, 0]
            y = y + step * (4 / torch.linalg.vector_norm(step, dim=1, keepdim=True).clamp(min=4))
        self._replace(y, _lifted(self.hessians(angles, y)))

    def _low_torsions(self, generator: torch.Generator) -> torch.Tensor:
        """Torsions at which the relaxed molecule has a low energy: the best of uniform ones, and of those near the start."""
        start = self.encode_torus(torch.as_tensor(self.system.positions_nm[None], dtype=torch.float64))
        uniform = (2 * torch.rand((TRIALS, self.n_torus), generator=generator, dtype=torch.float64) - 1) * math.pi
        near = wrap_angle(start + 0.5 * torch.randn((HESSIANS, self.n_torus), generator=generator, dtype=torch.float64))
        trials = torch.cat([uniform, near])
        value, _ = self._log_density(trials, self.relaxed(trials))
        best = value.argsort(descending=True)[: int(KEPT * len(trials))]
        return trials[best[torch.randperm(len(best), generator=generator)[:HESSIANS]]]

    def _take_scale(self, angles: torch.Tensor) -> None:
        y = self.relaxed(angles, SETTLED_STEPS)
        hessians = self.hessians(angles, y)
        minimum = torch.linalg.eigvalsh(hessians)[:, 0] > SOFTEST
        if not minimum.any():
            raise InputError(
                f"representation.name 'relaxed': {self.system.name} finds no minimum of its energy at trial torsions; relax "
                "its structure first, or use representation.name: internal"
            )
        self._replace(y[minimum], hessians[minimum])

    def _replace(self, y: torch.Tensor, hessians: torch.Tensor) -> None:
        """Take the mean of relaxed structures as where relaxations begin, and the mean covariance as the new scale."""
        tensors, _ = self.internal.state()
        scale = tensors["scale"]
        covariance = torch.linalg.inv(hessians).mean(0)
        tensors["mean"] = tensors["mean"] + scale @ y.mean(0)
        tensors["scale"] = torch.linalg.cholesky(scale @ ((covariance + covariance.T) / 2) @ scale.T)
        self.internal = InternalRepresentation(self.internal.zmatrix, tensors)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        return self.internal.state()

    @classmethod
    def from_state(
        cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, object]
    ) -> RelaxedRepresentation:
        return cls(system, InternalRepresentation.from_state(system, tensors, values))


def _lifted(hessians: torch.Tensor) -> torch.Tensor:
    """Hessians (n, d, d) with their lowest eigenvalue raised to `SOFTEST`."""
    lowest = torch.linalg.eigvalsh(hessians)[:, 0]
    lifted: torch.Tensor = (
        hessians + torch.eye(hessians.shape[1], dtype=hessians.dtype) * (SOFTEST - lowest).clamp(min=0)[:, None, None]
    )
    return lifted


def _first_scale(system: MolecularSystem) -> InternalRepresentation:
    """Internal coordinates of the system's own structure, with plausible standard deviations."""
    zmatrix = ZMatrix(system.topology)
    free = torch.zeros(zmatrix.n_atoms - 3, dtype=torch.bool)
    free[[rotor.row for rotor in free_rotors(system.topology, zmatrix)]] = True
    bonds, angles, torsions = zmatrix.to_internal(torch.as_tensor(system.positions_nm[None], dtype=torch.float64))
    folded = fold_torsions(torsions, find_symmetries(zmatrix))[0]
    n_stiff = int((~free).sum())
    spread = (torch.full((n,), sd) for n, sd in zip((bonds.shape[1], angles.shape[1], n_stiff), FIRST_SD, strict=True))
    mean = torch.cat([bonds[0], angles[0], torch.zeros(n_stiff, dtype=torch.float64)])
    tensors = {
        "centre": torch.where(free, torch.zeros_like(folded), folded), "free": free.to(torch.uint8), "mean": mean,
        "shift": torch.zeros((0, len(mean)), dtype=torch.float64),
        "scale": torch.diag(torch.cat(list(spread)).double()),
    }  # fmt: skip
    return InternalRepresentation(zmatrix, tensors)
