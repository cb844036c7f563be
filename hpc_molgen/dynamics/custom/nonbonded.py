"""CustomNonbondedForce for the batched engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from openmm import unit

from hpc_molgen.dynamics.custom import base
from hpc_molgen.dynamics.custom.base import CustomTerm, unsupported
from hpc_molgen.dynamics.custom.expressions import Expression
from hpc_molgen.dynamics.custom.tabulated import TabulatedFunction, read_functions
from hpc_molgen.dynamics.custom.tape import bind

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class PairTerm(CustomTerm):
    """A CustomNonbondedForce without periodic box.

    Attributes
    ----------
    expression : Expression
    pairs : np.ndarray, shape=(2, n_pairs)
        Pairs that interact.
    constants : dict of str to np.ndarray of shape=(n_pairs, 1), or float
        Parameters with suffix 1 and 2; global parameters.
    functions : tuple of TabulatedFunction
    cutoff_nm, switch_nm : float or None
        Where the energy ends, and where the switching function begins.
    """

    expression: Expression
    pairs: np.ndarray
    constants: dict[str, Any]
    functions: tuple[TabulatedFunction, ...]
    cutoff_nm: float | None
    switch_nm: float | None

    def build(self, dtype: torch.dtype, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Put the parameters on a device."""
        import torch

        pairs = torch.as_tensor(self.pairs, dtype=torch.long, device=device)
        tape = bind(self.expression, self.constants, {f.name: f for f in self.functions}, dtype, device)
        n_pairs = self.pairs.shape[1]
        cutoff_nm, switch_nm = self.cutoff_nm, self.switch_nm

        def energy(x: torch.Tensor) -> torch.Tensor:
            first, second = base.points(x, pairs)
            r = base.norm(first - second)
            if cutoff_nm is None:
                return base.total(tape({"r": r}), n_pairs, x)
            inside = r < cutoff_nm
            # pairs beyond the cut-off are evaluated at it, so that their gradients are finite before they are dropped
            r = torch.where(inside, r, torch.full_like(r, cutoff_nm))
            value = tape({"r": r})
            if switch_nm is not None:
                t = ((r - switch_nm) / (cutoff_nm - switch_nm)).clamp(min=0)
                value = value * (1 + t * t * t * (-10 + t * (15 - t * 6)))
            return torch.where(inside, value, torch.zeros_like(r)).sum(0)

        return energy


def excluded_pairs(force: Any) -> set[tuple[int, int]]:
    """Excluded pairs (i, j), i < j."""
    pairs = (force.getExclusionParticles(index) for index in range(force.getNumExclusions()))
    return {(min(i, j), max(i, j)) for i, j in pairs}


def _interacting_pairs(force: openmm.CustomNonbondedForce) -> np.ndarray:
    """Pairs that interact, in OpenMM's order of their atoms, shape=(2, n_pairs)."""
    n_atoms, excluded = force.getNumParticles(), excluded_pairs(force)
    groups = [force.getInteractionGroupParameters(index) for index in range(force.getNumInteractionGroups())]
    if not groups:
        pairs = [(i, j) for i in range(n_atoms) for j in range(i + 1, n_atoms) if (i, j) not in excluded]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    pairs = []
    for first, second in ((set(a), set(b)) for a, b in groups):
        pairs += [
            (i, j)
            for i in sorted(first)
            for j in sorted(second)
            if i != j
            and (min(i, j), max(i, j)) not in excluded
            and not (i > j and i in second and j in first)  # found as (j, i) already
        ]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2).T


def _computed_values(
    force: openmm.CustomNonbondedForce,
    functions: tuple[TabulatedFunction, ...],
    parameters: dict[str, np.ndarray],
    shared: dict[str, float],
) -> dict[str, np.ndarray]:
    """Values that depend on a particle's parameters alone, each of shape=(n_atoms,)."""
    import torch

    values: dict[str, np.ndarray] = {}
    for index in range(force.getNumComputedValues()):
        name, text = force.getComputedValueParameters(index)
        known = {**shared, **parameters}
        expression = base.read_expression(text, functions, known)
        tape = bind(expression, known, {f.name: f for f in functions}, torch.float64, torch.device("cpu"))
        values[name] = np.broadcast_to(np.asarray(tape({}), dtype=np.float64), (force.getNumParticles(),))
    return values


def read_nonbonded(force: openmm.CustomNonbondedForce) -> CustomTerm:
    """Return a CustomNonbondedForce as a term.

    Raises
    ------
    UnsupportedForce
        For a periodic cut-off or a tabulated function that is not implemented.
    """
    method = force.getNonbondedMethod()
    if method == openmm.CustomNonbondedForce.CutoffPeriodic:
        raise unsupported(force, "periodic boundary conditions")
    functions = read_functions(force)
    shared = base.global_parameters(force)
    parameters = base.particle_parameters(force)
    parameters.update(_computed_values(force, functions, parameters, shared))
    pairs = _interacting_pairs(force)
    constants: dict[str, Any] = {**shared}
    for name, value in parameters.items():
        constants[f"{name}1"], constants[f"{name}2"] = (value[row][:, None] for row in pairs)
    expression = base.read_expression(force.getEnergyFunction(), functions, {"r", *constants})
    cutoff_nm = switch_nm = None
    if method == openmm.CustomNonbondedForce.CutoffNonPeriodic:
        cutoff_nm = force.getCutoffDistance().value_in_unit(unit.nanometer)
        if force.getUseSwitchingFunction():
            switch_nm = force.getSwitchingDistance().value_in_unit(unit.nanometer)
    used = {name: value for name, value in constants.items() if name in expression.variables}
    return PairTerm("CustomNonbondedForce", True, expression, pairs, used, functions, cutoff_nm, switch_nm)
