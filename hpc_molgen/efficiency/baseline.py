"""The MD that a surrogate has to beat: how fast this machine runs it, and what an effective sample of it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.errors import HpcMolgenError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    from hpc_molgen.config import RunConfig
    from hpc_molgen.systems.base import MolecularSystem

REPEATS = 5
GPU_PLATFORMS = ("CUDA", "HIP", "OpenCL")
MIN_BLOCK_S = 0.05  # shorter repeats would measure the clock
MAX_BLOCK_S = 1.0  # of one repeat: a box of water must not hold the report up


@dataclass(frozen=True)
class Protocol:
    """How MD is run: what decides its speed."""

    label: str
    timestep_fs: float
    constraints: str
    hydrogen_mass_amu: float | None = None


@dataclass(frozen=True)
class Speed:
    """Measured speed of one protocol on one engine.

    Attributes
    ----------
    platform : str
        Of OpenMM's, or "batched": many copies at once, their lengths added up.
    ns_per_cpu_s : np.ndarray, shape=(n_repeats,)
        Simulated ns per CPU second of each repeat; per wall second where a GPU does the work.
    """

    protocol: Protocol
    platform: str
    steps_per_repeat: int
    ns_per_cpu_s: np.ndarray

    @property
    def label(self) -> str:
        """Protocol and engine in words."""
        return f"{self.protocol.label}; {self.platform}"

    @property
    def mean(self) -> float:
        """Mean over repeats."""
        return float(self.ns_per_cpu_s.mean())

    @property
    def spread(self) -> float:
        """Standard deviation over repeats."""
        return float(self.ns_per_cpu_s.std(ddof=1)) if len(self.ns_per_cpu_s) > 1 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "label": self.label,
            "timestep_fs": self.protocol.timestep_fs,
            "constraints": self.protocol.constraints,
            "hydrogen_mass_amu": self.protocol.hydrogen_mass_amu,
            "platform": self.platform,
            "steps_per_repeat": self.steps_per_repeat,
            "ns_per_cpu_s": self.ns_per_cpu_s.tolist(),
            "mean": self.mean,
            "sd": self.spread,
        }


def protocols(config: RunConfig) -> list[Protocol]:
    """Return the reference's own protocol first, then those with constrained X-H bonds and longer steps."""
    reference = config.reference
    flexible = "flexible" if reference.constraints == "none" else "constrained X-H"
    own = Protocol(f"{reference.timestep_fs:g} fs, {flexible} (as the reference)", reference.timestep_fs, reference.constraints)
    if reference.trajectories:
        own = Protocol("1 fs, flexible", 1.0, "none")
    others = [
        Protocol("2 fs, constrained X-H", 2.0, "hbonds"),
        Protocol("4 fs, constrained X-H, hydrogens of 3 u", 4.0, "hbonds", 3.024),
    ]
    return [own, *(p for p in others if (p.timestep_fs, p.constraints) != (own.timestep_fs, own.constraints))]


class _Mover:
    """One protocol on one engine, ready to run."""

    def __init__(self, system: MolecularSystem, protocol: Protocol, platform: str, seed: int) -> None:
        from hpc_molgen.dynamics.choice import BATCHED

        self.protocol, self.platform, self.broken = protocol, platform, False
        self.n_copies, self.found = 1, list[float]()
        self._step: Callable[[int], None]
        self._positions: Callable[[], np.ndarray]
        if platform == BATCHED:
            self._prepare_batched(system, seed)
        else:
            self._prepare_openmm(system, seed)
        self.n_steps = 0

    def _prepare_openmm(self, system: MolecularSystem, seed: int) -> None:
        from hpc_molgen.dynamics.engine import Engine

        engine = Engine(
            system, self.platform, seed, timestep_fs=self.protocol.timestep_fs, constraints=self.protocol.constraints,
            hydrogen_mass_amu=self.protocol.hydrogen_mass_amu,
        )  # fmt: skip
        engine.minimise(200)
        engine.set_positions(engine.positions_nm, draw_velocities=True)
        self._step, self._positions = engine.step, lambda: engine.positions_nm

    def _prepare_batched(self, system: MolecularSystem, seed: int) -> None:
        from hpc_molgen.dynamics.batched import BatchedSystem
        from hpc_molgen.dynamics.choice import copies_per_batch
        from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
        from hpc_molgen.dynamics.modified import modified_system

        changed = modified_system(
            system, constraints=self.protocol.constraints, hydrogen_mass_amu=self.protocol.hydrogen_mass_amu
        )
        batched = BatchedSystem(changed, "float32", threads=1)
        self.n_copies = 2 * copies_per_batch(system)
        start, _ = minimise(batched, np.repeat(system.positions_nm[None], self.n_copies, axis=0), max_iterations=200)
        seeds = [derive_seed(seed, "copy", copy) for copy in range(self.n_copies)]
        dynamics = BatchedDynamics(
            batched, start, seeds, temperature_kelvin=system.temperature_kelvin, timestep_fs=self.protocol.timestep_fs
        )
        self._step, self._positions = dynamics.step, lambda: dynamics.positions_nm

    def choose_length(self, wanted: int) -> None:
        """Set the steps of one repeat: `wanted` over all copies, within `MIN_BLOCK_S` and `MAX_BLOCK_S` of time."""
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.05 * MAX_BLOCK_S and not self.broken:
            self._try(10)
            done += 10
        per_s = done / (time.perf_counter() - start)
        self.n_steps = max(10, int(per_s * MIN_BLOCK_S), min(-(-wanted // self.n_copies), int(per_s * MAX_BLOCK_S)))

    def _try(self, n_steps: int) -> None:
        """Advance; what blows up (a long time step on a strained molecule) marks the protocol as broken."""
        try:
            self._step(n_steps)
        except Exception as error:  # OpenMMException, without importing openmm here
            if type(error).__name__ != "OpenMMException":
                raise
            self.broken = True

    def measure(self) -> None:
        """Run one repeat."""
        if self.broken:
            return
        watch = Stopwatch()
        self._try(self.n_steps)
        seconds = watch.wall_s if self.platform in GPU_PLATFORMS else watch.cpu_s
        self.found.append(self.n_copies * self.n_steps * self.protocol.timestep_fs * 1e-6 / max(seconds, 1e-9))
        self.broken |= not np.isfinite(self._positions()).all()


def measure_speeds(system: MolecularSystem, config: RunConfig) -> list[Speed]:
    """Measure the speed of each protocol on each engine in interleaved repeats, about `report.baseline_steps` steps in all.

    The first is the reference's own protocol on the engine that the reference would run on. A protocol that blows up (a long
    time step on a strained molecule) is left out.
    """
    from hpc_molgen.dynamics.batched import try_batched
    from hpc_molgen.dynamics.choice import BATCHED, choose_dynamics
    from hpc_molgen.dynamics.engine import fastest_platform

    asked = BATCHED if config.reference.tempering_kelvin else config.reference.platform
    own = choose_dynamics(system, asked, config.reference.n_walkers)
    engines = [own]
    if own == BATCHED:
        engines.append(fastest_platform(system))
    elif try_batched(system, "float32") is not None:
        engines.append(BATCHED)
    movers = [
        _Mover(system, protocol, engine, derive_seed(config.seed, "baseline", number))
        for engine in engines
        for number, protocol in enumerate(protocols(config))
    ]
    for mover in movers:
        mover.choose_length(max(config.report.baseline_steps // (REPEATS * len(movers)), 1))
    for _ in range(REPEATS):
        for mover in movers:
            mover.measure()
    speeds = [Speed(m.protocol, m.platform, m.n_copies * m.n_steps, np.array(m.found)) for m in movers if not m.broken]
    if not speeds:
        raise HpcMolgenError(f"{system.name}: no MD protocol ran {movers[0].n_steps} steps; check the system's energy function")
    return speeds


def rule_of_three(n_events: int, cpu_s: float) -> tuple[float | None, float]:
    """Return CPU seconds per event, and the 95 % lower bound of it, from a count of rare events.

    No event in an exposure T bounds the rate by 3/T (Hanley and Lippman-Hand 1983, JAMA 249, 1743); k events bound it by
    the 97.5th percentile of the Poisson distribution's mean. Without an event there is no estimate, only the bound.
    """
    from scipy.special import gammaincinv

    if n_events == 0:
        return None, cpu_s / 3
    return cpu_s / n_events, cpu_s / float(gammaincinv(n_events + 1, 0.975))
