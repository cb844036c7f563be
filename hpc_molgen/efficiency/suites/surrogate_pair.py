"""The trained surrogates that the suites `sampling` and `correction` share: a diffusion and a flow of one molecule.

Both suites put their runs in OUT/surrogates-SIZE/runs, so what one of them has trained the other does not train again.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hpc_molgen import datasets, reweighting
from hpc_molgen.analysis.divergence import ramachandran_histogram
from hpc_molgen.config import RunConfig, load_config
from hpc_molgen.efficiency.findings import thinned_divergences
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.runs import finish_run
from hpc_molgen.efficiency.suites.verdict_methods import phi_psi
from hpc_molgen.ensemble import Ensemble
from hpc_molgen.representations.base import Representation, load_representation
from hpc_molgen.reweighting import WeightDiagnostics
from hpc_molgen.run import Run, stage_costs
from hpc_molgen.sampling import ROUND_TRIP_LIMIT
from hpc_molgen.surrogates.base import Surrogate, load_surrogate
from hpc_molgen.workers import available_cores

DIFFUSION, FLOW = "diffusion", "flow"
DATA = ("reference", "featurize")
LARGEST_SHARE = 0.1  # of the weight that one sample may have: a single outlier is no tail that k-hat could see


@dataclass(frozen=True)
class Training:
    """How the two are trained in one size.

    Attributes
    ----------
    preset : str
    common : tuple of str
        Assignments of both, after the preset's.
    own : mapping
        Assignments of each, after those.
    """

    preset: str
    common: tuple[str, ...]
    own: Mapping[str, tuple[str, ...]]


TRAININGS = {
    "smoke": Training(
        "tiny",
        (),
        {
            DIFFUSION: (),
            FLOW: ("surrogate={name: flow, hidden: 16, layers: 4}", "train.n_steps=40", "train.learning_rate=5e-3"),
        },
    ),
    "laptop": Training(
        "alanine-dipeptide",
        (),
        {
            DIFFUSION: (),
            FLOW: ("surrogate={name: flow}", "train.n_steps=150", "train.warmup_steps=20", "train.learning_rate=4e-3"),
        },
    ),
    "cluster": Training(
        "alanine-dipeptide",
        ("reference.n_walkers=64", "reference.production_ps=1000", "train.batch_size=2048"),
        {
            DIFFUSION: ("surrogate.hidden=256", "surrogate.depth=3", "train.n_steps=20000"),
            FLOW: ("surrogate={name: flow}", "train.n_steps=4000"),
        },
    ),
}


def configuration(size: str, kind: str, seed: int) -> RunConfig:
    """Return the configuration of the run that trains one of the two."""
    training = TRAININGS[size]
    return load_config(training.preset, [f"seed={seed}", *training.common, *training.own[kind]])


def trained_runs(size: str, out: Path, seeds: Sequence[int], costs: Costs) -> dict[str, list[Run]]:
    """Finish the trainings of both for each seed; finished ones are not repeated, and the two of a seed share their data.

    Data are made by all cores one seed after the other, then as many train at a time as there are cores (one, where there is a
    GPU). What all that has cost, now or earlier, is entered in `costs`.
    """
    folder = out / f"surrogates-{size}" / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    configs = {(kind, seed): configuration(size, kind, seed) for kind in (DIFFUSION, FLOW) for seed in seeds}
    for seed in seeds:
        finish_run(folder, f"{DIFFUSION}-{seed}", configs[DIFFUSION, seed], "featurize")
    finish = functools.partial(finish_run, folder, last="train")
    with ThreadPoolExecutor(1 if torch.cuda.is_available() else available_cores()) as threads:
        runs = list(threads.map(lambda item: finish(name=f"{item[0][0]}-{item[0][1]}", config=item[1]), configs.items()))
    found: dict[str, list[Run]] = {DIFFUSION: [], FLOW: []}
    for (kind, seed), run in zip(configs, runs, strict=True):
        found[kind].append(run)
        if kind == DIFFUSION:
            costs.add(f"reference MD and features, seed {seed}", *_paid(run, DATA))
        on_gpu = str(run.details("train").get("device", "cpu")).startswith("cuda")
        costs.add(f"training of the {kind}, seed {seed}", *_paid(run, ("train",)), gpus=int(on_gpu))
    return found


def _paid(run: Run, stages: Sequence[str]) -> tuple[float, float]:
    parts = [stage_costs(run, stage) for stage in stages]
    return sum(part["cpu_s"] for part in parts), sum(part["wall_s"] for part in parts)


def training_bill(run: Run) -> float:
    """CPU seconds of reference MD, held-out half included, features and training, every start of a process included."""
    return _paid(run, (*DATA, "train"))[0]


@dataclass(frozen=True)
class Trained:
    """A run with its surrogate, on the GPU where there is one, and its representation."""

    run: Run
    surrogate: Surrogate
    representation: Representation

    @classmethod
    def load(cls, run: Run) -> Trained:
        """Read what training left."""
        surrogate = load_surrogate(run.path("train", "surrogate.safetensors"), run.system.key)
        representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
        return cls(run, surrogate.to(device()), representation)


def device() -> str:
    """Where surrogates are asked: "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def why_not_certified(weights: WeightDiagnostics, trip_rms: float | None = None) -> list[str]:
    """Return why weights are not to be trusted, in words; empty where they are.

    Parameters
    ----------
    weights : WeightDiagnostics
    trip_rms : float, optional
        Error of ln q (root mean square) after a way to the prior and back, where it is an integral.
    """
    reasons = [] if weights.k_hat <= reweighting.K_HAT_LIMIT else [f"k-hat above {reweighting.K_HAT_LIMIT:g}"]
    if not weights.largest_share <= LARGEST_SHARE:
        reasons.append(f"one sample has more than {100 * LARGEST_SHARE:g} % of the weight")
    if trip_rms is not None and not trip_rms <= ROUND_TRIP_LIMIT:
        reasons.append(f"ln q is off by more than {ROUND_TRIP_LIMIT:g}")
    return reasons


class Maps:
    """(phi, psi) of training and held-out MD, and how far sets of conformations are from the latter.

    Parameters
    ----------
    run : Run
        Its reference MD may be biased: frames count with their Boltzmann weights.
    seed : int
        Of thinnings.

    Attributes
    ----------
    held_out : Ensemble
    training_rad, training_weights : np.ndarray, shape=(n, 2), (n,)
    ess : float
        Kish size of the training half's weights.
    highest_energy : float
        The 99.9th percentile of the reduced energy of held-out MD.
    """

    def __init__(self, run: Run, seed: int) -> None:
        training, self.held_out = datasets.load_split(run)
        self._seed, self._floors = seed, dict[int, float]()
        self.training_rad, self.training_weights = _weighted_angles(run, training)
        self._target = ramachandran_histogram(*_weighted_angles(run, self.held_out))
        self.ess = float(1 / np.sum(self.training_weights**2))
        of_held_out = datasets.boltzmann_weights(self.held_out)
        self.highest_energy = reweighting.weighted_quantile(self.held_out.reduced_energy, of_held_out, 0.999)

    def divergence(self, phi_psi_rad: np.ndarray, weights: np.ndarray, label: str, most: float = np.inf) -> tuple[float, float]:
        """Return the Jensen-Shannon divergence of weighted samples from held-out MD in nats, and over the noise floor.

        Both are means over thinnings to the smaller Kish size of samples and training MD; the floor is the divergence of
        training MD at that size. nan without a finite sample that has weight.

        Parameters
        ----------
        phi_psi_rad, weights : np.ndarray, shape=(n, 2), (n,)
        label : str
            Seeds the thinnings.
        most : float
            Kish size that is compared at most.
        """
        sound = np.isfinite(phi_psi_rad).all(axis=1) & (weights > 0)
        if not sound.any():
            return float("nan"), float("nan")
        angles, weights = phi_psi_rad[sound], weights[sound] / weights[sound].sum()
        size = min(float(1 / np.sum(weights**2)), self.ess, most)
        value = float(self._thinned(angles, weights, size, label).mean())
        if round(size) not in self._floors:
            own = self._thinned(self.training_rad, self.training_weights, size, "training MD")
            self._floors[round(size)] = float(own.mean())
        return value, value / self._floors[round(size)]

    def _thinned(self, angles: np.ndarray, weights: np.ndarray, size: float, label: str) -> np.ndarray:
        return thinned_divergences(angles, weights, size, self._target, ramachandran_histogram, self._seed, label)


def _weighted_angles(run: Run, frames: Ensemble) -> tuple[np.ndarray, np.ndarray]:
    return phi_psi(run.system, frames.positions_nm), datasets.boltzmann_weights(frames)
