"""A density of the internal coordinates of a window, known in closed form and learnt from its fragment: what moves propose."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hpc_molgen import reweighting
from hpc_molgen.angles import wrap_angle
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.torus_mixture import TorusMixture, fit_mixture
from hpc_molgen.montecarlo.windows import Columns, Turn, Window, columns_of, internal_coordinates, mapped_positions
from hpc_molgen.representations.internal import circular_mean
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.seeding import numpy_generator

if TYPE_CHECKING:
    from hpc_molgen.ensemble import Ensemble
    from hpc_molgen.systems.base import MolecularSystem

HARMONICS = 3
RIDGE = 1e-4


def _features(angles: torch.Tensor) -> torch.Tensor:
    """Cosines and sines (n, f) of angles (n, d): harmonics of each, first harmonics of sums and differences of neighbours."""
    parts = [function(k * angles) for k in range(1, HARMONICS + 1) for function in (torch.cos, torch.sin)]
    for pair in (angles[:, 1:] + angles[:, :-1], angles[:, 1:] - angles[:, :-1]):
        parts += [torch.cos(pair), torch.sin(pair)]
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Stiff:
    """A normal density of the stiff coordinates given the torsions a: mean + B f(a), with covariance L L^T.

    Attributes
    ----------
    centre : torch.Tensor, shape=(k,)
        Coordinates are counted from here, torsions around the circle.
    angular : torch.Tensor, shape=(k,), bool
    mean, shift, scale : torch.Tensor, shapes (k,), (f, k), (k, k)
    """

    centre: torch.Tensor
    angular: torch.Tensor
    mean: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def fit(cls, values: torch.Tensor, angular: torch.Tensor, torsions: torch.Tensor) -> Stiff:
        """Learn from conformations, of which the second half decides for each coordinate whether it shifts with the torsions.

        Parameters
        ----------
        values : torch.Tensor, shape=(n, k)
        angular : torch.Tensor, shape=(k,), bool
        torsions : torch.Tensor, shape=(n, d)
        """
        n = len(values)
        share = torch.full((n,), 1 / n, dtype=torch.float64)
        centre = torch.where(angular, circular_mean(values, share), torch.zeros_like(values[0]))
        around = torch.where(angular, wrap_angle(values - centre), values)
        features, half = _features(torsions), n // 2
        mean, shift = _regressed(features[:half], around[:half])
        residual = around[half:] - mean - features[half:] @ shift
        flat = around[half:] - around[:half].mean(0)
        shifts = (residual**2).mean(0) < (flat**2).mean(0)
        mean, shift = _regressed(features, around)
        shift = torch.where(shifts, shift, torch.zeros_like(shift))
        residual = around - features @ shift
        mean = residual.mean(0)
        residual = residual - mean
        covariance = residual.T @ residual / n + 1e-10 * torch.eye(len(mean), dtype=torch.float64)
        return cls(centre, angular, mean, shift, torch.linalg.cholesky(covariance))

    def around(self, values: torch.Tensor) -> torch.Tensor:
        """Coordinates (n, k) counted from the centre."""
        return torch.where(self.angular, wrap_angle(values - self.centre), values)

    def mean_at(self, torsions: torch.Tensor) -> torch.Tensor:
        """Mean (n, k), counted from the centre, at torsions (n, d)."""
        mean: torch.Tensor = self.mean + _features(torsions) @ self.shift
        return mean

    def white(self, values: torch.Tensor, torsions: torch.Tensor) -> torch.Tensor:
        """Coordinates (n, k) with unit covariance."""
        residual = self.around(values) - self.mean_at(torsions)
        white: torch.Tensor = torch.linalg.solve_triangular(self.scale, residual.T, upper=False).T
        return white

    def coloured(self, white: torch.Tensor, torsions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inverse of `white`, and where (n,) all torsions among the coordinates lie on the one circle about their centre."""
        around = self.mean_at(torsions) + white @ self.scale.T
        inside = ((around.abs() < math.pi) | ~self.angular).all(1)
        return torch.where(self.angular, wrap_angle(around + self.centre), around), inside


def _regressed(features: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares with a small ridge: mean (k,) and shift (f, k)."""
    centred = features - features.mean(0)
    ridge = RIDGE * torch.eye(features.shape[1], dtype=torch.float64)
    shift = torch.linalg.solve(
        centred.T @ centred / len(features) + ridge, centred.T @ (values - values.mean(0)) / len(features)
    )
    return values.mean(0) - features.mean(0) @ shift, shift


@dataclass(frozen=True)
class Block:
    """Coordinates of a molecule with a density q of them, learnt from a fragment: q(torsions) q(stiff | torsions).

    Attributes
    ----------
    window : Window
    columns : Columns
    mixture : TorusMixture
    stiff : Stiff
    """

    window: Window
    columns: Columns
    mixture: TorusMixture
    stiff: Stiff

    @classmethod
    def fit(
        cls, system: MolecularSystem, zmatrix: ZMatrix, window: Window, fragment: MolecularSystem, library: Ensemble,
        seed: int, *, n_kernels: int = 1000, n_conformations: int = 20_000,
    ) -> Block:  # fmt: skip
        """Learn from a library of the fragment's conformations.

        Parameters
        ----------
        system, zmatrix
            Of the whole molecule.
        window : Window
        fragment : MolecularSystem
        library : Ensemble
            With weights or without: molecular dynamics, or `weighted.h5` of a run whose surrogate was corrected. It is
            resampled by weight. Whatever it lacks is proposed rarely, not wrongly.
        seed, n_kernels, n_conformations : int
            At most so many conformations are used, and so many kernels.

        Raises
        ------
        InputError
            When the library is of another system, or when there are too few conformations.
        """
        if library.system_key != fragment.key:
            raise InputError(f"a library of key {library.system_key} is none of {fragment.name} with key {fragment.key}")
        generator = numpy_generator(seed, "block", window.first)
        n = min(n_conformations, len(library))
        rows = reweighting.systematic_resample(library.log_weight, n, generator)
        positions = mapped_positions(system.topology, window, fragment.topology, library.positions_nm[rows].astype(np.float64))
        coordinates = internal_coordinates(zmatrix, torch.from_numpy(positions))
        columns = columns_of(system.topology, zmatrix, window, coordinates)
        torsions, values = coordinates[:, columns.torsions], coordinates[:, columns.stiff]
        angular = torch.tensor(columns.stiff) >= 2 * zmatrix.n_atoms - 3
        mixture = fit_mixture(torsions, n_kernels, generator, library.trajectory[rows])
        return cls(window, columns, mixture, Stiff.fit(values, angular, torsions))

    def propose(
        self, coordinates: torch.Tensor, turn: Turn, refresh: float, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Propose other values of the block for many copies of the molecule.

        The torsions a that `turn` are drawn from q given the window's other torsions. White stiff coordinates w go to
        sqrt(1 - r^2) w + r xi: with r = 1 they are drawn anew, with r = 0 they are carried along as the torsions turn. The
        densities of a proposal and of its reverse then stand in the ratio of q(a) and, with r > 0, of the normal density of w
        (Cotter, Roberts, Stuart and White 2013, Stat. Sci. 28, 424).

        Parameters
        ----------
        coordinates : torch.Tensor, shape=(n, 3N - 6)
        turn : Turn
        refresh : float
            r, between 0 and 1.
        generator : np.random.Generator

        Returns
        -------
        coordinates : torch.Tensor, shape=(n, 3N - 6)
        log_ratio : torch.Tensor, shape=(n,)
            Ln q of the old values less ln q of the new ones, -inf where there are no new values.
        """
        own = self.columns
        torsions = coordinates[:, own.torsions]
        drawn = self.mixture.draw(torsions, own.turned(turn), generator)
        log_ratio = self.mixture.log_density(torsions) - self.mixture.log_density(drawn)
        white = self.stiff.white(coordinates[:, own.stiff], torsions)
        if refresh > 0:
            noise = torch.from_numpy(generator.standard_normal(tuple(white.shape)))
            fresh = math.sqrt(1 - refresh**2) * white + refresh * noise
            log_ratio = log_ratio + 0.5 * (fresh**2).sum(1) - 0.5 * (white**2).sum(1)
            white = fresh
        values, inside = self.stiff.coloured(white, drawn)
        proposed = coordinates.clone()
        proposed[:, own.torsions] = drawn
        proposed[:, own.stiff] = values
        return proposed, torch.where(inside, log_ratio, torch.full_like(log_ratio, -torch.inf))

    def extend(
        self, coordinates: torch.Tensor, residues: Collection[int], generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the coordinates of `residues` from q, given the torsions of the window's other residues.

        Returns
        -------
        coordinates : torch.Tensor, shape=(n, 3N - 6)
        log_density : torch.Tensor, shape=(n,)
            Of what was drawn.
        """
        own, (turned, moved) = self.columns, self.columns.of(residues)
        given = [number for number in range(len(own.torsions)) if number not in turned]
        torsions = self.mixture.draw(coordinates[:, own.torsions], turned, generator)
        log_density = self.mixture.log_density(torsions) - self.mixture.log_density(torsions, given)
        scale = torch.linalg.cholesky((self.stiff.scale @ self.stiff.scale.T)[moved][:, moved])
        noise = torch.from_numpy(generator.standard_normal((len(coordinates), len(moved))))
        around = self.stiff.mean_at(torsions)[:, moved] + noise @ scale.T
        log_density = log_density - 0.5 * (noise**2).sum(1) - torch.log(torch.diagonal(scale)).sum()
        log_density = log_density - 0.5 * len(moved) * math.log(2 * math.pi)
        values = around + self.stiff.centre[moved]
        drawn = coordinates.clone()
        drawn[:, [own.torsions[k] for k in turned]] = torsions[:, turned]
        drawn[:, [own.stiff[k] for k in moved]] = torch.where(self.stiff.angular[moved], wrap_angle(values), values)
        return drawn, log_density
