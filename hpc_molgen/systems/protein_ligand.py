"""Proteins with a ligand in a buried pocket, as structure-based models in which it binds and unbinds many times in a minute.

One bead for a residue (`structure_based`), five for a haem, one for about four heavy atoms of the ligand. Residues with a
C-alpha atom within 1.0 nm of a bead of the ligand move, the rest and the haem are held where they are. What acts on the ligand,
and what of it was made to suit, is in `open_pocket`. The presets take steps of 25 fs with a friction of 0.2 / ps, low for
water, so that the ligand meets the mouth often. Rates and affinities are those of this model and say nothing of the protein's.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.from_files import read_pdb
from hpc_molgen.systems.open_pocket import balanced_well, ligand_forces
from hpc_molgen.systems.pocket import HAEM, IRON, LIGAND, find_pocket
from hpc_molgen.systems.structure_based import build_model, chain_topology, contacts_of

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig

HEAVY_CONTACT_NM = 0.45  # within the protein, between heavy atoms
MOBILE_NM = 1.0  # residues nearer than this to a bead of the ligand move
REACH_NM = 1.0  # of the repulsion between residues, in the native structure
ATOMS_PER_BEAD = 4
LARGEST_GAP_NM = 0.45  # between C-alpha atoms of neighbours
WATER = ("HOH", "WAT", "DOD", "TIP", "SOL")


class Structure(Protocol):
    """What has a topology and positions: an `openmm.app.PDBFile`, or a test system of openmmtools."""

    topology: app.Topology
    positions: unit.Quantity


@dataclass(frozen=True)
class Complex:
    """A protein chain with its ligand, and its haem if there is one.

    Attributes
    ----------
    chain : str
    names : list of str
        Of the residues.
    alpha_nm : np.ndarray, shape=(n_residues, 3)
    heavy_nm : dict
        Residue -> positions (n, 3) of its heavy atoms.
    haem_nm : dict
        Name of a bead -> position (3,): the iron, and for each of its nitrogens the mean of the atoms nearest to that one.
    ligand : str
        Residue name.
    ligand_nm, ligand_amu : np.ndarray, shape=(n_heavy, 3) and (n_heavy,)
    """

    chain: str
    names: list[str]
    alpha_nm: np.ndarray
    heavy_nm: dict[int, np.ndarray]
    haem_nm: dict[str, np.ndarray]
    ligand: str
    ligand_nm: np.ndarray
    ligand_amu: np.ndarray


def p450(config: SystemConfig) -> MolecularSystem:
    """Return the model of the first chain of `config.pdb` that has a haem and a ligand.

    Raises
    ------
    InputError
        When the structure cannot be had, or has no such chain.
    """
    path, pdb = read_pdb(config)
    parts = read_complex(pdb, str(path), config.ligand, haem=True)
    return build_complex(parts, "P450", config.temperature_kelvin)


def t4l_xylene(config: SystemConfig) -> MolecularSystem:
    """Return the model of the first chain of `config.pdb` that has a ligand; without one, that of openmmtools' T4 lysozyme.

    Raises
    ------
    InputError
        As `p450`, and when there is neither a file nor openmmtools.
    """
    if config.pdb is None:
        pdb, source = _openmmtools_lysozyme(), "openmmtools"
    else:
        path, pdb = read_pdb(config)
        source = str(path)
    parts = read_complex(pdb, source, config.ligand, haem=False)
    return build_complex(parts, "T4 lysozyme L99A and p-xylene", config.temperature_kelvin)


def _openmmtools_lysozyme() -> Structure:
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            from openmmtools.testsystems import LysozymeImplicit

            return cast(Structure, LysozymeImplicit())
    except ImportError as error:
        raise InputError(
            "system.pdb: t4l-xylene needs the path or the address of a structure of T4 lysozyme L99A with p-xylene (187L), or "
            "openmmtools, which brings one (pip install openmmtools)"
        ) from error


def read_complex(structure: Structure, source: str, ligand: str | None = None, *, haem: bool) -> Complex:
    """Return the first chain that has all that is asked for.

    Parameters
    ----------
    ligand : str, optional
        Residue name; None: the largest hetero group but water and haem.
    haem : bool
        Whether the chain must have one.

    Raises
    ------
    InputError
        Where there is no such chain; the message lists what the chains have.
    """
    x = np.asarray(structure.positions.value_in_unit(unit.nanometer), dtype=np.float64)
    chains: dict[str, list[app.topology.Residue]] = {}  # OpenMM starts another chain of the same name behind TER
    for residue in structure.topology.residues():
        chains.setdefault(residue.chain.id, []).append(residue)
    seen = []
    for chain, residues in chains.items():
        protein = [residue for residue in residues if {"N", "CA", "C"} <= {atom.name for atom in residue.atoms()}]
        others = [r for r in residues if r not in protein and r.name not in WATER]
        haems = [r for r in others if _is_haem(r)]
        groups = [r for r in others if r not in haems and (r.name == ligand if ligand else len(_heavy(r)) > 1)]
        seen.append(f"chain {chain}: {len(protein)} residues, {', '.join(r.name for r in others) or 'no hetero groups'}")
        if protein and groups and (haems or not haem):
            found = max(groups, key=lambda r: len(_heavy(r)))
            return _complex(chain, protein, haems[0] if haems else None, found, x)
    wanted = f"a ligand {ligand}" if ligand else "a ligand of two heavy atoms or more"
    raise InputError(
        f"{source}: no chain has protein, {'haem and ' if haem else ''}{wanted}; there are: {'; '.join(seen)}; "
        "system.ligand names a ligand"
    )


def _is_haem(residue: app.topology.Residue) -> bool:
    symbols = [atom.element.symbol for atom in _heavy(residue)]
    return symbols.count("Fe") == 1 and symbols.count("N") == 4


def _heavy(residue: app.topology.Residue) -> list[app.topology.Atom]:
    return [atom for atom in residue.atoms() if atom.element is not None and atom.element.symbol != "H"]


def _complex(
    chain: str,
    protein: list[app.topology.Residue],
    haem: app.topology.Residue | None,
    ligand: app.topology.Residue,
    x: np.ndarray,
) -> Complex:
    beads: dict[str, np.ndarray] = {}
    if haem is not None:
        atoms = _heavy(haem)
        iron = next(atom for atom in atoms if atom.element.symbol == "Fe")
        nitrogens = [atom for atom in atoms if atom.element.symbol == "N"]
        rest = x[[atom.index for atom in atoms if atom is not iron]]
        nearest = np.linalg.norm(rest[:, None] - x[[n.index for n in nitrogens]][None], axis=2).argmin(axis=1)
        beads = {IRON: x[iron.index]} | {n.name: rest[nearest == i].mean(axis=0) for i, n in enumerate(nitrogens)}
    found = _heavy(ligand)
    return Complex(
        chain=chain,
        names=[residue.name for residue in protein],
        alpha_nm=x[[next(atom.index for atom in residue.atoms() if atom.name == "CA") for residue in protein]],
        heavy_nm={i: x[[atom.index for atom in _heavy(residue)]] for i, residue in enumerate(protein)},
        haem_nm=beads,
        ligand=ligand.name,
        ligand_nm=x[[atom.index for atom in found]],
        ligand_amu=np.array([atom.element.mass.value_in_unit(unit.dalton) for atom in found]),
    )


def ligand_beads(parts: Complex) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (n, 3) and masses (n,) of about one bead for `ATOMS_PER_BEAD` atoms, in a row along the longest axis."""
    centred = parts.ligand_nm - parts.ligand_nm.mean(axis=0)
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    along = -along if along[0] > 0 else along  # the axis has no sign of its own
    n_beads = max(1, round(len(along) / ATOMS_PER_BEAD))
    groups = np.array_split(np.argsort(along, kind="stable"), n_beads)
    return np.array([parts.ligand_nm[g].mean(axis=0) for g in groups]), np.array([parts.ligand_amu[g].sum() for g in groups])


def build_complex(parts: Complex, name: str, temperature_kelvin: float) -> MolecularSystem:
    """Return the model of a complex."""
    gaps = frozenset(np.flatnonzero(np.linalg.norm(np.diff(parts.alpha_nm, axis=0), axis=1) > LARGEST_GAP_NM).tolist())
    beads, masses = ligand_beads(parts)
    native = np.concatenate([parts.alpha_nm, np.array(list(parts.haem_nm.values())).reshape(-1, 3), beads])
    topology = _topology(parts, gaps, len(beads))
    n = len(parts.alpha_nm)
    near = np.linalg.norm(parts.alpha_nm[:, None] - beads[None], axis=2).min(axis=1) < MOBILE_NM
    contacts = contacts_of(parts.heavy_nm, HEAVY_CONTACT_NM)
    held = frozenset(np.flatnonzero(~near).tolist())
    system = build_model(parts.alpha_nm, contacts, held=held, gaps=gaps, reach_nm=REACH_NM)
    for mass in [0.0] * len(parts.haem_nm) + masses.tolist():
        system.addParticle(mass)
    pocket = find_pocket(topology, native)
    well_kj_mol = balanced_well(pocket, native, temperature_kelvin)
    for force in ligand_forces(pocket, native, well_kj_mol):
        system.addForce(force)
    shown = f"chain {parts.chain}, {n} residues of which {n - len(held)} move, ligand {parts.ligand} as {len(beads)} beads"
    return MolecularSystem(
        name=name,
        topology=topology,
        system_xml=openmm.XmlSerializer.serialize(system),
        positions_nm=native,
        temperature_kelvin=temperature_kelvin,
        description=f"structure-based C-alpha model with an open pocket, {shown}, "
        f"{len(pocket.contacts)} pocket contacts, together {well_kj_mol:.1f} kJ/mol",
    )


def _topology(parts: Complex, gaps: frozenset[int], n_ligand: int) -> mdtraj.Topology:
    topology = chain_topology(parts.names, gaps)
    if parts.haem_nm:
        residue = topology.add_residue(HAEM, topology.add_chain())
        kinds = [mdtraj.element.iron] + [mdtraj.element.nitrogen] * (len(parts.haem_nm) - 1)
        atoms = [topology.add_atom(name, kind, residue) for name, kind in zip(parts.haem_nm, kinds, strict=True)]
        for atom in atoms[1:]:
            topology.add_bond(atoms[0], atom)
    residue = topology.add_residue(LIGAND, topology.add_chain())
    atoms = [topology.add_atom(f"C{number + 1}", mdtraj.element.carbon, residue) for number in range(n_ligand)]
    for first, second in itertools.pairwise(atoms):
        topology.add_bond(first, second)
    return topology
