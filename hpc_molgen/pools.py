"""Pools of weighted items that a surrogate is trained on: frames, samples of the prior or of a teacher, its own samples.

Each item comes with its weight to the Boltzmann distribution at the pool's temperature and, for surrogates that learn from
them, with the score there: the forces, pulled back to features. Pools are files, made in blocks by all ranks, so a killed run
goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import logsumexp

from hpc_molgen import datasets, reweighting
from hpc_molgen.config import FlowConfig
from hpc_molgen.dynamics.batched import try_batched
from hpc_molgen.dynamics.choice import choose_energies, energy_function
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.densities import BoltzmannDensity
from hpc_molgen.montecarlo.from_zero import Population, Scaled, annealed_prior, weighted_prior
from hpc_molgen.representations.base import Representation, load_representation
from hpc_molgen.run import Run
from hpc_molgen.sampling import draw_structures
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.surrogates.base import load_surrogate, surrogate_class
from hpc_molgen.tensorfiles import load_tensors, save_tensors
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import process_group
from hpc_molgen.training.stage import structures

if TYPE_CHECKING:
    from hpc_molgen.surrogates.base import Surrogate

BLOCK = 5000  # items that are made at once; which rank does it does not change them
ISLAND = 1000  # particles that are annealed together
TRIAL = 4000  # samples that tell how much their weights are worth
LEAST_SHARE = 0.005  # effective, of the prior's samples: below, they are annealed
Scorer = Callable[[torch.Tensor, float], torch.Tensor]
"""Features (n, n_features) and ln(T / T0) -> score (n, n_features) of the Boltzmann distribution at T."""


@dataclass(frozen=True)
class Pool:
    """Weighted items.

    Attributes
    ----------
    features : torch.Tensor, shape=(n, n_features), float32
    log_weight : np.ndarray, shape=(n,)
        To the Boltzmann distribution at that temperature.
    log_temperature : float
        ln(T / T0), T0 being the system's temperature.
    n_energies : int
        That they have cost.
    score : torch.Tensor, shape=(n, n_features), float32, optional
        Gradient of the logarithm of that distribution.
    """

    features: torch.Tensor
    log_weight: np.ndarray
    log_temperature: float
    n_energies: int
    score: torch.Tensor | None = None

    def shares(self, clip_share: float) -> torch.Tensor:
        """Weights (n,) that sum to one, the largest made equal."""
        return torch.as_tensor(reweighting.normalised_weights(reweighting.clipped(self.log_weight, clip_share)))

    def effective(self, clip_share: float) -> float:
        """Effective number of items, the largest weights made equal."""
        return reweighting.kish_ess(reweighting.clipped(self.log_weight, clip_share))

    def items(self) -> torch.Tensor:
        """Features, behind them ln(T / T0) and, if known, scores: shape (n, n_features + 1) or (n, 2 n_features + 1)."""
        parts = [self.features, self.features.new_full((len(self.features), 1), self.log_temperature)]
        return torch.cat(parts if self.score is None else [*parts, self.score], dim=1)

    @classmethod
    def read(cls, directory: Path, run: Run, log_temperature: float) -> Pool:
        """Join the blocks in a folder."""
        blocks = [load_tensors(path, "samples", run.system.key)[0] for path in sorted(directory.glob("samples-*.safetensors"))]
        joined = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
        weights, n_energies = joined["log_weight"].numpy(), int(joined["n_energies"].sum())
        return cls(joined["features"], weights, log_temperature, n_energies, joined.get("score"))


def save_block(
    path: Path, run: Run, features: torch.Tensor, log_weight: np.ndarray, n_energies: int, score: torch.Tensor | None
) -> None:
    """Write a block of a pool; `n_energies` were computed for it, beside one for each score."""
    tensors = {
        "features": features.float(),
        "log_weight": torch.as_tensor(log_weight),
        "n_energies": torch.tensor([n_energies + (0 if score is None else len(score))]),
    }
    tensors |= {} if score is None else {"score": score.float()}
    save_tensors(path, tensors, {"name": "samples", "system_key": run.system.key})


def make_scorer(run: Run, representation: Representation) -> Scorer | None:
    """Return what gives scores, where the surrogate learns from them and the batched engine knows the forces."""
    config = run.config.surrogate
    learns = isinstance(config, FlowConfig) and config.scores and representation.exact_gradient
    if not learns or not representation.n_euclidean:
        return None
    if try_batched(run.system, threads=1) is None:
        return None
    density = functools.cache(lambda kelvin: BoltzmannDensity(run.system, representation, kelvin))
    return lambda features, level: density(run.system.temperature_kelvin * float(np.exp(level)))(features)[1]


def weighted_samples(
    run: Run, representation: Representation, surrogate: Surrogate, n: int, seed: int, log_temperature: float
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Draw features (n, n_features), positions and ln w (n,) to the Boltzmann distribution at a temperature, as ln(T / T0).

    A surrogate of one pass is asked for that temperature; another gives samples of the one that it was trained at.
    """
    asked = log_temperature if surrogate.one_pass else None
    features, positions, log_density = draw_structures(surrogate, representation, run.config.sample, n, seed, asked)
    energies = energy_function(run.system, choose_energies(run.system), max(n, BLOCK))(positions)
    return features, positions, reweighting.importance_log_weights(energies * np.exp(-log_temperature), log_density)


def starting_items(run: Run) -> TrainingSet | None:
    """Return what the surrogate trains on first; None: the reference frames, as they are.

    The temperature is that of the training walkers, whose frames serve the representation alone unless they are trained on.

    Raises
    ------
    InputError
        When the teacher's samples have no weights.
    """
    config, level = run.config.refine, datasets.training_log_temperature(run)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    scorer = make_scorer(run, representation)
    if config.start == "frames" and scorer is None:
        return None
    group, directory = process_group(run.config.train.device), run.path("train", "start")
    directory.mkdir(exist_ok=True)
    blocks = {"frames": _frames, "prior": _prior, "teacher": _taught}[config.start](run, representation, level)
    for index in range(group.rank, len(blocks), group.size):
        path = directory / f"samples-{index:05d}.safetensors"
        if not path.exists():
            features, log_weight, n_energies = blocks[index]()
            save_block(path, run, features, log_weight, n_energies, scorer(features, level) if scorer else None)
    group.largest(0.0)
    pool = Pool.read(directory, run, level)
    shares = pool.shares(config.clip_share) if config.start != "frames" else torch.as_tensor(np.exp(pool.log_weight))
    return TrainingSet(pool.items() if surrogate_class(run.config.surrogate.name).one_pass else pool.features, shares)


Block = Callable[[], tuple[torch.Tensor, np.ndarray, int]]
"""Makes features, log-weights and the number of energies that it took."""


def _frames(run: Run, representation: Representation, level: float) -> list[Block]:
    train = structures(datasets.load_split(run)[0], representation, level)
    with np.errstate(divide="ignore"):
        log_weight = np.log(train.weights.numpy())

    def block(start: int) -> tuple[torch.Tensor, np.ndarray, int]:
        return train.features[start : start + BLOCK], log_weight[start : start + BLOCK], 0

    return [functools.partial(block, start) for start in range(0, len(train), BLOCK)]


def _prior(run: Run, representation: Representation, level: float) -> list[Block]:
    """Samples of the prior by weight; where their effective share is too small, annealed by sequential Monte Carlo."""
    scaled = Scaled(run.system, representation, run.system.temperature_kelvin * float(np.exp(level)))
    draw = functools.partial(weighted_prior, scaled)
    share, n = _share(run, draw)
    if share > LEAST_SHARE:
        return _thinned_blocks(run, draw, share, n)

    def island(index: int) -> tuple[torch.Tensor, np.ndarray, int]:
        found = annealed_prior(scaled, derive_seed(run.config.seed, "prior", index), ISLAND)
        return found.features, found.log_weight, found.n_energies + (0 if index else TRIAL)

    return [functools.partial(island, index) for index in range(-(-run.config.refine.start_samples // ISLAND))]


def _taught(run: Run, representation: Representation, level: float) -> list[Block]:
    """Samples of another run's surrogate by weight: a fast surrogate learns from a good one (distillation)."""
    teacher = Run.open(Path(str(run.config.refine.teacher)))
    own = load_representation(teacher.path("featurize", "representation.safetensors"), run.system)
    surrogate = load_surrogate(teacher.path("train", "surrogate.safetensors"), run.system.key)
    sampling = teacher.config.sample
    if own.density == "none":
        raise InputError(f"refine.teacher: its representation '{own.name}' has no density, so its samples have no weights")
    if not surrogate.has_log_density or not sampling.log_density or sampling.sampler == "ancestral":
        raise InputError("refine.teacher: its samples come without ln q (see its section 'sample'), so they have no weights")

    def draw(seed: int, n: int) -> Population:
        _, positions, log_weight = weighted_samples(teacher, own, surrogate, n, seed, level)
        return Population(representation.encode(torch.as_tensor(positions)), positions, log_weight, n)

    return _thinned_blocks(run, draw, *_share(run, draw))


def _share(run: Run, draw: Callable[[int, int], Population]) -> tuple[float, int]:
    """Effective share of samples in a trial, and how many have as many effective ones as `refine.start_samples`."""
    trial = draw(derive_seed(run.config.seed, "trial of the start"), TRIAL)
    share = reweighting.kish_ess(trial.log_weight) / TRIAL
    return share, int(run.config.refine.start_samples / share)


def _thinned_blocks(run: Run, draw: Callable[[int, int], Population], share: float, n: int) -> list[Block]:
    def block(index: int) -> tuple[torch.Tensor, np.ndarray, int]:
        seed = derive_seed(run.config.seed, "start", index)
        found = draw(seed, BLOCK)
        kept, log_weight = thinned(found.log_weight, max(1, int(4 * share * BLOCK)), seed)
        return found.features[torch.as_tensor(kept)], log_weight, found.n_energies + (0 if index else TRIAL)

    return [functools.partial(block, index) for index in range(-(-n // BLOCK))]


def thinned(log_weight: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose `n` of many samples by weight, systematically; equal log-weights (n,) then hold the sum of all weights.

    Where there are no more than `n`, all are kept with the weights that they have.
    """
    if len(log_weight) <= n:
        return np.arange(len(log_weight)), log_weight
    chosen = reweighting.systematic_resample(log_weight, n, numpy_generator(seed, "thinned"))
    return chosen, np.full(n, logsumexp(log_weight) - np.log(n))
