"""What every surrogate offers, its registry, and its files."""

from __future__ import annotations

import abc
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpc_molgen.errors import InputError
from hpc_molgen.tensorfiles import load_tensors, save_tensors

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
        save_tensors(path, self.state_dict(), about)


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
    tensors, about = load_tensors(path, "surrogate", system_key)
    surrogate = surrogate_class(about["name"])(**about["hyperparameters"])
    surrogate.load_state_dict(tensors)
    return surrogate.eval()
