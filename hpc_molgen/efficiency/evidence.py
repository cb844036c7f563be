"""What the report reads from a run: torsions, energies and weights of each set of conformations, and the farm."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen import datasets
from hpc_molgen.angles import wrap
from hpc_molgen.ensemble import Ensemble, read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.files import read_json
from hpc_molgen.reweighting import normalised_weights
from hpc_molgen.structures import read_manifest, read_pdb_positions
from hpc_molgen.systems.torsions import Quad, rotatable_torsions, torsion_angles, torsion_by_name, torsions_by_name

if TYPE_CHECKING:
    from hpc_molgen.run import Run
    from hpc_molgen.systems.base import MolecularSystem

MAX_PDB_READ = 200
N_BLOCKS = 10  # of a single trajectory


@dataclass(frozen=True)
class Torsions:
    """The torsions that the report is about.

    Attributes
    ----------
    names : tuple of str
        The CV, and the second axis of the maps where there is one; empty for a molecule that has no rotatable torsion.
    quads : tuple of Quad
    rotatable : tuple of Quad
        For TICA.
    is_backbone : bool
        The two are phi and psi of one residue, so that the named basins exist.
    notes : tuple of str
        Where the report differs from what was asked.
    """

    names: tuple[str, ...]
    quads: tuple[Quad, ...]
    rotatable: tuple[Quad, ...]
    is_backbone: bool
    notes: tuple[str, ...]


def choose_torsions(system: MolecularSystem, cv: str) -> Torsions:
    """Choose the CV and a second torsion: psi beside phi, else the next rotatable one."""
    rotatable = tuple(rotatable_torsions(system.topology))
    notes: list[str] = []
    try:
        name, quad = cv, torsion_by_name(system.topology, cv)
    except InputError:
        if not rotatable:
            return Torsions(
                (), (), (), False, (f"{system.name} has no torsion '{cv}' and no rotatable bond: no maps, no free energies.",)
            )
        name, quad = _label(system, rotatable[0]), rotatable[0]
        notes.append(
            f"{system.name} has no torsion '{cv}' (report.cv): the report uses the rotatable torsion {name} in its place."
        )
    match = re.fullmatch(r"phi(\d*)", name)
    if match:
        try:
            psi = f"psi{match[1]}"
            return Torsions((name, psi), (quad, torsion_by_name(system.topology, psi)), rotatable, True, tuple(notes))
        except InputError:
            pass
    others = [other for other in rotatable if set(other[1:3]) != set(quad[1:3])]
    if not others:
        notes.append("There is no second rotatable torsion: the two-dimensional maps are left out.")
        return Torsions((name,), (quad,), rotatable, False, tuple(notes))
    return Torsions((name, _label(system, others[0])), (quad, others[0]), rotatable, False, tuple(notes))


def _label(system: MolecularSystem, quad: Quad) -> str:
    """Name of a torsion, its atoms where it has none."""
    names = (name for name, own in torsions_by_name(system.topology).items() if own == quad)
    return next(names, "-".join(str(atom) for atom in quad))


@dataclass(frozen=True)
class Conformations:
    """One set of conformations, reduced to what the report compares.

    Attributes
    ----------
    label : str
        "held-out MD", "raw samples", ...
    torsions_rad : np.ndarray, shape=(n, n_named)
        The CV first.
    weights : np.ndarray, shape=(n,)
        Sum to one.
    units : np.ndarray, shape=(n,), or None
        Trajectory of each frame, or independent part of samples that were moved; None where samples are independent.
    reduced_energy : np.ndarray, shape=(n,)
        In kT.
    """

    label: str
    torsions_rad: np.ndarray
    weights: np.ndarray
    units: np.ndarray | None
    reduced_energy: np.ndarray

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def ess(self) -> float:
        """Kish effective size of the weights; correlation in time is not in it."""
        return float(1 / np.sum(self.weights**2))

    @property
    def blocks(self) -> np.ndarray | None:
        """What the bootstrap draws: trajectories, contiguous parts of a single one, or (None) samples."""
        if self.units is None or self.n_units > 1:
            return self.units
        return np.arange(len(self)) * N_BLOCKS // len(self)

    @property
    def n_units(self) -> int:
        """Trajectories, or samples."""
        return len(self) if self.units is None else len(np.unique(self.units))


@dataclass(frozen=True)
class Farm:
    """Frames of the farm's finished replicas, in the order of replica and time.

    Attributes
    ----------
    replica : np.ndarray, shape=(n,)
    time_ps, energy_kj_mol, rmsd_nm, log_weight : np.ndarray, shape=(n,)
        RMSD of the heavy atoms to the structure that the replica started from, after superposition. The weight of a frame is
        that structure's.
    torsions_rad, rotatable_rad : np.ndarray, shape=(n, n_named), (n, n_rotatable)
    details : dict
        Figures of the stage.
    records : list of dict
        manifest.jsonl.
    """

    replica: np.ndarray
    time_ps: np.ndarray
    energy_kj_mol: np.ndarray
    rmsd_nm: np.ndarray
    log_weight: np.ndarray
    torsions_rad: np.ndarray
    rotatable_rad: np.ndarray
    details: dict[str, Any]
    records: list[dict[str, Any]]


@dataclass(frozen=True)
class Evidence:
    """Everything that the report is made from, read once.

    Attributes
    ----------
    training, held_out, reference, raw : Conformations
        `reference` is training and held-out together.
    corrected : Conformations or None
        None when the run has no importance weights.
    log_weight : np.ndarray, shape=(n_samples,)
    reference_rotatable_rad : np.ndarray, shape=(n_frames, n_rotatable)
    reference_time_ps : np.ndarray, shape=(n_frames,)
    diagnostics : dict
        correct/diagnostics.json.
    training_log : list of dict
        train/metrics.jsonl.
    structures : dict
        How far torsions measured in the PDB files are from the sampled ones.
    farm : Farm or None
    """

    torsions: Torsions
    training: Conformations
    held_out: Conformations
    reference: Conformations
    raw: Conformations
    corrected: Conformations | None
    log_weight: np.ndarray
    reference_rotatable_rad: np.ndarray
    reference_time_ps: np.ndarray
    is_biased: bool
    diagnostics: dict[str, Any]
    training_log: list[dict[str, Any]]
    structures: dict[str, Any]
    farm: Farm | None = field(default=None)


def gather(run: Run) -> Evidence:
    """Read a run directory.

    Raises
    ------
    InputError
        When a stage that the report needs (all but the farm) has not run.
    """
    system = run.system
    torsions = choose_torsions(system, run.config.report.cv)
    train, held_out = datasets.load_split(run)
    other = "training MD"
    if (kelvin := run.config.reference.training_kelvin) is not None:
        train, held_out, other = *halves(held_out), "other half of held-out MD"
        note = (
            f"Training saw walkers at {kelvin:g} K alone, which say little about {system.temperature_kelvin:g} K: they are "
            "left out here, and held-out walkers are cut in two, one half of which stands where other reports have training MD."
        )
        torsions = replace(torsions, notes=(*torsions.notes, note))
    samples = read_ensemble(run.path("correct", "weighted.h5"), system)
    diagnostics: dict[str, Any] = read_json(run.path("correct", "diagnostics.json"))
    annealed = "annealed" in diagnostics
    final = read_ensemble(run.path("correct", "annealed.h5"), system) if annealed else samples
    both = Ensemble.concatenate([train, held_out])
    raw = _conformations("raw samples", samples, torsions, np.full(len(samples), 1 / len(samples)), False)
    corrected = None
    if diagnostics["weighted"]:
        weights, units = normalised_weights(final.log_weight), final.trajectory if annealed else None
        angles = _angles(final.positions_nm, torsions.quads) if annealed else raw.torsions_rad
        corrected = Conformations("corrected samples", angles, weights, units, final.reduced_energy)
    return Evidence(
        torsions=torsions,
        training=_conformations(other, train, torsions, datasets.boltzmann_weights(train), True),
        held_out=_conformations("held-out MD", held_out, torsions, datasets.boltzmann_weights(held_out), True),
        reference=_conformations("all MD", both, torsions, datasets.boltzmann_weights(both), True),
        raw=raw,
        corrected=corrected,
        log_weight=samples.log_weight,
        reference_rotatable_rad=_angles(both.positions_nm, torsions.rotatable),
        reference_time_ps=both.time_ps,
        is_biased=bool(np.ptp(both.log_weight) > 0),
        diagnostics=diagnostics,
        training_log=_read_lines(run.path("train", "metrics.jsonl")),
        structures=check_files(run, torsions, final),
        farm=read_farm(run, torsions),
    )


def halves(ensemble: Ensemble) -> tuple[Ensemble, Ensemble]:
    """Cut frames in two by trajectory: every second one, and the others."""
    order = np.unique(ensemble.trajectory, return_inverse=True)[1]
    return ensemble[order % 2 == 1], ensemble[order % 2 == 0]


def _conformations(label: str, ensemble: Ensemble, torsions: Torsions, weights: np.ndarray, is_md: bool) -> Conformations:
    angles = _angles(ensemble.positions_nm, torsions.quads)
    return Conformations(label, angles, weights, ensemble.trajectory if is_md else None, ensemble.reduced_energy)


def _angles(positions_nm: np.ndarray, quads: tuple[Quad, ...]) -> np.ndarray:
    if not quads:
        return np.zeros((len(positions_nm), 0))
    return np.stack([torsion_angles(positions_nm, quad) for quad in quads], axis=1)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def check_files(run: Run, torsions: Torsions, samples: Ensemble) -> dict[str, Any]:
    """Read the PDB files back and compare their torsions with those of the samples that they were written from.

    Returns
    -------
    dict
        n_files, n_read, and max_deviation_deg (None without torsions or files).
    """
    directory = run.path("correct", "pdb")
    rows = read_manifest(directory, run.system)
    chosen = rows[:: max(1, -(-len(rows) // MAX_PDB_READ))]
    result: dict[str, Any] = {"n_files": len(rows), "n_read": len(chosen), "max_deviation_deg": None}
    if torsions.quads and chosen:
        read = np.array([read_pdb_positions(directory / str(row["file"]), run.system) for row in chosen])
        sampled = samples.positions_nm[np.array([row["parent"] for row in chosen], dtype=int)]
        difference = wrap(_angles(read, torsions.quads) - _angles(sampled, torsions.quads))
        result["max_deviation_deg"] = float(np.degrees(np.abs(difference).max()))
    return result


def read_farm(run: Run, torsions: Torsions) -> Farm | None:
    """Read the finished replicas, or return None when the farm has not run."""
    import mdtraj

    from hpc_molgen.farm.plan import read_start, starts_folder

    if not run.path("farm", "done.json").is_file():
        return None
    records = _read_lines(run.path("farm", "manifest.jsonl"))
    topology = run.system.topology
    heavy = [atom.index for atom in topology.atoms if atom.element is not None and atom.element.symbol != "H"]
    names = ("replica", "time_ps", "energy_kj_mol", "rmsd_nm", "log_weight", "torsions_rad", "rotatable_rad")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for record in records:
        path = run.path("farm", f"replica-{record['replica']:05d}.h5")
        if record["state"] != "done" or not path.is_file():
            continue
        frames = read_ensemble(path, run.system)
        start = read_start(starts_folder(run), record["pdb"], run.system, run.path("farm"))
        moving = mdtraj.Trajectory(frames.positions_nm, topology)
        parts["replica"].append(np.full(len(frames), record["replica"]))
        parts["time_ps"].append(frames.time_ps)
        parts["log_weight"].append(frames.log_weight)
        parts["energy_kj_mol"].append(frames.reduced_energy * run.system.kt_kj_mol)
        parts["rmsd_nm"].append(mdtraj.rmsd(moving, mdtraj.Trajectory(start[None], topology), atom_indices=heavy))
        parts["torsions_rad"].append(_angles(frames.positions_nm, torsions.quads))
        parts["rotatable_rad"].append(_angles(frames.positions_nm, torsions.rotatable))
    if not parts["replica"]:
        return None
    joined = {name: np.concatenate(part) for name, part in parts.items()}
    return Farm(**joined, details=run.details("farm"), records=records)
