"""The truth of the `verdict` suite: long parallel tempering with a bias on phi, made once and kept in a file."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wasserstein_distance

from hpc_molgen.analysis.divergence import jensen_shannon
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.verdict_methods import MdMethod, MdSettings, long_run
from hpc_molgen.efficiency.suites.verdict_scores import Truth, group_free_energy, total_variation
from hpc_molgen.errors import HpcMolgenError, InputError
from hpc_molgen.files import appearing_whole
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TruthSettings:
    """Of the run that makes the truth: ladders, temperatures, length of each ladder."""

    n_ladders: int = 32
    n_temperatures: int = 3
    hottest_kelvin: float = 420.0
    ns_per_ladder: float = 2.5
    timestep_fs: float = 1.0


def find_truth(system: MolecularSystem, settings: TruthSettings, folder: Path, seed: int, costs: Costs) -> Truth:
    """Return the truth of these settings, from its file if there is one; what it costs is no method's.

    Flexible molecule, true masses, a bias that flattens phi in every copy of every ladder, reweighted; errors by the jackknife
    over ladders.

    Raises
    ------
    InputError
        When the file is damaged.
    HpcMolgenError
        When the run is too short to know dF.
    """
    identity = json.dumps([system.key, asdict(settings), seed, 1], sort_keys=True)
    path = folder / f"truth-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.npz"
    if not path.is_file():
        with costs.stage("truth, which is no method's cost") as entry:
            found = _make(system, settings, derive_seed(seed, "truth"))
        found.facts.update({"cpu_s": entry["cpu_s"], "wall_s": entry["wall_s"]})
        _write(path, found)
    else:
        log.info("%s: the truth of an earlier run", path)
    return _read(path)


def _make(system: MolecularSystem, settings: TruthSettings, seed: int) -> Truth:
    name = (
        f"parallel tempering of {settings.n_temperatures} temperatures to {settings.hottest_kelvin:g} K with a bias that "
        f"flattens phi, {settings.timestep_fs:g} fs, flexible, true masses"
    )
    method = MdMethod(
        name, "truth", timestep_fs=settings.timestep_fs, hydrogen_mass_amu=None, biased=True,
        hottest_kelvin=settings.hottest_kelvin, n_temperatures=settings.n_temperatures,
    )  # fmt: skip
    block_ps = min(10.0, settings.ns_per_ladder * 1e3 / 20)
    how = MdSettings(n_ladders=settings.n_ladders, block_ps=block_ps, observe_ps=min(0.5, block_ps))
    sums = long_run(method, system, how, settings.ns_per_ladder, seed)
    value, half_width = group_free_energy(sums)
    if value is None or half_width is None:
        raise HpcMolgenError("the run that makes the truth is too short to know dF(phi > 0): lengthen it")
    facts: dict[str, Any] = {
        "protocol": name,
        "ladders": settings.n_ladders,
        "ns_per_ladder": settings.ns_per_ladder,
        "n_frames": sums.n_frames,
        "divergence_of_halves": jensen_shannon(*sums.histogram),
        "total_variation_of_halves": total_variation(*sums.histogram),
        "energy_w1_of_halves_kt": float(
            wasserstein_distance(
                sums.energies_kt[::2], sums.energies_kt[1::2], sums.energy_weights[::2], sums.energy_weights[1::2]
            )
        ),
    }
    return Truth(value, half_width, sums.histogram, sums.energies_kt, sums.energy_weights, facts)


def _write(path: Path, truth: Truth) -> None:
    with appearing_whole(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file, histogram=truth.histogram, energies=truth.energies_kt, weights=truth.energy_weights,
            free_energy=np.array([truth.free_energy_kt, truth.half_width_kt]), facts=np.array(json.dumps(truth.facts)),
        )  # fmt: skip


def _read(path: Path) -> Truth:
    try:
        with np.load(path, allow_pickle=False) as found:
            value, half_width = (float(number) for number in found["free_energy"])
            facts = json.loads(str(found["facts"]))
            return Truth(value, half_width, found["histogram"], found["energies"], found["weights"], facts)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a readable truth ({error}); delete it and run again") from error
