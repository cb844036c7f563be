"""Which replicas there are, who runs them, and the manifest of what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_molgen.errors import InputError
from hpc_molgen.farm.replica import Replica, ReplicaRecord, run_batch, run_replica
from hpc_molgen.files import plain_values, write_atomically
from hpc_molgen.structures import read_manifest

if TYPE_CHECKING:
    from hpc_molgen.run import Run

__all__ = ["plan_replicas", "run_replicas", "write_manifest"]


def plan_replicas(run: Run) -> list[tuple[Replica, ...]]:
    """`farm.n_replicas` replicas, their structures spread evenly over the manifest, in parts that one worker runs at once.

    The plan depends on files, configuration and the machine's engine alone, so every number of ranks runs the same replicas.
    """
    config = run.config.farm
    rows = read_manifest(run.path("correct", "pdb"), run.system)
    n = min(config.n_replicas, len(rows))
    platform, size = run.workers.from_root(lambda: _engine(run, n))  # one plan, whatever processors the ranks run on
    replicas = [
        Replica(
            index=index,
            system=run.system,
            config=config,
            seed=run.config.seed,
            platform=platform,
            pdb=run.path("correct", "pdb", str(rows[index * len(rows) // n]["file"])),
            path=run.path("farm", f"replica-{index:05d}.h5"),
        )
        for index in range(n)
    ]
    return [tuple(replicas[start : start + size]) for start in range(0, n, size)]


def _engine(run: Run, n: int) -> tuple[str, int]:
    """Return who runs the replicas, and how many of them at once."""
    from hpc_molgen.dynamics.choice import BATCHED, choose_dynamics, copies_per_batch

    config = run.config.farm
    if config.solvent != "same":  # a solvated box exists only within its replica, which measures itself
        return config.platform, 1
    platform = choose_dynamics(run.system, config.platform, n)
    return platform, copies_per_batch(run.system) if platform == BATCHED else 1


def run_replicas(replicas: tuple[Replica, ...]) -> list[ReplicaRecord]:
    """Run the replicas of one part: at once in the batched engine, one by one on an OpenMM platform."""
    if replicas[0].platform == "batched":
        return run_batch(replicas)
    return [run_replica(replica) for replica in replicas]


def write_manifest(run: Run, records: list[ReplicaRecord]) -> dict[str, Any]:
    """Write manifest.jsonl and return the figures of the stage.

    Raises
    ------
    InputError
        When not one replica succeeded.
    """
    path: Path = run.path("farm", "manifest.jsonl")
    write_atomically(path, "".join(json.dumps(plain_values(record.as_dict())) + "\n" for record in records).encode())
    finished = [record for record in records if record.state == "done"]
    if not finished:
        raise InputError(f"all {len(records)} replicas failed; the first error: {records[0].error}")
    cpu_s = sum(record.cpu_s for record in finished)
    simulated_ns = sum(record.simulated_ns for record in finished)
    return {
        "n_replicas": len(records),
        "n_failed": len(records) - len(finished),
        "simulated_ns": simulated_ns,
        "cpu_s": cpu_s,
        "ns_per_day_per_core": simulated_ns / cpu_s * 86400,
        "platform": finished[0].platform,
    }
