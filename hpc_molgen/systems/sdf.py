"""MDL molfiles and SD files, V2000 and V3000: elements, positions, bonds with their orders and charges of the first molecule.

The format is that of "CTfile Formats" (BIOVIA 2016). What a molecule with an energy function cannot be is an error that names
the line: a drawing in two dimensions, a query, a file that breaks off, counts that do not match.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
from mdtraj.core import residue_names
from mdtraj.core import topology as mdtraj_topology

from hpc_molgen.errors import InputError

log = logging.getLogger(__name__)
AROMATIC = 4  # as a bond's order
NM_PER_ANGSTROM = 0.1
_CHARGE_OF_CODE = {0: 0, 1: 3, 2: 2, 3: 1, 4: 0, 5: -1, 6: -2, 7: -3}  # of a V2000 atom line; 4 is a radical
_BOND_TYPES: dict[int, tuple[Any, int | None]] = {
    1: (mdtraj_topology.Single, 1),
    2: (mdtraj_topology.Double, 2),
    3: (mdtraj_topology.Triple, 3),
    AROMATIC: (mdtraj_topology.Aromatic, None),
}
_TEXT_FOLLOWS = ("A  ", "G  ")  # property lines after which comes a line of free text
_COINCIDENT_NM = 1e-3


@dataclass(frozen=True)
class Molecule:
    """The first molecule of a file.

    Attributes
    ----------
    title : str
    elements : tuple of str
        Symbols.
    positions_nm : np.ndarray, shape=(n_atoms, 3)
    bonds : tuple of (int, int, int)
        Atoms, and the order: 1, 2, 3 or `AROMATIC`.
    charges : tuple of int
        Formal charges.
    """

    title: str
    elements: tuple[str, ...]
    positions_nm: np.ndarray
    bonds: tuple[tuple[int, int, int], ...]
    charges: tuple[int, ...]

    def topology(self) -> mdtraj.Topology:
        """Return one residue named after the title, atoms named C1, C2, H1, and bonds with their types."""
        topology = mdtraj.Topology()
        residue = topology.add_residue(_residue_name(self.title), topology.add_chain(), resSeq=1)
        count: Counter[str] = Counter()
        atoms = []
        for symbol, charge in zip(self.elements, self.charges, strict=True):
            count[symbol] += 1
            element = mdtraj.element.Element.getBySymbol(symbol)
            atoms.append(topology.add_atom(f"{symbol.upper()}{count[symbol]}", element, residue, formal_charge=charge))
        for first, second, order in self.bonds:
            kind, number = _BOND_TYPES[order]
            topology.add_bond(atoms[first], atoms[second], type=kind, order=number)
        return topology


def _residue_name(title: str) -> str:
    """Up to three letters of the title; LIG for none, and for what is the name of an amino acid, a nucleotide or water.

    Programs that read PDB files give those the bonds of their own templates.
    """
    name = re.sub(r"[^A-Za-z0-9]", "", title)[:3].upper()
    taken = residue_names._PROTEIN_RESIDUES | residue_names._NUCLEIC_RESIDUES | residue_names._WATER_RESIDUES
    return "LIG" if not name or name in taken else name


class _Lines:
    """The lines of a file one after another, and errors that name the line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_bytes().decode("utf-8", errors="replace")
        self._lines = re.split(r"\r\n|\n|\r", text)
        if not self._lines[-1]:
            self._lines.pop()
        self.number = 0  # of the last one that was taken, from 1

    def take(self, what: str) -> str:
        """Return the next line, which should be `what`."""
        if self.number >= len(self._lines):
            raise InputError(f"{self.path}: the file breaks off after line {self.number}, where {what} should follow")
        self.number += 1
        return self._lines[self.number - 1]

    def error(self, problem: str) -> InputError:
        """Return an error about the line that was taken last."""
        return InputError(f"{self.path}, line {self.number}: {problem}")

    def more_molecules(self) -> int:
        """How many come after the one that was read."""
        ends = (number for number, line in enumerate(self._lines) if line.startswith("$$$$") and number >= self.number)
        return sum(any(line.strip() for line in self._lines[end + 1 :]) for end in ends)


def read_sdf(path: Path) -> Molecule:
    """Read the first molecule of a molfile or an SD file.

    Raises
    ------
    InputError
        With the file, the line and what is wrong there.
    """
    lines = _Lines(path)
    title, program = lines.take("the title").strip(), lines.take("the program's line")
    lines.take("the comment")
    counts = lines.take("the counts line")
    version = counts[33:39].strip()
    if version not in ("V2000", "V3000"):
        raise lines.error(f"no molfile: the counts line must end in V2000 or V3000 at column 35, and this is {counts!r}")
    elements, positions_nm, bonds, charges = _read_v2000(lines, counts) if version == "V2000" else _read_v3000(lines)
    molecule = Molecule(title, tuple(elements), np.array(positions_nm), tuple(bonds), tuple(charges))
    _check(molecule, path, is_drawn=program[20:22].upper() == "2D")
    if n_more := lines.more_molecules():
        log.info("%s: the first molecule (%s) is taken, the other %d are left", path, title or "without a title", n_more)
    return molecule


_Parts = tuple[list[str], list[tuple[float, float, float]], list[tuple[int, int, int]], list[int]]


def _read_v2000(lines: _Lines, counts: str) -> _Parts:
    n_atoms, n_bonds = (_whole(lines, counts[start : start + 3], "a count of atoms or bonds") for start in (0, 3))
    told = f"the counts line tells {n_atoms} atoms and {n_bonds} bonds"
    elements, positions_nm, charges = [], [], []
    for number in range(1, n_atoms + 1):
        line = lines.take(f"atom {number} of {n_atoms}")
        fields = [line[start : start + 10] for start in (0, 10, 20)]
        positions_nm.append(_position_nm(lines, fields, f"atom {number}: {told}"))
        elements.append(_element(lines, line[31:34].strip()))
        code = _whole(lines, line[36:39].strip() or "0", "a charge code at columns 37 to 39")
        if code not in _CHARGE_OF_CODE:
            raise lines.error(f"there is no charge code {code} (columns 37 to 39); there are 0 to 7")
        charges.append(_CHARGE_OF_CODE[code])
    bonds: list[tuple[int, int, int]] = []
    labels = {number: number - 1 for number in range(1, n_atoms + 1)}
    for number in range(1, n_bonds + 1):
        line = lines.take(f"bond {number} of {n_bonds}")
        parts = [_whole(lines, line[start : start + 3], f"a part of bond {number}: {told}") for start in (0, 3, 6)]
        bonds.append(_bond(lines, parts[2], parts[0], parts[1], labels, bonds))
    return elements, positions_nm, bonds, _charges_of_properties(lines, charges, told)


def _charges_of_properties(lines: _Lines, charges: list[int], told: str) -> list[int]:
    """Read the lines up to "M  END"; those of charges and radicals stand in place of all codes in atom lines."""
    charges, replaced = list(charges), False
    while not (line := lines.take('"M  END"')).startswith("M  END"):
        if line.startswith(_TEXT_FOLLOWS):
            lines.take("the text of that property")
        elif line.startswith(("M  CHG", "M  RAD")):
            charges, replaced = charges if replaced else [0] * len(charges), True
            numbers = [_whole(lines, word, "a part of a list of charges") for word in line[6:].split()]
            if not numbers or len(numbers) != 1 + 2 * numbers[0]:
                raise lines.error("the number of entries is not what the line tells in its columns 7 to 9")
            for atom, value in zip(numbers[1::2], numbers[2::2], strict=True):
                if not 1 <= atom <= len(charges):
                    raise lines.error(f"there is no atom {atom}: {told}")
                if line.startswith("M  CHG"):
                    charges[atom - 1] = value
        elif not line.startswith(("M  ", "V  ", "S  ")):
            raise lines.error(f'neither a property nor "M  END": {told}, and here is {line!r}')
    return charges


def _v30(lines: _Lines, what: str) -> str:
    """Return the next entry of a V3000 block without "M  V30 ", continued lines joined."""
    text = ""
    while True:
        line = lines.take(what)
        if not line.startswith("M  V30 "):
            raise lines.error(f"{what} should be here, in a line that starts with 'M  V30 '")
        text += line[7:]
        if not text.endswith("-"):
            return text.strip()
        text = text[:-1]


def _entries(lines: _Lines, name: str, n: int) -> Iterator[list[str]]:
    """Yield the words of the `n` entries of a block, each while its line is the last that was taken."""
    what = f"{n} {name.lower()}s by the COUNTS line"
    if n == 0:
        return
    if _v30(lines, f"'BEGIN {name}'").split() != ["BEGIN", name]:
        raise lines.error(f"'BEGIN {name}' should be here, with {what}")
    for number in range(1, n + 1):
        words = _v30(lines, f"{name.lower()} {number} of {n}").split()
        if words[:1] == ["END"]:
            raise lines.error(f"the block ends after {number - 1}, with {what}")
        yield words
    if _v30(lines, f"'END {name}'").split() != ["END", name]:
        raise lines.error(f"'END {name}' should be here, with {what}")


def _read_v3000(lines: _Lines) -> _Parts:
    if _v30(lines, "'BEGIN CTAB'").split()[:2] != ["BEGIN", "CTAB"]:
        raise lines.error("'BEGIN CTAB' should be here")
    words = _v30(lines, "COUNTS").split()
    if words[:1] != ["COUNTS"] or len(words) < 3:
        raise lines.error("'COUNTS' with the numbers of atoms and bonds should be here")
    n_atoms, n_bonds = (_whole(lines, word, "a count of atoms or bonds") for word in words[1:3])
    elements: list[str] = []
    positions_nm, charges = [], []
    labels: dict[int, int] = {}
    for words in _entries(lines, "ATOM", n_atoms):
        if len(words) < 6:
            raise lines.error(f"an atom has an index, an element, x, y, z and a mapping, and this has {len(words)} entries")
        index = _whole(lines, words[0], "an index")
        if index in labels:
            raise lines.error(f"two atoms have the index {index}")
        labels[index] = len(elements)
        elements.append(_element(lines, words[1]))
        positions_nm.append(_position_nm(lines, words[2:5], f"atom {words[0]}"))
        charge = [word[4:] for word in words[6:] if word.startswith("CHG=")]
        charges.append(_whole(lines, charge[0], "a charge") if charge else 0)
    bonds: list[tuple[int, int, int]] = []
    for words in _entries(lines, "BOND", n_bonds):
        if len(words) < 4:
            raise lines.error(f"a bond has an index, an order and two atoms, and this has {len(words)} entries")
        order, first, second = (_whole(lines, word, "a part of a bond") for word in words[1:4])
        bonds.append(_bond(lines, order, first, second, labels, bonds))
    while not lines.take('"M  END"').startswith("M  END"):  # groups and collections say nothing of energies
        pass
    return elements, positions_nm, bonds, charges


def _whole(lines: _Lines, text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise lines.error(f"{text!r} is no whole number, which {what} must be") from None


def _position_nm(lines: _Lines, fields: list[str], what: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(field) * NM_PER_ANGSTROM for field in fields)
    except ValueError:
        raise lines.error(f"{' '.join(fields).strip()!r} are no coordinates of {what}") from None
    if not np.isfinite([x, y, z]).all():
        raise lines.error(f"the coordinates of {what} are not finite")
    return x, y, z


def _element(lines: _Lines, symbol: str) -> str:
    """Return the symbol as elements are written; isotopes of hydrogen and what queries have instead are none."""
    try:
        found = mdtraj.element.Element.getBySymbol(symbol)
    except KeyError:
        found = None
    if found is None or found.atomic_number < 1 or found.symbol == "D":
        raise lines.error(f"there is no element {symbol!r}")
    return str(found.symbol)


def _bond(
    lines: _Lines, order: int, first: int, second: int, labels: dict[int, int], earlier: list[tuple[int, int, int]]
) -> tuple[int, int, int]:
    unknown = [atom for atom in (first, second) if atom not in labels]
    if unknown or first == second:
        raise lines.error(f"a bond of atoms {first} and {second}, of {len(labels)}")
    if order not in _BOND_TYPES:
        raise lines.error(f"a bond of type {order}: 1, 2, 3 and 4 (aromatic) are known, others are of queries or complexes")
    i, j = labels[first], labels[second]
    if any({i, j} == {a, b} for a, b, _ in earlier):
        raise lines.error(f"atoms {first} and {second} are bonded twice")
    return i, j, order


def _check(molecule: Molecule, path: Path, *, is_drawn: bool) -> None:
    x, n = molecule.positions_nm, len(molecule.elements)
    if n == 0:
        raise InputError(f"{path}: the first molecule holds no atoms")
    bonded = Counter(atom for bond in molecule.bonds for atom in bond[:2])
    flat = bool((x[:, 2] == 0).all())
    tetrahedral = any(element == "C" and bonded[atom] == 4 for atom, element in enumerate(molecule.elements))
    if flat and n > 1 and (is_drawn or tetrahedral):
        raise InputError(f"{path}: a drawing in two dimensions (all z are zero); positions in space are needed")
    apart_nm = np.abs(x[:, None] - x).max(axis=-1)
    same = np.argwhere(np.triu(apart_nm < _COINCIDENT_NM, 1))
    if len(same):
        i, j = same[0] + 1
        raise InputError(f"{path}: atoms {i} and {j} are at the same place; positions in space are needed")
    largest, count = Counter(molecule.elements).most_common(1)[0]
    if len(f"{largest}{count}") > 4:
        raise InputError(f"{path}: {count} atoms of {largest} are more than names of four characters can tell apart")
