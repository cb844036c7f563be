"""Sequential Monte Carlo from a density that can be sampled to a target, by adaptive temperatures and Langevin moves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import logsumexp

from hpc_molgen import reweighting
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.densities import BoltzmannDensity, Density
from hpc_molgen.montecarlo.mala import State, local_scale, mala_steps, tuned
from hpc_molgen.seeding import numpy_generator, torch_generator
from hpc_molgen.surrogates.prior import draw_prior, log_prior

if TYPE_CHECKING:
    from hpc_molgen.representations.base import Representation
    from hpc_molgen.systems.base import MolecularSystem

MAX_TEMPERATURES = 500
RESAMPLE_BELOW = 0.5  # of the effective sample size
FIRST_STEP = 0.2


@dataclass(frozen=True)
class Particles:
    """Weighted particles of one population.

    Attributes
    ----------
    features : torch.Tensor, shape=(n, d), float64
    log_weight : np.ndarray, shape=(n,)
        Unnormalised: their mean exp estimates the ratio of the normalising constants of target and start, so populations are
        joined by putting them side by side.
    log_target : np.ndarray, shape=(n,)
        Unnormalised ln of the target.
    ancestor : np.ndarray, shape=(n,)
        Index of the sample that each descends from.
    levels : tuple of float
        lambda of each step; the last one is 1.
    acceptance : tuple of float
        Of the moves at each of them.
    """

    features: torch.Tensor
    log_weight: np.ndarray
    log_target: np.ndarray
    ancestor: np.ndarray
    levels: tuple[float, ...]
    acceptance: tuple[float, ...]


def anneal(
    start: Density,
    target: Density,
    features: torch.Tensor,
    n_torus: int,
    seed: int,
    *,
    n_moves: int = 5,
    final_moves: int = 0,
    conditional_ess: float = 0.9,
) -> Particles:
    """Carry samples of `start` to `target` along start^(1 - lambda) target^lambda.

    Annealed importance sampling (Neal 2001, Stat. Comput. 11, 125) with resampling (Del Moral, Doucet and Jasra 2006, J. R.
    Stat. Soc. B 68, 411). The next lambda is where the conditional effective sample size falls to a set share (Zhou, Johansen
    and Aston 2016, J. Comput. Graph. Stat. 25, 701, section 3.2). Particles are resampled systematically where the effective
    size of the weights falls below half. After each change they make Metropolis-adjusted Langevin steps, tuned by the particles
    of the step before: so estimates are consistent, and biased by what tuning takes from few particles.

    Parameters
    ----------
    start, target : Density
        Log-densities with gradients; `start` normalised if ratios of constants are wanted.
    features : torch.Tensor, shape=(n, d)
        Independent samples of `start`, angles first.
    n_torus : int
        Number of angles.
    seed : int
    n_moves : int
        Langevin steps at each lambda.
    final_moves : int
        More of them at the end.
    conditional_ess : float
        Share in (0, 1): nearer to one means more temperatures.

    Raises
    ------
    InputError
        When no sample has a finite density of the target, or when lambda does not reach one in `MAX_TEMPERATURES` steps.
    """
    generator, draws = torch_generator(seed, "moves"), numpy_generator(seed, "resample")
    densities, n = (start, target), len(features)
    state = State.of(densities, features.double())
    if not torch.isfinite(state.values[:, 1]).any():
        raise InputError("no sample of the surrogate has a finite energy, so nothing can be annealed: train longer")
    log_weight, log_constant, ancestor = np.zeros(n), 0.0, np.arange(n)
    level, step = 0.0, FIRST_STEP
    levels: list[float] = []
    acceptance: list[float] = []
    while level < 1.0:
        if len(levels) == MAX_TEMPERATURES:
            raise InputError(f"annealing has come to lambda {level:.2e} after {MAX_TEMPERATURES} temperatures: train longer")
        gain = _gain(state.values)
        last, level = level, next_level(level, log_weight, gain, conditional_ess)
        log_weight = log_weight + (level - last) * gain
        if reweighting.kish_ess(log_weight) < RESAMPLE_BELOW * n:
            log_constant += float(logsumexp(log_weight)) - math.log(n)
            chosen = reweighting.systematic_resample(log_weight, n, draws)
            state, ancestor, log_weight = state[torch.as_tensor(chosen)], ancestor[chosen], np.zeros(n)
        powers = torch.tensor([1 - level, level], dtype=torch.float64)
        scale = local_scale(state.mixed(powers)[1], torch.as_tensor(reweighting.normalised_weights(log_weight)))
        n_steps = n_moves + (final_moves if level == 1.0 else 0)
        state, accepted = mala_steps(densities, powers, state, n_torus, scale, step, n_steps, generator)
        step = tuned(step, accepted)
        levels.append(level)
        acceptance.append(accepted)
    log_target = state.values[:, 1].numpy()
    return Particles(state.features, log_weight + log_constant, log_target, ancestor, tuple(levels), tuple(acceptance))


def anneal_prior(
    system: MolecularSystem, representation: Representation, kelvin: float, n: int, seed: int, **options: float
) -> tuple[Particles, int]:
    """Carry the prior of surrogates (uniform angles, normal numbers) to the Boltzmann distribution, without any surrogate.

    Parameters
    ----------
    system, representation
        The representation has whitened the molecule's stiff coordinates, which is what makes this cheap.
    kelvin : float
        Of the Boltzmann distribution.
    n, seed : int
    **options
        Of `anneal`.

    Returns
    -------
    Particles, int
        Weighted to exp(-U/kT), and the number of energies with forces that it took.
    """
    n_torus = representation.n_torus

    def prior(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gradient = -features
        gradient[:, :n_torus] = 0
        return log_prior(features, n_torus), gradient

    target = BoltzmannDensity(system, representation, kelvin)
    start = draw_prior(n, n_torus, representation.n_euclidean, torch_generator(seed, "prior")).double()
    particles = anneal(prior, target, start, n_torus, seed, **options)  # type: ignore[arg-type]
    return particles, target.n_evaluations


def _gain(values: torch.Tensor) -> np.ndarray:
    """Ln of target over start (n,); -inf where the target is zero."""
    first, last = values.double().numpy().T
    with np.errstate(invalid="ignore"):
        gain: np.ndarray = last - first
    return np.where(np.isfinite(last), gain, -np.inf)


def next_level(level: float, log_weight: np.ndarray, gain: np.ndarray, share: float) -> float:
    """Return the largest lambda of at most one at which the conditional effective sample size is at least `share`.

    Particles that no lambda can keep (a gain of -inf) count as lost from the start.
    """
    weights = reweighting.normalised_weights(log_weight)
    alive = np.isfinite(gain) & (weights > 0)
    weights, gain = weights[alive] / weights[alive].sum(), gain[alive]

    def conditional_ess(new: float) -> float:
        change = (new - level) * gain
        change = np.exp(change - change.max())
        return float((weights @ change) ** 2 / (weights @ change**2))

    if conditional_ess(1.0) >= share:
        return 1.0
    low, high = 1e-300, 1.0 - level  # in the size of the step, on a logarithmic scale: clashes need tiny ones
    for _ in range(100):
        middle = math.sqrt(low * high) if high / low > 4 else 0.5 * (low + high)
        low, high = (middle, high) if conditional_ess(level + middle) >= share else (low, middle)
    return min(1.0, max(level + low, level * (1 + 1e-12)))
