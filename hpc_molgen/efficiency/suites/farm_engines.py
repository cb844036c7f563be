"""The farm's engines beside GROMACS: all replicas of two cores, ns a day side by side."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.gromacs import gromacs_path, gromacs_version
from hpc_molgen.efficiency.suites.gromacs import Gromacs
from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.efficiency.suites.rounds import pinned
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.registry import load_system
from hpc_molgen.workers import Stopwatch

VACUUM = "alanine-dipeptide-vacuum"
Farm = Callable[[str, dict[str, Any], str], dict[str, float]]
"""Runs a farm of these settings on two cores, of a system; returns wall seconds of its loop and simulated ns."""


@dataclass(frozen=True)
class Lengths:
    """ps of each replica in the box, by OpenMM and by GROMACS; ps of each of 64 in vacuum; steps of GROMACS there; rounds."""

    openmm_ps: float
    gromacs_ps: float
    vacuum_ps: float
    vacuum_steps: int
    n_rounds: int


def side_by_side(folder: Path, starts: Path, lengths: Lengths, seed: int, run_farm: Farm) -> dict[str, Any] | None:
    """Return ns a day of all replicas by engine and round, and their ratios; None without GROMACS.

    In a box of TIP3P (3 nm, PME, 2 fs, constrained X-H) the farm runs one replica on each of two cores by OpenMM and by
    GROMACS. In vacuum (1 fs, flexible) the farm runs 64 replicas in the batched engine, and GROMACS one process on each core.
    """
    executable = gromacs_path()
    if executable is None:
        return None
    vacuum = load_system(SystemConfig(name=VACUUM))
    cores = sorted(os.sched_getaffinity(0))[:2]
    bare = []
    for number in range(len(cores)):
        own = folder / f"gromacs-{number}"
        own.mkdir()
        own_seed = derive_seed(seed, "farm engines", number)
        bare.append(Gromacs(executable, vacuum, vacuum.positions_nm, own, lengths.vacuum_steps, own_seed))

    def gromacs_alone() -> float:
        def one(core: int, gromacs: Gromacs) -> None:
            with pinned(core):
                gromacs.run()

        watch = Stopwatch()
        with ThreadPoolExecutor(len(cores)) as threads:
            list(threads.map(one, cores, bare))
        return len(cores) * lengths.vacuum_steps * 1e-6 / watch.wall_s * 86_400

    def farm(name: str, system: str, production_ps: float, **settings: Any) -> float:
        values = {"starts": str(starts), "production_ps": production_ps, "equilibration_ps": 0, "minimise_iterations": 100}
        seen = run_farm(name, values | settings, system)
        return seen["ns"] / seen["wall_s"] * 86_400

    box = {"solvent": "tip3p", "n_replicas": 2, "timestep_fs": 2, "save_every_ps": 0.2}
    free = {"n_replicas": 64, "timestep_fs": 1, "constraints": "none", "save_every_ps": 1, "platform": "batched"}
    methods: dict[str, Callable[[int], float]] = {
        "vacuum farm": lambda n: farm(f"vacuum-{n}", VACUUM, lengths.vacuum_ps, **free),
        "vacuum gromacs": lambda _: gromacs_alone(),
        "water openmm": lambda n: farm(f"openmm-{n}", "alanine-dipeptide", lengths.openmm_ps, **box),
        "water gromacs": lambda n: farm(f"gromacs-farm-{n}", "alanine-dipeptide", lengths.gromacs_ps, **box, engine="gromacs"),
    }
    speeds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(lengths.n_rounds):
        for name in methods if number % 2 == 0 else list(reversed(methods)):
            speeds[name].append(methods[name](number))
    ratios = {
        "vacuum": np.array(speeds["vacuum farm"]) / speeds["vacuum gromacs"],
        "water": np.array(speeds["water gromacs"]) / speeds["water openmm"],
    }
    return {
        "gromacs": gromacs_version(executable),
        "cores": len(cores),
        "ns_per_day": {name: spread(values) for name, values in speeds.items()},
        "vacuum_farm_over_gromacs": spread(ratios["vacuum"]),
        "water_gromacs_over_openmm": spread(ratios["water"]),
    }
