"""No molecule: time series of collective variables that came without structures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mdtraj
import numpy as np
import openmm

from hpc_molgen.systems.base import MolecularSystem

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig


def series(config: SystemConfig) -> MolecularSystem:
    """Return a system without atoms, which stages that work on structures refuse."""
    return MolecularSystem(
        name="time series",
        topology=mdtraj.Topology(),
        system_xml=openmm.XmlSerializer.serialize(openmm.System()),
        positions_nm=np.zeros((0, 3)),
        temperature_kelvin=config.temperature_kelvin,
        description="time series without structures",
    )
