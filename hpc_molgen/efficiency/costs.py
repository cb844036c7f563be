"""What a run cost, stage by stage, and from which number of effective samples on a surrogate would have been cheaper than MD.

All costs are CPU-core seconds, wall seconds beside; definitions: facts/metrics.md, "Cost".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.config import is_held_out
from hpc_molgen.files import read_json
from hpc_molgen.run import STAGES, Run, stage_costs

AMORTISED_OVER = 10


@dataclass(frozen=True)
class StageCost:
    """What one stage took over all its attempts.

    Attributes
    ----------
    cpu_s, wall_s, gpu_h : float
        CPU seconds of all ranks and processes, wall seconds, GPU hours (wall time on GPUs times ranks).
    work_cpu_s : float
        The part that did the stage's work; the rest is start-up: imports, processes, measurements, files.
    joules : float, optional
        Of the nodes, with all that ran there beside; None where no counter could be read.
    """

    stage: str
    cpu_s: float
    wall_s: float
    work_cpu_s: float
    gpu_h: float
    attempts: int
    joules: float | None = None


@dataclass(frozen=True)
class CostBook:
    """The sums that enter the break-even, in CPU seconds.

    Attributes
    ----------
    data, validation : float
        MD of the walkers that training saw, and of those held out.
    equilibration : float
        Share of both that was equilibration: what MD pays before its first sample.
    shared_start : float
        Bias scan, platform measurement, process start: both sides need it, so it enters neither.
    training : float
        Featurize and train, all attempts; of a teacher (`refine.teacher`) that and its data, if they are others, as well.
    sampling, energies : float
        Drawing all samples with ln q; their energies.
    checks : float
        Comparing the surrogate with held-out MD by ln q: paid like `validation`, but no MD.
    simulated_ns, production_ns : float
        Of all walkers (of parallel tempering: all temperatures), equilibration included or not; 0 for imported trajectories.
    frames_trained_on : bool
        Whether training, or that of a teacher, saw reference frames; else they only served to scale coordinates.
    """

    stages: tuple[StageCost, ...]
    data: float
    validation: float
    equilibration: float
    shared_start: float
    training: float
    sampling: float
    energies: float
    simulated_ns: float
    production_ns: float
    checks: float = 0.0
    frames_trained_on: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def collect_costs(run: Run) -> CostBook:
    """Read the costs of the finished stages of a run."""
    walkers = _details(run, "reference").get("walkers", [])
    fraction = run.config.reference.held_out_fraction
    held_out = [is_held_out(number, fraction) for number in range(len(walkers))]
    walker_cpu = np.array([walker["cpu_s"] for walker in walkers])
    config = run.config.reference
    production_ps = [config.production_ps if out else config.training_ps or config.production_ps for out in held_out]
    share = config.equilibration_ps / (config.equilibration_ps + np.array(production_ps))
    sampling = float(_details(run, "sample").get("cpu_s", 0.0))
    energies = float(_details(run, "correct").get("energy_cpu_s", 0.0))
    checks = float((_details(run, "correct").get("coverage") or {}).get("cpu_s", 0.0))
    farm = float(_details(run, "farm").get("cpu_s", 0.0))
    # training does its work in the stage's own process: import of torch included
    work = {"reference": float(walker_cpu.sum()), "sample": sampling, "correct": energies + checks, "farm": farm}
    work["sample"] += float(_details(run, "sample").get("other_temperatures_cpu_s", 0.0))
    work["correct"] += sum(float(row["cpu_s"]) for row in _details(run, "correct").get("temperatures", []))
    stages = tuple(stage_cost(run, stage, work.get(stage)) for stage in STAGES if stage != "report")
    by_name = {cost.stage: cost for cost in stages}
    walker_ns = np.array([walker["ns"] for walker in walkers])
    simulated_ns = float(walker_ns.sum())
    return CostBook(
        stages=stages,
        data=float(walker_cpu[~np.array(held_out, dtype=bool)].sum()),
        validation=float(walker_cpu[np.array(held_out, dtype=bool)].sum()),
        equilibration=0.0 if config.trajectories else float((walker_cpu * share).sum()),
        shared_start=max(0.0, by_name["reference"].cpu_s - float(walker_cpu.sum())),
        training=by_name["featurize"].cpu_s + by_name["train"].cpu_s + teacher_cost(run)[0],
        sampling=sampling,
        energies=energies,
        simulated_ns=simulated_ns,
        production_ns=float((walker_ns * (1 - share)).sum()),
        checks=checks,
        frames_trained_on=run.config.refine.start != "prior",
    )


@dataclass(frozen=True)
class Prices:
    """Money for an hour of a core and of a GPU, in one currency; None where it is not known."""

    core_hour: float | None
    gpu_hour: float | None

    @classmethod
    def of(cls, run: Run) -> Prices:
        """Return what the configuration of a run says."""
        return cls(run.config.report.cost_per_core_hour, run.config.report.cost_per_gpu_hour)

    @property
    def known(self) -> bool:
        """True where there is one at all."""
        return self.core_hour is not None or self.gpu_hour is not None

    def money(self, cpu_s: float, gpu_h: float = 0.0) -> float:
        """Money for CPU seconds and GPU hours; an unknown price counts as nothing."""
        return cpu_s / 3600 * (self.core_hour or 0.0) + gpu_h * (self.gpu_hour or 0.0)

    def words(self, gpu_h: float = 0.0) -> str:
        """Say what the money is of."""
        parts = [f"{self.core_hour:g} a core hour"] if self.core_hour is not None else ["core hours not counted"]
        parts += [f"{self.gpu_hour:g} a GPU hour"] if self.gpu_hour is not None else []
        parts += ["GPU hours not counted"] if self.gpu_hour is None and gpu_h > 0 else []
        return f"Money: {', '.join(parts)}, in their currency; storage and people not counted."


def money(run: Run, costs: CostBook) -> dict[str, float] | None:
    """Money of each stage and of all, or None where no price is known."""
    prices = Prices.of(run)
    if not prices.known:
        return None
    stages = {cost.stage: prices.money(cost.cpu_s, cost.gpu_h) for cost in costs.stages}
    return stages | {"total": sum(stages.values())}


def teacher_cost(run: Run) -> tuple[float, float]:
    """CPU and wall seconds of the data and the training of the surrogate that taught this run's; its own teacher's included.

    Data that this run has as well (the same settings and seed) are paid for once.
    """
    if run.config.refine.teacher is None:
        return 0.0, 0.0
    teacher = Run.open(Path(run.config.refine.teacher))
    book = collect_costs(teacher)
    cpu_s, wall_s = book.training, teacher_cost(teacher)[1]
    walls = {cost.stage: cost.wall_s for cost in book.stages}
    wall_s += walls["featurize"] + walls["train"]
    if teacher.fingerprint("reference") != run.fingerprint("reference"):
        cpu_s += book.data
        wall_s += walls["reference"] * book.data / max(book.data + book.validation, 1e-9)
    return cpu_s, wall_s


def _details(run: Run, stage: str) -> dict[str, Any]:
    return run.details(stage) if run.path(stage, "done.json").is_file() else {}


def stage_cost(run: Run, stage: str, work_cpu_s: float | None) -> StageCost:
    """Return what a stage cost over all attempts; without `work_cpu_s` all of it counts as work."""
    totals = stage_costs(run, stage)
    done = run.path(stage, "done.json")
    gpus = read_json(done)["provenance"]["gpus"] if done.is_file() else []
    details = _details(run, stage)
    on_gpu = (stage == "train" and str(details.get("device", "cpu")).startswith("cuda")) or (stage == "sample" and bool(gpus))
    return StageCost(
        stage=stage,
        cpu_s=totals["cpu_s"],
        wall_s=totals["wall_s"],
        work_cpu_s=totals["cpu_s"] if work_cpu_s is None else work_cpu_s,
        gpu_h=totals["wall_s"] / 3600 * float(details.get("ranks", 1)) if on_gpu else 0.0,
        attempts=int(totals["attempts"]),
        joules=totals.get("joules"),
    )


@dataclass(frozen=True)
class Marginal:
    """CPU seconds for one more effective sample.

    Attributes
    ----------
    value : float
    replicates : np.ndarray, shape=(n_replicates,)
        Bootstrap replicates, from those of the number of effective samples.
    """

    value: float
    replicates: np.ndarray

    def interval(self) -> tuple[float, float]:
        """95 % percentile interval."""
        low, high = np.quantile(self.replicates, [0.025, 0.975], method="inverted_cdf")
        return float(low), float(high)


def marginal_cost(cpu_s: float, n_effective: float, replicates: np.ndarray) -> Marginal:
    """Cost of one effective sample when `cpu_s` bought `n_effective` of them; inf when it bought none."""
    with np.errstate(divide="ignore"):
        per_replicate = np.divide(cpu_s, replicates, out=np.full(len(replicates), np.inf), where=replicates > 0)
    return Marginal(cpu_s / n_effective if n_effective > 0 else float("inf"), per_replicate)


@dataclass(frozen=True)
class Scenario:
    """Break-even under one way of counting.

    Attributes
    ----------
    name, meaning : str
    fixed_cpu_s : float or None
        What the surrogate costs before its first sample, less what MD costs before its own; None: not available in this run.
    n_star, low, high : float
        Effective samples from which on the surrogate is cheaper; inf is "never".
    """

    name: str
    meaning: str
    fixed_cpu_s: float | None
    n_star: float
    low: float
    high: float

    def words(self) -> str:
        """Return n* in words."""
        if self.fixed_cpu_s is None:
            return "not available in this run"
        return samples_in_words(self.n_star)


def samples_in_words(n: float) -> str:
    """Write a number of effective samples; inf is "never"."""
    return f"{n:,.0f}" if np.isfinite(n) else "never"


def break_even(fixed_cpu_s: float, md: float | np.ndarray, surrogate: float | np.ndarray) -> np.ndarray:
    """Return n* = fixed / (c_MD - c_S) where c_MD > c_S, else inf; 0 when nothing has to be paid back."""
    with np.errstate(invalid="ignore"):  # two sides without a single effective sample: inf - inf
        gain = np.asarray(md, dtype=np.float64) - np.asarray(surrogate, dtype=np.float64)
    gain = np.where(np.isfinite(gain), gain, 0.0)
    result: np.ndarray = np.divide(max(fixed_cpu_s, 0.0), gain, out=np.full(gain.shape, np.inf), where=gain > 0)
    return result


def scenarios(costs: CostBook, md: Marginal, surrogate: Marginal) -> list[Scenario]:
    """Return the four scenarios of metrics.md."""
    paid = costs.data + costs.training + costs.validation + costs.checks
    fixed: list[tuple[str, str, float | None]] = [
        ("data paid", "reference data, training and validation all paid", paid - costs.equilibration),
        ("data there", "reference data already there (MD would go on from them); training paid", costs.training),
        (
            "energies alone",
            "a surrogate trained without reference data: short MD scales the coordinates, validation left out",
            None if costs.frames_trained_on else costs.data + costs.training,
        ),
        (
            f"amortised over {AMORTISED_OVER}",
            f"data, training and validation shared by {AMORTISED_OVER} temperatures or molecules (assumed, not done here)",
            paid / AMORTISED_OVER - costs.equilibration,
        ),
    ]
    return [_scenario(name, meaning, value, md, surrogate) for name, meaning, value in fixed]


def _scenario(name: str, meaning: str, fixed: float | None, md: Marginal, surrogate: Marginal) -> Scenario:
    if fixed is None:
        return Scenario(name, meaning, None, float("nan"), float("nan"), float("nan"))
    spread = break_even(fixed, md.replicates, surrogate.replicates)
    low, high = np.quantile(spread, [0.025, 0.975], method="inverted_cdf")
    return Scenario(name, meaning, fixed, float(break_even(fixed, md.value, surrogate.value)), float(low), float(high))
