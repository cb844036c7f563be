"""Scores of the `ramachandran` suite: what was drawn, judged against the held-out half."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_molgen.analysis.divergence import NoiseFloor, jensen_shannon, noise_floor, ramachandran_histogram, seam_share
from hpc_molgen.angles import wrap
from hpc_molgen.efficiency.suites import ramachandran_tables as tables
from hpc_molgen.efficiency.suites.record import Costs, spread

SEAM_WIDTHS_DEG = (1.0, 2.0, 5.0)
COARSE_BINS = 36


@dataclass(frozen=True)
class Reference:
    """The two halves of the molecular dynamics.

    Attributes
    ----------
    train_walkers, held_out_walkers : list of np.ndarray, shape=(n_frames, 2)
        (phi, psi) in radians.
    train_costs, held_out_costs : dict
        cpu_s, ns, platform.
    """

    train_walkers: list[np.ndarray]
    held_out_walkers: list[np.ndarray]
    train_costs: dict[str, Any]
    held_out_costs: dict[str, Any]

    @property
    def train(self) -> np.ndarray:
        """All frames of the training half, shape=(n, 2)."""
        return np.concatenate(self.train_walkers)

    @property
    def held_out(self) -> np.ndarray:
        """All frames of the held-out half, shape=(n, 2)."""
        return np.concatenate(self.held_out_walkers)


@dataclass(frozen=True)
class Draw:
    """One set of samples of one method.

    Attributes
    ----------
    label, method : str
        Key of the method, and its name in tables.
    training, sampling : int
        Numbers of the training seed and of the sampling seed.
    angles_rad : np.ndarray, shape=(n, 2)
    training_cpu_s, cpu_s, wall_s : float
        What the training behind it and the sampling cost.
    n_evaluations : int
        Network evaluations of one sample.
    """

    label: str
    method: str
    training: int
    sampling: int
    angles_rad: np.ndarray
    training_cpu_s: float
    cpu_s: float
    wall_s: float
    n_evaluations: int


class _Judge:
    """Scores angles against the held-out half and the floor."""

    def __init__(self, reference: Reference, floor: NoiseFloor) -> None:
        held_out = reference.held_out
        self.floor = floor
        self.fine = ramachandran_histogram(held_out)
        self.coarse = ramachandran_histogram(held_out, bins=COARSE_BINS)
        self.seam = {width: seam_share(held_out[:, 1], width) for width in SEAM_WIDTHS_DEG}

    def score(self, angles_rad: np.ndarray) -> dict[str, float | None]:
        """All figures of one set of samples (n, 2)."""
        divergence = jensen_shannon(ramachandran_histogram(angles_rad), self.fine)
        figures: dict[str, float | None] = {
            "jsd_60": divergence,
            "jsd_60_over_floor": divergence / self.floor.mean,
            "js_distance_60": float(np.sqrt(divergence)),
            "jsd_36": jensen_shannon(ramachandran_histogram(angles_rad, bins=COARSE_BINS), self.coarse),
            "phi_positive_share": float(_left(angles_rad).mean()),
        }
        for width, expected in self.seam.items():
            share = seam_share(angles_rad[:, 1], width)
            figures[f"seam_{width:g}_deg_over_reference"] = share / expected if expected > 0 else None
        return figures


def ramachandran_record(
    reference: Reference, draws: list[Draw], n_samples: int, n_thinnings: int, seed: int, costs: Costs
) -> dict[str, Any]:
    """Score everything; return question, answer, targets, tables, costs, results."""
    with costs.stage("scores"):
        floor = noise_floor(reference.train, reference.held_out, n_samples, seed=seed, n_repeats=n_thinnings)
        judge = _Judge(reference, floor)
        results = {"full": _full_half(judge, reference), "floor": _floor(floor, reference, n_samples, n_thinnings, seed)}
        for label in dict.fromkeys(draw.label for draw in draws):
            results[label] = _result([draw for draw in draws if draw.label == label], judge)
    data = {"train": _description(reference.train_walkers), "held_out": _description(reference.held_out_walkers)}
    targets = tables.targets(results)
    return {
        "question": tables.QUESTION,
        "answer": tables.answer(results, targets, data, reference.train_costs),
        "targets": targets,
        "tables": [tables.scores(results, n_samples), tables.costs(results), tables.populations(data, reference.train_costs)],
        "costs": costs.stages,
        "reference": {**data, "train_costs": reference.train_costs, "held_out_costs": reference.held_out_costs},
        "results": results,
        "notes": tables.NOTES,
    }


def _result(draws: list[Draw], judge: _Judge) -> dict[str, Any]:
    scores = [judge.score(draw.angles_rad) for draw in draws]
    trainings = {draw.training: draw.training_cpu_s for draw in draws}
    result: dict[str, Any] = {"method": draws[0].method, "n_training_seeds": len(trainings), "scores": scores}
    result |= _summary(scores)
    result["training_cpu_s"] = spread(trainings.values())
    result["sampling_cpu_s"] = spread(draw.cpu_s for draw in draws)
    result["samples_per_cpu_s"] = spread(len(draw.angles_rad) / max(draw.cpu_s, 1e-9) for draw in draws)
    result["n_evaluations"] = draws[0].n_evaluations
    means = [np.mean([s["jsd_60"] for s, d in zip(scores, draws, strict=True) if d.training == t]) for t in trainings]
    result["jsd_60_of_training_seeds"] = spread(float(mean) for mean in means)
    return result


def _summary(scores: list[dict[str, float | None]]) -> dict[str, Any]:
    summary = {}
    for name in scores[0]:
        values = [value for score in scores if (value := score[name]) is not None]
        summary[name] = spread(values) if values else None
    return summary


def _full_half(judge: _Judge, reference: Reference) -> dict[str, Any]:
    method = f"noise floor: training half, all {len(reference.train):,} frames"
    return {"method": method, **_summary([judge.score(reference.train)])}


def _floor(floor: NoiseFloor, reference: Reference, n: int, n_thinnings: int, seed: int) -> dict[str, Any]:
    coarse = noise_floor(reference.train, reference.held_out, n, seed=seed, n_repeats=n_thinnings, bins=COARSE_BINS)
    return {
        "method": f"noise floor at equal n: training half thinned to {n:,}",
        "jsd_60": spread(floor.divergences),
        "jsd_60_over_floor": spread([1.0]),
        "js_distance_60": spread(np.sqrt(floor.divergences)),
        "jsd_36": spread(coarse.divergences),
    }


def _left(angles_rad: np.ndarray) -> np.ndarray:
    """Whether phi is in (0, 130) degrees: the basins alphaL and C7ax (facts/peers.md, section A)."""
    phi = wrap(angles_rad[:, 0])
    inside: np.ndarray = (phi > 0) & (phi < np.radians(130))
    return inside


def right_handed(angles_rad: np.ndarray) -> np.ndarray:
    """Whether a frame is in alphaR: phi not in (0, 130) degrees and psi in [-120, 60]."""
    psi = np.degrees(wrap(angles_rad[:, 1]))
    inside: np.ndarray = ~_left(angles_rad) & (psi >= -120) & (psi <= 60)
    return inside


def _description(walkers: list[np.ndarray]) -> dict[str, Any]:
    """Populations and crossings of one half."""
    left, right = [_left(walker) for walker in walkers], [right_handed(walker) for walker in walkers]
    frames = np.concatenate(walkers)
    description: dict[str, Any] = {
        "n_walkers": len(walkers),
        "n_frames": len(frames),
        "alphar_share": spread(walker.mean() for walker in right),
        "alphar_crossings": sum(int(np.count_nonzero(np.diff(walker))) for walker in right),
        "phi_positive_frames": sum(int(walker.sum()) for walker in left),
        "phi_positive_crossings": sum(int(np.count_nonzero(np.diff(walker))) for walker in left),
    }
    for width in SEAM_WIDTHS_DEG:
        description[f"seam_share_{width:g}_deg"] = seam_share(frames[:, 1], width)
    return description
