"""Names of the molecular systems. A new one is one file beside this and one line here."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from hpc_molgen.errors import InputError

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig
    from hpc_molgen.systems.base import MolecularSystem

SYSTEMS = {
    "alanine-dipeptide": "hpc_molgen.systems.alanine_dipeptide:implicit",
    "alanine-dipeptide-ff96": "hpc_molgen.systems.alanine_dipeptide:ff96",
    "alanine-dipeptide-vacuum": "hpc_molgen.systems.alanine_dipeptide:vacuum",
    "alanine-dipeptide-water": "hpc_molgen.systems.alanine_dipeptide:water",
    "peptide": "hpc_molgen.systems.peptides:peptide",
    "trp-cage": "hpc_molgen.systems.trp_cage:trp_cage",
    "alpha-synuclein": "hpc_molgen.systems.calvados:alpha_synuclein",
    "calvados": "hpc_molgen.systems.calvados:calvados",
    "p450": "hpc_molgen.systems.protein_ligand:p450",
    "t4l-xylene": "hpc_molgen.systems.protein_ligand:t4l_xylene",
    "triple-well": "hpc_molgen.systems.triple_well:triple_well",
    "series": "hpc_molgen.systems.series:series",
    "pdb": "hpc_molgen.systems.from_files:from_pdb",
    "pdb-xml": "hpc_molgen.systems.from_files:from_pdb_and_xml",
    "sdf-xml": "hpc_molgen.systems.from_files:from_sdf_and_xml",
}

WITHOUT_STRUCTURES = ("series", "triple-well")  # a particle in an external field has none that a PDB file could tell


@functools.lru_cache(maxsize=8)
def load_system(config: SystemConfig) -> MolecularSystem:
    """Build the system that `config` names.

    Raises
    ------
    InputError
        For an unknown name, a file that cannot be read, or atoms that the force field cannot type.
    """
    if config.name not in SYSTEMS:
        raise InputError(f"system.name: there is no system '{config.name}'; there are: {', '.join(SYSTEMS)}")
    module, function = SYSTEMS[config.name].split(":")
    system: MolecularSystem = getattr(importlib.import_module(module), function)(config)
    return system
