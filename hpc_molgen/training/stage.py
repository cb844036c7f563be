"""The train stage: data, surrogate and loop put together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from hpc_molgen import datasets
from hpc_molgen.representations.base import Representation, load_representation
from hpc_molgen.seeding import derive_seed
from hpc_molgen.surrogates.base import Surrogate, surrogate_class
from hpc_molgen.training.distributed import process_group
from hpc_molgen.training.loop import Trainer

if TYPE_CHECKING:
    from hpc_molgen.config import SurrogateConfig
    from hpc_molgen.run import Run


def build_surrogate(config: SurrogateConfig, representation: Representation, seed: int) -> Surrogate:
    """Make an untrained surrogate for a representation, its weights drawn from the seed."""
    torch.manual_seed(derive_seed(seed, "surrogate"))
    return surrogate_class(config.name)(
        n_torus=representation.n_torus,
        n_euclidean=representation.n_euclidean,
        **config.model_dump(exclude={"name"}),
    )


def train_surrogate(run: Run) -> dict[str, Any]:
    """Train, write train/surrogate.safetensors, and return the figures of the training."""
    torch.set_num_threads(run.config.train.threads)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    train, held_out = datasets.load_split(run)
    features, held_out_features = (
        representation.encode(torch.as_tensor(part.positions_nm, dtype=torch.float64)) for part in (train, held_out)
    )
    surrogate = build_surrogate(run.config.surrogate, representation, run.config.seed)
    directory = run.path("train")
    group = process_group(run.config.train.device)
    with run.progress("train", run.config.train.n_steps, "steps") as progress:
        trainer = Trainer(
            surrogate,
            run.config.train,
            features,
            torch.as_tensor(datasets.boltzmann_weights(train)),
            held_out_features,
            torch.as_tensor(datasets.boltzmann_weights(held_out)),
            directory,
            group,
            run.config.seed,
            progress.set,
        )
        averaged = trainer.run()
        if group.is_root:
            averaged.save(directory / "surrogate.safetensors", run.config.surrogate.name, run.system.key)
        records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {
        "n_parameters": sum(p.numel() for p in surrogate.parameters()),
        "n_frames": len(train),
        "device": str(group.device),
        "ranks": group.size,
        "loss": next(r["loss"] for r in reversed(records) if "loss" in r),
        "held_out_loss": next(r["held_out_loss"] for r in reversed(records) if "held_out_loss" in r),
        "samples_per_s": next(r["samples_per_s"] for r in reversed(records) if "samples_per_s" in r),
    }
