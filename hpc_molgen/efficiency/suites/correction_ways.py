"""Ways to the Boltzmann distribution of the suite `correction`: each makes samples that count, and says what they took.

A way is one function of a repeat; the others of its arguments are bound where the suite lists its ways.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from hpc_molgen import coverage, datasets, interrupts, reweighting
from hpc_molgen.analysis import kinetics
from hpc_molgen.annealing import Island, join_islands, move_island
from hpc_molgen.config import RunConfig
from hpc_molgen.dynamics.choice import choose_energies, energy_function
from hpc_molgen.efficiency.costs import collect_costs
from hpc_molgen.efficiency.suites.correction_outcome import (
    NOT_KNOWN,
    Clock,
    Outcome,
    blind,
    independent_samples,
    inside_of,
    of_groups,
    of_samples,
    of_units,
)
from hpc_molgen.efficiency.suites.surrogate_pair import Trained, training_bill, why_not_certified
from hpc_molgen.efficiency.suites.verdict_methods import MD_METHODS, MdSettings, Walkers
from hpc_molgen.efficiency.suites.verdict_samplers import ParticleMethod
from hpc_molgen.efficiency.suites.verdict_sums import Window
from hpc_molgen.ensemble import Ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.from_zero import scale_coordinates
from hpc_molgen.run import Run
from hpc_molgen.sampling import N_ROUND_TRIPS, draw_structures, n_steps
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.surrogates.diffusion.round_trip import round_trip
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import Stopwatch, one_thread

SEEN = 5  # effective samples expected in a basin, for having none there to say something


def by_surrogate(trained: Trained, config: RunConfig, held_out: Ensemble, seed: int) -> Outcome:
    """Draw samples as `config.sample` asks, and correct them as `config.correct` does: by weights, or moved.

    Then compare them with held-out MD, which counts as a fixed cost. What is moved is independent by island or by chain. A
    surrogate too poor to be corrected at all is an outcome, not an error.
    """
    run = Run(trained.run.directory, config, trained.run.workers)
    energies, paid = energy_function(run.system, choose_energies(run.system), config.sample.n_samples), training_bill(run)
    clock, moved = Clock(), None
    features, positions, log_density = _drawn(trained, config, seed)
    clock.enter("draw")
    reduced_energy = energies(positions)
    clock.enter("energies")
    try:
        log_weight = reweighting.importance_log_weights(reduced_energy, log_density)
        arrays = {"reduced_energy": reduced_energy, "log_density": log_density, "log_weight": log_weight}
        weighted = Ensemble.create(run.system, positions, **arrays)
        facts: dict[str, Any] = {"ess_fraction_before": reweighting.kish_ess(log_weight) / len(log_weight)}
        if config.correct.method == "anneal":
            moved, about = move(run, weighted, seed)
            facts |= about
            clock.enter("correction")
    except InputError as problem:
        clock.enter("correction")
        cpu_s = sum(clock.parts.values())
        return Outcome(0, cpu_s, clock.wall_s, paid, *NOT_KNOWN, None, (str(problem),), clock.parts)
    facts["round_trip_rms"] = _trip_rms(trained, config, features)
    check = coverage.check_coverage(run, weighted, held_out, moved)
    clock.enter("check")
    return _judged(run.system, clock, paid + clock.parts.pop("check"), weighted, moved, check, facts)


def _drawn(trained: Trained, config: RunConfig, seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Draw in shards, as the stage does: features, positions and ln q."""
    shards, n, size = [], config.sample.n_samples, config.sample.shard_size
    for index, start in enumerate(range(0, n, size)):
        interrupts.check()
        own = derive_seed(seed, "sample", index)
        found = draw_structures(trained.surrogate, trained.representation, config.sample, min(size, n - start), own)
        assert found[2] is not None
        shards.append((found[0], found[1], found[2]))
    features, positions, log_density = zip(*shards, strict=True)
    return torch.cat(features), np.concatenate(positions), np.concatenate(log_density)


def _judged(
    system: MolecularSystem, clock: Clock, fixed_cpu_s: float, weighted: Ensemble, moved: Ensemble | None,
    check: dict[str, Any], facts: dict[str, Any],
) -> Outcome:  # fmt: skip
    final = weighted if moved is None else moved
    diagnosed = reweighting.diagnose(final.log_weight)
    told = diagnosed if moved is None or np.ptp(moved.log_weight) > 0 else None  # chains have no weights
    if moved is None:
        found = of_samples(system, final.positions_nm, final.log_weight)
    else:
        inside, weights = inside_of(system, moved.positions_nm), reweighting.normalised_weights(moved.log_weight)
        found = of_units(inside, weights, moved.trajectory)
    reasons = [] if told is None else why_not_certified(told, facts["round_trip_rms"] if moved is None else None)
    ess = diagnosed.ess
    if moved is not None and found[0] is not None and found[1]:
        ess = min(ess, independent_samples(found[1], float(expit(-found[0]))))
    reasons += [*blind(found), *missed(check, ess, moved is not None)]
    density = check["density"]
    facts |= {"moved": moved is not None, "forward_ess": None if density is None else density.forward_ess.value}
    cpu_s = sum(clock.parts.values())
    return Outcome(len(final), cpu_s, clock.wall_s, fixed_cpu_s, *found, told, tuple(reasons), clock.parts, facts)


def missed(check: dict[str, Any], ess: float, moved: bool) -> list[str]:
    """Return in words what of the ensemble a surrogate misses, as the stage `correct` does, but of basins that can be seen.

    Of one so small that fewer than `SEEN` effective samples are expected there, having none says nothing.
    """
    basins = [basin for basin in check["basins"] if basin.frames.low * ess >= SEEN]
    error = abs(check["log_q"]["median"]) if check["log_q"] else 0.0
    return coverage.missing_modes(None if moved else check["density"], basins, error)


def move(run: Run, weighted: Ensemble, seed: int) -> tuple[Ensemble, dict[str, Any]]:
    """Carry islands of samples to the Boltzmann distribution by the code of the stage `correct`."""
    config, n = run.config.correct, len(weighted)
    n_islands = max(1, n // config.island_size)
    edges = [n * number // n_islands for number in range(n_islands + 1)]
    files = run.path("train", "surrogate.safetensors"), run.path("featurize", "representation.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        islands = [
            Island(
                start, Path(folder) / f"{number}.safetensors", run.system, config, run.config.sample, *files,
                weighted.positions_nm[start:end], weighted.log_density[start:end], derive_seed(seed, "anneal", number),
            )
            for number, (start, end) in enumerate(itertools.pairwise(edges))
        ]  # fmt: skip
        return join_islands(run, islands, _each(islands))


def _each(islands: Sequence[Island]) -> list[Any]:
    moved = []
    for island in islands:
        interrupts.check()
        moved.append(move_island(island))
    return moved


def _trip_rms(trained: Trained, config: RunConfig, features: torch.Tensor) -> float | None:
    sample = config.sample
    if trained.surrogate.one_pass or sample.sampler != "ode":
        return None
    found = round_trip(trained.surrogate, features[:N_ROUND_TRIPS], sample.integrator, n_steps(sample), sample.tolerance)
    return found.figures()["log_density_rms"]


def by_particles(method: ParticleMethod, system: MolecularSystem, n: int, n_populations: int, seed: int) -> Outcome:
    """Run populations of `n` particles from nothing but the force field; several of them are what is independent."""
    watch = Stopwatch()
    scaled, n_energies = scale_coordinates(system, derive_seed(seed, "scaling"))
    fixed, clock, found = watch.cpu_s, Clock(), []
    with one_thread():
        for number in range(n_populations):
            interrupts.check()
            found.append(method.function(scaled, derive_seed(seed, "population", number), n))
    clock.enter("draw, energies and correction")
    positions, log_weight = (np.concatenate([getattr(one, name) for one in found]) for name in ("positions_nm", "log_weight"))
    n_energies += sum(one.n_energies for one in found)
    diagnosed = reweighting.diagnose(log_weight)
    if n_populations == 1:
        estimate = of_samples(system, positions, log_weight)
    else:
        weights = reweighting.normalised_weights(log_weight)
        estimate = of_units(inside_of(system, positions), weights, np.repeat(np.arange(n_populations), n))
    facts = {"n_energies": n_energies, "moved": n_populations > 1}
    reasons = (*why_not_certified(diagnosed), *blind(estimate))
    cpu_s = sum(clock.parts.values())
    return Outcome(len(log_weight), cpu_s, clock.wall_s, fixed, *estimate, diagnosed, reasons, clock.parts, facts)


def by_reference(run: Run, seed: int) -> Outcome:
    """Take the run's own reference MD, all walkers, by its statistical inefficiency; its bias is weighed out."""
    frames = Ensemble.concatenate(list(datasets.load_split(run)))
    weights, inside = datasets.boltzmann_weights(frames), inside_of(run.system, frames.positions_nm)
    book = collect_costs(run)
    cost = next(cost for cost in book.stages if cost.stage == "reference")
    production = book.data + book.validation - book.equilibration
    counted = kinetics.effective_samples(inside, weights, frames.trajectory, 20, numpy_generator(seed, "reference"))
    found = of_units(inside, weights, frames.trajectory)
    facts = {"n_effective": counted.n_effective, "inefficiency": counted.inefficiency, "simulated_ns": book.simulated_ns}
    wall_s = cost.wall_s * production / max(cost.cpu_s, 1e-9)
    fixed = book.equilibration + book.shared_start
    return Outcome(len(frames), production, wall_s, fixed, *found, None, tuple(blind(found)), {"dynamics": production}, facts)


def by_biased_md(system: MolecularSystem, settings: MdSettings, budget_cpu_s: float, seed: int) -> Outcome:
    """Run the best MD of the suite `verdict` (many copies, 2 fs, a bias that flattens phi) for so long; bias weighed out.

    The first fifth is equilibration, which costs time. What is independent is a copy.
    """
    watch = Stopwatch()
    walkers = Walkers(MD_METHODS["bias"], system, settings.n_copies, settings, seed)
    fixed, watch = watch.cpu_s, Stopwatch()
    window, n_blocks = Window(settings.discarded), 0
    while n_blocks == 0 or watch.cpu_s < budget_cpu_s:
        interrupts.check()
        window.add(walkers.block())
        n_blocks += 1
    cpu_s, wall_s, sums = watch.cpu_s, watch.wall_s, window.sums()
    found = of_groups(sums.inside, sums.total)
    facts = {"simulated_ns": n_blocks * walkers.ns_per_block, "copies": settings.n_copies}
    return Outcome(sums.n_frames, cpu_s, wall_s, fixed, *found, None, tuple(blind(found)), {"dynamics": cpu_s}, facts)
