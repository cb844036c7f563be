"""Streamed sums for the `verdict` suite: frames are summed as they come, and none is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_molgen.analysis.divergence import PERIOD, RAMACHANDRAN_BINS
from hpc_molgen.angles import wrap


@dataclass(frozen=True)
class Sums:
    """Weighted sums over frames of independent groups (walkers, ladders, populations); what a curve needs and no more.

    Attributes
    ----------
    total, inside : np.ndarray, shape=(n_groups,)
        Weights of all frames, and of those with phi > 0.
    histogram : np.ndarray, shape=(2, 60, 60)
        Weights over (phi, psi) of the groups with even and with odd numbers.
    energies_kt, energy_weights : np.ndarray, shape=(n,)
        Reduced energies of some of the frames, with their weights; empty where energies are not compared.
    n_frames : int
    """

    total: np.ndarray
    inside: np.ndarray
    histogram: np.ndarray
    energies_kt: np.ndarray
    energy_weights: np.ndarray
    n_frames: int


def sum_frames(
    phi_psi_rad: np.ndarray,
    weights: np.ndarray,
    energies_kt: np.ndarray | None = None,
    energy_weights: np.ndarray | None = None,
) -> Sums:
    """Sum over frames.

    Parameters
    ----------
    phi_psi_rad : np.ndarray, shape=(n_frames, n_groups, 2)
        Any real values; a frame that is not finite counts nothing.
    weights : np.ndarray, shape=(n_frames, n_groups)
    energies_kt, energy_weights : np.ndarray, shape=(n,), optional
    """
    sound = np.isfinite(phi_psi_rad).all(axis=-1) & np.isfinite(weights)
    angles, weights = wrap(np.where(sound[..., None], phi_psi_rad, 0.0)), np.where(sound, weights, 0.0)
    halves = []
    for half in (0, 1):
        phi, psi = angles[:, half::2].reshape(-1, 2).T
        own = weights[:, half::2].ravel()
        halves.append(np.histogram2d(phi, psi, bins=RAMACHANDRAN_BINS, range=(PERIOD, PERIOD), weights=own)[0])
    empty = np.empty(0)
    energies, of_energies = (empty, empty) if energies_kt is None or energy_weights is None else (energies_kt, energy_weights)
    finite = np.isfinite(energies) & np.isfinite(of_energies)
    inside = (weights * (angles[..., 0] > 0)).sum(axis=0)
    return Sums(weights.sum(axis=0), inside, np.array(halves), energies[finite], of_energies[finite], int(sound.sum()))


def join(parts: Sequence[Sums]) -> Sums:
    """Add up sums of the same groups at different times."""
    return Sums(
        np.sum([part.total for part in parts], axis=0),
        np.sum([part.inside for part in parts], axis=0),
        np.sum([part.histogram for part in parts], axis=0),
        np.concatenate([part.energies_kt for part in parts]),
        np.concatenate([part.energy_weights for part in parts]),
        sum(part.n_frames for part in parts),
    )


def side_by_side(parts: Sequence[Sums]) -> Sums:
    """Put sums of one group each beside each other, as groups 0, 1, 2, ..."""
    one = join(parts)
    histogram = np.zeros_like(one.histogram)
    for number, part in enumerate(parts):
        histogram[number % 2] += part.histogram.sum(axis=0)
    total, inside = (np.concatenate([getattr(part, name) for part in parts]) for name in ("total", "inside"))
    return Sums(total, inside, histogram, one.energies_kt, one.energy_weights, one.n_frames)


class Window:
    """Blocks of a growing simulation, of which the first share is not counted; memory stays bounded.

    Parameters
    ----------
    discarded : float
        Share of the blocks so far, from the beginning, that equilibration takes.
    most : int
        Blocks that are kept apart; beyond, neighbours are joined.
    """

    def __init__(self, discarded: float, most: int = 400) -> None:
        self._discarded, self._most, self._size = discarded, most, 1
        self._blocks: list[Sums] = []
        self._waiting: list[Sums] = []

    def add(self, block: Sums) -> None:
        """Take the next block."""
        self._waiting.append(block)
        if len(self._waiting) < self._size:
            return
        self._blocks.append(_thinned(join(self._waiting), len(block.energies_kt)))
        self._waiting = []
        if len(self._blocks) >= self._most:
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=True)
            self._blocks = [_thinned(join(pair), len(pair[0].energies_kt)) for pair in pairs]
            self._size *= 2

    def sums(self) -> Sums:
        """Sums over what counts so far."""
        n_blocks = self._size * len(self._blocks) + len(self._waiting)
        first = int(self._discarded * n_blocks) // self._size
        return join([*self._blocks[first:], *self._waiting])


def _thinned(sums: Sums, most: int) -> Sums:
    """Keep about `most` of the energies, evenly spread."""
    every = max(1, round(len(sums.energies_kt) / max(most, 1)))
    kept = sums.energies_kt[::every], sums.energy_weights[::every]
    return Sums(sums.total, sums.inside, sums.histogram, *kept, sums.n_frames)
