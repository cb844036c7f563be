"""Farms on more and more MPI ranks: how they are launched, and strong and weak scaling of the suite `farm`."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_molgen.config import RunConfig, dump_config
from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.mpi_ranks import mpiexec
from hpc_molgen.workers import available_cores

log = logging.getLogger(__name__)
PATIENCE_S, PROBE_S = 7200.0, 300.0
MOST_STRONG = 256  # replicas of strong scaling on many ranks, all of which one rank has to run too
Rounds = Sequence[dict[str, dict[str, float]]]


def run_command(line: list[str], n_cores: int = 2, n_ranks: int = 1, patience_s: float = PATIENCE_S) -> str:
    """Run a program on the first cores of this machine, or on all nodes of the job if they are too few; return what it says.

    A single rank that had more cores than it is given here would start processes on them.

    Raises
    ------
    EnvironmentProblem
        When it fails or takes hours; the message ends with what it said.
    """
    cores, env = set(sorted(os.sched_getaffinity(0))[:n_cores]), launch_environment(n_ranks)
    try:
        ended = subprocess.run(
            line, capture_output=True, text=True, timeout=patience_s, check=False, env=env,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(f"{' '.join(line)} did not end within {patience_s:.0f} s") from error
    if ended.returncode:
        raise EnvironmentProblem(f"{' '.join(line)} ended with {ended.returncode}: {ended.stderr[-500:]}")
    return ended.stdout


def launch_environment(n_ranks: int) -> dict[str, str]:
    """Environment in which mpiexec starts so many ranks: on this machine where they have room, else on all nodes of the job.

    On this machine Slurm's variables are left out, so that the ranks are forked and keep the cores of who starts them. On
    several nodes mpiexec, which is part of a step on one of them, is told of all CPUs of the job instead of that step's tasks,
    and the step that it makes for its ranks may overlap with its own, for which it would wait otherwise.
    """
    own = os.environ | {"OMP_NUM_THREADS": "1", "HPC_MOLGEN_LOG": "WARNING"}
    nodes = allocated_cores()
    if n_ranks <= available_cores() or len(nodes) == 1:
        foreign = ("PMI", "SLURM_", "OMPI_", "HPC_MOLGEN_RANKS")
        return {name: value for name, value in own.items() if not name.startswith(foreign)}
    return own | {
        "SLURM_OVERLAP": "1", "SLURM_TASKS_PER_NODE": own["SLURM_JOB_CPUS_PER_NODE"], "SLURM_NNODES": str(len(nodes)),
        "SLURM_JOB_NUM_NODES": str(len(nodes)), "SLURM_NTASKS": str(n_ranks), "SLURM_NPROCS": str(n_ranks),
    }  # fmt: skip


def allocated_cores() -> list[int]:
    """Cores of each node of the Slurm job; elsewhere, and where it has one node, those of this machine that may be used."""
    told = os.environ.get("SLURM_JOB_CPUS_PER_NODE", "")  # such as 16(x2),8
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", told)
    nodes = [int(n) for n, times in parts for _ in range(int(times or 1))]
    return nodes if len(nodes) > 1 else [available_cores()]


def reachable_cores() -> tuple[int, str]:
    """Return the number of ranks that a launcher can place here, and a note if other nodes of the job are out of its reach."""
    own, all_of_them = available_cores(), sum(allocated_cores())
    if len(allocated_cores()) == 1:
        return own, ""
    words = "import os, socket; print(os.environ.get('SLURMD_NODENAME') or socket.gethostname())"
    try:
        line = [*mpiexec(all_of_them), sys.executable, "-c", words]
        nodes = set(run_command(line, own, all_of_them, PROBE_S).split())
    except EnvironmentProblem as problem:
        log.warning("mpiexec does not reach the other nodes of this job: %s", problem)
        nodes = set()
    if len(nodes) > 1:
        return all_of_them, ""
    return own, f"mpiexec reached none of the job's nodes but {socket.gethostname()}: farms ran on its {own} cores alone."


def farm_on_ranks(folder: Path, config: RunConfig, n_ranks: int) -> dict[str, float]:
    """Run a farm on MPI ranks in a new folder; return wall and CPU seconds of its loop, and the simulated ns."""
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    line = [*mpiexec(n_ranks), sys.executable, "-m", "hpc_molgen", "farm", str(folder / "config.yaml")]
    run_command([*line, "--out", str(folder / "run")], n_ranks, n_ranks)
    details = json.loads((folder / "run" / "farm" / "done.json").read_text())["details"]
    return {"wall_s": details["loop_s"], "cpu_s": details["loop_cpu_s"], "ns": details["simulated_ns"]}


@dataclass(frozen=True)
class Case:
    """A farm of a round: its key there, its ranks and its replicas."""

    key: str
    n_ranks: int
    n_replicas: int


@dataclass(frozen=True)
class Scaling:
    """Farms of strong and of weak scaling, by number of ranks.

    Attributes
    ----------
    strong, weak : tuple of Case
        The first of each is of one rank. Strong: the same replicas for all; weak: as many for each rank.
    """

    strong: tuple[Case, ...]
    weak: tuple[Case, ...]

    @property
    def cases(self) -> dict[str, Case]:
        """Every farm once."""
        return {case.key: case for case in (*self.weak, *self.strong)}

    @property
    def n_replicas(self) -> int:
        """Replicas of the largest farm."""
        return max(case.n_replicas for case in self.cases.values())


def plan_scaling(n_cores: int, per_rank: int) -> Scaling:
    """Farms on 1, 2, 4, ... ranks, and on as many as there are cores.

    One rank and two with `per_rank` replicas each are called "one" and "two". On two cores those of one rank also serve strong
    scaling; on more it has four replicas for each rank of the largest farm, at most `MOST_STRONG`.
    """
    ranks = sorted({*(1 << power for power in range(n_cores.bit_length())), n_cores})
    weak = [Case({1: "one", 2: "two"}.get(n, f"weak {n}"), n, n * per_rank) for n in ranks]
    total = per_rank if ranks[-1] <= 2 else max(per_rank, min(4 * ranks[-1], MOST_STRONG))
    strong = [Case(f"strong {n}", n, total) for n in ranks if n <= total]
    return Scaling(tuple([weak[0], *strong[1:]] if total == per_rank else strong), tuple(weak))


def scaling_results(rounds: Rounds, scaling: Scaling) -> dict[str, Any]:
    """Speeds of all replicas together, and what each rank makes of what one rank alone makes in the same round."""
    found = {}
    for kind, cases in (("strong", scaling.strong), ("weak", scaling.weak)):
        speeds = {case.n_ranks: [r[case.key]["ns"] / r[case.key]["wall_s"] * 86_400 for r in rounds] for case in cases}
        found[kind] = {
            "ranks": [case.n_ranks for case in cases],
            "replicas": [case.n_replicas for case in cases],
            "ns_per_day": [spread(own) for own in speeds.values()],
            "efficiency": [
                spread(speed / one / n for speed, one in zip(own, speeds[1], strict=True)) for n, own in speeds.items()
            ],
        }
    return found


def scaling_table(found: dict[str, Any]) -> dict[str, Any]:
    """One row for each kind of scaling and number of ranks."""
    rows = [
        [kind, *row]
        for kind, part in found.items()
        for row in zip(part["ranks"], part["replicas"], part["ns_per_day"], part["efficiency"], strict=True)
    ]
    columns = ["scaling", "ranks", "replicas", "ns/day, all", "efficiency"]
    return {
        "caption": "Strong scaling (the same replicas) and weak scaling (as many for each rank)",
        "columns": columns,
        "rows": rows,
    }


def scaling_sentence(found: dict[str, Any]) -> str:
    """Efficiencies on the largest numbers of ranks."""
    strong, weak = found["strong"], found["weak"]
    if strong["ranks"][-1] == 1:
        return "There was one core only: nothing is said of scaling."
    parts = [
        f"{kind} scaling ({part['replicas'][-1]:,} replicas {words}) to {part['ranks'][-1]} ranks has an efficiency of "
        f"{part['efficiency'][-1]['mean']:.3g} ± {part['efficiency'][-1]['sd']:.2g}"
        for kind, part, words in (("Strong", strong, "on one rank as on all"), ("weak", weak, "in all"))
    ]
    return "; ".join(parts) + "."
