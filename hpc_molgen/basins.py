"""Basins of conformations: which there are, and their populations by MD and by a surrogate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpc_molgen.analysis.free_energy import BASINS, Estimate, basin_labels, bootstrap_shares, clamped
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.torsions import rotatable_torsions, torsion_angles, torsion_by_name

if TYPE_CHECKING:
    import mdtraj

TENTH = 0.1
COVERED = 0.2  # relative density of q in a basin above which q is there, whatever the populations say
N_CLUSTERS = 20  # of k-means where the molecule has no named basins


@dataclass(frozen=True)
class Basin:
    """One region of conformations: its Boltzmann population by MD and by the surrogate.

    Attributes
    ----------
    frames, samples : Estimate
        Population by held-out MD and by the raw samples.
    corrected : Estimate or None
        By the weighted samples, or what they were moved to, where these are of the same ensemble.
    relative_density : float
        How dense q is there, from ln q of the basin's MD frames alone (`density_checks.relative_densities`): 1 as elsewhere.
        nan where unknown.
    finding : {"", "missing", "disputed", "beyond MD"}
        "missing": MD has significantly more than ten times what the surrogate gives it, and ln q (where known) agrees.
        "disputed": the same, but q is as dense there as elsewhere: MD's population may be wrong. "beyond MD": the surrogate
        gives it significantly more than ten times what MD does.
    """

    name: str
    frames: Estimate
    samples: Estimate
    corrected: Estimate | None
    relative_density: float
    finding: str


@dataclass(frozen=True)
class Labelled:
    """A set of conformations by basin.

    Attributes
    ----------
    labels : np.ndarray, shape=(n,), int
    weights : np.ndarray, shape=(n,)
    units : np.ndarray, shape=(n,), or None
        Trajectories; None: independent samples.
    """

    labels: np.ndarray
    weights: np.ndarray
    units: np.ndarray | None = None

    def populations(self, n_basins: int, n_replicates: int, generator: np.random.Generator) -> list[Estimate]:
        """Return the population of each basin with its interval; one that is never hit may have 3 / n, n being Kish's size."""
        shares = bootstrap_shares(self.labels, n_basins, self.weights, self.units, n_replicates, generator)
        unseen = 3 * float(np.sum(self.weights**2)) / float(np.sum(self.weights)) ** 2
        found = []
        for index, value in enumerate(shares.value):
            own = clamped(shares.interval(float(value), shares.replicates[:, index]), 0.0, 1.0)
            high = max(own.high, unseen) if value == 0 else own.high
            found.append(Estimate(own.value, own.low, high, own.standard_error))
        return found


def compare_basins(
    names: list[str],
    frames: Labelled,
    samples: Labelled,
    corrected: Labelled | None,
    relative_density: np.ndarray,
    n_replicates: int,
    generator: np.random.Generator,
    *,
    trusted: bool = True,
) -> list[Basin]:
    """Compare the populations of basins by MD with those by the surrogate, corrected ones where there are any.

    Parameters
    ----------
    names : list of str, n_basins of them
    frames, samples : Labelled
        Samples with equal weights.
    corrected : Labelled or None
        The samples with their Boltzmann weights, or what they were moved to.
    relative_density : np.ndarray, shape=(n_basins,)
        See `Basin`.
    trusted : bool
        Whether the weights can be relied on: what a few heavy samples say against MD is not worth a remark.
    """
    n = len(names)
    md, raw = (part.populations(n, n_replicates, generator) for part in (frames, samples))
    mended: list[Estimate] | list[None] = [None] * n
    if corrected is not None:
        mended = corrected.populations(n, n_replicates, generator)
    rows = zip(names, md, raw, mended, relative_density.tolist(), strict=True)
    return [Basin(*row, _finding(row[1], row[3] or row[2], row[4], trusted)) for row in rows]


def _finding(md: Estimate, ours: Estimate, relative_density: float, trusted: bool) -> str:
    if md.low > 0 and ours.value < TENTH * md.value and ours.high < md.low:
        return "disputed" if relative_density > COVERED else "missing"
    if trusted and ours.low > 0 and md.value < TENTH * ours.value and not md.high >= ours.low:
        return "beyond MD"
    return ""


def find_basins(
    topology: mdtraj.Topology, sets_nm: list[np.ndarray], weights: np.ndarray, fitted: np.ndarray, seed: int
) -> tuple[list[str], list[np.ndarray]]:
    """Return names of basins, most populated by MD first, and the basin (n,) of each conformation of each set.

    The named ones of (phi, psi) where these are all that turns; clusters by k-means of the rotatable torsions otherwise, of as
    many MD frames as samples, so that what one side alone has seen is a cluster too. No basins without a rotatable torsion.

    Parameters
    ----------
    topology : mdtraj.Topology
    sets_nm : list of np.ndarray, each of shape=(n, n_atoms, 3)
        MD frames, samples, and more sets.
    weights : np.ndarray, shape=(n_frames,)
        Of the MD frames.
    fitted : np.ndarray of int
        Indices of MD frames that clusters are fitted to.
    """
    from hpc_molgen.analysis.markov import fit_clusters

    quads = rotatable_torsions(topology)
    if not quads:
        return [], [np.zeros(len(part), int) for part in sets_nm]
    try:
        backbone = [torsion_by_name(topology, name) for name in ("phi", "psi")]
    except InputError:
        backbone = []
    if {frozenset(quad[1:3]) for quad in quads} == {frozenset(quad[1:3]) for quad in backbone}:
        return list(BASINS), [basin_labels(*(torsion_angles(part, quad) for quad in backbone)) for part in sets_nm]
    angles = [np.stack([torsion_angles(part, quad) for quad in quads], axis=1) for part in sets_nm]
    features = [np.concatenate([np.cos(part), np.sin(part)], axis=1) for part in angles]
    n = min(len(fitted), len(features[1]))
    seen = [features[0][fitted[:: max(1, len(fitted) // n)]], features[1][:: max(1, len(features[1]) // n)]]
    clusters = fit_clusters(seen, derive_seed(seed, "coverage"), min(N_CLUSTERS, sum(map(len, seen))))
    labels = clusters.assign(features)
    order = np.argsort(-np.bincount(labels[0], weights, len(clusters.centres)), kind="stable")
    place = np.argsort(order)
    width, names = len(quads), []
    for rank, cluster in enumerate(order, start=1):
        centre = clusters.centres[cluster] * clusters.scale
        degrees = np.degrees(np.arctan2(centre[width:], centre[:width]))[:4]
        more = ", ..." if width > 4 else ""
        names.append(f"{rank} ({', '.join(f'{angle:.0f}' for angle in degrees)}{more})")
    return names, [place[part] for part in labels]
