"""Surrogates of the `verdict` suite: runs of the pipeline from zero.

A surrogate is a name and assignments to a preset; a new one is one entry of `SURROGATES`. Its stages run as a user runs them,
in a run directory under the suite's folder, so a finished one is not repeated. Variants of one seed that begin with the same
stages share their files; each is charged the whole cost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_molgen.config import RunConfig, SystemConfig, load_config
from hpc_molgen.efficiency.suites.runs import finish_run, run_bill
from hpc_molgen.efficiency.suites.verdict_methods import phi_psi
from hpc_molgen.efficiency.suites.verdict_scores import Series, Truth, grouped_checkpoints, weighted_checkpoints
from hpc_molgen.ensemble import read_ensemble


@dataclass(frozen=True)
class SurrogateMethod:
    """A surrogate through the pipeline.

    Attributes
    ----------
    name, short : str
        In tables, and beside its line in the picture.
    assignments : tuple of str
        As `--set` takes them, after the preset's.
    teacher : str, optional
        Method of `SURROGATES` whose surrogate teaches this one's.
    """

    name: str
    short: str
    assignments: tuple[str, ...] = ()
    teacher: str | None = None


WEIGHTS = "correct.method=weights"  # moving many poor samples to the Boltzmann distribution would cost more than the suite has
FLOW = ("surrogate={name: flow}", "train.n_steps=400", "train.learning_rate=3e-3", "sample.n_samples=100000", WEIGHTS)
# found by trying on another seed (four of the first, 180 CPU s, and two of the second, 130): trainings as short as pay
# for an error of 0.1 kT
QUICK = (
    "surrogate={name: flow}", "reference.equilibration_ps=20", "reference.production_ps=80", "train.n_steps=80",
    "train.warmup_steps=12", "train.learning_rate=5e-3", "sample.n_samples=200000", "sample.shard_size=20000", WEIGHTS,
)  # fmt: skip
# walkers at 600 K cross barriers by themselves: no bias; one round of weighted samples cools the flow
HOT = (
    *QUICK, "reference.bias_torsion=null", "reference.training_kelvin=600", "reference.training_ps=150",
    "refine.n_samples=20000", "refine.n_steps=60", "refine.learning_rate=2e-3",
)  # fmt: skip
ROUND = ("refine.rounds=1", "refine.n_samples=40000", "refine.n_steps=200", "refine.learning_rate=1e-3")
SURROGATES = {
    "diffusion-ode": SurrogateMethod(
        "diffusion, exact weights along the ODE", "diffusion, ODE", ("sample.n_steps=4", "sample.n_samples=20000", WEIGHTS)
    ),
    "diffusion-path": SurrogateMethod(
        "diffusion, weights of whole paths", "diffusion, paths",
        ("sample.sampler=path", "sample.n_steps=25", "sample.n_samples=20000", WEIGHTS),
    ),
    "flow-quick": SurrogateMethod("flow from frames and forces, less of both", "flow, brief", QUICK),
    "flow": SurrogateMethod("flow from frames and forces", "flow", FLOW),
    "flow-refined": SurrogateMethod("flow, refined on its own weighted samples", "flow, refined", (*FLOW, *ROUND)),
    "flow-prior": SurrogateMethod(
        "flow from energies and forces alone", "flow, no frames",
        (*FLOW, *ROUND, "reference.equilibration_ps=5", "reference.production_ps=20", "refine.start=prior",
         "refine.start_samples=10000", "train.n_steps=200", "refine.n_steps=100"),
    ),
    "flow-hot": SurrogateMethod("flow from frames and forces at 600 K, cooled by weights", "flow, hot data", HOT),
    "flow-taught": SurrogateMethod(
        "flow distilled from the diffusion", "flow, distilled", (*FLOW, "refine.start=teacher", "refine.start_samples=20000"),
        teacher="diffusion-ode",
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


def resolve(key: str, settings: SurrogateSettings, system: SystemConfig, seed: int, teacher: Path | None = None) -> RunConfig:
    """Return the configuration of the run of a method of `SURROGATES`, whose teacher's run is in a directory.

    Raises
    ------
    InputError
        When this version of the package refuses an assignment.
    """
    method = SURROGATES[key]
    own = [f"system={system.model_dump_json()}", f"seed={seed}", *method.assignments, *settings.assignments]
    if method.teacher is not None:
        own.append(f"refine.teacher={json.dumps(str(teacher))}")
    return load_config(settings.preset, own)


def identity(key: str, settings: SurrogateSettings, system: SystemConfig, seed: int) -> dict[str, Any]:
    """Return all that a method's curve depends on, wherever its runs are."""
    found, teacher = resolve(key, settings, system, seed).model_dump(mode="json"), SURROGATES[key].teacher
    found["refine"]["teacher"] = None if teacher is None else identity(teacher, settings, system, seed)
    return found


def surrogate_series(
    key: str, settings: SurrogateSettings, system: SystemConfig, seed: int, truth: Truth, folder: Path, repeat: int
) -> Series:
    """Run a surrogate's pipeline from zero and return its curve: ever more of its weighted samples after its fixed costs.

    A teacher is trained first where it is not there yet; the curve pays for it all the same. Where the stage `correct` moved
    the samples, it is islands or chains that are independent, and that the jackknife leaves out.
    """
    teacher = SURROGATES[key].teacher
    if teacher is not None:
        finish_run(folder, f"{teacher}-{repeat}", resolve(teacher, settings, system, seed), "train")
    config = resolve(key, settings, system, seed, None if teacher is None else folder / f"{teacher}-{repeat}")
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
