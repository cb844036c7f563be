"""One replica: minimise, equilibrate, run; a failure is a record and not a crash."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.config import FarmConfig, dump_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.ensemble import Ensemble, read_attributes, write_ensemble
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.structures import read_pdb_positions
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.forcefield import solvate
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    from hpc_molgen.dynamics.copies import CopyProtocol

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Replica:
    """What one replica runs and where it writes; it pickles."""

    index: int
    system: MolecularSystem
    config: FarmConfig
    seed: int
    platform: str
    pdb: Path
    path: Path


@dataclass(frozen=True)
class ReplicaRecord:
    """What became of a replica."""

    replica: int
    pdb: str
    state: str  # "done" or "failed"
    attempts: int
    error: str = ""
    minimised_kj_mol: float = float("nan")
    simulated_ns: float = 0.0
    cpu_s: float = 0.0
    platform: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def run_replica(replica: Replica) -> ReplicaRecord:
    """Run one replica, or return the record of the finished one.

    A replica that blows up starts again with another seed, at most `MAX_ATTEMPTS` times; then, or with a bad PDB, its
    record says why.
    """
    if replica.path.exists():
        found = read_attributes(replica.path)
        return _record(replica, found, int(found["attempts"]))
    error = ""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return _record(replica, _simulate(replica, attempt), attempt)
        except EnvironmentProblem:
            raise  # a full disk concerns all replicas
        except InputError as problem:
            return ReplicaRecord(replica.index, replica.pdb.name, "failed", attempt, str(problem))
        except Exception as problem:  # whatever OpenMM raises for this structure must not end the others
            error = "".join(traceback.format_exception_only(problem)).strip()
    return ReplicaRecord(replica.index, replica.pdb.name, "failed", MAX_ATTEMPTS, error)


def run_batch(replicas: tuple[Replica, ...]) -> list[ReplicaRecord]:
    """Run replicas at once in the batched engine; records as those of `run_replica`, in the same order.

    A replica that blows up starts again with another seed beside the others that did, at most `MAX_ATTEMPTS` times.
    """
    checkpoint = replicas[0].path.with_name(f"checkpoint-{replicas[0].index:05d}-{len(replicas)}.npz")
    records: dict[int, ReplicaRecord] = {}
    starts: dict[int, np.ndarray] = {}
    for replica in replicas:
        if replica.path.exists():
            found = read_attributes(replica.path)
            records[replica.index] = _record(replica, found, int(found["attempts"]))
            continue
        try:
            starts[replica.index] = read_pdb_positions(replica.pdb, replica.system)
        except InputError as problem:
            records[replica.index] = ReplicaRecord(replica.index, replica.pdb.name, "failed", 1, str(problem))
    for attempt in range(1, MAX_ATTEMPTS + 1):
        missing = [replica for replica in replicas if replica.index not in records]
        if missing:
            records |= _simulate_batch(missing, starts, attempt, checkpoint)
    checkpoint.unlink(missing_ok=True)
    for replica in replicas:
        if replica.index not in records:
            text = f"positions or energies were not finite with {MAX_ATTEMPTS} seeds"
            records[replica.index] = ReplicaRecord(replica.index, replica.pdb.name, "failed", MAX_ATTEMPTS, text)
    return [records[replica.index] for replica in replicas]


def _protocol(replica: Replica) -> CopyProtocol:
    from hpc_molgen.dynamics.copies import CopyProtocol

    config = replica.config
    return CopyProtocol(
        timestep_fs=config.timestep_fs, friction_per_ps=config.friction_per_ps, constraints=config.constraints,
        minimise_iterations=config.minimise_iterations, equilibration_ps=config.equilibration_ps,
        production_ps=config.production_ps, save_every_ps=config.save_every_ps,
        temperature_kelvin=config.temperature_kelvin or replica.system.temperature_kelvin,
    )  # fmt: skip


def _simulate_batch(
    replicas: list[Replica], starts: dict[int, np.ndarray], attempt: int, checkpoint: Path
) -> dict[int, ReplicaRecord]:
    """Run and write replicas; return the records of those that did not blow up."""
    from hpc_molgen.dynamics.copies import simulate_copies

    solute, watch = replicas[0].system, Stopwatch()
    protocol = _protocol(replicas[0])
    seeds = [derive_seed(replica.seed, "farm", replica.index, attempt) for replica in replicas]
    found = [starts[replica.index] for replica in replicas]
    run = simulate_copies(solute, found, seeds, protocol, checkpoint=checkpoint)
    n = len(replicas)
    spent = {"cpu_s": (watch.cpu_s + run.earlier_cpu_s) / n, "wall_s": (watch.wall_s + run.earlier_wall_s) / n}
    records = {}
    for replica, seed, copy in zip(replicas, seeds, run.copies, strict=True):
        if not copy.finite:
            continue
        values = {
            "attempts": attempt, "minimised_kj_mol": copy.minimised_kj_mol, "simulated_ns": protocol.simulated_ns, **spent,
            "platform": run.engine, "simulated_atoms": solute.n_atoms, "energy_function": solute.description,
        }  # fmt: skip
        _write(replica, seed, copy.positions_nm, copy.potential_kj_mol, copy.time_ps, values)
        records[replica.index] = _record(replica, values, attempt)
    return records


def _record(replica: Replica, values: dict[str, Any], attempts: int) -> ReplicaRecord:
    return ReplicaRecord(
        replica=replica.index,
        pdb=replica.pdb.name,
        state="done",
        attempts=attempts,
        minimised_kj_mol=float(values["minimised_kj_mol"]),
        simulated_ns=float(values["simulated_ns"]),
        cpu_s=float(values["cpu_s"]),
        platform=str(values["platform"]),
    )


def _simulate(replica: Replica, attempt: int) -> dict[str, Any]:
    config, solute = replica.config, replica.system
    watch = Stopwatch()
    positions = read_pdb_positions(replica.pdb, solute)
    simulated = solute
    if config.solvent == "tip3p":
        simulated = solvate(solute, positions, "tip3p.xml", config.box_nm, config.solute_force_field)
        positions = simulated.positions_nm
    engine = Engine(
        simulated,
        replica.platform,
        derive_seed(replica.seed, "farm", replica.index, attempt),
        timestep_fs=config.timestep_fs,
        friction_per_ps=config.friction_per_ps,
        constraints=config.constraints,
        temperature_kelvin=config.temperature_kelvin,
        pressure_bar=config.pressure_bar,
    )
    engine.set_positions(positions)
    minimised = engine.minimise(config.minimise_iterations) if config.minimise_iterations else float("nan")
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    protocol = _protocol(replica)
    engine.step(protocol.equilibration_steps)
    frames = list(engine.simulate(protocol.n_frames, protocol.steps_per_frame, n_atoms=solute.n_atoms))
    values = {
        "attempts": attempt,
        "minimised_kj_mol": minimised,
        "simulated_ns": protocol.simulated_ns,
        "cpu_s": watch.cpu_s,
        "wall_s": watch.wall_s,
        "platform": engine.platform,
        "simulated_atoms": simulated.n_atoms,
        "energy_function": simulated.description,
    }
    positions, energies, times = (
        np.concatenate([getattr(block, name) for block in frames]) for name in ("positions_nm", "potential_kj_mol", "time_ps")
    )
    _write(replica, engine.seed, positions, energies, times, values)
    return values


def _write(
    replica: Replica,
    seed: int,
    positions_nm: np.ndarray,
    potential_kj_mol: np.ndarray,
    time_ps: np.ndarray,
    values: dict[str, Any],
) -> None:
    """Write the frames of the molecule itself; energies are those of what was simulated, water included."""
    ensemble = Ensemble.create(
        replica.system,
        positions_nm,
        reduced_energy=potential_kj_mol / replica.system.kt_kj_mol,
        parent=np.full(len(time_ps), replica.index),
        trajectory=replica.index,
        time_ps=time_ps,
    )
    config_yaml = dump_config(replica.config)
    write_ensemble(replica.path, ensemble, replica.system, seed=seed, config_yaml=config_yaml, attributes=values)
