"""Log-densities on feature space with their gradients: what moves of Monte Carlo need to know of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from hpc_molgen.dynamics.batched import BatchedSystem

if TYPE_CHECKING:
    from hpc_molgen.representations.base import Representation
    from hpc_molgen.systems.base import MolecularSystem

CHUNK = 2048  # feature vectors whose intermediate results stay in the processor's cache
Density = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Features (n, d) -> unnormalised log-density (n,) and its gradient (n, d), which is zero where the former is -inf; float64."""


class BoltzmannDensity:
    """exp(-U/kT) |det J| of a molecule in the features of a representation, with the gradient by its forces.

    The gradient is the forces of the batched engine on the atoms, as the representation pulls them back to features.

    Parameters
    ----------
    system : MolecularSystem
        Its forces must be known to the batched engine.
    representation : Representation
    temperature_kelvin : float, optional
        The system's by default.

    Attributes
    ----------
    n_evaluations : int
        Energies (with forces) that were computed so far.

    Raises
    ------
    UnsupportedForce
        For a force that the batched engine does not know.
    """

    def __init__(
        self, system: MolecularSystem, representation: Representation, temperature_kelvin: float | None = None
    ) -> None:
        self._batched = BatchedSystem(system, "float64", threads=1)
        self._representation = representation
        kelvin = temperature_kelvin or system.temperature_kelvin
        self._beta = system.temperature_kelvin / (system.kt_kj_mol * kelvin)
        self.n_evaluations = 0

    def __call__(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-density (n,) and gradient (n, d)."""
        parts = [self._part(part) for part in torch.split(features.detach().double(), CHUNK)]
        return torch.cat([value for value, _ in parts]), torch.cat([gradient for _, gradient in parts])

    @torch.no_grad()
    def _part(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        positions, log_abs_det = self._representation.decode(features)
        energies, forces = self._batched.energies_and_forces(positions)
        self.n_evaluations += len(features)
        inside = torch.isfinite(log_abs_det) & torch.isfinite(energies)
        value = torch.where(inside, log_abs_det - self._beta * energies, torch.full_like(energies, -torch.inf))
        gradient = self._representation.pulled_back(features, positions, torch.nan_to_num(forces) * self._beta)
        return value, torch.nan_to_num(torch.where(inside[:, None], gradient, torch.zeros_like(gradient)))
