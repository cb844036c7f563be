"""Independence Metropolis-Hastings with a surrogate's samples as proposals, mixed with Langevin moves: exact chains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hpc_molgen import reweighting
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.densities import Density
from hpc_molgen.montecarlo.mala import State, local_scale, mala_steps, tuned
from hpc_molgen.seeding import numpy_generator, torch_generator

FIRST_STEP = 0.2
STARTS = 0.1  # share of the samples that starts are drawn from, and of the sweeps after them that tune and are not kept


@dataclass(frozen=True)
class Chains:
    """What parallel chains visited after their burn-in.

    Attributes
    ----------
    features : torch.Tensor, shape=(n_sweeps, n_chains, d), float64
    log_target : np.ndarray, shape=(n_sweeps, n_chains)
    independence_acceptance, langevin_acceptance : float
    """

    features: torch.Tensor
    log_target: np.ndarray
    independence_acceptance: float
    langevin_acceptance: float


def run_chains(
    log_start: Callable[[torch.Tensor], torch.Tensor],
    target: Density,
    features: torch.Tensor,
    log_density: torch.Tensor,
    n_torus: int,
    n_chains: int,
    seed: int,
    *,
    n_moves: int = 5,
) -> Chains:
    """Run `n_chains` chains that have the target as their stationary distribution, whatever the surrogate.

    A sweep is an independence step, in which each chain is offered a sample of its own x' and takes it with probability min(1,
    w(x') / w(x)), w = target / start (Hastings 1970, Biometrika 57, 97; Tierney 1994, Ann. Stat. 22, 1701), then `n_moves`
    Langevin steps. The former carries chains between basins, the latter reach what the surrogate has forgotten. Chains start
    from the first tenth of the samples, drawn by weight; the first tenth of the sweeps tunes the Langevin steps, and is left
    out.

    Parameters
    ----------
    log_start : callable
        Features (n, d) -> ln q (n,), normalised or not, the same function that `log_density` are values of.
    target : Density
    features : torch.Tensor, shape=(n, d)
        Independent samples of the surrogate.
    log_density : torch.Tensor, shape=(n,)
        Ln q of them.
    n_torus, n_chains, seed, n_moves : int

    Raises
    ------
    InputError
        When there are fewer than 20 samples for each chain, or none of the first tenth has a finite energy.
    """
    if len(features) < 20 * n_chains:
        raise InputError(f"{n_chains} chains need {20 * n_chains} samples of the surrogate at least, not {len(features)}")
    generator, draws = torch_generator(seed, "chains"), numpy_generator(seed, "chain starts")
    features, log_density = features.double(), log_density.double()
    n_first = int(STARTS * len(features))
    first = State.of((target,), features[:n_first])
    log_weight = (first.values[:, 0] - log_density[:n_first]).numpy()
    if not np.isfinite(log_weight).any():
        raise InputError("no sample of the surrogate has a finite energy, so no chain can start: train longer")
    rows = torch.as_tensor(reweighting.systematic_resample(log_weight, n_chains, draws)[draws.permutation(n_chains)])
    state, own = first[rows], log_density[rows]
    n_sweeps = (len(features) - n_first) // n_chains
    n_tuning, step, one = max(1, int(STARTS * n_sweeps)), FIRST_STEP, torch.ones(1, dtype=torch.float64)
    scale = local_scale(state.gradients[:, 0], torch.ones(n_chains, dtype=torch.float64))
    kept, targets, accepted = [], [], np.zeros(2)
    for sweep in range(n_sweeps):
        offered = slice(n_first + sweep * n_chains, n_first + (sweep + 1) * n_chains)
        proposal = State.of((target,), features[offered])
        gain = proposal.values[:, 0] - log_density[offered] - state.values[:, 0] + own
        uniform = torch.rand(n_chains, generator=generator, dtype=torch.float64)
        accept = torch.log(uniform) < gain
        state = state.replaced(accept, proposal)
        state, moved = mala_steps((target,), one, state, n_torus, scale, step, n_moves, generator)
        own = log_start(state.features).double()
        if sweep < n_tuning:
            step = tuned(step, moved)
        else:
            kept.append(state.features)
            targets.append(state.values[:, 0].numpy())
            accepted += (float(accept.double().mean()), moved)
    independence, langevin = accepted / len(kept)
    return Chains(torch.stack(kept), np.array(targets), float(independence), float(langevin))
