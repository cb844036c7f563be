"""An openmm.System from another tool: reading it, and whether it is of the molecule in the user's file."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import openmm
from openmm import unit

from hpc_molgen.errors import InputError
from hpc_molgen.systems.torsions import neighbours_of

if TYPE_CHECKING:
    import mdtraj

    from hpc_molgen.config import SystemConfig

log = logging.getLogger(__name__)
MASS_TOLERANCE_AMU = 0.5
CHARGE_TOLERANCE = 0.05  # files round partial charges
MAX_LISTED = 10
Pair = tuple[int, int]


def read_system(config: SystemConfig) -> tuple[Path, str, openmm.System]:
    """Return the path, the text and the System of `config.system_xml`.

    Raises
    ------
    InputError
        When there is no such file, or none that OpenMM can read.
    """
    if config.system_xml is None:
        raise InputError(f"system.system_xml: system.name '{config.name}' needs the path of a serialised openmm.System here")
    path = Path(config.system_xml)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file (system.system_xml)")
    try:
        xml = path.read_text()
        system = openmm.XmlSerializer.deserialize(xml)
        system.getNumParticles()
    except Exception as error:  # OpenMM raises bare exceptions, and other objects have no particles
        raise InputError(f"{path}: not a serialised openmm.System ({error})") from error
    return path, xml, system


def check_match(
    topology: mdtraj.Topology, system: openmm.System, source: Path, xml_path: Path, *, bonds_are_known: bool
) -> None:
    """Check that the System is of these atoms in this order.

    Parameters
    ----------
    source, xml_path : Path
        For messages.
    bonds_are_known : bool
        Whether the file lists every bond: one that the System lacks is an error then, else a warning. A PDB file may lack
        CONECT records, and be of beads.

    Raises
    ------
    InputError
        For other numbers of particles, other masses than those of the elements, or other bonds.
    """
    n_particles, n_atoms = system.getNumParticles(), int(topology.n_atoms)
    if n_particles != n_atoms:
        elements = [atom.element.symbol for atom in topology.atoms]
        lack = f"; {source.name} has {elements.count('H')} hydrogen atoms: all must be written" if n_particles > n_atoms else ""
        raise InputError(f"{xml_path} has {n_particles} particles but {source} has {n_atoms} atoms: they must match{lack}")
    _check_masses(topology, system, source, xml_path)
    _check_bonds(topology, system, source, xml_path, bonds_are_known)


def check_charge(charge: int, system: openmm.System, source: Path, xml_path: Path) -> None:
    """Warn where the partial charges of the System add up to another charge than the formal ones of the file."""
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            parameters = (force.getParticleParameters(index)[0] for index in range(force.getNumParticles()))
            total = sum(one.value_in_unit(unit.elementary_charge) for one in parameters)
            if abs(total - charge) > CHARGE_TOLERANCE:
                log.warning(
                    "%s has a total charge of %.3g, and the formal charges of %s add up to %d", xml_path, total, source, charge
                )


def _check_masses(topology: mdtraj.Topology, system: openmm.System, source: Path, xml_path: Path) -> None:
    """Compare masses with those of elements, by atom or, where hydrogens took mass from it, by heavy atom with its hydrogens.

    Not without hydrogens, where particles may be united atoms or beads.
    """
    atoms = list(topology.atoms)
    symbols = [atom.element.symbol for atom in atoms]
    if "H" not in symbols:
        return
    masses = [system.getParticleMass(index).value_in_unit(unit.dalton) for index in range(len(atoms))]
    excess = [mass - atom.element.mass for mass, atom in zip(masses, atoms, strict=True)]
    if max(map(abs, excess)) <= MASS_TOLERANCE_AMU:
        return
    neighbours = neighbours_of(topology)
    wrong = []
    for index, atom in enumerate(atoms):
        if symbols[index] == "H" and any(symbols[other] != "H" for other in neighbours[index]):
            continue  # counted with its heavy atom
        own = [index, *(other for other in neighbours[index] if symbols[other] == "H")]
        if abs(sum(excess[other] for other in own)) > MASS_TOLERANCE_AMU:
            wrong.append(f"{atom.name} ({symbols[index]}, number {index + 1}) with a mass of {masses[index]:.3f}")
    if wrong:
        raise InputError(
            f"{xml_path} has other masses than the elements of {source}, also with hydrogens and heavy atoms added up: "
            f"{_listed(wrong)}; are the atoms in the same order?"
        )


def _check_bonds(topology: mdtraj.Topology, system: openmm.System, source: Path, xml_path: Path, refuse: bool) -> None:
    harmonic, others = _bonded_pairs(system)
    if not harmonic:
        return
    ours = {_pair(a.index, b.index) for a, b in topology.bonds}
    neighbours = neighbours_of(topology)
    between_neighbours = {
        _pair(i, j) for near in neighbours for i in near for j in near if i != j
    }  # of Urey and Bradley, or rigid
    lacking, extra = ours - harmonic - others, harmonic - ours - between_neighbours
    if not lacking and not extra:
        return
    names = [atom.name for atom in topology.atoms]
    parts = [
        f"{_listed(_names(pairs, names))} {where}"
        for pairs, where in ((lacking, "in the file alone"), (extra, "in the System alone"))
        if pairs
    ]
    message = f"{source} and {xml_path} do not have the same bonds: {'; '.join(parts)}"
    if lacking and refuse:
        raise InputError(f"{message}; are the atoms in the same order?")
    log.warning("%s", message)


def _bonded_pairs(system: openmm.System) -> tuple[set[Pair], set[Pair]]:
    """Return the pairs with a harmonic bond or a constraint, and those with a bond of another form."""
    harmonic = {_pair(*system.getConstraintParameters(index)[:2]) for index in range(system.getNumConstraints())}
    others: set[Pair] = set()
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce | openmm.CustomBondForce):
            pairs = harmonic if isinstance(force, openmm.HarmonicBondForce) else others
            pairs.update(_pair(*force.getBondParameters(index)[:2]) for index in range(force.getNumBonds()))
    return harmonic, others


def _pair(i: int, j: int) -> Pair:
    return min(i, j), max(i, j)


def _names(pairs: Iterable[Pair], names: list[str]) -> list[str]:
    return [f"{names[i]}-{names[j]}" for i, j in sorted(pairs)]


def _listed(items: list[str]) -> str:
    return ", ".join(items[:MAX_LISTED]) + (f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else "")
