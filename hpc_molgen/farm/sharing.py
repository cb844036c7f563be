"""How many processes a GPU serves best, by a short measurement: a small system leaves most of it idle."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import openmm

from hpc_molgen.config import FarmConfig
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import pinned_processes, receive

log = logging.getLogger(__name__)
COUNTS = (1, 2, 4, 8)
GAIN = 1.1  # of all steps a second, which more processes must bring: each takes memory and a core
WARM_S = 0.3
PATIENCE_S = 300.0


def measured_per_gpu(
    system: MolecularSystem, config: FarmConfig, platform: str, cores: Sequence[int], measure_s: float = 2.0
) -> int:
    """Return how many processes with a context each, on one GPU, make most steps in all; doubled while that pays.

    Parameters
    ----------
    system : MolecularSystem
        What a replica simulates, its water included.
    platform : str
        Of OpenMM's.
    cores : sequence of int
        One for each process: more processes than cores are not tried.
    """
    speeds: dict[int, float] = {}
    for n in (count for count in COUNTS if count <= len(cores)):
        speeds[n] = _steps_per_s(system, config, platform, cores[:n], measure_s)
        if n > 1 and speeds[n] < GAIN * speeds[n // 2]:
            break
    best = 1
    for n, speed in speeds.items():
        best = n if speed >= GAIN * speeds[best] else best
    listed = ", ".join(f"{n}: {speed:,.0f}" for n, speed in speeds.items())
    log.info("farm: %d process(es) for each GPU (steps/s of all: %s)", best, listed)
    return best


def _steps_per_s(system: MolecularSystem, config: FarmConfig, platform: str, cores: Sequence[int], measure_s: float) -> float:
    arguments = [(system, config, platform, measure_s)] * len(cores)
    try:
        with pinned_processes(_serve, arguments, cores) as connections:
            for connection in connections:
                connection.send("go")
            return float(sum(receive(connection, PATIENCE_S) for connection in connections))
    except EnvironmentProblem:
        if len(cores) == 1:
            raise
        return 0.0  # there is not memory for so many


def _serve(
    connection: Connection,
    barrier: Any,
    core: int,
    system: MolecularSystem,
    config: FarmConfig,
    platform: str,
    measure_s: float,
) -> None:
    """Measure once, all at the same time."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    os.sched_setaffinity(0, {core})
    os.environ["LOCAL_RANK"] = "0"  # one GPU for all of them
    connection.recv()
    try:  # a negligible time step: the structure stays where it is, however strained
        engine = Engine(
            system, platform, seed=1, timestep_fs=1e-6, friction_per_ps=config.friction_per_ps, constraints=config.constraints,
            hydrogen_mass_amu=config.hydrogen_mass_amu,
        )  # fmt: skip
        _steps_during(engine, WARM_S)
        barrier.wait(PATIENCE_S)
        connection.send(_steps_during(engine, measure_s))
    except threading.BrokenBarrierError:  # another one has said why
        os._exit(1)
    except (openmm.OpenMMException, InputError) as problem:
        barrier.abort()
        log.warning("farm: %s", problem)
        os._exit(1)


def _steps_during(engine: Engine, seconds: float) -> float:
    """Return steps a second."""
    done, block, start = 0, 1, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        block = max(1, min(2 * block, round(done * 0.1 * seconds / elapsed) or 1))
        engine.step(block)
        _ = engine.positions_nm  # waits for the GPU
        done += block
    return done / elapsed
