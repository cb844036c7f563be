"""The Metropolis-adjusted Langevin algorithm for many particles at once, on a torus times a Euclidean space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hpc_molgen.angles import wrap_angle
from hpc_molgen.montecarlo.densities import Density

BEST_ACCEPTANCE = 0.574  # Roberts and Rosenthal 1998, J. R. Stat. Soc. B 60, 255
ADAPTATION = 0.5  # change of ln(step) for each unit of acceptance missed
LONGEST_STEP = 2.0
CALM_SHARE = 0.9
WIDEST = 1.5  # in radians and in standard deviations, where a density is flat
MOST_DRIFT = 3.0  # that a drift may reach, in lengths of the noise


@dataclass(frozen=True)
class State:
    """Particles with what is known of them: the values and gradients of k log-densities.

    Attributes
    ----------
    features : torch.Tensor, shape=(n, d), float64
    values : torch.Tensor, shape=(n, k)
    gradients : torch.Tensor, shape=(n, k, d)
    """

    features: torch.Tensor
    values: torch.Tensor
    gradients: torch.Tensor

    @classmethod
    def of(cls, densities: Sequence[Density], features: torch.Tensor) -> State:
        """Evaluate all `densities` at `features` (n, d)."""
        values, gradients = zip(*(density(features) for density in densities), strict=True)
        return cls(features, torch.stack(values, dim=1), torch.stack(gradients, dim=1))

    def __getitem__(self, rows: torch.Tensor) -> State:
        return State(self.features[rows], self.values[rows], self.gradients[rows])

    def replaced(self, accept: torch.Tensor, other: State) -> State:
        """Return `other` where `accept` (n,), this elsewhere."""
        return State(
            torch.where(accept[:, None], other.features, self.features),
            torch.where(accept[:, None], other.values, self.values),
            torch.where(accept[:, None, None], other.gradients, self.gradients),
        )

    def mixed(self, powers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ln of the product of the densities to the `powers` (k,), shape (n,), and its gradient (n, d)."""
        used = powers > 0
        return self.values[:, used] @ powers[used], torch.einsum("nkd,k->nd", self.gradients[:, used], powers[used])


def mala_steps(
    densities: Sequence[Density],
    powers: torch.Tensor,
    state: State,
    n_torus: int,
    scale: torch.Tensor,
    step: float,
    n_steps: int,
    generator: torch.Generator,
) -> tuple[State, float]:
    """Move every particle by steps that leave the product of `densities` to the `powers` invariant.

    A proposal is x + h^2/2 C g + h C^(1/2) xi (Roberts and Tweedie 1996, Bernoulli 2, 341), C a diagonal of squared scales
    and g the gradient. Its contribution is cut at `MOST_DRIFT` lengths of the noise (their truncated variant, section 1.4.2):
    near a clash forces know no bounds. The cut depends on the state alone, so the test of Metropolis and Hastings stays exact.
    Angles move on the covering line of the circle, where a displacement and its negative are a proposal and its reverse: no sum
    over images is needed.

    Parameters
    ----------
    densities : sequence of Density
        Of k terms.
    powers : torch.Tensor, shape=(k,), float64
    state : State
    n_torus : int
        Of the features, angles first.
    scale : torch.Tensor, shape=(d,)
        Widths of the target, roughly.
    step : float
        h.
    n_steps : int
    generator : torch.Generator

    Returns
    -------
    State, float
        The moved particles and the mean acceptance. Densities of power zero are not evaluated: their values stay as they were.
    """
    used = [index for index, power in enumerate(powers.tolist()) if power > 0]
    accepted = 0.0
    for _ in range(n_steps):
        value, gradient = state.mixed(powers)
        drift = _drift(gradient, scale, step)
        noise = torch.randn(state.features.shape, generator=generator, dtype=torch.float64)
        uniform = torch.rand(len(value), generator=generator, dtype=torch.float64)
        move = drift + step * noise
        features = state.features + scale * move
        features[:, :n_torus] = wrap_angle(features[:, :n_torus])
        values, gradients = state.values.clone(), state.gradients.clone()
        for index in used:
            values[:, index], gradients[:, index] = densities[index](features)
        proposal = State(features, values, gradients)
        new_value, new_gradient = proposal.mixed(powers)
        back = (move + _drift(new_gradient, scale, step)) / step
        log_ratio = new_value - value + 0.5 * (noise**2).sum(1) - 0.5 * (back**2).sum(1)
        accept = torch.log(uniform) < torch.nan_to_num(log_ratio, nan=-math.inf)
        state = state.replaced(accept, proposal)
        accepted += float(accept.double().mean())
    return state, accepted / max(1, n_steps)


def _drift(gradient: torch.Tensor, scale: torch.Tensor, step: float) -> torch.Tensor:
    """Drift in units of `scale`, shape (n, d)."""
    drift = 0.5 * step**2 * scale * gradient
    norm = torch.linalg.vector_norm(drift, dim=1, keepdim=True)
    limit = MOST_DRIFT * step * math.sqrt(gradient.shape[1])
    return drift * torch.clamp(limit / norm.clamp(min=1e-300), max=1.0)


def tuned(step: float, acceptance: float) -> float:
    """Return a step that brings the acceptance nearer to the best one."""
    return min(LONGEST_STEP, step * math.exp(ADAPTATION * (acceptance - BEST_ACCEPTANCE)))


def local_scale(gradient: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Widths (d,) of a density within its basins, from its gradients (n, d) at weighted particles: E[g_i^2]^(-1/2).

    The inverse of the Fisher information is the best linear preconditioner (Titsias 2023, NeurIPS, "Optimal preconditioning and
    Fisher adaptive Langevin sampling"); for a normal density its diagonal holds the conditional variances, and distances
    between basins do not enter. The tenth of the particles with the largest gradients is left out: in a clash they are beyond
    measure.
    """
    norm = torch.linalg.vector_norm(gradient, dim=1)
    kept = norm <= torch.quantile(norm, CALM_SHARE)
    share = (weights * kept)[:, None]
    square = (share * gradient**2).sum(0) / share.sum().clamp(min=1e-300)
    return torch.rsqrt(square.clamp(min=1 / WIDEST**2))
