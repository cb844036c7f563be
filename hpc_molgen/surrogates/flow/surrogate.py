"""The flow surrogate: spline coupling layers, trained by likelihood."""

from __future__ import annotations

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
    """

    has_log_density = True

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
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "n_torus": n_torus, "n_euclidean": n_euclidean, "layers": layers, "hidden": hidden, "depth": depth,
            "harmonics": harmonics, "bins": bins, "torus_bins": torus_bins, "bound": bound,
        }  # fmt: skip
        if n_torus + n_euclidean < 2:
            raise InputError("surrogate.name 'flow' moves some features given others: it needs two features at least")
        self.n_torus, self.n_euclidean = n_torus, n_euclidean
        sizes = hidden, depth, harmonics, bins, torus_bins, bound
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
        return -self._log_density(batch)

    def _log_density(self, features: torch.Tensor) -> torch.Tensor:
        total = features.new_zeros(len(features))
        for coupling in reversed(self.couplings):
            features, log_det = coupling(features, inverse=True)
            total = total + log_det
        return total + log_prior(features, self.n_torus)

    @torch.no_grad()
    def log_density(self, features: torch.Tensor) -> torch.Tensor:
        """Return ln q (n,), float64, of given features (n, n_features)."""
        like = next(self.parameters())
        parts = [self._log_density(part).double() for part in torch.split(features.to(like), BATCH)]
        return torch.cat(parts)

    @torch.no_grad()
    def sample(self, n: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw `n` items and their ln q in one pass.

        Parameters
        ----------
        n, seed : int
        log_density : bool
            Whether ln q is wanted; it costs nothing.

        Returns
        -------
        torch.Tensor, shape=(n, n_features); torch.Tensor, shape=(n,), float64, or None
        """
        generator, like = torch_generator(seed, "sample"), next(self.parameters())
        found = []
        for start in range(0, n, BATCH):
            rows = min(BATCH, n - start)
            found.append(self._moved(draw_prior(rows, self.n_torus, self.n_euclidean, generator).to(like)))
        features, log_density = (torch.cat(parts) for parts in zip(*found, strict=True))
        return features, log_density if options.get("log_density", True) else None

    def _moved(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = log_prior(features, self.n_torus).double()
        for coupling in self.couplings:
            features, log_det = coupling(features, inverse=False)
            total = total - log_det.double()
        return features, total
