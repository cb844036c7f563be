"""What methods of the suite `fragments` have found, against a reference: maps, shares of basins, effective samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_molgen.analysis.divergence import jensen_shannon, ramachandran_histogram
from hpc_molgen.analysis.free_energy import BASINS, basin_labels
from hpc_molgen.analysis.kinetics import statistical_inefficiency
from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.efficiency.suites.tempering import estimate
from hpc_molgen.ensemble import Ensemble
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import named_torsions, torsion_angles

HELIX, PPII, RIGHT = "helix", "PPII", "phi > 0"
INDICATORS = (HELIX, PPII, RIGHT)
RAREST = 0.002  # share in the reference below which a state is not asked for


@dataclass(frozen=True)
class Found:
    """What one run of one method gave.

    Attributes
    ----------
    name : str
    angles_rad : np.ndarray, shape=(n_times, n_copies, n_residues, 2)
        Phi and psi; copies are independent of each other.
    cpu_s, sampling_cpu_s : float
        From nothing, and without what is done once (libraries, densities, joining).
    facts : dict
        What else is known.
    log_target : np.ndarray, shape=(n_times, n_copies), or None
    """

    name: str
    angles_rad: np.ndarray
    cpu_s: float
    sampling_cpu_s: float
    facts: dict[str, Any] = field(default_factory=dict)
    log_target: np.ndarray | None = None


def backbone_of(system: MolecularSystem, frames: Ensemble) -> np.ndarray:
    """Phi and psi (n_times, n_trajectories, n_residues, 2) of frames that are ordered by trajectory."""
    named = named_torsions(system.topology)
    angles = np.stack(
        [np.stack([torsion_angles(frames.positions_nm, quad) for quad in named[kind]], axis=-1) for kind in ("phi", "psi")], -1
    )
    n_trajectories = len(np.unique(frames.trajectory))
    return angles.reshape(n_trajectories, -1, *angles.shape[1:]).swapaxes(0, 1)


def indicators(angles_rad: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each residue is in the helix, in PPII (with C7eq, of which nothing parts it), at phi > 0; (..., n_residues)."""
    phi, psi = angles_rad[..., 0], angles_rad[..., 1]
    labels = basin_labels(phi.ravel(), psi.ravel()).reshape(phi.shape)
    return {HELIX: labels == BASINS.index("alphaR"), PPII: labels == BASINS.index("C7eq"), RIGHT: phi > 0}


def effective(values: np.ndarray) -> float:
    """Effective samples of the mean of a series (n_times, n_copies): their number over g; 0 where nothing ever changes."""
    n_times, n_copies = values.shape
    g = statistical_inefficiency(values.T.ravel().astype(np.float64), np.repeat(np.arange(n_copies), n_times))
    return float(values.size / g) if np.isfinite(g) else 0.0


class Judge:
    """Holds a reference (n_times, n_ladders, n_residues, 2), against which runs of methods are compared."""

    def __init__(self, angles_rad: np.ndarray) -> None:
        self.angles_rad = angles_rad
        half = angles_rad.shape[1] // 2
        self.maps = [self._map(angles_rad, residue) for residue in range(angles_rad.shape[2])]
        halves = angles_rad[:, :half], angles_rad[:, half:]
        self.floors = [
            jensen_shannon(self._map(halves[0], residue), self._map(halves[1], residue)) for residue in range(len(self.maps))
        ]
        self.shares = {name: self._shares(inside) for name, inside in indicators(angles_rad).items()}

    @staticmethod
    def _map(angles_rad: np.ndarray, residue: int) -> np.ndarray:
        return ramachandran_histogram(angles_rad[:, :, residue].reshape(-1, 2))

    @staticmethod
    def _shares(inside: np.ndarray) -> list[dict[str, float]]:
        """Share of each residue with its jackknife error over copies (n_times, n_copies, n_residues)."""
        counts, total = inside.sum(axis=0).astype(np.float64), np.full(inside.shape[1], float(len(inside)))
        return [estimate(counts[:, residue], total) for residue in range(inside.shape[2])]

    def facts(self) -> dict[str, Any]:
        """Return what is known of the reference."""
        found = {"n_frames": int(np.prod(self.angles_rad.shape[:2])), "floor_nats": self.floors, "shares": self.shares}
        return {**found, "n_effective": self._effective(self.angles_rad)}

    def _asked(self) -> list[tuple[str, int]]:
        """Indicators whose share in the reference is neither next to nothing nor next to all."""
        return [
            (name, residue)
            for name, shares in self.shares.items()
            for residue, share in enumerate(shares)
            if RAREST < share["value"] < 1 - RAREST
        ]

    def _effective(self, angles_rad: np.ndarray) -> dict[str, float]:
        """Effective samples of the slowest residue, for each kind of indicator."""
        series, found = indicators(angles_rad), dict[str, float]()
        for name, residue in self._asked():
            found[name] = min(effective(series[name][:, :, residue]), found.get(name, np.inf))
        return found

    def row(self, found: Found) -> dict[str, Any]:
        """Return all figures of one run."""
        divergences = [
            jensen_shannon(self._map(found.angles_rad, residue), reference) for residue, reference in enumerate(self.maps)
        ]
        shares = {name: self._shares(inside) for name, inside in indicators(found.angles_rad).items()}
        row = {
            "cpu_s": found.cpu_s,
            "sampling_cpu_s": found.sampling_cpu_s,
            "n": int(np.prod(found.angles_rad.shape[:2])),
            "divergence_nats": divergences,
            "over_floor": float(np.mean(divergences) / np.mean(self.floors)),
            "shares": shares,
            "worst_difference": max(self._apart(shares[name][residue], name, residue) for name, residue in self._asked()),
            **found.facts,
        }
        if len(found.angles_rad) > 1:
            n_effective = self._effective(found.angles_rad)
            row |= {
                "n_effective": n_effective,
                "effective_per_cpu_s": {name: n / found.cpu_s for name, n in n_effective.items()},
                "sampling_effective_per_cpu_s": {name: n / found.sampling_cpu_s for name, n in n_effective.items()},
            }
        if found.log_target is not None:
            row["energy_effective_per_cpu_s"] = effective(found.log_target) / found.sampling_cpu_s
        return row

    def _apart(self, share: dict[str, float], name: str, residue: int) -> float:
        """Difference of a share from the reference's in standard errors of both."""
        own = self.shares[name][residue]
        error = float(np.hypot(share["standard_error"], own["standard_error"]))
        return abs(share["value"] - own["value"]) / max(error, 1e-12)

    def methods(self, runs: Sequence[Sequence[Found]]) -> dict[str, Any]:
        """Return rows of methods whose runs (one sequence a seed) are repeated; ratios are taken within a seed."""
        names = [found.name for found in runs[0]]
        rows = {name: [self.row(found[column]) for found in runs] for column, name in enumerate(names)}
        repeated = {name: _repeated(own) | {"seeds_apart": self._seeds_apart(own)} for name, own in rows.items()}
        return repeated | {"gain": _gains(rows[names[1]], rows[names[2]])}

    def _seeds_apart(self, rows: Sequence[dict[str, Any]]) -> float | None:
        """Deviation of shares between seeds over their standard errors within one, root mean square over the indicators.

        One, where the errors are right. Where starts are not forgotten, copies of a seed resemble each other, and it is larger:
        effective samples are then fewer than what is printed, by its square.
        """
        if len(rows) < 2:
            return None
        shares = [[row["shares"][name][residue] for row in rows] for name, residue in self._asked()]
        between = np.array([np.var([share["value"] for share in own], ddof=1) for own in shares])
        within = np.array([np.mean([share["standard_error"] ** 2 for share in own]) for own in shares])
        known = within > 0
        return float(np.sqrt(np.mean(between[known] / within[known]))) if known.any() else None


def _repeated(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Spread of every number over repeats, inside of lists and dictionaries too."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: joined([value[key] for value in values]) for key in values[0]}
        if isinstance(values[0], list):
            return [joined(list(parts)) for parts in zip(*values, strict=True)]
        return None if None in values else spread(values)

    return {key: joined([row[key] for row in rows]) for key in rows[0]}


def _gains(joined: list[dict[str, Any]], tempered: list[dict[str, Any]]) -> dict[str, Any]:
    """Effective samples a CPU second of joined chains over those of tempering, for each kind of indicator and the slowest.

    None where a run of the tempering has seen no change.
    """
    pairs = [[row["effective_per_cpu_s"] for row in runs] for runs in zip(joined, tempered, strict=True)]
    found = {name: [(own[name], other[name]) for own, other in pairs] for name in pairs[0][0]}
    found["slowest"] = [(min(own.values()), min(other.values())) for own, other in pairs]
    return {
        name: spread(own / other for own, other in values) if all(other > 0 for _, other in values) else None
        for name, values in found.items()
    }
