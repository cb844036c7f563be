"""Custom forces of an openmm.System for the batched engine: bonds, angles, torsions, external; the door to the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm

from hpc_molgen.dynamics.custom import base, cmap, generalised_born, nonbonded
from hpc_molgen.dynamics.custom.base import CustomTerm, unsupported
from hpc_molgen.dynamics.custom.expressions import Expression
from hpc_molgen.dynamics.custom.tape import bind
from hpc_molgen.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["CustomTerm", "read_custom"]


@dataclass(frozen=True, eq=False)
class BondedTerm(CustomTerm):
    """A CustomBondForce (r), CustomAngleForce, CustomTorsionForce (theta) or CustomExternalForce (x, y, z).

    Attributes
    ----------
    expression : Expression
    atoms : np.ndarray, shape=(1 to 4, n_terms)
    constants : dict of str to np.ndarray of shape=(n_terms, 1), or float
        Parameters of each term; global parameters.
    """

    expression: Expression
    atoms: np.ndarray
    constants: dict[str, Any]

    def build(self, dtype: torch.dtype, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Put the parameters on a device."""
        import torch

        atoms = torch.as_tensor(self.atoms, dtype=torch.long, device=device)
        tape = bind(self.expression, self.constants, {}, dtype, device)
        kind, n_terms = self.atoms.shape

        def energy(x: torch.Tensor) -> torch.Tensor:
            places = base.points(x, atoms)
            if kind == 1:
                values = dict(zip("xyz", places[0], strict=True))
            elif kind == 2:
                values = {"r": base.norm(places[0] - places[1])}
            else:
                values = {"theta": base.angle(*places) if kind == 3 else base.torsion(*places)}
            return base.total(tape(values), n_terms, x)

        return energy


# class of the force -> (what its terms and their parameters are called, number of atoms, variables)
_BONDED: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "CustomBondForce": ("Bond", 2, ("r",)),
    "CustomAngleForce": ("Angle", 3, ("theta",)),
    "CustomTorsionForce": ("Torsion", 4, ("theta",)),
    "CustomExternalForce": ("Particle", 1, ("x", "y", "z")),
}


def _read_bonded(force: Any) -> CustomTerm:
    kind = type(force).__name__
    noun, n_atoms, coordinates = _BONDED[kind]
    names = [getattr(force, f"getPer{noun}ParameterName")(i) for i in range(getattr(force, f"getNumPer{noun}Parameters")())]
    rows = [getattr(force, f"get{noun}Parameters")(i) for i in range(getattr(force, f"getNum{noun}s")())]
    atoms = np.array([row[:n_atoms] for row in rows], dtype=np.int64).reshape(-1, n_atoms).T
    parameters = np.array([row[n_atoms] for row in rows], dtype=np.float64).reshape(len(rows), len(names))
    constants = {
        **base.global_parameters(force),
        **{name: np.ascontiguousarray(parameters[:, [column]]) for column, name in enumerate(names)},
    }
    expression = base.read_expression(force.getEnergyFunction(), (), {*coordinates, *constants})
    invariant = n_atoms > 1 or not expression.variables & set(coordinates)
    return BondedTerm(kind, invariant, expression, np.ascontiguousarray(atoms), constants)


def read_custom(force: openmm.Force, system: openmm.System) -> CustomTerm:
    """Return a force as a term of the batched engine.

    Global parameters have their default values; force groups and energy parameter derivatives do not matter.

    Parameters
    ----------
    force : openmm.Force
        A CMAPTorsionForce, CustomBondForce, CustomAngleForce, CustomTorsionForce, CustomExternalForce,
        CustomNonbondedForce or CustomGBForce.
    system : openmm.System
        That the force is part of.

    Raises
    ------
    UnsupportedForce
        For another force, a periodic box, or an option that is not implemented; the message names it.
    InputError
        For an expression that cannot be read; the message names the force.
    """
    kind = type(force).__name__
    readers: dict[str, Callable[[Any], CustomTerm]] = {
        **dict.fromkeys(_BONDED, _read_bonded),
        "CMAPTorsionForce": cmap.read_cmap,
        "CustomNonbondedForce": nonbonded.read_nonbonded,
        "CustomGBForce": generalised_born.read_born,
    }
    if kind not in readers:
        raise unsupported(force, f"the batched engine does not know this force; it knows {', '.join(sorted(readers))}")
    if force.usesPeriodicBoundaryConditions():
        raise unsupported(force, "periodic boundary conditions")  # periodicdistance(...) among them
    n_particles = force.getNumParticles() if hasattr(force, "getParticleParameters") else system.getNumParticles()
    if kind != "CustomExternalForce" and n_particles != system.getNumParticles():
        raise InputError(f"{kind} has {n_particles} particles, its System has {system.getNumParticles()}")
    try:
        return readers[kind](force)
    except InputError as error:
        if kind in str(error):
            raise
        raise InputError(f"{force.getName()} ({kind}): {error}") from None
