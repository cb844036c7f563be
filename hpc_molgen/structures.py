"""PDB files of sampled conformations: writing, checking, and their manifest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpc_molgen.ensemble import Ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.files import read_json, write_atomically, write_json
from hpc_molgen.systems.torsions import Quad, amide_torsions, neighbours_of, torsion_angles

if TYPE_CHECKING:
    import mdtraj

    from hpc_molgen.systems.base import MolecularSystem

BOND_TOLERANCE = 0.20  # relative
CLASH_NM = 0.20  # non-bonded heavy atoms nearer than this
OMEGA_LIMIT_DEG = 90.0  # trans above


@dataclass(frozen=True)
class StructureCheck:
    """Which checks one structure fails; energies are compared with the 99.9th percentile of MD."""

    bonds: bool
    clash: bool
    chirality: bool
    omega: bool
    energy: bool

    @property
    def failed(self) -> bool:
        """True when any check fails."""
        return any(asdict(self).values())


class StructureChecker:
    """Checks conformations of one system against its own reference structure and reference MD.

    Parameters
    ----------
    system : MolecularSystem
    energy_limit : float
        Reduced energy above which a structure fails: the 99.9th percentile of reference MD.
    """

    def __init__(self, system: MolecularSystem, energy_limit: float) -> None:
        topology = system.topology
        self.energy_limit = energy_limit
        self._bonds = np.array([(a.index, b.index) for a, b in topology.bonds])
        self._lengths = _distances(system.positions_nm[None], self._bonds)[0]
        heavy = [atom.index for atom in topology.atoms if atom.element.symbol != "H"]
        near = _bonded_within(topology, 2)
        self._pairs = np.array([(i, j) for i in heavy for j in heavy if i < j and j not in near[i]])
        self._centres = _chiral_centres(topology)
        self._signs = np.sign(_volumes(system.positions_nm[None], self._centres))[0] if self._centres else np.zeros(0)
        self._omegas = amide_torsions(topology)
        self._own_cis = [bool(_is_cis(system.positions_nm, atoms)) for atoms in self._omegas]  # proline may be cis

    def __call__(self, positions_nm: np.ndarray, reduced_energy: np.ndarray) -> list[StructureCheck]:
        """Check positions (n, n_atoms, 3) with energies (n,)."""
        blocks = range(0, len(positions_nm), 1000)  # pairs x samples would not fit into memory for large molecules
        parts = [self._check(positions_nm[i : i + 1000], reduced_energy[i : i + 1000]) for i in blocks]
        return [check for part in parts for check in part]

    def _check(self, positions_nm: np.ndarray, reduced_energy: np.ndarray) -> list[StructureCheck]:
        x = np.asarray(positions_nm, dtype=np.float64)
        bonds = (np.abs(_distances(x, self._bonds) / self._lengths - 1) > BOND_TOLERANCE).any(1)
        clash = (_distances(x, self._pairs) < CLASH_NM).any(1) if len(self._pairs) else np.zeros(len(x), bool)
        mirrored = (np.sign(_volumes(x, self._centres)) != self._signs).any(1) if self._centres else np.zeros(len(x), bool)
        cis = np.zeros(len(x), bool)
        for atoms, own in zip(self._omegas, self._own_cis, strict=True):
            cis |= _is_cis(x, atoms) != own
        hot = ~(np.asarray(reduced_energy) <= self.energy_limit)
        flags = np.stack([bonds, clash, mirrored, cis, hot], axis=1)
        return [StructureCheck(*map(bool, row)) for row in flags]


def _is_cis(positions_nm: np.ndarray, atoms: Quad) -> np.ndarray:
    cis: np.ndarray = np.abs(np.degrees(torsion_angles(positions_nm, atoms))) < OMEGA_LIMIT_DEG
    return cis


def _distances(positions_nm: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.linalg.norm(positions_nm[:, pairs[:, 0]] - positions_nm[:, pairs[:, 1]], axis=-1)
    return lengths


def _bonded_within(topology: mdtraj.Topology, n_bonds: int) -> list[set[int]]:
    neighbours = [set(atoms) for atoms in neighbours_of(topology)]
    found = [{atom} for atom in range(topology.n_atoms)]
    for _ in range(n_bonds):
        found = [set().union(*(neighbours[other] | {other} for other in reach)) for reach in found]
    return found


def _chiral_centres(topology: mdtraj.Topology) -> list[tuple[int, int, int, int]]:
    """C-alpha atoms with N, C and CB: L or D."""
    centres = []
    for residue in topology.residues:
        atoms = {atom.name: atom.index for atom in residue.atoms}
        if {"CA", "N", "C", "CB"} <= atoms.keys():
            centres.append((atoms["CA"], atoms["N"], atoms["C"], atoms["CB"]))
    return centres


def _volumes(positions_nm: np.ndarray, centres: list[tuple[int, int, int, int]]) -> np.ndarray:
    centre, a, b, c = np.array(centres).T
    u, v, w = (positions_nm[:, other] - positions_nm[:, centre] for other in (a, b, c))
    volumes: np.ndarray = np.sum(np.cross(u, v) * w, axis=-1)
    return volumes


def check_fractions(checks: Iterable[StructureCheck]) -> dict[str, float]:
    """Return the fraction of structures that fail each check, and `any`."""
    rows = [asdict(check) | {"any": check.failed} for check in checks]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def write_structures(
    directory: Path,
    ensemble: Ensemble,
    system: MolecularSystem,
    checks: list[StructureCheck],
    weights: np.ndarray | None = None,
) -> None:
    """Write one PDB per conformation, with weight and parent in REMARKs, and manifest.json.

    Structures that were drawn by weight count the same; those that were chosen otherwise come with `weights` (n,).

    Files carry the system's own atom names, residue names and elements, and CONECT records for residues that are not standard
    amino acids, so that OpenMM, mdtraj and PyMOL see the same molecule.
    """
    rows = []
    how = "drawn by weight" if weights is None else "share of its region"
    for index in range(len(ensemble)):
        name = f"structure-{index:05d}.pdb"
        row = {
            "file": name,
            "parent": int(ensemble.parent[index]),
            "weight": 1 / len(ensemble) if weights is None else float(weights[index]),
            "proposal_log_weight": float(ensemble.log_weight[index]),
            "reduced_energy": float(ensemble.reduced_energy[index]),
            "log_density": float(ensemble.log_density[index]),
            "failed_checks": [key for key, failed in asdict(checks[index]).items() if failed],
        }
        remarks = [
            f"hpc_molgen {system.name} (system key {system.key}), {system.temperature_kelvin} K",
            f"weight {row['weight']:.6f} ({how})  parent proposal {row['parent']}",
            f"log weight of that proposal {row['proposal_log_weight']:.6f}",
            f"reduced energy {row['reduced_energy']:.6f} kT  ln q {row['log_density']:.6f}",
        ]
        text = pdb_text(system.topology, ensemble.positions_nm[index], remarks)
        write_atomically(directory / name, text.encode())
        rows.append(row)
    write_json(directory / "manifest.json", {"system_key": system.key, "structures": rows})


def pdb_text(topology: mdtraj.Topology, positions_nm: np.ndarray, remarks: list[str]) -> str:
    """Return one conformation as PDB text (format 3.3), coordinates centred so that they fit the columns."""
    x = 10 * (positions_nm - positions_nm.mean(axis=0))
    lines = [f"REMARK   1 {text}"[:80] for text in remarks]
    standard = _standard_residues()
    for atom in topology.atoms:
        symbol = atom.element.symbol if atom.element else ""
        name = atom.name if len(atom.name) > 3 or len(symbol) > 1 else f" {atom.name:<3s}"
        record = "ATOM  " if atom.residue.name in standard else "HETATM"
        chain = chr(ord("A") + atom.residue.chain.index % 26)
        a, b, c = x[atom.index]
        lines.append(
            f"{record}{atom.index + 1:5d} {name:<4s} {atom.residue.name:>3s} {chain}{atom.residue.resSeq % 10000:4d}    "
            f"{a:8.3f}{b:8.3f}{c:8.3f}{1.0:6.2f}{0.0:6.2f}          {symbol:>2s}"
        )
    lines.append(f"TER   {topology.n_atoms + 1:5d}")
    bonded: dict[int, list[int]] = {}
    for first, second in topology.bonds:
        if first.residue.name in standard and second.residue.name in standard:
            continue
        bonded.setdefault(first.index, []).append(second.index)
        bonded.setdefault(second.index, []).append(first.index)
    for index, others in sorted(bonded.items()):
        for start in range(0, len(others), 4):
            lines.append(f"CONECT{index + 1:5d}" + "".join(f"{other + 1:5d}" for other in sorted(others)[start : start + 4]))
    return "\n".join([*lines, "END", ""])


def _standard_residues() -> set[str]:
    names = "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL"
    return set(names.split())


def read_manifest(directory: Path, system: MolecularSystem) -> list[dict[str, object]]:
    """Return the rows of a manifest of `write_structures`.

    Raises
    ------
    InputError
        When it is missing, damaged or of another system.
    """
    path = directory / "manifest.json"
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not {"structures", "system_key"} <= manifest.keys():
        raise InputError(f"{path}: not a manifest of structures; run the stage 'correct' again")
    rows: list[dict[str, object]] = manifest["structures"]
    if manifest["system_key"] != system.key:
        raise InputError(f"{path} belongs to system key {manifest['system_key']}, this run has {system.key} ({system.name})")
    return rows


def read_pdb_positions(path: Path, system: MolecularSystem) -> np.ndarray:
    """Return positions_nm (n_atoms, 3) of a PDB of this system.

    Raises
    ------
    InputError
        When it cannot be read or its atoms differ from the system's; the message says which.
    """
    import mdtraj

    try:
        trajectory = mdtraj.load_pdb(str(path), standard_names=False)
    except Exception as error:  # mdtraj's parser raises bare exceptions of many kinds on damaged files
        raise InputError(f"{path}: not a PDB file that mdtraj can read ({error})") from error
    found = [atom.name for atom in trajectory.topology.atoms]
    wanted = [atom.name for atom in system.topology.atoms]
    if found != wanted:
        missing = sorted(set(wanted) - set(found))
        detail = f"missing {', '.join(missing)}" if missing else "their order or names differ"
        raise InputError(f"{path}: {len(found)} atoms do not match the {len(wanted)} of {system.name} ({detail})")
    positions: np.ndarray = trajectory.xyz[0].astype(np.float64)
    return positions
