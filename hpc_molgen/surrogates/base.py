"""What every surrogate offers, its registry, and its files."""

from __future__ import annotations

import abc
import importlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from hpc_molgen.config import SampleConfig
from hpc_molgen.errors import InputError
from hpc_molgen.tensorfiles import load_tensors, save_tensors

SURROGATES = {
    "diffusion": "hpc_molgen.surrogates.diffusion.surrogate:DiffusionSurrogate",
    "transferable": "hpc_molgen.surrogates.diffusion.transferable:TransferableDiffusion",
    "flow": "hpc_molgen.surrogates.flow.surrogate:FlowSurrogate",
    "gan": "hpc_molgen.surrogates.gan.surrogate:TrajectoryGan",
}


class Surrogate(nn.Module, abc.ABC):
    """A generative model of arrays of features: one feature vector for each item, or a time series of them.

    A subclass is built from keyword arguments of plain values alone, kept as `hyperparameters`: its file needs no pickle.

    Attributes
    ----------
    of : {"structures", "trajectories"}
        What an item is.
    has_log_density : bool
        Whether ln q of a sample is known.
    one_pass : bool
        Whether ln q of any features, its gradient, and samples at other temperatures come in one pass of the network.
    adam_betas : (float, float)
        Of the optimiser of every part.
    twice_differentiated : tuple of str
        Parts whose loss holds gradients of its own network: torch.compile cannot differentiate those twice.
    """

    of: ClassVar[Literal["structures", "trajectories"]] = "structures"
    has_log_density: bool
    one_pass: ClassVar[bool] = False
    adam_betas: ClassVar[tuple[float, float]] = (0.9, 0.99)
    twice_differentiated: ClassVar[tuple[str, ...]] = ()
    hyperparameters: dict[str, Any]

    @abc.abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """Return the parts that have an optimiser each (a score; or a critic and a generator), in the order of updates."""

    def updates(self) -> tuple[str, ...]:
        """Return the parts that one training step updates, in order; a part may occur several times."""
        return tuple(self.parts())

    def averaged(self) -> tuple[str, ...]:
        """Return the parts of which the trained surrogate holds the moving average over steps; of others, the last state."""
        return tuple(self.parts())

    def adapt(self, items: torch.Tensor) -> None:
        """Take constants from training items (n, ...), once, before training; none unless overridden."""

    @abc.abstractmethod
    def draw_noise(self, part: str, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw all randomness of one update of `part` for `n` items, on the CPU; first axis of each tensor: items.

        Noise is drawn here and nowhere else, for blocks of items that do not depend on the number of ranks: so N ranks
        train as one does.
        """

    @abc.abstractmethod
    def loss(self, part: str, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Loss (n,) of each item for one part. The loss of an item must not depend on the other items.

        Parameters
        ----------
        batch : torch.Tensor, shape=(n, ...)
        noise : tuple of torch.Tensor
            What `draw_noise` returned for the same items.
        """

    def held_out_loss(self, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Loss (n,) of held-out items, with noise drawn for the first of `parts`; that part's loss unless overridden."""
        return self.loss(next(iter(self.parts())), batch, noise)

    def held_out_distance(self, batch: torch.Tensor, seed: int) -> float | None:
        """Distance of samples from held-out items, where the held-out loss does not tell how good they are; None otherwise."""
        return None

    @abc.abstractmethod
    def sample(self, n: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw `n` items (n, ...) and, if asked for and known, ln q (n,)."""

    def log_density_and_gradient(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ln q (n,) of given features (n, n_features) and its gradient (n, n_features), float64, where `one_pass`."""
        raise NotImplementedError(f"{type(self).__name__} does not give ln q in one pass")

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


def density_options(surrogate: Surrogate, config: SampleConfig) -> dict[str, Any]:
    """Return the options with which `log_density` of a surrogate gives ln q of features as its samples have it."""
    if surrogate.one_pass:
        return {}
    steps = config.n_steps if config.sampler == "ode" else None  # those of other samplers are of another kind
    return {"n_steps": steps or 0, "integrator": config.integrator, "tolerance": config.tolerance}


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
