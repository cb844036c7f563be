"""An openmm.System as a topology of GROMACS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import openmm
from openmm import unit

from hpc_molgen.errors import InputError

SPRING = "SPRING"  # the macro by which a topology is told the strength of its position restraints


def topology_text(system: openmm.System, restrained: Sequence[int] = ()) -> str:
    """Return the parameters of `system` as a topology of GROMACS.

    Atoms that are bonded, constrained or excluded make one molecule; equal neighbours share their description. Every excluded
    pair is listed, with its own parameters where they are not zero. Rigid water becomes SETTLE.

    Parameters
    ----------
    restrained : sequence of int
        Atoms with springs to the positions that GROMACS is given as reference, as strong as the macro `SPRING` says
        where it is defined.

    Raises
    ------
    InputError
        For a force that has no counterpart here; the message names it.
    """
    nonbonded = nonbonded_force(system)
    lines = list(_interactions(system))
    types: dict[tuple[float, float], str] = {}
    rows = []
    for index in range(system.getNumParticles()):
        charge, sigma, epsilon = (value._value for value in nonbonded.getParticleParameters(index))
        kind = types.setdefault((sigma if epsilon else 1.0, epsilon), f"T{len(types) + 1}")
        rows.append((kind, charge, system.getParticleMass(index)._value))
    ranges = molecule_ranges(system)
    owner = np.repeat(np.arange(len(ranges)), [stop - start for start, stop in ranges])
    own: list[list[tuple[str, list[int], str]]] = [[] for _ in ranges]
    for section, atoms, rest in lines:
        own[owner[atoms[0]]].append((section, atoms, rest))
    held = set(restrained)
    described: dict[str, str] = {}
    counted: list[tuple[str, int]] = []
    for (start, stop), its in zip(ranges, own, strict=True):
        sections: dict[str, list[str]] = {"atoms": []}
        for atom, (kind, charge, mass) in enumerate(rows[start:stop], 1):
            sections["atoms"].append(f"{atom} {kind} 1 MOL A{atom} {atom} {charge!r} {mass!r}")
        sections |= _settled(its, start) if _is_rigid_water(its, stop - start) else _listed(its, start)
        springs = [f"{atom - start + 1} 1 {SPRING} {SPRING} {SPRING}" for atom in range(start, stop) if atom in held]
        text = _sections(sections)
        if springs:
            text += f"#ifdef {SPRING}\n{_sections({'position_restraints': springs})}#endif\n\n"
        name = described.setdefault(text, f"M{len(described) + 1}")
        if counted and counted[-1][0] == name:
            counted[-1] = (name, counted[-1][1] + 1)
        else:
            counted.append((name, 1))
    head = {
        "defaults": ["1 2 no 1.0 1.0"],
        "atomtypes": [f"{name} 1 1.0 0.0 A {sigma!r} {epsilon!r}" for (sigma, epsilon), name in types.items()],
    }
    molecules = "".join(f"[ moleculetype ]\n{name} 0\n\n{text}" for text, name in described.items())
    return _sections(head) + molecules + _sections(
        {"system": ["molecules"], "molecules": [f"{name} {n}" for name, n in counted]}
    )  # fmt: skip


def _sections(sections: Mapping[str, Sequence[str]]) -> str:
    return "".join(f"[ {name} ]\n" + "\n".join(lines) + "\n\n" for name, lines in sections.items())


def nonbonded_force(system: openmm.System) -> openmm.NonbondedForce:
    """Return the one nonbonded force of a system."""
    found = [force for force in system.getForces() if isinstance(force, openmm.NonbondedForce)]
    if len(found) != 1 or found[0].getNumParticleParameterOffsets() or found[0].getNumExceptionParameterOffsets():
        raise InputError("GROMACS needs one NonbondedForce without parameter offsets: use the engine openmm")
    return found[0]


def _interactions(system: openmm.System) -> Iterator[tuple[str, list[int], str]]:
    """Section, atoms and parameters of each line of the topology."""
    for index in range(system.getNumConstraints()):
        *atoms, length = system.getConstraintParameters(index)
        yield "constraints", atoms, f"2 {length._value!r}"
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for index in range(force.getNumBonds()):
                *atoms, length, k = force.getBondParameters(index)
                if k._value:
                    yield "bonds", atoms, f"1 {length._value!r} {k._value!r}"
        elif isinstance(force, openmm.HarmonicAngleForce):
            for index in range(force.getNumAngles()):
                *atoms, angle, k = force.getAngleParameters(index)
                yield "angles", atoms, f"1 {angle.value_in_unit(unit.degree)!r} {k._value!r}"
        elif isinstance(force, openmm.PeriodicTorsionForce):
            for index in range(force.getNumTorsions()):
                *atoms, n, phase, k = force.getTorsionParameters(index)
                yield "dihedrals", atoms, f"9 {phase.value_in_unit(unit.degree)!r} {k._value!r} {n}"
        elif isinstance(force, openmm.NonbondedForce):
            yield from _pairs(force)
        elif not isinstance(force, openmm.CMMotionRemover):
            raise InputError(f"GROMACS has no counterpart of {type(force).__name__} here: use the engine openmm")


def _pairs(force: openmm.NonbondedForce) -> Iterator[tuple[str, list[int], str]]:
    for index in range(force.getNumExceptions()):
        *atoms, charge, sigma, epsilon = force.getExceptionParameters(index)
        yield "exclusions", atoms, ""
        if charge._value or epsilon._value:  # function 2: fudge, two charges, sigma, epsilon
            yield "pairs", atoms, f"2 1.0 {charge._value!r} 1.0 {sigma._value!r} {epsilon._value!r}"


def molecule_ranges(system: openmm.System) -> list[tuple[int, int]]:
    """Return the ranges of atoms that no interaction but the nonbonded one leaves."""
    n_atoms = system.getNumParticles()
    last = list(range(n_atoms))  # the last atom that each is linked to
    for _, atoms, _ in _interactions(system):
        last[min(atoms)] = max(last[min(atoms)], *atoms)
    ranges, start, reach = [], 0, 0
    for atom in range(n_atoms):
        reach = max(reach, last[atom])
        if reach == atom:
            ranges.append((start, atom + 1))
            start = reach = atom + 1
    return ranges


def _listed(lines: Sequence[tuple[str, list[int], str]], first: int) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for section, atoms, rest in lines:
        sections.setdefault(section, []).append(f"{' '.join(str(atom - first + 1) for atom in atoms)} {rest}".strip())
    return sections


def _is_rigid_water(lines: Sequence[tuple[str, list[int], str]], n_atoms: int) -> bool:
    """Return whether these are three atoms and nothing but three constraints, two of them from the first atom and equal."""
    lengths = {tuple(sorted(atoms)): rest for section, atoms, rest in lines if section == "constraints"}
    first = min((atom for _, atoms, _ in lines for atom in atoms), default=0)
    others = {section for section, _, _ in lines} - {"constraints", "exclusions"}
    legs = [lengths.get((first, first + other)) for other in (1, 2)]
    return n_atoms == len(lengths) == 3 and not others and legs[0] == legs[1] is not None


def _settled(lines: Sequence[tuple[str, list[int], str]], first: int) -> dict[str, list[str]]:
    length = {tuple(sorted(atoms)): rest.split()[1] for section, atoms, rest in lines if section == "constraints"}
    legs, base = length[first, first + 1], length[first + 1, first + 2]
    return {"settles": [f"1 1 {legs} {base}"], **_listed([line for line in lines if line[0] == "exclusions"], first)}
