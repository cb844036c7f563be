"""Capped peptides by sequence, ACE-(residues)-NME, built from a force field's own geometry: no structure file is read.

Atoms and bonds of each residue are those of OpenMM's `amber99sbildn.xml`, whose names are the PDB's; a first structure is
placed from the force field's bond lengths and angles and from ideal rings and torsions, and then minimised.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
import openmm
from openmm import app, unit

from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.forcefield import build_system
from hpc_molgen.systems.residues import LETTERS, PDB_NAMES
from hpc_molgen.systems.torsions import amide_torsions, neighbours_of, place_atom, torsion_angles

if TYPE_CHECKING:
    import mdtraj

    from hpc_molgen.config import SystemConfig

RESIDUES = sorted({*LETTERS.values(), *PDB_NAMES})
# what OpenMM, as the PDB, calls atoms of the caps that the force field's file calls otherwise
_CAPS = {
    "ACE": {"HH31": "H1", "HH32": "H2", "HH33": "H3"},
    "NME": {"CH3": "C", "HH31": "H1", "HH32": "H2", "HH33": "H3"},
}
PHI_DEG, PSI_DEG, CHI1_DEG = -75.0, 145.0, -60.0  # polyproline II, which no sequence clashes in
_RINGS = {
    "PRO": (("N", "CA", "CB", "CG", "CD"),),
    "HIS": (("CG", "ND1", "CE1", "NE2", "CD2"),),
    "PHE": (("CG", "CD1", "CE1", "CZ", "CE2", "CD2"),),
    "TYR": (("CG", "CD1", "CE1", "CZ", "CE2", "CD2"),),
    "TRP": (("CG", "CD1", "NE1", "CE2", "CD2"), ("CD2", "CE2", "CZ2", "CH2", "CZ3", "CE3")),
}
# Atoms beyond an atom, clockwise as seen along the bond that leads to it. Others follow the rule by which the PDB numbers them,
# heavy ones first (IUPAC-IUB 1970, Biochemistry 9, 3471, rule 2.2.2); these are seen from elsewhere, or are named first here.
# L at C-alpha, (2S,3S)-isoleucine and (2S,3R)-threonine are among them.
_CLOCKWISE = {
    ("", "CA"): ("C", "HA", "CB"),
    ("ILE", "CB"): ("CG1", "HB", "CG2"),
    ("THR", "CB"): ("OG1", "HB", "CG2"),
    ("PRO", "CG"): ("CB", "HG3", "HG2"),
    ("PRO", "CD"): ("CG", "HD3", "HD2"),
    ("ARG", "CZ"): ("NH2", "NH1"),
    ("ARG", "NH1"): ("HH12", "HH11"),
    ("ARG", "NH2"): ("HH22", "HH21"),
    ("ACE", "CH3"): ("C", "H3", "H2"),
}


def peptide(config: SystemConfig) -> MolecularSystem:
    """Return the capped peptide of `config.sequence` with the force field `config.force_field`.

    Raises
    ------
    InputError
        When there is no sequence, when it has a residue that is not known here, or when the force field cannot type the
        peptide or distorts it.
    """
    residues = parse_sequence(config.sequence or "")
    topology = _topology(residues)
    name, files = "-".join(["ACE", *residues, "NME"]), " + ".join(config.force_field)
    system = build_system(
        name,
        topology,
        np.zeros((topology.getNumAtoms(), 3)),
        config.force_field,
        config.temperature_kelvin,
        source=f"system.sequence {name}",
        description=f"{files}, no cut-off, flexible",
    )
    energy = openmm.XmlSerializer.deserialize(system.system_xml)
    built = _Builder(system.topology, energy).place()
    relaxed = _minimised(energy, built)
    if not _same_shape(system.topology, built, relaxed):
        raise InputError(f"system.force_field: {files} turns {name} into another isomer; choose another force field")
    return replace(system, positions_nm=relaxed)


def parse_sequence(text: str) -> list[str]:
    """Return the names of the residues of a sequence, as the force field has them.

    Names of three letters are separated by blanks, commas or hyphens, and caps may be left out: "SER HIE", "ACE-ALA-NME". All
    else is one letter for each residue: "AG"; three of them are separated, "A-L-A", for they would be a name. Histidine is HIE.

    Raises
    ------
    InputError
        For an empty sequence or an unknown residue; the message lists those that there are.
    """
    words = [word for word in re.split(r"[\s,-]+", text.upper()) if word]
    words = words[1:] if words[:1] == ["ACE"] else words
    words = words[:-1] if words[-1:] == ["NME"] else words
    names = [name for word in words for name in ([word] if len(word) == 3 else word)]
    found = ["HIE" if name == "HIS" else LETTERS.get(name, name) for name in names]
    unknown = sorted({name for name, residue in zip(names, found, strict=True) if residue not in RESIDUES})
    run_on = [word for word in words if len(word) > 3 and {*re.findall("..?.?", word)} <= {*RESIDUES, "HIS"}]
    if unknown or run_on or not found:
        problem = f"there are no residues {', '.join(unknown)}" if unknown else "system 'peptide' needs one residue at least"
        problem = f"separate the residues of {', '.join(run_on)} by hyphens" if run_on else problem
        raise InputError(
            f"system.sequence: {problem}; write names as in 'SER-HIE', of {' '.join(RESIDUES)} (HIS is HIE), or one letter for "
            f"each, as in 'A-G-S', of {' '.join(sorted(LETTERS))}"
        )
    return found


@functools.cache
def _templates() -> dict[str, tuple[list[tuple[str, str]], list[tuple[int, int]]]]:
    """Return atoms (name, element) and bonds of each residue of the force field's file."""
    root = ElementTree.parse(Path(app.__file__).parent / "data" / "amber99sbildn.xml").getroot()  # a file of OpenMM's own
    elements = {kind.attrib["name"]: kind.attrib.get("element", "") for kind in root.iterfind("AtomTypes/Type")}
    found = {}
    for residue in root.iterfind("Residues/Residue"):
        name = residue.attrib["name"]
        renamed = _CAPS.get(name, {})
        atoms = [(atom.attrib["name"], elements[atom.attrib["type"]]) for atom in residue.iterfind("Atom")]
        bonds = [(int(bond.attrib["from"]), int(bond.attrib["to"])) for bond in residue.iterfind("Bond")]
        found[name] = [(renamed.get(atom, atom), element) for atom, element in atoms], bonds
    return found


def _topology(residues: list[str]) -> app.Topology:
    topology = app.Topology()
    chain = topology.addChain()
    carbonyl = None
    for name in ["ACE", *residues, "NME"]:
        atoms, bonds = _templates()[name]
        residue = topology.addResidue(PDB_NAMES.get(name, name), chain)
        added = [topology.addAtom(atom, app.Element.getBySymbol(element), residue) for atom, element in atoms]
        by_name = {atom.name: atom for atom in added}
        if carbonyl is not None:
            topology.addBond(carbonyl, by_name["N"])
        for first, second in bonds:
            topology.addBond(added[first], added[second])
        carbonyl = by_name["C"]
    return topology


@dataclass(frozen=True)
class _Geometry:
    """Equilibrium bond lengths by pair of atoms (lower first) and angles by (lower end, centre, other end)."""

    bonds_nm: dict[tuple[int, int], float]
    angles_deg: dict[tuple[int, int, int], float]

    @classmethod
    def of(cls, system: openmm.System) -> _Geometry:
        bonds_nm, angles_deg = {}, {}
        for force in system.getForces():
            if isinstance(force, openmm.HarmonicBondForce):
                for i, j, length, _ in (force.getBondParameters(k) for k in range(force.getNumBonds())):
                    bonds_nm[min(i, j), max(i, j)] = length.value_in_unit(unit.nanometer)
            elif isinstance(force, openmm.HarmonicAngleForce):
                for i, j, k, angle, _ in (force.getAngleParameters(n) for n in range(force.getNumAngles())):
                    angles_deg[min(i, k), j, max(i, k)] = angle.value_in_unit(unit.degree)
        return cls(bonds_nm, angles_deg)


class _Builder:
    """Places the atoms of a peptide one after another, from the first hydrogen of ACE on."""

    def __init__(self, topology: mdtraj.Topology, energy: openmm.System) -> None:
        self._atoms = list(topology.atoms)
        self._neighbours = neighbours_of(topology)
        self._geometry = _Geometry.of(energy)
        if len(self._geometry.bonds_nm) < topology.n_bonds or not self._geometry.angles_deg:
            raise InputError(
                "system.force_field: a peptide is built from harmonic bonds and angles, which this force field does not have "
                "for all its atoms; choose another, or build the structure elsewhere and name the system 'pdb'"
            )
        self._rings = [
            frozenset(atom.index for atom in residue.atoms if atom.name in ring)
            for residue in topology.residues
            for ring in _RINGS.get(residue.name, ())
        ]

    def place(self) -> np.ndarray:
        """Return positions (n_atoms, 3) in nm."""
        x = np.zeros((len(self._atoms), 3))
        root = next(atom.index for atom in self._atoms if atom.name == "H1")
        start = self._neighbours[root][0]
        x[start] = [0.0, 0.0, self._length(root, start)]
        placed, queue = {root, start}, [(start, root, -1)]
        for a, b, c in queue:
            third = x[c] if c >= 0 else np.array([1.0, 0.0, 0.0])
            beyond = self._clockwise(a, b)
            torsion, apart = self._torsion(a, b, c, beyond[0]) if beyond else 0.0, 180.0 if self._is_planar(a) else 120.0
            for number, atom in enumerate(beyond):
                if atom not in placed:  # or else it closes a ring
                    x[atom] = place_atom(
                        x[a], x[b], third, self._length(a, atom), self._angle(b, a, atom), torsion + apart * number
                    )
                    placed.add(atom)
                    queue.append((atom, a, b))
        return x

    def _clockwise(self, a: int, b: int) -> list[int]:
        """Atoms bonded to `a` beyond `b`, clockwise as seen from `b`; the first takes the torsion."""
        beyond = {self._atoms[atom].name: atom for atom in self._neighbours[a] if atom != b}
        residue, name = self._atoms[a].residue.name, self._atoms[a].name
        order = _CLOCKWISE.get((residue, name), _CLOCKWISE.get(("", name), ()))
        if set(order) != beyond.keys():
            order = tuple(sorted(beyond, key=lambda name: (name.startswith("H"), name)))
        return [beyond[name] for name in order]

    def _is_planar(self, a: int) -> bool:
        return len(self._neighbours[a]) == 3 and self._atoms[a].name != "NZ"  # the amine of neutral lysine

    def _in_one_ring(self, *atoms: int) -> frozenset[int] | None:
        return next((ring for ring in self._rings if ring.issuperset(atoms)), None)

    def _torsion(self, a: int, b: int, c: int, atom: int) -> float:
        if self._in_one_ring(c, b, a, atom):
            return 0.0
        named = {("CA", "N"): PHI_DEG, ("C", "CA"): PSI_DEG, ("CB", "CA"): CHI1_DEG}
        value = named.get((self._atoms[a].name, self._atoms[b].name))
        if value is None:
            value = 90.0 if self._is_planar(a) and not self._is_planar(b) else 180.0
        return value

    def _length(self, a: int, b: int) -> float:
        return self._geometry.bonds_nm[min(a, b), max(a, b)]

    def _angle(self, b: int, a: int, atom: int) -> float:
        ring = self._in_one_ring(b, a, atom)
        return 180.0 - 360.0 / len(ring) if ring else self._geometry.angles_deg[min(b, atom), a, max(b, atom)]


def _minimised(energy: openmm.System, positions_nm: np.ndarray) -> np.ndarray:
    platform = openmm.Platform.getPlatformByName("Reference")  # the same numbers every time
    context = openmm.Context(energy, openmm.VerletIntegrator(1e-3), platform)
    context.setPositions(positions_nm)
    openmm.LocalEnergyMinimizer.minimize(context)
    found = context.getState(getPositions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    return np.array(found, dtype=np.float64)


def _same_shape(topology: mdtraj.Topology, built: np.ndarray, relaxed: np.ndarray) -> bool:
    """Whether four-valent atoms have kept their handedness, which labels of hydrogens have too, and amides are trans."""
    for centre, (a, b, c, *_) in ((n, others) for n, others in enumerate(neighbours_of(topology)) if len(others) == 4):
        volumes = [np.linalg.det(x[[a, b, c]] - x[centre]) for x in (built, relaxed)]
        if not np.prod(np.sign(volumes)) > 0:
            return False
    torsions = [abs(float(torsion_angles(relaxed, quad))) for quad in amide_torsions(topology)]
    return min(torsions) > np.pi / 2 and bool(np.isfinite(relaxed).all())
