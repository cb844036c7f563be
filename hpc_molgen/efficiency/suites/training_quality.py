"""How long training takes until a surrogate is good: the part of the suite `training` that trains on real data.

Surrogates of (phi, psi) of alanine dipeptide learn from one half of the copies of a run of molecular dynamics; how near their
samples are to the other half is looked at after a geometric series of steps, with the clock stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_molgen import interrupts
from hpc_molgen.analysis.divergence import NoiseFloor, jensen_shannon, noise_floor, ramachandran_histogram
from hpc_molgen.config import SystemConfig, TrainConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.dynamics.modified import modified_system
from hpc_molgen.efficiency.suites.record import Costs, spread
from hpc_molgen.efficiency.suites.training_workloads import ALONE
from hpc_molgen.seeding import derive_seed
from hpc_molgen.surrogates.base import Surrogate, surrogate_class
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import torsion_angles, torsion_by_name
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.loop import Trainer
from hpc_molgen.workers import one_thread

LIMIT = 1.25
CHUNK = 1000  # samples drawn at once
TORSIONS = ("phi", "psi")
TIMESTEP_FS = 2.0


@dataclass(frozen=True)
class Learner:
    """A surrogate, how it is trained, and how it is sampled.

    Attributes
    ----------
    surrogate : str
        Registered name.
    sizes, sampling : dict
        Keyword arguments of its class and of its method `sample`.
    last_step : int
        Where training ends and the learning rate has come down to zero, target or no target.
    """

    surrogate: str
    words: str
    sizes: dict[str, Any]
    batch_size: int
    learning_rate: float
    last_step: int
    sampling: dict[str, Any] = field(default_factory=dict)

    def make(self, seed: int) -> Surrogate:
        """Return an untrained one."""
        torch.manual_seed(derive_seed(seed, "weights"))
        return surrogate_class(self.surrogate)(n_torus=2, n_euclidean=0, **self.sizes)


_ODE = {"sampler": "ode", "n_steps": 8, "log_density": False}
DIFFUSION = Learner("diffusion", "diffusion of (phi, psi)", {"hidden": 128, "depth": 2, "harmonics": 3}, 384, 2e-3, 2896, _ODE)
FLOW = Learner("flow", "flow of (phi, psi)", {}, 256, 2e-3, 724)
SMALL_LEARNERS = (
    replace(DIFFUSION, sizes={"hidden": 32, "depth": 1, "harmonics": 2}, batch_size=128, last_step=128),
    replace(FLOW, sizes={"torus_layers": 4, "hidden": 16}, batch_size=128, last_step=90),
)
LONG_LEARNERS = (replace(DIFFUSION, last_step=8192), replace(FLOW, last_step=4096))


@dataclass(frozen=True)
class Quality:
    """Everything that one size fixes.

    Attributes
    ----------
    n_copies, production_ps, every_ps
        Of the dynamics; the first half of the copies trains, the other is held out.
    n_samples, n_thinnings : int
        Samples that are judged, and repeats of the noise floor at the same number.
    first_step : int
        The first at which samples are judged; each further one is later by a factor of the square root of two.
    """

    learners: tuple[Learner, ...] = (DIFFUSION, FLOW)
    n_copies: int = 64
    equilibration_ps: float = 20.0
    production_ps: float = 700.0
    every_ps: float = 1.0
    n_samples: int = 10_000
    n_thinnings: int = 10
    n_seeds: int = 3
    first_step: int = 64


def time_to_quality(settings: Quality, seed: int, costs: Costs) -> dict[str, Any]:
    """Train every learner with every seed; return `reference` (the floor) and `time_to_quality` (by name)."""
    with costs.stage(f"molecular dynamics of {settings.n_copies} copies, all cores: data of real training"):
        angles = torsions_of_copies(settings, derive_seed(seed, "quality"))
    train, held_out = (half.reshape(-1, 2) for half in np.array_split(angles, 2))
    floor = noise_floor(train, held_out, settings.n_samples, seed=seed, n_repeats=settings.n_thinnings)
    found: dict[str, Any] = {}
    with one_thread():
        for learner in settings.learners:
            with costs.stage(f"{learner.words}: first steps and samples, which no time holds"):
                _Course(learner, train, settings, derive_seed(seed, "warm")).warm_up()
            curves = []
            with costs.stage(f"{learner.words}: training with {settings.n_seeds} seeds, evaluations included"):
                for repeat in range(settings.n_seeds):
                    course = _Course(learner, train, settings, derive_seed(seed, "quality", learner.surrogate, repeat))
                    curves.append(course.run(ramachandran_histogram(held_out), floor))
            found[learner.surrogate] = {"words": learner.words, **summary(curves)}
    reference = {
        "floor": spread(floor.divergences), "n_samples": settings.n_samples, "n_train": len(train), "n_held_out": len(held_out),
        "limit": LIMIT,
    }  # fmt: skip
    return {"reference": reference, "time_to_quality": found}


def torsions_of_copies(settings: Quality, seed: int) -> np.ndarray:
    """Torsions (n_copies, n_frames, 2) of copies of alanine dipeptide at 300 K, all from the minimised structure."""
    system = load_system(SystemConfig())
    quads = [torsion_by_name(system.topology, name) for name in TORSIONS]
    start, _ = minimise(BatchedSystem(system, "float32"), system.positions_nm[None])
    seeds = [derive_seed(seed, "copy", copy) for copy in range(settings.n_copies)]
    dynamics = BatchedDynamics(
        BatchedSystem(modified_system(system, constraints="hbonds"), "float32"), np.repeat(start, len(seeds), axis=0), seeds,
        temperature_kelvin=system.temperature_kelvin, timestep_fs=TIMESTEP_FS,
    )  # fmt: skip
    dynamics.step(round(settings.equilibration_ps * 1e3 / TIMESTEP_FS))
    frames = []
    for _ in range(round(settings.production_ps / settings.every_ps)):
        interrupts.check()
        dynamics.step(round(settings.every_ps * 1e3 / TIMESTEP_FS))
        frames.append(np.stack([torsion_angles(dynamics.positions_nm, quad) for quad in quads], axis=1))
    return np.stack(frames, axis=1)


class _Course:
    """One training, with a clock that runs while it takes steps."""

    def __init__(self, learner: Learner, angles_rad: np.ndarray, settings: Quality, seed: int) -> None:
        self.learner, self.settings, self.seed = learner, settings, seed
        data = TrainingSet(torch.from_numpy(angles_rad).float(), torch.ones(len(angles_rad)))
        config = TrainConfig(
            n_steps=learner.last_step, batch_size=learner.batch_size, learning_rate=learner.learning_rate,
            device="cpu",
        )  # fmt: skip
        self.trainer = Trainer(learner.make(seed), config, data, data, Path(), ALONE, seed)
        self.cpu_s = self.wall_s = 0.0

    def warm_up(self) -> None:
        """Take two steps and draw samples."""
        self.trainer.batches.start(0)
        try:
            self._train_to(2)
            self._samples()
        finally:
            self.trainer.batches.close()

    def run(self, held_out: np.ndarray, floor: NoiseFloor) -> list[dict[str, float]]:
        """Train to the last step; return what was seen at each step of the series."""
        points = []
        self.trainer.batches.start(0)
        try:
            for step in judged_steps(self.settings.first_step, self.learner.last_step):
                self._train_to(step)
                divergence = self._divergence(held_out)
                points.append({
                    "step": step, "cpu_s": self.cpu_s, "wall_s": self.wall_s, "divergence": divergence,
                    "over_floor": divergence / floor.mean,
                })  # fmt: skip
        finally:
            self.trainer.batches.close()
        return points

    def _train_to(self, step: int) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        while self.trainer.step < step:
            interrupts.check()
            self.trainer.train_step()
            self.trainer.step += 1
        self.cpu_s += time.process_time() - cpu
        self.wall_s += time.perf_counter() - wall

    def _samples(self) -> np.ndarray:
        surrogate, n = self.trainer.ema, self.settings.n_samples
        sizes = [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
        seeds = [derive_seed(self.seed, "samples", self.trainer.step, chunk) for chunk in range(len(sizes))]
        parts = [surrogate.sample(k, s, **self.learner.sampling)[0] for k, s in zip(sizes, seeds, strict=True)]
        return torch.cat(parts).double().numpy()

    def _divergence(self, held_out: np.ndarray) -> float:
        samples = self._samples()
        return jensen_shannon(ramachandran_histogram(samples), held_out) if np.isfinite(samples).all() else float(np.log(2))


def judged_steps(first: int, last: int) -> list[int]:
    """Steps that grow by the square root of two, the last one included."""
    steps = {last}
    number = 0
    while (step := round(first * 2 ** (number / 2))) < last:
        steps.add(step)
        number += 1
    return sorted(steps)


def reached(points: Sequence[dict[str, float]], limit: float = LIMIT) -> dict[str, float] | None:
    """Return the first point from which on all are within the limit; None if the last one is not."""
    found = None
    for point in reversed(points):
        if point["over_floor"] > limit:
            break
        found = point
    return found


def summary(curves: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Seconds and steps to the target, of the seeds that got there; all curves.

    A seed that did not get there is counted in `n_missed`; then there is no mean, which would be of the lucky ones. Its curve
    tells the seconds that it took in vain.
    """
    ends = [end for points in curves if (end := reached(points)) is not None]
    keys = {"cpu_s": "cpu_s", "wall_s": "wall_s", "steps": "step"}
    times = {name: spread(end[key] for end in ends) if len(ends) == len(curves) else None for name, key in keys.items()}
    return {**times, "n_seeds": len(curves), "n_missed": len(curves) - len(ends), "curve": curves}
