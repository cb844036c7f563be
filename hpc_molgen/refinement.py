"""Rounds in which a surrogate improves itself: it samples, its samples get their Boltzmann weights, and it is trained on them.

Reference frames are few and correlated; samples of a surrogate that is already good are independent, and a weight costs one
energy. (The reweighted refits of temperature-annealed Boltzmann generators do the same: Schopmans and Friederich 2025, ICML.)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpc_molgen import datasets, reweighting
from hpc_molgen.dynamics.choice import choose_energies, energy_function
from hpc_molgen.representations.base import load_representation
from hpc_molgen.sampling import draw_structures
from hpc_molgen.seeding import derive_seed
from hpc_molgen.surrogates.base import Surrogate, load_surrogate
from hpc_molgen.tensorfiles import load_tensors, save_tensors
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import ProcessGroup, process_group
from hpc_molgen.training.loop import Trainer
from hpc_molgen.training.stage import structures
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    from hpc_molgen.representations.base import Representation
    from hpc_molgen.run import Run

BLOCK = 5000  # samples that are drawn and weighed at once; which rank does it does not change them


def refine_surrogate(run: Run) -> dict[str, Any]:
    """Train the surrogate of `train_surrogate` further on its own weighted samples; return the figures of the rounds.

    Every round leaves ``train/round-N/`` with its samples, its checkpoints and its surrogate, so a killed one goes on.

    Raises
    ------
    InputError
        When no sample of a block has a finite energy.
    """
    config, seed = run.config.refine, run.config.seed
    group = process_group(run.config.train.device)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    final = run.path("train", "surrogate.safetensors")
    surrogate = load_surrogate(final, run.system.key)
    held_out = structures(datasets.load_split(run)[1], representation)
    own = {"n_steps": config.n_steps, "learning_rate": config.learning_rate, "validate_every": config.n_steps}
    training = run.config.train.model_copy(update=own)
    watch, rounds = Stopwatch(), []
    for number in range(1, config.rounds + 1):
        directory = run.path("train", f"round-{number}")
        directory.mkdir(exist_ok=True)
        done = directory / "surrogate.safetensors"
        pool, log_weight = _pool(run, representation, surrogate.to(group.device), number, group)
        rounds.append(reweighting.diagnose(log_weight).as_dict())
        if not group.from_root(done.exists()):
            limited = reweighting.clipped(log_weight, config.clip_share)
            data = TrainingSet(pool, torch.as_tensor(reweighting.normalised_weights(limited)))
            own_seed = derive_seed(seed, "round", number)
            with run.progress("train", config.n_steps, "steps") as progress:
                progress.note = f"round {number} of {config.rounds}"
                trainer = Trainer(surrogate.train(), training, data, held_out, directory, group, own_seed, progress.set)
                trained = trainer.run()
            if group.is_root:
                trained.save(done, run.config.surrogate.name, run.system.key)
            group.largest(0.0)  # the others wait for that file
        surrogate = load_surrogate(done, run.system.key)
    if group.is_root:
        surrogate.save(final, run.config.surrogate.name, run.system.key)
    return {"rounds": rounds, "round_energies": config.rounds * config.n_samples, "round_cpu_s": watch.cpu_s}


def _pool(
    run: Run, representation: Representation, surrogate: Surrogate, number: int, group: ProcessGroup
) -> tuple[torch.Tensor, np.ndarray]:
    """Samples of one round (n, n_features), float32, and their ln w (n,), from files that the ranks have written."""
    config, directory = run.config.refine, run.path("train", f"round-{number}")
    starts = range(0, config.n_samples, BLOCK)
    for index, start in enumerate(starts):
        path = directory / f"samples-{index:05d}.safetensors"
        if index % group.size == group.rank and not path.exists():
            seed = derive_seed(run.config.seed, "round", number, index)
            _write_block(path, run, representation, surrogate.eval(), min(BLOCK, config.n_samples - start), seed)
    group.largest(0.0)
    blocks = [load_tensors(path, "samples", run.system.key)[0] for path in sorted(directory.glob("samples-*.safetensors"))]
    return torch.cat([block["features"] for block in blocks]), torch.cat([block["log_weight"] for block in blocks]).numpy()


def _write_block(path: Path, run: Run, representation: Representation, surrogate: Surrogate, n: int, seed: int) -> None:
    features, positions, log_density = draw_structures(surrogate, representation, run.config.sample, n, seed)
    energies = energy_function(run.system, choose_energies(run.system), run.config.refine.n_samples)(positions)
    log_weight = reweighting.importance_log_weights(energies, log_density)
    tensors = {"features": features.float(), "log_weight": torch.as_tensor(log_weight)}
    save_tensors(path, tensors, {"name": "samples", "system_key": run.system.key})
