"""A run directory: its configuration, its stages with done markers, costs and provenance."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_molgen import __version__, failures, interrupts, locks
from hpc_molgen.config import RunConfig, dump_config, load_config, molecule_name
from hpc_molgen.energy import EnergyMeter
from hpc_molgen.errors import EnvironmentProblem, InputError, Interrupted
from hpc_molgen.files import is_partial, read_json, write_atomically, write_json
from hpc_molgen.progress import Progress
from hpc_molgen.provenance import provenance
from hpc_molgen.workers import ShareDone, Workers, cpu_seconds, local_rank

if TYPE_CHECKING:
    from hpc_molgen.systems.base import MolecularSystem

log = logging.getLogger(__name__)

# stage -> (sections of the configuration that it depends on, stages whose files it reads)
STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "reference": (("system", "reference"), ()),
    "featurize": (("representation",), ("reference",)),
    "train": (("surrogate", "train", "refine"), ("featurize",)),
    "sample": (("sample",), ("train",)),
    "correct": (("correct",), ("sample",)),
    "farm": (("farm",), ("correct",)),
    "report": (("report",), ("reference", "train", "sample", "correct", "farm")),
}
# settings of how a stage runs that do not change what it computes
_HEADER = "# a run of hpc-molgen: the resolved configuration\n"
_HOW = {"checkpoint_every_s", "device", "log_every", "threads", "accumulate", "compile", "chunk_s", "minutes", "per_gpu"}
_BY_CONTENT = {"trained"}  # settings that name a file, of which the content counts and not the place


class Run:
    """One run directory, opened by every process that works on it.

    Parameters
    ----------
    directory : Path
    config : RunConfig
    workers : Workers
        Who does the work; only their root writes shared files.
    """

    def __init__(self, directory: Path, config: RunConfig, workers: Workers) -> None:
        self.directory, self.config, self.workers = directory, config, workers

    @classmethod
    def create(cls, directory: Path, config: RunConfig, workers: Workers) -> Run:
        """Make the directory (or reuse an earlier run's) and write the resolved configuration.

        Raises
        ------
        InputError
            When the directory holds files that are not of a run.
        EnvironmentProblem
            When it cannot be made or written, or another program works there.
        """
        if workers.is_root:
            own = directory / "config.yaml"
            try:
                directory.mkdir(parents=True, exist_ok=True)
                others = {path.name for path in directory.iterdir() if not path.name.startswith((".", "lock", "logs"))}
                foreign = others and not (own.is_file() and own.read_text().startswith(_HEADER))
            except OSError as error:
                raise EnvironmentProblem(f"{directory}: cannot be written ({error}); choose another --out") from error
            if foreign:
                raise InputError(f"{directory}: holds files that are not of an hpc-molgen run; choose another --out")
            text = (_HEADER + dump_config(config)).encode()
            with cls(directory, config, Workers(share=workers.share)).lock():
                if not own.is_file() or own.read_bytes() != text:
                    write_atomically(own, text)
        workers.barrier()
        return cls(directory, config, workers)

    @classmethod
    def open(cls, directory: Path, workers: Workers | None = None) -> Run:
        """Open an existing run directory."""
        workers = workers or Workers()

        def read() -> RunConfig | str:
            try:
                if not (directory / "config.yaml").is_file():
                    return f"{directory}: not a run directory (it has no config.yaml)"
                return load_config(str(directory / "config.yaml"))
            except InputError as error:
                return str(error)

        config = workers.from_root(read)  # the others may not see the folder: `lock` finds out
        if isinstance(config, str):
            raise InputError(config)
        return cls(directory, config, workers)

    @functools.cached_property
    def system(self) -> MolecularSystem:
        """The molecular system of the configuration."""
        from hpc_molgen.systems.registry import load_system

        return load_system(self.config.system)

    def path(self, *parts: str) -> Path:
        """Path below the run directory."""
        return self.directory.joinpath(*parts)

    def progress(self, stage: str, total: float, unit: str) -> Progress:
        """Progress of a stage: a bar on a terminal, log lines elsewhere, and a file for `hpc-molgen status`."""
        number, of = self.workers.share
        name = "progress.json" if of == 1 else f"progress-{number:05d}.json"
        return Progress(stage, total / of, unit, self.path(stage, name) if self.workers.is_root else None, of)

    def inputs(self, stage: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Sections of the configuration that a stage depends on, and the stages whose files it reads."""
        if stage == "farm" and self._has_starts():
            return ("system", "farm"), ()
        if stage == "report" and self.config.makes_trajectories:
            seeded = ("farm",) if self.path("farm", "done.json").is_file() else ()  # which not every such run has
            return ("report",), ("reference", "train", "sample", *seeded)
        return STAGES[stage]

    def _has_starts(self) -> bool:
        """Whether the farm's structures are the user's, of every molecule where there are many, and not those of `correct`."""
        own = [entry.get("farm") if isinstance(entry, dict) else None for entry in self.config.molecules]
        each = bool(own) and all(isinstance(farm, dict) and farm.get("starts") is not None for farm in own)
        return each or self.config.farm.starts is not None

    def fingerprint(self, stage: str) -> str:
        """Hash of all that the stage's results depend on: its sections, the seed, the schema, and what it reads."""
        values = self.config.model_dump(mode="json")
        parts = (values, *(entry for entry in values["molecules"] if isinstance(entry, dict)))
        frames = {name: _file_stamp(Path(name)) for part in parts for name in _named_files(part)}
        return self._fingerprint(stage, values, frames)

    def _fingerprint(self, stage: str, values: dict[str, Any], frames: dict[str, Any]) -> str:
        """Hash of a stage and of those before it, of a configuration and the stamps of the files that its frames come from."""
        sections, upstream = self.inputs(stage)
        own: dict[str, Any] = {s: {k: v for k, v in values[s].items() if k not in _HOW | _BY_CONTENT} for s in sections}
        files = dict(frames)
        if self.config.molecules:
            own["molecules"] = [_about(entry, sections) for entry in values["molecules"]]
            names = {molecule_name(entry) for entry in values["molecules"]}
            own |= {"unseen": sorted(names & {*values["unseen"]})} if stage == "train" else {}
        if stage == "train" and (trained := values["surrogate"].get("trained")):
            files["trained"] = _file_stamp(trained_file(Path(trained)))
        if stage == "train" and self.config.refine.teacher is not None:
            files["teacher"] = _file_stamp(Path(self.config.refine.teacher) / "train" / "surrogate.safetensors")
        if stage == "farm" and self.config.farm.starts is not None:
            starts = Path(self.config.farm.starts)
            files["starts"] = [[path.name, *_file_stamp(path)] for path in sorted(starts.glob("*.pdb"))] or _file_stamp(starts)
        before = [self._fingerprint(name, values, frames) for name in upstream]
        text = json.dumps([__version__, self.config.seed, own, files, before], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def is_done(self, stage: str) -> bool:
        """True when the stage finished with the present inputs."""
        marker = self.path(stage, "done.json")
        return marker.is_file() and read_json(marker).get("fingerprint") == self.fingerprint(stage)

    @contextlib.contextmanager
    def stage(self, stage: str) -> Iterator[dict[str, Any]]:
        """Enter a stage: clear results of other inputs, count costs whatever happens, write the marker at the end.

        Yields
        ------
        dict
            Details (figures of the stage) that go into done.json.
        """
        interrupts.check()
        problem = self.workers.from_root(lambda: self._missing_input(stage))
        if problem:
            raise InputError(problem)
        problem = self.workers.from_root(lambda: self._enter(stage))
        if problem:
            raise InputError(problem)
        details: dict[str, Any] = {}
        spent = _Spent()
        try:
            yield details
            interrupts.check()
        except ShareDone:
            self._count(stage, spent, None)
            return
        except BaseException as error:
            self._count(stage, spent, error)
            raise
        self._count(stage, spent, None)
        self.workers.barrier()
        if self.workers.is_root:
            record = {"stage": stage, "fingerprint": self.fingerprint(stage), "details": details}
            write_json(self.path(stage, "done.json"), record | {"provenance": provenance()})
            for path in self.path(stage).glob("progress*.json"):
                path.unlink(missing_ok=True)
        self.workers.barrier()

    def _missing_input(self, stage: str) -> str:
        for name in self.inputs(stage)[1]:
            if not self.is_done(name):
                state = "was made with other settings" if self.path(name, "done.json").is_file() else "is not finished"
                return f"{stage} needs the stage '{name}', which {state}: run it first, for example with --from {name}"
        return ""

    def _enter(self, stage: str) -> str:
        """Make the stage's folder ready, one job of an array at a time; return what is in the way."""
        directory, fingerprint = self.path(stage), self.fingerprint(stage)
        marker = directory / "inputs.json"
        with open(self.path("entering"), "a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if directory.is_dir() and any(not is_partial(path) for path in directory.iterdir()):
                known = read_json(marker).get("fingerprint") if marker.is_file() else None
                if known is None:
                    return f"{directory}: holds files that no stage of hpc-molgen wrote; choose another --out"
                if known != fingerprint:
                    kept = directory.with_name(f"{stage}.old-{known}")
                    log.info("%s: its inputs have changed, earlier results of this stage are kept in %s", stage, kept)
                    shutil.rmtree(kept, ignore_errors=True)
                    directory.rename(kept)
            (directory / "done.json").unlink(missing_ok=True)
            failures.forget(directory, self.workers)
            write_json(marker, {"fingerprint": fingerprint, "pid": os.getpid(), "host": socket.gethostname()})
        return ""

    @contextlib.contextmanager
    def counted(self, part: str) -> Iterator[None]:
        """Count what a part of a stage costs this rank, whatever happens, under a name of its own in `stage_costs`."""
        spent, finished = _Spent(), False
        try:
            yield
            finished = True
        finally:
            self._append_cost(part, spent, finished)

    def _count(self, stage: str, spent: _Spent, error: BaseException | None) -> None:
        self._append_cost(stage, spent, error is None)
        interrupted = isinstance(error, KeyboardInterrupt | Interrupted) or interrupts.came()
        if error is not None and not interrupted:
            failures.note(self.path(stage), error, self.workers)

    def _append_cost(self, name: str, spent: _Spent, finished: bool) -> None:
        """Append this rank's cost of this attempt, finished or not."""
        record = {"rank": self.workers.rank, **spent.so_far(), "finished": finished, "workers": self.workers.n_parallel}
        path = self.path("costs", f"{name}.jsonl")  # outside of the stage's folder: searches over settings are counted too
        with contextlib.suppress(OSError):  # a full disk must not hide the error
            path.parent.mkdir(exist_ok=True)
        with contextlib.suppress(OSError), open(path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def details(self, stage: str) -> dict[str, Any]:
        """Figures that a finished stage recorded."""
        details: dict[str, Any] = read_json(self.path(stage, "done.json"))["details"]
        return details

    def lock(self) -> AbstractContextManager[None]:
        """Refuse a second program on the same run directory; see `locks.hold`."""
        return locks.hold(self.directory, self.workers)


class _Spent:
    """Wall and CPU seconds of this rank since it was made; joules of its node, where they can be read, on the node's first."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()
        self._meter = EnergyMeter() if local_rank() == 0 else None

    def so_far(self) -> dict[str, float | None]:
        """Return them by name."""
        joules = self._meter.joules if self._meter else None
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": cpu_seconds() - self._cpu, "joules": joules}


def _about(entry: str | dict[str, Any], sections: Sequence[str]) -> Any:
    """Return what an entry of `molecules` says of these sections, but for what changes no result."""
    if isinstance(entry, str):
        return entry
    kept = {key: value for key, value in entry.items() if key in ("name", "seed", *sections)}
    told = {
        key: {k: v for k, v in value.items() if k not in _HOW | _BY_CONTENT} if isinstance(value, dict) else value
        for key, value in kept.items()
    }
    return {key: value for key, value in told.items() if value != {}}


def trained_file(path: Path) -> Path:
    """Return the surrogate's file, given that or its run directory."""
    return path / "train" / "surrogate.safetensors" if path.is_dir() else path


def _named_files(values: dict[str, Any]) -> list[str]:
    """Files that the frames are made from, as a configuration or an entry of `molecules` names them."""
    told = (values.get("system"), values.get("reference"))
    system, reference = (part if isinstance(part, dict) else {} for part in told)  # other mistakes are told elsewhere
    names = [system.get("pdb"), system.get("sdf"), system.get("system_xml"), *(system.get("force_field") or ())]
    return [name for name in [*names, reference.get("trajectory_topology"), *(reference.get("trajectories") or ())] if name]


def _file_stamp(path: Path) -> list[int | str]:
    """What tells a file from a changed one: its content, or size and time where reading it would take long."""
    if not path.is_file():
        return []
    size = path.stat().st_size
    return [size, hashlib.sha256(path.read_bytes()).hexdigest() if size < 2**25 else path.stat().st_mtime_ns]


def stage_costs(run: Run, stage: str) -> dict[str, float]:
    """Return what a stage cost over all attempts: CPU seconds of all ranks, wall seconds, number of attempts.

    And joules of all nodes, where they were counted: with all that ran there beside, so twice where jobs shared a node.
    """
    path = run.path("costs", f"{stage}.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    root = [record for record in records if record["rank"] == 0]
    counted = [record["joules"] for record in records if record.get("joules") is not None]
    return {
        "cpu_s": sum(record["cpu_s"] for record in records),
        "wall_s": sum(record["wall_s"] for record in root),
        "attempts": float(len(root)),
        **({"joules": sum(counted)} if counted and all(record.get("joules") is not None for record in root) else {}),
    }
