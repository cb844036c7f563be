"""Hamiltonian Monte Carlo in Cartesian coordinates, many molecules at once: exact moves that need no scales of the molecule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpc_molgen.dynamics.batched import BatchedSystem

BEST_ACCEPTANCE = 0.8
ADAPTATION = 0.5  # change of ln(time step) for each unit of acceptance missed
LONGEST_FS = 4.0
LIGHTEST_AMU = 3.024  # masses do not enter the distribution: heavy hydrogens allow longer steps


@dataclass
class HamiltonianMoves:
    """Moves by `n_steps` of velocity Verlet from fresh velocities, accepted by the change of total energy.

    Duane, Kennedy, Pendleton and Roweth (1987, Phys. Lett. B 195, 216). The canonical distribution of the molecule stays as it
    is, with any time step, which is why `timestep_fs` may be tuned; not while samples are kept. One step is a Langevin step
    with the test of Metropolis (`mala.py`) in Cartesian coordinates. For ACE-(ALA)4-NME ten of them gave five times the
    effective samples of the energy a CPU second that `mala.py` gives in whitened internal coordinates, which it must decode.

    Attributes
    ----------
    batched : BatchedSystem
        In float64.
    kt_kj_mol : float
    n_steps : int
    timestep_fs : float
    """

    batched: BatchedSystem
    kt_kj_mol: float
    n_steps: int
    timestep_fs: float = 1.5

    def move(self, positions_nm: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Move every molecule once.

        Parameters
        ----------
        positions_nm : np.ndarray, shape=(n, n_atoms, 3)

        Returns
        -------
        positions_nm : np.ndarray, shape=(n, n_atoms, 3), float64
        energy_kj_mol : np.ndarray, shape=(n,)
        accepted : np.ndarray, shape=(n,), bool
        """
        masses, dt_ps = np.maximum(self.batched.terms.masses_amu, LIGHTEST_AMU)[:, None], self.timestep_fs * 1e-3
        x = np.array(positions_nm, dtype=np.float64)
        velocity = generator.standard_normal(x.shape) * np.sqrt(self.kt_kj_mol / masses)
        energy, force = self.batched.energies_and_forces(x)
        first, before = energy, energy + _kinetic(masses, velocity)
        with np.errstate(all="ignore"):  # a molecule that flies apart is refused
            for _ in range(self.n_steps):
                velocity = velocity + 0.5 * dt_ps * force / masses
                x = x + dt_ps * velocity
                energy, force = self.batched.energies_and_forces(x)
                velocity = velocity + 0.5 * dt_ps * force / masses
            change = (energy + _kinetic(masses, velocity) - before) / self.kt_kj_mol
            accepted = np.log1p(-generator.random(len(x))) < -np.nan_to_num(change, nan=np.inf)
        moved = np.where(accepted[:, None, None], x, positions_nm)
        return moved - moved.mean(axis=1, keepdims=True), np.where(accepted, energy, first), accepted

    def tune(self, acceptance: float) -> None:
        """Change the time step so that the acceptance comes nearer to the best one."""
        factor = math.exp(ADAPTATION * (acceptance - BEST_ACCEPTANCE))
        self.timestep_fs = min(LONGEST_FS, self.timestep_fs * factor)


def _kinetic(masses_amu: np.ndarray, velocity_nm_ps: np.ndarray) -> np.ndarray:
    energy: np.ndarray = 0.5 * (masses_amu * velocity_nm_ps**2).sum(axis=(1, 2))
    return energy
