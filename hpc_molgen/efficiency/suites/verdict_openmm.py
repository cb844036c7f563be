"""Plain MD in OpenMM for the `verdict` suite: one copy in a process of its own on each core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_molgen import interrupts
from hpc_molgen.dynamics.engine import GPU_PLATFORMS, Engine, platform_speeds
from hpc_molgen.efficiency.suites.verdict_methods import MD_METHODS, Curve, MdMethod, MdSettings, phi_psi
from hpc_molgen.efficiency.suites.verdict_scores import Series, Truth
from hpc_molgen.efficiency.suites.verdict_sums import Sums, Window, side_by_side, sum_frames
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch, Workers, available_cores


@dataclass(frozen=True)
class _Copy:
    """One copy in OpenMM on one core; it pickles."""

    method: MdMethod
    system: MolecularSystem
    settings: MdSettings
    platform: str
    budget_cpu_s: float
    seed: int


def _run_copy(task: _Copy) -> list[tuple[float, float, Sums]]:
    """Return CPU and wall seconds so far, and the sums, of each block."""
    method, settings, system = task.method, task.settings, task.system
    watch = Stopwatch()
    engine = Engine(
        system, task.platform, task.seed, timestep_fs=method.timestep_fs, constraints=method.constraints,
        hydrogen_mass_amu=method.hydrogen_mass_amu,
    )  # fmt: skip
    engine.minimise(300)
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    n_steps = max(1, round(settings.observe_ps * 1e3 / method.timestep_fs))
    n_frames = max(1, round(settings.block_ps / settings.observe_ps))
    blocks = [(watch.cpu_s, watch.wall_s, sum_frames(np.zeros((0, 1, 2)), np.zeros((0, 1))))]
    while len(blocks) == 1 or watch.cpu_s < task.budget_cpu_s:
        interrupts.check()
        angles = []
        for _ in range(n_frames):
            engine.step(n_steps)
            angles.append(phi_psi(system, engine.positions_nm)[None])
        blocks.append((watch.cpu_s, watch.wall_s, sum_frames(np.array(angles), np.ones((n_frames, 1)))))
    return blocks


def _best_platform(system: MolecularSystem) -> str:
    """OpenMM's platform that makes most steps a second on one core."""
    speeds = {name: speed for name, speed in platform_speeds(system).items() if name not in GPU_PLATFORMS}
    return max(speeds, key=lambda name: speeds[name])


def openmm_series(
    key: str, system: MolecularSystem, settings: MdSettings, truth: Truth, budget_cpu_s: float, seed: int, repeat: int
) -> Series:
    """Run a method of `MD_METHODS` from zero for `budget_cpu_s`; return its curve.

    One copy in a process of its own on each core; starting the processes is not counted.
    """
    n, platform = available_cores(), _best_platform(system)
    tasks = [
        _Copy(MD_METHODS[key], system, settings, platform, budget_cpu_s / n, derive_seed(seed, "copy", copy))
        for copy in range(n)
    ]
    copies = Workers(n_processes=n).map(_run_copy, tasks)
    window, curve = Window(settings.discarded), Curve(truth)
    n_blocks = min(map(len, copies))
    for number in range(1, n_blocks):
        now = [copy[number] for copy in copies]
        window.add(side_by_side([sums for _, _, sums in now]))
        cpu_s, wall_s = sum(spent for spent, _, _ in now), max(spent for _, spent, _ in now)
        curve.look(window, cpu_s, wall_s, last=number == n_blocks - 1)
    ns = (n_blocks - 1) * n * max(1, round(settings.block_ps / settings.observe_ps)) * settings.observe_ps * 1e-3
    facts: dict[str, Any] = {"engine": f"OpenMM {platform}, {n} process(es)", "groups": n, "simulated_ns": ns}
    facts["groups_with_phi_positive"] = int((window.sums().inside > 0).sum())
    return Series(key, repeat, sum(copy[0][0] for copy in copies), curve.checkpoints, facts)
