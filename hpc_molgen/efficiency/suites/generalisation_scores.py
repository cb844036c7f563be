"""How near samples of a residue come to its MD, and how many of them count; what its MD is worth itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_molgen import datasets, reweighting
from hpc_molgen.analysis import divergence
from hpc_molgen.analysis.free_energy import BASINS, basin_labels
from hpc_molgen.analysis.kinetics import effective_samples, independent_effective_samples
from hpc_molgen.efficiency.costs import collect_costs
from hpc_molgen.efficiency.findings import Histogram, thinned_divergences
from hpc_molgen.ensemble import Ensemble, read_ensemble
from hpc_molgen.run import Run
from hpc_molgen.seeding import numpy_generator
from hpc_molgen.systems.torsions import Quad, named_torsions, torsion_angles

CHIS = ("chi1", "chi2", "chi3", "chi4")
LEAST_SHARE = 0.02  # of a state whose effective samples count
ROTAMERS = ("g+", "t", "g-")  # centred at 60, 180 and 300 degrees


@dataclass(frozen=True)
class Residue:
    """Held-out and training MD of a residue, as torsions.

    Attributes
    ----------
    quads : tuple of (i, j, k, l)
        phi, psi, then the chi there are.
    held_out, training : np.ndarray, shape=(n_frames, n_torsions)
    held_out_walker, training_walker : np.ndarray, shape=(n_frames,)
    twins : tuple of int
        Side-chain torsions that look the same after half a turn: their rotamers are no states.
    """

    quads: tuple[Quad, ...]
    held_out: np.ndarray
    training: np.ndarray
    held_out_walker: np.ndarray
    training_walker: np.ndarray
    twins: tuple[int, ...] = ()

    @classmethod
    def of(cls, run: Run) -> Residue:
        """Read the reference of a residue's run."""
        named = named_torsions(run.system.topology)
        quads = (named["phi"][0], named["psi"][0], *(quad for kind in CHIS for quad in named[kind]))
        training, held_out = datasets.load_split(run)
        return cls(
            quads, _angles(held_out, quads), _angles(training, quads), held_out.trajectory, training.trajectory, _twins(run)
        )

    @property
    def n_chi(self) -> int:
        """Number of side-chain torsions."""
        return len(self.quads) - 2


def _twins(run: Run) -> tuple[int, ...]:
    """Numbers, from 0, of the chi that turn a flat group with two equal sides."""
    names = {residue.name for residue in run.system.topology.residues}
    atoms = {atom.name for atom in run.system.topology.atoms}
    turned = {"PHE": 1, "TYR": 1} | ({} if "HD2" in atoms else {"ASP": 1}) | ({} if "HE2" in atoms else {"GLU": 2})
    return tuple(chi for name, chi in turned.items() if name in names)


def _angles(frames: Ensemble, quads: tuple[Quad, ...]) -> np.ndarray:
    return np.stack([torsion_angles(frames.positions_nm, quad) for quad in quads], axis=1)


def _observables(residue: Residue) -> list[tuple[str, list[Histogram]]]:
    """Name -> histograms whose divergences are averaged: the Ramachandran map, and each chi."""

    def one(column: int) -> Histogram:
        return lambda angles, weights: divergence.torsion_histogram(angles[:, column], weights)

    found: list[tuple[str, list[Histogram]]] = [
        ("phi_psi", [lambda angles, weights: divergence.ramachandran_histogram(angles[:, :2], weights)])
    ]
    return found + ([("chi", [one(2 + column) for column in range(residue.n_chi)])] if residue.n_chi else [])


def score_run(residue: Residue, run: Run, seed: int) -> dict[str, Any]:
    """Divergences of raw and of corrected samples with their noise floors, ESS, k-hat, and effective samples by states.

    Divergences are compared with the floor (training half of the MD against the held-out half) at equal Kish size, as in the
    efficiency report. Corrected samples are importance weights alone, also where the run has annealed them.
    """
    samples = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    weights = reweighting.normalised_weights(samples.log_weight)
    angles, diagnostics = _angles(samples, residue.quads), reweighting.diagnose(samples.log_weight)
    found: dict[str, Any] = {
        "n": len(samples), "ess": diagnostics.ess, "ess_fraction": diagnostics.ess_fraction, "k_hat": diagnostics.k_hat,
    }  # fmt: skip
    for label, own in (("raw", np.full(len(samples), 1 / len(samples))), ("corrected", weights)):
        for name, histograms in _observables(residue):
            parts = [_compared(residue, angles, own, histogram, seed, f"{label} {name}") for histogram in histograms]
            value, floor = (float(np.mean(column)) for column in zip(*parts, strict=True))
            found[f"{label}_{name}"] = {"divergence": value, "floor": floor, "ratio": value / floor}
    generator = numpy_generator(seed, "states", run.config.name)
    states = states_of(angles, residue)
    counted = [
        independent_effective_samples(states[name], weights, 1, generator).n_effective for name in _common(residue, states)
    ]
    return found | {"n_effective": min(counted)}


def _compared(
    residue: Residue, angles: np.ndarray, weights: np.ndarray, histogram: Histogram, seed: int, label: str
) -> tuple[float, float]:
    """Divergence of a set from held-out MD, and that of training MD, both thinned to the smaller Kish size of the two."""
    even = np.full(len(residue.training), 1 / len(residue.training))
    target = histogram(residue.held_out, np.full(len(residue.held_out), 1 / len(residue.held_out)))
    size = min(1 / float((weights**2).sum()), float(len(even)))
    own = thinned_divergences(angles, weights, size, target, histogram, seed, label)
    floor = thinned_divergences(residue.training, even, size, target, histogram, seed, "training")
    return float(own.mean()), float(floor.mean())


def states_of(angles: np.ndarray, residue: Residue) -> dict[str, np.ndarray]:
    """Whether each conformation is in a basin of the backbone, or in one of three rotamers of a chi; name -> (n,) of bool."""
    labels = basin_labels(angles[:, 0], angles[:, 1])
    states = {name: labels == number for number, name in enumerate(BASINS)}
    for column in set(range(residue.n_chi)) - set(residue.twins):
        rotamer = np.floor(np.degrees(angles[:, 2 + column]) % 360 / 120) % 3  # gauche+, trans, gauche-
        states |= {f"chi{column + 1} {name}": rotamer == number for number, name in enumerate(ROTAMERS)}
    return states


def _common(residue: Residue, states: dict[str, np.ndarray]) -> list[str]:
    """States that held `LEAST_SHARE` of all MD at least, and not all of it."""
    both = states_of(np.concatenate([residue.held_out, residue.training]), residue)
    return [name for name in states if LEAST_SHARE <= both[name].mean() <= 1 - LEAST_SHARE]


def score_md(residue: Residue, run: Run, seed: int) -> dict[str, Any]:
    """Effective samples of a residue's MD (of its slowest state), and what one costs; equilibration apart."""
    angles = np.concatenate([residue.held_out, residue.training])
    walker = np.concatenate([residue.held_out_walker, residue.training_walker])
    states, generator = states_of(angles, residue), numpy_generator(seed, "md", run.config.name)
    even = np.ones(len(angles))
    counted = {name: effective_samples(states[name], even, walker, 20, generator) for name in _common(residue, states)}
    slowest = min(counted, key=lambda name: counted[name].n_effective)
    book = collect_costs(run)
    production = book.data + book.validation - book.equilibration
    n_effective = counted[slowest].n_effective
    return {
        "cpu_s": book.data + book.validation + book.shared_start,
        "equilibration_cpu_s": book.equilibration + book.shared_start, "n_effective": n_effective,
        "slowest": slowest, "cpu_s_per_effective": production / n_effective if n_effective else float("inf"),
        "n_frames": len(angles), "simulated_ns": book.simulated_ns,
    }  # fmt: skip
