"""The correct stage: energies, weights, diagnostics, and structures drawn by weight."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

from hpc_molgen import coverage, datasets, reweighting, temperatures
from hpc_molgen.annealing import Island, Moved, join_islands
from hpc_molgen.config import dump_config
from hpc_molgen.ensemble import Ensemble, read_ensemble, write_ensemble
from hpc_molgen.files import write_json
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.structures import StructureChecker, check_fractions, write_structures
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.trajectories import read_trajectories
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    from hpc_molgen.run import Run

log = logging.getLogger(__name__)
CHUNK = 2000


@dataclass(frozen=True)
class Chunk:
    """Conformations whose energies one worker computes, with the engine named."""

    system: MolecularSystem
    engine: str
    positions_nm: np.ndarray
    n_total: int


def plan_chunks(run: Run) -> list[Chunk]:
    """Cut the proposals into chunks by index; generated trajectories have no energies."""
    if run.config.makes_trajectories:
        return []
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


def write_weighted(
    run: Run,
    energies: list[tuple[np.ndarray, float]],
    islands: Sequence[Island] = (),
    moved: Sequence[Moved] = (),
    others: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Weigh the proposals, write weighted.h5, diagnostics.json and pdb/; return the figures of the stage.

    Where islands of proposals were moved, what became of them is annealed.h5, and estimates and structures come from there.
    """
    if run.config.makes_trajectories:
        return write_frames(run)
    config, system = run.config.correct, run.system
    proposals = read_ensemble(run.path("sample", "proposals.h5"), system)
    weighted, diagnostics = _weigh(run, proposals, np.concatenate([part for part, _ in energies]))
    write_ensemble(
        run.path("correct", "weighted.h5"), weighted, system, seed=run.config.seed, config_yaml=dump_config(run.config)
    )
    _, held_out = datasets.load_split(run)
    checker = StructureChecker(system, _highest_energy(held_out))
    checks = checker(weighted.positions_nm, weighted.reduced_energy)
    diagnostics["failed_fractions_of_samples"] = check_fractions(checks)
    generator = numpy_generator(run.config.seed, "structures")
    source = weighted
    if islands:
        source = _write_moved(run, islands, moved, diagnostics)
        checks = checker(source.positions_nm, source.reduced_energy)
    chosen = reweighting.systematic_resample(source.log_weight, config.n_structures, generator)
    structures: Ensemble = dataclasses.replace(source[chosen], parent=chosen)
    chosen_checks = [checks[index] for index in chosen]
    diagnostics["failed_fractions_of_structures"] = check_fractions(chosen_checks)
    diagnostics["distinct_parents"] = len(set(chosen.tolist()))
    write_structures(run.path("correct", "pdb"), structures, system, chosen_checks)
    diagnostics["coverage"] = coverage.check_coverage(run, weighted, held_out, source if islands else None)
    diagnostics["temperatures"] = temperatures.add_bar(run, weighted, others)
    for row in diagnostics["temperatures"]:
        row["certified"] = row["certified"] and diagnostics["density"] != "estimated"
    diagnostics["energy_cpu_s"] = sum(cpu_s for _, cpu_s in energies) + diagnostics.get("annealed", {}).get("cpu_s", 0.0)
    write_json(run.path("correct", "diagnostics.json"), diagnostics)
    for island in islands:  # not before: what a killed stage has moved is not moved again
        island.path.unlink()
    return diagnostics


def _weigh(run: Run, proposals: Ensemble, reduced_energy: np.ndarray) -> tuple[Ensemble, dict[str, Any]]:
    """Return the proposals with energies (n,) and log-weights, and what these are worth; all zero without a density."""
    features, reason = run.details("featurize"), datasets.why_unweighted(run)
    diagnostics: dict[str, Any] = {"weighted": not reason, "target": features["target"]}
    if reason:
        if run.config.correct.weights:
            log.warning("correct: no importance weights are made, as %s", reason)
        unweighted = dataclasses.replace(proposals, reduced_energy=reduced_energy, log_weight=np.zeros(len(proposals)))
        return unweighted, diagnostics | {"density": "none", "reason": reason}
    log_weight = reweighting.importance_log_weights(reduced_energy, proposals.log_density)
    diagnostics["density"] = run.details("sample").get("density", "exact")
    diagnostics |= reweighting.diagnose(log_weight).as_dict()
    if features.get("density") == "estimated":
        diagnostics |= {"density": "estimated", "density_note": features["density_note"], "certified": False}
    return dataclasses.replace(proposals, reduced_energy=reduced_energy, log_weight=log_weight), diagnostics


def _write_moved(run: Run, islands: Sequence[Island], moved: Sequence[Moved], diagnostics: dict[str, Any]) -> Ensemble:
    """Write annealed.h5, and put its figures in the place of those of the importance weights, which are kept beside them."""
    ensemble, about = join_islands(run, islands, moved)
    names = dataclasses.fields(reweighting.WeightDiagnostics)
    diagnostics["importance"] = {field.name: diagnostics[field.name] for field in names}
    diagnostics["annealed"] = about
    diagnostics |= reweighting.diagnose(ensemble.log_weight).as_dict()
    diagnostics["certified"] = diagnostics["certified"] and diagnostics["density"] != "estimated"
    path, config_yaml = run.path("correct", "annealed.h5"), dump_config(run.config)
    write_ensemble(path, ensemble, run.system, seed=run.config.seed, config_yaml=config_yaml)
    share = 100 * diagnostics["importance"]["ess_fraction"]
    log.warning(
        "the effective share of the samples is %.2g %%: estimates come from %s of %d islands, not from weights alone",
        share, about["kind"], about["islands"],
    )  # fmt: skip
    return ensemble


def write_frames(run: Run) -> dict[str, Any]:
    """Write structures for frames of generated trajectories, those of rare regions first; return the figures of the stage.

    Collective variables do not determine a structure: each chosen frame becomes the reference frame that is nearest in them.
    Regions are clusters of the reference; as many frames of each are taken as there are, rarest first, one after the other, and
    a structure's weight is the share of its region among the generated frames over the structures from there.
    """
    from hpc_molgen.analysis.markov import fit_clusters
    from hpc_molgen.representations.base import load_representation
    from hpc_molgen.representations.cvs import CollectiveVariables

    system, seed, n = run.system, run.config.seed, run.config.correct.n_structures
    variables = load_representation(run.path("featurize", "representation.safetensors"), system)
    assert isinstance(variables, CollectiveVariables)
    train, held_out = datasets.load_split(run)
    reference = Ensemble.concatenate([train, held_out])
    known = variables.channels(variables.measure(reference.positions_nm))
    made = np.concatenate([np.asarray(part) for part in read_trajectories(run.path("sample", "trajectories.h5")).features])
    channels = variables.channels(made)
    clusters = fit_clusters([known], derive_seed(seed, "clusters"), min(run.config.report.n_clusters, n))
    region = clusters.assign([channels])[0]
    chosen = rare_first(region, n, numpy_generator(seed, "structures"))
    counts = np.bincount(region)
    weights = counts[region[chosen]] / np.bincount(region[chosen], minlength=len(counts))[region[chosen]]
    weights = weights / weights.sum()
    distance, nearest = cKDTree(known).query(channels[chosen])
    structures = dataclasses.replace(reference[nearest], parent=chosen, log_weight=np.log(weights))
    checks = StructureChecker(system, _highest_energy(held_out))(structures.positions_nm, structures.reduced_energy)
    write_structures(run.path("correct", "pdb"), structures, system, checks, weights)
    write_ensemble(run.path("correct", "frames.h5"), structures, system, seed=seed, config_yaml=dump_config(run.config))
    diagnostics = {
        "weighted": False,
        "reason": "a surrogate of trajectories knows no ln q: its frames have no importance weights",
        "regions": len(np.unique(region[chosen])),
        "distance_to_reference": {"median": float(np.median(distance)), "largest": float(distance.max())},
        "failed_fractions_of_structures": check_fractions(checks),
    }
    write_json(run.path("correct", "diagnostics.json"), diagnostics)
    return diagnostics


def rare_first(region: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Choose `n` frames (n,): one of each region, the rarest first, then a second one of each, and so on; none twice."""
    order = generator.permutation(len(region))
    counts = np.bincount(region)
    turn = np.empty(len(region), dtype=int)  # how many frames of the same region come before this one
    shuffled = region[order]
    by_region = np.argsort(shuffled, kind="stable")
    begins = np.concatenate([[0], np.cumsum(np.bincount(shuffled, minlength=len(counts)))])[:-1]
    turn[by_region] = np.arange(len(region)) - begins[shuffled[by_region]]
    return order[np.lexsort((counts[shuffled], turn))][:n]


def _highest_energy(held_out: Ensemble) -> float:
    """The 99.9th percentile of the reduced energy of held-out MD."""
    return reweighting.weighted_quantile(held_out.reduced_energy, datasets.boltzmann_weights(held_out), 0.999)
