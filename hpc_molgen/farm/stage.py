"""The farm stage: plan, ledger, workers, and the manifest at the end."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_molgen import interrupts
from hpc_molgen.dynamics.engine import GPU_PLATFORMS, n_visible_gpus
from hpc_molgen.errors import EnvironmentProblem, InputError, Interrupted
from hpc_molgen.farm import ledger
from hpc_molgen.farm.dispatcher import Dispatcher
from hpc_molgen.farm.job import Job, replica_path
from hpc_molgen.farm.leases import Lease, Leases
from hpc_molgen.farm.ledger import Ledger, Standing
from hpc_molgen.farm.limits import time_left
from hpc_molgen.farm.plan import Plan, Task, make_plan, processes_per_gpu
from hpc_molgen.farm.replica import run_task
from hpc_molgen.farm.scheduler import Work, n_workers, run_farm
from hpc_molgen.files import write_json
from hpc_molgen.systems.observables import make_observables
from hpc_molgen.workers import ShareDone, Stopwatch, cpu_seconds

if TYPE_CHECKING:
    from hpc_molgen.progress import Progress
    from hpc_molgen.run import Run

log = logging.getLogger(__name__)
SHOW_EVERY_S = 2.0


def run_replicas(run: Run) -> dict[str, Any]:
    """Run every replica of a run's farm that is not finished, and return the figures of the stage.

    Raises
    ------
    Interrupted
        When a signal, or the end of the time, came first; the same again goes on.
    EnvironmentProblem
        When files could not be written.
    InputError
        When not one replica succeeded.
    ShareDone
        When this job was one of several that share the farm, and nothing is left that nobody works on.
    """
    config, workers = run.config.farm, run.workers
    if config.rounds > 1 and workers.share[1] > 1:
        raise InputError("jobs that share a farm (--share, an array) cannot run several rounds: set farm.rounds 1")
    loop = {"loop_s": 0.0, "loop_cpu_s": 0.0}
    for number in range(1, config.rounds + 1):
        plan = workers.from_root(lambda number=number: make_plan(run, number))  # type: ignore[misc]
        spent = _run_round(run, plan)
        loop = {name: loop[name] + spent[name] for name in loop}
    if workers.share[1] > 1:
        raise ShareDone
    return workers.from_root(lambda: _figures(run.path("farm"), plan)) | loop


def _run_round(run: Run, plan: Plan) -> dict[str, float]:
    """Run what is not finished of a plan; return wall seconds, and CPU seconds of all ranks."""
    workers = run.workers
    make_observables(run.config.farm.observables, run.system, run.system.positions_nm)  # a wrong name ends it here
    root = _Root(run, plan) if workers.is_root else None
    lease = workers.from_root(lambda: root.lease if root else None)
    job = Job(run.system, run.config.farm, run.config.seed, plan.platform, plan.starts, run.path("farm"), lease)
    with run.progress("farm", len(plan.names), "replicas") as progress:
        if root is not None:
            root.show(progress)
        dispatcher = root.dispatcher if root else None
        n_tasks = workers.from_root(lambda: root.n_tasks if root else 0)
        watch, cpu = Stopwatch(), cpu_seconds()
        work = Work(run_task, job, workers.from_root(lambda: _at_once(run, plan)))
        run_farm(workers, n_tasks, dispatcher, work, lambda: root.show(progress) if root else None)
        spent = {"loop_s": watch.wall_s, "loop_cpu_s": sum(workers.gather(cpu_seconds() - cpu))}
    reason, problem = workers.from_root(lambda: root.close() if root else ("", None))
    if problem is not None:
        raise problem
    if reason:
        raise Interrupted(f"the farm stopped ({reason}); the same command goes on where it was")
    return spent


def _at_once(run: Run, plan: Plan) -> int | None:
    """How many processes of one machine are of use: as many as its GPUs take, where they compute."""
    if plan.platform not in GPU_PLATFORMS or run.workers.comm is not None:  # MPI ranks are given by the launcher
        return None
    return n_visible_gpus() * processes_per_gpu(run, plan)


class _Root:
    """What the root of a farm job keeps: the ledger, the dispatcher, and leases where other jobs share the farm."""

    def __init__(self, run: Run, plan: Plan) -> None:
        self.folder, self.plan = run.path("farm"), plan
        number, of = run.workers.share
        for name in ("state", "boxes", "quarantine"):
            (self.folder / name).mkdir(exist_ok=True)
        self.ledger = Ledger(self.folder / f"ledger-{number:05d}.jsonl")
        self.found = ledger.standing(self.folder)
        lost = ledger.lost_files(self.found, lambda replica: replica_path(self.folder, replica))
        self.ledger.append(lost)
        for record in lost:
            self.found.add(record)
        self.leases = Leases(self.folder, plan, run.workers.share) if of > 1 else None
        self.lease = Lease(self.folder, self.leases.owner, self.leases.block_packs) if self.leases else None
        tasks = [] if self.leases else plan.tasks(self.found)
        self.n_tasks = plan.n_packs if self.leases else len(tasks)
        self.dispatcher = Dispatcher(
            tasks, self.ledger, self.found, n_workers(run.workers), time_left(run.config.farm.minutes),
            self._more if self.leases else lambda: (),
        )  # fmt: skip
        self._live = self.folder / ("live.json" if of == 1 else f"live-{number:05d}.json")
        self._shown = 0.0
        if of == 1:  # what jobs that shared this farm have left
            for path in self.folder.glob("live-*.json"):
                path.unlink(missing_ok=True)

    def _more(self) -> list[Task]:
        """Return the tasks of another block; none when nobody has left one."""
        assert self.leases is not None
        self.leases.settle(self._is_finished)
        while (block := self.leases.take()) is not None:
            for record in ledger.read(self.folder):  # another job may have begun it
                self.found.add(record)
            tasks = self.plan.tasks(self.found, self.leases.packs(block))
            if tasks:
                return tasks
            self.leases.settle(self._is_finished)
        return []

    def _is_finished(self, packs: Any) -> bool:
        return not self.plan.tasks(self.found, packs)

    def show(self, progress: Progress) -> None:
        """Write what `hpc-molgen status` shows."""
        if self.leases:
            self.leases.renew()
        if time.monotonic() - self._shown < SHOW_EVERY_S and self._shown:
            return
        self._shown = time.monotonic()
        seen = self.dispatcher.overview()
        progress.note = _note(seen)
        progress.set(len(self.found.final) + sum(self.found.share.values()))
        self._tell(seen)

    def _tell(self, seen: dict[str, Any]) -> None:
        with contextlib.suppress(EnvironmentProblem):  # a courtesy: the work itself reports a full disk
            write_json(self._live, seen | {"n_replicas": len(self.plan.names)})

    def close(self) -> tuple[str, Exception | None]:
        """Return why it stopped early (empty if it did not), and the problem if there was one."""
        try:
            self.ledger.close()
        except EnvironmentProblem as full:
            self.dispatcher.stop(str(full), full)
        if self.leases:
            self.leases.settle(self._is_finished, release=True)
        self._tell(self.dispatcher.overview())
        reason, problem = self.dispatcher.stopping, self.dispatcher.problem
        if reason and problem is None and reason != "interrupted":
            interrupts.leave_early()
        return reason, problem


def _note(seen: dict[str, Any]) -> str:
    """Say how a farm is doing, behind its number of replicas and the time left."""
    busy = list(seen["busy"].values())
    parts = [f"{seen['running']} running", f"{seen['ns_per_day']:,.0f} ns/day"]
    parts += [f"workers busy {100 * sum(busy) / len(busy):.0f} %"] if busy else []
    parts += [f"{seen['failed']} failed"] if seen["failed"] else []
    parts += [f"no more work for {', '.join(seen['drained'])}"] if seen["drained"] else []
    parts += [f"last error: {seen['errors'][-1]}"] if seen["errors"] else []
    return ", ".join(parts)


def _figures(folder: Path, plan: Plan) -> dict[str, Any]:
    """Write manifest.jsonl and return the figures of the stage."""
    found: Standing = ledger.standing(folder)
    records = ledger.write_manifest(folder / "manifest.jsonl", found)
    finished = [record for record in records if record["state"] == "done"]
    if not finished:
        raise InputError(f"all {len(records)} replicas failed; the first error: {records[0]['error']}")
    cpu_s = sum(record["cpu_s"] for record in finished)
    simulated_ns = sum(record["simulated_ns"] for record in finished)
    return {
        "n_replicas": len(plan.names),
        "n_failed": len(records) - len(finished),
        "simulated_ns": simulated_ns,
        "cpu_s": cpu_s,
        "ns_per_day_per_core": simulated_ns / cpu_s * 86400,
        "platform": finished[0]["platform"],
    }
