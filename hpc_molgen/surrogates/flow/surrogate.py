"""The flow surrogate: spline coupling layers, trained by likelihood and by the forces on the molecule."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn

from hpc_molgen.errors import InputError
from hpc_molgen.seeding import torch_generator
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.surrogates.flow.coupling import Coupling
from hpc_molgen.surrogates.prior import draw_prior, log_prior

BATCH = 8192  # samples drawn at once
Columns = tuple[torch.Tensor, torch.Tensor]


def _halves(own: torch.Tensor, layers: int, given: torch.Tensor, generator: torch.Generator) -> list[Columns]:
    """Columns that each layer moves, and those that it sees: one half of its own, then the other, and all of the given."""
    chosen: list[Columns] = []
    while len(own) and len(chosen) < layers:
        drawn = own[torch.randperm(len(own), generator=generator)]
        first, second = drawn[: -(-len(own) // 2)], drawn[-(-len(own) // 2) :]
        pair = [(moved, torch.cat([given, kept])) for moved, kept in ((first, second), (second, first)) if len(moved)]
        chosen += pair if len(chosen) % 4 == 0 else pair[::-1]
    return chosen[:layers]


class FlowSurrogate(Surrogate):
    """A normalising flow on a torus times a Euclidean space: uniform angles and normal numbers, moved by coupling layers.

    Samples and their exact ln q come in one pass. The angles move first and among themselves, then the rest given the angles:
    q(angles) q(rest | angles). So the part with several modes has few dimensions, and the part with many dimensions has one
    mode, whatever the angles. Layers come in pairs, of which the second moves what the first keeps; which features those are is
    drawn anew for each pair.

    Parameters
    ----------
    n_torus, n_euclidean : int
        Angles first, whitened coordinates behind them.
    torus_layers, layers : int
        Coupling layers of angles and of the rest.
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
        torus_layers: int = 6,
        layers: int = 8,
        hidden: int = 96,
        depth: int = 1,
        harmonics: int = 3,
        bins: int = 4,
        torus_bins: int = 8,
        bound: float = 6.0,
        temperatures: bool = False,
        prior_log_temperature: float = 0.0,
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "n_torus": n_torus, "n_euclidean": n_euclidean, "torus_layers": torus_layers, "layers": layers,
            "hidden": hidden, "depth": depth, "harmonics": harmonics, "bins": bins, "torus_bins": torus_bins, "bound": bound,
            "temperatures": temperatures, "prior_log_temperature": prior_log_temperature,
        }  # fmt: skip
        if n_torus + n_euclidean < 2:
            raise InputError("surrogate.name 'flow' moves some features given others: it needs two features at least")
        self.n_torus, self.n_euclidean = n_torus, n_euclidean
        self.temperatures, self.prior_log_temperature = temperatures, prior_log_temperature
        sizes: tuple[Any, ...] = hidden, depth, harmonics, bins, torus_bins, bound, int(temperatures)
        generator = torch_generator(0, "flow halves")  # the same for all seeds: a file holds weights alone
        angles, rest = torch.arange(n_torus), n_torus + torch.arange(n_euclidean)
        nothing = angles[:0]
        of_angles = _halves(angles, torus_layers, nothing, generator)
        of_rest = _halves(rest, layers, angles, generator)
        self.couplings = nn.ModuleList([Coupling(n_torus, moved, seen, *sizes) for moved, seen in (*of_angles, *of_rest)])
        layers_of = cast("list[Coupling]", list(self.couplings))
        self._of_angles, self._of_rest = layers_of[: len(of_angles)], layers_of[len(of_angles) :]

    def parts(self) -> dict[str, nn.Module]:
        return {"flow": self.couplings}

    def draw_noise(self, part: str, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return ()

    def loss(self, part: str, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """-ln q of each item: its features, behind them ln(T / T0) and the score of the target there, if these are known.

        With scores, all layers of the rest learn by path gradients.
        """
        width = self.n_torus + self.n_euclidean
        log_temperature = batch[:, width] if batch.shape[1] > width else batch.new_zeros(len(batch))
        if batch.shape[1] > width + 1:
            return self._path_loss(batch[:, :width], log_temperature, batch[:, width + 1 :])
        return -self._log_density(batch[:, :width], log_temperature)

    def _path_loss(self, features: torch.Tensor, log_temperature: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """-ln q (n,), with the gradient of -ln q(angles) and the path gradient of -ln q(rest | angles).

        Moved back to the prior, the rest has under the target a density p0 given the angles, and what is to become small is its
        divergence from the prior: the gradient is the mean of grad ln(p0 / prior) times the derivative of where the item comes
        from. It has the expectation of the gradient of -ln q and, where the flow is right, no variance, for an item then tells
        how to move and not only where it is (Vaitl, Winkler, Richter and Kessel 2024, ICLR, "Fast and unified path gradient
        estimators for normalizing flows", theorem 4.2; `Coupling.back_with_score` is their recursion). The score of the angles
        alone is not known, and where modes are pressed together on the way to the prior, gradients would be huge. Those longer
        than the typical score of the prior are shortened to that.
        """
        total, told = features.new_zeros(len(features)), self._told(log_temperature)
        variance = log_temperature + self.prior_log_temperature
        with torch.enable_grad():
            features = features.detach().requires_grad_(True)
            for coupling in reversed(self._of_rest):
                features, log_det, score = coupling.back_with_score(features, told, score)
                total = total + log_det.detach()
            rest = features[:, self.n_torus :]
            pull = score[:, self.n_torus :] + rest.detach() * torch.exp(-variance)[:, None]
            longest = math.sqrt(max(1, self.n_euclidean))
            pull = pull * (longest / torch.linalg.vector_norm(pull, dim=1, keepdim=True).clamp(min=longest))
            moving: torch.Tensor = (rest * pull).sum(dim=1)
        features = features.detach()
        for coupling in reversed(self._of_angles):
            features, log_det = coupling(features, told, inverse=True)
            total = total + log_det
        return moving - moving.detach() - total - log_prior(features, self.n_torus, variance)

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
