"""Suite `farm`: what scheduling and writing cost, how speed grows with the ranks, and how many replicas the queue can handle.

Bare loops are compared with farms on two ranks in all sizes. Strong and weak scaling goes to two ranks, in the size cluster to
every core of the machine, or of all nodes of the Slurm job where mpiexec reaches them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.config import FarmConfig, RunConfig, SystemConfig, dump_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.efficiency.suites import farm_tables as tables
from hpc_molgen.efficiency.suites.farm_engines import Lengths, side_by_side
from hpc_molgen.efficiency.suites.farm_scaling import (
    Case,
    farm_on_ranks,
    plan_scaling,
    reachable_cores,
    run_command,
    scaling_results,
)
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.rounds import pinned
from hpc_molgen.farm.job import Job
from hpc_molgen.farm.plan import Task
from hpc_molgen.farm.protocol import make_protocol
from hpc_molgen.farm.replica import run_task
from hpc_molgen.mpi_ranks import mpiexec
from hpc_molgen.seeding import derive_seed
from hpc_molgen.structures import pdb_text, read_pdb_positions
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import set_torsion, torsion_by_name
from hpc_molgen.workers import Stopwatch, available_cores, pinned_processes, receive

PATIENCE_S = 900.0


@dataclass(frozen=True)
class Effort:
    """How much is measured: replicas of how many ps, rounds, pairs of one replica each, simulated replicas, engines.

    Attributes
    ----------
    n_replicas : int
        On two ranks; on one rank half of them.
    all_cores : bool
        Whether scaling goes to all cores that there are, instead of two.
    """

    n_replicas: int
    production_ps: float
    n_rounds: int
    n_pairs: int
    n_simulated: int
    lengths: Lengths
    all_cores: bool = False


SIZES = {
    "laptop": Effort(24, 80.0, 3, 12, 100_000, Lengths(2.0, 6.0, 750.0, 1_000_000, 3)),
    "smoke": Effort(4, 4.0, 1, 6, 2_000, Lengths(0.04, 0.04, 2.0, 2_000, 1)),
    "cluster": Effort(48, 100.0, 4, 48, 1_000_000, Lengths(8.0, 24.0, 3000.0, 4_000_000, 5), all_cores=True),
}
SIMULATED_RANKS = 8


def farm(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run farms beside bare loops, and the queue alone; return this part of the record."""
    effort, costs, system = SIZES[size], Costs(), load_system(SystemConfig())
    with tempfile.TemporaryDirectory(dir=out) as name:
        folder = Path(name)
        starts = write_starts(folder, system, effort.n_replicas)
        n_cores, note = reachable_cores() if effort.all_cores else (min(2, available_cores()), "")
        scaling = plan_scaling(n_cores, effort.n_replicas // 2)
        with costs.stage("farms on one rank, on two and on more, and bare loops of OpenMM on two processes"):
            rounds = _rounds(folder, starts, system, scaling.cases, effort, seed)
        with costs.stage("replicas by the farm's worker and by a bare loop, in turn"):
            pairs = _pairs(folder, starts, system, effort, seed)
        with costs.stage(f"{effort.n_simulated:,} simulated replicas on {SIMULATED_RANKS} ranks"):
            simulated = _simulate(folder / "simulated", effort.n_simulated)
        with costs.stage("engines of the farm beside GROMACS"):
            engines = side_by_side(
                folder, starts, effort.lengths, seed, lambda *arguments: _farm_of(folder, seed, *arguments)
            )  # fmt: skip
    results = tables.results_of(rounds, pairs, simulated, engines, scaling_results(rounds, scaling))
    record = tables.record_of(results, effort.n_replicas, size)
    return {**record, "notes": [*record["notes"], *([note] if note else [])], "costs": costs.stages}


def _rounds(
    folder: Path, starts: Path, system: MolecularSystem, cases: dict[str, Case], effort: Effort, seed: int
) -> list[dict[str, dict[str, float]]]:
    """Run the bare loops and every farm once a round, in turn forwards and backwards."""
    cases = {"two": Case("two", 2, effort.n_replicas), **cases}
    most = max(case.n_replicas for case in cases.values())
    many = starts
    if most > effort.n_replicas:
        (folder / "many").mkdir()
        many = write_starts(folder / "many", system, most)

    def run(what: str, number: int) -> dict[str, float]:
        if what == "bare":
            return _bare(starts, system, _config(starts, effort, effort.n_replicas, seed).farm, seed)
        case = cases[what]
        config = _config(starts if what in ("one", "two") else many, effort, case.n_replicas, seed)
        return farm_on_ranks(folder / f"{what}-{number}", config, case.n_ranks)

    rounds = []
    order = ["two", "bare", *(key for key in cases if key != "two")]
    for number in range(effort.n_rounds):
        rounds.append({what: run(what, number) for what in (order if number % 2 == 0 else order[::-1])})
    return rounds


def write_starts(folder: Path, system: MolecularSystem, n: int) -> Path:
    """Write PDB files of conformations that differ in psi into FOLDER/starts; return that folder."""
    starts = folder / "starts"
    starts.mkdir()
    psi = torsion_by_name(system.topology, "psi")
    for index in range(n):
        positions = set_torsion(system.topology, system.positions_nm, psi, 2 * np.pi * index / n)
        (starts / f"start-{index:03d}.pdb").write_text(pdb_text(system.topology, positions, []))
    return starts


def _config(starts: Path, effort: Effort, n: int, seed: int) -> RunConfig:
    settings = {"starts": str(starts), "n_replicas": n, "platform": "Reference", "production_ps": effort.production_ps}
    return RunConfig.model_validate({"name": "farm", "seed": seed, "farm": settings})


def _farm_of(folder: Path, seed: int, name: str, settings: dict[str, Any], system: str) -> dict[str, float]:
    """Run a farm of these settings on two processes; return wall seconds of its loop and simulated ns."""
    values = {"name": name, "seed": seed, "system": {"name": system}, "farm": settings}
    path = folder / f"{name}.yaml"
    path.write_text(dump_config(RunConfig.model_validate(values)))
    run_command([sys.executable, "-m", "hpc_molgen", "farm", str(path), "--out", str(folder / name)])
    details = json.loads((folder / name / "farm" / "done.json").read_text())["details"]
    return {"wall_s": details["loop_s"], "ns": details["simulated_ns"]}


def _bare(starts: Path, system: MolecularSystem, config: FarmConfig, seed: int) -> dict[str, float]:
    names = sorted(path.name for path in starts.iterdir())
    arguments = [(system, config, [str(starts / name) for name in names[number::2]], seed) for number in range(2)]
    with pinned_processes(_serve, arguments) as connections:
        for connection in connections:
            receive(connection, PATIENCE_S)
        watch = Stopwatch()
        for connection in connections:
            connection.send("go")
        cpu_s = [receive(connection, PATIENCE_S) for connection in connections]
        protocol = make_protocol(config, system.temperature_kelvin, 10_000)
        return {"wall_s": watch.wall_s, "cpu_s": sum(cpu_s), "ns": protocol.simulated_ns * len(names)}


def _serve(
    connection: Connection, _barrier: Any, core: int, system: MolecularSystem, config: FarmConfig, pdbs: list[str], seed: int
) -> None:
    """Run replicas one after the other by OpenMM alone: the same steps and the same frames, written nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.sched_setaffinity(0, {core})
    Engine(system, "Reference").step(10)
    connection.send("ready")
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        watch = Stopwatch()
        for number, pdb in enumerate(pdbs):
            _loop(system, config, pdb, derive_seed(seed, "bare", number))
        connection.send(watch.cpu_s)


def _loop(system: MolecularSystem, config: FarmConfig, pdb: str, seed: int) -> None:
    """Run one replica by OpenMM alone."""
    protocol = make_protocol(config, system.temperature_kelvin, 10_000)
    engine = Engine(
        system, "Reference", seed, timestep_fs=config.timestep_fs, friction_per_ps=config.friction_per_ps,
        constraints=config.constraints,
    )  # fmt: skip
    engine.set_positions(read_pdb_positions(Path(pdb), system))
    engine.minimise(config.minimise_iterations)
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    engine.step(protocol.n_steps - protocol.n_frames * protocol.steps_per_frame)
    for _ in engine.simulate(protocol.n_frames, protocol.steps_per_frame):
        pass


def _pairs(folder: Path, starts: Path, system: MolecularSystem, effort: Effort, seed: int) -> dict[str, Any]:
    """Return wall and CPU seconds of the farm's worker and of a bare loop, replica by replica in turn on one core."""
    config, names = _config(starts, effort, effort.n_replicas, seed).farm, sorted(path.name for path in starts.iterdir())
    job = Job(system, config, seed, "Reference", starts, folder / "pairs")
    job.folder.mkdir()
    seen: dict[str, dict[str, list[float]]] = {who: {"wall_s": [], "cpu_s": []} for who in ("farm", "bare")}
    with pinned(min(os.sched_getaffinity(0))):
        for number in range(-1, effort.n_pairs):  # the first warms up
            name = names[number % len(names)]
            for who in ("farm", "bare") if number % 2 else ("bare", "farm"):
                watch = Stopwatch()
                if who == "farm":
                    run_task(Task(number + 1, (number + 1,), (name,), (0.0,)), job, lambda _: False)
                else:
                    _loop(system, config, str(starts / name), derive_seed(seed, "bare", number))
                spent = {"wall_s": watch.wall_s, "cpu_s": watch.cpu_s}
                if number >= 0:
                    for kind, seconds in spent.items():
                        seen[who][kind].append(seconds)
    return seen


def _simulate(folder: Path, n: int) -> dict[str, Any]:
    folder.mkdir()
    module = "hpc_molgen.efficiency.suites.farm_simulated"
    run_command([*mpiexec(SIMULATED_RANKS), sys.executable, "-m", module, str(n), str(folder)], SIMULATED_RANKS)
    seen: dict[str, Any] = json.loads((folder / "simulated.json").read_text())
    return seen | {"cores": min(SIMULATED_RANKS, len(os.sched_getaffinity(0)))}
