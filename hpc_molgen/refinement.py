"""Rounds in which a surrogate improves itself: it samples, its samples get their Boltzmann weights, and it is trained on them.

Reference frames are few and correlated; samples of a surrogate that is already good are independent, and a weight costs one
energy. The same weights cool a surrogate that was trained on hot molecular dynamics, round by round (the reweighted refits of
temperature-annealed Boltzmann generators: Schopmans and Friederich 2025, ICML). With `refine.start: prior` no frame is trained
on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import logsumexp

from hpc_molgen import datasets, reweighting
from hpc_molgen.dynamics.choice import choose_energies, energy_function
from hpc_molgen.files import read_json, write_json
from hpc_molgen.montecarlo.from_zero import Scaled, annealed_prior, weighted_prior
from hpc_molgen.representations.base import load_representation
from hpc_molgen.sampling import draw_structures
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.surrogates.base import Surrogate, load_surrogate, surrogate_class
from hpc_molgen.tensorfiles import load_tensors, save_tensors
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import ProcessGroup, process_group
from hpc_molgen.training.loop import Trainer
from hpc_molgen.training.stage import structures
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    from hpc_molgen.representations.base import Representation
    from hpc_molgen.run import Run

log = logging.getLogger(__name__)
BLOCK = 5000  # samples that are drawn and weighed at once; which rank does it does not change them
ISLAND = 1000  # particles that are annealed together
TRIAL = 4000  # samples that tell how much colder the next round may be, and what the weights of the prior are worth
LEAST_SHARE = 0.005  # effective, of the prior's samples: below, they are annealed
BISECTIONS = 6
MOST_WAITING = 2  # rounds at one temperature, where the samples are not even good enough for that one


@dataclass(frozen=True)
class Pool:
    """Samples of one round.

    Attributes
    ----------
    features : torch.Tensor, shape=(n, n_features), float32
    log_weight : np.ndarray, shape=(n,)
        To the Boltzmann distribution at that temperature.
    log_temperature : float
        ln(T / T0), T0 being the system's temperature.
    n_energies : int
        That they have cost, those of trials left out.
    """

    features: torch.Tensor
    log_weight: np.ndarray
    log_temperature: float
    n_energies: int

    def shares(self, clip_share: float) -> torch.Tensor:
        """Weights (n,) that sum to one, the largest made equal."""
        return torch.as_tensor(reweighting.normalised_weights(reweighting.clipped(self.log_weight, clip_share)))

    def effective(self, clip_share: float) -> float:
        """Effective number of samples, the largest weights made equal."""
        return reweighting.kish_ess(reweighting.clipped(self.log_weight, clip_share))

    def items(self) -> torch.Tensor:
        """Features with ln(T / T0) behind them: shape (n, n_features + 1)."""
        return torch.cat([self.features, self.features.new_full((len(self.features), 1), self.log_temperature)], dim=1)


def prior_items(run: Run) -> TrainingSet:
    """Return samples of the prior with their Boltzmann weights as items to train on.

    The temperature is that of the training walkers, whose frames serve the representation alone. Where the effective share of
    the prior is too small for plain weights, sequential Monte Carlo carries it to the Boltzmann distribution, in islands.
    Blocks and islands are files in ``train/start/``, so a killed run goes on.
    """
    group, directory = process_group(run.config.train.device), run.path("train", "start")
    directory.mkdir(exist_ok=True)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    log_temperature = datasets.training_log_temperature(run)
    kelvin, wanted = run.system.temperature_kelvin * float(np.exp(log_temperature)), run.config.refine.start_samples
    scaled = Scaled(run.system, representation, kelvin)
    trial = weighted_prior(scaled, derive_seed(run.config.seed, "prior trial"), TRIAL)
    share = reweighting.kish_ess(trial.log_weight) / TRIAL
    method, block, n = (weighted_prior, BLOCK, int(wanted / share)) if share > LEAST_SHARE else (annealed_prior, ISLAND, wanted)
    for index in range(group.rank, -(-n // block), group.size):
        path = directory / f"samples-{index:05d}.safetensors"
        if not path.exists():
            seed = derive_seed(run.config.seed, "prior", index)
            found = method(scaled, seed, block)
            n_kept = max(1, int(4 * share * block)) if method is weighted_prior else block
            kept, log_weight = thinned(found.log_weight, n_kept, seed)
            _save(path, run, found.features[torch.as_tensor(kept)], log_weight, found.n_energies)
    group.largest(0.0)
    pool = _read_pool(directory, run, log_temperature)
    told = log_temperature > 0 and surrogate_class(run.config.surrogate.name).one_pass
    return TrainingSet(pool.items() if told else pool.features, pool.shares(run.config.refine.clip_share))


def thinned(log_weight: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose `n` of many samples by weight, systematically; equal log-weights (n,) then hold the sum of all weights.

    Where there are no more than `n`, all are kept with the weights that they have.
    """
    if len(log_weight) <= n:
        return np.arange(len(log_weight)), log_weight
    chosen = reweighting.systematic_resample(log_weight, n, numpy_generator(seed, "thinned"))
    return chosen, np.full(n, logsumexp(log_weight) - np.log(n))


def refine_surrogate(run: Run) -> dict[str, Any]:
    """Train the surrogate of `train_surrogate` further on its own weighted samples; return the figures of the rounds.

    First it is cooled to the system's temperature, if it was trained at a higher one, then come `refine.rounds` there. Every
    round leaves ``train/round-N/`` with its samples, its checkpoints and its surrogate, so a killed one goes on.

    Raises
    ------
    InputError
        When no sample of a block has a finite energy.
    """
    config, watch = run.config.refine, Stopwatch()
    level = datasets.training_log_temperature(run)
    pools = [_read_pool(run.path("train", "start"), run, level)] if config.start == "prior" else []
    if not config.rounds and not level:
        return {"round_energies": pools[0].n_energies} if pools else {}
    group = process_group(run.config.train.device)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    final = run.path("train", "surrogate.safetensors")
    surrogate = load_surrogate(final, run.system.key).to(group.device)
    held_out = structures(datasets.load_split(run)[1], representation)
    rounds: list[dict[str, Any]] = []
    left, waited = config.rounds, 0
    while level > 0 or left > 0:
        number = len(rounds) + 1
        directory = run.path("train", f"round-{number}")
        directory.mkdir(exist_ok=True)
        known = _next_level(run, representation, surrogate, level, number) if group.is_root else 0.0
        colder = group.largest(known)[0]
        waited = waited + 1 if colder == level > 0 else 0
        if waited > MOST_WAITING:
            colder = 0.9 * level
            log.warning(
                "round %d: the samples stay poor (refine.cooling_ess %g); cooled all the same", number, config.cooling_ess
            )
        left -= level == 0
        pools.append(_pool(run, representation, surrogate, directory, group, number, colder))
        rounds.append(
            {
                "kelvin": run.system.temperature_kelvin * float(np.exp(colder)),
                **reweighting.diagnose(pools[-1].log_weight).as_dict(),
            }
        )
        data = _training_set(pools, surrogate, config.clip_share)
        surrogate = _train_round(run, surrogate, data, held_out, directory, group, number)
        level = colder
    if group.is_root:
        surrogate.save(final, run.config.surrogate.name, run.system.key)
    return {"rounds": rounds, "round_energies": sum(pool.n_energies for pool in pools), "round_cpu_s": watch.cpu_s}


def _next_level(run: Run, representation: Representation, surrogate: Surrogate, level: float, number: int) -> float:
    """Return ln(T / T0) of a round: the coldest one, up to `level`, at which a trial has the share `refine.cooling_ess`."""
    path = run.path("train", f"round-{number}", "temperature.json")
    if level == 0:
        return 0.0
    if not path.exists():
        write_json(path, {"log_temperature": _coldest(run, representation, surrogate, level, number)})
    return float(read_json(path)["log_temperature"])


def _coldest(run: Run, representation: Representation, surrogate: Surrogate, level: float, number: int) -> float:
    seed = derive_seed(run.config.seed, "trial", number)

    def is_good(colder: float) -> bool:
        _, log_weight = _weighted(run, representation, surrogate, TRIAL, seed, colder)
        return reweighting.kish_ess(log_weight) / TRIAL >= run.config.refine.cooling_ess

    if is_good(0.0):
        return 0.0
    low, high = 0.0, level
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if is_good(middle) else (middle, high)
    return high


def _training_set(pools: list[Pool], surrogate: Surrogate, clip_share: float) -> TrainingSet:
    """All pools of the newest one's temperature, each in proportion to its effective number of samples.

    So a poor pool does not undo what a better one has taught. One surrogate of all temperatures sees the other pools as well.
    """
    newest, every = pools[-1], bool(surrogate.hyperparameters.get("temperatures"))
    used = [pool for pool in pools if every or pool.log_temperature == newest.log_temperature]
    items = torch.cat([pool.items() if surrogate.one_pass else pool.features for pool in used])
    return TrainingSet(items, torch.cat([pool.effective(clip_share) * pool.shares(clip_share) for pool in used]))


def _train_round(
    run: Run, surrogate: Surrogate, data: TrainingSet, held_out: TrainingSet, directory: Path, group: ProcessGroup, number: int
) -> Surrogate:
    config, done = run.config.refine, directory / "surrogate.safetensors"
    own = {"n_steps": config.n_steps, "learning_rate": config.learning_rate, "validate_every": config.n_steps}
    training = run.config.train.model_copy(update=own)
    if not group.from_root(done.exists()):
        seed = derive_seed(run.config.seed, "round", number)
        with run.progress("train", config.n_steps, "steps") as progress:
            progress.note = f"round {number}"
            trained = Trainer(surrogate.train(), training, data, held_out, directory, group, seed, progress.set).run()
        if group.is_root:
            trained.save(done, run.config.surrogate.name, run.system.key)
        group.largest(0.0)  # the others wait for that file
    return load_surrogate(done, run.system.key).to(group.device)


def _pool(
    run: Run,
    representation: Representation,
    surrogate: Surrogate,
    directory: Path,
    group: ProcessGroup,
    number: int,
    colder: float,
) -> Pool:
    """Samples of one round with their weights, from files that the ranks have written."""
    n_samples = run.config.refine.n_samples
    for index, start in enumerate(range(0, n_samples, BLOCK)):
        path = directory / f"samples-{index:05d}.safetensors"
        if index % group.size == group.rank and not path.exists():
            seed = derive_seed(run.config.seed, "round", number, index)
            n = min(BLOCK, n_samples - start)
            _save(path, run, *_weighted(run, representation, surrogate.eval(), n, seed, colder), n)
    group.largest(0.0)
    return _read_pool(directory, run, colder)


def _weighted(
    run: Run, representation: Representation, surrogate: Surrogate, n: int, seed: int, colder: float
) -> tuple[torch.Tensor, np.ndarray]:
    """Samples (n, n_features) and their ln w (n,) to the Boltzmann distribution at a temperature, `colder` as ln(T / T0).

    A surrogate of one pass is asked for that temperature; another gives samples of the one that it was trained at.
    """
    asked = colder if surrogate.one_pass else None
    features, positions, log_density = draw_structures(surrogate, representation, run.config.sample, n, seed, asked)
    energies = energy_function(run.system, choose_energies(run.system), run.config.refine.n_samples)(positions)
    return features, reweighting.importance_log_weights(energies * np.exp(-colder), log_density)


def _save(path: Path, run: Run, features: torch.Tensor, log_weight: np.ndarray, n_energies: int) -> None:
    tensors = {
        "features": features.float(),
        "log_weight": torch.as_tensor(log_weight),
        "n_energies": torch.tensor([n_energies]),
    }
    save_tensors(path, tensors, {"name": "samples", "system_key": run.system.key})


def _read_pool(directory: Path, run: Run, log_temperature: float) -> Pool:
    blocks = [load_tensors(path, "samples", run.system.key)[0] for path in sorted(directory.glob("samples-*.safetensors"))]
    features, log_weight = (torch.cat([block[name] for block in blocks]) for name in ("features", "log_weight"))
    return Pool(features, log_weight.numpy(), log_temperature, sum(int(block["n_energies"]) for block in blocks))
