"""Series of named torsions from plain MD: independent walkers, kept as .npy files so that a second run skips them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.dynamics.engine import Engine, fastest_platform
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import torsion_angles, torsion_by_name
from hpc_molgen.workers import Stopwatch, Workers


@dataclass(frozen=True)
class SeriesSettings:
    """How the walkers run; the same settings give the same series.

    Attributes
    ----------
    torsions : tuple of str
        Names as `torsion_by_name` takes them.
    """

    n_walkers: int = 16
    production_ps: float = 3000.0
    equilibration_ps: float = 20.0
    save_every_ps: float = 1.0
    timestep_fs: float = 2.0
    friction_per_ps: float = 1.0
    constraints: str = "hbonds"
    torsions: tuple[str, ...] = ("phi", "psi")

    @property
    def steps_per_frame(self) -> int:
        """Integration steps between frames."""
        return max(1, round(self.save_every_ps * 1e3 / self.timestep_fs))

    @property
    def n_frames(self) -> int:
        """Frames of one walker."""
        return round(self.production_ps / self.save_every_ps)


@dataclass(frozen=True)
class WalkerSeries:
    """One walker: its torsions and what they cost.

    Attributes
    ----------
    angles_rad : np.ndarray, shape=(n_frames, n_torsions)
    costs : dict
        cpu_s, wall_s, ns (equilibration included), platform.
    """

    angles_rad: np.ndarray
    costs: dict[str, Any]


@dataclass(frozen=True)
class _Task:
    walker: int
    system: MolecularSystem
    settings: SeriesSettings
    seed: int
    platform: str
    path: Path


def torsion_series(
    system: MolecularSystem,
    settings: SeriesSettings,
    seed: int,
    directory: Path,
    workers: Workers,
    on_walker: Callable[[Path], None] | None = None,
) -> list[WalkerSeries]:
    """Run the walkers that are not yet in `directory`; return all of them.

    All start at the minimised structure of the system with velocities of their own seeds. The files lie in a folder named after
    everything that defines them, so settings that differ never share one.
    """
    identity = json.dumps([system.key, asdict(settings), seed])
    folder = directory / f"torsions-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"walker-{walker:04d}.npy" for walker in range(settings.n_walkers)]
    missing = [walker for walker, path in enumerate(paths) if not path.with_suffix(".json").is_file()]
    platform = fastest_platform(system) if missing else ""
    tasks = [
        _Task(walker, system, settings, derive_seed(seed, "torsion series", walker), platform, paths[walker])
        for walker in missing
    ]
    workers.map(_run_walker, tasks, on_walker)
    return [_read_walker(path, settings) for path in paths]


def _read_walker(path: Path, settings: SeriesSettings) -> WalkerSeries:
    try:
        angles = np.load(path, allow_pickle=False)
        costs = json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable series of torsions ({error}); delete it and run again") from error
    if angles.shape != (settings.n_frames, len(settings.torsions)) or not np.isfinite(angles).all():
        raise InputError(f"{path}: shape {angles.shape} or values that are not finite; delete it and run again")
    return WalkerSeries(angles, costs)


def _run_walker(task: _Task) -> Path:
    settings, system, watch = task.settings, task.system, Stopwatch()
    quads = [torsion_by_name(system.topology, name) for name in settings.torsions]
    engine = Engine(
        system,
        task.platform,
        task.seed,
        timestep_fs=settings.timestep_fs,
        friction_per_ps=settings.friction_per_ps,
        constraints=settings.constraints,
    )
    engine.minimise()
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    n_equilibration = round(settings.equilibration_ps * 1e3 / settings.timestep_fs)
    engine.step(n_equilibration)
    blocks = [
        np.stack([torsion_angles(frames.positions_nm, quad) for quad in quads], axis=1)
        for frames in engine.simulate(settings.n_frames, settings.steps_per_frame)
    ]
    n_steps = n_equilibration + settings.n_frames * settings.steps_per_frame
    costs = {
        "cpu_s": watch.cpu_s,
        "wall_s": watch.wall_s,
        "ns": n_steps * settings.timestep_fs * 1e-6,
        "platform": engine.platform,
    }
    _write_whole(task.path, np.concatenate(blocks), costs)
    return task.path


def _write_whole(path: Path, angles_rad: np.ndarray, costs: dict[str, Any]) -> None:
    """Write the array, then its costs: the second file says that the first is whole."""
    partial = path.with_name(f"{path.stem}.partial-{os.getpid()}.npy")
    np.save(partial, angles_rad)
    os.replace(partial, path)
    partial_costs = partial.with_suffix(".json")
    partial_costs.write_text(json.dumps(costs))
    os.replace(partial_costs, path.with_suffix(".json"))
