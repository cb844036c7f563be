"""Surrogates of the `verdict` suite: runs of the pipeline from zero.

A surrogate is a name and assignments to a preset; a new one is one entry of `SURROGATES`. Its stages run as a user runs them,
in a run directory under the suite's folder, so a finished one is not repeated. Variants of one seed that begin with the same
stages share their files; each is charged the whole cost.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_molgen import interrupts
from hpc_molgen.config import RunConfig, SystemConfig, load_config
from hpc_molgen.efficiency.costs import collect_costs
from hpc_molgen.efficiency.suites.verdict_methods import phi_psi
from hpc_molgen.efficiency.suites.verdict_scores import Series, Truth, grouped_checkpoints, weighted_checkpoints
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.files import read_json
from hpc_molgen.run import STAGES, Run
from hpc_molgen.workers import Workers

PATIENCE_S = 7200.0
MADE_BY_RUNS = tuple(STAGES)[: list(STAGES).index("farm")]


@dataclass(frozen=True)
class SurrogateMethod:
    """A surrogate through the pipeline.

    Attributes
    ----------
    name, short : str
        In tables, and beside its line in the picture.
    assignments : tuple of str
        As `--set` takes them, after the preset's.
    """

    name: str
    short: str
    assignments: tuple[str, ...] = ()


WEIGHTS = "correct.method=weights"  # moving many poor samples to the Boltzmann distribution would cost more than the suite has
FLOW = ("surrogate={name: flow}", "train.n_steps=400", "train.learning_rate=3e-3", "sample.n_samples=100000", WEIGHTS)
ROUND = ("refine.rounds=1", "refine.n_samples=40000", "refine.n_steps=200", "refine.learning_rate=1e-3")
SURROGATES = {
    "diffusion-ode": SurrogateMethod(
        "diffusion, exact weights along the ODE", "diffusion, ODE", ("sample.n_samples=10000", WEIGHTS)
    ),
    "diffusion-path": SurrogateMethod(
        "diffusion, weights of whole paths", "diffusion, paths", ("sample.sampler=path", "sample.n_samples=10000", WEIGHTS)
    ),
    "flow": SurrogateMethod("flow from frames and forces", "flow", FLOW),
    "flow-refined": SurrogateMethod("flow, refined on its own weighted samples", "flow, refined", (*FLOW, *ROUND)),
    "flow-prior": SurrogateMethod(
        "flow from energies and forces alone", "flow, no frames",
        (*FLOW, *ROUND, "reference.equilibration_ps=5", "reference.production_ps=20", "refine.start=prior",
         "refine.start_samples=10000"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class SurrogateSettings:
    """What all surrogates of one size have in common.

    Attributes
    ----------
    preset : str
    assignments : tuple of str
        After the method's own, which they override.
    """

    preset: str
    assignments: tuple[str, ...] = ("correct.n_structures=1",)


def resolve(method: SurrogateMethod, settings: SurrogateSettings, system: SystemConfig, seed: int) -> RunConfig:
    """Return the configuration of a surrogate's run.

    Raises
    ------
    InputError
        When this version of the package refuses an assignment.
    """
    own = (f"system={system.model_dump_json()}", f"seed={seed}")
    return load_config(settings.preset, [*own, *method.assignments, *settings.assignments])


def finish_run(folder: Path, name: str, config: RunConfig, last: str) -> Run:
    """Run the stages up to `last` in FOLDER/NAME as a user does; finished ones, also of runs beside it, are not repeated.

    Raises
    ------
    EnvironmentProblem
        When the command fails; the message ends with what it said.
    """
    interrupts.check()
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
        shutil.copytree(other / stage, run.path(stage))
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
    fixed_cpu_s = sum(cost.cpu_s for cost in paid) + start_cpu_s + book.checks
    fixed_wall_s = sum(cost.wall_s for cost in paid) + sum(cost.wall_s for cost in drawn) - working_wall_s
    parts = {f"{cost.stage}_cpu_s": cost.cpu_s for cost in paid} | {"start_of_sampling_cpu_s": start_cpu_s}
    parts["checks_cpu_s"] = book.checks
    return Bill((fixed_cpu_s, fixed_wall_s), (work_cpu_s / n_samples, working_wall_s / n_samples), parts)


def surrogate_series(key: str, config: RunConfig, truth: Truth, folder: Path, repeat: int) -> Series:
    """Run a surrogate's pipeline from zero and return its curve: ever more of its weighted samples after its fixed costs.

    Where the stage `correct` moved them, it is islands or chains that are independent, and that the jackknife leaves out.
    """
    run = finish_run(folder, f"{key}-{repeat}", config, "correct")
    details, moved = run.details("correct"), run.path("correct", "annealed.h5").is_file()
    found = read_ensemble(run.path("correct", "annealed.h5" if moved else "weighted.h5"), run.system)
    bill = run_bill(run, len(found))
    angles, price = phi_psi(run.system, found.positions_nm), (truth, bill.fixed_s, bill.sample_s)
    if moved:
        points = grouped_checkpoints(angles, found.log_weight, found.reduced_energy, found.trajectory, *price)
    else:
        points = weighted_checkpoints(angles, found.log_weight, found.reduced_energy, *price)
    missing = (details.get("coverage") or {}).get("missing") or []
    facts: dict[str, Any] = {"k_hat": details["k_hat"], "certified": bool(details["certified"]) and not missing}
    facts |= {"ess_fraction": details["ess_fraction"], "moved": moved, "missing": missing}
    facts |= {"n_samples": len(found), "cpu_s_per_sample": bill.sample_s[0], **bill.parts}
    return Series(key, repeat, bill.fixed_s[0], points, facts)
