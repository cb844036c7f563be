"""Further rounds of a farm: new starts from its own frames, most where the weighted estimate is least certain."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.farm.job import replica_path
from hpc_molgen.reweighting import normalised_weights
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import rotatable_torsions, torsion_angles

log = logging.getLogger(__name__)
MAX_FRAMES = 50_000
STARTS_PER_STATE = 2  # on average, so that every state gets one and the uncertain ones more
MAX_STATES = 100


@dataclass(frozen=True)
class Choice:
    """New starts: rows of the frames that were given, and what each counts.

    Attributes
    ----------
    frames : np.ndarray, shape=(n,)
    log_weights : np.ndarray, shape=(n,)
        They sum, exponentiated, to one.
    population, relative_error : np.ndarray, shape=(n_states,)
        Of the states, by the weighted frames; the error is a standard error over trajectories, in units of the population:
        that of the state's free energy in kT.
    """

    frames: np.ndarray
    log_weights: np.ndarray
    population: np.ndarray
    relative_error: np.ndarray


def choose(state: np.ndarray, weights: np.ndarray, trajectory: np.ndarray, n: int, generator: np.random.Generator) -> Choice:
    """Draw `n` frames, stratified by state: one from each, the others in proportion to the state's relative error.

    A start in state s weighs W_s / m_s, with W_s the state's weighted population and m_s its starts, and within a state frames
    are drawn by weight: the starts are again a sample of the weighted ensemble, exactly so for what is constant within states
    (stratified sampling; Cochran 1977, Sampling Techniques, chapter 5), and the states that are known worst get most.

    Parameters
    ----------
    state, weights, trajectory : np.ndarray, shape=(n_frames,)
        State, weight (their sum is one) and trajectory of each frame.
    """
    frames_of = np.flatnonzero(weights > 0)
    state, weights, trajectory = state[frames_of], weights[frames_of], trajectory[frames_of]
    states, state = np.unique(state, return_inverse=True)
    _, trajectory = np.unique(trajectory, return_inverse=True)
    per_trajectory = np.zeros((trajectory.max() + 1, len(states)))
    np.add.at(per_trajectory, (trajectory, state), weights)
    population = per_trajectory.sum(axis=0)
    share = per_trajectory.sum(axis=1, keepdims=True)
    # of a ratio of sums over independent trajectories, linearised
    error = np.sqrt(((per_trajectory - share * population) ** 2).sum(axis=0))
    relative = np.minimum(error / population, 1.0)
    if n < len(states):  # too few for all: by weight alone
        drawn_by_weight = generator.choice(frames_of, size=n, p=weights / weights.sum())
        return Choice(drawn_by_weight, np.full(n, -np.log(n)), population, relative)
    counts = np.ones(len(states), dtype=int)
    left = n - counts.sum()
    if left > 0:
        wanted = left * (relative / relative.sum() if relative.sum() > 0 else np.full(len(states), 1 / len(states)))
        counts += np.floor(wanted).astype(int)
        rest = np.argsort(np.floor(wanted) - wanted, kind="stable")[: n - counts.sum()]
        counts[rest] += 1
    drawn, log_weights = [], []
    for number, m in enumerate(counts):
        if m:
            rows = np.flatnonzero(state == number)
            drawn.append(generator.choice(rows, size=m, p=weights[rows] / weights[rows].sum()))
            log_weights.append(np.full(m, np.log(population[number] / m)))
    weight = np.concatenate(log_weights)
    return Choice(frames_of[np.concatenate(drawn)], weight - np.log(np.exp(weight).sum()), population, relative)


def next_starts(system: MolecularSystem, folder: Path, rounds: Sequence[dict[int, float]], n: int, seed: int) -> dict[str, Any]:
    """Return names and log-weights of the starts of the round after `rounds`.

    Parameters
    ----------
    folder : Path
        Of the farm.
    rounds : sequence of dict
        For each round so far the finished replicas with their log-weights; every round counts the same.

    Raises
    ------
    InputError
        When nothing is finished, or the molecule has no torsion by which states could be told apart.
    """
    quads = rotatable_torsions(system.topology)
    if not quads:
        raise InputError(f"farm.rounds: {system.name} has no rotatable torsion by which to tell states apart; use 1 round")
    n_replicas = sum(map(len, rounds))
    if not n_replicas:
        raise InputError("farm.rounds: no replica of the rounds before has finished")
    positions, weights, trajectory, number = [], [], [], []
    for found in rounds:
        normalised = (
            dict(zip(found, normalised_weights(np.array(list(found.values()))) / len(rounds), strict=True)) if found else {}
        )
        for replica in found:
            frames = read_ensemble(replica_path(folder, replica), system)
            rows = np.arange(0, len(frames), max(1, len(frames) * n_replicas // MAX_FRAMES))
            positions.append(frames.positions_nm[rows])
            weights.append(np.full(len(rows), normalised[replica] / len(rows)))
            trajectory.append(np.full(len(rows), replica))
            number.append(rows)
    x, w = np.concatenate(positions), np.concatenate(weights)
    angles = np.stack([torsion_angles(x, quad) for quad in quads], axis=1)
    k = int(np.clip(n // STARTS_PER_STATE, 1, MAX_STATES))
    state = _cluster(np.concatenate([np.cos(angles), np.sin(angles)], axis=1), k, seed)
    of, rows = np.concatenate(trajectory), np.concatenate(number)
    choice = choose(state, w / w.sum(), of, n, numpy_generator(seed, "farm", "round", len(rounds)))
    log.info(
        "farm: round %d starts %d replicas from %d states; their free energies are known to %.2g kT (median), %.2g kT (worst)",
        len(rounds) + 1, n, len(choice.population), np.median(choice.relative_error), choice.relative_error.max(),
    )  # fmt: skip
    return {
        "names": [f"replica-{of[frame]:05d}.h5 frame {rows[frame]}" for frame in choice.frames],
        "log_weights": choice.log_weights.tolist(),
        "populations": choice.population.tolist(),
        "relative_errors": choice.relative_error.tolist(),
    }


def _cluster(features: np.ndarray, k: int, seed: int) -> np.ndarray:
    from deeptime.clustering import KMeans

    sample = features[:: max(1, len(features) // 10_000)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged to the last digit
        fitted = KMeans(min(k, len(sample)), max_iter=50, fixed_seed=derive_seed(seed, "states"), n_jobs=1, progress=None).fit(
            sample
        )
    return np.asarray(fitted.fetch_model().transform(features))
