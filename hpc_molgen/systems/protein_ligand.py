"""Proteins with a ligand in a buried pocket, as structure-based models in which it binds and unbinds many times in a minute.

One bead for a residue (`structure_based`), five for a haem, one for about four heavy atoms of the ligand. With all repulsion
left in, a ligand leaves such a pocket and does not find back within minutes of CPU time (facts/md.md, section 5), so this is an
open-pocket model, and its rates are its own: they say nothing of the enzyme's. What was made to suit:

* Residues with a C-alpha atom within 1.0 nm of a bead of the ligand move; the rest and the haem are held where they are.
* The ligand is drawn by its native contacts alone (beads within 0.9 nm), each a Gaussian 0.15 nm wide of equal depth about its
  native length; their sum is `P450_WELL_KJ_MOL` or `T4L_WELL_KJ_MOL`, chosen so that it is bound about half of the time at 300 K.
* The lining has no repulsive core. Nor have residues within 0.8 nm of the way out, the direction from the pocket that passes
  the fewest beads: the tunnel is open. All other beads repel by a soft core of 8 kJ/mol that does not jam.
* Walls keep the mean of the ligand's beads in a tube of 0.8 nm about the way out, from 0.3 nm behind its native place to 1.5 nm
  beyond the last bead in the tube: the cylinder of a funnel restraint (Limongelli, Bonomi and Parrinello 2013, PNAS 110, 6358),
  which sets the volume of the unbound state and so the affinity.
* Presets use steps of 20 fs and a friction of 0.2 / ps.
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
from hpc_molgen.systems.pocket import HAEM, IRON, LIGAND, Pocket, find_pocket
from hpc_molgen.systems.structure_based import build_model, chain_topology, contacts_of

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig

HEAVY_CONTACT_NM = 0.45  # within the protein, between heavy atoms
MOBILE_NM = 1.0  # residues nearer than this to a bead of the ligand move
REACH_NM = 1.0  # of the repulsion between residues, in the native structure
ATOMS_PER_BEAD = 4
LIGAND_BOND_KJ_MOL_NM2 = 5000.0
P450_WELL_KJ_MOL, T4L_WELL_KJ_MOL, WELL_WIDTH_NM = 22.0, 22.0, 0.15
SOFT_KJ_MOL, SOFT_NM = 8.0, 0.25  # height, and width of the Gaussian
OPEN_NM = 0.8
TUBE_NM, BEHIND_NM, OUTSIDE_NM, WALL_KJ_MOL_NM2 = 0.8, 0.3, 1.5, 500.0
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
    return build_complex(parts, "P450", P450_WELL_KJ_MOL, config.temperature_kelvin)


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
    return build_complex(parts, "T4 lysozyme L99A and p-xylene", T4L_WELL_KJ_MOL, config.temperature_kelvin)


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
    n_beads = max(1, round(len(along) / ATOMS_PER_BEAD))
    groups = np.array_split(np.argsort(along, kind="stable"), n_beads)
    return np.array([parts.ligand_nm[g].mean(axis=0) for g in groups]), np.array([parts.ligand_amu[g].sum() for g in groups])


def build_complex(parts: Complex, name: str, well_kj_mol: float, temperature_kelvin: float) -> MolecularSystem:
    """Return the model of a complex whose native contacts of the ligand are together `well_kj_mol` deep."""
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
    for force in ligand_forces(pocket, native, well_kj_mol):
        system.addForce(force)
    shown = f"chain {parts.chain}, {n} residues of which {n - len(held)} move, ligand {parts.ligand} as {len(beads)} beads"
    return MolecularSystem(
        name=name,
        topology=topology,
        system_xml=openmm.XmlSerializer.serialize(system),
        positions_nm=native,
        temperature_kelvin=temperature_kelvin,
        description=f"structure-based C-alpha model with an open pocket, {shown}, {len(pocket.contacts)} pocket contacts",
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


def mouth_nm(pocket: Pocket, native_nm: np.ndarray) -> float:
    """Return how far along the way out the last bead of the receptor is that stands in the tube."""
    place = pocket.local(native_nm[pocket.receptor])
    inside = np.linalg.norm(place[:, :2], axis=1) < TUBE_NM
    return float(max(place[inside, 2], default=0.0))


def ligand_forces(pocket: Pocket, native_nm: np.ndarray, well_kj_mol: float) -> list[openmm.Force]:
    """Return the forces on the ligand: its bonds, contacts (together `well_kj_mol` deep), soft repulsion, and the tube."""
    bonds = openmm.HarmonicBondForce()
    for number, i in enumerate(pocket.ligand):
        for j in pocket.ligand[number + 1 :]:
            bonds.addBond(int(i), int(j), float(np.linalg.norm(native_nm[i] - native_nm[j])), LIGAND_BOND_KJ_MOL_NM2)
    wells = openmm.CustomBondForce(f"-depth * exp(-(r - length)^2 / {2 * WELL_WIDTH_NM**2!r})")
    wells.addPerBondParameter("depth")
    wells.addPerBondParameter("length")
    for (i, j), length in zip(pocket.contacts.tolist(), pocket.lengths_nm.tolist(), strict=True):
        wells.addBond(i, j, [well_kj_mol / len(pocket.contacts), length])
    soft = openmm.CustomBondForce(f"{SOFT_KJ_MOL!r} * exp(-r^2 / {2 * SOFT_NM**2!r})")
    size = float(np.linalg.norm(pocket.local(native_nm[pocket.ligand]), axis=1).max())
    place = pocket.local(native_nm[pocket.receptor])
    beside = np.linalg.norm(place[:, :2], axis=1)
    gate = (beside < OPEN_NM) & (place[:, 2] > 0)
    near = beside < TUBE_NM + size + 3 * SOFT_NM
    for i in np.setdiff1d(pocket.receptor[near & ~gate], pocket.lining).tolist():
        for j in pocket.ligand.tolist():
            soft.addBond(i, j, [])
    return [bonds, wells, soft, _tube(pocket, mouth_nm(pocket, native_nm))]


def _tube(pocket: Pocket, mouth: float) -> openmm.Force:
    """Walls for the mean of the ligand's beads."""
    centre = pocket.centre_nm.tolist()
    across_1, across_2, outward = (
        " + ".join(f"({part!r}) * ({axis}1 - ({at!r}))" for part, axis, at in zip(row, "xyz", centre, strict=True))
        for row in pocket.axes.tolist()
    )
    force = openmm.CustomCentroidBondForce(
        1,
        f"{WALL_KJ_MOL_NM2 / 2!r} * (max(0, beside - {TUBE_NM!r})^2 + max(0, outward - {mouth + OUTSIDE_NM!r})^2 + "
        f"max(0, -{BEHIND_NM!r} - outward)^2); beside = sqrt(({across_1})^2 + ({across_2})^2 + 1e-12); outward = {outward}",
    )
    force.addGroup(pocket.ligand.tolist(), [1.0] * len(pocket.ligand))
    force.addBond([0], [])
    return force
