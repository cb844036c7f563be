"""Integrators of the probability-flow ODE, with the integral of the divergence beside the features.

Fixed steps are uniform in s, with the noise angle phi = pi/2 ((1 - WARP) s + WARP s^2): shorter near the data, where the field
changes most. The adaptive method chooses its steps in phi itself. All samples of a batch share one grid of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hpc_molgen.config import ODE_STEPS, Integrator
from hpc_molgen.errors import InputError
from hpc_molgen.surrogates.diffusion.process import HALF_PI

Slope = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor | None]]
EVALUATIONS = {"euler": 1, "heun": 2, "rk4": 4, "dopri5": 6, "adams": 1}  # of the network, each step (adams: and one more)
WARP = 0.5
_SHORTEST = 1e-6  # step in phi at which the adaptive method gives up


@dataclass(frozen=True)
class Solution:
    """End of an integration.

    Attributes
    ----------
    features : torch.Tensor, shape=(n, n_features)
        Angles are not wrapped.
    change : torch.Tensor, shape=(n,), float64, or None
        Integral of the divergence over the noise angle, from the start to the end.
    n_evaluations : int
        Of the network; one with its divergence counts as one.
    """

    features: torch.Tensor
    change: torch.Tensor | None
    n_evaluations: int


@dataclass(frozen=True)
class Tableau:
    """A Runge-Kutta method: Butcher's tableau, and the difference of its weights from those of an embedded method."""

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] = ()


DORMAND_PRINCE = Tableau(  # 1980, J. Comput. Appl. Math. 6, 19: RK5(4)7M; its last stage is the first of the next step
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
TABLEAUS = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    # without the seventh stage, which only the error needs
    "dopri5": Tableau(DORMAND_PRINCE.nodes[:6], DORMAND_PRINCE.rows[:6], DORMAND_PRINCE.weights[:6]),
}


def solve(
    slope: Slope, features: torch.Tensor, start: float, end: float, integrator: Integrator, n_steps: int, tolerance: float
) -> Solution:
    """Run features from noise angle `start` to `end`, and ln|det| of that map beside them where `slope` gives a divergence.

    Parameters
    ----------
    slope : callable
        ``slope(features, phi) -> (velocity, divergence or None)``.
    features : torch.Tensor, shape=(n, n_features)
    integrator : {"euler", "heun", "rk4", "dopri5", "adams", "adaptive"}
        Runge-Kutta methods of order 1, 2, 4 and 5; Adams-Bashforth of order 3; Dormand-Prince 5(4) with adaptive steps.
    n_steps : int
        Of all but "adaptive"; 0 is the method's default.
    tolerance : float
        Of "adaptive": error of a step, in features (absolute and relative) and in ln q (absolute), as root mean squares over
        the batch.

    Raises
    ------
    InputError
        For an unknown integrator, or when the adaptive one cannot reach the tolerance.
    """
    if integrator not in ODE_STEPS:
        raise InputError(f"sample.integrator: there is no '{integrator}'; there are: {', '.join(ODE_STEPS)}")
    if integrator == "adaptive":
        return adaptive(slope, features, start, end, tolerance, tolerance)
    steps = n_steps or ODE_STEPS[integrator]
    warped = _Warped(slope)
    first, last = unwarped(start), unwarped(end)
    if integrator == "adams":
        return _adams(warped, features, first, last, steps)
    tableau, h = TABLEAUS[integrator], (last - first) / steps
    change = None
    for index in range(steps):
        slopes: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        for node, row in zip(tableau.nodes, tableau.rows, strict=True):
            slopes.append(warped(_moved(features, h, row, slopes), first + (index + node) * h))
        features = _moved(features, h, tableau.weights, slopes)
        change = _accumulated(change, h, tableau.weights, slopes)
    return Solution(features, change, steps * EVALUATIONS[integrator])


def warped_angle(s: float) -> float:
    """Noise angle of a point s in [0, 1] of the uniform grid."""
    return HALF_PI * ((1 - WARP) * s + WARP * s * s)


def unwarped(phi: float) -> float:
    """Inverse of `warped_angle`."""
    base = 1 - WARP
    return (math.sqrt(base * base + 4 * WARP * phi / HALF_PI) - base) / (2 * WARP)


@dataclass(frozen=True)
class _Warped:
    """The slope by s instead of phi."""

    slope: Slope

    def __call__(self, features: torch.Tensor, s: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        factor = HALF_PI * (1 - WARP + 2 * WARP * s)
        velocity, divergence = self.slope(features, warped_angle(s))
        return factor * velocity, None if divergence is None else factor * divergence


def _moved(
    features: torch.Tensor, h: float, row: Sequence[float], slopes: Sequence[tuple[torch.Tensor, torch.Tensor | None]]
) -> torch.Tensor:
    for weight, (velocity, _) in zip(row, slopes, strict=True):
        if weight:
            features = torch.add(features, velocity, alpha=h * weight)
    return features


def _accumulated(
    change: torch.Tensor | None,
    h: float,
    row: Sequence[float],
    slopes: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
) -> torch.Tensor | None:
    """Add to ln|det| what a step brings, in float64."""
    for weight, (_, divergence) in zip(row, slopes, strict=True):
        if divergence is not None:
            part = h * weight * divergence.double()
            change = part if change is None else change + part
    return change


def _adams(slope: Slope, features: torch.Tensor, first: float, last: float, n_steps: int) -> Solution:
    """Adams-Bashforth of order 3: one evaluation a step, and one more for the first (Heun's), after which comes one of order 2.

    These begin with errors of h^3 each, as much as all others leave together.
    """
    h, change = (last - first) / n_steps, None
    slopes: list[tuple[torch.Tensor, torch.Tensor | None]] = []  # newest first
    for index in range(n_steps):
        slopes = [slope(features, first + index * h), *slopes[:2]]
        if not index:
            both = [slopes[0], slope(_moved(features, h, (1.0,), slopes), first + h)]
            features, change = _moved(features, h, (0.5, 0.5), both), _accumulated(change, h, (0.5, 0.5), both)
            continue
        weights = adams_weights(len(slopes))
        features = _moved(features, h, weights, slopes)
        change = _accumulated(change, h, weights, slopes)
    return Solution(features, change, n_steps + 1)


def adams_weights(order: int) -> list[float]:
    """Weights of the last `order` slopes, newest first: exact for polynomials of lower degree than `order`."""
    nodes = -np.arange(order, dtype=np.float64)
    weights: list[float] = np.linalg.solve(np.vander(nodes, increasing=True).T, 1 / np.arange(1, order + 1)).tolist()
    return weights


def adaptive(slope: Slope, features: torch.Tensor, start: float, end: float, rtol: float, atol: float) -> Solution:
    """Dormand-Prince 5(4) with local extrapolation; features and ln|det| share steps, whose errors are controlled.

    The error of a step is the larger of two root mean squares over the batch: that of features, in units of atol + rtol |x|,
    and that of ln|det|, in units of atol. (Step control of Hairer, Norsett and Wanner 1993, Solving ODEs I, section II.4.)

    Raises
    ------
    InputError
        When steps become too short: the tolerance is beyond the precision of the network.
    """
    phi, direction = start, math.copysign(1.0, end - start)
    h = 0.05 * direction
    change, slopes, n_evaluations = None, [slope(features, phi)], 1
    while (end - phi) * direction > 1e-12:
        h = direction * min(abs(h), abs(end - phi))
        slopes = slopes[:1]
        point = features
        for node, row in zip(DORMAND_PRINCE.nodes[1:], DORMAND_PRINCE.rows[1:], strict=True):
            point = _moved(features, h, row, slopes)  # the last one is the end of the step
            slopes.append(slope(point, phi + node * h))
        n_evaluations += 6
        error = _step_error(features, h, slopes, rtol, atol)
        if error <= 1:
            change = _accumulated(change, h, DORMAND_PRINCE.weights, slopes)
            features, phi, slopes = point, phi + h, slopes[-1:]
        h *= min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
        if not math.isfinite(error) or abs(h) < _SHORTEST:
            raise InputError(
                f"sample.tolerance {atol:g} cannot be reached at noise angle {phi:.3g}: give a larger one, or a fixed-step "
                "sample.integrator"
            )
    return Solution(features, change, n_evaluations)


def _step_error(
    features: torch.Tensor, h: float, slopes: list[tuple[torch.Tensor, torch.Tensor | None]], rtol: float, atol: float
) -> float:
    difference = _moved(torch.zeros_like(features), h, DORMAND_PRINCE.error, slopes)
    error = float((difference / (atol + rtol * features.abs())).square().mean().sqrt())
    change = _accumulated(None, h, DORMAND_PRINCE.error, slopes)
    return error if change is None else max(error, float((change / atol).square().mean().sqrt()))
