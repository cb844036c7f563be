"""Log-densities on feature space with their gradients: what moves of Monte Carlo need to know of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from hpc_molgen.dynamics.batched import BatchedSystem

if TYPE_CHECKING:
    from hpc_molgen.representations.base import Representation
    from hpc_molgen.systems.base import MolecularSystem

Density = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Features (n, d) -> unnormalised log-density (n,) and its gradient (n, d), which is zero where the former is -inf; float64."""


class BoltzmannDensity:
    """exp(-U/kT) |det J| of a molecule in the features of a representation, with the gradient by its forces.

    The gradient goes through `decode` by reverse differentiation, from the forces of the batched engine on the atoms.

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
        with torch.enable_grad():
            variable = features.detach().double().requires_grad_(True)
            positions, log_abs_det = self._representation.decode(variable)
            energies, forces = self._batched.energies_and_forces(positions.detach())
            self.n_evaluations += len(features)
            inside = torch.isfinite(log_abs_det) & torch.isfinite(energies)
            work = (positions * torch.nan_to_num(forces) * self._beta).sum((1, 2)) + log_abs_det
            (gradient,) = torch.autograd.grad(work[inside].sum(), variable)
        value = log_abs_det.detach() - self._beta * energies
        value = torch.where(inside, value, torch.full_like(value, -torch.inf))
        return value, torch.nan_to_num(torch.where(inside[:, None], gradient, torch.zeros_like(gradient)))
