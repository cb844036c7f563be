"""One particle in a plane with three wells on the diagonal, the toy of the published trajectory GAN.

V / E0 = 1e-4 (x^6 + y^6) - sum over c in {-1.5, 0, 1.5} of exp(-((x - c)^2 + (y - c)^2) / (2 * 0.8^2)), x and y in nm, with
E0 = 9.5 kT at 300 K: the potential that the published data were fitted by (facts/md.md, section 2). With a friction of
24.94 / ps for its mass of 1 amu it diffuses by D = 0.1 nm^2 / ps at 300 K, and a frame of those data is 1 ps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mdtraj
import numpy as np
import openmm

from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.units import kt_kj_mol

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig

DEPTH_KJ_MOL = 9.5 * kt_kj_mol(300.0)
CENTRES_NM = (-1.5, 0.0, 1.5)
WIDTH_NM = 0.8
WALL = 1e-4
PLANE_KJ_MOL_NM2 = 100.0  # holds the particle near z = 0, where V does not depend on z
MASS_AMU = 1.0


def reduced_energy(x_nm: np.ndarray, y_nm: np.ndarray, temperature_kelvin: float = 300.0) -> np.ndarray:
    """Return V / kT at points of the plane (without the part in z)."""
    wells = sum(np.exp(-((x_nm - c) ** 2 + (y_nm - c) ** 2) / (2 * WIDTH_NM**2)) for c in CENTRES_NM)
    energy: np.ndarray = DEPTH_KJ_MOL * (WALL * (x_nm**6 + y_nm**6) - wells) / kt_kj_mol(temperature_kelvin)
    return energy


def triple_well(config: SystemConfig) -> MolecularSystem:
    """Return the particle as a system of one atom."""
    system = openmm.System()
    system.addParticle(MASS_AMU)
    wells = " + ".join(f"exp(-((x-({c}))^2 + (y-({c}))^2) / {2 * WIDTH_NM**2!r})" for c in CENTRES_NM)
    expression = f"{DEPTH_KJ_MOL!r} * ({WALL!r} * (x^6 + y^6) - ({wells})) + {0.5 * PLANE_KJ_MOL_NM2!r} * z^2"
    force = openmm.CustomExternalForce(expression)
    force.addParticle(0, [])
    system.addForce(force)
    topology = mdtraj.Topology()
    residue = topology.add_residue("WEL", topology.add_chain())
    topology.add_atom("P", mdtraj.element.argon, residue)
    return MolecularSystem(
        name="triple-well",
        topology=topology,
        system_xml=openmm.XmlSerializer.serialize(system),
        positions_nm=np.zeros((1, 3)),
        temperature_kelvin=config.temperature_kelvin,
        description="one particle, three wells in a plane",
    )
