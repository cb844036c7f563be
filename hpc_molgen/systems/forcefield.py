"""Typing atoms with OpenMM's force fields, with messages for people, and putting molecules into water."""

from __future__ import annotations

from typing import Any

import mdtraj
import numpy as np
import openmm
from openmm import app, unit

from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem


def describe_untyped(force_field: app.ForceField, topology: app.Topology, source: str) -> str:
    """Return what is wrong with the residues that `force_field` has no template for."""
    templates: dict[str, Any] = force_field._templates
    problems = []
    for residue in force_field.getUnmatchedResidues(topology):
        label = f"residue {residue.name} {residue.id} of chain {residue.chain.id}"
        names = {atom.name for atom in residue.atoms()}
        candidates = [name for name in (residue.name, "N" + residue.name, "C" + residue.name) if name in templates]
        if not candidates:
            problems.append(f"{label}: the force field does not know this residue")
            continue
        best = min(candidates, key=lambda name: len(names ^ {atom.name for atom in templates[name].atoms}))
        wanted = {atom.name for atom in templates[best].atoms}
        missing, extra = sorted(wanted - names), sorted(names - wanted)
        parts = [f"missing atoms {', '.join(missing)}" if missing else ""]
        parts.append(f"atoms not in the template: {', '.join(extra)}" if extra else "")
        detail = "; ".join(part for part in parts if part) or "its bonds do not match (a missing CONECT record?)"
        problems.append(f"{label}: {detail}")
    listed = "\n  ".join(problems)
    return (
        f"{source}: the force field cannot type {len(problems)} residue(s):\n  {listed}\n"
        "Complete the structure (PDBFixer adds missing atoms and hydrogens), or give system.system_xml "
        "from the tool that parameterised it (system.name: pdb-xml or sdf-xml)."
    )


def build_system(
    name: str,
    topology: app.Topology,
    positions_nm: np.ndarray,
    force_field_files: tuple[str, ...],
    temperature_kelvin: float,
    source: str,
    description: str,
) -> MolecularSystem:
    """Type `topology` and return the system: without cut-off and flexible, or periodic with rigid water.

    A periodic box in the topology means explicit solvent: PME with a cut-off of 1 nm and rigid water. Without a box there
    is neither cut-off nor constraint, as exact reweighting needs.

    Raises
    ------
    InputError
        When residues cannot be typed; the message lists each with what is missing.
    """
    force_field = app.ForceField(*force_field_files)
    periodic = topology.getPeriodicBoxVectors() is not None
    try:
        if periodic:
            system = force_field.createSystem(
                topology, nonbondedMethod=app.PME, nonbondedCutoff=1.0 * unit.nanometer, rigidWater=True
            )
        else:
            system = force_field.createSystem(
                topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False
            )
    except ValueError as error:
        if not force_field.getUnmatchedResidues(topology):
            raise InputError(f"{source}: OpenMM could not build the system: {error}") from error
        raise InputError(describe_untyped(force_field, topology, source)) from error
    return MolecularSystem(
        name=name,
        topology=mdtraj.Topology.from_openmm(topology),
        system_xml=openmm.XmlSerializer.serialize(system),
        positions_nm=np.asarray(positions_nm, dtype=np.float64),
        temperature_kelvin=temperature_kelvin,
        force_field=force_field_files,
        description=description,
    )


def solvate(
    system: MolecularSystem, positions_nm: np.ndarray, water_xml: str, box_nm: float, solute_xml: str
) -> MolecularSystem:
    """Put one conformation of `system` into a cubic box of TIP3P water.

    Parameters
    ----------
    positions_nm : np.ndarray, shape=(n_atoms, 3)
        The solute's conformation.
    water_xml, solute_xml : str
        OpenMM force field files of the water and of the solute.
    box_nm : float
        Edge of the box.
    """
    modeller = app.Modeller(system.topology.to_openmm(), np.asarray(positions_nm, dtype=np.float64) * unit.nanometer)
    force_field = app.ForceField(solute_xml, water_xml)
    modeller.addSolvent(force_field, model="tip3p", boxSize=openmm.Vec3(box_nm, box_nm, box_nm) * unit.nanometer)
    positions = np.asarray(modeller.positions.value_in_unit(unit.nanometer))
    return build_system(
        f"{system.name} in water",
        modeller.topology,
        positions,
        (solute_xml, water_xml),
        system.temperature_kelvin,
        source=system.name,
        description=f"{solute_xml} in {water_xml}, {box_nm} nm box, PME, rigid water",
    )
