"""The fastest molecular dynamics of the toy in the suite `trajectories`: a loop of numpy over many copies at once."""

from __future__ import annotations

import numpy as np

from hpc_molgen.systems.triple_well import CENTRES_NM, DEPTH_KJ_MOL, WALL, WIDTH_NM
from hpc_molgen.units import kt_kj_mol


class NumpyWells:
    """Brownian particles in the triple well by the Euler-Maruyama scheme, as the runs of the suite simulate it by OpenMM.

    Parameters
    ----------
    n : int
        Copies.
    timestep_ps, diffusion_nm2_ps : float
        kT / (mass friction) of the run.
    """

    def __init__(self, n: int, timestep_ps: float, diffusion_nm2_ps: float, temperature_kelvin: float, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._depth = np.float32(DEPTH_KJ_MOL / kt_kj_mol(temperature_kelvin))
        self._mobility = np.float32(diffusion_nm2_ps * timestep_ps)
        self._kick = np.float32(np.sqrt(2 * diffusion_nm2_ps * timestep_ps))
        centres = self._generator.choice(np.array(CENTRES_NM, np.float32), n)
        self.positions_nm = np.stack([centres, centres])  # (2, n)

    def step(self, n_steps: int) -> None:
        """Take steps."""
        at = self.positions_nm
        for _ in range(n_steps):
            slope = np.float32(6 * WALL) * at * (at * at) ** 2
            for centre in CENTRES_NM:
                away = at - np.float32(centre)
                slope += away * (np.exp((away * away).sum(axis=0) * np.float32(-0.5 / WIDTH_NM**2)) / np.float32(WIDTH_NM**2))
            at -= self._mobility * self._depth * slope
            at += self._kick * self._generator.standard_normal(at.shape, dtype=np.float32)

    def frames(self, n_frames: int, steps_per_frame: int) -> np.ndarray:
        """Return further frames, shape=(n_frames, n, 2)."""
        found = np.empty((n_frames, self.positions_nm.shape[1], 2), np.float32)
        for frame in range(n_frames):
            self.step(steps_per_frame)
            found[frame] = self.positions_nm.T
        return found
