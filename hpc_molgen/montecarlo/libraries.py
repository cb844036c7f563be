"""Conformations of a peptide by parallel tempering, and the peptides that are fragments of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpc_molgen import interrupts
from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.bias import spread_structures
from hpc_molgen.dynamics.langevin import minimise
from hpc_molgen.dynamics.modified import modified_system
from hpc_molgen.dynamics.tempering import ParallelTempering, geometric_ladder
from hpc_molgen.ensemble import Ensemble
from hpc_molgen.montecarlo.hamiltonian import LIGHTEST_AMU
from hpc_molgen.montecarlo.windows import Window
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system


def fragment_of(system: MolecularSystem, residues: Sequence[str], window: Window) -> MolecularSystem:
    """Return the capped peptide of a window, in the force field and at the temperature of the whole one.

    Parameters
    ----------
    system : MolecularSystem
        A capped peptide that this package has built (`system.peptide`).
    residues : sequence of str
        All its residues without caps, as the force field names them (`parse_sequence`).
    window : Window
    """
    own = " ".join(residues[number - 1] for number in window.residues)
    config = SystemConfig(
        name="peptide", sequence=own, force_field=system.force_field, temperature_kelvin=system.temperature_kelvin
    )
    return load_system(config)


@dataclass(frozen=True)
class Tempering:
    """How conformations are made by parallel tempering: flexible, 2 fs, hydrogens of 3.024 u (the suite `tempering`'s check).

    Attributes
    ----------
    length_ps : float
        Of each copy, of which the first `discarded` share is not kept.
    starts : str
        "spread": structures that cover the torsions; "given": the system's own, for all copies.
    save_every_ps : float
        Swaps are tried as often.
    """

    n_ladders: int
    n_temperatures: int
    length_ps: float
    starts: Literal["spread", "given"] = "spread"
    highest_kelvin: float = 600.0
    save_every_ps: float = 0.1
    timestep_fs: float = 2.0
    discarded: float = 0.1
    minimise_iterations: int = 200


def tempered_library(
    system: MolecularSystem, settings: Tempering, seed: int, go_on: Callable[[], bool] = lambda: True
) -> Ensemble:
    """Sample a molecule by parallel tempering; frames of its own temperature.

    Parameters
    ----------
    system : MolecularSystem
    settings : Tempering
    seed : int
    go_on : callable
        Asked now and then; where it says no, the run ends before its time.

    Returns
    -------
    Ensemble
        Ordered by ladder, which is its trajectory.
    """
    batched = BatchedSystem(modified_system(system, hydrogen_mass_amu=LIGHTEST_AMU), "float32", threads=1)
    shape = settings.n_ladders, settings.n_temperatures
    n_copies = shape[0] * shape[1]
    given = settings.starts == "given"
    starts = np.repeat(system.positions_nm[None], n_copies, axis=0) if given else spread_structures(system, n_copies, seed)
    starts, _ = minimise(batched, starts, max_iterations=settings.minimise_iterations)
    ladders = ParallelTempering(
        batched, starts.reshape(*shape, system.n_atoms, 3),
        geometric_ladder(system.temperature_kelvin, settings.highest_kelvin, settings.n_temperatures), seed,
        steps_per_swap=round(settings.save_every_ps * 1e3 / settings.timestep_fs), timestep_fs=settings.timestep_fs,
    )  # fmt: skip
    n_frames, frames = max(2, round(settings.length_ps / settings.save_every_ps)), list[np.ndarray]()
    while len(frames) < n_frames and (len(frames) < 2 or go_on()):
        interrupts.check()
        ladders.run(1)
        frames.append(ladders.coldest_nm.astype(np.float32))
    kept = np.array(frames)[int(settings.discarded * len(frames)) :].swapaxes(0, 1)
    number, time_ps = np.arange(shape[0]), settings.save_every_ps * np.arange(kept.shape[1])
    return Ensemble.create(
        system, kept.reshape(-1, system.n_atoms, 3), trajectory=np.repeat(number, kept.shape[1]),
        time_ps=np.tile(time_ps, shape[0]),
    )  # fmt: skip
