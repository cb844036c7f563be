"""Reference MD: independent walkers, each one item of work and one file."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openmm import OpenMMException

from hpc_molgen.config import LabelConfig, ReferenceConfig, dump_config, is_held_out
from hpc_molgen.dynamics.bias import flattening_bias, spread_structures
from hpc_molgen.dynamics.choice import BATCHED, choose_dynamics, copies_per_batch
from hpc_molgen.dynamics.copies import CopyFrames, CopyProtocol, simulate_copies, simulate_ladders
from hpc_molgen.dynamics.engine import Engine, fastest_platform
from hpc_molgen.dynamics.imported import SERIES, ImportTask, SeriesTask, import_series, import_trajectory, plan_imports
from hpc_molgen.dynamics.modified import TorsionBias
from hpc_molgen.ensemble import Ensemble, read_attributes, write_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import torsion_angles, torsion_by_name
from hpc_molgen.workers import Stopwatch

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class WalkerTask:
    """One walker: what to simulate, with what (a platform of OpenMM's, or "batched") and where to write it; it pickles."""

    walker: int
    system: MolecularSystem
    config: ReferenceConfig
    seed: int
    start_nm: np.ndarray
    platform: str
    bias: TorsionBias | None
    path: Path
    temperature_kelvin: float
    production_ps: float


def plan_walkers(system: MolecularSystem, config: ReferenceConfig, seed: int, directory: Path) -> list[WalkerTask]:
    """Choose the platform, the bias and spread starting structures; return one task per walker."""
    bias = None
    if config.bias_torsion is not None:
        bias = flattening_bias(system, torsion_by_name(system.topology, config.bias_torsion), derive_seed(seed, "bias"))
    asked = BATCHED if config.tempering_kelvin else config.platform
    if config.integrator == "brownian" and asked == "auto":  # which the batched engine does not know
        platform = fastest_platform(system)
    else:
        platform = choose_dynamics(system, asked, config.n_walkers)
    starts = np.repeat(system.positions_nm[None], config.n_walkers, axis=0)
    if config.starts == "spread":
        starts = spread_structures(system, config.n_walkers, seed)
    return [
        WalkerTask(
            walker, system, config, seed, starts[walker], platform, bias, directory / f"walker-{walker:04d}.h5",
            *_conditions(system, config, walker),
        )
        for walker in range(config.n_walkers)
    ]  # fmt: skip


def _conditions(system: MolecularSystem, config: ReferenceConfig, walker: int) -> tuple[float, float]:
    """Temperature in kelvin and production in ps of a walker."""
    if config.labels:
        return walker_label(config, walker).temperature_kelvin, config.production_ps
    if is_held_out(walker, config.held_out_fraction):
        return system.temperature_kelvin, config.production_ps
    return config.training_kelvin or system.temperature_kelvin, config.training_ps or config.production_ps


def walker_label(config: ReferenceConfig, walker: int) -> LabelConfig:
    """Return the label of a walker: they take them in turn."""
    return config.labels[walker % len(config.labels)]


def run_walkers(tasks: tuple[WalkerTask, ...]) -> list[Path]:
    """Minimise, equilibrate and run walkers, all at once in the batched engine; finished files are kept as they are.

    The frames carry log-weights V_bias/kT' + U/kT' - U/kT, so that weighted averages are those of the unbiased molecule at its
    own temperature T, whatever the walker's temperature T'. A walker that
    blows up starts again with another seed, at most `MAX_ATTEMPTS` times.
    """
    checkpoint = tasks[0].path.with_name(f"checkpoint-{tasks[0].walker:04d}-{len(tasks)}.npz")
    batched = functools.partial(_simulate_batch, checkpoint=checkpoint)
    simulate = batched if tasks[0].platform == BATCHED else _simulate_each
    problem = ""
    for attempt in range(MAX_ATTEMPTS):
        missing = [task for task in tasks if not task.path.exists()]
        if not missing:
            break
        problem = simulate(missing, attempt)
    checkpoint.unlink(missing_ok=True)
    missing = [task for task in tasks if not task.path.exists()]
    if missing:
        raise InputError(
            f"walker {missing[0].walker} failed with {MAX_ATTEMPTS} seeds; the last error: {problem}. "
            "Try a shorter reference.timestep_fs, or reference.starts: given"
        )
    return [task.path for task in tasks]


def run_walker(task: WalkerTask) -> Path:
    """Run one walker; see `run_walkers`."""
    return run_walkers((task,))[0]


def _protocol(task: WalkerTask) -> CopyProtocol:
    config = task.config
    return CopyProtocol(
        timestep_fs=config.timestep_fs, friction_per_ps=config.friction_per_ps, constraints=config.constraints,
        minimise_iterations=200, equilibration_ps=config.equilibration_ps, production_ps=task.production_ps,
        save_every_ps=config.save_every_ps, temperature_kelvin=task.temperature_kelvin,
    )  # fmt: skip


def _seed(task: WalkerTask, attempt: int) -> int:
    return derive_seed(task.seed, "reference", task.walker, attempt)


def _simulate_batch(tasks: list[WalkerTask], attempt: int, checkpoint: Path) -> str:
    """Run walkers at once and write those that did not blow up; return what happened to the others."""
    watch, first = Stopwatch(), tasks[0]
    seeds = [_seed(task, attempt) for task in tasks]
    protocol = _protocol(first)
    starts, hotter = [task.start_nm for task in tasks], first.config.tempering_kelvin
    if hotter:
        swap_ps = first.config.swap_every_ps
        run = simulate_ladders(first.system, starts, seeds, protocol, hotter, swap_ps, checkpoint)
    else:
        run = simulate_copies(first.system, starts, seeds, protocol, first.bias, checkpoint)
    n = len(tasks)
    spent = {"cpu_s": (watch.cpu_s + run.earlier_cpu_s) / n, "wall_s": (watch.wall_s + run.earlier_wall_s) / n}
    for task, seed, copy in zip(tasks, seeds, run.copies, strict=True):
        if copy.finite:
            _write(task, seed, copy, run.engine, spent)
    return "positions or energies are not finite"


def _simulate_each(tasks: list[WalkerTask], attempt: int) -> str:
    """Run walkers one by one on an OpenMM platform; return the last error."""
    problem = ""
    for task in tasks:
        seed, protocol, watch = _seed(task, attempt), _protocol(task), Stopwatch()
        try:
            engine = Engine(
                task.system, task.platform, seed, timestep_fs=protocol.timestep_fs, constraints=protocol.constraints,
                friction_per_ps=protocol.friction_per_ps, bias=task.bias, integrator=task.config.integrator,
                temperature_kelvin=protocol.temperature_kelvin,
            )  # fmt: skip
            engine.set_positions(task.start_nm)
            minimised = engine.minimise(protocol.minimise_iterations)
            engine.set_positions(engine.positions_nm, draw_velocities=True)
            engine.step(protocol.equilibration_steps)
            blocks = list(engine.simulate(protocol.n_frames, protocol.steps_per_frame))
        except (FloatingPointError, ValueError, OpenMMException) as error:
            problem = str(error)
            continue
        positions, energies, times = (
            np.concatenate([getattr(block, name) for block in blocks])
            for name in ("positions_nm", "potential_kj_mol", "time_ps")
        )
        copy = CopyFrames(positions, energies, times, minimised, finite=True)
        _write(task, seed, copy, engine.platform, {"cpu_s": watch.cpu_s, "wall_s": watch.wall_s})
    return problem


def _write(task: WalkerTask, seed: int, copy: CopyFrames, engine: str, spent: dict[str, float]) -> None:
    system, protocol = task.system, _protocol(task)
    reduced_energy = copy.potential_kj_mol / system.kt_kj_mol
    ratio = system.temperature_kelvin / task.temperature_kelvin
    log_weight = np.zeros(protocol.n_frames)
    if not task.config.labels:  # where each temperature is an ensemble of its own
        log_weight -= (1 - ratio) * reduced_energy
    if task.bias is not None:
        log_weight += ratio * task.bias.energy_kj_mol(torsion_angles(copy.positions_nm, task.bias.atoms)) / system.kt_kj_mol
    ensemble = Ensemble.create(
        system,
        copy.positions_nm,
        reduced_energy=reduced_energy,
        log_weight=log_weight,
        trajectory=task.walker,
        time_ps=copy.time_ps,
    )
    attributes = {
        **spent,
        "n_steps": protocol.n_steps * (1 + len(task.config.tempering_kelvin)),  # of all copies of the walker
        "timestep_fs": protocol.timestep_fs,
        "platform": engine,
        "bias": repr(task.bias),
        "temperature_kelvin": task.temperature_kelvin,
    }
    write_ensemble(task.path, ensemble, system, seed=seed, config_yaml=dump_config(task.config), attributes=attributes)


ReferenceTask = tuple[WalkerTask, ...] | ImportTask | SeriesTask


def plan_reference(system: MolecularSystem, config: ReferenceConfig, seed: int, directory: Path) -> Sequence[ReferenceTask]:
    """One task for each item of work: the user's files where the configuration names some, walkers to simulate otherwise.

    A walker is an item of its own, or in the batched engine as many as fill a vector.
    """
    if config.trajectories:
        return plan_imports(system, config, directory)
    tasks = plan_walkers(system, config, seed, directory)
    size = max(1, copies_per_batch(system) // (1 + len(config.tempering_kelvin))) if tasks[0].platform == BATCHED else 1
    kinds = dict.fromkeys((task.temperature_kelvin, task.production_ps) for task in tasks)
    alike = [[task for task in tasks if (task.temperature_kelvin, task.production_ps) == own] for own in kinds]
    return [tuple(part[start : start + size]) for part in alike for start in range(0, len(part), size)]


def run_reference(task: ReferenceTask) -> list[Path]:
    """Simulate or import the trajectories of one item; return their files."""
    if isinstance(task, SeriesTask):
        return import_series(task)
    return [import_trajectory(task)] if isinstance(task, ImportTask) else run_walkers(task)


def n_trajectories(tasks: Sequence[ReferenceTask]) -> int:
    """How many trajectories the tasks make."""
    return sum(len(task) if isinstance(task, tuple) else 1 for task in tasks)


def walker_costs(paths: list[Path]) -> list[dict[str, float]]:
    """Return CPU seconds, wall seconds and simulated ns of each walker's file."""
    costs = []
    for path in paths:
        if path.name == SERIES:
            costs.append({"cpu_s": 0.0, "wall_s": 0.0, "ns": 0.0})
            continue
        attributes = read_attributes(path)
        simulated_ns = float(attributes["n_steps"]) * float(attributes["timestep_fs"]) * 1e-6
        costs.append({"cpu_s": float(attributes["cpu_s"]), "wall_s": float(attributes["wall_s"]), "ns": simulated_ns})
    return costs
