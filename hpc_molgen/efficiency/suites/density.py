"""Suite `density`: what ln q of a diffusion surrogate costs, how exact it is, and which weights are worth more.

Alanine dipeptide with the settings of its preset: its surrogate is trained by the pipeline, then every integrator is held
against a tight adaptive solution in float64 of the same samples, kinds of divergence are timed in turn, and weights along the
ODE stand beside weights on paths, all in CPU seconds of one thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_molgen import reweighting
from hpc_molgen.config import Integrator, SampleConfig, load_config
from hpc_molgen.dynamics.choice import choose_energies, energy_function
from hpc_molgen.efficiency.suites import density_tables as tables
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.rounds import Method, interleaved
from hpc_molgen.efficiency.suites.runs import finish_run
from hpc_molgen.representations.base import Representation, load_representation
from hpc_molgen.run import Run, stage_costs
from hpc_molgen.sampling import draw_structures
from hpc_molgen.seeding import derive_seed, torch_generator
from hpc_molgen.surrogates.base import load_surrogate
from hpc_molgen.surrogates.diffusion.divergence import velocity_and_divergence_by_jvp
from hpc_molgen.surrogates.diffusion.network import VelocityNetwork
from hpc_molgen.surrogates.diffusion.path import path_steps, sample_path
from hpc_molgen.surrogates.diffusion.process import HALF_PI
from hpc_molgen.surrogates.diffusion.round_trip import round_trip
from hpc_molgen.surrogates.diffusion.surrogate import DiffusionSurrogate
from hpc_molgen.surrogates.prior import log_prior
from hpc_molgen.workers import Stopwatch, one_thread


@dataclass(frozen=True)
class Settings:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    assignments : tuple of str
        Beside the preset.
    n_checked, n_weighted, n_timed : int
        Samples for errors of ln q, for weights, and in a batch that is timed.
    tight : float
        Tolerance of the solution that errors are measured against.
    grids : tuple of (integrator, steps)
    ode_steps, path_steps : tuple of int
        Whose weights are compared; Runge-Kutta steps of order 4, and noise levels.
    """

    assignments: tuple[str, ...]
    n_checked: int
    n_weighted: int
    n_timed: int
    n_rounds: int
    measure_s: float
    tight: float
    grids: tuple[tuple[Integrator, int], ...]
    tolerances: tuple[float, ...]
    ode_steps: tuple[int, ...]
    path_steps: tuple[int, ...]


SIZES = {
    "smoke": Settings(
        ("reference.n_walkers=4", "reference.equilibration_ps=1", "reference.production_ps=10", "train.n_steps=40",
         "train.warmup_steps=5", "surrogate.hidden=32", "surrogate.depth=1"),
        16, 200, 50, 2, 0.02, 1e-6, (("euler", 4), ("rk4", 4), ("rk4", 8)), (1e-2,), (4,), (10, 20),
    ),
    "laptop": Settings(
        (), 64, 5000, 1000, 5, 0.4, 1e-5,
        (("euler", 48), ("heun", 8), ("heun", 12), ("adams", 13), ("adams", 19), ("adams", 31), ("rk4", 3), ("rk4", 4),
         ("rk4", 6), ("rk4", 8), ("rk4", 12), ("dopri5", 3), ("dopri5", 5)),
        (1e-2, 1e-3), (4, 6, 8), (15, 25, 50, 100),
    ),
    "cluster": Settings(
        ("train.n_steps=20000", "train.batch_size=1024"), 256, 50_000, 4000, 20, 2.0, 1e-6,
        (("euler", 48), ("heun", 8), ("heun", 12), ("adams", 13), ("adams", 19), ("adams", 31), ("rk4", 3), ("rk4", 4),
         ("rk4", 6), ("rk4", 8), ("rk4", 12), ("dopri5", 3), ("dopri5", 5)),
        (1e-2, 1e-3), (4, 6, 8, 12), (15, 25, 50, 100, 200),
    ),
}  # fmt: skip


def density(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite; return its part of the record. Its run stays in ``out/density-SIZE-run``."""
    settings, costs = SIZES[size], Costs()
    run = _trained(settings, out / f"density-{size}-run", seed, costs)
    loaded = load_surrogate(run.path("train", "surrogate.safetensors"), run.system.key)
    assert isinstance(loaded, DiffusionSurrogate)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    with one_thread():
        with costs.stage("errors of integrators, with a tight solution of each"):
            errors = integrator_errors(loaded, settings, derive_seed(seed, "errors"))
        with costs.stage("speeds of divergences"):
            speeds = divergence_speeds(loaded, settings, derive_seed(seed, "speeds"))
        with costs.stage("weights along the ODE and on paths, with energies"):
            weights = compare_weights(run, loaded, representation, settings, derive_seed(seed, "weights"))
    n_torus = loaded.n_torus
    results = {"errors": errors, "speeds": speeds, "weights": weights, "n_torus": n_torus, "n_features": loaded.n_features}
    return {**tables.record_of(results, size), "costs": costs.stages, "results": results, "config": asdict(settings)}


def _trained(settings: Settings, directory: Path, seed: int, costs: Costs) -> Run:
    """Run the pipeline up to training, in a process of its own; a finished run is not repeated.

    Raises
    ------
    EnvironmentProblem
        When it fails, with the end of what it said.
    """
    config = load_config("alanine-dipeptide", [f"seed={seed}", *settings.assignments])
    run = finish_run(directory.parent, directory.name, config, "train")
    parts = [stage_costs(run, stage) for stage in ("reference", "featurize", "train")]
    cpu_s, wall_s = (sum(part[key] for part in parts) for key in ("cpu_s", "wall_s"))
    costs.add("reference, features and training by the pipeline", cpu_s, wall_s)
    return run


@torch.no_grad()
def integrator_errors(surrogate: DiffusionSurrogate, settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Errors of ln q of samples, for each integrator, against the adaptive solution in float64 from these samples."""
    exact = copy.deepcopy(surrogate).double()
    prior = surrogate.draw_prior(settings.n_checked, torch_generator(seed, "prior"))
    plans: list[tuple[Integrator, int, float]] = [(name, steps, 0.0) for name, steps in settings.grids]
    plans += [("adaptive", 0, tolerance) for tolerance in settings.tolerances]
    rows = []
    for integrator, steps, tolerance in plans:
        found = surrogate.run_ode(prior, HALF_PI, 0.0, integrator, steps, tolerance, divergence=True)
        assert found.change is not None
        log_q = log_prior(prior.double(), surrogate.n_torus) - found.change
        truth = exact.log_density(found.features.double(), 0, "adaptive", settings.tight)
        error = (log_q - truth).abs()
        trip = round_trip(surrogate, found.features, integrator, steps, tolerance)
        rows.append({
            "integrator": integrator, "n_steps": steps, "tolerance": tolerance, "n_evaluations": found.n_evaluations,
            "rms": float(error.square().mean().sqrt()), "p95": float(error.quantile(0.95)), "max": float(error.max()),
            "round_trip": trip.figures(),
        })  # fmt: skip
    return rows


def divergence_by_loop(
    network: VelocityNetwork, features: torch.Tensor, time: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Velocity and divergence with one Jacobian-vector product after another for the angles: what the batched form replaces.

    The Euclidean block has the same closed form in both, taken here from the batched one at no charge of its own.
    """
    velocity = network(features, time)
    divergence = torch.zeros_like(features[:, 0])
    for column in range(network.n_torus):
        tangent = torch.zeros_like(features)
        tangent[:, column] = 1.0
        slope: torch.Tensor = torch.func.jvp(lambda x: network(x, time), (features,), (tangent,))[1]
        divergence = divergence + slope[:, column]
    return velocity, divergence


@torch.no_grad()
def divergence_speeds(surrogate: DiffusionSurrogate, settings: Settings, seed: int) -> dict[str, Any]:
    """Samples a CPU second of one evaluation: the velocity alone, and with its divergence in three ways."""
    network, n = surrogate.network, settings.n_timed
    features = surrogate.draw_prior(n, torch_generator(seed, "timed"))
    time = network.embed_time(torch.tensor([0.7]).to(features))
    works: dict[str, tuple[str, Callable[[], object]]] = {
        "velocity": ("velocity alone", lambda: network(features, time)),
        "batched": (
            "with divergence, tangents of all angles together",
            lambda: network.velocity_and_divergence(features, time),
        ),
        "loop": (
            "with the divergence of the angles alone, one after the other",
            lambda: divergence_by_loop(network, features, time),
        ),
        "full": (
            "with divergence, any network: all products in one call",
            lambda: velocity_and_divergence_by_jvp(network, features, time),
        ),
    }
    for _, work in works.values():
        work()
    methods = [Method(label, name, work, n, "velocity") for label, (name, work) in works.items()]
    return interleaved(methods, settings.n_rounds, settings.measure_s)


def compare_weights(
    run: Run, surrogate: DiffusionSurrogate, representation: Representation, settings: Settings, seed: int
) -> list[dict[str, Any]]:
    """Diagnostics and costs of weights along the ODE and on paths."""
    energies = energy_function(run.system, choose_energies(run.system), settings.n_weighted)

    def row(kind: str, n_steps: int, variance: str, draw: Callable[[], tuple[np.ndarray, np.ndarray | None]]) -> dict[str, Any]:
        watch = Stopwatch()
        positions, log_density = draw()
        sampling_s, watch = watch.cpu_s, Stopwatch()
        reduced_energy = energies(positions)
        energy_s = watch.cpu_s
        log_weight = reweighting.importance_log_weights(reduced_energy, log_density)
        found = reweighting.diagnose(log_weight)
        finite = np.isfinite(log_weight)
        return {
            "kind": kind, "n_steps": n_steps, "variance": variance, **found.as_dict(), "sampling_cpu_s": sampling_s,
            "energy_cpu_s": energy_s, "samples_per_cpu_s": found.n / (sampling_s + energy_s),
            "effective_per_cpu_s": found.ess / (sampling_s + energy_s), "log_weight_sd": float(log_weight[finite].std()),
            "log_z": float(np.logaddexp.reduce(log_weight[finite]) - np.log(found.n)),
        }  # fmt: skip

    def along(config: SampleConfig) -> Callable[[], tuple[np.ndarray, np.ndarray | None]]:
        return lambda: draw_structures(surrogate, representation, config, settings.n_weighted, seed)[1:]

    rows = [row("ode", n, "-", along(SampleConfig(sampler="ode", n_steps=n))) for n in settings.ode_steps]
    rows += [row("path", n, "beta", along(SampleConfig(sampler="path", n_steps=n))) for n in settings.path_steps]
    middle = settings.path_steps[len(settings.path_steps) // 2]

    @torch.no_grad()
    def narrower() -> tuple[np.ndarray, np.ndarray | None]:
        generator, network = torch_generator(seed, "narrower"), surrogate.network

        def velocity(x: torch.Tensor, phi: float) -> torch.Tensor:
            found: torch.Tensor = network(x, network.embed_time(torch.tensor([phi]).to(x)))
            return found

        steps = path_steps(middle, surrogate.n_torus, towards_posterior=0.5)
        features, log_ratio = sample_path(velocity, surrogate.draw_prior(settings.n_weighted, generator), steps, generator)
        positions, log_abs_det = representation.decode(features)
        return positions.numpy(), (log_ratio - log_abs_det).numpy()

    return [*rows, row("path", middle, "between beta and beta-tilde", narrower)]
