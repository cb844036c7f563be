"""Reference trajectories that the user already has: .xtc, .dcd, .h5, .pdb."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np

from hpc_molgen.config import ReferenceConfig
from hpc_molgen.dynamics.choice import choose_energies, energy_function
from hpc_molgen.ensemble import Ensemble, write_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.overlaps import find_parents
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.trajectories import read_trajectories
from hpc_molgen.workers import Stopwatch

MIN_FRAMES = 100
SERIES = "series.h5"  # of the reference stage: time series that came without structures
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImportTask:
    """A contiguous segment of one of the user's files."""

    walker: int
    system: MolecularSystem
    source: Path
    topology: str | None
    segment: tuple[int, int]  # which of how many
    path: Path


@dataclass(frozen=True)
class SeriesTask:
    """Time series without structures: folders of .npy files, or files of `TrajectorySet.write`."""

    sources: tuple[Path, ...]
    dt_ps: float
    path: Path


def plan_imports(
    system: MolecularSystem, config: ReferenceConfig, directory: Path
) -> list[ImportTask] | list[SeriesTask]:  # fmt: skip
    """One task per file; a single file is cut into two contiguous segments, so that one can be held out.

    A system without atoms takes time series, which are one task: what they have in common is found and joined.
    """
    sources = [Path(name) for name in config.trajectories]
    if not system.n_atoms:
        missing = [source for source in sources if not source.exists()]
        if missing or not sources:
            raise InputError(f"{missing[0] if missing else 'reference.trajectories'}: there are no such time series")
        return [SeriesTask(tuple(sources), config.save_every_ps, directory / SERIES)]
    for source in sources:
        if not source.is_file():
            raise InputError(f"{source}: there is no such trajectory (reference.trajectories)")
    segments = 2 if len(sources) == 1 else 1
    jobs = [(source, (part, segments)) for source in sources for part in range(segments)]
    return [
        ImportTask(walker, system, source, config.trajectory_topology, segment, directory / f"walker-{walker:04d}.h5")
        for walker, (source, segment) in enumerate(jobs)
    ]


def load_trajectory(source: Path, topology: str | None, system: MolecularSystem) -> mdtraj.Trajectory:
    """Read a trajectory of this system.

    Raises
    ------
    InputError
        When it cannot be read, or its atoms are not the system's in number, element or order.
    """
    try:
        own_topology = source.suffix in (".h5", ".pdb")
        trajectory = mdtraj.load(str(source)) if own_topology else mdtraj.load(str(source), top=topology or system.topology)
    except Exception as error:  # mdtraj's readers raise bare exceptions of many kinds
        hint = "" if topology else " (give reference.trajectory_topology if the file has other atoms than the system)"
        raise InputError(f"{source}: not a trajectory that mdtraj can read ({type(error).__name__}: {error}){hint}") from error
    if trajectory.n_atoms != system.n_atoms:
        raise InputError(
            f"{source} has {trajectory.n_atoms} atoms, but {system.name} has {system.n_atoms}: "
            "remove water and ions from the trajectory, or choose the system it was made with"
        )
    found = [atom.element.symbol for atom in trajectory.topology.atoms]
    wanted = [atom.element.symbol for atom in system.topology.atoms]
    if found != wanted:
        first = next(index for index, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
        raise InputError(f"{source}: atom {first} is {found[first]}, but {wanted[first]} in {system.name}: reorder the atoms")
    return trajectory


def import_trajectory(task: ImportTask) -> Path:
    """Write one segment as an ensemble, energies recomputed with the system's own energy function."""
    if task.path.exists():
        return task.path
    watch = Stopwatch()
    trajectory = load_trajectory(task.source, task.topology, task.system)
    part, n_parts = task.segment
    frames = trajectory[part * len(trajectory) // n_parts : (part + 1) * len(trajectory) // n_parts]
    if len(frames) < MIN_FRAMES:
        raise InputError(f"{task.source}: {len(trajectory)} frames are too few (at least {MIN_FRAMES * n_parts} are needed)")
    if not np.isfinite(frames.xyz).all():
        raise InputError(f"{task.source}: some coordinates are not finite; remove the damaged frames")
    if task.system.topology.n_bonds and frames.unitcell_lengths is not None:
        frames = frames.make_molecules_whole(inplace=False) if frames.topology.n_bonds else frames
    energies = energy_function(task.system, choose_energies(task.system))(frames.xyz)
    ensemble = Ensemble.create(
        task.system, frames.xyz, reduced_energy=energies, trajectory=task.walker, time_ps=frames.time.astype(np.float64)
    )
    attributes = {
        "cpu_s": watch.cpu_s, "wall_s": watch.wall_s, "n_steps": 0, "timestep_fs": 0.0,
        "platform": "imported", "bias": "None", "source": str(task.source),
    }  # fmt: skip
    write_ensemble(task.path, ensemble, task.system, seed=0, attributes=attributes)
    return task.path


def import_series(task: SeriesTask) -> list[Path]:
    """Write time series to one file: copies left out, windows of one series joined, what shares frames in one group.

    A single series is cut into two contiguous halves, so that one can be held out.

    Raises
    ------
    InputError
        When they cannot be read, differ in their features, or are too short.
    """
    if task.path.exists():
        return [task.path]
    sets = [read_trajectories(source, task.dt_ps) for source in task.sources]
    if len({part.feature_names for part in sets}) > 1:
        raise InputError(f"{task.sources[0]} and others differ in their features: {[part.feature_names for part in sets]}")
    if len({part.condition_names for part in sets}) > 1:
        raise InputError(f"{task.sources[0]} and others differ in their labels: {[part.condition_names for part in sets]}")
    features = [values for part in sets for values in part.features]
    labels = [label for part in sets for label in part.labels]
    conditions = [row for part in sets for row in part.conditions]
    parents = find_parents(features)
    groups = [parent.group for parent in parents]
    log.info("reference: %s", describe_parents(len(features), [len(p.members) for p in parents], len(set(groups))))
    joined = [parent.assemble(features) for parent in parents]
    names = [labels[parent.members[0][0]] for parent in parents]
    own = [{conditions[index] for index, _ in parent.members} for parent in parents]
    if several := next((sorted(rows) for rows in own if len(rows) > 1), None):
        raise InputError(f"series that are copies or windows of one have different labels: {several[:3]}")
    rows = [next(iter(values)) for values in own]
    if len(set(groups)) == 1:
        if len(joined) > 1:
            raise InputError("all time series share frames, though not as windows of one: they cannot be split into two sides")
        middle = len(joined[0]) // 2
        joined, names, groups = [joined[0][:middle], joined[0][middle:]], [f"{names[0]}, {half}" for half in "ab"], [0, 1]
        rows = rows * 2
    if (shortest := min(map(len, joined))) < MIN_FRAMES:
        raise InputError(f"{task.sources[0]}: a series of {shortest} frames is too short ({MIN_FRAMES} are needed)")
    first = sets[0]
    found = dataclasses.replace(
        first, features=tuple(joined), labels=tuple(names), groups=tuple(groups), conditions=tuple(rows)
    )
    found.write(task.path)
    return [task.path]


def describe_parents(n_series: int, members: list[int], n_groups: int) -> str:
    """Return what was found of series that repeat each other, in words."""
    text = f"{n_series} time series are {len(members)} different one(s)"
    joined = [n for n in members if n > 1]
    text += f", {sum(joined)} of them being copies or overlapping windows that make {len(joined)}" if joined else ""
    return text + (f"; some share frames: {n_groups} groups that no split divides" if n_groups < len(members) else "")
