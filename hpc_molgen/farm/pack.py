"""Replicas that run at once: chunk after chunk into their files, with one state for all of them."""

from __future__ import annotations

import io
import logging
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen import interrupts
from hpc_molgen.config import dump_config
from hpc_molgen.dynamics.choice import BATCHED
from hpc_molgen.dynamics.engine import GPU_PLATFORMS
from hpc_molgen.dynamics.gromacs import GROMACS
from hpc_molgen.ensemble import Ensemble, write_ensemble
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.farm import trajectory
from hpc_molgen.farm.boxes import boxed
from hpc_molgen.farm.copies import BatchedCopies, Copies, GromacsCopy, OpenMMCopy, Recorded, kinetic_temperature
from hpc_molgen.farm.job import Job, finished
from hpc_molgen.farm.plan import Task
from hpc_molgen.farm.protocol import make_protocol, segment_steps
from hpc_molgen.files import write_atomically
from hpc_molgen.seeding import derive_seed
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.observables import make_observables
from hpc_molgen.workers import Stopwatch

log = logging.getLogger(__name__)
Report = Callable[[list[dict[str, Any]]], bool]
_OWN = ("reduced_energy", "log_density", "log_weight", "parent", "trajectory")


class _LostLease(Exception):
    """Another job has taken the block: nothing may be written any more."""


class Pack:
    """Replicas that run at once, with one state for all of them."""

    def __init__(self, task: Task, job: Job, starts: Mapping[int, np.ndarray]) -> None:
        config = job.config
        self.task, self.job, self.starts = task, job, starts
        self.kelvin = config.temperature_kelvin or job.system.temperature_kelvin
        self.seeds = [derive_seed(job.seed, "farm", replica, task.attempt) for replica in task.replicas]
        self.watch, self.earlier = Stopwatch(children=True), np.zeros(2)
        self.alive = np.ones(len(task.replicas), dtype=bool)
        self.minimised = np.full(len(task.replicas), np.nan)
        self.segment = self.frames = 0
        self.is_over = False
        measure = partial(make_observables, config.observables, job.system)
        self.observables = {replica: measure(start) for replica, start in starts.items()}
        self.kept: list[Recorded] = []
        self.records: list[dict[str, Any]] = []  # not reported yet
        self.state: dict[str, np.ndarray] = {}
        self.state_path = job.folder / "state" / f"pack-{task.pack:05d}-{task.attempt}.npz"

    def run(self, report: Report) -> tuple[list[dict[str, Any]], bool]:
        """Return records of what has ended, and whether the task was left before its end."""
        try:
            with interrupts.deferred():
                return self._run(report)
        except _LostLease:
            log.warning("farm: replicas %s are another job's by now: this one was taken for dead", self.task.replicas)
            return [{"event": "ended", "pack": self.task.pack, "attempt": self.task.attempt, "dropped": True}], True
        except (EnvironmentProblem, InputError, KeyboardInterrupt, MemoryError):
            raise
        except Exception as problem:  # whatever OpenMM raises for these structures must not end the others
            error, self.is_over = "".join(traceback.format_exception_only(problem)).strip(), True
            log.warning("farm: replicas %s: %s", self.task.replicas, error, exc_info=True)
            return self.records + [self._blown(int(row), error) for row in np.flatnonzero(self.alive)], False
        finally:
            if self.is_over:
                self.state_path.unlink(missing_ok=True)
                self._older.unlink(missing_ok=True)

    def _run(self, report: Report) -> tuple[list[dict[str, Any]], bool]:
        copies = self._copies()
        self.protocol = make_protocol(
            self.job.config, self.kelvin, segment_steps(self.job.platform, copies.n_simulated_atoms)
        )  # fmt: skip
        self._begin(copies)
        segments, last, busy = self.protocol.segments, time.monotonic(), Stopwatch(children=True)
        begun_at = self.segment
        while self.segment < len(segments) and self.alive.any():
            try:
                recorded = copies.run(segments[self.segment], self.segment, self.protocol.steps_per_frame)
            except KeyboardInterrupt:
                self._write(copies)
                raise
            new = self._look(copies, recorded)
            self.records += [self._blown(row, "positions or energies were not finite") for row in new]
            self.kept.append(recorded)
            self.segment += 1
            self.state = copies.state()
            over = self.segment == len(segments)
            if over or time.monotonic() - last > self.job.config.chunk_s or interrupts.came():
                self._write(copies)
                interrupts.check()
                chunk = {
                    "event": "chunk", "pack": self.task.pack, "attempt": self.task.attempt,
                    "replicas": [self.task.replicas[row] for row in np.flatnonzero(self.alive)],
                    "frames": self.frames, "share": self.segment / len(segments),
                    "gained": (self.segment - begun_at) / len(segments),
                    "busy_s": busy.wall_s, "cpu_s": busy.cpu_s, "ns": self._gained_ns(begun_at) * int(self.alive.sum()),
                }  # fmt: skip
                self.records.append(chunk)
                if not over:
                    reported, self.records = self.records, []
                    if report(reported):
                        return [], True
                begun_at, last, busy = self.segment, time.monotonic(), Stopwatch(children=True)
        self.is_over = True
        return self.records + [self._done(int(row)) for row in np.flatnonzero(self.alive)], False

    def _gained_ns(self, begun_at: int) -> float:
        steps = sum(segment.n_steps for segment in self.protocol.segments[begun_at : self.segment])
        return steps * self.protocol.timestep_fs * 1e-6

    def _copies(self) -> Copies:
        job, config = self.job, self.job.config
        if job.platform == BATCHED:
            return BatchedCopies(job.system, config, [self.starts[replica] for replica in self.task.replicas], self.seeds)
        simulated = job.system
        start = self.starts[self.task.replicas[0]]
        if config.solvent == "tip3p":
            simulated = boxed(job.system, start, config, job.folder / "boxes")
            start = simulated.positions_nm
        if job.platform == GROMACS:
            return GromacsCopy(simulated, job.system.n_atoms, config, self.seeds[0])
        copy = OpenMMCopy(simulated, job.system.n_atoms, config, job.platform, self.seeds[0])
        copy.place(start)
        return copy

    # ------------------------------------------------------------------ state

    @property
    def _older(self) -> Path:
        return self.state_path.with_suffix(".older.npz")

    def _begin(self, copies: Copies) -> None:
        """Go on from the newest state that fits the trajectories, or start."""
        for path in (self.state_path, self._older):
            found = self._load(path)
            if found is not None and self._fits(found) and copies.restore(found):
                rows = [found["replicas"].tolist().index(replica) for replica in self.task.replicas]
                self.segment, self.frames = int(found["segment"]), int(found["frames"])
                self.minimised = found["minimised"][rows]
                self.alive = found["alive"][rows]
                self.earlier = found["spent"] * len(rows) / len(found["replicas"])
                self.state = copies.state()
                if self.job.platform in GPU_PLATFORMS:
                    log.info(
                        "farm: on %s a replica that goes on is not the same bit for bit as one that never stopped",
                        copies.engine,
                    )
                return
        self.minimised = copies.minimise(self.protocol.segments[0].temperature_kelvin)
        self.state = copies.state()

    def _load(self, path: Path) -> dict[str, np.ndarray] | None:
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as found:
                return {name: found[name] for name in found.files}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            log.warning("%s: damaged (%s); an older state serves", path, error)
            return None

    def _fits(self, found: Mapping[str, np.ndarray]) -> bool:
        """Return whether a state holds these replicas, and their files at least the frames that it tells of."""
        known = found["replicas"].tolist()
        if not set(self.task.replicas) <= set(known) or int(found["segment"]) > len(self.protocol.segments):
            return False
        alive = dict(zip(known, found["alive"].tolist(), strict=True))
        frames = int(found["frames"])
        return all(trajectory.n_frames(self.job.path(replica)) >= frames for replica in self.task.replicas if alive[replica])

    # ------------------------------------------------------------------ what is written

    def _write(self, copies: Copies) -> None:
        """Write the frames since the last chunk, then the state at their end; a kill in between costs the frames alone."""
        if not self.state:
            return
        if self.job.lease is not None and not self.job.lease.holds(self.task):
            raise _LostLease
        over = self.segment == len(self.protocol.segments)
        blocks = [np.concatenate(parts) for parts in zip(*self.kept, strict=True)] if self.kept else []
        n = len(blocks[0]) if blocks else 0
        if n or over:
            for row in np.flatnonzero(self.alive):
                self._append(copies, int(row), [block[:, row] for block in blocks], over)
        self.frames, self.kept = self.frames + n, []
        if over:
            return  # the files say that they are finished
        buffer = io.BytesIO()
        spent = self.earlier + np.array([self.watch.cpu_s, self.watch.wall_s])
        np.savez(
            buffer, **self.state, replicas=np.array(self.task.replicas), alive=self.alive, minimised=self.minimised,  # type: ignore[arg-type]
            segment=np.array(self.segment), frames=np.array(self.frames), spent=spent,
        )  # fmt: skip
        if self.state_path.is_file():
            self.state_path.replace(self._older)
        write_atomically(self.state_path, buffer.getvalue())

    def _append(self, copies: Copies, row: int, values: list[np.ndarray], over: bool) -> None:
        job, replica = self.job, self.task.replicas[row]
        positions, potential, kinetic = values
        n, path = len(positions), job.path(replica)
        step_ps = self.protocol.steps_per_frame * self.protocol.timestep_fs * 1e-3
        ensemble = Ensemble.create(
            job.system, positions, reduced_energy=potential / job.system.kt_kj_mol,
            log_weight=np.full(n, self.task.log_weights[row]), parent=np.full(n, replica), trajectory=replica,
            time_ps=(self.frames + 1 + np.arange(n)) * step_ps,
        )  # fmt: skip
        series = {
            "potentialEnergy": (potential, "kilojoules_per_mole"),
            "kineticEnergy": (kinetic, "kilojoules_per_mole"),
            "temperature": (kinetic_temperature(kinetic, copies.degrees_of_freedom), "kelvin"),
        }
        for name, (function, unit) in self.observables[replica].items():
            series[name] = (np.asarray(function(positions)), unit)
        attributes = self._attributes(copies, row, self.frames + n, over)
        if self.frames and not path.is_file():
            raise EnvironmentProblem(f"{path}: was removed while the replica was running; the same command makes it again")
        if self.frames:
            arrays = {name: getattr(ensemble, name) for name in _OWN} | {name: column for name, (column, _) in series.items()}
            arrays |= {"coordinates": positions, "time": ensemble.time_ps}
            trajectory.append(path, self.frames, arrays, attributes)
        else:
            write_ensemble(
                path, ensemble, job.system, seed=self.seeds[row], config_yaml=dump_config(job.config), attributes=attributes,
                series=series, total_frames=self.protocol.n_frames,
            )  # fmt: skip

    def _attributes(self, copies: Copies, row: int, frames: int, over: bool) -> dict[str, Any]:
        spent = (self.earlier + np.array([self.watch.cpu_s, self.watch.wall_s])) / len(self.task.replicas)
        return {
            "attempts": self.task.attempt, "frames": frames, "minimised_kj_mol": float(self.minimised[row]),
            "simulated_ns": self.protocol.simulated_ns, "cpu_s": float(spent[0]), "wall_s": float(spent[1]),
            "platform": copies.engine, "simulated_atoms": copies.n_simulated_atoms, "energy_function": copies.description,
            "finished": over,
        }  # fmt: skip

    def _done(self, row: int) -> dict[str, Any]:
        replica = self.task.replicas[row]
        record = finished(self.job, replica, self.task.names[row], self.task.log_weights[row])
        if record is None:
            raise EnvironmentProblem(f"{self.job.path(replica)}: was removed or changed by another program")
        for path in _dumps(self.job.folder, replica):
            path.unlink(missing_ok=True)
        return record

    # ------------------------------------------------------------------ failures

    def _look(self, copies: Copies, recorded: Recorded) -> list[int]:
        """Return the rows that have blown up in this segment, and count them out."""
        now = copies.state()["positions"].reshape(len(self.alive), -1)
        sound = np.isfinite(now).all(axis=1)
        for values in recorded:
            sound &= np.isfinite(values).all(axis=tuple(axis for axis in range(values.ndim) if axis != 1))
        blown = np.flatnonzero(self.alive & ~sound)
        self.alive &= sound
        return [int(row) for row in blown]

    def _blown(self, row: int, error: str) -> dict[str, Any]:
        """Dump what is known of a replica that blew up, and return its record."""
        task, replica = self.task, self.task.replicas[row]
        self.alive[row] = False
        of_pack = self.state.get("positions", np.empty(0))
        last = of_pack[row] if of_pack.ndim == 3 else of_pack
        arrays, pdb = _dumps(self.job.folder, replica)
        buffer = io.BytesIO()
        batched = self.job.platform == BATCHED
        rows = {name: values[row] if batched and values.ndim else values for name, values in self.state.items()}
        np.savez(buffer, **rows, segment=np.array(self.segment), seed=np.array(self.seeds[row]))  # type: ignore[arg-type]
        write_atomically(arrays, buffer.getvalue())
        n = self.job.system.n_atoms
        if len(last) >= n and np.isfinite(last).all():
            remark = f"replica {replica}, attempt {task.attempt}, the last state before: {error}"
            write_atomically(pdb, pdb_text(self.job.system.topology, last[:n], [remark.splitlines()[0][:60]]).encode())
        self.job.path(replica).unlink(missing_ok=True)
        return {
            "event": "again", "replica": replica, "pdb": task.names[row], "attempt": task.attempt, "error": error,
            "segment": self.segment, "dump": f"quarantine/{arrays.name}",
        }  # fmt: skip


def _dumps(folder: Path, replica: int) -> tuple[Path, Path]:
    stem = folder / "quarantine" / f"replica-{replica:05d}"
    return stem.with_suffix(".npz"), stem.with_suffix(".pdb")
