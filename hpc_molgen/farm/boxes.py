"""Boxes of water around the starts: made once by whoever runs the replica, and kept under the hash of what went in."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import h5py
import numpy as np

from hpc_molgen.config import FarmConfig
from hpc_molgen.ensemble import Ensemble, write_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.forcefield import solvate

WATER = "tip3p.xml"


def boxed(system: MolecularSystem, positions_nm: np.ndarray, config: FarmConfig, folder: Path) -> MolecularSystem:
    """Return `system` in water, from `folder` if it is there, else made and put there.

    Where the waters lie need not be the same in two makings, so a replica that goes on takes the box that it began with. The
    file is one that `mdtraj.load` opens.

    Parameters
    ----------
    positions_nm : np.ndarray, shape=(n_atoms, 3)

    Raises
    ------
    InputError
        When the kept box is damaged.
    """
    what = f"{system.key} {config.solute_force_field} {WATER} {config.box_nm!r}".encode()
    path = folder / f"box-{hashlib.sha256(what + np.ascontiguousarray(positions_nm).tobytes()).hexdigest()[:20]}.h5"
    if not path.is_file():
        made = solvate(system, positions_nm, WATER, config.box_nm, config.solute_force_field)
        packed = np.frombuffer(gzip.compress(made.system_xml.encode(), 1), np.uint8)
        series = {"system_xml": (packed[None], "gzip"), "positions": (made.positions_nm[None], "nanometers")}
        attributes = {"description": made.description, "force_field": list(made.force_field)}
        write_ensemble(path, Ensemble.create(made, made.positions_nm[None]), made, seed=0, attributes=attributes, series=series)
    return _read(path, system.temperature_kelvin)


def _read(path: Path, temperature_kelvin: float) -> MolecularSystem:
    from mdtraj.formats import HDF5TrajectoryFile

    try:
        with h5py.File(path, "r") as file:  # first: PyTables has an error of its own for files that are none
            with HDF5TrajectoryFile(str(path)) as same:
                topology = same.topology
            attributes = file["hpc_molgen"].attrs
            return MolecularSystem(
                name=str(attributes["system_name"]),
                topology=topology,
                system_xml=gzip.decompress(file["system_xml"][0].tobytes()).decode(),
                positions_nm=file["positions"][0],
                temperature_kelvin=temperature_kelvin,
                force_field=tuple(str(name) for name in attributes["force_field"]),
                description=str(attributes["description"]),
            )
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and the state of the replica that it belongs to") from error
