"""Suite `farm-faults`: farms that are killed, starved, poisoned and started twice, and what is left of them.

Small farms of alanine dipeptide run again and again, each time with a fault drawn at random, until they end by themselves.
Every trajectory must open at every moment, and what comes out must be what undisturbed farms make, bit for bit.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.config import RunConfig, SystemConfig, dump_config
from hpc_molgen.efficiency.suites.farm import write_starts
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.farm import ledger
from hpc_molgen.farm.job import Job, replica_path
from hpc_molgen.farm.plan import Task
from hpc_molgen.farm.replica import run_task
from hpc_molgen.mpi_ranks import mpiexec
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system

log = logging.getLogger(__name__)
SIZES = {"laptop": 200, "smoke": 5, "cluster": 2000}  # faults
PATIENCE_S = 120.0
_MARK = "HPC_MOLGEN_TORMENTED"
MAX_LAUNCHES = 60
ENDING = ("kill a rank", "kill rank 0", "SIGTERM", "truncated file")
FAULTS = (*ENDING, "NaN", "disk full", "two starters")
MODES = ("mpi", "mpi batched", "processes", "shared")
_POISONED = """
import os
import numpy as np
from openmm import OpenMMException
from hpc_molgen.farm import copies
seeds = {int(seed) for seed in os.environ["POISONED_SEEDS"].split()}
one, many = copies.OpenMMCopy.run, copies.BatchedCopies.run
def run_one(self, segment, number, steps_per_frame):
    if number and self._seed in seeds:
        raise OpenMMException("Particle coordinate is NaN")
    return one(self, segment, number, steps_per_frame)
def run_many(self, segment, number, steps_per_frame):
    for row, seed in enumerate(self._seeds):
        if number and seed in seeds:
            self._dynamics._x[row] = np.nan
    return many(self, segment, number, steps_per_frame)
copies.OpenMMCopy.run, copies.BatchedCopies.run = run_one, run_many
from hpc_molgen.cli import main
main()
"""


@dataclass
class Tally:
    """What was seen.

    Attributes
    ----------
    faults : Counter of str
        Faults that met a running farm.
    problems : list of str
        What should not have been.
    """

    faults: Counter[str]
    problems: list[str]
    n_farms: int = 0
    n_launches: int = 0
    n_replicas: int = 0
    n_opened: int = 0
    n_late: int = 0


def farm_faults(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Torment farms until enough faults have met them; return this part of the record."""
    costs, tally = Costs(), Tally(Counter(), [])
    generator = numpy_generator(seed, "farm faults")
    system = load_system(SystemConfig())
    modes = itertools.cycle(MODES)
    with costs.stage("farms and their checks"), tempfile.TemporaryDirectory(dir=out) as folder:
        while tally.faults.total() < SIZES[size]:
            mode = next(modes)
            torment = _Torment(Path(folder) / f"farm-{tally.n_farms}", mode, system, generator, tally, SIZES[size])
            torment.run()
            shutil.rmtree(torment.folder, ignore_errors=True)
            tally.n_farms += 1
            log.info("farm-faults: %d faults, %d farms; problems: %s", tally.faults.total(), tally.n_farms, tally.problems)
    return _record(tally, costs, size)


class _Torment:
    """One farm, started until it ends by itself."""

    def __init__(
        self, folder: Path, mode: str, system: MolecularSystem, generator: np.random.Generator, tally: Tally, enough: int
    ) -> None:
        self.folder, self.mode, self.system, self.generator, self.tally = folder, mode, system, generator, tally
        self.enough = enough
        self.seed = int(generator.integers(2**31))
        self.n = 32 if mode == "mpi batched" else 6
        self.out = folder / "run"
        self.poisoned: set[int] = set()
        self.cut: set[str] = set()
        folder.mkdir()
        self._write_inputs()

    def _write_inputs(self) -> None:
        starts = write_starts(self.folder, self.system, self.n)
        batched = self.mode == "mpi batched"
        values = {
            "name": "faults", "seed": self.seed, "farm": {
                "starts": str(starts), "n_replicas": self.n, "platform": "batched" if batched else "Reference", "chunk_s": 0.2,
                "production_ps": 200 if batched else 60, "save_every_ps": 0.5, "minimise_iterations": 50, "equilibration_ps": 1,
            },
        }  # fmt: skip
        self.config = RunConfig.model_validate(values)
        (self.folder / "config.yaml").write_text(dump_config(self.config))
        self.job = Job(self.system, self.config.farm, self.seed, self.config.farm.platform, starts, self.folder / "alone")

    def run(self) -> None:
        for launch in range(MAX_LAUNCHES):
            name = self._choose() if self.tally.faults.total() < self.enough else "none"
            self.tally.n_launches += 1
            codes = self._launch(name)
            self._look(f"{self.mode}, {name}")
            if all(code == 0 for code in codes) and self._is_done():
                break
            if launch == MAX_LAUNCHES - 1:
                self.tally.problems.append(f"{self.mode}: not done after {MAX_LAUNCHES} launches, the last with {codes}")
        self._compare()

    def _choose(self) -> str:
        names = [name for name in FAULTS if not (name == "disk full" and not _may_mount()) and self._fits(name)]
        return str(self.generator.choice(names))

    def _fits(self, name: str) -> bool:
        if name == "NaN":
            return self.mode.startswith("mpi") and len(self.poisoned) < 3
        if name == "disk full":
            return self.mode != "shared"
        return name != "two starters" or self.mode != "shared"

    # ------------------------------------------------------------------ starting

    def _lines(self) -> list[list[str]]:
        program = ["-c", _POISONED] if self.poisoned else ["-m", "hpc_molgen"]
        farm = [sys.executable, *program, "farm", str(self.folder / "config.yaml"), "--out", str(self.out)]
        if self.mode == "shared":
            return [[*farm, "--share", f"{number}/2"] for number in range(2)]
        return [[*mpiexec(int(self.generator.integers(2, 4))), *farm] if self.mode.startswith("mpi") else farm]

    def _launch(self, fault: str) -> list[int]:
        if fault == "disk full":
            return self._with_a_full_disk()
        if fault == "NaN":
            self.poisoned.add(derive_seed(self.seed, "farm", int(self.generator.integers(self.n)), 1))
            self.tally.faults["NaN"] += 1
        running = self._start()
        if fault == "two starters" and self._until_it_works(running):
            self._start_another()
        if fault == "none" or not self._until_it_works(running):
            return [self._wait(process) for process in running]
        ending = fault if fault in ENDING else str(self.generator.choice(ENDING))  # the others would let it run to its end
        if self._ends_within(running, float(self.generator.exponential(0.7))):
            self.tally.n_late += 1
            return [self._wait(process) for process in running]
        self.tally.faults[ending] += 1
        if ending == "SIGTERM":
            for process in running:
                process.send_signal(signal.SIGTERM)
        else:
            self._kill(running, root=ending == "kill rank 0")
        codes = [self._wait(process) for process in running]
        if ending == "truncated file":
            self._truncate()
        return codes

    def _start_another(self) -> None:
        line, env = self._lines()[0], self._env()
        second = subprocess.run(line, capture_output=True, text=True, env=env, timeout=PATIENCE_S, check=False)
        self.tally.faults["two starters"] += 1
        refused = second.returncode == 2 and "works on this run" in second.stderr
        found_it_done = second.returncode == 0 and (self.out / "farm" / "done.json").is_file()
        if not refused and not found_it_done:
            self.tally.problems.append(f"{self.mode}: a second starter was not refused: {second.stderr[-300:]}")

    def _env(self) -> dict[str, str]:
        plain = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PMI", "SLURM_", "OMPI_", "HPC_MOLGEN_RANKS"))
        }
        poisoned = " ".join(map(str, self.poisoned))
        return plain | {"POISONED_SEEDS": poisoned, "OMP_NUM_THREADS": "1", _MARK: str(self.folder)}

    def _start(self) -> list[subprocess.Popen[str]]:
        log_file = open(self.folder / "log", "a")  # noqa: SIM115 (the processes write it)
        options: dict[str, Any] = {"stdout": log_file, "stderr": subprocess.STDOUT, "env": self._env(), "text": True}
        return [subprocess.Popen(line, start_new_session=True, **options) for line in self._lines()]

    def _wait(self, process: subprocess.Popen[str]) -> int:
        started = time.monotonic()
        try:
            code = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.tally.problems.append(f"{self.mode}: still running {PATIENCE_S:g} s after the fault")
            process.kill()
            code = process.wait()
        if self.mode == "shared":  # the other job is alive, and in its right
            return code
        while time.monotonic() - started < PATIENCE_S and _marked(str(self.folder)):  # ranks whose launcher is gone
            time.sleep(0.1)
        survivors = _marked(str(self.folder))
        if survivors:
            self.tally.problems.append(f"{self.mode}: survivors {time.monotonic() - started:.0f} s after the launcher's end")
        for pid in survivors:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return code

    def _until_it_works(self, running: list[subprocess.Popen[str]]) -> bool:
        """Wait until the farm has begun; False if it ends before."""
        began = time.time()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if any(process.poll() is not None for process in running):
                return False
            live = [path for path in self.out.glob("farm/live*.json") if path.stat().st_mtime > began]
            if live:
                return True
            time.sleep(0.05)
        return False

    @staticmethod
    def _ends_within(running: list[subprocess.Popen[str]], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if all(process.poll() is not None for process in running):
                return True
            time.sleep(0.02)
        return all(process.poll() is not None for process in running)

    # ------------------------------------------------------------------ faults

    def _kill(self, running: list[subprocess.Popen[str]], *, root: bool) -> None:
        """Kill one rank, one worker process, or one job of several; the root is the first rank, or the parent."""
        marked = _marked(str(self.folder))
        if self.mode.startswith("mpi"):
            victims = [pid for pid in marked if _rank(pid) >= 0 and (_rank(pid) == 0) == root]
        else:
            children = [pid for pid in marked if b"multiprocessing.spawn" in _command(pid)]
            victims = [process.pid for process in running] if root or not children else children
        if not victims:
            self.tally.problems.append(f"{self.mode}: there was nobody to kill")
            return
        with suppress(ProcessLookupError):
            os.kill(int(self.generator.choice(victims)), signal.SIGKILL)

    def _truncate(self) -> None:
        """Cut a file of the farm somewhere: a trajectory, a state, the ledger."""
        farm = self.out / "farm"
        files = sorted([*farm.glob("replica-*.h5"), *farm.glob("state/*.npz"), *farm.glob("ledger-*.jsonl")])
        if files and not (farm / "done.json").is_file():  # what is finished is not looked at again
            path = files[int(self.generator.integers(len(files)))]
            os.truncate(path, int(self.generator.integers(path.stat().st_size + 1)))
            if path.suffix == ".h5":
                self.cut.add(path.name)

    def _with_a_full_disk(self) -> list[int]:
        """Run on a small file system that fills up, look for a clean stop, make space, and go on outside of it."""
        disk = self.folder / "disk"
        disk.mkdir(exist_ok=True)
        used = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file()) if self.out.is_dir() else 0
        room = used + int(self.generator.integers(20_000, 200_000))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room // 4096 * 4096 + 2**17}", "tmpfs", str(disk)], check=True)
        home = self.out
        try:
            if home.is_dir():
                shutil.copytree(home, disk / "run")
            self.out = disk / "run"
            codes = [self._wait(process) for process in self._start()]
            if 2 in codes:
                self.tally.faults["disk full"] += 1
                text = (self.folder / "log").read_text()[-3000:]
                if "No space left" not in text and "disk is full" not in text:
                    self.tally.problems.append(f"{self.mode}: a full disk ended it without saying so: {text[-300:]}")
            elif any(codes):
                self.tally.problems.append(
                    f"{self.mode}: a full disk ended it with {codes}: {(self.folder / 'log').read_text()[-600:]}"
                )
            self._look("disk full")
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(disk / "run", home)
        finally:
            self.out = home
            subprocess.run(["umount", str(disk)], check=True)
        return codes

    # ------------------------------------------------------------------ looking

    def _look(self, after: str) -> None:
        """Every trajectory opens as it lies there, and the ledger knows no replica twice."""
        import mdtraj

        farm = self.out / "farm"
        for path in sorted(farm.glob("replica-*.h5")):
            try:
                trajectory = mdtraj.load(str(path))
                sound = np.isfinite(trajectory.xyz).all() and len(trajectory) > 0
            except Exception:  # whatever the reader raises is the finding
                sound = False
            self.tally.n_opened += 1
            if sound:
                self.cut.discard(path.name)
            elif path.name not in self.cut:  # by us, and nobody has come to it yet
                self.tally.problems.append(f"{path.name} does not open after {after}")
        ends: Counter[int] = Counter()
        for record in ledger.read(farm):
            if record["event"] in ledger.FINAL:
                ends[record["replica"]] += 1
            elif record["event"] == "reopened":
                ends[record["replica"]] -= 1
        twice = [replica for replica, n in ends.items() if n > 1]
        if twice:
            self.tally.problems.append(f"after {after} the ledger has replicas {twice} twice")

    def _is_done(self) -> bool:
        if self.mode == "shared":  # its jobs leave the manifest, and what was damaged since, to the one that comes after them
            line = [sys.executable, "-m", "hpc_molgen", "farm", str(self.out)]
            subprocess.run(line, capture_output=True, env=self._env(), timeout=PATIENCE_S, check=False)
        return (self.out / "farm" / "done.json").is_file()

    def _compare(self) -> None:
        """Run every replica undisturbed, with the attempt that it ended with, and compare all bits."""
        manifest = self.out / "farm" / "manifest.jsonl"
        records = [json.loads(line) for line in manifest.read_text().splitlines()] if manifest.is_file() else []
        if sorted(record["replica"] for record in records) != list(range(self.n)):
            self.tally.problems.append(f"{self.mode}: the manifest has {len(records)} of {self.n} replicas")
        names = sorted(path.name for path in self.job.starts.iterdir())
        (self.folder / "alone").mkdir()
        attempts: dict[int, list[int]] = {}
        for record in records:
            self.tally.n_replicas += 1
            if record["state"] != "done":
                self.tally.problems.append(f"{self.mode}: replica {record['replica']} failed: {record['error']}")
                continue
            attempts.setdefault(record["attempts"], []).append(record["replica"])
        for attempt, replicas in attempts.items():
            size = 16 if self.job.platform == "batched" else 1
            for start in range(0, len(replicas), size):
                some = tuple(replicas[start : start + size])
                task = Task(some[0], some, tuple(names[replica] for replica in some), (0.0,) * len(some), attempt)
                run_task(task, self.job, lambda _: False)
        for replica in sorted(replica for replicas in attempts.values() for replica in replicas):
            try:
                first, second = (
                    read_ensemble(replica_path(at, replica), self.system) for at in (self.out / "farm", self.job.folder)
                )
            except InputError as error:
                self.tally.problems.append(f"{self.mode}: replica {replica}: {error}")
                continue
            same = np.array_equal(first.positions_nm, second.positions_nm)
            if not same or not np.array_equal(first.reduced_energy, second.reduced_energy):
                self.tally.problems.append(f"{self.mode}: replica {replica} differs from the undisturbed one")


@functools.cache
def _may_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0


def _marked(mark: str) -> list[int]:
    """Processes with this mark in their environment: a launcher's ranks may have sessions and parents of their own."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            is_zombie = (path / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not is_zombie and f"{_MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _rank(pid: int) -> int:
    try:
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"PMI_RANK="):
                return int(entry[9:])
    except OSError:
        pass
    return -1


def _record(tally: Tally, costs: Costs, size: str) -> dict[str, Any]:
    n, n_problems = tally.faults.total(), len(tally.problems)
    answer = [
        f"{n} faults met {tally.n_farms} farms of {tally.n_replicas} replicas in all ({tally.n_launches} launches; "
        f"{tally.n_late} faults came too late and are not counted): {n_problems} problems.",
        f"Trajectories were opened by mdtraj {tally.n_opened:,} times, as they lay there after a fault.",
    ]
    wrong = "replicas lost, repeated or changed; files that do not open"
    targets = [
        {"name": "faults", "target": ">= 200", "measured": str(n), "reached": n >= SIZES["laptop"]},
        {"name": wrong, "target": "0", "measured": str(n_problems), "reached": n_problems == 0},
    ]
    faults = [[name, str(tally.faults[name])] for name in FAULTS]
    problems = [[text] for text in tally.problems] or [["none"]]
    return {
        "question": "Does a farm lose, repeat or change a replica when its processes are killed, files damaged, the disk full?",
        "answer": answer,
        "targets": targets,
        "tables": [
            {"caption": "Faults that met a running farm", "columns": ["fault", "times"], "rows": faults},
            {"caption": "Problems", "columns": ["what"], "rows": problems},
        ],
        "results": {"faults": dict(tally.faults), "problems": tally.problems, "n_replicas": tally.n_replicas, "size": size},
        "costs": costs.stages,
        "notes": [
            "Farms run on 2 or 3 MPI ranks (Reference platform, or the batched engine), on two local processes, or as two jobs "
            "that share one folder by leases. Each is started until it ends by itself; then every replica is run undisturbed, "
            "with the attempt that it ended with, and all positions and energies are compared bit for bit.",
            "NaN: a replica's first seed blows up, so it ends with its second. Truncated file: after a kill, a trajectory, a "
            "state or the ledger is cut at a random place. Disk full: a tmpfs with little room, then there is more.",
            "Nothing ran on a GPU, and no network file system took part.",
        ],
    }
