"""A density on a torus that is known in closed form: a periodic kernel at each of many conformations, and a uniform share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from hpc_molgen.angles import wrap_angle
from hpc_molgen.errors import InputError

WIDTHS_DEG = (8.0, 11.0, 15.0, 20.0, 28.0, 40.0)  # of kernels, of which held-out conformations choose
UNIFORM = 0.05
CHUNK = 512  # points whose kernels are in memory at once


class TorusMixture:
    """Equal von Mises kernels at `centres`, and a uniform density with the share `uniform`.

    The density is nowhere zero, so that it can propose whatever a target knows. Any of its marginals and conditionals is again
    such a mixture, with other weights: a message from some angles to the others needs no integral.

    Parameters
    ----------
    centres : torch.Tensor, shape=(m, d), float64, radians
    kappa : float
        Concentration of each kernel in each angle.
    uniform : float
        In (0, 1).
    """

    def __init__(self, centres: torch.Tensor, kappa: float, uniform: float = UNIFORM) -> None:
        if centres.ndim != 2 or not centres.numel() or not 0 < uniform < 1:
            raise InputError(f"a mixture on a torus needs centres (m, d) and a uniform share in (0, 1), not {uniform}")
        self.centres, self.kappa, self.uniform = centres.double(), float(kappa), uniform
        self._unit = torch.stack([torch.cos(self.centres), torch.sin(self.centres)])  # (2, m, d)
        scaled = torch.special.i0e(torch.tensor(self.kappa, dtype=torch.float64))  # exp(-kappa) I0(kappa)
        self._log_norm = math.log(2 * math.pi) + math.log(float(scaled))  # of a kernel in one angle, at its centre

    @property
    def n_angles(self) -> int:
        """Number of angles d."""
        return int(self.centres.shape[1])

    def _log_parts(self, angles: torch.Tensor, columns: Sequence[int]) -> torch.Tensor:
        """Ln of share times density of each kernel, and of the uniform part as the last: (n, m + 1), of some angles alone."""
        kept, d = list(columns), len(columns)
        points = torch.cat([torch.cos(angles[:, kept]), torch.sin(angles[:, kept])], dim=1)
        kernels = torch.cat([self._unit[0][:, kept], self._unit[1][:, kept]], dim=1)
        share = math.log((1 - self.uniform) / len(self.centres))
        parts = self.kappa * (points @ kernels.T - d) - d * self._log_norm + share
        flat = math.log(self.uniform) - d * math.log(2 * math.pi)
        return torch.cat([parts, torch.full_like(parts[:, :1], flat)], dim=1)

    def log_density(self, angles: torch.Tensor, columns: Sequence[int] | None = None) -> torch.Tensor:
        """Ln of the density (n,) of angles (n, d); of the marginal density of the angles in `columns` where these are named."""
        columns = range(self.n_angles) if columns is None else columns
        parts = [torch.logsumexp(self._log_parts(part, columns), dim=1) for part in torch.split(angles, CHUNK)]
        return torch.cat(parts)

    def draw(self, angles: torch.Tensor, columns: Sequence[int], generator: np.random.Generator) -> torch.Tensor:
        """Draw the angles in `columns` anew, given all others.

        Parameters
        ----------
        angles : torch.Tensor, shape=(n, d)
            Those in `columns` do not matter.
        columns : sequence of int
            All of them: the others condition nothing.

        Returns
        -------
        torch.Tensor, shape=(n, d)
        """
        given = [column for column in range(self.n_angles) if column not in set(columns)]
        return torch.cat([self._drawn(part, list(columns), given, generator) for part in torch.split(angles, CHUNK)])

    def _drawn(
        self, angles: torch.Tensor, columns: list[int], given: list[int], generator: np.random.Generator
    ) -> torch.Tensor:
        n, m = len(angles), len(self.centres)
        cumulative = torch.softmax(self._log_parts(angles, given), dim=1).cumsum(1)
        uniform = torch.from_numpy(generator.random((n, 1)))
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).flatten().clamp(max=m)
        kernel = chosen < m
        noise = torch.from_numpy(generator.vonmises(0.0, self.kappa, (n, len(columns))))
        flat = torch.from_numpy(generator.uniform(-math.pi, math.pi, (n, len(columns))))
        around = self.centres[chosen.clamp(max=m - 1)][:, columns] + noise
        result = angles.clone()
        result[:, columns] = torch.where(kernel[:, None], wrap_angle(around), flat)
        return result


def fit_mixture(
    angles: torch.Tensor, n_kernels: int, generator: np.random.Generator, trajectories: np.ndarray | None = None
) -> TorusMixture:
    """Put kernels on conformations; those of other trajectories choose the width, by their mean ln density.

    Parameters
    ----------
    angles : torch.Tensor, shape=(n, d)
        Equally weighted.
    n_kernels : int
        At most.
    trajectories : np.ndarray, shape=(n,), optional
        None, or one for all: the conformations are independent, and halves of them are drawn.

    Raises
    ------
    InputError
        For fewer than four conformations.
    """
    if len(angles) < 4:
        raise InputError(
            f"{len(angles)} conformations cannot tell a density of torsions from another: four are needed at least"
        )
    order = generator.permutation(len(angles))
    groups = np.arange(len(angles)) if trajectories is None or len(np.unique(trajectories)) < 2 else trajectories
    numbers = generator.permutation(np.unique(groups))
    first = np.isin(groups[order], numbers[: len(numbers) // 2])
    centres, rest = (angles[torch.from_numpy(order[inside][:n_kernels])] for inside in (first, ~first))
    kappas = [1 / math.radians(width) ** 2 for width in WIDTHS_DEG]
    scores = [float(TorusMixture(centres, kappa).log_density(rest).mean()) for kappa in kappas]
    return TorusMixture(angles[torch.from_numpy(order[:n_kernels])], kappas[int(np.argmax(scores))])
