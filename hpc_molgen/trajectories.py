"""Sets of trajectories of collective variables, and their files."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_molgen.errors import InputError
from hpc_molgen.files import appearing_whole
from hpc_molgen.systems.observables import Observable, values_of


@dataclass(frozen=True)
class TrajectorySet:
    """Time series of features, ragged where trajectories differ in length; indexing it selects trajectories.

    Attributes
    ----------
    features : tuple of np.ndarray, each of shape=(n_frames, n_features)
    feature_names, units : tuple of str
        One for each feature.
    dt_ps : float
        Time between frames; nan where the source names no unit of time.
    labels : tuple of str
        One for each trajectory: where it comes from.
    groups : tuple of int
        Trajectories of one group share frames and belong on one side of a split; each is a group of its own by default.
    condition_names : tuple of str
        What trajectories differ by, such as "temperature_kelvin"; () where they are all alike.
    conditions : tuple of tuple of float
        Values of these for each trajectory.
    """

    features: tuple[np.ndarray, ...]
    feature_names: tuple[str, ...]
    units: tuple[str, ...]
    dt_ps: float
    labels: tuple[str, ...]
    groups: tuple[int, ...] = ()
    condition_names: tuple[str, ...] = ()
    conditions: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.features:
            raise InputError("a set of trajectories needs at least one trajectory")
        n = len(self.feature_names)
        if len(self.units) != n or len(self.labels) != len(self.features):
            raise InputError(f"{n} features need {n} units, and {len(self.features)} trajectories as many labels")
        if not self.groups:
            object.__setattr__(self, "groups", tuple(range(len(self.features))))
        if len(self.groups) != len(self.features):
            raise InputError(f"{len(self.features)} trajectories with {len(self.groups)} groups")
        if not self.conditions:
            object.__setattr__(self, "conditions", ((),) * len(self.features))
        wrong = any(len(row) != len(self.condition_names) for row in self.conditions)
        if wrong or len(self.conditions) != len(self.features):
            raise InputError(f"{len(self.features)} trajectories need as many values of {list(self.condition_names)}")
        for label, series in zip(self.labels, self.features, strict=True):
            if series.ndim != 2 or series.shape[1] != n:
                raise InputError(f"{label}: features of shape {series.shape}, expected (n_frames, {n})")
            if not np.isfinite(series).all():
                raise InputError(f"{label}: {np.count_nonzero(~np.isfinite(series))} values are not finite")

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int | slice | Sequence[int]) -> TrajectorySet:
        chosen = np.atleast_1d(np.arange(len(self))[index]).tolist()
        return dataclasses.replace(
            self,
            features=tuple(self.features[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            conditions=tuple(self.conditions[i] for i in chosen),
        )

    @property
    def n_frames(self) -> tuple[int, ...]:
        """Length of each trajectory."""
        return tuple(len(series) for series in self.features)

    def write(self, path: Path, attributes: dict[str, Any] | None = None) -> None:
        """Write an HDF5 file with one data set per trajectory, and `attributes` of the group `hpc_molgen`."""
        with appearing_whole(path) as partial, h5py.File(partial, "w") as file:
            group = file.create_group("trajectories")
            for number, (label, series) in enumerate(zip(self.labels, self.features, strict=True)):
                own = {"label": label, "group": self.groups[number], "conditions": self.conditions[number]}
                group.create_dataset(f"{number:06d}", data=series).attrs.update(own)
            file.attrs["condition_names"] = list(self.condition_names)
            file.attrs.update({"feature_names": list(self.feature_names), "units": list(self.units), "dt_ps": self.dt_ps})
            file.create_group("hpc_molgen").attrs.update(attributes or {})

    @classmethod
    def concatenate(cls, parts: Sequence[TrajectorySet]) -> TrajectorySet:
        """Join sets of the same features; every trajectory is a group of its own."""
        features = tuple(values for part in parts for values in part.features)
        labels = tuple(label for part in parts for label in part.labels)
        conditions = tuple(row for part in parts for row in part.conditions)
        return dataclasses.replace(parts[0], features=features, labels=labels, groups=(), conditions=conditions)


def read_trajectories(path: Path, dt_ps: float = float("nan")) -> TrajectorySet:
    """Read a file of `TrajectorySet.write`, or a folder of .npy files of shape (n_frames, n_features); values stay on disk.

    A folder may hold labels.csv, which names what its trajectories differ by: a line `file,NAME,...`, then one for each file.

    Raises
    ------
    InputError
        For files that are missing, damaged, pickled, or differ in the number of features; the message names the file.
    """
    if path.is_dir():
        return _read_folder(path, dt_ps)
    try:
        with h5py.File(path, "r") as file:
            group = file["trajectories"]
            names = sorted(group)
            return TrajectorySet(
                features=tuple(_mapped(path, group[name]) for name in names),
                feature_names=tuple(map(str, file.attrs["feature_names"])),
                units=tuple(map(str, file.attrs["units"])),
                dt_ps=float(file.attrs["dt_ps"]),
                labels=tuple(str(group[name].attrs["label"]) for name in names),
                groups=tuple(int(group[name].attrs.get("group", number)) for number, name in enumerate(names)),
                condition_names=tuple(map(str, file.attrs.get("condition_names", ()))),
                conditions=tuple(tuple(map(float, group[name].attrs.get("conditions", ()))) for name in names),
            )
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: not a readable set of trajectories ({error})") from error


def _mapped(path: Path, values: h5py.Dataset) -> np.ndarray:
    """Return a data set as a memory map where it lies in the file as it is."""
    offset = values.id.get_offset()
    if offset is None:
        return np.asarray(values[:])
    return np.memmap(path, values.dtype, "r", offset, values.shape)


def _read_folder(path: Path, dt_ps: float) -> TrajectorySet:
    files = sorted(path.glob("*.npy"), key=lambda file: (len(file.name), file.name))
    if not files:
        raise InputError(f"{path}: the folder holds no .npy files")
    features = []
    for file in files:
        try:
            series = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{file}: not a readable .npy file of plain numbers ({error})") from error
        features.append(series[:, None] if series.ndim == 1 else series)
    n = features[0].shape[-1]
    for file, series in zip(files, features, strict=True):
        if series.ndim != 2 or series.shape[1] != n:
            raise InputError(f"{file}: shape {series.shape}, but {files[0].name} has {n} features")
    names, what = tuple(f"x{index}" for index in range(n)), _read_labels(path, files)
    labels = tuple(file.stem for file in files)
    return TrajectorySet(tuple(features), names, ("",) * n, dt_ps, labels, (), *what)


def _read_labels(path: Path, files: list[Path]) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Return names and values of what the trajectories differ by; nothing without labels.csv."""
    source = path / "labels.csv"
    if not source.is_file():
        return (), ()
    try:
        header, *lines = csv.reader(source.read_text().splitlines())
        values = {name.removesuffix(".npy"): tuple(map(float, row)) for name, *row in lines}
        return tuple(header[1:]), tuple(values[file.stem] for file in files)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: lines of a file's name and numbers are wanted after 'file,NAME,...' ({error})") from error
    except KeyError as missing:
        raise InputError(f"{source}: holds no line for {missing}") from missing


def observe(
    positions_nm: Iterable[np.ndarray], observables: dict[str, tuple[Observable, str]], dt_ps: float, labels: Sequence[str]
) -> TrajectorySet:
    """Evaluate observables on molecular trajectories.

    Parameters
    ----------
    positions_nm : iterable of np.ndarray, each of shape=(n_frames, n_atoms, 3)
        One at a time is held in memory.
    observables : dict
        Name -> (function of positions that returns (n_frames,), unit).
    """
    features = tuple(values_of(observables, x) for x in positions_nm)
    return TrajectorySet(features, tuple(observables), tuple(unit for _, unit in observables.values()), dt_ps, tuple(labels))
