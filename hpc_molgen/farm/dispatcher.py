"""Who runs what next: the queue of the farm, fed by ledgers, asked by workers; it neither computes nor communicates."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.farm.ledger import Ledger, Standing
from hpc_molgen.farm.plan import Task

log = logging.getLogger(__name__)
MAX_ATTEMPTS = 4  # the first, and three with new seeds
MAX_LOSSES = 3  # processes that may die over one task
GRANT_S = 5.0  # trivial replicas are given out together, for about so long
WAIT_S = (0.05, 2.0)  # of a worker for which there is nothing now, and of one of thousands
ASKS_PER_S = 1000  # of all that wait
FAILURES_OF_A_BAD_HOST = 2
N_ERRORS_KEPT = 5
_PROBLEMS: dict[str, type[Exception]] = {"EnvironmentProblem": EnvironmentProblem, "InputError": InputError}


@dataclass
class _Worker:
    host: str
    since: float
    busy_s: float = 0.0
    tasks: deque[Task] = field(default_factory=deque)
    stopped: bool = False


class Dispatcher:
    """Gives tasks to workers, longest work first, and keeps the ledger of what they say.

    A worker calls `exchange` when it needs work, at the end of each chunk, and when something has happened; the answer says
    what to do. Any thread may call.

    Parameters
    ----------
    tasks : sequence of Task
        What is not finished yet.
    ledger : Ledger
    found : Standing
        Of the ledgers so far; it is brought up to date.
    n_workers : int
        How many there are going to be.
    time_left_s : callable
        Seconds until the job's time limit; infinite where there is none.
    more : callable, optional
        Called when the queue is empty: further tasks (another block of a shared farm), or none.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        ledger: Ledger,
        found: Standing,
        n_workers: int,
        time_left_s: Callable[[], float] = lambda: float("inf"),
        more: Callable[[], Sequence[Task]] = lambda: (),
    ) -> None:
        self.ledger, self.found = ledger, found
        self.problem: Exception | None = None
        self.stopping = ""
        self.errors: deque[str] = deque(maxlen=N_ERRORS_KEPT)
        self.drained: set[str] = set()
        self._lock = threading.RLock()
        self._queue: list[tuple[float, int, int, Task]] = []
        self._n_workers, self._time_left_s, self._more = n_workers, time_left_s, more
        self._workers: dict[int, _Worker] = {}
        self._failures: dict[str, set[int]] = {}  # replicas that have failed on a host
        self._losses: dict[int, int] = {}
        self._worked_s = self._worked_share = 0.0  # of packs: what a whole one costs
        self._chunk_s = self._ns = 0.0
        self._began = time.monotonic()
        for task in tasks:
            self._push(task)

    def exchange(self, worker: int, host: str, records: Sequence[dict[str, Any]], wants: str) -> dict[str, Any]:
        """Take a worker's records, and say what it is to do.

        Parameters
        ----------
        worker : int
            Its number.
        host : str
        records : sequence of dict
            For the ledger. An event "again" (a replica that blew up) may come out of it as "failed"; "problem" and
            "interrupted" stop all workers.
        wants : str
            "work" (its tasks are done), "leave?" (at the end of a chunk), or "end" (it ends whatever is said).

        Returns
        -------
        dict
            `tasks` (to do, in order), `wait_s` (ask again then), `leave` (end this task after what is written) or `stop` (why).
        """
        with self._lock:
            me = self._workers.setdefault(worker, _Worker(host, time.monotonic()))
            self._count(me, records)
            if wants == "end":
                me.stopped = True
                self._give_back(me)
                return {}
            self._look_at_the_clock()
            if wants == "leave?":
                return {"leave": bool(self.stopping) or me.host in self.drained or self._another_is_critical(me)}
            self._give_back(me)  # what it left at a chunk's end
            if self.stopping:
                me.stopped = True
                return {"stop": self.stopping}
            return self._next(me)

    def stop(self, reason: str, problem: Exception | None = None) -> None:
        """Let every worker end at its next chunk."""
        with self._lock:
            self.stopping = self.stopping or reason
            self.problem = self.problem or problem

    def lost(self, worker: int, why: str) -> None:
        """A worker's process has died: its tasks go back, unless one of them has cost too many processes."""
        with self._lock:
            me = self._workers.pop(worker, None)
            if me is None:
                return
            if me.tasks:
                task = me.tasks[0]
                self._losses[task.pack] = self._losses.get(task.pack, 0) + 1
                self.errors.append(f"replicas {_listed(task.replicas)}: {why}")
                if self._losses[task.pack] >= MAX_LOSSES:
                    text = f"the process that ran it died {MAX_LOSSES} times ({why})"
                    self._keep([failed(r, n, text, task.attempt) for r, n in zip(task.replicas, task.names, strict=True)])
                    me.tasks.popleft()
            self._give_back(me)

    @property
    def n_left(self) -> int:
        """Tasks that are not finished."""
        with self._lock:
            return len(self._queue) + sum(len(worker.tasks) for worker in self._workers.values())

    @property
    def is_over(self) -> bool:
        """True when nobody needs an answer any more."""
        with self._lock:
            return len(self._workers) >= self._n_workers and all(worker.stopped for worker in self._workers.values())

    def busy_shares(self) -> dict[int, float]:
        """How much of its time each worker has computed."""
        with self._lock:
            now = time.monotonic()
            return {n: min(1.0, w.busy_s / max(now - w.since, 1e-9)) for n, w in sorted(self._workers.items())}

    def eta_s(self) -> float | None:
        """Seconds until all is done, at the speed so far."""
        with self._lock:
            if not self._worked_share:
                return None
            running = [task for worker in self._workers.values() for task in worker.tasks]
            left = sum(-entry[0] for entry in self._queue) + sum(self._left(task) for task in running)
            active = max(1, sum(not worker.stopped for worker in self._workers.values()))
            return left * self._pack_s / active

    def overview(self) -> dict[str, Any]:
        """Return what a user wants to see while it runs."""
        with self._lock:
            running = sum(len(task.replicas) for worker in self._workers.values() for task in worker.tasks)
            elapsed = max(time.monotonic() - self._began, 1e-9)
            return {
                "done": len(self.found.final) - self.found.n_failed, "failed": self.found.n_failed, "running": running,
                "ns_per_day": self._ns / elapsed * 86400, "eta_s": self.eta_s(), "busy": self.busy_shares(),
                "drained": sorted(self.drained), "errors": list(self.errors), "stopping": self.stopping,
            }  # fmt: skip

    # ------------------------------------------------------------------ inside

    @property
    def _pack_s(self) -> float:
        """Seconds that a whole pack costs, by what was seen."""
        return self._worked_s / self._worked_share if self._worked_share > 0 else 0.0

    def _left(self, task: Task) -> float:
        return max(1.0 - min((self.found.share.get(replica, 0.0) for replica in task.replicas), default=0.0), 1e-3)

    def _push(self, task: Task) -> None:
        heapq.heappush(self._queue, (-self._left(task), task.pack, task.attempt, task))

    def _give_back(self, worker: _Worker) -> None:
        for task in worker.tasks:
            self._push(task)
        worker.tasks.clear()

    def _count(self, worker: _Worker, records: Sequence[dict[str, Any]]) -> None:
        kept = []
        for record in records:
            event = record["event"]
            worker.busy_s += record.get("busy_s", 0.0)
            self._worked_s += record.get("busy_s", 0.0)
            self._worked_share += record.get("gained", 0.0)
            if event == "chunk":
                self._chunk_s = max(0.8 * self._chunk_s, record["busy_s"])
                self._ns += record.get("ns", 0.0)
            elif event == "ended":
                self._end(worker, record)
                continue
            elif event == "again":
                self.errors.append(f"replica {record['replica']}: {record['error']}")
                record = self._again(worker, record)
            elif event == "failed":
                self.errors.append(f"replica {record['replica']}: {record['error']}")
            elif event == "problem":
                self.stop(
                    record["error"], _PROBLEMS.get(record["kind"], RuntimeError)(record.get("traceback") or record["error"])
                )
            elif event == "interrupted":
                self.stop("interrupted")
                continue
            self.found.add(record)
            kept.append(record)
        self.ledger.append(kept)  # together: one write, one sync

    def _keep(self, records: Sequence[dict[str, Any]]) -> None:
        for record in records:
            self.found.add(record)
        self.ledger.append(records)

    def _end(self, worker: _Worker, record: dict[str, Any]) -> None:
        """A task is over: those of its replicas that are neither done nor failed get another attempt."""
        task = next(task for task in worker.tasks if task.pack == record["pack"] and task.attempt == record["attempt"])
        worker.tasks.remove(task)
        if record.get("dropped"):
            return
        again = [replica for replica in task.replicas if replica not in self.found.final]
        if again:
            self._push(task.only(again, task.attempt + 1))

    def _again(self, worker: _Worker, record: dict[str, Any]) -> dict[str, Any]:
        replica = record["replica"]
        self._failures.setdefault(worker.host, set()).add(replica)
        self._drain()
        if record["attempt"] >= MAX_ATTEMPTS:
            return record | failed(replica, record["pdb"], record["error"], record["attempt"])
        return record | {"attempt": record["attempt"] + 1}

    def _drain(self) -> None:
        """Hosts where two replicas failed that have failed nowhere else get no more work, as long as another host has none."""
        hosts = {worker.host for worker in self._workers.values()}
        bad = set()
        for host, replicas in self._failures.items():
            elsewhere = set().union(*(others for other, others in self._failures.items() if other != host))
            if len(replicas - elsewhere) >= FAILURES_OF_A_BAD_HOST:
                bad.add(host)
        if hosts <= bad:
            return  # it is not the hosts
        for host in bad - self.drained:
            text = f"{host}: {len(self._failures[host])} replicas failed there, it gets no more work"
            log.warning(text)
            self._keep([{"event": "drained", "host": host, "error": text}])
        self.drained = bad

    def _look_at_the_clock(self) -> None:
        left = self._time_left_s()
        if not self.stopping and left < 1.2 * self._chunk_s + 10:
            self.stop(f"{left:.0f} s are left of the time limit, and a chunk takes {self._chunk_s:.0f} s")
            log.info("farm: stops here: %s", self.stopping)

    def _another_is_critical(self, worker: _Worker) -> bool:
        """Return whether a waiting task is so long that it alone will decide when the farm ends, if it does not start now.

        (McNaughton 1959, Management Science 6, 1: with interruptions the shortest end is the larger of the longest task and
        the mean load.)
        """
        if not self._queue or not worker.tasks:
            return False
        longest, current = -self._queue[0][0], self._left(worker.tasks[0])
        running = sum(self._left(task) for other in self._workers.values() for task in other.tasks)
        total = running + sum(-entry[0] for entry in self._queue)
        return longest > current and longest >= total / self._n_workers

    @property
    def _wait_s(self) -> float:
        return min(WAIT_S[1], max(WAIT_S[0], self._n_workers / ASKS_PER_S))

    def _next(self, worker: _Worker) -> dict[str, Any]:
        if worker.host in self.drained:
            return {"wait_s": self._wait_s} if self.n_left else self._done(worker)
        if not self._queue:
            for task in self._more():
                self._push(task)
        if not self._queue:
            return {"wait_s": self._wait_s} if self.n_left else self._done(worker)
        n = 1
        if self._pack_s > 0:  # as many as fill the time, yet a fair part for everybody towards the end
            n = int(min(GRANT_S / self._pack_s, len(self._queue) / (4 * self._n_workers)))
        tasks = [self._pop(worker.host) for _ in range(max(1, n))]
        worker.tasks.extend(tasks)
        return {"tasks": tasks}

    def _pop(self, host: str) -> Task:
        """The longest task; one that has failed here goes to another host if there is other work."""
        here = self._failures.get(host)
        if here and len(self._queue) > 1 and here & set(self._queue[0][3].replicas):
            first = heapq.heappop(self._queue)
            task = heapq.heappop(self._queue)[3]
            heapq.heappush(self._queue, first)
            return task
        return heapq.heappop(self._queue)[3]

    @staticmethod
    def _done(worker: _Worker) -> dict[str, Any]:
        worker.stopped = True
        return {"stop": "done"}


def failed(replica: int, name: str, error: str, attempts: int) -> dict[str, Any]:
    """Return the record of a replica that is given up."""
    return {"event": "failed", "state": "failed", "replica": replica, "pdb": name, "error": error, "attempts": attempts}


def _listed(replicas: Sequence[int]) -> str:
    return f"{replicas[0]}" if len(replicas) == 1 else f"{replicas[0]}-{replicas[-1]}"
