"""Expressions as straight lines of torch operations: constants folded, equal parts computed once, safe gradients."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hpc_molgen.dynamics.custom.expressions import Call, Chain, Expression, Node, Number, Reference
from hpc_molgen.errors import InputError

if TYPE_CHECKING:
    import torch

_SMOOTH = ("+", "-", "*", "/", "^")  # operations that take Python numbers beside tensors
_MAX_POWER = 64  # larger integer powers go through pow
# Arguments at which an operation is finite, with its derivative: what copies see whose `select` chose the other branch.
_SAFE: Mapping[str, tuple[float | None, ...]] = {
    "/": (None, 1.0),
    "^": (1.0, 1.0),
    "atan2": (None, 1.0),
    **dict.fromkeys(("sqrt", "log", "recip", "cot", "csc"), (1.0,)),
    **dict.fromkeys(("exp", "sec", "tan", "asin", "acos", "sinh", "cosh"), (0.0,)),
}


class Table(Protocol):
    """A tabulated function: gives a callable for tensors of one dtype on one device."""

    def build(self, dtype: torch.dtype, device: torch.device) -> Callable[..., torch.Tensor]:
        """Put the table on the device."""


@cache
def _operations() -> dict[str, Callable[..., torch.Tensor]]:
    import torch

    return {
        **{"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "^": torch.pow},
        **{"neg": torch.neg, "recip": torch.reciprocal, "sqrt": torch.sqrt, "exp": torch.exp, "log": torch.log},
        **{"sin": torch.sin, "cos": torch.cos, "tan": torch.tan, "asin": torch.asin, "acos": torch.acos},
        **{"atan": torch.atan, "atan2": torch.atan2, "sinh": torch.sinh, "cosh": torch.cosh, "tanh": torch.tanh},
        **{"erf": torch.erf, "erfc": torch.erfc, "floor": torch.floor, "ceil": torch.ceil},
        "sec": lambda x: 1 / torch.cos(x),
        "csc": lambda x: 1 / torch.sin(x),
        "cot": lambda x: 1 / torch.tan(x),
        "step": lambda x: (x >= 0).to(x.dtype),
        "delta": lambda x: (x == 0).to(x.dtype),
        # where two branches meet the derivative is OpenMM's, not the mean of both
        "abs": lambda x: torch.where(x >= 0, x, -x),
        "min": lambda x, y: torch.where(x >= y, y, x),
        "max": lambda x, y: torch.where(x >= y, x, y),
        "true": lambda x: x != 0,
        "not": torch.logical_not,
        "and": torch.logical_and,
        "where": torch.where,
    }


Operand = Any  # int: a slot of the tape; float or torch.Tensor: a constant


@dataclass(frozen=True, eq=False)
class Tape:
    """An expression ready to run.

    Attributes
    ----------
    inputs : tuple of str
        Variables, in the order of the first slots.
    steps : tuple of (callable, tuple of operands)
        The n-th step fills slot `len(inputs) + n`. An int operand is a slot, any other a constant.
    result : int, float or torch.Tensor
        A slot, or the constant that the expression is.
    """

    inputs: tuple[str, ...]
    steps: tuple[tuple[Callable[..., Any], tuple[Operand, ...]], ...]
    result: Operand

    def __call__(self, values: Mapping[str, torch.Tensor]) -> Any:
        """Value for `values` of the inputs: a tensor, or a float where nothing depends on them."""
        slots = [values[name] for name in self.inputs]
        for function, operands in self.steps:
            slots.append(function(*[slots[o] if isinstance(o, int) else o for o in operands]))
        return slots[self.result] if isinstance(self.result, int) else self.result


def bind(
    expression: Expression,
    constants: Mapping[str, Any],
    functions: Mapping[str, Table],
    dtype: torch.dtype,
    device: torch.device,
) -> Tape:
    """Return the operations of an expression, all that depends on constants alone computed once, in float64.

    Powers with an integer exponent (a literal, or a parameter that is the same everywhere) are products. In
    `select(c, a, b)` gradients flow through the chosen branch alone: every function of the other one that could be
    singular there is evaluated at a harmless argument instead. This cannot be promised where a product with `step` or
    `delta` takes the place of `select` (0 times infinity is not a number, in OpenMM as well).

    Parameters
    ----------
    expression : Expression
    constants : mapping of str to float, np.ndarray or float64 torch.Tensor
        Parameters; arrays broadcast against the values of the other variables.
    functions : mapping of str to Table
        Tabulated functions of the expression.
    dtype, device
        Of the values that the tape will be given.

    Raises
    ------
    InputError
        Where operations are nested too deeply to follow.
    """
    compiler = _Compiler(expression, constants, functions)
    try:
        result = compiler.emit(expression.root, None)
    except RecursionError:
        raise InputError(f"too many nested operations in the expression\n  {expression.text}") from None

    def placed(operand: Operand, smooth: bool) -> Operand:
        import torch

        if isinstance(operand, float):
            return operand if smooth else torch.tensor(operand, dtype=dtype, device=device)
        if isinstance(operand, torch.Tensor):
            return operand.to(device) if operand.dtype == torch.bool else operand.to(device, dtype)
        return operand

    known = {**_operations(), **{name: table.build(dtype, device) for name, table in functions.items()}}
    steps = [(known[name], tuple(placed(o, name in _SMOOTH) for o in operands)) for name, operands in compiler.steps]
    return Tape(tuple(compiler.inputs), tuple(steps), placed(result, True))


def evaluate(expression: Expression, values: Mapping[str, Any], functions: Mapping[str, Table] | None = None) -> Any:
    """Value of an expression: a tensor, or a float where all `values` are numbers.

    Parameters
    ----------
    expression : Expression
    values : mapping of str to float or torch.Tensor
        Of every variable; tensors share one dtype and device.
    functions : mapping of str to Table, optional

    Raises
    ------
    InputError
        For a variable without a value.
    """
    import torch

    expression.require_known(values)
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    numbers = {name: float(value) for name, value in values.items() if name not in tensors}
    first = next(iter(tensors.values()), torch.zeros((), dtype=torch.float64))
    return bind(expression, numbers, functions or {}, first.dtype, first.device)(tensors)


def _simplified(value: torch.Tensor) -> Operand:
    """A number in place of a tensor that is the same everywhere: integer powers of it become products."""
    uniform = value.is_floating_point() and value.numel() > 0 and bool((value == value.flatten()[0]).all())
    return float(value.flatten()[0]) if uniform else value


def _is(constant: Operand, number: float) -> bool:
    return isinstance(constant, float) and constant == number


def _finite(constant: Operand) -> bool:
    return bool(np.isfinite(constant) if isinstance(constant, float) else constant.isfinite().all())


class _Compiler:
    """Emits operations for nodes; `guard` is the mask of copies whose `select`s choose the node, None for all."""

    def __init__(self, expression: Expression, constants: Mapping[str, Any], functions: Mapping[str, Table]) -> None:
        import torch

        used = expression.variables
        self.definitions = expression.definitions
        self.inputs = sorted(used - set(constants))
        self.constants = {
            name: float(value) if isinstance(value, int | float) else _simplified(torch.as_tensor(value, dtype=torch.float64))
            for name, value in constants.items()
            if name in used
        }
        tables = {name: table.build(torch.float64, torch.device("cpu")) for name, table in functions.items()}
        self.known = {**_operations(), **tables}
        self.tables = set(tables)
        self.steps: list[tuple[str, tuple[Operand, ...]]] = []
        self.emitted: dict[tuple[Any, ...], int] = {}
        self.finished: dict[tuple[int, Any], Operand] = {}
        self.masks: list[Operand] = []  # kept, for `finished` knows them by their id

    def emit(self, node: Node, guard: Operand) -> Operand:
        """Slot or constant that holds the value of `node`."""
        if isinstance(node, Number):
            return node.value
        if isinstance(node, Reference):
            return self.emit(self.definitions[node.index], guard)
        key = (id(node), guard if isinstance(guard, int) else id(guard))
        if key not in self.finished:
            if isinstance(node, Call):
                self.finished[key] = self._call(node, guard)
            elif isinstance(node, Chain):
                self.finished[key] = self._chain(node, guard)
            else:
                constant = self.constants.get(node.name)
                self.finished[key] = self.inputs.index(node.name) if constant is None else constant
        return self.finished[key]

    def apply(self, name: str, operands: tuple[Operand, ...], guard: Operand = None) -> Operand:
        """Emit one operation, or its value where all operands are constants."""
        import torch

        if not any(isinstance(o, int) for o in operands):
            tensors = [torch.tensor(o, dtype=torch.float64) if isinstance(o, float) else o for o in operands]
            return _simplified(self.known[name](*tensors))
        if guard is not None:
            safe = _SAFE.get(name, ()) if name not in self.tables else ()
            operands = tuple(self._protected(o, guard, safe[i] if i < len(safe) else None) for i, o in enumerate(operands))
        key = (name, *(id(o) if isinstance(o, torch.Tensor) else o for o in operands))
        if key not in self.emitted:
            self.steps.append((name, operands))  # holds the constants too, so that no id is used twice
            self.emitted[key] = len(self.inputs) + len(self.steps) - 1
        return self.emitted[key]

    def _protected(self, operand: Operand, guard: Operand, safe: float | None) -> Operand:
        if isinstance(operand, int):
            return operand if safe is None else self.apply("where", (guard, operand, safe))
        return operand if _finite(operand) else self.apply("where", (guard, operand, 1.0))

    def _chain(self, node: Chain, guard: Operand) -> Operand:
        """Constants first, among themselves, then the rest from left to right."""
        sums = node.rest[0][0] in "+-"
        join, undo, neutral = ("+", "-", 0.0) if sums else ("*", "/", 1.0)
        constant: Operand = neutral
        slots: list[tuple[str, int]] = []
        for sign, operand in ((join, node.first), *node.rest):
            value = self.emit(operand, guard)
            if isinstance(value, int):
                slots.append((sign, value))
            else:
                constant = value if _is(constant, neutral) and sign == join else self.apply(sign, (constant, value))
        if not slots:
            return constant
        slots.sort(key=lambda item: item[0] == undo)  # stable: what is added before what is subtracted
        sign, result = slots[0]
        if sign == undo:
            inverse = {"-": "neg", "/": "recip"}[undo]
            whole = (result,) if _is(constant, neutral) else (constant, result)
            result = self.apply(inverse if len(whole) == 1 else undo, whole, guard)
            constant = neutral
        for sign, slot in slots[1:]:
            result = self.apply(sign, (result, slot), guard)
        return result if _is(constant, neutral) else self.apply(join, (result, constant), guard)

    def _call(self, node: Call, guard: Operand) -> Operand:
        if node.name in self.tables:
            return self.apply(node.name, tuple(self.emit(a, guard) for a in node.arguments), guard)
        if node.name == "select":
            return self._select(node, guard)
        operands = tuple(self.emit(a, guard) for a in node.arguments)
        if node.name in ("square", "cube"):
            return self._power(operands[0], 2 if node.name == "square" else 3, guard)
        if node.name == "^" and isinstance(operands[1], float):
            exponent = operands[1]
            if exponent.is_integer() and abs(exponent) <= _MAX_POWER:
                return self._power(operands[0], int(exponent), guard)
        return self.apply(node.name, operands, guard)

    def _power(self, base: Operand, exponent: int, guard: Operand) -> Operand:
        if exponent == 0:
            return 1.0
        if exponent < 0:
            return self._power(self.apply("recip", (base,), guard), -exponent, guard)
        result: Operand = None
        while exponent:
            if exponent & 1:
                result = base if result is None else self.apply("*", (result, base), guard)
            exponent >>= 1
            if exponent:
                base = self.apply("*", (base, base), guard)
        return result

    def _select(self, node: Call, guard: Operand) -> Operand:
        condition = self.emit(node.arguments[0], guard)
        if isinstance(condition, float):
            return self.emit(node.arguments[1 if condition != 0 else 2], guard)
        chosen = self.apply("true", (condition,))
        masks = [chosen, self.apply("not", (chosen,))]
        if guard is not None:
            masks = [self.apply("and", (guard, mask)) for mask in masks]
        self.masks.extend(masks)
        branches = [self.emit(argument, mask) for argument, mask in zip(node.arguments[1:], masks, strict=True)]
        return self.apply("where", (chosen, *branches))
