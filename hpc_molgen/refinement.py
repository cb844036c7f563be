"""Rounds in which a surrogate improves itself: it samples, its samples get their Boltzmann weights, and it is trained on them.

Reference frames are few and correlated; samples of a surrogate that is already good are independent, and a weight costs one
energy. The same weights cool a surrogate that was trained on hot molecular dynamics, round by round (the reweighted refits of
temperature-annealed Boltzmann generators: Schopmans and Friederich 2025, ICML). What is trained on is in `pools.py`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpc_molgen import datasets, reweighting
from hpc_molgen.files import read_json, write_json
from hpc_molgen.pools import BLOCK, TRIAL, Pool, Scorer, make_scorer, save_block, weighted_samples
from hpc_molgen.representations.base import load_representation
from hpc_molgen.seeding import derive_seed
from hpc_molgen.surrogates.base import Surrogate, load_surrogate
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import ProcessGroup, process_group
from hpc_molgen.training.loop import Trainer
from hpc_molgen.training.stage import held_out_set
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    from hpc_molgen.representations.base import Representation
    from hpc_molgen.run import Run

log = logging.getLogger(__name__)
BISECTIONS = 6
MOST_WAITING = 2  # rounds at one temperature, where the samples are not even good enough for that one


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
    started = run.path("train", "start")
    first = [Pool.read(started, run, level)] if started.exists() else []
    n_energies = sum(pool.n_energies for pool in first)
    if not config.rounds and not level:
        return {"n_energies": n_energies} if first else {}
    pools = first if config.start != "frames" else []  # correlated frames have no effective number to be judged by
    group = process_group(run.config.train.device)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    final = run.path("train", "surrogate.safetensors")
    surrogate = load_surrogate(final, run.system.key).to(group.device)
    scorer = make_scorer(run, representation)
    held_out = held_out_set(run, representation)
    rounds: list[dict[str, Any]] = []
    left, waited = config.rounds, 0
    while level > 0 or left > 0:
        number = len(rounds) + 1
        directory = run.path("train", f"round-{number}")
        directory.mkdir(exist_ok=True)
        known = _next_level(run, representation, surrogate, level, number) if group.is_root else (0.0, 0)
        colder, n_tried = group.largest(*map(float, known))
        n_energies += int(n_tried)
        waited = waited + 1 if colder == level > 0 else 0
        if waited > MOST_WAITING:
            colder = 0.9 * level
            log.warning(
                "round %d: the samples stay poor (refine.cooling_ess %g); cooled all the same", number, config.cooling_ess
            )
        left -= level == 0
        pools.append(_pool(run, representation, surrogate, scorer, directory, group, number, colder))
        n_energies += pools[-1].n_energies
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
    return {"rounds": rounds, "n_energies": n_energies, "round_cpu_s": watch.cpu_s}


def _next_level(run: Run, representation: Representation, surrogate: Surrogate, level: float, number: int) -> tuple[float, int]:
    """Return ln(T / T0) of a round: the coldest one, up to `level`, at which a trial has the share `refine.cooling_ess`.

    With it comes the number of energies that it took to find.
    """
    path = run.path("train", f"round-{number}", "temperature.json")
    if level == 0:
        return 0.0, 0
    if not path.exists():
        found, n_trials = _coldest(run, representation, surrogate, level, number)
        write_json(path, {"log_temperature": found, "n_energies": n_trials * TRIAL})
    known = read_json(path)
    return float(known["log_temperature"]), int(known["n_energies"])


def _coldest(run: Run, representation: Representation, surrogate: Surrogate, level: float, number: int) -> tuple[float, int]:
    seed = derive_seed(run.config.seed, "trial", number)

    def is_good(colder: float) -> bool:
        *_, log_weight = weighted_samples(run, representation, surrogate, TRIAL, seed, colder)
        return reweighting.kish_ess(log_weight) / TRIAL >= run.config.refine.cooling_ess

    if is_good(0.0):
        return 0.0, 1
    low, high = 0.0, level
    for _ in range(BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if is_good(middle) else (middle, high)
    return high, 1 + BISECTIONS


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
    scorer: Scorer | None,
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
            features, _, log_weight = weighted_samples(run, representation, surrogate.eval(), n, seed, colder)
            save_block(path, run, features, log_weight, n, scorer(features, colder) if scorer else None)
    group.largest(0.0)
    return Pool.read(directory, run, colder)
