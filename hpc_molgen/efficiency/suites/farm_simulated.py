"""Replicas that do nothing, on MPI ranks: what the farm's queue and ledger can do. Started by the suite `farm`.

mpiexec -n 8 python -m hpc_molgen.efficiency.suites.farm_simulated N_REPLICAS FOLDER
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

from hpc_molgen.farm import ledger
from hpc_molgen.farm.dispatcher import Dispatcher
from hpc_molgen.farm.ledger import Ledger, Standing
from hpc_molgen.farm.plan import Plan, Task
from hpc_molgen.farm.scheduler import Work, n_workers, run_farm
from hpc_molgen.files import write_json
from hpc_molgen.workers import Workers


def run_nothing(task: Task, _job: None, _report: Any) -> list[dict[str, Any]]:
    """Return the records of a task whose replicas have taken no time."""
    chunk = {"event": "chunk", "pack": task.pack, "attempt": task.attempt, "replicas": list(task.replicas), "share": 1.0,
             "gained": 1.0, "busy_s": 1e-5, "frames": 1, "ns": 0.0}  # fmt: skip
    done = [
        {"event": "done", "state": "done", "replica": replica, "pdb": name, "attempts": 1, "frames": 1, "bytes": 0}
        for replica, name in zip(task.replicas, task.names, strict=True)
    ]
    return [chunk, *done, {"event": "ended", "pack": task.pack, "attempt": task.attempt}]


def main(n: int, folder: Path) -> None:
    """Run `n` of them and write what was seen into FOLDER/simulated.json."""
    workers = Workers.detect()
    found, dispatcher = Standing(), None
    if workers.is_root:
        plan = Plan("Reference", 1, folder, [f"structure-{index:05d}.pdb" for index in range(n)], [0.0] * n)
        dispatcher = Dispatcher(plan.tasks(found), Ledger(folder / "ledger-00000.jsonl"), found, n_workers(workers))
    workers.barrier()
    started = time.perf_counter()
    run_farm(workers, n, dispatcher, Work(run_nothing, None), lambda: None)
    if dispatcher is not None:
        dispatcher.ledger.close()
        wall_s = time.perf_counter() - started
        again = ledger.standing(folder)
        lines = sum(record["event"] == "done" for record in ledger.read(folder))
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seen = {"n": n, "ranks": workers.size, "wall_s": wall_s, "per_s": n / wall_s, "root_gib": peak_gib}
        write_json(folder / "simulated.json", seen | {"distinct": len(again.final), "records": lines})


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
