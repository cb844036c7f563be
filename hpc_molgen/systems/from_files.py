"""Any molecule: a PDB that amber14 can type, or a PDB with an OpenMM System from another tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

from hpc_molgen.downloads import fetch, is_address
from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.forcefield import build_system

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig


def read_pdb(config: SystemConfig) -> tuple[Path, app.PDBFile]:
    """Return the path and the contents of `config.pdb`, fetched where it is an address.

    Raises
    ------
    InputError
        When there is no such file, or none that can be read.
    """
    if config.pdb is None:
        raise InputError(f"system.pdb: system.name '{config.name}' needs the path or the http(s) address of a PDB file here")
    path = fetch(config.pdb, config.pdb_sha256, "system.pdb") if is_address(config.pdb) else Path(config.pdb)
    if not path.is_file():
        raise InputError(f"{path}: there is no such PDB file (system.pdb)")
    try:
        pdb = app.PDBFile(str(path))
    except Exception as error:  # OpenMM's parser raises bare exceptions of many kinds on damaged files
        raise InputError(f"{path}: not a PDB file that OpenMM can read ({error})") from error
    if pdb.topology.getNumAtoms() == 0:
        raise InputError(f"{path}: the PDB file holds no atoms")
    return path, pdb


def _positions_nm(pdb: app.PDBFile) -> np.ndarray:
    return np.asarray(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer), dtype=np.float64)


def from_pdb(config: SystemConfig) -> MolecularSystem:
    """Type the user's PDB with `config.force_field` (ff14SB with OBC2 by default)."""
    path, pdb = read_pdb(config)
    if any(residue.name in ("HOH", "WAT") for residue in pdb.topology.residues()):
        box = pdb.topology.getPeriodicBoxVectors()
        if box is None:
            raise InputError(f"{path}: water without a periodic box; add a CRYST1 record or remove the water")
    else:
        pdb.topology.setPeriodicBoxVectors(None)
    return build_system(
        path.stem,
        pdb.topology,
        _positions_nm(pdb),
        config.force_field,
        config.temperature_kelvin,
        source=str(path),
        description=" + ".join(config.force_field),
    )


def from_pdb_and_xml(config: SystemConfig) -> MolecularSystem:
    """Take atoms from the user's PDB and the energy function from a serialised `openmm.System`."""
    path, pdb = read_pdb(config)
    if config.system_xml is None:
        raise InputError("system.system_xml: system.name 'pdb-xml' needs the path of a serialised openmm.System here")
    xml_path = Path(config.system_xml)
    if not xml_path.is_file():
        raise InputError(f"{xml_path}: there is no such file (system.system_xml)")
    xml = xml_path.read_text()
    try:
        system = openmm.XmlSerializer.deserialize(xml)
        n_particles = system.getNumParticles()
    except Exception as error:
        raise InputError(f"{xml_path}: not a serialised openmm.System ({error})") from error
    n_atoms = pdb.topology.getNumAtoms()
    if n_particles != n_atoms:
        raise InputError(f"{xml_path} has {n_particles} particles but {path} has {n_atoms} atoms: they must match")
    return MolecularSystem(
        name=path.stem,
        topology=mdtraj.Topology.from_openmm(pdb.topology),
        system_xml=xml,
        positions_nm=_positions_nm(pdb),
        temperature_kelvin=config.temperature_kelvin,
        description=f"System XML {xml_path.name}",
    )
