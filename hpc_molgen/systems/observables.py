"""Observables of molecules by name: what replicas measure while they run, and the collective variables of trajectories."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from xml.etree import ElementTree

import mdtraj
import numpy as np

from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.pocket import COORDINATES, pocket_coordinate
from hpc_molgen.systems.torsions import torsion_angles, torsion_by_name

Observable = Callable[[np.ndarray], np.ndarray]
CONTACT_NM = 0.45  # between heavy atoms of residues at least four apart, in the native structure
BEAD_CONTACT_NM, BEAD_SLACK = 0.9, 1.2  # and between beads, where a residue is one
CONTACT_STEEPNESS_PER_NM = 50.0
CONTACT_SLACK = 1.8
AXES = ("x", "y", "z")


def make_observables(
    names: tuple[str, ...], system: MolecularSystem, start_nm: np.ndarray
) -> dict[str, tuple[Observable, str]]:
    """Return functions of positions (n, n_atoms, 3), each giving (n,) values, with their units.

    Parameters
    ----------
    names : tuple of str
        "rmsd" (of the heavy atoms to the start, superposed), "rg" (radius of gyration by mass), "ree" (distance between the
        first and the last C-alpha), "q" (share of the native contacts of the system's own structure), "x", "y", "z" (of the
        first particle), a coordinate of a ligand in its pocket ("ligand_distance", "pocket_contacts", ...: see
        `pocket_coordinate`), or a torsion ("phi", "chi1", ...; with an index if several).
    start_nm : np.ndarray, shape=(n_atoms, 3)

    Raises
    ------
    InputError
        For a name that this molecule has nothing for.
    """
    found: dict[str, tuple[Observable, str]] = {}
    for name in names:
        if name == "rmsd":
            found[name] = (_rmsd(system, start_nm), "nanometers")
        elif name == "rg":
            found[name] = (_radius_of_gyration(system), "nanometers")
        elif name == "ree":
            found[name] = (_end_to_end(system), "nanometers")
        elif name == "q":
            found[name] = (_native_contacts(system), "dimensionless")
        elif name in AXES:
            found[name] = (_coordinate(AXES.index(name)), "nanometers")
        elif name in COORDINATES:
            found[name] = pocket_coordinate(system, name)
        else:
            found[name] = (_torsion(system, name), "radians")
    return found


def values_of(observables: dict[str, tuple[Observable, str]], positions_nm: np.ndarray) -> np.ndarray:
    """Return the values (n, n_observables) of observables at positions (n, n_atoms, 3)."""
    return np.stack([function(positions_nm) for function, _ in observables.values()], axis=1)


def _heavy(system: MolecularSystem) -> np.ndarray:
    heavy = [atom.index for atom in system.topology.atoms if atom.element is None or atom.element.symbol != "H"]
    return np.array(heavy, dtype=int)


def _rmsd(system: MolecularSystem, start_nm: np.ndarray) -> Observable:
    heavy, topology = _heavy(system), system.topology
    start = mdtraj.Trajectory(np.asarray(start_nm)[None], topology)

    def rmsd(positions_nm: np.ndarray) -> np.ndarray:
        return np.asarray(mdtraj.rmsd(mdtraj.Trajectory(positions_nm, topology), start, atom_indices=heavy))

    return rmsd


def _radius_of_gyration(system: MolecularSystem) -> Observable:
    masses = np.array([1.0 if atom.element is None else atom.element.mass for atom in system.topology.atoms])
    if _is_beads(system):  # whose masses are those of whole residues
        particles = ElementTree.fromstring(system.system_xml).find("Particles")
        masses = masses if particles is None else np.array([float(particle.get("mass", "1")) for particle in particles])
    shares = masses / masses.sum()

    def radius(positions_nm: np.ndarray) -> np.ndarray:
        x = np.asarray(positions_nm, dtype=np.float64)
        centred = x - np.einsum("a,nac->nc", shares, x)[:, None]
        return np.asarray(np.sqrt(np.einsum("a,nac,nac->n", shares, centred, centred)))

    return radius


def _is_beads(system: MolecularSystem) -> bool:
    """Whether every residue is one particle."""
    return bool(system.topology.n_residues == system.topology.n_atoms > 1)


def _end_to_end(system: MolecularSystem) -> Observable:
    alpha = [atom.index for atom in system.topology.atoms if atom.name == "CA"]
    if len(alpha) < 2:
        raise InputError(f"observables: {system.name} has {len(alpha)} C-alpha atoms, and 'ree' is the distance of two")
    ends = alpha[:: len(alpha) - 1]

    def distance(positions_nm: np.ndarray) -> np.ndarray:
        first, last = np.asarray(positions_nm, dtype=np.float64)[:, ends].transpose(1, 0, 2)
        return np.asarray(np.linalg.norm(last - first, axis=1))

    return distance


def _native_contacts(system: MolecularSystem) -> Observable:
    """Share of native contacts (Best, Hummer, Eaton 2013, PNAS 110, 17874, equation 1)."""
    residue = np.array([atom.residue.index for atom in system.topology.atoms])
    native = system.positions_nm
    cutoff, slack = (BEAD_CONTACT_NM, BEAD_SLACK) if _is_beads(system) else (CONTACT_NM, CONTACT_SLACK)
    close = [
        (i, j)
        for i, j in itertools.combinations(_heavy(system), 2)
        if abs(residue[i] - residue[j]) > 3 and np.linalg.norm(native[i] - native[j]) < cutoff
    ]
    if not close:
        raise InputError(f"observables: {system.name} has no native contacts for 'q'")
    i, j = np.array(close).T
    lengths = np.linalg.norm(native[i] - native[j], axis=1)

    def contacts(positions_nm: np.ndarray) -> np.ndarray:
        x = np.asarray(positions_nm, dtype=np.float64)
        excess = np.linalg.norm(x[:, i] - x[:, j], axis=2) - slack * lengths
        with np.errstate(over="ignore"):
            return np.asarray((1 / (1 + np.exp(CONTACT_STEEPNESS_PER_NM * excess))).mean(axis=1))

    return contacts


def _coordinate(axis: int) -> Observable:
    return lambda positions_nm: np.asarray(positions_nm, dtype=np.float64)[:, 0, axis]


def _torsion(system: MolecularSystem, name: str) -> Observable:
    try:
        quad = torsion_by_name(system.topology, name)
    except InputError as error:
        others = f"rmsd, rg, q, ree, x, y, z of a single particle, and of a ligand: {', '.join(COORDINATES)}"
        raise InputError(f"observables: {error}; other names are: {others}") from error
    return lambda positions_nm: torsion_angles(positions_nm, quad)
