"""Tabulated functions of OpenMM's custom forces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm

from hpc_molgen.errors import UnsupportedForce

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class TabulatedFunction(ABC):
    """A function that a force knows by name.

    Attributes
    ----------
    name : str
    n_arguments : int
    """

    name: str
    n_arguments: int

    @abstractmethod
    def build(self, dtype: torch.dtype, device: torch.device) -> Callable[..., torch.Tensor]:
        """Put the table on a device: a callable for tensors of `dtype` there, of shapes that broadcast."""


@dataclass(frozen=True, eq=False)
class DiscreteFunction(TabulatedFunction):
    """Values at integers, of one to three arguments that are rounded; not a number outside the table.

    Attributes
    ----------
    values : np.ndarray, shape=(n_1,), (n_1, n_2) or (n_1, n_2, n_3)
    """

    values: np.ndarray

    def build(self, dtype: torch.dtype, device: torch.device) -> Callable[..., torch.Tensor]:
        """Put the table on a device."""
        import torch

        table = torch.as_tensor(self.values.ravel(), dtype=dtype, device=device)
        sizes = self.values.shape

        def look_up(*arguments: torch.Tensor) -> torch.Tensor:
            flat: Any = 0
            inside: Any = True
            for size, argument in zip(sizes, arguments, strict=True):
                index = torch.round(argument).long()
                inside = inside & (index >= 0) & (index < size)
                flat = flat * size + index.clamp(0, size - 1)
            value = table.index_select(0, flat.reshape(-1)).reshape(flat.shape)
            return torch.where(inside, value, torch.full_like(value, torch.nan))

        return look_up


@dataclass(frozen=True, eq=False)
class SplineFunction(TabulatedFunction):
    """A cubic spline through evenly spaced values, natural (zero outside the range) or periodic.

    Attributes
    ----------
    coefficients : np.ndarray, shape=(4, n_intervals)
        Of 1, t, t^2, t^3 with t from 0 to 1 in each interval.
    minimum, maximum : float
        The range.
    periodic : bool
    """

    coefficients: np.ndarray
    minimum: float
    maximum: float
    periodic: bool

    def build(self, dtype: torch.dtype, device: torch.device) -> Callable[..., torch.Tensor]:
        """Put the coefficients on a device."""
        import torch

        table = torch.as_tensor(self.coefficients, dtype=dtype, device=device)
        n_intervals = table.shape[1]
        length = self.maximum - self.minimum

        def interpolate(x: torch.Tensor) -> torch.Tensor:
            from_start = torch.remainder(x - self.minimum, length) if self.periodic else x - self.minimum
            t = from_start * (n_intervals / length)
            index = t.detach().long().clamp(0, n_intervals - 1)
            c = table.index_select(1, index.reshape(-1)).reshape(4, *x.shape)
            t = t - index
            value = ((c[3] * t + c[2]) * t + c[1]) * t + c[0]
            if self.periodic:
                return value
            return torch.where((x < self.minimum) | (x > self.maximum), torch.zeros_like(value), value)

        return interpolate


def _spline(name: str, values: np.ndarray, low: float, high: float, periodic: bool) -> SplineFunction:
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.arange(len(values)), values, bc_type="periodic" if periodic else "natural")
    return SplineFunction(name, 1, np.ascontiguousarray(spline.c[::-1]), low, high, periodic)


def read_functions(force: Any) -> tuple[TabulatedFunction, ...]:
    """Return the tabulated functions of a CustomNonbondedForce or CustomGBForce.

    Raises
    ------
    UnsupportedForce
        For a continuous function of two or three arguments.
    """
    found: list[TabulatedFunction] = []
    for index in range(force.getNumTabulatedFunctions()):
        name, function = force.getTabulatedFunctionName(index), force.getTabulatedFunction(index)
        if isinstance(function, openmm.Continuous1DFunction):
            values, low, high = function.getFunctionParameters()
            found.append(_spline(name, np.array(values), low, high, bool(function.getPeriodic())))
        elif isinstance(function, openmm.Discrete1DFunction):
            found.append(DiscreteFunction(name, 1, np.array(function.getFunctionParameters())))
        elif isinstance(function, openmm.Discrete2DFunction | openmm.Discrete3DFunction):
            *sizes, values = function.getFunctionParameters()  # the first argument runs fastest
            found.append(DiscreteFunction(name, len(sizes), np.array(values).reshape(sizes, order="F")))
        else:
            kind = type(function).__name__
            raise UnsupportedForce(f"{force.getName()} ({type(force).__name__}): tabulated function '{name}' is a {kind}")
    return tuple(found)
