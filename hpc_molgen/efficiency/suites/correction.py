"""Suite `correction`: effective samples a second by each way of correcting to the Boltzmann distribution, and from zero.

Alanine dipeptide: a diffusion and a flow are trained by the pipeline with several seeds; then every way takes its turn in every
repeat, on one thread, with the code of the stages `sample` and `correct`. Monte Carlo without training and MD stand beside.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpc_molgen import datasets, interrupts
from hpc_molgen.config import CorrectConfig, RunConfig, SampleConfig
from hpc_molgen.dynamics.choice import choose_energies, energy_function
from hpc_molgen.efficiency.suites import correction_tables as tables
from hpc_molgen.efficiency.suites.correction_outcome import Outcome
from hpc_molgen.efficiency.suites.correction_ways import by_biased_md, by_particles, by_reference, by_surrogate
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.surrogate_pair import DIFFUSION, FLOW, Trained, device, trained_runs
from hpc_molgen.efficiency.suites.tempering import CONVERGED_KT
from hpc_molgen.efficiency.suites.verdict_methods import MdSettings
from hpc_molgen.efficiency.suites.verdict_samplers import PARTICLES
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.workers import Stopwatch, one_thread


@dataclass(frozen=True)
class Settings:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    n_trainings : int
        Of both surrogates, each with data of its own.
    n_repeats : int
        Of every way; repeats take the trainings in turn.
    ode, path : (int, int)
        Steps (of rk4, or noise levels) and samples.
    n_flow : int
        Samples that are weighed.
    annealed, chains : (int, int)
        Samples of the flow, of the diffusion, that are moved, and samples of an island.
    prior : int
        Samples of the untrained prior.
    smc : (int, int)
        Particles of a population, and populations.
    md_cpu_s : float
        Of biased MD.
    check_frames : int
        Held-out frames whose ln q is computed.
    moves, conditional_ess
        Of what is moved (see `CorrectConfig`).
    """

    n_trainings: int
    n_repeats: int
    ode: tuple[int, int]
    path: tuple[int, int]
    n_flow: int
    annealed: tuple[int, int]
    chains: tuple[int, int]
    prior: int
    smc: tuple[int, int]
    md_cpu_s: float
    check_frames: int
    md: MdSettings = field(default_factory=MdSettings)
    moves: int = 4
    conditional_ess: float = 0.9


SIZES = {
    "smoke": Settings(
        1, 3, (4, 200), (10, 200), 1000, (80, 40), (20, 20), 20_000, (10, 2), 0.4, 100,
        MdSettings(n_copies=16, n_ladders=8, block_ps=0.5, observe_ps=0.1), 1, 0.3,
    ),
    "laptop": Settings(
        3, 3, (4, 5000), (25, 10_000), 50_000, (3000, 300), (3000, 3000), 100_000, (400, 10), 10.0, 1000,
    ),
    "cluster": Settings(
        4, 8, (4, 100_000), (25, 100_000), 500_000, (40_000, 1000), (40_000, 2000), 1_000_000, (1000, 30), 100.0, 2000,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """One way to the Boltzmann distribution: its words, its kind (see `correction_tables`), and a function of the repeat."""

    key: str
    name: str
    kind: str
    run: Callable[[int], Outcome]
    n_repeats: int


def correction(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record.

    Raises
    ------
    InputError
        When there is no such size.
    """
    if size not in SIZES:
        raise InputError(f"the suite 'correction' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs = SIZES[size], Costs()
    runs = trained_runs(size, out, [seed + number for number in range(settings.n_trainings)], costs)
    with one_thread():
        trained = {kind: [Trained.load(run) for run in own] for kind, own in runs.items()}
        with costs.stage("first calls"):
            warm_up(trained, seed)
        ways = make_ways(settings, trained, seed)
        outcomes: dict[str, list[Outcome]] = {way.key: [] for way in ways}
        spent = {way.key: (0.0, 0.0) for way in ways}
        for repeat in range(settings.n_repeats):
            for way in ways if repeat % 2 == 0 else ways[::-1]:
                interrupts.check()
                if repeat >= way.n_repeats:
                    continue
                watch = Stopwatch()
                outcomes[way.key].append(way.run(repeat))
                cpu_s, wall_s = spent[way.key]
                spent[way.key] = cpu_s + watch.cpu_s, wall_s + watch.wall_s
    gpus = int(device() == "cuda")
    for way in ways:
        on_gpu = gpus if way.kind == tables.SURROGATE else 0
        costs.add(f"{way.name}, {len(outcomes[way.key])} repeats, checks included", *spent[way.key], gpus=on_gpu)
    results = {way.key: tables.summary(way.name, way.kind, outcomes[way.key], CONVERGED_KT) for way in ways}
    record = tables.record_of(results, size, CONVERGED_KT, device())
    return {**record, "costs": costs.stages, "results": results, "config": asdict(settings)}


def warm_up(trained: dict[str, list[Trained]], seed: int) -> None:
    """Draw a few samples by each surrogate, and compute a few energies: what is slow the first time counts for no way."""
    for own in trained.values():
        system = own[0].run.system
        for one in own:
            features, _ = one.surrogate.sample(100, derive_seed(seed, "warm-up"), n_steps=2)
            positions, _ = one.representation.decode(features.cpu())
            energy_function(system, choose_energies(system), 100)(positions.numpy())


def make_ways(settings: Settings, trained: dict[str, list[Trained]], seed: int) -> list[Way]:
    """Return all ways of a size."""
    system, n = trained[DIFFUSION][0].run.system, settings.n_repeats

    def seeded(key: str, function: Callable[[int], Outcome]) -> Callable[[int], Outcome]:
        return lambda repeat: function(derive_seed(seed, "correction", key, repeat))

    ways = _learned_ways(settings, trained, seed)
    for key, shape in (("prior", (settings.prior, 1)), ("smc", settings.smc)):
        particles = functools.partial(by_particles, PARTICLES[key], system, *shape)
        ways.append(Way(key, PARTICLES[key].name, tables.PARTICLES, seeded(key, particles), n))
    biased = functools.partial(by_biased_md, system, settings.md, settings.md_cpu_s)
    ways.append(Way("md-bias", tables.BIASED_MD, tables.MD, seeded("md-bias", biased), n))

    def reference(repeat: int) -> Outcome:
        return by_reference(trained[DIFFUSION][repeat].run, derive_seed(seed, "correction", "md-reference", repeat))

    return [*ways, Way("md-reference", tables.REFERENCE_MD, tables.MD, reference, settings.n_trainings)]


def _learned_ways(settings: Settings, trained: dict[str, list[Trained]], seed: int) -> list[Way]:
    held_out = [datasets.load_split(one.run)[1] for one in trained[DIFFUSION]]  # the flow of a seed has the same data

    def way(key: str, name: str, kind: str, sample: SampleConfig, correct: CorrectConfig) -> Way:
        def run(repeat: int) -> Outcome:
            number = repeat % settings.n_trainings
            one, frames = trained[kind][number], held_out[number]
            config: RunConfig = one.run.config.model_copy(update={"sample": sample, "correct": correct})
            return by_surrogate(one, config, frames, derive_seed(seed, "correction", key, repeat))

        return Way(key, name, tables.SURROGATE, run, settings.n_repeats)

    def moved(island_size: int) -> CorrectConfig:
        how = {"moves": settings.moves, "conditional_ess": settings.conditional_ess, "check_frames": 0}
        return CorrectConfig(method="anneal", island_size=island_size, **how)

    weights = CorrectConfig(method="weights", check_frames=settings.check_frames)
    (steps, n_ode), (levels, n_path), (n_annealed, island) = settings.ode, settings.path, settings.annealed
    n_chains, of_chains = settings.chains
    size = 10_000 if device() == "cuda" else 1000  # of a shard: what fills a GPU, and what stays in a processor's cache
    ode = SampleConfig(n_steps=steps, n_samples=n_ode, shard_size=size)
    proposals = ode.model_copy(update={"n_samples": n_chains})
    path = SampleConfig(sampler="path", n_steps=levels, n_samples=n_path, shard_size=size)
    flow = SampleConfig(n_samples=settings.n_flow, shard_size=10_000)
    start = flow.model_copy(update={"n_samples": n_annealed})
    return [
        way("diffusion-ode", f"diffusion, exact weights along the ODE, {steps} steps", DIFFUSION, ode, weights),
        way("diffusion-path", f"diffusion, weights of whole paths, {levels} levels", DIFFUSION, path, weights),
        way("diffusion-chains", "diffusion, proposals of exact chains", DIFFUSION, proposals, moved(of_chains)),
        way("flow", "flow, importance weights", FLOW, flow, weights),
        way("flow-annealed", "flow, annealed by sequential Monte Carlo", FLOW, start, moved(island)),
    ]
