"""Energies and forces one conformation at a time in OpenMM: the yardstick of the batched engine."""

from __future__ import annotations

import numpy as np
import openmm

from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.systems.base import MolecularSystem


class OpenMMLoop:
    """The yardstick: one conformation after the other on OpenMM's Reference platform, one thread, double precision."""

    def __init__(self, system: MolecularSystem) -> None:
        self._engine, self._kt_kj_mol = Engine(system, "Reference"), system.kt_kj_mol
        molecule = openmm.XmlSerializer.deserialize(system.system_xml)
        platform = openmm.Platform.getPlatformByName("Reference")
        self._context = openmm.Context(molecule, openmm.VerletIntegrator(1e-3), platform)

    def energies(self, positions_nm: np.ndarray) -> np.ndarray:
        """Energies (n,) in kJ/mol of positions (n, n_atoms, 3)."""
        energies: np.ndarray = self._engine.reduced_energy(positions_nm) * self._kt_kj_mol
        return energies

    def energies_and_forces(self, positions_nm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energies (n,) in kJ/mol and forces (n, n_atoms, 3) in kJ/mol/nm."""
        energies, forces = np.empty(len(positions_nm)), np.empty(positions_nm.shape)
        for index, positions in enumerate(positions_nm):
            self._context.setPositions(positions)
            state = self._context.getState(getEnergy=True, getForces=True)
            energies[index] = state.getPotentialEnergy()._value
            forces[index] = state.getForces(asNumpy=True)._value
        return energies, forces
