"""What dynamics changes in an openmm.System: constraints, heavy hydrogens, a bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import openmm
from openmm import unit

from hpc_molgen.systems.base import MolecularSystem


@dataclass(frozen=True)
class TorsionBias:
    """A static bias on one torsion: V(a) = sum_k cos_k cos(k a) + sin_k sin(k a), k = 1..n, in kJ/mol.

    Attributes
    ----------
    atoms : tuple of int
        The four atoms of the torsion.
    cos_kj_mol, sin_kj_mol : tuple of float
        Fourier coefficients.
    """

    atoms: tuple[int, int, int, int]
    cos_kj_mol: tuple[float, ...]
    sin_kj_mol: tuple[float, ...]

    def energy_kj_mol(self, angle_rad: np.ndarray) -> np.ndarray:
        """Bias energy at `angle_rad`, same shape."""
        k = np.arange(1, len(self.cos_kj_mol) + 1)
        phase = np.asarray(angle_rad)[..., None] * k
        energy: np.ndarray = np.cos(phase) @ np.array(self.cos_kj_mol) + np.sin(phase) @ np.array(self.sin_kj_mol)
        return energy

    def add_to(self, system: openmm.System) -> None:
        """Add the bias as a force of group 1; its energy differs from `energy_kj_mol` by a constant."""
        force = openmm.PeriodicTorsionForce()
        for k, (c, s) in enumerate(zip(self.cos_kj_mol, self.sin_kj_mol, strict=True), start=1):
            force.addTorsion(*self.atoms, k, float(np.arctan2(s, c)), float(np.hypot(c, s)))
        force.setForceGroup(1)
        system.addForce(force)


_SQUARE = "((x - x0)^2 + (y - y0)^2 + (z - z0)^2)"


@dataclass(frozen=True)
class Restraint:
    """Springs that hold atoms where they are told: k / 2 |x - x0|^2, with k in kJ/mol/nm^2, which `NAME` sets in a context.

    Attributes
    ----------
    atoms : np.ndarray, shape=(n,)
    """

    atoms: np.ndarray

    NAME: ClassVar[str] = "restraint_kj_mol_nm2"

    def add_to(self, system: openmm.System) -> openmm.CustomExternalForce:
        """Add the springs, at the origin and without strength, as a force of group 1; return it."""
        distance = "periodicdistance(x, y, z, x0, y0, z0)^2" if system.usesPeriodicBoundaryConditions() else _SQUARE
        force = openmm.CustomExternalForce(f"0.5 * {self.NAME} * {distance}")
        force.addGlobalParameter(self.NAME, 0.0)
        for name in ("x0", "y0", "z0"):
            force.addPerParticleParameter(name)
        for atom in self.atoms:
            force.addParticle(int(atom), [0.0, 0.0, 0.0])
        force.setForceGroup(1)
        system.addForce(force)
        return force


def constrain_hydrogens(system: openmm.System, molecular_system: MolecularSystem) -> None:
    """Replace the bond term of every X-H bond by a constraint at its equilibrium length (for speed baselines)."""
    hydrogens = {atom.index for atom in molecular_system.topology.atoms if atom.element.symbol == "H"}
    for force in system.getForces():
        if not isinstance(force, openmm.HarmonicBondForce):
            continue
        for index in range(force.getNumBonds()):
            i, j, length, _ = force.getBondParameters(index)
            if i in hydrogens or j in hydrogens:
                system.addConstraint(i, j, length)
                force.setBondParameters(index, i, j, length, 0.0)


def _move_mass_to_hydrogens(system: openmm.System, molecular_system: MolecularSystem, mass_amu: float) -> None:
    for a, b in molecular_system.topology.bonds:
        light, heavy = (a, b) if a.element.symbol == "H" else (b, a)
        if light.element.symbol != "H" or heavy.element.symbol == "H":
            continue
        moved = mass_amu * unit.dalton - system.getParticleMass(light.index)
        system.setParticleMass(light.index, mass_amu)
        system.setParticleMass(heavy.index, system.getParticleMass(heavy.index) - moved)


def modified_system(
    system: MolecularSystem,
    *,
    constraints: str = "none",
    hydrogen_mass_amu: float | None = None,
    bias: TorsionBias | None = None,
) -> openmm.System:
    """Return the system for dynamics: its own forces in group 0, the bias in group 1.

    Parameters
    ----------
    constraints : str
        "none", or "hbonds" for constrained X-H bonds.
    hydrogen_mass_amu : float, optional
        Heavy hydrogens: mass moved from the bonded heavy atom.
    """
    openmm_system = openmm.XmlSerializer.deserialize(system.system_xml)
    for force in openmm_system.getForces():
        force.setForceGroup(0)
    if constraints == "hbonds":
        constrain_hydrogens(openmm_system, system)
    if hydrogen_mass_amu is not None:
        _move_mass_to_hydrogens(openmm_system, system, hydrogen_mass_amu)
    if bias is not None:
        bias.add_to(openmm_system)
    return openmm_system
