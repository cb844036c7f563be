"""Ensembles of conformations with their energies, densities and weights, and their HDF5 files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from hpc_molgen import __version__
from hpc_molgen.errors import InputError
from hpc_molgen.files import write_atomically

if TYPE_CHECKING:
    import mdtraj

    from hpc_molgen.systems.base import MolecularSystem

SCHEMA_VERSION = 1
GROWING_BLOCK_BYTES = 2**18
_ARRAYS = {
    "reduced_energy": "kT",
    "log_density": "log(nm^-(3N-6)), natural logarithm",
    "log_weight": "natural logarithm",
    "parent": "index",
    "trajectory": "index",
    "time_ps": "picoseconds",
}


@dataclass(frozen=True)
class Ensemble:
    """Conformations of one system; indexing it indexes every array.

    Attributes
    ----------
    positions_nm : np.ndarray, shape=(n, n_atoms, 3)
    reduced_energy : np.ndarray, shape=(n,)
        u = U / kT, nan where not computed.
    log_density : np.ndarray, shape=(n,)
        ln q of the surrogate that drew the sample, nan where there is none.
    log_weight : np.ndarray, shape=(n,)
        Unnormalised log-weight of each conformation; 0 everywhere for an unweighted ensemble.
    parent : np.ndarray, shape=(n,)
        Index of what this conformation was made from (the proposal, the structure), or its own index.
    trajectory : np.ndarray, shape=(n,)
        Which trajectory (walker) it belongs to: the unit of splitting and of the block bootstrap.
    time_ps : np.ndarray, shape=(n,)
        Time within the trajectory; 0 where there is no time.
    system_key : str
        `MolecularSystem.key` of the energy function.
    """

    positions_nm: np.ndarray
    reduced_energy: np.ndarray
    log_density: np.ndarray
    log_weight: np.ndarray
    parent: np.ndarray
    trajectory: np.ndarray
    time_ps: np.ndarray
    system_key: str

    @classmethod
    def create(
        cls,
        system: MolecularSystem,
        positions_nm: np.ndarray,
        *,
        reduced_energy: np.ndarray | None = None,
        log_density: np.ndarray | None = None,
        log_weight: np.ndarray | None = None,
        parent: np.ndarray | None = None,
        trajectory: np.ndarray | int = 0,
        time_ps: np.ndarray | None = None,
    ) -> Ensemble:
        """Make an ensemble, filling in what is not known.

        Raises
        ------
        InputError
            If an array has the wrong length or the atoms do not match the system.
        """
        n = len(positions_nm)
        if positions_nm.shape != (n, system.n_atoms, 3):
            raise InputError(f"positions of shape {positions_nm.shape} do not fit the {system.n_atoms} atoms of {system.name}")
        unknown, index = np.full(n, np.nan), np.arange(n)
        ensemble = cls(
            positions_nm=positions_nm,
            reduced_energy=unknown if reduced_energy is None else np.asarray(reduced_energy, dtype=np.float64),
            log_density=unknown if log_density is None else np.asarray(log_density, dtype=np.float64),
            log_weight=np.zeros(n) if log_weight is None else np.asarray(log_weight, dtype=np.float64),
            parent=index if parent is None else np.asarray(parent, dtype=np.int64),
            trajectory=np.broadcast_to(np.asarray(trajectory, dtype=np.int64), (n,)),
            time_ps=np.zeros(n) if time_ps is None else np.asarray(time_ps, dtype=np.float64),
            system_key=system.key,
        )
        for name in _ARRAYS:
            if getattr(ensemble, name).shape != (n,):
                raise InputError(f"{name} has shape {getattr(ensemble, name).shape}, expected ({n},)")
        return ensemble

    def __len__(self) -> int:
        return len(self.positions_nm)

    def __getitem__(self, index: Any) -> Ensemble:
        index = np.atleast_1d(index) if isinstance(index, int | np.integer) else index
        arrays = {name: getattr(self, name)[index] for name in ("positions_nm", *_ARRAYS)}
        return dataclasses.replace(self, **arrays)

    @classmethod
    def concatenate(cls, ensembles: list[Ensemble]) -> Ensemble:
        """Join ensembles of one system."""
        if len({ensemble.system_key for ensemble in ensembles}) != 1:
            raise InputError("ensembles of different systems cannot be joined")
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(ensemble, name) for ensemble in ensembles]) for name in ("positions_nm", *_ARRAYS)
        }
        return dataclasses.replace(ensembles[0], **arrays)


def topology_json(topology: mdtraj.Topology) -> str:
    """Return a topology in the JSON of the MDTraj HDF5 convention."""
    chains = []
    for chain in topology.chains:
        residues = [
            {
                "index": residue.index,
                "name": residue.name,
                "resSeq": residue.resSeq,
                "segmentID": residue.segment_id,
                "atoms": [
                    {"index": atom.index, "name": atom.name, "element": atom.element.symbol if atom.element else ""}
                    for atom in residue.atoms
                ],
            }
            for residue in chain.residues
        ]
        chains.append({"index": chain.index, "residues": residues})
    return json.dumps({"chains": chains, "bonds": [[a.index, b.index] for a, b in topology.bonds]})


def write_ensemble(
    path: Path,
    ensemble: Ensemble,
    system: MolecularSystem,
    *,
    seed: int,
    config_yaml: str = "",
    attributes: dict[str, Any] | None = None,
    series: Mapping[str, tuple[np.ndarray, str]] | None = None,
    total_frames: int | None = None,
) -> None:
    """Write an ensemble as an HDF5 file that `mdtraj.load` opens too; the file appears whole or not at all.

    Coordinates are stored as float32, as the MDTraj convention asks; arrays of ours carry a `units` attribute.

    Parameters
    ----------
    series : mapping of str to (np.ndarray, str)
        More values of each frame, of shape (n, ...), with their units.
    total_frames : int, optional
        Make a file that can grow to about so many frames (see `farm.trajectory.append`), not compressed.
    """
    grows: dict[str, Any] = {} if total_frames is None else {"maxshape": (None,), "chunks": (max(1, min(1024, total_frames)),)}
    # built in memory: HDF5 1.14 and 2.0 crash the process when a file cannot be closed on a full disk
    with h5py.File(path.name, "w", driver="core", backing_store=False) as file:
        _write_mdtraj_part(file, ensemble, system, total_frames, grows)
        arrays = {name: (getattr(ensemble, name), units) for name, units in _ARRAYS.items() if name != "time_ps"}
        for name, (values, units) in (arrays | dict(series or {})).items():
            file.create_dataset(name, data=values, **grows).attrs["units"] = units
        group = file.create_group("hpc_molgen")
        group.attrs.update({"schema_version": SCHEMA_VERSION, "system_key": system.key, "system_name": system.name})
        group.attrs.update({"seed": seed, "config": config_yaml, **(attributes or {})})
        file.flush()
        image = file.id.get_file_image()
    write_atomically(path, image)


def _write_mdtraj_part(
    file: h5py.File, ensemble: Ensemble, system: MolecularSystem, total_frames: int | None, grows: dict[str, Any]
) -> None:
    file.attrs.update({"conventions": "Pande", "conventionVersion": "1.1", "application": "hpc_molgen"})
    file.attrs.update({"program": "hpc_molgen", "programVersion": __version__})
    if total_frames is None:
        block, options = min(1024, len(ensemble)), {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    else:  # a compressed block that is not full yet would be written anew, somewhere else, with every addition
        block = min(total_frames, GROWING_BLOCK_BYTES // (12 * system.n_atoms))
        options = {"maxshape": (None, system.n_atoms, 3)}
    positions = ensemble.positions_nm.astype(np.float32)
    coordinates = file.create_dataset("coordinates", data=positions, chunks=(max(1, block), system.n_atoms, 3), **options)
    coordinates.attrs["units"] = "nanometers"
    time = file.create_dataset("time", data=ensemble.time_ps.astype(np.float32), **grows)
    time.attrs["units"] = "picoseconds"
    file.create_dataset("topology", data=np.array([topology_json(system.topology).encode()]))


def read_ensemble(path: Path, system: MolecularSystem) -> Ensemble:
    """Read a file of `write_ensemble`.

    Raises
    ------
    InputError
        If the file is missing, empty, truncated, of another schema, or of another system (both keys are named).
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; run the stage that writes it first")
    try:
        with h5py.File(path, "r") as file:
            group = file["hpc_molgen"].attrs
            if int(group["schema_version"]) != SCHEMA_VERSION:
                raise InputError(f"{path}: schema version {group['schema_version']}, this software reads {SCHEMA_VERSION}")
            if group["system_key"] != system.key:
                raise InputError(
                    f"{path} was made with system key {group['system_key']} ({group['system_name']}), "
                    f"but this run has {system.key} ({system.name}): energies would not be comparable"
                )
            arrays = {name: file[name][:] for name in _ARRAYS if name != "time_ps"}
            return Ensemble.create(system, file["coordinates"][:], **arrays, time_ps=file["time"][:].astype(np.float64))
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable ensemble file ({error}); it is empty, truncated or foreign. "
            "Delete it and the done.json beside it, and run again: the stage repeats only what is missing."
        ) from error


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of the file's `/hpc_molgen` group."""
    try:
        with h5py.File(path, "r") as file:
            return dict(file["hpc_molgen"].attrs)
    except (OSError, KeyError) as error:
        raise InputError(f"{path}: not a readable ensemble file ({error})") from error
