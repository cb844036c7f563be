"""Any molecule: a PDB that amber14 can type, or a PDB or an SD file with an OpenMM System from another tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import mdtraj
import numpy as np
from openmm import app, unit

from hpc_molgen.downloads import fetch, is_address
from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.forcefield import build_system
from hpc_molgen.systems.matching import check_charge, check_match, read_system
from hpc_molgen.systems.sdf import read_sdf

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig


def _path_of(name: str, given: str | None, sha256: str | None, key: str, kind: str) -> Path:
    """Return the path of a file that the option `key` gives, fetched where it is an address."""
    if given is None:
        raise InputError(f"{key}: system.name '{name}' needs the path or the http(s) address of a {kind} here")
    path = fetch(given, sha256, key) if is_address(given) else Path(given)
    if not path.is_file():
        raise InputError(f"{path}: there is no such {kind} ({key})")
    return path


def read_pdb(config: SystemConfig) -> tuple[Path, app.PDBFile]:
    """Return the path and the contents of `config.pdb`, fetched where it is an address.

    Raises
    ------
    InputError
        When there is no such file, or none that can be read.
    """
    path = _path_of(config.name, config.pdb, config.pdb_sha256, "system.pdb", "PDB file")
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
    topology = mdtraj.Topology.from_openmm(pdb.topology)
    return _with_system(config, path, topology, _positions_nm(pdb))


def from_sdf_and_xml(config: SystemConfig) -> MolecularSystem:
    """Take atoms and bonds from the user's SD file or molfile and the energy function from a serialised `openmm.System`."""
    path = _path_of(config.name, config.sdf, config.sdf_sha256, "system.sdf", "SD file")
    molecule = read_sdf(path)
    return _with_system(config, path, molecule.topology(), molecule.positions_nm, charge=sum(molecule.charges))


def _with_system(
    config: SystemConfig, path: Path, topology: mdtraj.Topology, positions_nm: np.ndarray, charge: int | None = None
) -> MolecularSystem:
    """Join a structure and the System of `config.system_xml`; a total charge says that the file holds all bonds too."""
    xml_path, xml, system = read_system(config)
    check_match(topology, system, path, xml_path, bonds_are_known=charge is not None)
    if charge is not None:
        check_charge(charge, system, path, xml_path)
    return MolecularSystem(
        name=path.stem,
        topology=topology,
        system_xml=xml,
        positions_nm=positions_nm,
        temperature_kelvin=config.temperature_kelvin,
        description=f"System XML {xml_path.name}",
    )
