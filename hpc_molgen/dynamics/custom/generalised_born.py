"""CustomGBForce for the batched engine: generalised Born models given as expressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm

from hpc_molgen.dynamics.custom import base
from hpc_molgen.dynamics.custom.base import TINY_NM2, CustomTerm, unsupported
from hpc_molgen.dynamics.custom.expressions import Expression
from hpc_molgen.dynamics.custom.nonbonded import excluded_pairs
from hpc_molgen.dynamics.custom.tabulated import TabulatedFunction, read_functions
from hpc_molgen.dynamics.custom.tape import Tape, bind

if TYPE_CHECKING:
    import torch

_SINGLE = openmm.CustomGBForce.SingleParticle
_PAIR = openmm.CustomGBForce.ParticlePair
Values = dict[str, Any]  # of one quantity for every atom: arrays of shape=(n_atoms, n_copies)
Contribution = Callable[[Values, Any, Any], Any]


@dataclass(frozen=True, eq=False)
class BornTerm(CustomTerm):
    """A CustomGBForce without cut-off.

    Attributes
    ----------
    computed : tuple of (str, Expression, int)
        Values per atom, in order: name, expression, type.
    energies : tuple of (Expression, int)
        Energy terms and their types.
    parameters : dict of str to np.ndarray, shape=(n_atoms,)
    shared : dict of str to float
        Global parameters.
    functions : tuple of TabulatedFunction
    excluded : np.ndarray of bool, shape=(n_atoms, n_atoms)
        Pairs that terms of type ParticlePair leave out.
    """

    computed: tuple[tuple[str, Expression, int], ...]
    energies: tuple[tuple[Expression, int], ...]
    parameters: dict[str, np.ndarray]
    shared: dict[str, float]
    functions: tuple[TabulatedFunction, ...]
    excluded: np.ndarray

    def build(self, dtype: torch.dtype, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """Put the parameters on a device."""
        steps = [(name, _PARTS[kind](self, text, dtype, device, False)) for name, text, kind in self.computed]
        terms = [_PARTS[kind](self, text, dtype, device, True) for text, kind in self.energies]

        def energy(x: torch.Tensor) -> torch.Tensor:
            values: Values = dict(zip("xyz", x, strict=True))
            r = _distances(x)
            for name, step in steps:
                values[name] = step(values, r, x)
            result = x.new_zeros(x.shape[2])
            for term in terms:
                result = result + term(values, r, x)
            return result

        return energy

    def tape(self, text: Expression, constants: Values, dtype: torch.dtype, device: torch.device) -> Tape:
        """One expression of the force, ready to run."""
        return bind(text, {**self.shared, **constants}, {f.name: f for f in self.functions}, dtype, device)


def _others(square: torch.Tensor) -> torch.Tensor:
    """All but the diagonal of shape=(n, n, n_copies): shape=(n, n - 1, n_copies), by views alone.

    Behind the first diagonal element, each run of n + 1 ends with the next one.
    """
    n, _, n_copies = square.shape
    return square.reshape(n * n, n_copies)[1:].reshape(n - 1, n + 1, n_copies)[:, :-1].reshape(n, n - 1, n_copies)


def _distances(x: torch.Tensor) -> torch.Tensor:
    """Distances from each atom to each other one, shape=(n, n - 1, n_copies).

    Whole squares of pairs need no gather, and their gradients no scatter.
    """
    difference = x[:, :, None] - x[:, None]
    return _others((difference * difference).sum(0)).clamp(min=TINY_NM2).sqrt()


def _single(term: BornTerm, text: Expression, dtype: torch.dtype, device: torch.device, energy: bool) -> Contribution:
    """Value per atom, or its sum over atoms."""
    tape = term.tape(text, {name: value[:, None] for name, value in term.parameters.items()}, dtype, device)
    n_atoms = len(term.excluded)

    def contribution(values: Values, _r: torch.Tensor, x: torch.Tensor) -> Any:
        value = tape(values)
        if energy:
            return base.total(value, n_atoms, x)
        return value + x.new_zeros(n_atoms, x.shape[2]) if _constant(tape) else value

    return contribution


def _constant(tape: Tape) -> bool:
    return not isinstance(tape.result, int)


def _pair_sums(term: BornTerm, text: Expression, exclude: bool, dtype: torch.dtype, device: torch.device) -> Contribution:
    """Sum over the other atoms of each atom, shape=(n_atoms, n_copies)."""
    import torch

    n_atoms = len(term.excluded)
    other = np.array([[j for j in range(n_atoms) if j != i] for i in range(n_atoms)], dtype=np.int64).reshape(n_atoms, -1)
    constants: Values = {}
    for name, value in term.parameters.items():
        constants[f"{name}1"], constants[f"{name}2"] = value[:, None, None], value[other][..., None]
    tape = term.tape(text, constants, dtype, device)
    left_out = np.take_along_axis(term.excluded, other, axis=1)[..., None]
    kept = torch.as_tensor(~left_out, device=device) if exclude and left_out.any() else None

    def contribution(values: Values, r: torch.Tensor, _x: torch.Tensor) -> torch.Tensor:
        inputs = {"r": r}
        for name in tape.inputs:
            if name != "r":
                value = values[name[:-1]]
                inputs[name] = value[:, None] if name.endswith("1") else _others(value.expand(n_atoms, *value.shape))
        value = tape(inputs)
        value = value + torch.zeros_like(r) if _constant(tape) else value
        return (value if kept is None else torch.where(kept, value, torch.zeros_like(r))).sum(1)

    return contribution


def _pair_energy(term: BornTerm, text: Expression, exclude: bool, dtype: torch.dtype, device: torch.device) -> Contribution:
    """Sum over pairs i < j, shape=(n_copies,)."""
    import torch

    n_atoms = len(term.excluded)
    i, j = np.triu_indices(n_atoms, 1)
    if exclude:
        keep = ~term.excluded[i, j]
        i, j = i[keep], j[keep]
    constants: Values = {}
    for name, value in term.parameters.items():
        constants[f"{name}1"], constants[f"{name}2"] = value[i][:, None], value[j][:, None]
    tape = term.tape(text, constants, dtype, device)
    place = torch.as_tensor(i * (n_atoms - 1) + j - 1, device=device)
    first, second = torch.as_tensor(i, device=device), torch.as_tensor(j, device=device)

    def contribution(values: Values, r: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        inputs: dict[str, torch.Tensor] = {}
        for name in tape.inputs:
            if name == "r":
                inputs[name] = r.reshape(-1, r.shape[2]).index_select(0, place)
            else:
                inputs[name] = values[name[:-1]].index_select(0, first if name.endswith("1") else second)
        return base.total(tape(inputs), len(i), x)

    return contribution


def _pairs(term: BornTerm, text: Expression, dtype: torch.dtype, device: torch.device, energy: bool) -> Contribution:
    return (_pair_energy if energy else _pair_sums)(term, text, True, dtype, device)


def _all_pairs(term: BornTerm, text: Expression, dtype: torch.dtype, device: torch.device, energy: bool) -> Contribution:
    return (_pair_energy if energy else _pair_sums)(term, text, False, dtype, device)


_PARTS = {_SINGLE: _single, _PAIR: _pairs, openmm.CustomGBForce.ParticlePairNoExclusions: _all_pairs}


def read_born(force: openmm.CustomGBForce) -> CustomTerm:
    """Return a CustomGBForce as a term.

    Raises
    ------
    UnsupportedForce
        For a cut-off or a tabulated function that is not implemented.
    """
    if force.getNonbondedMethod() != openmm.CustomGBForce.NoCutoff:
        raise unsupported(force, "a cut-off; the batched engine knows NoCutoff")
    functions = read_functions(force)
    shared, parameters = base.global_parameters(force), base.particle_parameters(force)
    names = list(parameters)  # of values per atom, as far as they are known
    invariant = True

    def read(text: str, kind: int) -> Expression:
        nonlocal invariant
        if kind == _SINGLE:
            known = {"x", "y", "z", *names, *shared}
        else:
            known = {"r", *(name + suffix for name in names for suffix in "12"), *shared}
        expression = base.read_expression(text, functions, known)
        invariant = invariant and not (kind == _SINGLE and expression.variables & ({"x", "y", "z"} - set(names) - set(shared)))
        return expression

    computed: list[tuple[str, Expression, int]] = []
    for index in range(force.getNumComputedValues()):
        name, text, kind = force.getComputedValueParameters(index)
        computed.append((name, read(text, kind), kind))
        names.append(name)
    terms = [force.getEnergyTermParameters(index) for index in range(force.getNumEnergyTerms())]
    energies = tuple((read(text, kind), kind) for text, kind in terms)
    excluded = np.zeros((force.getNumParticles(),) * 2, dtype=bool)
    for i, j in excluded_pairs(force):
        excluded[i, j] = excluded[j, i] = True
    return BornTerm("CustomGBForce", invariant, tuple(computed), energies, parameters, shared, functions, excluded)
