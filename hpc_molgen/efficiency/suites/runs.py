"""Runs of the pipeline that suites start, as a user starts them, and what these have cost."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpc_molgen import interrupts
from hpc_molgen.config import RunConfig
from hpc_molgen.efficiency.costs import collect_costs, teacher_cost
from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.files import read_json
from hpc_molgen.run import STAGES, Run
from hpc_molgen.workers import Workers

PATIENCE_S = 86_400.0  # of the size cluster
MADE_BY_RUNS = tuple(STAGES)[: list(STAGES).index("farm")]


def finish_run(folder: Path, name: str, config: RunConfig, last: str) -> Run:
    """Run the stages up to `last` in FOLDER/NAME as a user does; finished ones, also of runs beside it, are not repeated.

    Suites that share runs may start at the same time, as jobs of an array do: the second waits for the first.

    Raises
    ------
    EnvironmentProblem
        When the command fails; the message ends with what it said.
    """
    (folder / name).mkdir(parents=True, exist_ok=True)
    with alone(folder / name / ".suite"):
        return _finish(folder, name, config, last)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other process or thread is in this block with the same file; the lock goes with its holder."""
    with open(path, "a") as handle:
        while True:
            interrupts.check()
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.5)
        yield


def _finish(folder: Path, name: str, config: RunConfig, last: str) -> Run:
    run = Run.create(folder / name, config, Workers())
    stages = MADE_BY_RUNS[: MADE_BY_RUNS.index(last) + 1]
    for stage in stages:
        if not run.path(stage).exists():
            _take_over(run, stage)
    if all(run.is_done(stage) for stage in stages):
        return run
    line = [sys.executable, "-m", "hpc_molgen", "run", str(run.path("config.yaml")), "--out", str(run.directory), "--to", last]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    interrupts.check()
    if ended.returncode:
        raise EnvironmentProblem(f"{' '.join(line)} ended with {ended.returncode}: {ended.stderr[-500:]}")
    return run


def _take_over(run: Run, stage: str) -> None:
    """Copy a finished stage, with its costs, from a run beside this one that has the same inputs."""
    wanted = run.fingerprint(stage)
    for other in sorted(run.directory.parent.iterdir()):
        done = other / stage / "done.json"
        if other == run.directory or not done.is_file() or read_json(done).get("fingerprint") != wanted:
            continue
        run.path("costs").mkdir(exist_ok=True)
        shutil.copy2(other / "costs" / f"{stage}.jsonl", run.path("costs", f"{stage}.jsonl"))
        taken = run.directory / f".{stage}.taken"  # a copy that was killed half-way must not look like a finished stage
        shutil.rmtree(taken, ignore_errors=True)
        shutil.copytree(other / stage, taken)
        taken.rename(run.path(stage))
        return


@dataclass(frozen=True)
class Bill:
    """CPU and wall seconds before the first sample, and of each; with the parts of the former by name."""

    fixed_s: tuple[float, float]
    sample_s: tuple[float, float]
    parts: dict[str, float]


def run_bill(run: Run, n_samples: int) -> Bill:
    """Read what a run has cost, every attempt and every start of a process included.

    What sampling, energies and moving samples to the Boltzmann distribution took for their work is the cost of the samples;
    all else is paid once, the comparison with held-out MD by ln q included.
    """
    book = collect_costs(run)
    stages = {cost.stage: cost for cost in book.stages}
    paid = [stages[name] for name in ("reference", "featurize", "train")]
    drawn = [stages[name] for name in ("sample", "correct")]
    work = {"sample": book.sampling, "correct": book.energies}
    work_cpu_s = sum(work.values())
    start_cpu_s = max(0.0, sum(cost.cpu_s for cost in drawn) - work_cpu_s - book.checks)
    working_wall_s = sum(cost.wall_s * min(1.0, work[cost.stage] / max(cost.cpu_s, 1e-9)) for cost in drawn)
    taught = teacher_cost(run)
    fixed_cpu_s = sum(cost.cpu_s for cost in paid) + start_cpu_s + book.checks + taught[0]
    fixed_wall_s = taught[1] + sum(cost.wall_s for cost in paid) + sum(cost.wall_s for cost in drawn) - working_wall_s
    parts = {f"{cost.stage}_cpu_s": cost.cpu_s for cost in paid} | {"start_of_sampling_cpu_s": start_cpu_s}
    parts |= {"checks_cpu_s": book.checks, "teacher_cpu_s": taught[0]}
    return Bill((fixed_cpu_s, fixed_wall_s), (work_cpu_s / n_samples, working_wall_s / n_samples), parts)
