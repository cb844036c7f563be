"""The MD that a surrogate has to beat: how fast this machine runs it, and what an effective sample of it costs."""

from __future__ import annotations

import time
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
    """Measured speed of one protocol.

    Attributes
    ----------
    ns_per_cpu_s : np.ndarray, shape=(n_repeats,)
        Simulated ns per CPU second of each repeat; per wall second where a GPU does the work.
    """

    protocol: Protocol
    platform: str
    steps_per_repeat: int
    ns_per_cpu_s: np.ndarray

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
            "label": self.protocol.label,
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


def measure_speeds(system: MolecularSystem, config: RunConfig) -> list[Speed]:
    """Measure the speed of each protocol in interleaved repeats, `report.baseline_steps` steps in all.

    A protocol that blows up (a long time step on a strained molecule) is left out.
    """
    from hpc_molgen.dynamics.engine import Engine, fastest_platform

    asked = config.reference.platform
    platform = fastest_platform(system) if asked == "auto" else asked
    engines = []
    for number, protocol in enumerate(protocols(config)):
        engine = Engine(
            system,
            platform,
            derive_seed(config.seed, "baseline", number),
            timestep_fs=protocol.timestep_fs,
            constraints=protocol.constraints,
            hydrogen_mass_amu=protocol.hydrogen_mass_amu,
        )
        engine.minimise(200)
        engine.set_positions(engine.positions_nm, draw_velocities=True)
        engines.append((protocol, engine))
    n_steps = _steps_per_repeat(engines[0][1], config.report.baseline_steps // (REPEATS * len(engines)))
    found: dict[Protocol, list[float]] = {protocol: [] for protocol, _ in engines}
    broken = set()
    for _ in range(REPEATS):
        for protocol, engine in engines:
            watch = Stopwatch()
            try:
                engine.step(n_steps)
            except Exception as error:  # OpenMMException, without importing openmm here
                if type(error).__name__ != "OpenMMException":
                    raise
                broken.add(protocol)
            seconds = watch.wall_s if platform in ("CUDA", "HIP", "OpenCL") else watch.cpu_s
            found[protocol].append(n_steps * protocol.timestep_fs * 1e-6 / max(seconds, 1e-9))
            if not np.isfinite(engine.positions_nm).all():
                broken.add(protocol)
    speeds = [Speed(p, platform, n_steps, np.array(found[p])) for p, _ in engines if p not in broken]
    if not speeds:
        raise HpcMolgenError(f"{system.name}: no MD protocol ran {n_steps} steps; check the system's energy function")
    return speeds


def _steps_per_repeat(engine: Any, wanted: int) -> int:
    """Fewer steps than `wanted` where these would take longer than `MAX_BLOCK_S`."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.05 * MAX_BLOCK_S:
        engine.step(10)
        done += 10
    per_s = done / (time.perf_counter() - start)
    return max(10, min(wanted, int(per_s * MAX_BLOCK_S)))


def rule_of_three(n_events: int, cpu_s: float) -> tuple[float | None, float]:
    """Return CPU seconds per event, and the 95 % lower bound of it, from a count of rare events.

    No event in an exposure T bounds the rate by 3/T (Hanley and Lippman-Hand 1983, JAMA 249, 1743); k events bound it by
    the 97.5th percentile of the Poisson distribution's mean. Without an event there is no estimate, only the bound.
    """
    from scipy.special import gammaincinv

    if n_events == 0:
        return None, cpu_s / 3
    return cpu_s / n_events, cpu_s / float(gammaincinv(n_events + 1, 0.975))
