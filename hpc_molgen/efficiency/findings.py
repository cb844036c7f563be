"""The numbers of the report: free energies, divergences with their noise floor, energies, effective samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpc_molgen.analysis import divergence, free_energy, kinetics
from hpc_molgen.analysis.free_energy import BASINS, Estimate, Profile
from hpc_molgen.efficiency.evidence import Conformations, Evidence
from hpc_molgen.reweighting import normalised_weights
from hpc_molgen.seeding import numpy_generator

THINNINGS = 5
SEAM_DEG = 2.0
TICA_LAG_PS = 1.0


@dataclass(frozen=True)
class Divergence:
    """Jensen-Shannon divergence of one set from held-out MD, in nats, and what a perfect set of that size would show.

    Attributes
    ----------
    n, ess : float
        Number of conformations, and Kish size of their weights.
    value : float
        With all of them.
    size : float
        Kish size at which set and floor are compared: the smaller of the set's and the training half's.
    at_size, floor : float
        Mean over random thinnings to that size, of the set and of the training half.
    floor_spread : float
        Standard deviation over thinnings (0 when nothing had to be thinned).
    """

    observable: str
    label: str
    n: int
    ess: float
    value: float
    size: float
    at_size: float
    floor: float
    floor_spread: float

    @property
    def ratio(self) -> float:
        """Divergence over its noise floor at equal size."""
        return self.at_size / self.floor if self.floor > 0 else float("inf")


@dataclass(frozen=True)
class EnergySummary:
    """Reduced energies of one set against held-out MD."""

    label: str
    n: int
    n_infinite: int
    mean: float
    spread: float
    wasserstein: float


FARM_PLAIN, FARM_WEIGHTED = "farm, unweighted", "farm, weighted"


@dataclass(frozen=True)
class Findings:
    """All numbers; dictionaries are keyed by the label of the set of conformations.

    Attributes
    ----------
    delta_f : dict of Estimate
        In kT; empty without a CV.
    basins, seam : dict of dict of Estimate
        Populations of the named basins; share within 2 degrees of the seam for each torsion.
    passages : dict of int
        Full passages between the two sides of the CV, of MD.
    effective : dict of dict of EffectiveSamples
        Set -> observable ("dF" first) -> what the set is worth for it.
    kish : np.ndarray
        Bootstrap replicates of the corrected samples' Kish size.
    """

    delta_f: dict[str, Estimate]
    profiles: dict[str, Profile]
    basins: dict[str, dict[str, Estimate]]
    seam: dict[str, dict[str, Estimate]]
    passages: dict[str, int]
    divergences: list[Divergence]
    controls: list[Divergence]
    energies: list[EnergySummary]
    effective: dict[str, dict[str, kinetics.EffectiveSamples]]
    kish: np.ndarray
    farm_passages: int


def analyse(evidence: Evidence, kt_kj_mol: float, n_replicates: int, seed: int) -> Findings:
    """Compute every number from the evidence; bootstrap draws depend on the seed and the set's label alone."""
    md = [evidence.held_out, evidence.training, evidence.reference]
    generated = [evidence.raw, *([evidence.corrected] if evidence.corrected else [])]
    delta_f, profiles, basins, seam, passages = {}, {}, {}, {}, {}
    effective: dict[str, dict[str, kinetics.EffectiveSamples]] = {}
    for part in [*md, *generated] if evidence.torsions.names else []:
        generator = numpy_generator(seed, "report", part.label)
        cv, settings = part.torsions_rad[:, 0], (part.weights, part.blocks, n_replicates, generator)
        delta_f[part.label] = free_energy.free_energy_difference(cv, *settings)
        profiles[part.label] = free_energy.profile(cv, part.weights, part.blocks, kt_kj_mol, n_replicates, generator)
        seam[part.label] = _seam_shares(part, evidence.torsions.names, n_replicates, generator)
        effective[part.label] = _effective(part, evidence.torsions.is_backbone, n_replicates, generator)
        if part.units is not None and part.label != "corrected samples":
            passages[part.label] = kinetics.core_passages(cv, part.units)
        if evidence.torsions.is_backbone:
            basins[part.label] = free_energy.basin_populations(cv, part.torsions_rad[:, 1], *settings)
    kish = np.zeros(n_replicates)
    if evidence.corrected:
        kish = kinetics.kish_replicates(evidence.corrected.weights, n_replicates, numpy_generator(seed, "report", "kish"))
    farm = evidence.farm
    farm_passages = 0
    if farm is not None and evidence.torsions.names:
        farm_passages = kinetics.core_passages(farm.torsions_rad[:, 0], farm.replica)
        if evidence.torsions.is_backbone:
            for label, log_weight in ((FARM_PLAIN, np.zeros(len(farm.replica))), (FARM_WEIGHTED, farm.log_weight)):
                phi, psi = farm.torsions_rad[:, 0], farm.torsions_rad[:, 1]
                weights, generator = normalised_weights(log_weight), numpy_generator(seed, "report", label)
                basins[label] = free_energy.basin_populations(phi, psi, weights, farm.replica, n_replicates, generator)
    divergences, controls = _divergences(evidence, generated, seed)
    return Findings(
        delta_f=delta_f,
        profiles=profiles,
        basins=basins,
        seam=seam,
        passages=passages,
        divergences=divergences,
        controls=controls,
        energies=_energies(evidence, generated),
        effective=effective,
        kish=kish,
        farm_passages=farm_passages,
    )


def _seam_shares(
    part: Conformations, names: tuple[str, ...], n_replicates: int, generator: np.random.Generator
) -> dict[str, Estimate]:
    shares = {}
    for name, angles in zip(names, part.torsions_rad.T, strict=True):
        near = (np.abs(angles) > np.pi - np.radians(SEAM_DEG)).astype(int)
        found = free_energy.bootstrap_shares(near, 2, part.weights, part.blocks, n_replicates, generator)
        shares[name] = free_energy.clamped(found.interval(float(found.value[1]), found.replicates[:, 1]), 0.0, 1.0)
    return shares


def _effective(
    part: Conformations, is_backbone: bool, n_replicates: int, generator: np.random.Generator
) -> dict[str, kinetics.EffectiveSamples]:
    indicators = {"dF": part.torsions_rad[:, 0] > 0}
    if is_backbone:
        labels = free_energy.basin_labels(*part.torsions_rad.T)
        indicators |= {name: labels == index for index, name in enumerate(BASINS) if name != "other"}
    if part.units is None:
        return {
            name: kinetics.independent_effective_samples(inside, part.weights, n_replicates, generator)
            for name, inside in indicators.items()
        }
    return {
        name: kinetics.effective_samples(inside, part.weights, part.units, n_replicates, generator)
        for name, inside in indicators.items()
    }


Histogram = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _observables(names: tuple[str, ...]) -> list[tuple[str, Histogram]]:
    def one(index: int) -> Histogram:
        return lambda angles, weights: divergence.torsion_histogram(angles[:, index], weights)

    found: list[tuple[str, Histogram]] = []
    if len(names) == 2:
        bins = divergence.RAMACHANDRAN_BINS
        found.append((f"({names[0]}, {names[1]}), {bins} x {bins}", divergence.ramachandran_histogram))
    return found + [(f"{name}, {divergence.TORSION_BINS} bins", one(index)) for index, name in enumerate(names)]


def thinned_divergences(
    angles_rad: np.ndarray, weights: np.ndarray, size: float, target: np.ndarray, histogram: Histogram, seed: int, label: str
) -> np.ndarray:
    """Divergences (n_thinnings,) of random subsets whose weights have about the Kish size `size`, from a histogram.

    A subset of n' of n conformations has n'/n of the Kish size, so weighted and unweighted sets come to the same footing.
    """
    share = size * float(np.sum(weights**2)) / float(np.sum(weights)) ** 2
    n = round(share * len(weights))
    if n >= len(weights):
        return np.array([divergence.jensen_shannon(histogram(angles_rad, weights), target)])
    values = []
    for repeat in range(THINNINGS):
        chosen = numpy_generator(seed, "thinning", label, repeat).choice(len(weights), max(n, 1), replace=False)
        if weights[chosen].sum() > 0:
            values.append(divergence.jensen_shannon(histogram(angles_rad[chosen], weights[chosen]), target))
    return np.array(values or [float(np.log(2))])


def _divergences(evidence: Evidence, generated: list[Conformations], seed: int) -> tuple[list[Divergence], list[Divergence]]:
    rows, controls = [], []
    held_out, training = evidence.held_out, evidence.training
    for observable, histogram in _observables(evidence.torsions.names):
        target = histogram(held_out.torsions_rad, held_out.weights)

        def compare(
            part: Conformations, observable: str = observable, histogram: Histogram = histogram, target: np.ndarray = target
        ) -> Divergence:
            size = min(part.ess, training.ess)
            own, floor = (
                thinned_divergences(other.torsions_rad, other.weights, size, target, histogram, seed, other.label)
                for other in (part, training)
            )
            value = divergence.jensen_shannon(histogram(part.torsions_rad, part.weights), target)
            spread = float(floor.std(ddof=1)) if len(floor) > 1 else 0.0
            ends = (size, float(own.mean()), float(floor.mean()), spread)
            return Divergence(observable, part.label, len(part), part.ess, value, *ends)

        rows += [compare(part) for part in generated]
        controls += [compare(part) for part in _controls(evidence, seed)]
    return rows, controls


def _controls(evidence: Evidence, seed: int) -> list[Conformations]:
    """Sets that are wrong on purpose: a divergence that does not see them means nothing."""
    training, generator = evidence.training, numpy_generator(seed, "controls")
    positive = training.torsions_rad[:, 0] > 0
    share = float(training.weights[positive].sum())
    kept = ~positive if share <= 0.5 else positive
    controls = []
    if 0 < share < 1:
        weights = training.weights * kept
        side = ">" if share <= 0.5 else "<="
        label = f"training MD without {evidence.torsions.names[0]} {side} 0 ({min(share, 1 - share):.2%} of it)"
        controls.append(Conformations(label, training.torsions_rad, weights / weights.sum(), None, training.reduced_energy))
    uniform = generator.uniform(-np.pi, np.pi, evidence.raw.torsions_rad.shape)
    controls.append(Conformations("uniform torsions", uniform, evidence.raw.weights, None, evidence.raw.reduced_energy))
    if evidence.corrected:
        shuffled = generator.permutation(evidence.corrected.weights)
        angles = evidence.corrected.torsions_rad
        controls.append(Conformations("corrected, weights shuffled", angles, shuffled, None, evidence.corrected.reduced_energy))
    return controls


def _energies(evidence: Evidence, generated: list[Conformations]) -> list[EnergySummary]:
    from scipy.stats import wasserstein_distance

    held_out, rows = evidence.held_out, []
    for part in [held_out, evidence.training, *generated]:
        finite = np.isfinite(part.reduced_energy) & (part.weights > 0)
        energy, weights = part.reduced_energy[finite], part.weights[finite]
        if not len(energy):
            continue
        mean = float(np.average(energy, weights=weights))
        spread = float(np.sqrt(np.average((energy - mean) ** 2, weights=weights)))
        distance = float(wasserstein_distance(energy, held_out.reduced_energy, weights, held_out.weights))
        n_infinite = int(np.count_nonzero(~np.isfinite(part.reduced_energy)))
        rows.append(EnergySummary(part.label, len(part), n_infinite, mean, spread, distance))
    return rows
