"""Speeds side by side: in every round each method runs once, and ratios are taken inside a round."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.units import BOLTZMANN_KJ_MOL_KELVIN


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Method:
    """Something whose speed is measured.

    Attributes
    ----------
    label, name : str
        Key in the record, and words for tables.
    work : callable
        One call does `n_per_call` units of work.
    yardstick : str
        Label of the method that its speed is divided by.
    facts : dict
        What else the record says of it.
    after : callable
        Called after each call, outside the measured time.
    cpu_clock : callable
        CPU seconds of whoever works; this process by default.
    overhead_s : (float, float)
        CPU and wall seconds of a call that are start-up, left out of its speed.
    core : int, optional
        Pin this thread there meanwhile.
    """

    label: str
    name: str
    work: Callable[[], object]
    n_per_call: float
    yardstick: str
    facts: dict[str, Any] = field(default_factory=dict)
    after: Callable[[], object] = _nothing
    cpu_clock: Callable[[], float] = time.process_time
    overhead_s: tuple[float, float] = (0.0, 0.0)
    core: int | None = None


def measure(method: Method, at_least_s: float) -> tuple[float, float]:
    """Call `method` for at least `at_least_s` wall seconds; return units per CPU second and per wall second."""
    cpu_s = wall_s = n = 0.0
    n_calls = 0
    with pinned(method.core):
        while wall_s < at_least_s:
            cpu, wall = method.cpu_clock(), time.perf_counter()
            method.work()
            cpu_s += method.cpu_clock() - cpu
            wall_s += time.perf_counter() - wall
            n += method.n_per_call
            n_calls += 1
            method.after()
    start_cpu_s, start_wall_s = (n_calls * overhead for overhead in method.overhead_s)
    return n / max(cpu_s - start_cpu_s, 1e-6), n / max(wall_s - start_wall_s, 1e-6)


def interleaved(methods: Sequence[Method], n_rounds: int, at_least_s: float) -> dict[str, Any]:
    """Measure every method once a round, in turn forwards and backwards.

    Returns
    -------
    dict
        For each label: name, yardstick, facts, and as mean, deviation and values over rounds: `per_cpu_s`, `per_wall_s`, and
        `ratio_cpu`, `ratio_wall` to the yardstick of the same round.
    """
    speeds: dict[str, list[tuple[float, float]]] = {method.label: [] for method in methods}
    for number in range(n_rounds):
        for method in methods if number % 2 == 0 else list(reversed(methods)):
            speeds[method.label].append(measure(method, at_least_s))
    results = {}
    for method in methods:
        own, base = np.array(speeds[method.label]), np.array(speeds[method.yardstick])
        results[method.label] = {
            "method": method.name,
            "yardstick": method.yardstick,
            **method.facts,
            "n_per_call": method.n_per_call,
            "per_cpu_s": spread(own[:, 0]),
            "per_wall_s": spread(own[:, 1]),
            "ratio_cpu": spread(own[:, 0] / base[:, 0]),
            "ratio_wall": spread(own[:, 1] / base[:, 1]),
        }
    return results


def target(name: str, limit: str, measured: Any, value: float | None) -> dict[str, Any]:
    """Return one row of targets; `limit` is "<= x" or ">= x", `measured` a `spread`, a number or words, `value` judged."""
    sign, number = limit.split()[:2]
    reached = value is not None and (value <= float(number) if sign == "<=" else value >= float(number))
    return {"name": name, "target": limit, "measured": measured, "reached": reached}


def target_sentence(targets: Sequence[dict[str, Any]], size: str) -> str:
    """Return how many targets were reached, and which were not; of the size smoke, that they are not meant for it."""
    missed = [row["name"] for row in targets if not row["reached"]]
    text = f"{len(targets) - len(missed)} of {len(targets)} targets reached"
    text += f"; missed: {'; '.join(missed)}." if missed else "."
    return text if size != "smoke" else f"{text} They are meant for the size laptop: in this size the clock is too coarse."


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Keep this thread, and the threads that it starts meanwhile, on one core (None: leave it)."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def kinetic_temperature(kinetic_kj_mol: np.ndarray, n_freedoms: int) -> dict[str, Any]:
    """Mean temperature and its standard error, of kinetic energies (n_times, n_copies)."""
    return mean_temperature(2 * kinetic_kj_mol / (n_freedoms * BOLTZMANN_KJ_MOL_KELVIN))


def mean_temperature(kelvin: np.ndarray, n_blocks: int = 10) -> dict[str, Any]:
    """Mean and standard error of temperatures.

    Parameters
    ----------
    kelvin : np.ndarray, shape=(n_times, n_copies)
        The error is taken over copies, or over `n_blocks` blocks of time where there are fewer copies than that.
    """
    if kelvin.shape[1] >= n_blocks:
        means = kelvin.mean(axis=0)
    else:
        means = np.array([block.mean() for block in np.array_split(kelvin, min(n_blocks, len(kelvin)))])
    error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None
    return {"kelvin": float(kelvin.mean()), "standard_error": error, "n_samples": kelvin.size}
