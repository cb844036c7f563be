"""Reference MD: independent walkers, each one item of work and one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openmm import OpenMMException

from hpc_molgen.config import ReferenceConfig, dump_config
from hpc_molgen.dynamics.bias import flattening_bias, spread_structures
from hpc_molgen.dynamics.engine import Engine, fastest_platform
from hpc_molgen.dynamics.imported import ImportTask, import_trajectory, plan_imports
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
    """One walker: what to simulate and where to write it; it pickles."""

    walker: int
    system: MolecularSystem
    config: ReferenceConfig
    seed: int
    start_nm: np.ndarray
    platform: str
    bias: TorsionBias | None
    path: Path


def plan_walkers(system: MolecularSystem, config: ReferenceConfig, seed: int, directory: Path) -> list[WalkerTask]:
    """Choose the platform, the bias and spread starting structures; return one task per walker."""
    bias = None
    if config.bias_torsion is not None:
        bias = flattening_bias(system, torsion_by_name(system.topology, config.bias_torsion), derive_seed(seed, "bias"))
    platform = fastest_platform(system) if config.platform == "auto" else config.platform
    starts = np.repeat(system.positions_nm[None], config.n_walkers, axis=0)
    if config.starts == "spread":
        starts = spread_structures(system, config.n_walkers, seed)
    return [
        WalkerTask(walker, system, config, seed, starts[walker], platform, bias, directory / f"walker-{walker:04d}.h5")
        for walker in range(config.n_walkers)
    ]


def run_walker(task: WalkerTask) -> Path:
    """Minimise, equilibrate and run one walker; a finished file is kept as it is.

    The frames carry log-weights +V_bias/kT, so that weighted averages are those of the unbiased molecule. A walker that
    blows up starts again with another seed, at most `MAX_ATTEMPTS` times.
    """
    if task.path.exists():
        return task.path
    problem: Exception | None = None
    for attempt in range(MAX_ATTEMPTS):
        try:
            _simulate(task, derive_seed(task.seed, "reference", task.walker, attempt))
            return task.path
        except (FloatingPointError, ValueError, OpenMMException) as error:
            problem = error
    raise InputError(
        f"walker {task.walker} failed with {MAX_ATTEMPTS} seeds; the last error: {problem}. "
        "Try a shorter reference.timestep_fs, or reference.starts: given"
    )


def _simulate(task: WalkerTask, seed: int) -> None:
    config, system = task.config, task.system
    watch = Stopwatch()
    engine = Engine(
        system,
        task.platform,
        seed,
        timestep_fs=config.timestep_fs,
        friction_per_ps=config.friction_per_ps,
        constraints=config.constraints,
        bias=task.bias,
    )
    engine.set_positions(task.start_nm)
    engine.minimise(200)
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    engine.step(round(config.equilibration_ps * 1e3 / config.timestep_fs))
    steps_per_frame = max(1, round(config.save_every_ps * 1e3 / config.timestep_fs))
    n_frames = max(1, round(config.production_ps * 1e3 / config.timestep_fs / steps_per_frame))
    blocks = list(engine.simulate(n_frames, steps_per_frame))
    positions = np.concatenate([block.positions_nm for block in blocks])
    energies = np.concatenate([block.potential_kj_mol for block in blocks])
    log_weight = np.zeros(n_frames)
    if task.bias is not None:
        log_weight = task.bias.energy_kj_mol(torsion_angles(positions, task.bias.atoms)) / system.kt_kj_mol
    ensemble = Ensemble.create(
        system,
        positions,
        reduced_energy=energies / system.kt_kj_mol,
        log_weight=log_weight,
        trajectory=task.walker,
        time_ps=np.concatenate([block.time_ps for block in blocks]),
    )
    attributes = {
        "cpu_s": watch.cpu_s,
        "wall_s": watch.wall_s,
        "n_steps": n_frames * steps_per_frame + round(config.equilibration_ps * 1e3 / config.timestep_fs),
        "timestep_fs": config.timestep_fs,
        "platform": engine.platform,
        "bias": repr(task.bias),
    }
    write_ensemble(task.path, ensemble, system, seed=seed, config_yaml=dump_config(config), attributes=attributes)


def plan_reference(
    system: MolecularSystem, config: ReferenceConfig, seed: int, directory: Path
) -> Sequence[WalkerTask | ImportTask]:
    """One task per trajectory: the user's files where the configuration names some, walkers to simulate otherwise."""
    if config.trajectories:
        return plan_imports(system, config, directory)
    return plan_walkers(system, config, seed, directory)


def run_reference(task: WalkerTask | ImportTask) -> Path:
    """Simulate or import one trajectory; return its file."""
    return import_trajectory(task) if isinstance(task, ImportTask) else run_walker(task)


def walker_costs(paths: list[Path]) -> list[dict[str, float]]:
    """Return CPU seconds, wall seconds and simulated ns of each walker's file."""
    costs = []
    for path in paths:
        attributes = read_attributes(path)
        simulated_ns = float(attributes["n_steps"]) * float(attributes["timestep_fs"]) * 1e-6
        costs.append({"cpu_s": float(attributes["cpu_s"]), "wall_s": float(attributes["wall_s"]), "ns": simulated_ns})
    return costs
