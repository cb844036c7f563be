"""Small molecules with energy functions written by hand, and their SD files: what a user brings to `sdf-xml`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import mdtraj
import numpy as np
import openmm
from mdtraj.core import topology as kinds

from hpc_molgen.systems.torsions import place_atom

KCAL = 4.184
ORDERS = {"-": 1, "=": 2, "#": 3, ":": 4}
VALENCES = {"C": 4, "N": 3, "O": 2, "F": 1, "S": 2}
CHARGE_CODES = {0: 0, 3: 1, 2: 2, 1: 3, -1: 5, -2: 6, -3: 7}


@dataclass
class Drawn:
    """What a file holds: elements, positions in Angstrom, bonds (first, second, order, atoms from 0) and formal charges."""

    title: str
    elements: list[str]
    positions_angstrom: np.ndarray
    bonds: list[tuple[int, int, int]]
    charges: dict[int, int]

    def v2000(self, *, codes: bool = False, program: str = "  tests   01012600003D") -> str:
        """As a V2000 molfile; charges in atom lines instead of an M  CHG line if `codes`."""
        lines = [self.title, program, "", f"{len(self.elements):3d}{len(self.bonds):3d}  0  0  0  0  0  0  0  0999 V2000"]
        for atom, (element, x) in enumerate(zip(self.elements, self.positions_angstrom, strict=True)):
            code = CHARGE_CODES[self.charges.get(atom, 0)] if codes else 0
            lines.append(f"{x[0]:10.4f}{x[1]:10.4f}{x[2]:10.4f} {element:<3s} 0{code:3d}  0  0  0  0  0  0  0  0  0  0")
        lines += [f"{i + 1:3d}{j + 1:3d}{order:3d}  0" for i, j, order in self.bonds]
        if self.charges and not codes:
            lines.append(f"M  CHG{len(self.charges):3d}" + "".join(f" {i + 1:3d} {q:3d}" for i, q in self.charges.items()))
        return "\n".join([*lines, "M  END", ""])

    def v3000(self) -> str:
        """As a V3000 molfile whose atoms have other numbers and whose first atom line is continued."""
        lines = [self.title, "  tests   01012600003D", "", "  0  0  0     0  0            999 V3000", "M  V30 BEGIN CTAB"]
        lines += [f"M  V30 COUNTS {len(self.elements)} {len(self.bonds)} 0 0 0", "M  V30 BEGIN ATOM"]
        for atom, (element, x) in enumerate(zip(self.elements, self.positions_angstrom, strict=True)):
            charge = f" CHG={self.charges[atom]}" if atom in self.charges else ""
            middle = "-\nM  V30 " if atom == 0 else ""
            lines.append(f"M  V30 {10 * atom + 7} {element} {middle}{x[0]:.4f} {x[1]:.4f} {x[2]:.4f} 0{charge}")
        lines += ["M  V30 END ATOM", "M  V30 BEGIN BOND"]
        rows = enumerate(self.bonds, start=1)
        lines += [f"M  V30 {number} {order} {10 * i + 7} {10 * j + 7}" for number, (i, j, order) in rows]
        return "\n".join([*lines, "M  V30 END BOND", "M  V30 END CTAB", "M  END", ""])


def graph(heavy: str, bonds: str, *, orders: bool = True) -> mdtraj.Topology:
    """Topology of a molecule by its heavy atoms ("C C N") and bonds ("0-1 1=2 2#3 4:5"), hydrogens added by valence."""
    parts = [
        next((int(a), int(b), kind) for kind in ORDERS if kind in word for a, b in [word.split(kind)]) for word in bonds.split()
    ]
    topology = mdtraj.Topology()
    residue = topology.add_residue("LIG", topology.add_chain())
    atoms = [topology.add_atom(f"{e}{n}", mdtraj.element.Element.getBySymbol(e), residue) for n, e in enumerate(heavy.split())]
    used = [0.0] * len(atoms)
    for a, b, kind in parts:
        order = ORDERS[kind]
        known = {1: (kinds.Single, 1), 2: (kinds.Double, 2), 3: (kinds.Triple, 3), 4: (kinds.Aromatic, None)}[order]
        topology.add_bond(atoms[a], atoms[b], *(known if orders else (None, None)))
        for atom in (a, b):
            used[atom] += 1.5 if order == 4 else order
    for atom, element in enumerate(heavy.split()):
        for _ in range(int(VALENCES[element] - used[atom])):
            hydrogen = topology.add_atom(f"H{topology.n_atoms}", mdtraj.element.hydrogen, residue)
            topology.add_bond(atoms[atom], hydrogen, *((kinds.Single, 1) if orders else (None, None)))
    return topology


def butane() -> Drawn:
    """n-butane, trans, ideal: C1 to C4, then hydrogens of each in turn."""
    x = [np.array([0.0, 0.0, 0.0]), np.array([1.529, 0.0, 0.0])]
    x.append(place_atom(x[1], x[0], np.array([0.0, 1.0, 0.0]), 1.529, 112.7, 0.0))
    x.append(place_atom(x[2], x[1], x[0], 1.529, 112.7, 180.0))
    bonds = [(0, 1, 1), (1, 2, 1), (2, 3, 1)]
    for a, b, c, torsions in ((0, 1, 2, (60, 180, -60)), (1, 2, 3, (60, -60)), (2, 1, 0, (60, -60)), (3, 2, 1, (60, 180, -60))):
        for torsion in torsions:
            bonds.append((a, len(x), 1))
            x.append(place_atom(x[a], x[b], x[c], 1.09, 110.0, torsion))
    return Drawn("n-butane", ["C"] * 4 + ["H"] * 10, np.array(x), bonds, {})


def butane_system() -> openmm.System:
    """OPLS-AA: Jorgensen, Maxwell and Tirado-Rives 1996, J. Am. Chem. Soc. 118, 11225, tables 1 to 4 (alkanes)."""
    molecule = butane()
    bonds_of = {(0, 0): (268.0, 1.529), (0, 1): (340.0, 1.09)}  # kcal/mol/A^2 and A, by number of hydrogens
    angles_of = {0: (58.35, 112.7), 1: (37.5, 110.7), 2: (33.0, 107.8)}  # kcal/mol/rad^2 and degrees
    torsions_of = {0: (1.740, -0.157, 0.279), 1: (0.0, 0.0, 0.366), 2: (0.0, 0.0, 0.318)}  # kcal/mol
    hydrogen = [int(element == "H") for element in molecule.elements]
    system, bond, angle, torsion = empty_system(molecule)
    angles, torsions = angles_and_torsions(molecule)
    for i, j, _ in molecule.bonds:
        k, length = bonds_of[tuple(sorted((hydrogen[i], hydrogen[j])))]  # type: ignore[index]
        bond.addBond(i, j, 0.1 * length, 200 * KCAL * k)
    for i, j, k in angles:
        strength, degrees = angles_of[hydrogen[i] + hydrogen[k]]
        angle.addAngle(i, j, k, np.radians(degrees), 2 * KCAL * strength)
    for quad in torsions:
        for n, v in enumerate(torsions_of[hydrogen[quad[0]] + hydrogen[quad[3]]], start=1):
            torsion.addTorsion(*quad, n, np.pi if n == 2 else 0.0, KCAL * v / 2)
    charges = [-0.18, -0.12, -0.12, -0.18] + [0.06] * 10
    lennard_jones = [(0.25, 0.03 * KCAL) if h else (0.35, 0.066 * KCAL) for h in hydrogen]
    # geometric means of both parameters, which OpenMM does not know: every pair is an exception
    nonbonded = openmm.NonbondedForce()
    for charge, own in zip(charges, lennard_jones, strict=True):
        nonbonded.addParticle(charge, *own)
    apart = distances_in_bonds(molecule)
    for i, j in itertools.combinations(range(14), 2):
        scale = 0.0 if apart[i, j] < 3 else 0.5 if apart[i, j] == 3 else 1.0
        sigma, epsilon = np.sqrt(np.multiply(lennard_jones[i], lennard_jones[j]))
        nonbonded.addException(i, j, scale * charges[i] * charges[j], sigma, scale * epsilon)
    system.addForce(nonbonded)
    return system


def empty_system(
    molecule: Drawn,
) -> tuple[openmm.System, openmm.HarmonicBondForce, openmm.HarmonicAngleForce, openmm.PeriodicTorsionForce]:
    """A System of its particles with three empty forces."""
    system = openmm.System()
    for element in molecule.elements:
        system.addParticle(mdtraj.element.Element.getBySymbol(element).mass)
    forces = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for force in forces:
        system.addForce(force)
    return system, *forces


def neighbours_of(molecule: Drawn) -> dict[int, list[int]]:
    """Atoms bonded to each atom."""
    near: dict[int, list[int]] = {}
    for i, j, _ in molecule.bonds:
        near.setdefault(i, []).append(j)
        near.setdefault(j, []).append(i)
    return near


def angles_and_torsions(molecule: Drawn) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int, int]]]:
    """All angles and proper torsions of its bonds."""
    near = neighbours_of(molecule)
    angles = [(i, j, k) for j, others in near.items() for i, k in itertools.combinations(others, 2)]
    return angles, [(a, i, j, b) for i, j, _ in molecule.bonds for a in near[i] for b in near[j] if len({a, i, j, b}) == 4]


def distances_in_bonds(molecule: Drawn) -> np.ndarray:
    """Number of bonds between each two atoms."""
    n = len(molecule.elements)
    apart = np.full((n, n), n)
    np.fill_diagonal(apart, 0)
    for i, j, _ in molecule.bonds:
        apart[i, j] = apart[j, i] = 1
    for k in range(n):
        apart = np.minimum(apart, apart[:, k, None] + apart[None, k])
    return apart


def benzamide() -> Drawn:
    """N-methylbenzamide: ring C1 to C6 with aromatic bonds, C7 = O1, N1, C8, then hydrogens; the amide is trans."""
    turns = np.radians(60 * np.arange(6))
    ring = np.stack([np.cos(turns), np.sin(turns), 0 * turns], axis=1)
    x = [*(1.40 * ring), np.array([2.90, 0.0, 0.0])]
    x.append(place_atom(x[6], x[0], x[1], 1.23, 120.5, 30.0))
    x.append(place_atom(x[6], x[0], x[1], 1.35, 116.0, -150.0))
    x.append(place_atom(x[8], x[6], x[0], 1.45, 121.0, 180.0))
    bonds = [(k, (k + 1) % 6, 4) for k in range(6)] + [(0, 6, 1), (6, 7, 2), (6, 8, 1), (8, 9, 1)]
    for k in range(1, 6):
        bonds.append((k, len(x), 1))
        x.append(2.48 * ring[k])
    bonds.append((8, len(x), 1))
    x.append(place_atom(x[8], x[6], x[0], 1.01, 119.0, 0.0))
    for torsion in (60.0, 180.0, -60.0):
        bonds.append((9, len(x), 1))
        x.append(place_atom(x[9], x[8], x[6], 1.09, 109.5, torsion))
    return Drawn("N-methylbenzamide", ["C"] * 7 + ["O", "N", "C"] + ["H"] * 9, np.array(x), bonds, {})


def benzamide_system() -> openmm.System:
    """Constants of the size that those of general Amber force fields have; lengths and angles are those of `benzamide`."""
    molecule = benzamide()
    x = molecule.positions_angstrom / 10
    system, bond, angle, torsion = empty_system(molecule)
    angles, torsions = angles_and_torsions(molecule)
    for i, j, _ in molecule.bonds:
        bond.addBond(i, j, float(np.linalg.norm(x[i] - x[j])), 3e5)
    for i, j, k in angles:
        u, v = x[i] - x[j], x[k] - x[j]
        angle.addAngle(i, j, k, float(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))), 500.0)
    barriers = {(0, 6): (2, np.pi, 2.0), (6, 8): (2, np.pi, 10.0), (8, 9): (3, 0.0, 0.3)}  # kJ/mol for each torsion
    for quad in torsions:
        torsion.addTorsion(*quad, *barriers.get((quad[1], quad[2]), (2, np.pi, 15.0)))
    near = neighbours_of(molecule)
    for centre in (*range(7), 8):
        first, second, third = near[centre]
        torsion.addTorsion(first, second, centre, third, 2, np.pi, 4.6)  # planar
    charges = [-0.08, *[-0.11] * 5, 0.62, -0.58, -0.50, -0.15, *[0.13] * 5, 0.31, 0.08, 0.08, 0.08]
    charges[0] -= sum(charges)
    kinds_of = {"C": (0.34, 0.36), "O": (0.296, 0.88), "N": (0.325, 0.71), "H": (0.25, 0.065)}
    nonbonded = openmm.NonbondedForce()
    for element, charge in zip(molecule.elements, charges, strict=True):
        nonbonded.addParticle(charge, *kinds_of[element])
    nonbonded.createExceptionsFromBonds([(i, j) for i, j, _ in molecule.bonds], 1 / 1.2, 0.5)
    system.addForce(nonbonded)
    return system


def write_files(folder: Path, molecule: Drawn, system: openmm.System) -> list[str]:
    """Write mine.sdf and mine.xml; return the assignments of the configuration."""
    (folder / "mine.sdf").write_text(molecule.v2000())
    (folder / "mine.xml").write_text(openmm.XmlSerializer.serialize(system))
    return ["system.name=sdf-xml", f"system.sdf={folder / 'mine.sdf'}", f"system.system_xml={folder / 'mine.xml'}"]
