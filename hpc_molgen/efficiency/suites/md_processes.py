"""Processes, each on a core of its own, against one: what parallel work costs through shared memory and caches."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import BatchedDynamics
from hpc_molgen.dynamics.terms import Terms
from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.seeding import derive_seed
from hpc_molgen.workers import pinned_processes, receive

PATIENCE_S = 120.0
ALONE = 8  # processes that run alone in a repeat, at most, chosen evenly: on many cores all would take hours


def side_by_side(
    terms: Terms, starts_nm: np.ndarray, kelvin: float, seed: int, n: int, n_repeats: int, measure_s: float, n_steps: int
) -> dict[str, Any]:
    """Compare the steps a second of `n` pinned processes at the same time with those of each alone.

    The kernel's float32 dynamics of 1 fs; in every repeat each process (of many: some) runs alone, then all start together
    at a barrier.

    Parameters
    ----------
    terms : Terms
    starts_nm : np.ndarray, shape=(n_copies, n_atoms, 3)
    n_steps : int
        Steps between two looks at the clock.

    Returns
    -------
    dict
        `n`, `alone` and `together` (steps of all copies per wall second), `ratio_wall`, `ratio_cpu` (per CPU second, times n).
    """
    arguments = [
        (
            terms,
            starts_nm,
            [derive_seed(seed, "two processes", number, copy) for copy in range(len(starts_nm))],
            kelvin,
            measure_s,
            n_steps,
        )
        for number in range(n)
    ]
    with pinned_processes(_serve, arguments) as connections:
        for connection in connections:
            receive(connection, PATIENCE_S)
        rows = [_one_repeat(connections) for _ in range(n_repeats)]
    alone, together = (np.array([row[which] for row in rows]) for which in range(2))  # (n_repeats, processes, wall and CPU)
    ratios = together.sum(axis=1) / alone.mean(axis=1)
    return {
        "n": n,
        "alone": spread(alone[:, :, 0].mean(axis=1)),
        "together": spread(together[:, :, 0].sum(axis=1)),
        "ratio_wall": spread(ratios[:, 0]),
        "ratio_cpu": spread(ratios[:, 1]),
    }


def _one_repeat(connections: list[Connection]) -> tuple[list[Any], list[Any]]:
    alone = []
    for connection in connections[:: -(-len(connections) // ALONE)]:
        connection.send("alone")
        alone.append(receive(connection, PATIENCE_S))
    for connection in connections:
        connection.send("together")
    return alone, [receive(connection, PATIENCE_S) for connection in connections]


def _serve(
    connection: Connection, barrier: Any, core: int, terms: Terms, starts_nm: np.ndarray, seeds: list[int], kelvin: float,
    measure_s: float, n_steps: int,
) -> None:  # fmt: skip
    """Measure at every order that comes, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    os.sched_setaffinity(0, {core})
    dynamics = BatchedDynamics(BatchedSystem(terms, "float32", threads=1), starts_nm, seeds, temperature_kelvin=kelvin)
    dynamics.step(n_steps)
    connection.send("ready")
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        if order == "together":
            barrier.wait(PATIENCE_S)
        wall, cpu, n = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - wall < measure_s:
            dynamics.step(n_steps)
            n += n_steps * len(starts_nm)
        connection.send((n / (time.perf_counter() - wall), n / (time.process_time() - cpu)))
