"""Reference frames of a run: reading them, and splitting them by trajectory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpc_molgen.config import n_held_out
from hpc_molgen.ensemble import Ensemble, read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.reweighting import normalised_weights

if TYPE_CHECKING:
    from hpc_molgen.run import Run


def is_held_out(walker: int, fraction: float) -> bool:
    """Spread the held-out walkers evenly: one of two for a fraction of 0.5, one of four for 0.25."""
    return n_held_out(walker + 1, fraction) > n_held_out(walker, fraction)


def load_split(run: Run) -> tuple[Ensemble, Ensemble]:
    """Return the frames of the training walkers and those of the held-out walkers.

    Raises
    ------
    InputError
        When the reference stage has written nothing, or one of the two parts is empty.
    """
    paths = sorted(run.path("reference").glob("walker-*.h5"))
    numbers = [int(path.stem.removeprefix("walker-")) for path in paths]
    expected = len(run.details("reference")["walkers"])
    if numbers != list(range(expected)):
        missing = sorted(set(range(expected)) - set(numbers))
        raise InputError(
            f"{run.path('reference')}: walkers {missing} of {expected} are missing; delete done.json there and run the stage "
            "'reference' again: it makes those alone"
        )
    parts: dict[bool, list[Ensemble]] = {False: [], True: []}
    for number, path in zip(numbers, paths, strict=True):
        parts[is_held_out(number, run.config.reference.held_out_fraction)].append(read_ensemble(path, run.system))
    if not parts[False] or not parts[True]:
        raise InputError(
            f"{run.path('reference')}: {len(paths)} trajectories cannot be split into training and held-out ones; "
            "run the stage 'reference', or give at least two trajectories"
        )
    return Ensemble.concatenate(parts[False]), Ensemble.concatenate(parts[True])


def boltzmann_weights(ensemble: Ensemble) -> np.ndarray:
    """Return normalised weights (n,) that turn frames (of biased MD, say) into Boltzmann averages."""
    return normalised_weights(ensemble.log_weight)
