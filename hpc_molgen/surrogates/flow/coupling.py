"""A coupling layer of angles and real numbers: some of them are moved by splines whose shapes depend on the others."""

from __future__ import annotations

import torch
from torch import nn

from hpc_molgen.surrogates.flow.splines import circular_spline, line_spline, n_parameters


class Conditioner(nn.Module):
    """A residual perceptron from what a layer keeps to the parameters of its splines, which begin as zero."""

    def __init__(self, inward: int, outward: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.lift = nn.Linear(max(1, inward), hidden)
        self.blocks = nn.ModuleList([nn.Linear(hidden, hidden) for _ in range(2 * depth)])
        self.out = nn.Linear(hidden, outward)
        for layer in (*self.blocks[1::2], self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (n, inward) -> (outward, n)."""
        x = self.lift(x if x.shape[1] else x.new_zeros((len(x), 1)))
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = x + second(nn.functional.silu(first(nn.functional.silu(x))))
        # samples last, as the splines want them
        return torch.addmm(self.out.bias[:, None], self.out.weight, nn.functional.silu(x).T)


class Coupling(nn.Module):
    """Moves some features given others, one to one (Dinh et al. 2017, ICLR, section 3.3).

    Parameters
    ----------
    n_torus : int
        Columns of features that are angles: the first.
    moved, kept : torch.Tensor, shape=(n,)
        Columns that are moved, and those that the network sees.
    hidden, depth, harmonics : int
        Of the network, which sees angles as (cos ka, sin ka), k up to `harmonics`.
    bins, torus_bins : int
        Of the splines of real numbers and of angles.
    bound : float
        Real numbers beyond +-bound are moved by an affine map alone.
    conditions : int
        Numbers that the network is told beside the features.
    """

    moved_angles: torch.Tensor
    moved_rest: torch.Tensor
    kept_angles: torch.Tensor
    kept_rest: torch.Tensor
    multiples: torch.Tensor

    def __init__(
        self, n_torus: int, moved: torch.Tensor, kept: torch.Tensor, hidden: int, depth: int, harmonics: int,
        bins: int, torus_bins: int, bound: float, conditions: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, columns in (("moved", moved.sort()[0]), ("kept", kept.sort()[0])):
            self.register_buffer(f"{name}_angles", columns[columns < n_torus], persistent=False)
            self.register_buffer(f"{name}_rest", columns[columns >= n_torus], persistent=False)
        self.register_buffer("multiples", torch.arange(1, harmonics + 1, dtype=torch.float32), persistent=False)
        self.bound = bound
        self.n_angles, self.n_rest = len(self.moved_angles), len(self.moved_rest)
        self.sizes = self.n_angles * n_parameters(torus_bins), self.n_rest * n_parameters(bins)
        inward = 2 * harmonics * len(self.kept_angles) + len(self.kept_rest) + conditions
        self.conditioner = Conditioner(inward, sum(self.sizes), hidden, depth)

    def forward(self, features: torch.Tensor, conditions: torch.Tensor, *, inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, n_features) moved, or moved back, and ln|det| (n,) of that map, given `conditions` (n, n_conditions)."""
        return self._moved(features, self._shapes(features, conditions), inverse=inverse)

    def back_with_score(
        self, features: torch.Tensor, conditions: torch.Tensor, score: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features moved back with ln|det|, and the score there of a density whose score at `features` is given.

        With y = f(x) the layer, p(y) has the density p(f(x)) |det f'(x)| in x, whose score (n, n_features), without gradient,
        is f'(x)^T score + grad ln|det f'(x)|: one more reverse pass through the network, whose forward pass is shared.
        """
        shapes = self._shapes(features, conditions)
        moved, log_det = self._moved(features, shapes, inverse=True)
        with torch.enable_grad():
            start, known = moved.detach().requires_grad_(True), shapes.detach().requires_grad_(True)
            image, log_slope = self._moved(start, known, inverse=False)
            of_start, of_shapes = torch.autograd.grad((image * score).sum() + log_slope.sum(), (start, known))
        (of_kept,) = torch.autograd.grad(shapes, features, of_shapes, retain_graph=True)
        return moved, log_det, of_start + of_kept

    def _shapes(self, features: torch.Tensor, conditions: torch.Tensor) -> torch.Tensor:
        """Return the parameters of all splines (n_parameters, n) from what the layer keeps."""
        angles = (features[:, self.kept_angles, None] * self.multiples).flatten(1)
        kept = torch.cat([torch.cos(angles), torch.sin(angles), features[:, self.kept_rest], conditions], dim=1)
        # in bf16 the network alone: a spline's inverse and slope need the digits
        shapes: torch.Tensor = self.conditioner(kept).to(features.dtype)
        return shapes

    def _moved(self, features: torch.Tensor, shapes: torch.Tensor, *, inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(features)
        of_angles, of_rest = torch.split(shapes, list(self.sizes))
        moved, log_det = features.clone(), features.new_zeros(n)
        if self.n_angles:
            shape = of_angles.reshape(-1, self.n_angles, n)
            image, log_slope = circular_spline(features[:, self.moved_angles].T, shape, inverse=inverse)
            moved[:, self.moved_angles], log_det = image.T, log_det + log_slope.sum(dim=0)
        if self.n_rest:
            shape = of_rest.reshape(-1, self.n_rest, n)
            image, log_slope = line_spline(features[:, self.moved_rest].T, shape, self.bound, inverse=inverse)
            moved[:, self.moved_rest], log_det = image.T, log_det + log_slope.sum(dim=0)
        return moved, log_det
