"""Trains surrogates on made-up data, for tests: run by python or by torchrun with any number of ranks.

Usage: train_ranks.py DIRECTORY SURROGATE[,setting=value ...] ...    (each into DIRECTORY/0, DIRECTORY/1, ...)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from hpc_molgen.config import SystemConfig, TrainConfig
from hpc_molgen.errors import Interrupted
from hpc_molgen.representations.rotors import free_rotors
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.surrogates.base import Surrogate, surrogate_class
from hpc_molgen.systems.graph import molecular_graph
from hpc_molgen.systems.registry import load_system
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import process_group
from hpc_molgen.training.loop import Trainer
from hpc_molgen.workers import Workers

N_FRAMES = 16
DEFAULTS = {"n_steps": 20, "batch_size": 120, "log_every": 1, "validate_every": 10, "warmup_steps": 5, "device": "cpu"}


def graphs() -> list[dict[str, Any]]:
    """Two molecules with four and five torsions."""
    made = []
    for sequence in ("GLY", "ALA"):
        system = load_system(SystemConfig(name="peptide", sequence=sequence))
        rotors = free_rotors(system.topology, ZMatrix(system.topology))
        made.append(molecular_graph(system, [(rotor.atoms, rotor.fold) for rotor in rotors]).as_dict())
    return made


def make_surrogate(name: str) -> Surrogate:
    torch.manual_seed(5)
    if name == "transferable":
        small = {"hidden": 24, "depth": 1, "width": 16, "layers": 2}
        return surrogate_class(name)(graphs=graphs(), residues=["ALA"], **small)
    sizes = {
        "diffusion": {"n_torus": 2, "n_euclidean": 7, "hidden": 24, "depth": 1},
        "gan": {
            "n_frames": N_FRAMES,
            "n_channels": 2,
            "hidden": 8,
            "latent": 4,
            "levels": 2,
            "critic_updates": 2,
            "window_weight": 1.0,
        },
    }
    return surrogate_class(name)(**sizes[name])


def make_data(name: str, seed: int) -> TrainingSet:
    generator = torch.Generator().manual_seed(seed)
    if name == "diffusion":
        return TrainingSet(torch.randn((3000, 9), generator=generator), torch.rand(3000, generator=generator))
    if name == "transferable":
        angles = torch.pi * (2 * torch.rand((3000, 5), generator=generator) - 1)
        molecule = torch.randint(2, (3000, 1), generator=generator)
        return TrainingSet(torch.cat([angles, molecule], dim=1), torch.rand(3000, generator=generator))
    series = torch.randn((3000, 2), generator=generator)  # of unit variance, correlated in time, as a GAN expects
    for frame in range(1, len(series)):
        series[frame] = 0.8 * series[frame - 1] + 0.6 * series[frame]
    return TrainingSet(series, torch.ones(200), 10 * torch.arange(200), N_FRAMES)


def train(job: str, directory: Path) -> None:
    name, *settings = job.split(",")
    values = {key: yaml.safe_load(value) for key, value in (setting.split("=") for setting in settings)}
    config, group = TrainConfig(**(DEFAULTS | values)), process_group("cpu")
    directory.mkdir(parents=True, exist_ok=True)
    trained = Trainer(make_surrogate(name), config, make_data(name, 1), make_data(name, 2), directory, group, 7).run()
    if group.is_root:
        trained.save(directory / "surrogate.safetensors", name, "key")


def main(out: Path, *jobs: str) -> None:
    torch.set_num_threads(1)
    workers = Workers.detect()
    code = 0
    try:
        for number, job in enumerate(jobs):
            train(job, out / str(number))
    except Interrupted as error:
        print(error, flush=True)
        code = error.exit_code
    workers.leave_at_exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
