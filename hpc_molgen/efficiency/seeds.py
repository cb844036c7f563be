"""Populations from short MD that started at generated frames, by a Markov state model over it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpc_molgen.analysis.free_energy import Estimate
from hpc_molgen.analysis.markov import Clusters, Counts
from hpc_molgen.analysis.states import States
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.representations.base import load_representation
from hpc_molgen.representations.cvs import CollectiveVariables

if TYPE_CHECKING:
    from hpc_molgen.run import Run


@dataclass(frozen=True)
class SeedFindings:
    """What the farm's replicas, seeded by generated frames, say of the named states.

    Attributes
    ----------
    n_replicas, n_frames, lag : int
        `lag` in frames of the replicas.
    covered : float
        Share of the clusters that the model connects.
    counted : list of float
        Share of each state among the frames, which the choice of seeds decides.
    populations : list of Estimate
        Of each state by the model's stationary distribution, with intervals of a bootstrap over replicas.
    """

    n_replicas: int
    n_frames: int
    lag: int
    covered: float
    counted: list[float]
    populations: list[Estimate]


def read_seeds(
    run: Run, clusters: Clusters, states: States, lag_ps: float, n_bootstrap: int, generator: np.random.Generator
) -> SeedFindings | None:
    """Analyse the finished replicas of the farm; None where there are none, or none is longer than the lag.

    A frame weighs as much as its cluster's stationary probability over the number of frames there (Prinz et al. 2011, J. Chem.
    Phys. 134, 174105): seeds chosen for being rare count no more than they should.
    """
    manifest = run.path("farm", "manifest.jsonl")
    if not run.path("farm", "done.json").is_file() or not manifest.is_file():
        return None
    variables = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    assert isinstance(variables, CollectiveVariables)
    series = []
    for line in manifest.read_text().splitlines():
        record = json.loads(line)
        path = run.path("farm", f"replica-{record['replica']:05d}.h5")
        if record["state"] == "done" and path.is_file():
            series.append(variables.measure(read_ensemble(path, run.system).positions_nm))
    lag = max(1, round(lag_ps / run.config.farm.save_every_ps))
    series = [part for part in series if len(part) > lag]
    return populations_from(series, clusters, states, lag, n_bootstrap, generator) if series else None


def populations_from(
    series: list[np.ndarray], clusters: Clusters, states: States, lag: int, n_bootstrap: int, generator: np.random.Generator
) -> SeedFindings | None:
    """Return the populations of states by a Markov state model of short series (n_frames, n_features); None without one."""
    discrete = clusters.assign(series)
    n = len(clusters.centres)
    counts = Counts(discrete, n, lag)
    inside = [np.searchsorted(states.boundaries, states.coordinate(part)) for part in series]
    # frames of each cluster in each state, by replica
    tables = np.zeros((len(series), n, len(states.names)))
    for table, cluster, state in zip(tables, discrete, inside, strict=True):
        np.add.at(table, (cluster, state), 1)

    def shares(multiplicity: np.ndarray) -> tuple[np.ndarray, float]:
        model = counts.model(multiplicity)
        if model is None:
            return np.full(len(states.names), np.nan), 0.0
        table = np.tensordot(multiplicity, tables, axes=1)
        known = model.count_model.state_symbols
        split = table[known] / np.maximum(table[known].sum(axis=1, keepdims=True), 1)
        found = model.stationary_distribution @ split
        return found / found.sum(), len(known) / n

    value, covered = shares(np.ones(len(series)))
    if not np.isfinite(value).all():
        return None
    draws = generator.multinomial(len(series), np.full(len(series), 1 / len(series)), n_bootstrap).astype(np.float64)
    replicates = np.array([shares(draw)[0] for draw in draws])
    low, high = np.nanquantile(replicates, [0.025, 0.975], axis=0)
    spread = np.nanstd(replicates, axis=0)
    counted = tables.sum(axis=(0, 1)) / tables.sum()
    populations = [Estimate(*map(float, row)) for row in zip(value, low, high, spread, strict=True)]
    return SeedFindings(len(series), sum(map(len, series)), lag, covered, counted.tolist(), populations)
