"""Reference frames of a run: reading them, and splitting them by trajectory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.config import is_held_out
from hpc_molgen.ensemble import Ensemble, read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.files import read_json, write_json
from hpc_molgen.reweighting import normalised_weights
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.observables import make_observables
from hpc_molgen.trajectories import TrajectorySet, observe, read_trajectories

if TYPE_CHECKING:
    from hpc_molgen.representations.base import Representation
    from hpc_molgen.representations.latent import LatentVariables
    from hpc_molgen.run import Run

MOST_CHECKED = 2000  # held-out frames that go through a representation and back


def load_split(run: Run) -> tuple[Ensemble, Ensemble]:
    """Return the frames of the training walkers and those of the held-out walkers.

    Raises
    ------
    InputError
        When the reference stage has written nothing, or one of the two parts is empty.
    """
    sides = _sides(run)
    train, held_out = (
        Ensemble.concatenate([read_ensemble(path, run.system) for _, path in sides[side]]) for side in (False, True)
    )
    return train, held_out


def load_series(run: Run, latent: LatentVariables | None = None) -> tuple[TrajectorySet, TrajectorySet]:
    """Return the collective variables of training and of held-out trajectories, split by trajectory.

    Read where they came as time series, measured on the walkers' frames otherwise (`representation.cvs`; latent coordinates by
    `latent`, or by what `featurize` saved). Series that share frames are on one side; of each label the same share is held out,
    and of an unseen one all.

    Raises
    ------
    InputError
        As `load_split`.
    """
    fraction, path = run.config.reference.held_out_fraction, run.path("reference", "series.h5")
    if path.is_file():
        _refuse_latent(run)
        found = read_trajectories(path)
        first = dict(reversed(list(zip(found.groups, found.conditions, strict=True))))
        order: dict[int, int] = {}  # of each group among those with its label
        of_label: dict[tuple[float, ...], int] = {}
        for group in dict.fromkeys(found.groups):
            order[group] = of_label.get(first[group], 0)
            of_label[first[group]] = order[group] + 1
        aside = np.array([is_held_out(order[group], fraction) for group in found.groups])
        _check_parts(run, int((~aside).sum()), int(aside.sum()))
        return found[np.flatnonzero(~aside).tolist()], found[np.flatnonzero(aside).tolist()]
    if run.config.representation.name == "latent" and latent is None:
        latent = _saved_latent(run)
    sides = _sides(run)
    labels, dt_ps = run.config.reference.labels, run.config.reference.save_every_ps
    measured = make_observables(run.config.representation.cvs, run.system, run.system.positions_nm)
    series = []
    for side in (False, True):
        positions = (read_ensemble(path, run.system).positions_nm for _, path in sides[side])
        stems = [path.stem for _, path in sides[side]]
        if latent is None:
            found = observe(positions, measured, dt_ps, stems)
        else:
            found = TrajectorySet(tuple(map(latent.measure, positions)), latent.names, latent.units, dt_ps, tuple(stems))
        if labels:
            rows = tuple((labels[number % len(labels)].temperature_kelvin,) for number, _ in sides[side])
            found = dataclasses.replace(found, condition_names=("temperature_kelvin",), conditions=rows)
        series.append(found)
    return series[0], series[1]


def _sides(run: Run) -> dict[bool, list[tuple[int, Path]]]:
    """Numbers and files of the walkers to train on (False) and of those held out (True)."""
    config = run.config.reference
    n_labels = max(1, len(config.labels))
    sides: dict[bool, list[tuple[int, Path]]] = {False: [], True: []}
    for number, path in _walkers(run):
        unseen = bool(config.labels) and config.labels[number % n_labels].unseen
        sides[unseen or is_held_out(number // n_labels, config.held_out_fraction)].append((number, path))
    _check_parts(run, *map(len, sides.values()))
    return sides


def _walkers(run: Run) -> list[tuple[int, Path]]:
    """Numbers and files of the walkers of the reference, all of which must be there."""
    paths = sorted(run.path("reference").glob("walker-*.h5"))
    numbers = [int(path.stem.removeprefix("walker-")) for path in paths]
    expected = len(run.details("reference")["walkers"])
    if numbers != list(range(expected)):
        missing = sorted(set(range(expected)) - set(numbers))
        raise InputError(
            f"{run.path('reference')}: walkers {missing} of {expected} are missing; delete done.json there and run the stage "
            "'reference' again: it makes those alone"
        )
    return list(zip(numbers, paths, strict=True))


def _check_parts(run: Run, n_train: int, n_held_out: int) -> None:
    if not n_train or not n_held_out:
        raise InputError(
            f"{run.path('reference')}: {n_train + n_held_out} trajectories cannot be split into training and held-out ones; "
            "run the stage 'reference', or give at least two trajectories"
        )


def fit_representation(run: Run) -> Representation:
    """Return the representation of the configuration, its constants learned from the training trajectories.

    Of residues it also writes featurize/residues.json, for people.
    Of collective variables it also writes featurize/train.npy and held_out.npy, the channels of all frames in a row, which
    training reads from disk where it needs them.
    """
    import torch

    from hpc_molgen.representations.base import representation_class
    from hpc_molgen.representations.residue import ResidueRepresentation

    config = run.config.representation
    kind = representation_class(config.name)
    if not kind.needs_frames:
        torch.set_num_threads(1)  # small matrices: more threads only wait for each other
        return kind.fit(run.system, config, np.empty((0, run.system.n_atoms, 3)), np.empty(0))
    if not config.is_series:
        train, _ = load_split(run)
        fitted = kind.fit(run.system, config, train.positions_nm, boltzmann_weights(train, training_log_temperature(run)))
        if isinstance(fitted, ResidueRepresentation):
            write_json(run.path("featurize", "residues.json"), fitted.about())
        return fitted
    from hpc_molgen.representations.cvs import CollectiveVariables

    latent = _learn_latent(run) if config.name == "latent" else None
    sides = load_series(run, latent)
    variables = CollectiveVariables.of_series(run.system, *sides) if latent is None else latent.standardised(*sides)
    for name, side in zip(("train", "held_out"), sides, strict=True):
        shape = sum(side.n_frames), variables.n_channels
        written = np.lib.format.open_memmap(run.path("featurize", f"{name}.npy"), "w+", np.float32, shape)
        first = 0
        for part in side.features:
            written[first : first + len(part)] = variables.channels(np.asarray(part))
            first += len(part)
        written.flush()
        described = {"n_frames": list(side.n_frames), "labels": list(side.labels), "conditions": list(side.conditions)}
        write_json(run.path("featurize", f"{name}.json"), described)
    return variables


def describe(run: Run, representation: Representation) -> dict[str, Any]:
    """Return the figures of the featurize stage: sizes, what weights would be of, and what of held-out frames is lost."""
    found: dict[str, Any] = {"n_torus": representation.n_torus, "n_euclidean": representation.n_euclidean}
    found |= {"target": representation.target}
    found |= {"density": representation.density, "density_note": representation.density_note}
    if representation.density != "exact" and not run.config.representation.is_series:
        _, held_out = load_split(run)
        chosen = np.arange(0, len(held_out), -(-len(held_out) // MOST_CHECKED))
        found["round_trip"] = representation.round_trip(held_out.positions_nm[chosen])
    return found


def why_unweighted(run: Run) -> str:
    """Return in words why samples of structures have no importance weights; "" where they have."""
    found = run.details("featurize")
    if found.get("density") == "none":
        name = run.config.representation.name
        return f"the representation '{name}' has no density of conformations: {found['density_note']}"
    return "" if run.config.correct.weights else "correct.weights is false"


def _learn_latent(run: Run) -> LatentVariables:
    """Learn latent coordinates from the training walkers alone, one in memory at a time; write featurize/latent.json."""
    from hpc_molgen.representations.latent import LatentVariables

    if run.path("reference", "series.h5").is_file():
        _refuse_latent(run)
    paths = [path for _, path in _sides(run)[False]]

    def walkers() -> Iterator[np.ndarray]:
        return (read_ensemble(path, run.system).positions_nm for path in paths)

    learned = LatentVariables.learn(run.system, run.config.representation, walkers, derive_seed(run.config.seed, "latent"))
    write_json(run.path("featurize", "latent.json"), learned.about | {"walkers": [path.stem for path in paths]})
    return learned


def _saved_latent(run: Run) -> LatentVariables:
    from hpc_molgen.representations.base import load_representation
    from hpc_molgen.representations.latent import LatentVariables

    path = run.path("featurize", "representation.safetensors")
    found = load_representation(path, run.system)
    if not isinstance(found, LatentVariables):
        raise InputError(f"{path}: holds the representation '{found.name}', not 'latent'; run the stage 'featurize' again")
    return found


def _refuse_latent(run: Run) -> None:
    if run.config.representation.name == "latent":
        raise InputError(
            "representation.name 'latent' learns from structures, and imported time series have none: use 'cvs', or give "
            "reference.trajectories with structures (.xtc, .dcd, .h5)"
        )


@dataclass(frozen=True)
class Channels:
    """Series of one side as networks see them, one after the other.

    Attributes
    ----------
    values : np.ndarray, shape=(n_frames, n_channels)
        A memory map.
    n_frames : list of int
        Length of each series.
    conditions : np.ndarray, shape=(n_series, n_conditions)
        What they differ by, as the user names it.
    """

    values: np.ndarray
    n_frames: list[int]
    conditions: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """The frame after the last one of each series, shape=(n_series,)."""
        return np.cumsum(self.n_frames)


def load_channels(directory: Path, side: str) -> Channels:
    """Return the channels of one side, "train" or "held_out", that the featurize stage left in its directory."""
    values = np.load(directory / f"{side}.npy", mmap_mode="r", allow_pickle=False)
    described = read_json(directory / f"{side}.json")
    n_frames = [int(n) for n in described["n_frames"]]
    conditions = np.array(described["conditions"], dtype=np.float64).reshape(len(n_frames), -1)
    return Channels(values, n_frames, conditions)


def boltzmann_weights(ensemble: Ensemble, log_temperature: float = 0.0) -> np.ndarray:
    """Return normalised weights (n,) that turn frames (of biased or of hot MD, say) into Boltzmann averages.

    Parameters
    ----------
    log_temperature : float
        ln(T / T0) of the temperature of these averages, T0 being the system's.
    """
    if not log_temperature:
        return normalised_weights(ensemble.log_weight)
    return normalised_weights(ensemble.log_weight + (1 - np.exp(-log_temperature)) * ensemble.reduced_energy)


def training_log_temperature(run: Run) -> float:
    """Return ln(T / T0) of the walkers that training sees, T0 being the system's temperature."""
    kelvin = run.system.temperature_kelvin
    return float(np.log((run.config.reference.training_kelvin or kelvin) / kelvin))
