"""What every surrogate offers, its registry, and its files."""

from __future__ import annotations

import abc
import importlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from hpc_molgen.errors import InputError
from hpc_molgen.files import write_atomically

SURROGATES = {"diffusion": "hpc_molgen.surrogates.diffusion.surrogate:DiffusionSurrogate"}


class Surrogate(nn.Module, abc.ABC):
    """A generative model of feature vectors.

    A subclass is built from keyword arguments of plain values alone, kept as `hyperparameters`: its file needs no pickle.
    """

    has_log_density: bool
    hyperparameters: dict[str, Any]

    @abc.abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that have an optimiser each (a score; or a generator and a critic)."""

    @abc.abstractmethod
    def draw_noise(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw all randomness of one training step for a global batch of `n` items; first axis of each tensor: items.

        Drawing it for the whole batch and slicing by rank makes N ranks train as one does.
        """

    @abc.abstractmethod
    def losses(self, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """Loss (n,) of each item for each part, by the part's name.

        Parameters
        ----------
        batch : torch.Tensor, shape=(n, n_features)
        noise : tuple of torch.Tensor
            The same items' slice of what `draw_noise` returned.
        """

    @abc.abstractmethod
    def sample(self, n: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw features (n, n_features) and, if asked for and known, ln q (n,)."""

    def save(self, path: Path, name: str, system_key: str) -> None:
        """Write weights and hyperparameters as safetensors, atomically."""
        about = {"name": name, "system_key": system_key, "hyperparameters": self.hyperparameters}
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        write_atomically(path, save(tensors, metadata={"hpc_molgen": json.dumps(about)}))


def surrogate_class(name: str) -> type[Surrogate]:
    """Return the class registered under `name`."""
    if name not in SURROGATES:
        raise InputError(f"surrogate.name: there is no '{name}'; there are: {', '.join(SURROGATES)}")
    module, class_name = SURROGATES[name].split(":")
    found: type[Surrogate] = getattr(importlib.import_module(module), class_name)
    return found


def load_surrogate(path: Path, system_key: str) -> Surrogate:
    """Read a file of `Surrogate.save`.

    Raises
    ------
    InputError
        If the file cannot be read or was trained on another system.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["hpc_molgen"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a readable surrogate ({error}); train again with --from train") from error
    if about["system_key"] != system_key:
        raise InputError(f"{path} was trained on system key {about['system_key']}, this run has {system_key}")
    surrogate = surrogate_class(about["name"])(**about["hyperparameters"])
    surrogate.load_state_dict(tensors)
    return surrogate.eval()
