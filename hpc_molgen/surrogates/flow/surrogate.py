"""The flow surrogate: spline coupling layers, trained by likelihood."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from hpc_molgen.errors import InputError
from hpc_molgen.seeding import torch_generator
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.surrogates.flow.coupling import Coupling
from hpc_molgen.surrogates.prior import draw_prior, log_prior

BATCH = 8192  # samples drawn at once


class FlowSurrogate(Surrogate):
    """A normalising flow on a torus times a Euclidean space: uniform angles and normal numbers, moved by coupling layers.

    Samples and their exact ln q come in one pass. Layers come in pairs, of which the second moves what the first keeps; which
    features those are is drawn anew for each pair.

    Parameters
    ----------
    n_torus, n_euclidean : int
        Angles first, whitened coordinates behind them.
    layers : int
        Coupling layers.
    hidden, depth, harmonics : int
        Size of each layer's network.
    bins, torus_bins : int
        Of the splines.
    bound : float
        Where the splines of real numbers end, in standard deviations.
    temperatures : bool
        Whether the networks are told ln(T / T0), T0 being the system's temperature: one flow for a range of temperatures.
    prior_log_temperature : float
        ln(T0 / T') where the features were whitened at T'.

    The variance of the prior is in proportion to the temperature, which is right for a harmonic molecule, so that a flow can be
    asked for temperatures near the one that it was trained at (Dibak, Klein, Krämer and Noé 2022, Phys. Rev. Research 4,
    L042005).
    """

    has_log_density = True
    one_pass = True

    def __init__(
        self,
        n_torus: int,
        n_euclidean: int,
        layers: int = 8,
        hidden: int = 128,
        depth: int = 1,
        harmonics: int = 3,
        bins: int = 8,
        torus_bins: int = 16,
        bound: float = 6.0,
        temperatures: bool = False,
        prior_log_temperature: float = 0.0,
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "n_torus": n_torus, "n_euclidean": n_euclidean, "layers": layers, "hidden": hidden, "depth": depth,
            "harmonics": harmonics, "bins": bins, "torus_bins": torus_bins, "bound": bound,
            "temperatures": temperatures, "prior_log_temperature": prior_log_temperature,
        }  # fmt: skip
        if n_torus + n_euclidean < 2:
            raise InputError("surrogate.name 'flow' moves some features given others: it needs two features at least")
        self.n_torus, self.n_euclidean = n_torus, n_euclidean
        self.temperatures, self.prior_log_temperature = temperatures, prior_log_temperature
        sizes = hidden, depth, harmonics, bins, torus_bins, bound, int(temperatures)
        self.couplings = nn.ModuleList([Coupling(n_torus, n_euclidean, moved, *sizes) for moved in self._halves(layers)])

    def _halves(self, layers: int) -> list[torch.Tensor]:
        """Return the columns that each layer moves: half of the angles and half of the rest, then the other halves."""
        generator = torch_generator(0, "flow halves")  # the same for all seeds: a file holds weights alone
        chosen: list[torch.Tensor] = []
        for number in range(-(-layers // 2)):
            angles = torch.randperm(self.n_torus, generator=generator)
            rest = self.n_torus + torch.randperm(self.n_euclidean, generator=generator)
            # a single angle is moved by the first layer of each pair, a single number by the second
            cut_angles, cut_rest = -(-self.n_torus // 2), self.n_euclidean // 2
            first = torch.cat([angles[:cut_angles], rest[:cut_rest]])
            second = torch.cat([angles[cut_angles:], rest[cut_rest:]])
            chosen += [first, second] if number % 2 == 0 else [second, first]
        return chosen[:layers]

    def parts(self) -> dict[str, nn.Module]:
        return {"flow": self.couplings}

    def draw_noise(self, part: str, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return ()

    def loss(self, part: str, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """-ln q of each item: its features, and behind them ln(T / T0) where items of several temperatures are trained on."""
        width = self.n_torus + self.n_euclidean
        log_temperature = batch[:, width] if batch.shape[1] > width else batch.new_zeros(len(batch))
        return -self._log_density(batch[:, :width], log_temperature)

    def _log_density(self, features: torch.Tensor, log_temperature: torch.Tensor) -> torch.Tensor:
        total, told = features.new_zeros(len(features)), self._told(log_temperature)
        for coupling in reversed(self.couplings):
            features, log_det = coupling(features, told, inverse=True)
            total = total + log_det
        return total + log_prior(features, self.n_torus, log_temperature + self.prior_log_temperature)

    def _told(self, log_temperature: torch.Tensor) -> torch.Tensor:
        """What the networks are told beside features: shape (n, 1), or (n, 0)."""
        return log_temperature[:, None] if self.temperatures else log_temperature.new_zeros((len(log_temperature), 0))

    @torch.no_grad()
    def log_density(self, features: torch.Tensor, log_temperature: float = 0.0) -> torch.Tensor:
        """Return ln q (n,), float64, of given features (n, n_features) at a temperature, as ln(T / T0)."""
        parts = torch.split(features.to(next(self.parameters())), BATCH)
        return torch.cat([self._log_density(part, part.new_full((len(part),), log_temperature)).double() for part in parts])

    def log_density_and_gradient(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, gradients = [], []
        for part in torch.split(features.detach().to(next(self.parameters())), BATCH):
            variable = part.requires_grad_(True)
            with torch.enable_grad():
                value = self._log_density(variable, variable.new_zeros(len(variable)))
                (gradient,) = torch.autograd.grad(value.sum(), variable)
            values.append(value.detach().double())
            gradients.append(gradient.double())
        return torch.cat(values), torch.cat(gradients)

    @torch.no_grad()
    def sample(self, n: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw `n` items and their ln q in one pass.

        Parameters
        ----------
        n, seed : int
        log_density : bool
            Whether ln q is wanted; it costs nothing.
        log_temperature : float
            ln(T / T0) of the temperature that is asked for.

        Returns
        -------
        torch.Tensor, shape=(n, n_features); torch.Tensor, shape=(n,), float64, or None
        """
        generator, like = torch_generator(seed, "sample"), next(self.parameters())
        log_temperature = float(options.get("log_temperature", 0.0))
        spread = math.exp(0.5 * (log_temperature + self.prior_log_temperature))
        found = []
        for start in range(0, n, BATCH):
            rows = min(BATCH, n - start)
            prior = draw_prior(rows, self.n_torus, self.n_euclidean, generator)
            prior[:, self.n_torus :] *= spread
            found.append(self._moved(prior.to(like), log_temperature))
        features, log_density = (torch.cat(parts) for parts in zip(*found, strict=True))
        return features, log_density if options.get("log_density", True) else None

    def _moved(self, features: torch.Tensor, log_temperature: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
        total = log_prior(features, self.n_torus, log_temperature + self.prior_log_temperature).double()
        told = self._told(features.new_full((len(features),), log_temperature))
        for coupling in self.couplings:
            features, log_det = coupling(features, told, inverse=False)
            total = total - log_det.double()
        return features, total
