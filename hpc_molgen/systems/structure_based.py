"""Structure-based C-alpha models: one bead for each residue, whose native contacts attract.

The model of Clementi, Nymeyer and Onuchic 2000, J. Mol. Biol. 298, 937: harmonic bonds and angles about the native structure,
dihedrals with one and three minima, 12-10 contacts, and repulsion between all other pairs, in units of `EPSILON_KJ_MOL`.
"""

from __future__ import annotations

import itertools

import mdtraj
import numpy as np
import openmm

from hpc_molgen.systems.torsions import torsion_angles

EPSILON_KJ_MOL = 2.5
BOND, ANGLE, DIHEDRAL = 20_000.0, 40.0, (1.0, 0.5)  # of k in k / 2 x^2, per nm^2 and rad^2; of n = 1 and n = 3
REPULSION_NM = 0.4
MASS_AMU = 100.0
SEPARATION = 4  # residues between the two of a contact, at least


def contacts_of(heavy_nm: dict[int, np.ndarray], cutoff_nm: float) -> list[tuple[int, int]]:
    """Return pairs of residues, at least `SEPARATION` apart, with atoms closer than `cutoff_nm`.

    Parameters
    ----------
    heavy_nm : dict
        Residue -> positions (n, 3) of its heavy atoms.
    """
    residues = sorted(heavy_nm)
    centres = np.array([heavy_nm[i].mean(axis=0) for i in residues])
    radii = np.array([np.linalg.norm(heavy_nm[i] - c, axis=1).max() for i, c in zip(residues, centres, strict=True)])
    within = np.linalg.norm(centres[:, None] - centres[None], axis=2) < cutoff_nm + radii[:, None] + radii[None]
    pairs = []
    for first, second in zip(*np.nonzero(np.triu(within, 1)), strict=True):  # the others are too far apart for any two atoms
        i, j = residues[first], residues[second]
        if j - i >= SEPARATION:
            apart = np.linalg.norm(heavy_nm[i][:, None] - heavy_nm[j][None], axis=2).min()
            pairs += [(i, j)] if apart < cutoff_nm else []
    return pairs


def build_model(
    native_nm: np.ndarray,
    contacts: list[tuple[int, int]],
    *,
    held: frozenset[int] = frozenset(),
    gaps: frozenset[int] = frozenset(),
    reach_nm: float = np.inf,
) -> openmm.System:
    """Return the model of a chain of residues in a row.

    Parameters
    ----------
    native_nm : np.ndarray, shape=(n_residues, 3)
        Positions of the C-alpha atoms.
    held : frozenset of int
        Residues that stay where they are (mass 0); terms among them alone are left out.
    gaps : frozenset of int
        Residues that are not bonded to the next one.
    reach_nm : float
        Pairs further apart than this in the native structure do not repel each other.
    """
    n, epsilon = len(native_nm), EPSILON_KJ_MOL
    system = openmm.System()
    for i in range(n):
        system.addParticle(0.0 if i in held else MASS_AMU)

    def row(i: int, length: int) -> bool:
        return gaps.isdisjoint(range(i, i + length - 1)) and not held.issuperset(range(i, i + length))

    bonds, angles, dihedrals = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for i in (i for i in range(n - 1) if row(i, 2)):
        bonds.addBond(i, i + 1, _distance(native_nm, i, i + 1), BOND * epsilon)
    for i in (i for i in range(n - 2) if row(i, 3)):
        angles.addAngle(i, i + 1, i + 2, _angle(native_nm[i : i + 3]), ANGLE * epsilon)
    for i in (i for i in range(n - 3) if row(i, 4)):
        native = float(torsion_angles(native_nm, (i, i + 1, i + 2, i + 3)))
        for n_minima, strength in zip((1, 3), DIHEDRAL, strict=True):
            phase = n_minima * native + np.pi  # 1 + cos(n x - phase) is smallest where n x = phase + pi
            dihedrals.addTorsion(i, i + 1, i + 2, i + 3, n_minima, phase, strength * epsilon)
    # every pair a bond: OpenMM's Reference platform takes ten times as long for the same by CustomNonbondedForce
    pairs = openmm.CustomBondForce("(repulsive * s - attractive) * s^5; s = 1 / (r * r)")
    for name in ("repulsive", "attractive"):
        pairs.addPerBondParameter(name)
    in_contact = set(contacts)
    for i, j in itertools.combinations(range(n), 2):
        if i in held and j in held:
            continue
        length = _distance(native_nm, i, j)
        if (i, j) in in_contact:
            pairs.addBond(i, j, [5 * epsilon * length**12, 6 * epsilon * length**10])
        elif j - i >= SEPARATION and length < reach_nm:
            pairs.addBond(i, j, [epsilon * REPULSION_NM**12, 0.0])
    for force in (bonds, angles, dihedrals, pairs):
        system.addForce(force)
    return system


def chain_topology(names: list[str], gaps: frozenset[int] = frozenset()) -> mdtraj.Topology:
    """Return a topology of one C-alpha atom for each residue, bonded in a row but for `gaps` after some."""
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    atoms = [topology.add_atom("CA", mdtraj.element.carbon, topology.add_residue(name, chain)) for name in names]
    for first, second in itertools.pairwise(atoms):
        if first.index not in gaps:
            topology.add_bond(first, second)
    return topology


def _distance(x: np.ndarray, i: int, j: int) -> float:
    return float(np.linalg.norm(x[i] - x[j]))


def _angle(x: np.ndarray) -> float:
    a, b = x[0] - x[1], x[2] - x[1]
    return float(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))
