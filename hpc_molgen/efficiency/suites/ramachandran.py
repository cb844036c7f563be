"""Suite `ramachandran`: the torsion surrogate of alanine dipeptide against a kernel estimate and the first published DDPM.

One run makes the molecular dynamics, splits it by walkers, and judges on the half that no surrogate saw: the training half
itself (the noise floor), a kernel density estimate, the DDPM of the first published pipeline, and the torsion surrogate of this
package with its fast and its ancestral sampler. Same n, same bins, same code for all.

The hyperparameters below were chosen on another seed's molecular dynamics (seed 2) and are constants here; nothing in a run
looks at its held-out half before the scores.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from hpc_molgen.config import DiffusionConfig, SystemConfig, TrainConfig
from hpc_molgen.efficiency.suites.published_ddpm import PublishedDdpm, PublishedSettings, choose_bandwidth, kernel_samples
from hpc_molgen.efficiency.suites.ramachandran_scores import Draw, Reference, ramachandran_record
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.torsion_series import SeriesSettings, WalkerSeries, torsion_series
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.surrogates.diffusion.surrogate import DiffusionSurrogate
from hpc_molgen.systems.registry import load_system
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import ProcessGroup
from hpc_molgen.training.loop import Trainer
from hpc_molgen.workers import Stopwatch, Workers, available_cores, one_thread

PUBLISHED_BANDWIDTH_DEG = 4.0


@dataclass(frozen=True)
class Size:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    n_samples : int
        Samples of every method, and of the thinned training half that is the floor.
    n_thinnings, n_sampling_seeds, n_training_seeds : int
        Repeats of the floor, of every sampler, of our training.
    ode_steps, n_levels : int
        Of the fast and of the ancestral sampler of our surrogate.
    chunk : int
        Samples drawn at once, for every network alike.
    """

    series: SeriesSettings
    published: PublishedSettings
    surrogate: DiffusionConfig
    train: TrainConfig
    n_samples: int = 10_000
    n_thinnings: int = 10
    n_sampling_seeds: int = 2
    n_training_seeds: int = 3
    ode_steps: int = 8
    n_levels: int = 1000
    chunk: int = 1000


SIZES = {
    "laptop": Size(
        series=SeriesSettings(),
        published=PublishedSettings(),
        surrogate=DiffusionConfig(hidden=128, depth=2, harmonics=3),
        train=TrainConfig(
            n_steps=8000, batch_size=256, learning_rate=2e-3, validate_every=8000, checkpoint_every_s=1e9, device="cpu"
        ),
    ),
    "smoke": Size(
        series=SeriesSettings(n_walkers=4, production_ps=5.0, equilibration_ps=0.5, save_every_ps=0.02),
        n_samples=400,
        n_thinnings=3,
        n_sampling_seeds=2,
        n_training_seeds=2,
        published=PublishedSettings(epochs=10, n_levels=100),
        surrogate=DiffusionConfig(hidden=64, depth=1, harmonics=4),
        train=TrainConfig(
            n_steps=150,
            batch_size=256,
            warmup_steps=20,
            ema_decay=0.98,
            validate_every=150,
            checkpoint_every_s=1e9,
            device="cpu",
        ),
        n_levels=100,
        chunk=400,
    ),
    "cluster": Size(
        series=SeriesSettings(n_walkers=64, production_ps=5000.0),
        published=PublishedSettings(),
        surrogate=DiffusionConfig(hidden=128, depth=2, harmonics=3),
        train=TrainConfig(
            n_steps=20_000, batch_size=512, learning_rate=2e-3, validate_every=20_000, checkpoint_every_s=1e9, device="cpu"
        ),
        n_samples=50_000,
        n_thinnings=20,
        n_sampling_seeds=3,
        n_training_seeds=10,
    ),
}


def ramachandran(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record."""
    if size not in SIZES:
        raise InputError(f"the suite 'ramachandran' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs = SIZES[size], Costs()
    with one_thread():
        reference = reference_halves(settings, out, seed, costs)
        draws = kernel_draws(settings, reference, seed, costs)
        draws += published_draws(settings, reference, seed, costs)
        for repeat in range(settings.n_training_seeds):
            draws += surrogate_draws(settings, reference, out, seed, repeat, costs)
    config = {**dataclasses.asdict(settings), "system": SystemConfig().model_dump()}
    config |= {"surrogate": settings.surrogate.model_dump(), "train": settings.train.model_dump()}
    return {**ramachandran_record(reference, draws, settings.n_samples, settings.n_thinnings, seed, costs), "config": config}


def reference_halves(settings: Size, out: Path, seed: int, costs: Costs) -> Reference:
    """Run (or read) the walkers; the first half of them trains, the second is held out."""
    system = load_system(SystemConfig())
    walkers = torsion_series(system, settings.series, seed, out, Workers(n_processes=available_cores()))
    total = _total(walkers)  # read from the walkers' files, so that a second run that finds them counts the same
    costs.add(f"reference MD, {len(walkers)} walkers, wall s summed over them", total["cpu_s"], total["wall_s"])
    half = settings.series.n_walkers // 2
    return Reference(_angles(walkers[:half]), _angles(walkers[half:]), _total(walkers[:half]), _total(walkers[half:]))


def _angles(walkers: list[WalkerSeries]) -> list[np.ndarray]:
    return [walker.angles_rad for walker in walkers]


def _total(walkers: list[WalkerSeries]) -> dict[str, Any]:
    platforms = sorted({walker.costs["platform"] for walker in walkers})
    return {
        "cpu_s": sum(walker.costs["cpu_s"] for walker in walkers),
        "wall_s": sum(walker.costs["wall_s"] for walker in walkers),
        "ns": sum(walker.costs["ns"] for walker in walkers),
        "platform": "/".join(platforms),
    }


def kernel_draws(settings: Size, reference: Reference, seed: int, costs: Costs) -> list[Draw]:
    """Samples of the kernel density estimate with the published bandwidth and with one chosen inside the training half."""
    walkers = reference.train_walkers
    with costs.stage("choice of the kernel's bandwidth") as entry:
        half = len(walkers) // 2
        chosen = choose_bandwidth(np.concatenate(walkers[:half]), np.concatenate(walkers[half:]))
    draws = []
    methods = (
        (f"wrapped kernel density estimate, {PUBLISHED_BANDWIDTH_DEG:g} degrees (as published)", PUBLISHED_BANDWIDTH_DEG, 0.0),
        (f"wrapped kernel density estimate, {chosen:g} degrees (cross-validated)", chosen, float(entry["cpu_s"])),
    )
    with costs.stage("sampling the kernel density estimates"):
        for label, (method, bandwidth_deg, training_cpu_s) in zip(("kernel", "kernel chosen"), methods, strict=True):
            for repeat in range(settings.n_sampling_seeds):
                watch = Stopwatch()
                sample_seed = derive_seed(seed, label, repeat)
                angles = kernel_samples(reference.train, bandwidth_deg, settings.n_samples, sample_seed)
                draws.append(Draw(label, method, 0, repeat, angles, training_cpu_s, watch.cpu_s, watch.wall_s, 0))
    return draws


def published_draws(settings: Size, reference: Reference, seed: int, costs: Costs) -> list[Draw]:
    """Train the published DDPM once; sample it with every sampling seed."""
    ddpm = PublishedDdpm(settings.published, derive_seed(seed, "published"))
    with costs.stage("training the published DDPM") as entry:
        n_steps = ddpm.train(reference.train)
    method = (
        f"published DDPM, {settings.published.epochs} epochs = {n_steps:,} steps, {settings.published.n_levels} ancestral steps"
    )
    with costs.stage("sampling the published DDPM"):
        return [
            _draw("published", method, ddpm.network, ddpm.sample, settings, seed, 0, repeat, entry["cpu_s"])
            for repeat in range(settings.n_sampling_seeds)
        ]


def surrogate_draws(settings: Size, reference: Reference, out: Path, seed: int, repeat: int, costs: Costs) -> list[Draw]:
    """Train our surrogate with its `repeat`-th seed; sample it with both samplers and every sampling seed."""
    train_seed = derive_seed(seed, "surrogate", repeat)
    with costs.stage(f"training our surrogate, seed {repeat}") as entry:
        surrogate = train_surrogate(settings, reference.train, out, train_seed)
    samplers: dict[str, tuple[str, dict[str, Any]]] = {
        "fast": ("ours, ODE", {"sampler": "ode", "n_steps": settings.ode_steps, "log_density": False}),
        "ancestral": ("ours, ancestral", {"sampler": "ancestral", "n_steps": settings.n_levels, "log_density": False}),
    }
    draws = []
    for label, (name, options) in samplers.items():

        def sample(n: int, sample_seed: int, options: dict[str, Any] = options) -> np.ndarray:
            features: np.ndarray = surrogate.sample(n, sample_seed, **options)[0].double().numpy()
            return features

        with costs.stage(f"sampling our surrogate ({label}), training seed {repeat}"):
            for sampling in range(settings.n_sampling_seeds):
                method = f"{name}, {options['n_steps']} steps"
                network = surrogate.parts()["score"]
                draws.append(_draw(label, method, network, sample, settings, seed, repeat, sampling, entry["cpu_s"]))
    return draws


class Trainable(Protocol):
    """What says how a surrogate of torsions is made and trained."""

    @property
    def surrogate(self) -> DiffusionConfig:
        """Its size."""

    @property
    def train(self) -> TrainConfig:
        """Its training."""


def train_surrogate(settings: Trainable, angles_rad: np.ndarray, out: Path, seed: int) -> Surrogate:
    """Train the torsion surrogate on angles (n, 2) with the package's own loop; return the averaged one.

    The loop's validation items are training frames here: the held-out half stays unseen, and nothing is selected by them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        size = settings.surrogate
        surrogate = DiffusionSurrogate(2, 0, size.hidden, size.depth, size.harmonics, size.schedule)
    features = torch.from_numpy(angles_rad).float()
    weights = torch.ones(len(features))
    group = ProcessGroup(0, 1, torch.device("cpu"))
    with tempfile.TemporaryDirectory(dir=out) as directory:  # no checkpoint of an earlier run: its cost would be missing
        data = TrainingSet(features, weights)
        trainer = Trainer(surrogate, settings.train, data, data, Path(directory), group, seed)
        return trainer.run()


def _draw(
    label: str,
    method: str,
    network: nn.Module,
    sample: Callable[[int, int], np.ndarray],
    settings: Size,
    seed: int,
    training: int,
    sampling: int,
    training_cpu_s: float,
) -> Draw:
    """Draw the samples in chunks, counting time and network evaluations."""
    n_calls = 0

    def count(*_: object) -> None:
        nonlocal n_calls
        n_calls += 1

    hook = network.register_forward_hook(count)
    watch = Stopwatch()
    sizes = [min(settings.chunk, settings.n_samples - start) for start in range(0, settings.n_samples, settings.chunk)]
    parts = [sample(size, derive_seed(seed, label, training, sampling, chunk)) for chunk, size in enumerate(sizes)]
    cpu_s, wall_s = watch.cpu_s, watch.wall_s
    hook.remove()
    angles = np.concatenate(parts)
    return Draw(label, method, training, sampling, angles, training_cpu_s, cpu_s, wall_s, n_calls // len(sizes))
