"""What the suite `sampling` draws, and how it is judged: evaluations, divergences, weights and errors of ln q of each round."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from hpc_molgen import interrupts, reweighting
from hpc_molgen.analysis.kinetics import kish_replicates
from hpc_molgen.config import SampleConfig
from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.efficiency.suites.surrogate_pair import Maps, Trained, device, why_not_certified
from hpc_molgen.efficiency.suites.verdict_methods import phi_psi
from hpc_molgen.errors import InputError
from hpc_molgen.reweighting import WeightDiagnostics
from hpc_molgen.sampling import draw_structures, n_steps
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.structures import StructureChecker
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.surrogates.diffusion.round_trip import round_trip
from hpc_molgen.surrogates.diffusion.surrogate import DiffusionSurrogate
from hpc_molgen.surrogates.flow.surrogate import FlowSurrogate
from hpc_molgen.workers import Stopwatch

WARM_UP = 100


class Family(enum.Enum):
    """What the lines of tables and pictures belong to."""

    ODE = "diffusion, ODE with ln q"
    RAW = "diffusion, ODE without ln q"
    PATH = "diffusion, weighted paths"
    ANCESTRAL = "diffusion, ancestral"
    FLOW = "flow"


@dataclass(frozen=True)
class Sampler:
    """One way of drawing structures: key in the record, words, kin, which surrogate, and how."""

    key: str
    name: str
    family: Family
    surrogate: str
    config: SampleConfig


@dataclass(frozen=True)
class Round:
    """What is known of the samples of one round.

    Attributes
    ----------
    phi_psi_rad : np.ndarray, shape=(n, 2)
    log_weight : np.ndarray, shape=(n,), or None
        -inf where there is no weight.
    n_evaluations : float
        Of the network, for each sample.
    trip_rms : float or None
        Error of ln q (root mean square) by the way to the prior and back; None where ln q is no integral.
    failed_share : float
        Of structures that fail a check.
    """

    phi_psi_rad: np.ndarray
    log_weight: np.ndarray | None
    n_evaluations: float
    trip_rms: float | None
    failed_share: float


class Evaluations:
    """Counts what goes through a surrogate's network: rows of its first layer."""

    def __init__(self, surrogate: Surrogate) -> None:
        self.rows = 0
        if isinstance(surrogate, DiffusionSurrogate):
            first: nn.Module = surrogate.network.input
        elif isinstance(surrogate, FlowSurrogate):
            first = surrogate.couplings[0]
        else:
            raise InputError(f"the suite 'sampling' does not know how to count evaluations of {type(surrogate).__name__}")
        self._handle = first.register_forward_hook(self._count)

    def _count(self, _: nn.Module, given: tuple[torch.Tensor, ...], __: object) -> None:
        self.rows += len(given[0])

    def stop(self) -> None:
        """Count no more."""
        self._handle.remove()


class Drawer:
    """Draws rounds of one sampler, and keeps what judges them.

    In each round all samplers have the same seed, so that those of the ODE begin at the same points of the prior.

    Attributes
    ----------
    rounds : list of Round
    energy_s : float
        CPU seconds of all energies.
    """

    def __init__(
        self, sampler: Sampler, trained: Trained, energies: Callable[[np.ndarray], np.ndarray], checker: StructureChecker,
        n: int, n_trips: int, seed: int,
    ) -> None:  # fmt: skip
        self.sampler, self.n, self.rounds, self.energy_s = sampler, n, list[Round](), 0.0
        self._trained, self._energies, self._checker, self._n_trips, self._seed = trained, energies, checker, n_trips, seed
        self._last: tuple[torch.Tensor, np.ndarray, np.ndarray | None] | None = None
        self._rows = 0

    def warm_up(self) -> None:
        """Draw samples that nobody looks at: few, but on a GPU, where memory is taken for as many as will come."""
        n = self.n if device() == "cuda" else min(self.n, WARM_UP)
        positions = self._drawn(n, derive_seed(self._seed, "warm-up"))[1]
        self._energies(positions)

    def draw(self) -> None:
        """Draw the samples of the next round."""
        interrupts.check()
        counter = Evaluations(self._trained.surrogate)
        try:
            self._last = self._drawn(self.n, derive_seed(self._seed, "round", len(self.rounds)))
        finally:
            counter.stop()
        self._rows = counter.rows

    def _drawn(self, n: int, seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray | None]:
        return draw_structures(self._trained.surrogate, self._trained.representation, self.sampler.config, n, seed)

    def keep(self) -> None:
        """Judge the samples of `draw`, and keep what judges them."""
        assert self._last is not None
        features, positions, log_density = self._last
        watch = Stopwatch()
        reduced_energy = self._energies(positions)
        self.energy_s += watch.cpu_s
        log_weight = None
        if log_density is not None:
            try:
                log_weight = reweighting.importance_log_weights(reduced_energy, log_density)
            except InputError:  # not one sample has a weight
                log_weight = np.full(self.n, -np.inf)
        failed = [check.failed for check in self._checker(positions, reduced_energy)]
        angles = phi_psi(self._trained.run.system, positions)
        trip = self._trip_rms(features)
        self.rounds.append(Round(angles, log_weight, self._rows / self.n, trip, float(np.mean(failed))))
        self._last = None

    def _trip_rms(self, features: torch.Tensor) -> float | None:
        config, surrogate = self.sampler.config, self._trained.surrogate
        if surrogate.one_pass or config.sampler != "ode" or not config.log_density:
            return None
        found = round_trip(surrogate, features[: self._n_trips], config.integrator, n_steps(config), config.tolerance)
        return found.figures()["log_density_rms"]


def effective_rates(found: dict[str, Any], energy_s: float) -> dict[str, Any]:
    """Return effective samples a second of a certified sampler: all rounds' ESS over what a sample and its energy take."""
    if not found["certified"]:
        return {}
    share = found["pooled"]["ess_fraction"]
    return {
        f"effective_{clock}": spread(share / (1 / speed + energy_s) for speed in found[clock]["values"])
        for clock in ("per_cpu_s", "per_wall_s")
    }


def judge(drawer: Drawer, maps: Maps, n_replicates: int) -> dict[str, Any]:
    """Return the figures of a sampler beside its speed; those that are repeated as `spread` over rounds."""
    key, rounds = drawer.sampler.key, drawer.rounds
    even = np.full(drawer.n, 1 / drawer.n)
    raw = [maps.divergence(one.phi_psi_rad, even, f"{key} {number}") for number, one in enumerate(rounds)]
    found: dict[str, Any] = {
        "n_evaluations": spread(one.n_evaluations for one in rounds),
        "jsd_nats": spread(value for value, _ in raw),
        "jsd_over_floor": spread(ratio for _, ratio in raw),
        "failed_share": spread(one.failed_share for one in rounds),
        "certified": False, "why_not": "no ln q", "effective_per_cpu_s": None, "effective_per_wall_s": None,
    }  # fmt: skip
    weights = [one.log_weight for one in rounds if one.log_weight is not None]
    if not weights:
        return found
    trips = [one.trip_rms for one in rounds if one.trip_rms is not None]
    found["round_trip_rms"] = spread(trips) if trips else None
    found |= _of_weights(weights, key, n_replicates)
    reasons = why_not_certified(_diagnosed(np.concatenate(weights)), float(np.mean(trips)) if trips else None)
    found |= {"certified": not reasons, "why_not": "; ".join(reasons)}
    if found["certified"]:
        pairs = [(one.phi_psi_rad, reweighting.normalised_weights(own)) for one, own in zip(rounds, weights, strict=True)]
        weighted = [maps.divergence(*pair, f"{key} weighted {number}") for number, pair in enumerate(pairs)]
        found["weighted_jsd_over_floor"] = spread(ratio for _, ratio in weighted)
    return found


def _of_weights(rounds: list[np.ndarray], key: str, n_replicates: int) -> dict[str, Any]:
    """Diagnostics of weights of each round, and of all together with the standard error of their ESS.

    That is the larger of the bootstrap's and of what the spread over rounds says.
    """
    every, together = [_diagnosed(one) for one in rounds], np.concatenate(rounds)
    pooled = _diagnosed(together)
    shares = np.array([one.ess_fraction for one in every])
    error = float(shares.std(ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else 0.0
    if pooled.ess > 0:
        weights, generator = reweighting.normalised_weights(together), numpy_generator(len(together), "ESS", key)
        error = max(error, float(kish_replicates(weights, n_replicates, generator).std() / len(together)))
    names = ("ess_fraction", "ess_clipped_fraction", "largest_share", "k_hat")
    found: dict[str, Any] = {name: spread(getattr(one, name) for one in every) for name in names}
    return found | {"pooled": pooled.as_dict() | {"ess_fraction_error": error}}


def _diagnosed(log_weight: np.ndarray) -> WeightDiagnostics:
    if not np.isfinite(log_weight).any():
        return WeightDiagnostics(len(log_weight), 0.0, 0.0, 0.0, 1.0, float("inf"), False)
    return reweighting.diagnose(log_weight)


def controls(maps: Maps, n: int, seed: int) -> dict[str, float]:
    """Divergence over the floor of sets that are wrong on purpose: one that does not see them means nothing."""
    generator = numpy_generator(seed, "controls")
    uniform = generator.uniform(-np.pi, np.pi, (n, 2))
    positive = maps.training_rad[:, 0] > 0
    found = {"uniform torsions": maps.divergence(uniform, np.full(n, 1 / n), "uniform")[1]}
    if positive.any() and not positive.all():
        kept = maps.training_weights * ~positive
        found["training MD without phi > 0"] = maps.divergence(maps.training_rad, kept / kept.sum(), "dropped", n)[1]
    even = np.full(len(maps.training_rad), 1 / len(maps.training_rad))
    found["training MD, its bias not weighed out"] = maps.divergence(maps.training_rad, even, "biased", n)[1]
    return found
