"""Alanine dipeptide, ACE-ALA-NME, built from internal coordinates: no file is read and nothing is downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from openmm import app

from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.forcefield import build_system, solvate
from hpc_molgen.systems.torsions import place_atom

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig

# atom, bonded to, angle with, torsion about; bond (nm), angle (degrees), torsion (degrees). Standard geometry of peptides
# (Engh and Huber 1991 for the backbone, ideal tetrahedra elsewhere); phi = -80, psi = 80 (C7eq), L at CA, trans amides.
_GEOMETRY: tuple[tuple[str, str, str, str, float, float, float], ...] = (
    ("ACE:CH3", "", "", "", 0.0, 0.0, 0.0),
    ("ACE:C", "ACE:CH3", "", "", 0.1520, 0.0, 0.0),
    ("ACE:O", "ACE:C", "ACE:CH3", "", 0.1229, 120.4, 0.0),
    ("ALA:N", "ACE:C", "ACE:CH3", "ACE:O", 0.1335, 116.6, 180.0),
    ("ACE:H1", "ACE:CH3", "ACE:C", "ALA:N", 0.1090, 109.5, 180.0),
    ("ACE:H2", "ACE:CH3", "ACE:C", "ALA:N", 0.1090, 109.5, -60.0),
    ("ACE:H3", "ACE:CH3", "ACE:C", "ALA:N", 0.1090, 109.5, 60.0),
    ("ALA:CA", "ALA:N", "ACE:C", "ACE:CH3", 0.1449, 121.9, 180.0),
    ("ALA:H", "ALA:N", "ACE:C", "ACE:CH3", 0.1010, 119.8, 0.0),
    ("ALA:C", "ALA:CA", "ALA:N", "ACE:C", 0.1522, 111.1, -80.0),
    ("ALA:CB", "ALA:CA", "ALA:N", "ACE:C", 0.1526, 110.1, 157.5),
    ("ALA:HA", "ALA:CA", "ALA:N", "ACE:C", 0.1090, 109.0, 38.5),
    ("ALA:HB1", "ALA:CB", "ALA:CA", "ALA:N", 0.1090, 109.5, 180.0),
    ("ALA:HB2", "ALA:CB", "ALA:CA", "ALA:N", 0.1090, 109.5, -60.0),
    ("ALA:HB3", "ALA:CB", "ALA:CA", "ALA:N", 0.1090, 109.5, 60.0),
    ("NME:N", "ALA:C", "ALA:CA", "ALA:N", 0.1335, 116.6, 80.0),
    ("ALA:O", "ALA:C", "ALA:CA", "ALA:N", 0.1229, 120.4, -100.0),
    ("NME:C", "NME:N", "ALA:C", "ALA:CA", 0.1449, 121.9, 180.0),
    ("NME:H", "NME:N", "ALA:C", "ALA:CA", 0.1010, 119.8, 0.0),
    ("NME:H1", "NME:C", "NME:N", "ALA:C", 0.1090, 109.5, 180.0),
    ("NME:H2", "NME:C", "NME:N", "ALA:C", 0.1090, 109.5, -60.0),
    ("NME:H3", "NME:C", "NME:N", "ALA:C", 0.1090, 109.5, 60.0),
)
_ATOMS = {
    "ACE": ("H1", "CH3", "H2", "H3", "C", "O"),
    "ALA": ("N", "H", "CA", "HA", "CB", "HB1", "HB2", "HB3", "C", "O"),
    "NME": ("N", "H", "C", "H1", "H2", "H3"),
}


def _build() -> tuple[app.Topology, np.ndarray]:
    topology = app.Topology()
    chain = topology.addChain()
    placed: dict[str, np.ndarray] = {}
    for name, a, b, c, bond_nm, angle_deg, torsion_deg in _GEOMETRY:
        if not a:
            placed[name] = np.zeros(3)
        elif not b:
            placed[name] = np.array([0.0, 0.0, bond_nm])
        else:
            third = placed[c] if c else np.array([1.0, 0.0, 0.0])
            placed[name] = place_atom(placed[a], placed[b], third, bond_nm, angle_deg, torsion_deg)
    positions = []
    for residue_name, names in _ATOMS.items():
        residue = topology.addResidue(residue_name, chain)
        for name in names:
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
            positions.append(placed[f"{residue_name}:{name}"])
    topology.createStandardBonds()
    return topology, np.array(positions)


def implicit(config: SystemConfig) -> MolecularSystem:
    """ff99SB-ILDN with OBC2 and the surface term as OpenMM's native GBSAOBCForce (`amber99_obc.xml`)."""
    topology, positions = _build()
    return build_system(
        config.name,
        topology,
        positions,
        ("amber99sbildn.xml", "amber99_obc.xml"),
        config.temperature_kelvin,
        source=config.name,
        description="amber99sbildn.xml + amber99_obc.xml (GBSAOBCForce), no cut-off, flexible",
    )


def ff96(config: SystemConfig) -> MolecularSystem:
    """ff96 with OBC1 and the surface term: the energy function of the published records of Boltzmann generators.

    These use openmmtools' AlanineDipeptideImplicit; here the parameters come from OpenMM's own files.
    """
    topology, positions = _build()
    return build_system(
        config.name,
        topology,
        positions,
        ("amber96.xml", "implicit/obc1.xml"),
        config.temperature_kelvin,
        source=config.name,
        description="amber96.xml + implicit/obc1.xml (OBC1, ACE surface term), no cut-off, flexible",
    )


def vacuum(config: SystemConfig) -> MolecularSystem:
    """ff99SB-ILDN without solvent."""
    topology, positions = _build()
    return build_system(
        config.name,
        topology,
        positions,
        ("amber99sbildn.xml",),
        config.temperature_kelvin,
        source=config.name,
        description="amber99sbildn.xml in vacuum, no cut-off, flexible",
    )


def water(config: SystemConfig) -> MolecularSystem:
    """ff99SB-ILDN in a 3 nm box of TIP3P water (PME)."""
    return solvate(vacuum(config), vacuum(config).positions_nm, "tip3p.xml", 3.0, "amber99sbildn.xml")
