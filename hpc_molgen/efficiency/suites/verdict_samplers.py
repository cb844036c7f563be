"""Samplers of the `verdict` suite outside of the pipeline: the published DDPM, and populations of particles.

A method of particles is one entry of `PARTICLES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen import datasets, interrupts, reweighting
from hpc_molgen.config import RunConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import minimise
from hpc_molgen.efficiency.costs import collect_costs
from hpc_molgen.efficiency.suites.published_ddpm import PublishedDdpm, PublishedSettings
from hpc_molgen.efficiency.suites.runs import finish_run
from hpc_molgen.efficiency.suites.verdict_methods import Curve, backbone, phi_psi
from hpc_molgen.efficiency.suites.verdict_scores import Series, Truth, weighted_checkpoints
from hpc_molgen.efficiency.suites.verdict_sums import Sums, Window, side_by_side, sum_frames
from hpc_molgen.ensemble import Ensemble
from hpc_molgen.montecarlo.from_zero import Population, Scaled, annealed_prior, scale_coordinates, weighted_prior
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import set_torsion
from hpc_molgen.workers import Stopwatch, one_thread

ParticleFunction = Callable[[Scaled, int, int], Population]
DDPM = "published-ddpm"
DDPM_NAME = "published DDPM of (phi, psi), rigid geometry, weights exp(-u) without its density"
DDPM_SHORT = "published DDPM, exp(-u): its error"


@dataclass(frozen=True)
class ParticleMethod:
    """A method from zero whose result is weighted particles, without training (see `montecarlo.from_zero`).

    Attributes
    ----------
    name, short : str
        In tables, and beside its line in the picture.
    function : callable
        ``(scaled, seed, n_particles)``; the mean exp of the log-weights estimates the same number in every population.
    size : int
        Particles of a population, in multiples of the settings'.
    """

    name: str
    short: str
    function: ParticleFunction
    size: int = 1


PARTICLES: dict[str, ParticleMethod] = {
    "prior": ParticleMethod(
        "no training: uniform torsions and whitened normal coordinates, importance weights", "untrained, weights",
        weighted_prior, 20,
    ),
    "smc": ParticleMethod(
        "no training: the same, annealed by sequential Monte Carlo with Langevin moves", "Monte Carlo, no surrogate",
        annealed_prior,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class DdpmSettings:
    """The published network and its training; frames that it is trained on, and samples drawn from it."""

    network: PublishedSettings = field(default_factory=PublishedSettings)
    n_frames: int = 4000
    n_samples: int = 2000


@dataclass(frozen=True)
class ParticleSettings:
    """Particles of a population, and independent populations one after the other."""

    n_particles: int = 1000
    n_populations: int = 30


def ddpm_series(settings: DdpmSettings, config: RunConfig, truth: Truth, folder: Path, repeat: int) -> Series:
    """Follow the first published pipeline on our reference: angles by its DDPM, a rigid molecule, weights exp(-u).

    Its energies are of the run's own force field here (MMFF94 there), and it is trained on frames drawn by their weights, which
    have seen phi > 0 (plain MD, there, had not). The weights leave out the density that its samples already follow
    (facts/peers.md, section A): a bias that no number of samples mends.
    """
    run = finish_run(folder, f"{DDPM}-{repeat}", config, "reference")
    reference = collect_costs(run).stages[0]
    watch, system, n = Stopwatch(), run.system, settings.n_samples
    with one_thread():
        frames = Ensemble.concatenate(list(datasets.load_split(run)))
        share = datasets.boltzmann_weights(frames)
        chosen = numpy_generator(config.seed, "published frames").choice(len(frames), settings.n_frames, p=share / share.sum())
        ddpm = PublishedDdpm(settings.network, derive_seed(config.seed, "published"))
        ddpm.train(phi_psi(system, frames.positions_nm[chosen]))
        parts = {"reference_cpu_s": reference.cpu_s, "train_cpu_s": watch.cpu_s}
        fixed = reference.cpu_s + watch.cpu_s, reference.wall_s + watch.wall_s
        watch = Stopwatch()
        angles = ddpm.sample(n, derive_seed(config.seed, "published sample"))
        structures = rigid_structures(system, angles)
        energies = BatchedSystem(system, "float64", threads=1).energies(structures) / system.kt_kj_mol
        each = watch.cpu_s / n, watch.wall_s / n
    log_weights = np.where(np.isfinite(energies), -energies, -np.inf)
    points = weighted_checkpoints(angles, log_weights, energies, truth, fixed, each)
    raw = weighted_checkpoints(angles, np.zeros(n), energies, truth, fixed, each)[-1]
    facts: dict[str, Any] = {"certified": False, "k_hat": reweighting.pareto_k(log_weights), "n_samples": n, **parts}
    facts |= {"ess_fraction": reweighting.kish_ess(log_weights) / n, "cpu_s_per_sample": each[0]}
    facts["unweighted"] = {"free_energy_kt": raw.free_energy_kt, "half_width_kt": raw.half_width_kt}
    return Series(DDPM, repeat, fixed[0], points, facts)


def rigid_structures(system: MolecularSystem, phi_psi_rad: np.ndarray) -> np.ndarray:
    """Turn the minimised structure of the system to each (phi, psi) of (n, 2); nothing else moves. Shape (n, n_atoms, 3)."""
    start, _ = minimise(BatchedSystem(system, "float64", threads=1), system.positions_nm[None], max_iterations=300)
    quads, structures = backbone(system), []
    for row in phi_psi_rad:
        positions = start[0]
        for quad, value in zip(quads, row, strict=True):
            positions = set_torsion(system.topology, positions, quad, float(value))
        structures.append(positions)
    return np.array(structures)


def particle_series(
    key: str, method: ParticleMethod, system: MolecularSystem, settings: ParticleSettings, truth: Truth, seed: int, repeat: int
) -> Series:
    """Run independent populations one after the other; groups of the jackknife are populations, not particles."""
    exact, curve, parts = BatchedSystem(system, "float64"), Curve(truth), list[Sums]()
    watch = Stopwatch()
    scaled, n_energies = scale_coordinates(system, derive_seed(seed, "scaling"))
    fixed_s, cpu_s, wall_s = watch.cpu_s, watch.cpu_s, watch.wall_s
    shift, n = 0.0, method.size * settings.n_particles
    tails = []
    for number in range(settings.n_populations):
        interrupts.check()
        with one_thread():
            watch = Stopwatch()
            found = method.function(scaled, derive_seed(seed, "population", number), n)
            cpu_s, wall_s, n_energies = cpu_s + watch.cpu_s, wall_s + watch.wall_s, n_energies + found.n_energies
        positions, log_weights = found.positions_nm, found.log_weight
        tails.append(log_weights)
        shift = float(np.max(log_weights)) if number == 0 else shift
        weights = np.exp(log_weights - shift)
        energies = exact.energies(positions) / system.kt_kj_mol
        parts.append(sum_frames(phi_psi(system, positions)[:, None], weights[:, None], energies, weights))
        window = Window(0.0)
        window.add(side_by_side(parts))
        curve.look(window, cpu_s, wall_s, last=number == settings.n_populations - 1)
    all_weights = np.concatenate(tails)
    k_hat, ess = reweighting.pareto_k(all_weights), reweighting.kish_ess(all_weights) / len(all_weights)
    facts = {"n_energies": n_energies, "n_samples": len(all_weights), "k_hat": k_hat, "ess_fraction": ess}
    return Series(key, repeat, fixed_s, curve.checkpoints, facts | {"certified": k_hat <= reweighting.K_HAT_LIMIT})
