"""The correct stage: energies, weights, diagnostics, and structures drawn by weight."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen import datasets, reweighting
from hpc_molgen.config import dump_config
from hpc_molgen.ensemble import Ensemble, read_ensemble, write_ensemble
from hpc_molgen.files import write_json
from hpc_molgen.seeding import numpy_generator
from hpc_molgen.structures import StructureChecker, check_fractions, write_structures
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    from hpc_molgen.run import Run

CHUNK = 2000


@dataclass(frozen=True)
class Chunk:
    """Conformations whose energies one worker computes, with the engine named."""

    system: MolecularSystem
    engine: str
    positions_nm: np.ndarray
    n_total: int


def plan_chunks(run: Run) -> list[Chunk]:
    """Cut the proposals into chunks by index."""
    from hpc_molgen.dynamics.choice import choose_energies

    proposals = read_ensemble(run.path("sample", "proposals.h5"), run.system)
    engine = run.workers.from_root(lambda: choose_energies(run.system))
    return [
        Chunk(run.system, engine, proposals.positions_nm[start : start + CHUNK], len(proposals))
        for start in range(0, len(proposals), CHUNK)
    ]


def chunk_energies(chunk: Chunk) -> tuple[np.ndarray, float]:
    """Return reduced energies (n,) and the CPU seconds they took."""
    from hpc_molgen.dynamics.choice import energy_function

    watch = Stopwatch()
    energies = energy_function(chunk.system, chunk.engine, chunk.n_total)(chunk.positions_nm)
    return energies, watch.cpu_s


def write_weighted(run: Run, energies: list[tuple[np.ndarray, float]]) -> dict[str, Any]:
    """Weigh the proposals, write weighted.h5, diagnostics.json and pdb/; return the figures of the stage."""
    config, system = run.config.correct, run.system
    proposals = read_ensemble(run.path("sample", "proposals.h5"), system)
    reduced_energy = np.concatenate([part for part, _ in energies])
    log_weight = np.zeros(len(proposals))
    diagnostics: dict[str, Any] = {"weighted": config.weights, "target": run.details("featurize")["target"]}
    if config.weights:
        log_weight = reweighting.importance_log_weights(reduced_energy, proposals.log_density)
        diagnostics |= reweighting.diagnose(log_weight).as_dict()
    weighted = dataclasses.replace(proposals, reduced_energy=reduced_energy, log_weight=log_weight)
    write_ensemble(
        run.path("correct", "weighted.h5"), weighted, system, seed=run.config.seed, config_yaml=dump_config(run.config)
    )
    _, held_out = datasets.load_split(run)
    checker = StructureChecker(system, _weighted_quantile(held_out, 0.999))
    checks = checker(weighted.positions_nm, weighted.reduced_energy)
    diagnostics["failed_fractions_of_samples"] = check_fractions(checks)
    generator = numpy_generator(run.config.seed, "structures")
    chosen = reweighting.systematic_resample(log_weight, config.n_structures, generator)
    structures: Ensemble = dataclasses.replace(weighted[chosen], parent=chosen)
    chosen_checks = [checks[index] for index in chosen]
    diagnostics["failed_fractions_of_structures"] = check_fractions(chosen_checks)
    diagnostics["distinct_parents"] = len(set(chosen.tolist()))
    write_structures(run.path("correct", "pdb"), structures, system, chosen_checks)
    diagnostics["energy_cpu_s"] = sum(cpu_s for _, cpu_s in energies)
    write_json(run.path("correct", "diagnostics.json"), diagnostics)
    return diagnostics


def _weighted_quantile(ensemble: Ensemble, share: float) -> float:
    """Quantile of the reduced energy under the ensemble's weights."""
    order = np.argsort(ensemble.reduced_energy)
    cumulative = np.cumsum(datasets.boltzmann_weights(ensemble)[order])
    return float(ensemble.reduced_energy[order][np.searchsorted(cumulative, share).clip(max=len(order) - 1)])
