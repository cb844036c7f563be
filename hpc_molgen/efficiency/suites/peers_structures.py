"""Structures in the suite `peers`: the published DDPM, this package's diffusion and a Markov state model, of the same frames.

All of them learn (phi, psi) of one group of walkers and are judged against another group. For the weights the molecule is rigid
but for the two torsions, as it was in the published pipeline; of that molecule the exact map is known from a grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen import reweighting
from hpc_molgen.analysis.baselines import fit_markov_sampler
from hpc_molgen.analysis.divergence import jensen_shannon, noise_floor, ramachandran_histogram, seam_share
from hpc_molgen.analysis.kinetics import statistical_inefficiency
from hpc_molgen.analysis.markov import Counts, fit_clusters
from hpc_molgen.config import DiffusionConfig, TrainConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.efficiency.suites.published_ddpm import PublishedDdpm, PublishedSettings
from hpc_molgen.efficiency.suites.ramachandran import train_surrogate
from hpc_molgen.efficiency.suites.ramachandran_scores import COARSE_BINS, right_handed
from hpc_molgen.efficiency.suites.verdict_samplers import rigid_structures
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch, one_thread

SEAM_DEG = 2.0
GRID = 120  # of the exact map of the rigid molecule, per torsion: two points to a bin of 60
MARKOV_LAG = 10


@dataclass(frozen=True)
class Learning:
    """How the two networks learn; samples of each method, steps of our ODE."""

    published: PublishedSettings
    surrogate: DiffusionConfig
    train: TrainConfig
    n_samples: int = 10_000
    ode_steps: int = 8
    density_steps: int = 16


@dataclass(frozen=True)
class Lesson:
    """What one process of a method is given; it pickles.

    Attributes
    ----------
    method : str
        "published" or "ours".
    angles_rad : np.ndarray, shape=(n_frames, 2)
    """

    method: str
    system: MolecularSystem
    learning: Learning
    angles_rad: np.ndarray
    seed: int
    folder: Path


@dataclass(frozen=True)
class Drawn:
    """Samples of a network.

    Attributes
    ----------
    angles_rad : np.ndarray, shape=(n, 2)
    log_weight : np.ndarray, shape=(n,)
        -E/kT of the rigid molecule, less ln q for ours; not normalised.
    training, sampling, weighing : (float, float)
        CPU and wall seconds.
    n_weights : int
        Of the network.
    """

    method: str
    angles_rad: np.ndarray
    log_weight: np.ndarray
    training: tuple[float, float]
    sampling: tuple[float, float]
    weighing: tuple[float, float]
    n_weights: int


def learn(lesson: Lesson) -> Drawn:
    """Train a network, sample it and weigh the samples, on one thread."""
    with one_thread():
        return _published(lesson) if lesson.method == "published" else _ours(lesson)


def _published(lesson: Lesson) -> Drawn:
    ddpm = PublishedDdpm(lesson.learning.published, lesson.seed)
    watch = Stopwatch()
    ddpm.train(lesson.angles_rad)
    training, watch = (watch.cpu_s, watch.wall_s), Stopwatch()
    angles = ddpm.sample(lesson.learning.n_samples, derive_seed(lesson.seed, "sample"))
    sampling, watch = (watch.cpu_s, watch.wall_s), Stopwatch()
    log_weight = -rigid_energies(lesson.system, angles)  # without ln q, as published
    return Drawn(lesson.method, angles, log_weight, training, sampling, (watch.cpu_s, watch.wall_s), ddpm.n_weights)


def _ours(lesson: Lesson) -> Drawn:
    own, n = lesson.learning, lesson.learning.n_samples
    watch = Stopwatch()
    surrogate = train_surrogate(own, lesson.angles_rad, lesson.folder, lesson.seed)
    training, watch = (watch.cpu_s, watch.wall_s), Stopwatch()
    angles = surrogate.sample(n, derive_seed(lesson.seed, "sample"), n_steps=own.ode_steps, log_density=False)[0]
    sampling, watch = (watch.cpu_s, watch.wall_s), Stopwatch()
    same, log_q = surrogate.sample(n, derive_seed(lesson.seed, "sample"), n_steps=own.density_steps, log_density=True)
    assert log_q is not None
    drawn = same.double().numpy()
    log_weight = -rigid_energies(lesson.system, drawn) - log_q.double().numpy()
    weighing = watch.cpu_s, watch.wall_s
    n_weights = sum(parameter.numel() for parameter in surrogate.parameters())
    return Drawn(lesson.method, angles.double().numpy(), log_weight, training, sampling, weighing, n_weights)


def rigid_energies(system: MolecularSystem, angles_rad: np.ndarray) -> np.ndarray:
    """Reduced energies (n,) of the minimised molecule turned to each (phi, psi) of (n, 2); +inf where it has none."""
    structures = rigid_structures(system, angles_rad)
    energies = BatchedSystem(system, "float64", threads=1).energies(structures) / system.kt_kj_mol
    return np.where(np.isfinite(energies), energies, np.inf)


def exact_map(system: MolecularSystem, n: int = GRID) -> np.ndarray:
    """Probabilities (60, 60) of the rigid molecule by exp(-E/kT) on a grid of `n` x `n` points."""
    centres = (np.arange(n) + 0.5) / n * 2 * np.pi - np.pi
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 2)
    energies = rigid_energies(system, grid)
    return ramachandran_histogram(grid, np.exp(energies.min() - energies))


class Judge:
    """Scores (phi, psi) against held-out walkers and, where weighted, against the exact map of the rigid molecule.

    Parameters
    ----------
    held_out_rad : np.ndarray, shape=(n, 2)
    floor : float
        Mean divergence of groups of MD, thinned to the samples' number.
    """

    def __init__(self, held_out_rad: np.ndarray, floor: float, rigid: np.ndarray) -> None:
        self.fine, self.coarse = ramachandran_histogram(held_out_rad), ramachandran_histogram(held_out_rad, bins=COARSE_BINS)
        self.seam, self.floor, self.rigid = seam_share(held_out_rad[:, 1], SEAM_DEG), floor, rigid

    def score(self, angles_rad: np.ndarray, log_weight: np.ndarray | None = None) -> dict[str, float]:
        """All figures of one set of samples (n, 2)."""
        weights = None if log_weight is None else reweighting.normalised_weights(log_weight)
        own = ramachandran_histogram(angles_rad, weights)
        share = np.average(right_handed(angles_rad), weights=weights)
        found = {
            "jsd_60": jensen_shannon(own, self.fine),
            "jsd_60_over_floor": jensen_shannon(own, self.fine) / self.floor,
            "jsd_36": jensen_shannon(ramachandran_histogram(angles_rad, weights, COARSE_BINS), self.coarse),
            "seam_over_md": seam_share(angles_rad[:, 1], SEAM_DEG, weights) / max(self.seam, 1e-9),
            "alphar_share": float(share),
        }
        if log_weight is not None:
            found |= {
                "jsd_from_rigid": jensen_shannon(own, self.rigid),
                "ess_fraction": reweighting.kish_ess(log_weight) / len(log_weight),
                "largest_share": float(weights.max()) if weights is not None else 1.0,
                "k_hat": reweighting.pareto_k(log_weight),
            }
        return found


def group_floor(groups: list[np.ndarray], held_out_rad: np.ndarray, n: int, seed: int) -> list[float]:
    """Divergence of each group (n_walkers, n_frames, 2), thinned to `n` frames, from the held-out one."""
    return [noise_floor(group.reshape(-1, 2), held_out_rad, n, seed=seed).mean for group in groups]


def markov_draw(group_rad: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Fit a Markov state model of 100 states to walkers (n_walkers, n_frames, 2); return `n` frames that it emits, and facts.

    Clusters are of cosines and sines; the chain over them moves by frames, and its slowest timescale is that at `MARKOV_LAG`.
    """
    watch = Stopwatch()
    series = [np.concatenate([np.cos(walker), np.sin(walker)], axis=1) for walker in group_rad]
    clusters = fit_clusters(series, derive_seed(seed, "clusters"))
    chain = fit_markov_sampler(series, clusters)
    counts = Counts(clusters.assign(series), len(clusters.centres), MARKOV_LAG)
    slowest = float(counts.timescales(1)[0])
    fit = watch.cpu_s, watch.wall_s
    watch = Stopwatch()
    frames = np.concatenate(chain.sample(1, n, numpy_generator(seed, "markov")))
    angles = np.arctan2(frames[:, 2:], frames[:, :2])
    facts = {"training_cpu_s": fit[0], "sampling_cpu_s": watch.cpu_s, "slowest_frames": slowest}
    return angles, facts


def effective_samples(angles_rad: np.ndarray) -> float:
    """Effective samples of the share of alphaR in trajectories (n_trajectories, n_frames, 2): frames over g."""
    inside = right_handed(angles_rad.reshape(-1, 2)).astype(np.float64)
    trajectory = np.repeat(np.arange(len(angles_rad)), angles_rad.shape[1])
    g = statistical_inefficiency(inside, trajectory)
    return float(len(inside) / g) if np.isfinite(g) else 0.0
