"""The same run at other temperatures: samples weighted to the Boltzmann distribution there.

A flow is asked for its samples at each temperature; of another surrogate the samples are the same ones, by other weights. All
of these weights give the partition function at their temperature, which differences by the Bennett acceptance ratio between
the weighted ensembles have to reproduce: they see nothing of how ln q is normalised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import logsumexp

from hpc_molgen import datasets, density_checks, reweighting
from hpc_molgen.config import FlowConfig, RunConfig, dump_config
from hpc_molgen.dynamics.choice import choose_energies, energy_function
from hpc_molgen.ensemble import Ensemble, read_ensemble, write_ensemble
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    from hpc_molgen.run import Run


def are_drawn(config: RunConfig) -> bool:
    """Whether the surrogate is sampled anew for each temperature: a flow, which can be asked for one."""
    return isinstance(config.surrogate, FlowConfig)


def file_name(stem: str, kelvin: float) -> str:
    """Name of the file of one temperature, as in weighted-350K.h5."""
    return f"{stem}-{kelvin:g}K.h5"


@dataclass(frozen=True)
class Task:
    """The samples of one temperature, to be weighed.

    Attributes
    ----------
    kelvin : float
    engine : str
        What computes energies.
    proposals, weighted : Path
        Read and written.
    """

    system: MolecularSystem
    kelvin: float
    engine: str
    drawn: bool
    proposals: Path
    weighted: Path
    seed: int
    config_yaml: str


def plan(run: Run) -> list[Task]:
    """Return a task for each of `sample.temperatures_kelvin`."""
    asked, drawn = run.config.sample.temperatures_kelvin, are_drawn(run.config)
    if not asked or datasets.why_unweighted(run):
        return []
    engine = run.workers.from_root(lambda: choose_energies(run.system))
    return [
        Task(
            run.system, kelvin, engine, drawn,
            run.path("sample", file_name("proposals", kelvin) if drawn else "proposals.h5"),
            run.path("correct", file_name("weighted", kelvin)), run.config.seed, dump_config(run.config),
        )
        for kelvin in asked
    ]  # fmt: skip


def weigh(task: Task) -> dict[str, Any]:
    """Compute energies and weights of one temperature, write them, and return their figures.

    Returns
    -------
    dict
        kelvin, drawn, those of `reweighting.diagnose`, log_z with log_z_error, mean_energy_kj_mol, cpu_s.
    """
    watch, there = Stopwatch(), task.system.at(task.kelvin)
    proposals = read_ensemble(task.proposals, there if task.drawn else task.system)
    energies = energy_function(task.system, task.engine, len(proposals))(proposals.positions_nm)
    energies = energies * (task.system.temperature_kelvin / task.kelvin)
    log_weight = reweighting.importance_log_weights(energies, proposals.log_density)
    weighted = dataclasses.replace(proposals, reduced_energy=energies, log_weight=log_weight, system_key=there.key)
    write_ensemble(task.weighted, weighted, there, seed=task.seed, config_yaml=task.config_yaml)
    found = reweighting.diagnose(log_weight)
    weights = reweighting.normalised_weights(log_weight)
    seen = weights > 0
    return {
        "kelvin": task.kelvin, "drawn": task.drawn, **found.as_dict(),
        "log_z": float(logsumexp(log_weight) - np.log(len(log_weight))),
        "log_z_error": float(np.sqrt(max(0.0, 1 / found.ess - 1 / found.n))),
        "mean_energy_kj_mol": float(np.sum(weights[seen] * energies[seen]) * there.kt_kj_mol), "cpu_s": watch.cpu_s,
    }  # fmt: skip


def add_bar(run: Run, base: Ensemble, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to rows of `weigh` what ln Z is above that of the system's temperature: by the weights, and by BAR (pymbar).

    Parameters
    ----------
    base : Ensemble
        Weighted samples at the system's temperature.

    Returns
    -------
    list of dict
        The rows with `log_z_difference` and `log_z_bar`, each a pair of value and standard error; nan where the two ensembles
        have too little in common.
    """
    if not rows:
        return []
    cold = _resampled(base, derive_seed(run.config.seed, "bar"))
    base_z = float(logsumexp(base.log_weight) - np.log(len(base)))
    base_error = np.sqrt(max(0.0, 1 / reweighting.kish_ess(base.log_weight) - 1 / len(base)))
    found = []
    for row in rows:
        ratio = run.system.temperature_kelvin / row["kelvin"]
        hot = read_ensemble(run.path("correct", file_name("weighted", row["kelvin"])), run.system.at(row["kelvin"]))
        of_hot = _resampled(hot, derive_seed(run.config.seed, "bar", f"{row['kelvin']:g}"))
        # ln w from the cold to the hot ensemble: of samples of the one, and of the other
        value, error = density_checks.bennett(cold * (1 - ratio), of_hot * (1 / ratio - 1))
        difference = [row["log_z"] - base_z, float(np.hypot(row["log_z_error"], base_error))]
        found.append(row | {"log_z_difference": difference, "log_z_bar": [value, error]})
    return found


def _resampled(ensemble: Ensemble, seed: int) -> np.ndarray:
    """Reduced energies of as many samples, drawn by weight, as are effective."""
    n = max(2, int(reweighting.kish_ess(ensemble.log_weight)))
    chosen = reweighting.systematic_resample(ensemble.log_weight, n, numpy_generator(seed, "resampled"))
    energies: np.ndarray = ensemble.reduced_energy[chosen]
    return energies
