"""What else ran on the machine while a suite did: its load average, and the cores that others kept busy."""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Any

import psutil

EVERY_S = 1.0


class LoadWatch:
    """Look at the machine once a second, in a thread, between entering and leaving.

    Attributes
    ----------
    seen : dict
        n (looks), and mean and largest value of `load_average_1min` and of `others_busy_cores`: CPU seconds a second of all
        programs but this one and those that it started. Programs that left this one's family count as others.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s, self._done = every_s, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._averages: list[float] = []
        self._others: list[float] = []

    def __enter__(self) -> LoadWatch:
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Stop."""
        self._done.set()
        self._thread.join()

    @property
    def seen(self) -> dict[str, Any]:
        """What was seen; the load average alone where the run was too short for a second look."""
        averages = self._averages or [os.getloadavg()[0]]
        found: dict[str, Any] = {"n": len(averages), "load_average_1min": _summary(averages)}
        return found | {"others_busy_cores": _summary(self._others) if self._others else None}

    def _look(self) -> None:
        before = time.perf_counter(), _busy_s(), _own_s()
        while not self._done.wait(self._every_s):
            now = time.perf_counter(), _busy_s(), _own_s()
            self._averages.append(os.getloadavg()[0])
            wall_s, busy_s, own_s = (new - old for new, old in zip(now, before, strict=True))
            self._others.append(max(0.0, (busy_s - max(0.0, own_s)) / wall_s))
            before = now


def _summary(values: list[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "max": max(values)}


def _busy_s() -> float:
    """CPU seconds of all cores since the machine started, without idling and without what a host took for other guests."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))


def _own_s() -> float:
    """CPU seconds of this process and all that descend from it, ended ones included."""
    total, me = 0.0, psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])  # user, system, and those of children that it has waited for
        except psutil.Error:
            continue
    return total
