"""What the suites `training` and `scaling` train: surrogates of usual sizes on made-up data, through the `Trainer` itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpc_molgen.config import TrainConfig
from hpc_molgen.seeding import derive_seed, torch_generator
from hpc_molgen.surrogates.base import surrogate_class
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import ProcessGroup
from hpc_molgen.training.loop import Trainer

N_FRAMES = 50_000  # more than the caches hold, as in a real run: batches are gathered from memory
ALONE = ProcessGroup(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Workload:
    """A surrogate and its global batch; of the data only the shape matters to the speed.

    Attributes
    ----------
    surrogate : str
        Registered name.
    sizes : dict
        Keyword arguments of its class.
    batch_size : int
    words : str
        For tables.
    """

    surrogate: str
    sizes: dict[str, int]
    batch_size: int
    words: str

    @property
    def items(self) -> str:
        """What an item is called."""
        return "trajectories" if "n_frames" in self.sizes else "structures"


# Alanine dipeptide has 60 internal coordinates, of which 5 torsions (phi, psi, three methyl groups) are free in `internal`
WORKLOADS = {
    "diffusion": Workload(
        "diffusion", {"n_torus": 5, "n_euclidean": 55, "hidden": 256, "depth": 3}, 1024, "diffusion of 60 coordinates"
    ),
    "gan": Workload("gan", {"n_frames": 64, "n_channels": 4, "hidden": 64}, 128, "WGAN-GP of 64 frames x 4 channels"),
}
SMALL_WORKLOADS = {
    "diffusion": Workload(
        "diffusion", {"n_torus": 5, "n_euclidean": 55, "hidden": 64, "depth": 1}, 256, "small diffusion of 60 coordinates"
    ),
    "gan": Workload(
        "gan", {"n_frames": 8, "n_channels": 2, "hidden": 8, "critic_updates": 2}, 16, "small WGAN-GP of 8 frames x 2 channels"
    ),
}


def made_up_data(workload: Workload, seed: int) -> TrainingSet:
    """Standard normal features: frames for a surrogate of structures, half-overlapping windows for one of trajectories."""
    sizes, generator = workload.sizes, torch_generator(seed, "made-up data")
    if "n_frames" not in sizes:
        features = torch.randn((N_FRAMES, sizes["n_torus"] + sizes["n_euclidean"]), generator=generator)
        return TrainingSet(features, torch.ones(N_FRAMES))
    length = sizes["n_frames"]
    starts = torch.arange(0, N_FRAMES - length + 1, length // 2)
    features = torch.randn((N_FRAMES, sizes["n_channels"]), generator=generator)
    return TrainingSet(features, torch.ones(len(starts)), starts, length)


def make_trainer(workload: Workload, batch_size: int, group: ProcessGroup, seed: int, **settings: Any) -> Trainer:
    """Return a trainer of an endless run that stands at its first step, and never writes.

    Parameters
    ----------
    batch_size : int
        Over all ranks of `group`.
    settings
        Of `TrainConfig`: precision, compile.
    """
    torch.manual_seed(derive_seed(seed, "surrogate"))
    surrogate = surrogate_class(workload.surrogate)(**workload.sizes)
    config = TrainConfig(n_steps=10**9, batch_size=batch_size, device="cpu", **settings)  # the group's device counts
    data = made_up_data(workload, seed)
    trainer = Trainer(surrogate, config, data, data, Path(), group, seed)
    trainer.batches.start(0)
    return trainer


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(trainer: Trainer, n_steps: int) -> list[float]:
    """Wall seconds of each of `n_steps` training steps, on a GPU to the end of its work."""
    device, seconds = trainer.group.device, []
    for _ in range(n_steps):
        synchronise(device)
        started = time.perf_counter()
        trainer.train_step()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return seconds


def parameter_bytes(workload: Workload) -> list[list[int]]:
    """For each update of a step, bytes of each parameter's float32 gradient, in the order of the backward pass."""
    with torch.device("meta"):
        surrogate = surrogate_class(workload.surrogate)(**workload.sizes)
    parts = {name: [4 * p.numel() for p in part.parameters()][::-1] for name, part in surrogate.parts().items()}
    return [parts[name] for name in surrogate.updates()]
