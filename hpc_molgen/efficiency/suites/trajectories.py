"""Suite `trajectories`: frames a second that a generator of whole trajectories makes, and whether their kinetics are MD's.

Its runs go through the pipeline as a user's do, with a seed each, and stay in the suite's folder: finished ones are not
repeated.
Then generator, molecular dynamics and the baselines of the same data make frames in turn, on one thread.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.analysis.baselines import autoregression, fit_markov_sampler
from hpc_molgen.analysis.markov import fit_clusters
from hpc_molgen.config import RunConfig, load_config
from hpc_molgen.datasets import load_series
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.efficiency.costs import collect_costs
from hpc_molgen.efficiency.series_findings import HELD_OUT, SeriesFindings, SetFindings, analyse_series
from hpc_molgen.efficiency.series_verdict import decide_series, score, slowest
from hpc_molgen.efficiency.suites import trajectories_tables as tables
from hpc_molgen.efficiency.suites.record import Costs, spread
from hpc_molgen.efficiency.suites.rounds import Method, interleaved
from hpc_molgen.efficiency.suites.runs import finish_run
from hpc_molgen.efficiency.suites.trajectories_md import NumpyWells
from hpc_molgen.ensemble import read_attributes
from hpc_molgen.errors import InputError
from hpc_molgen.files import read_json
from hpc_molgen.representations.base import load_representation
from hpc_molgen.representations.cvs import CollectiveVariables
from hpc_molgen.run import Run
from hpc_molgen.sampling import sample_channels
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.surrogates.base import load_surrogate
from hpc_molgen.systems.triple_well import MASS_AMU
from hpc_molgen.workers import available_cores, one_thread

if TYPE_CHECKING:
    from hpc_molgen.surrogates.base import Surrogate

GENERATOR, MD, NUMPY_MD, MARKOV_CHAIN, VAR = "generator", "md", "numpy", "markov", "autoregression"


@dataclass(frozen=True)
class Settings:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    preset : str
    assignments : tuple of str
        After the preset's.
    n_seeds : int
        Runs, each with data and training of its own.
    n_rounds : int
    measure_s : float
        Wall seconds of each method in each round, at least one call.
    call : (int, int)
        Trajectories and frames of each of one call of a sampler.
    md_frames : int
        Of one call of molecular dynamics.
    md_copies : int
        Of the loop of numpy over many copies.
    lengths : tuple of int
        Frames of the trajectories whose throughput is compared, as many trajectories as make one call's frames.
    """

    preset: str
    assignments: tuple[str, ...]
    n_seeds: int = 3
    n_rounds: int = 5
    measure_s: float = 1.0
    call: tuple[int, int] = (20, 10_000)
    md_frames: int = 5_000
    lengths: tuple[int, ...] = (128, 1_000, 10_000, 100_000)
    md_copies: int = 2_000


LAPTOP = (
    "reference.n_walkers=20", "reference.production_ps=20000", "train.n_steps=1200", "train.warmup_steps=50",
    "train.ema_decay=0.995", "train.learning_rate=1.0e-3", "sample.n_samples=10", "sample.n_frames=20000",
    "report.bootstrap_samples=100",
)  # fmt: skip
SIZES = {
    "smoke": Settings(
        "triple-well",
        (
            "reference.n_walkers=4", "reference.production_ps=600", "reference.equilibration_ps=10", "surrogate.n_frames=32",
            "surrogate.hidden=8", "surrogate.widest=16", "surrogate.levels=2", "surrogate.lags=3", "train.n_steps=10",
            "train.batch_size=8", "train.validate_every=5", "train.log_every=5", "sample.n_samples=4", "sample.n_frames=600",
            "report.bootstrap_samples=20", "report.n_clusters=20", "report.memorisation_frames=16",
        ),
        n_seeds=2, n_rounds=3, measure_s=0.02, call=(4, 500), md_frames=100, lengths=(128, 1_000), md_copies=200,
    ),
    "laptop": Settings("triple-well", LAPTOP),
    "cluster": Settings("triple-well", (), n_seeds=5, n_rounds=9, call=(20, 40_000)),
}  # fmt: skip


def trajectories(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record.

    Raises
    ------
    InputError
        When there is no such size.
    """
    if size not in SIZES:
        raise InputError(f"the suite 'trajectories' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs = SIZES[size], Costs()
    runs = series_runs(settings, out, size, seed)
    findings = [analyse_series(run) for run in runs]
    verdicts = [decide_series(found, run.config.report.tolerance) for found, run in zip(findings, runs, strict=True)]
    for run in runs:
        for cost in collect_costs(run).stages:
            if cost.wall_s > 0:
                costs.add_stage(f"seed {run.config.seed}: {cost.stage}", cost)
    with costs.stage("rounds of generator, molecular dynamics and baselines"), one_thread():
        speeds = measure_speeds(runs[0], settings, seed)
        lengths = lengths_on(runs[0], settings, seed)
    results = {
        "seeds": [_of_seed(run, verdict) for run, verdict in zip(runs, verdicts, strict=True)],
        "quality": quality(findings),
        "noise_floor": spread(found.floor for found in findings),
        "speeds": speeds,
        "lengths": lengths,
        "bill": bill(runs),
    }
    return {**tables.record_of(results, size), "costs": costs.stages, "results": results, "config": asdict(settings)}


def series_runs(settings: Settings, out: Path, size: str, seed: int) -> list[Run]:
    """Finish one run for each seed up to its trajectories, as many at a time as there are cores (one, where there is a GPU)."""
    configs = {
        f"{settings.preset}-{seed + number}": load_config(settings.preset, [f"seed={seed + number}", *settings.assignments])
        for number in range(settings.n_seeds)
    }
    return run_at_once(configs, out / f"series-{size}" / "runs")


def run_at_once(configs: dict[str, RunConfig], folder: Path) -> list[Run]:
    """Finish runs by name, each in a process of its own, up to their samples; reports are not written."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    finish = functools.partial(finish_run, folder, last="sample")
    with ThreadPoolExecutor(1 if torch.cuda.is_available() else available_cores()) as threads:
        return list(threads.map(lambda item: finish(name=item[0], config=item[1]), configs.items()))


def load_generator(run: Run) -> tuple[Surrogate, CollectiveVariables]:
    """Return the trained generator of a run and the features that its channels stand for."""
    surrogate = load_surrogate(run.path("train", "surrogate.safetensors"), run.system.key)
    variables = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    if not isinstance(variables, CollectiveVariables):
        raise InputError(f"{run.directory}: its features have no names, so it makes no trajectories")
    return surrogate, variables


def measure_speeds(run: Run, settings: Settings, seed: int) -> dict[str, Any]:
    """Frames a second of the generator, of MD and of the baselines, in turn; the fits of the baselines are facts of theirs."""
    n, length = settings.call
    surrogate, variables = load_generator(run)
    train = list(load_series(run)[0].features)
    began = time.process_time()
    clusters = fit_clusters(train, derive_seed(seed, "clusters"), run.config.report.n_clusters)
    chain = fit_markov_sampler(train, clusters)
    fit_cpu_s = time.process_time() - began
    engine, steps = _engine(run, seed), round(run.config.reference.save_every_ps * 1e3 / run.config.reference.timestep_fs)
    generator, numbers = numpy_generator(seed, "baselines"), np.arange(n)
    draws = iter(range(10**9))

    def make() -> None:
        own = derive_seed(seed, "speed", next(draws))
        channels = sample_channels(surrogate, variables, run.path("featurize"), numbers, own, length, run.config.segment_frames)
        variables.features(channels)

    def simulate() -> None:
        for _ in engine.simulate(settings.md_frames, steps):
            pass

    make()  # memory is warm, and so is the engine after its equilibration
    methods = [
        Method(MD, f"molecular dynamics, OpenMM {engine.platform}, {run.config.reference.integrator}", simulate,
               settings.md_frames, MD),
        *_fastest_md(run, settings, seed, steps),
        Method(GENERATOR, "generator, one pass", make, n * length, MD),
        Method(MARKOV_CHAIN, "Markov state model that emits frames", lambda: chain.sample(n, length, generator), n * length,
               MD, {"fit_cpu_s": fit_cpu_s}),
        Method(VAR, "autoregression, its fit included", lambda: autoregression(train, n, length, generator), n * length, MD),
    ]  # fmt: skip
    return interleaved(methods, settings.n_rounds, settings.measure_s)


def _fastest_md(run: Run, settings: Settings, seed: int, steps_per_frame: int) -> list[Method]:
    """Return the same dynamics in a loop of its own over many copies, which this toy has."""
    config, system = run.config.reference, run.system
    if system.name != "triple-well" or config.integrator != "brownian":
        return []
    diffusion = system.kt_kj_mol / (MASS_AMU * config.friction_per_ps)  # kJ/mol is amu nm^2 / ps^2
    n = settings.md_copies
    wells = NumpyWells(n, config.timestep_fs * 1e-3, diffusion, system.temperature_kelvin, derive_seed(seed, "numpy"))
    wells.frames(1, steps_per_frame)
    n_frames = max(1, settings.call[0] * settings.call[1] // n)
    name = f"molecular dynamics, numpy over {n:,} copies"
    return [Method(NUMPY_MD, name, lambda: wells.frames(n_frames, steps_per_frame), n * n_frames, MD)]


def _engine(run: Run, seed: int) -> Engine:
    """Return the engine of the run's walkers on the platform that they took, equilibrated."""
    config = run.config.reference
    platform = str(read_attributes(run.path("reference", "walker-0000.h5"))["platform"])
    engine = Engine(
        run.system, platform, derive_seed(seed, "md"), timestep_fs=config.timestep_fs,
        friction_per_ps=config.friction_per_ps, constraints=config.constraints, integrator=config.integrator,
    )  # fmt: skip
    engine.set_positions(run.system.positions_nm, draw_velocities=True)
    engine.step(round(config.equilibration_ps * 1e3 / config.timestep_fs))
    return engine


def lengths_on(run: Run, settings: Settings, seed: int) -> dict[str, Any]:
    """Frames a CPU second of the generator for trajectories of several lengths, the same number of frames in all."""
    surrogate, variables = load_generator(run)
    total = settings.call[0] * settings.call[1]

    def method(length: int) -> Method:
        n = max(1, total // length)

        def make() -> None:
            own = derive_seed(seed, "length", length)
            sample_channels(surrogate, variables, run.path("featurize"), np.arange(n), own, length, run.config.segment_frames)

        make()
        return Method(str(length), f"{n:,} trajectories of {length:,} frames", make, n * length, str(settings.lengths[0]))

    return interleaved([method(length) for length in settings.lengths], settings.n_rounds, settings.measure_s / 2)


def quality(findings: Sequence[SeriesFindings]) -> dict[str, Any]:
    """Return what each set scores against held-out MD, over the seeds."""
    names = [name for name in findings[0].sets if name != HELD_OUT]
    return {name: _quality([_scores(found, name) for found in findings]) for name in names}


def _quality(rows: list[dict[str, float]]) -> dict[str, Any]:
    return {key: spread(row[key] for row in rows) for key in rows[0]}


def _scores(found: SeriesFindings, name: str) -> dict[str, float]:
    part, reference = found.sets[name], found.sets[HELD_OUT]
    slow, true = slowest(found, part).value, slowest(found, reference).value
    increments = max((a / b for a, b in zip(part.increments, reference.increments, strict=True)), key=lambda x: abs(x - 1))
    pairs = zip(part.correlation_times, reference.correlation_times, strict=True)
    correlation = max((a.value / b.value for a, b in pairs), key=lambda x: abs(x - 1))
    return {
        "divergence_over_floor": part.divergence / found.floor,
        "population_deviation": _worst_population(part, reference),
        "increments_over_md": increments,
        "correlation_time_over_md": correlation,
        "timescale_over_md": slow / true if np.isfinite(slow) else 0.0,
        "transitions_over_md": _transitions(part, reference),
        "score": score(found, name),
    }


def _worst_population(part: SetFindings, reference: SetFindings) -> float:
    return max((abs(a.value - b.value) for a, b in zip(part.populations, reference.populations, strict=True)), default=0.0)


def _transitions(part: SetFindings, reference: SetFindings) -> float:
    """All transitions between states a frame, over those of held-out MD; nan where that saw none."""
    made, true = (sum(rate.value for rate in each.transitions.values()) for each in (part, reference))
    return made / true if true > 0 else float("nan")


def _of_seed(run: Run, verdict: Any) -> dict[str, Any]:
    details = run.details("train")
    return {
        "seed": run.config.seed,
        "certified": verdict.gate_passed,
        "checks": {check.name: {"passed": check.passed, "detail": check.detail} for check in verdict.checks},
        "n_parameters": details["n_parameters"],
        "commit": read_json(run.path("train", "done.json"))["provenance"]["git_commit"],
    }


def bill(runs: Sequence[Run]) -> dict[str, Any]:
    """CPU seconds of data (all walkers) and of training, over the seeds, and whether a GPU worked, whose time they lack."""
    books = [collect_costs(run) for run in runs]
    return {
        "data_cpu_s": spread(book.data + book.validation for book in books),
        "training_cpu_s": spread(book.training for book in books),
        "on_gpu": any(cost.gpu_h > 0 for book in books for cost in book.stages),
    }
