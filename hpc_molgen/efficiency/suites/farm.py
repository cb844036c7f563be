"""Suite `farm`: what scheduling and writing cost, what a second rank brings, and how many replicas the queue can handle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.config import FarmConfig, RunConfig, SystemConfig, dump_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.efficiency.suites.farm_engines import Lengths, side_by_side
from hpc_molgen.efficiency.suites.record import Costs, spread
from hpc_molgen.efficiency.suites.rounds import pinned, target, target_sentence
from hpc_molgen.errors import EnvironmentProblem
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
    """How much is measured: replicas of how many ps, rounds, pairs of one replica each, simulated replicas, engines."""

    n_replicas: int
    production_ps: float
    n_rounds: int
    n_pairs: int
    n_simulated: int
    lengths: Lengths


SIZES = {
    "laptop": Effort(24, 100.0, 4, 24, 100_000, Lengths(4.0, 12.0, 1500.0, 2_000_000, 3)),
    "smoke": Effort(4, 4.0, 1, 2, 2_000, Lengths(0.04, 0.04, 2.0, 2_000, 1)),
}
SIMULATED_RANKS = 8


def farm(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run farms beside bare loops, and the queue alone; return this part of the record."""
    effort, costs, system = SIZES[size], Costs(), load_system(SystemConfig())
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory(dir=out) as name:
        folder = Path(name)
        starts = write_starts(folder, system, effort.n_replicas)
        with costs.stage("farms on two ranks and on one, and bare loops of OpenMM (CPU seconds of this process)"):
            for number in range(effort.n_rounds):
                order = ["two", "bare", "one"] if number % 2 == 0 else ["one", "bare", "two"]
                rounds.append({what: _run(what, folder / f"{what}-{number}", starts, system, effort, seed) for what in order})
        with costs.stage("replicas by the farm's worker and by a bare loop, in turn"):
            pairs = _pairs(folder, starts, system, effort, seed)
        with costs.stage(f"{effort.n_simulated:,} simulated replicas on {SIMULATED_RANKS} ranks (CPU seconds of this process)"):
            simulated = _simulate(folder / "simulated", effort.n_simulated)
        with costs.stage("engines of the farm beside GROMACS (CPU seconds of this process)"):
            engines = side_by_side(
                folder, starts, effort.lengths, seed, lambda *arguments: _farm_of(folder, seed, *arguments)
            )  # fmt: skip
    return _record(rounds, pairs, simulated, engines, effort, costs, size)


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


def _run(what: str, folder: Path, starts: Path, system: MolecularSystem, effort: Effort, seed: int) -> dict[str, float]:
    """Return wall and CPU seconds of the loop, and the simulated ns."""
    folder.mkdir()
    if what == "bare":
        return _bare(starts, system, _config(starts, effort, effort.n_replicas, seed).farm, seed)
    n_ranks = 2 if what == "two" else 1
    config = _config(starts, effort, effort.n_replicas * n_ranks // 2, seed)  # one rank gets half of the work
    (folder / "config.yaml").write_text(dump_config(config))
    line = [*mpiexec(n_ranks), sys.executable, "-m", "hpc_molgen", "farm", str(folder / "config.yaml")]
    _command([*line, "--out", str(folder / "run")], n_ranks)
    details = json.loads((folder / "run" / "farm" / "done.json").read_text())["details"]
    return {"wall_s": details["loop_s"], "cpu_s": details["loop_cpu_s"], "ns": details["simulated_ns"]}


def _farm_of(folder: Path, seed: int, name: str, settings: dict[str, Any], system: str) -> dict[str, float]:
    """Run a farm of these settings on two processes; return wall seconds of its loop and simulated ns."""
    values = {"name": name, "seed": seed, "system": {"name": system}, "farm": settings}
    path = folder / f"{name}.yaml"
    path.write_text(dump_config(RunConfig.model_validate(values)))
    _command([sys.executable, "-m", "hpc_molgen", "farm", str(path), "--out", str(folder / name)])
    details = json.loads((folder / name / "farm" / "done.json").read_text())["details"]
    return {"wall_s": details["loop_s"], "ns": details["simulated_ns"]}


def _command(line: list[str], n_cores: int = 2) -> None:
    """Run a program on the first cores: a single rank that has more of them would start processes there."""
    cores = set(sorted(os.sched_getaffinity(0))[:n_cores])
    env = os.environ | {"OMP_NUM_THREADS": "1", "HPC_MOLGEN_LOG": "WARNING"}
    ended = subprocess.run(
        line, capture_output=True, text=True, timeout=PATIENCE_S, check=False, env=env,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    if ended.returncode:
        raise EnvironmentProblem(f"{' '.join(line)} ended with {ended.returncode}: {ended.stderr[-500:]}")


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
    """Return what the farm's worker takes more than a bare loop, in %, replica by replica in turn on one core."""
    config, names = _config(starts, effort, effort.n_replicas, seed).farm, sorted(path.name for path in starts.iterdir())
    job = Job(system, config, seed, "Reference", starts, folder / "pairs")
    job.folder.mkdir()
    over: dict[str, list[float]] = {"wall_s": [], "cpu_s": []}
    with pinned(min(os.sched_getaffinity(0))):
        for number in range(-1, effort.n_pairs):  # the first warms up
            name, spent = names[number % len(names)], {}
            for who in ("farm", "bare") if number % 2 else ("bare", "farm"):
                watch = Stopwatch()
                if who == "farm":
                    run_task(Task(number + 1, (number + 1,), (name,), (0.0,)), job, lambda _: False)
                else:
                    _loop(system, config, str(starts / name), derive_seed(seed, "bare", number))
                spent[who] = {"wall_s": watch.wall_s, "cpu_s": watch.cpu_s}
            if number >= 0:
                for kind, values in over.items():
                    values.append(100 * (spent["farm"][kind] / spent["bare"][kind] - 1))
    return {kind: spread(values) | {"median": float(np.median(values))} for kind, values in over.items()}


def _simulate(folder: Path, n: int) -> dict[str, float]:
    folder.mkdir()
    module = "hpc_molgen.efficiency.suites.farm_simulated"
    _command([*mpiexec(SIMULATED_RANKS), sys.executable, "-m", module, str(n), str(folder)])
    seen: dict[str, float] = json.loads((folder / "simulated.json").read_text())
    return seen


def _record(
    rounds: list[dict[str, dict[str, float]]],
    pairs: dict[str, Any],
    simulated: dict[str, float],
    engines: dict[str, Any] | None,
    effort: Effort,
    costs: Costs,
    size: str,
) -> dict[str, Any]:
    overhead = {kind: spread(100 * (r["two"][kind] / r["bare"][kind] - 1) for r in rounds) for kind in ("wall_s", "cpu_s")}
    rate = {what: spread(r[what]["ns"] / r[what]["wall_s"] * 86400 for r in rounds) for what in ("one", "two", "bare")}
    gain = spread(r["two"]["ns"] / r["two"]["wall_s"] / (r["one"]["ns"] / r["one"]["wall_s"]) for r in rounds)
    targets = [
        target(
            "overhead over bare loops on two cores, wall (%)", "<= 3", _text(overhead["wall_s"]), overhead["wall_s"]["mean"]
        ),
        target("overhead over bare loops on two cores, CPU (%)", "<= 3", _text(overhead["cpu_s"]), overhead["cpu_s"]["mean"]),
        target(
            "the worker over a bare loop, replica by replica, CPU (median, %)",
            "<= 3", _median(pairs["cpu_s"]), pairs["cpu_s"]["median"],
        ),
        target("two ranks over one, ns per wall second", ">= 1.9", _text(gain), gain["mean"]),
        target("simulated replicas a second through the ledger", ">= 2000", f"{simulated['per_s']:,.0f}", simulated["per_s"]),
        target("memory of rank 0 (GiB)", "<= 1", f"{simulated['root_gib']:.2f}", simulated["root_gib"]),
    ]  # fmt: skip
    if engines:
        ahead = engines["vacuum_farm_over_gromacs"]
        targets.append(target("farm over GROMACS, alanine dipeptide in vacuum, ns/day", ">= 1", _text(ahead), ahead["mean"]))
    once = "once" if simulated["distinct"] == simulated["records"] == effort.n_simulated else "NOT ONCE"
    length_s = float(np.mean([one_round["two"]["wall_s"] for one_round in rounds]))
    answer = [
        target_sentence(targets, size),
        f"A farm of {effort.n_replicas} replicas on two ranks, {length_s:.0f} s long, takes {_text(overhead['wall_s'])} % more "
        f"wall time and {_text(overhead['cpu_s'])} % more CPU time than the same dynamics in bare loops of OpenMM on two "
        f"cores. Two ranks make {_text(gain)} times what one makes.",
        f"Replica by replica, in turn on one core: {_median(pairs['wall_s'])} % more wall time, {_median(pairs['cpu_s'])} % "
        f"more CPU time (median of {effort.n_pairs} pairs ± its standard error).",
        f"{effort.n_simulated:,} replicas that do nothing pass the queue and the ledger of {SIMULATED_RANKS} ranks on "
        f"{available_cores()} cores at {simulated['per_s']:,.0f} a second; each is in the ledger {once}.",
        _beside_gromacs(engines),
        "Ranks ask once in some seconds, so one dispatcher serves thousands of them: no hierarchy of dispatchers is built.",
    ]
    names = {"two": "farm, two MPI ranks", "one": "farm, one rank", "bare": "bare OpenMM loops, two processes"}
    rows = [
        [
            name,
            _text(spread(r[what]["wall_s"] for r in rounds)),
            _text(spread(r[what]["cpu_s"] for r in rounds)),
            _text(rate[what]),
        ]
        for what, name in names.items()
    ]
    return {
        "question": "What do the farm's scheduling and writing cost, what does a second rank bring, what can its queue take, "
        "how does it stand beside GROMACS?",
        "answer": answer,
        "targets": targets,
        "tables": [{"caption": "Alanine dipeptide, OpenMM Reference", "rows": rows,
                    "columns": ["what", "loop (s)", "CPU of the loop (s)", "ns/day, all"]}, *_engine_table(engines)],
        "results": {"rounds": rounds, "overhead_percent": overhead, "pairs_percent": pairs, "gain": gain, "queue": simulated,
                    "engines": engines},
        "costs": costs.stages,
        "notes": [
            "Loops alone are timed: imports, process start and the plan are outside in all three. Farms write trajectories "
            "with observables, states and the ledger; bare loops compute the same frames and write nothing. ± is the standard "
            "deviation over rounds, in which the three run one after the other.",
            "One rank gets half of the replicas. The machine's clock and neighbours change within a round: the ratios in CPU "
            "seconds see less of that.",
            "Nothing ran on a GPU.",
        ],
    }  # fmt: skip


def _beside_gromacs(engines: dict[str, Any] | None) -> str:
    if engines is None:
        return "GROMACS was not found (no executable gmx), so nothing was compared with it."
    vacuum, water = engines["vacuum_farm_over_gromacs"], engines["water_gromacs_over_openmm"]
    return (
        f"Beside {engines['gromacs']} on the same {engines['cores']} cores: in vacuum the farm makes {_text(vacuum)} times the "
        f"ns a day of GROMACS; in TIP3P the farm with engine gromacs makes {_text(water)} times those of OpenMM's CPU platform."
    )


def _engine_table(engines: dict[str, Any] | None) -> list[dict[str, Any]]:
    names = {
        "vacuum farm": "vacuum, 1 fs, flexible: the farm, 64 replicas in the batched engine",
        "vacuum gromacs": "vacuum, 1 fs, flexible: GROMACS alone, one process on each core",
        "water openmm": "TIP3P, 3 nm, 2 fs: the farm, OpenMM's CPU platform",
        "water gromacs": "TIP3P, 3 nm, 2 fs: the farm, engine gromacs",
    }
    if engines is None:
        return []
    rows = [[names[name], _text(values)] for name, values in engines["ns_per_day"].items()]
    caption = f"Alanine dipeptide on {engines['cores']} cores, all replicas together, minimisation and start-up included"
    return [{"caption": caption, "columns": ["what", "ns/day, all"], "rows": rows}]


def _median(values: dict[str, Any]) -> str:
    error = 1.25 * values["sd"] / values["n"] ** 0.5  # of the median of normal values
    return f"{values['median']:.2g} ± {error:.2g}"


def _text(values: dict[str, Any]) -> str:
    return f"{values['mean']:.3g} ± {values['sd']:.2g}"
