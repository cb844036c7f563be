"""A static bias that flattens the free energy along one torsion, from a relaxed scan."""

from __future__ import annotations

import contextlib

import numpy as np
import openmm
from openmm import unit
from scipy.stats import qmc

from hpc_molgen.dynamics.modified import TorsionBias
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import Quad, rotatable_torsions, set_torsion


def spread_structures(system: MolecularSystem, n: int, seed: int) -> np.ndarray:
    """Return `n` unrelaxed conformations whose rotatable torsions cover the torus evenly (scrambled Sobol points).

    Returns
    -------
    np.ndarray, shape=(n, n_atoms, 3)
    """
    quads = rotatable_torsions(system.topology)
    if not quads:
        return np.repeat(system.positions_nm[None], n, axis=0)
    sobol = qmc.Sobol(len(quads), seed=derive_seed(seed, "spread structures"))
    points = sobol.random_base2(int(np.ceil(np.log2(max(n, 2)))))[:n]
    structures = []
    for point in points:
        positions = system.positions_nm
        for quad, value in zip(quads, point, strict=True):
            positions = set_torsion(system.topology, positions, quad, 2 * np.pi * value - np.pi)
        structures.append(positions)
    return np.array(structures)


def _restrained_context(system: MolecularSystem, atoms: Quad) -> openmm.Context:
    openmm_system = openmm.XmlSerializer.deserialize(system.system_xml)
    for force in openmm_system.getForces():
        force.setForceGroup(0)
    restraint = openmm.CustomTorsionForce("strength*(1-cos(theta-centre))")
    restraint.addGlobalParameter("strength", 2000.0)
    restraint.addGlobalParameter("centre", 0.0)
    restraint.addTorsion(*atoms, [])
    restraint.setForceGroup(1)
    openmm_system.addForce(restraint)
    platform = openmm.Platform.getPlatformByName("Reference" if system.n_atoms < 300 else "CPU")
    return openmm.Context(openmm_system, openmm.VerletIntegrator(1e-3), platform)


def flattening_bias(
    system: MolecularSystem, atoms: Quad, seed: int, *, n_grid: int = 18, n_starts: int = 8, n_harmonics: int = 5
) -> TorsionBias:
    """Return minus the relaxed energy along a torsion, as a Fourier series.

    At each of `n_grid` values of the torsion the molecule is minimised under a stiff restraint from `n_starts`
    structures whose other rotatable torsions are spread; the lowest energy counts, capped at 60 kJ/mol above the
    minimum. Reweighting by exp(+V/kT) makes any such bias exact; it only has to lower the barriers.
    """
    context = _restrained_context(system, atoms)
    starts = spread_structures(system, n_starts, seed)
    grid = -np.pi + 2 * np.pi * np.arange(n_grid) / n_grid
    energy = np.full((n_grid, n_starts), np.inf)
    for column, start in enumerate(starts):
        for row, angle in enumerate(grid):
            context.setParameter("centre", float(angle))
            context.setPositions(set_torsion(system.topology, start, atoms, float(angle)))
            with contextlib.suppress(openmm.OpenMMException):  # a clash beyond repair: another start counts
                openmm.LocalEnergyMinimizer.minimize(context, tolerance=5.0, maxIterations=150)
                state = context.getState(getEnergy=True, groups={0})
                energy[row, column] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    profile = np.min(np.where(np.isfinite(energy), energy, np.inf), axis=1)
    if not np.isfinite(profile).any():
        raise InputError("reference.bias_torsion: no conformation of the scan has a finite energy; check the system")
    profile = np.minimum(profile - profile.min(), 60.0)
    k = np.arange(1, n_harmonics + 1)
    cosines = -2 * (profile @ np.cos(np.outer(grid, k))) / n_grid
    sines = -2 * (profile @ np.sin(np.outer(grid, k))) / n_grid
    return TorsionBias(atoms, tuple(float(c) for c in cosines), tuple(float(s) for s in sines))
