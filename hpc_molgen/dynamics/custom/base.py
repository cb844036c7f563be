"""What the custom terms of the batched engine share: their interface, reading of parameters, and geometry in torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.dynamics.custom.expressions import Expression, parse
from hpc_molgen.dynamics.custom.tabulated import TabulatedFunction
from hpc_molgen.errors import UnsupportedForce

if TYPE_CHECKING:
    import torch

TINY_NM2 = 1e-30  # squared distances below count as this: the distance then has a finite derivative (zero)


@dataclass(frozen=True, eq=False)
class CustomTerm(ABC):
    """One force of an openmm.System as plain arrays; pickles.

    Attributes
    ----------
    name : str
        The class of the force.
    translation_invariant : bool
        False when the energy depends on where in space the molecule is.
    """

    name: str
    translation_invariant: bool

    @abstractmethod
    def build(self, dtype: torch.dtype, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Put the parameters on a device.

        Returns
        -------
        callable
            From positions in nm, shape=(3, n_atoms, n_copies), to energies in kJ/mol, shape=(n_copies,). No Python control
            flow depends on the positions, and gradients by autograd are finite where OpenMM's forces are.
        """


def unsupported(force: Any, what: str) -> UnsupportedForce:
    """Return the error that names a force and what of it the batched engine does not know."""
    return UnsupportedForce(f"{force.getName()} ({type(force).__name__}): {what}")


def global_parameters(force: Any) -> dict[str, float]:
    """Default values of the global parameters."""
    return {
        force.getGlobalParameterName(index): float(force.getGlobalParameterDefaultValue(index))
        for index in range(force.getNumGlobalParameters())
    }


def particle_parameters(force: Any) -> dict[str, np.ndarray]:
    """Per-particle parameters of a CustomNonbondedForce or CustomGBForce, each of shape=(n_atoms,)."""
    n_atoms = force.getNumParticles()
    rows = np.array([force.getParticleParameters(index) for index in range(n_atoms)], dtype=np.float64).reshape(n_atoms, -1)
    names = [force.getPerParticleParameterName(index) for index in range(force.getNumPerParticleParameters())]
    return {name: np.ascontiguousarray(rows[:, column]) for column, name in enumerate(names)}


def read_expression(text: str, functions: tuple[TabulatedFunction, ...], known: Collection[str]) -> Expression:
    """Parse an expression whose variables are among `known`."""
    expression = parse(text, {function.name: function.n_arguments for function in functions})
    expression.require_known(known)
    return expression


def total(value: Any, n_terms: int, x: torch.Tensor) -> torch.Tensor:
    """Sum over terms, shape=(n_copies,), of a value that may be a constant or have a single column.

    Parameters
    ----------
    value : float or torch.Tensor, shape=(n_terms, n_copies) or (n_terms, 1)
    n_terms : int
    x : torch.Tensor, shape=(3, n_atoms, n_copies)
    """
    if isinstance(value, float):
        return x.new_full((x.shape[2],), value * n_terms)
    summed: torch.Tensor = value.sum(0).expand(x.shape[2])
    return summed


def points(x: torch.Tensor, atoms: torch.Tensor) -> list[torch.Tensor]:
    """Return positions of the k atoms of each term, k tensors of shape=(3, n_terms, n_copies).

    Parameters
    ----------
    x : torch.Tensor, shape=(3, n_atoms, n_copies)
    atoms : torch.Tensor, shape=(k, n_terms)
    """
    gathered = x.index_select(1, atoms.reshape(-1)).reshape(3, *atoms.shape, x.shape[2])
    return list(gathered.unbind(1))


def norm(vector: torch.Tensor) -> torch.Tensor:
    """Lengths of vectors along the first axis, with a derivative of zero at length zero."""
    return (vector * vector).sum(0).clamp(min=TINY_NM2).sqrt()


def angle(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Angle at `b` in radians; its derivative is zero where the three points are on one line."""
    import torch

    first, second = a - b, c - b
    return torch.atan2(norm(torch.linalg.cross(first, second, dim=0)), (first * second).sum(0))


def torsion(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Torsion about b-c in radians, in (-pi, pi], IUPAC sign; zero where it is not defined."""
    import torch

    axis = c - b
    normal, other = torch.linalg.cross(b - a, axis, dim=0), torch.linalg.cross(axis, d - c, dim=0)
    sine, cosine = norm(axis) * ((b - a) * other).sum(0), (normal * other).sum(0)
    undefined = (sine == 0) & (cosine == 0)
    return torch.atan2(sine, torch.where(undefined, torch.ones_like(cosine), cosine))
