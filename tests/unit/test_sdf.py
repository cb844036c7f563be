"""SD files with a System XML: what is read, every error, which bonds of small molecules rotate and what they are called."""

from __future__ import annotations

import itertools
import logging
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
from mdtraj.core import topology as kinds

from hpc_molgen.config import SystemConfig, load_config
from hpc_molgen.dynamics.bias import spread_structures
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.efficiency.evidence import choose_torsions
from hpc_molgen.errors import InputError
from hpc_molgen.representations.internal import torsion_row
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.run import Run
from hpc_molgen.structures import pdb_text, read_pdb_positions
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.sdf import read_sdf
from hpc_molgen.systems.torsions import named_torsions, rotatable_torsions, torsion_angles, torsion_by_name, torsions_by_name
from hpc_molgen.workers import Workers
from tests.small_molecules import Drawn, benzamide, benzamide_system, butane, butane_system, graph, write_files

# atoms of the bonds that rotate, by heavy atoms and bonds
MOLECULES = {
    "butane": ("C C C C", "0-1 1-2 2-3", {(1, 2)}),
    "2-butene": ("C C C C", "0-1 1=2 2-3", set()),
    "butadiene": ("C C C C", "0=1 1-2 2=3", {(1, 2)}),
    "2-pentyne": ("C C C C C", "0-1 1#2 2-3 3-4", set()),
    "butanenitrile": ("C C C C N", "0-1 1-2 2-3 3#4", {(1, 2)}),
    "hexane, backwards": ("C C C C C C", "5-4 4-3 3-2 2-1 1-0", {(1, 2), (2, 3), (3, 4)}),
    "ethylcyclohexane": ("C C C C C C C C", "0-1 1-2 2-3 3-4 4-5 5-0 0-6 6-7", {(0, 6)}),
    "toluene": ("C C C C C C C", "0:1 1:2 2:3 3:4 4:5 5:0 0-6", set()),
    "biphenyl": (
        "C " * 12, "0:1 1:2 2:3 3:4 4:5 5:0 6:7 7:8 8:9 9:10 10:11 11:6 0-6", {(0, 6)}
    ),
    "stilbene": (
        "C " * 14, "0:1 1:2 2:3 3:4 4:5 5:0 6:7 7:8 8:9 9:10 10:11 11:6 0-12 12=13 13-6", {(0, 12), (6, 13)}
    ),
    "azobenzene": (
        "C " * 12 + "N N", "0:1 1:2 2:3 3:4 4:5 5:0 6:7 7:8 8:9 9:10 10:11 11:6 0-12 12=13 13-6", {(0, 12), (6, 13)}
    ),
    "N-methylbenzamide": ("C C C C C C C O N C", "0:1 1:2 2:3 3:4 4:5 5:0 0-6 6=7 6-8 8-9", {(0, 6)}),
    "N-methylacetamide": ("C C O N C", "0-1 1=2 1-3 3-4", set()),
    "ethyl acetate": ("C C O O C C", "0-1 1=2 1-3 3-4 4-5", {(1, 3), (3, 4)}),
    "2-methylpentane, branch first": ("C C C C C C", "0-1 1-2 1-3 3-4 4-5", {(1, 3), (3, 4)}),
    "diphenylmethane": (
        "C " * 13, "0-1 0-7 1:2 2:3 3:4 4:5 5:6 6:1 7:8 8:9 9:10 10:11 11:12 12:7", {(0, 1), (0, 7)}
    ),
    "triphenylmethane": (
        "C " * 19,
        "0-1 0-7 0-13 1:2 2:3 3:4 4:5 5:6 6:1 7:8 8:9 9:10 10:11 11:12 12:7 13:14 14:15 15:16 16:17 17:18 18:13",
        {(0, 1), (0, 7), (0, 13)},
    ),
}  # fmt: skip
every_molecule = pytest.mark.parametrize("name", MOLECULES)


def benzoate() -> Drawn:
    """A charge and aromatic bonds: the amide's ring with a carboxylate."""
    whole = benzamide()
    keep = [*range(9), *range(10, 15)]
    place = {old: new for new, old in enumerate(keep)}
    bonds = [(place[i], place[j], order) for i, j, order in whole.bonds if i in place and j in place]
    elements = [whole.elements[atom] for atom in keep]
    elements[8] = "O"
    return Drawn("benzoate", elements, whole.positions_angstrom[keep], bonds, {8: -1})


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.sdf"
    path.write_text(text)
    return path


def loaded(tmp_path: Path, molecule: Drawn, system: openmm.System) -> MolecularSystem:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))  # systems are kept by the names of their files
    return load_system(load_config("tiny", write_files(folder, molecule, system)).system)


@pytest.mark.parametrize("molecule", [butane(), benzamide(), benzoate()], ids=lambda one: one.title)
@pytest.mark.parametrize("form", ["lines", "codes", "v3000", "carriage returns"])
def test_both_versions_hold_the_same(tmp_path: Path, molecule: Drawn, form: str) -> None:
    text = molecule.v3000() if form == "v3000" else molecule.v2000(codes=form == "codes")
    path = written(tmp_path, "")
    path.write_bytes(text.replace("\n", "\r\n" if form == "carriage returns" else "\n").encode())
    found = read_sdf(path)
    assert found.title == molecule.title and list(found.elements) == molecule.elements
    np.testing.assert_allclose(found.positions_nm, molecule.positions_angstrom / 10, atol=6e-6)
    assert list(found.bonds) == molecule.bonds
    assert found.charges == tuple(molecule.charges.get(atom, 0) for atom in range(len(molecule.elements)))


def test_every_charge(tmp_path: Path) -> None:
    """Codes of atom lines, and lines of charges or radicals that take their place (all others are neutral then)."""
    molecule = butane()
    molecule.charges = {0: 3, 1: 2, 2: 1, 3: -1, 4: -2, 5: -3}
    for text in (molecule.v2000(codes=True), molecule.v2000(), molecule.v3000()):
        assert read_sdf(written(tmp_path, text)).charges == (3, 2, 1, -1, -2, -3, *[0] * 8)
    two_lines = molecule.v2000(codes=True).replace("M  END", "M  CHG  1   1   1\nM  CHG  2   2  -1  14   2\nM  END")
    assert read_sdf(written(tmp_path, two_lines)).charges == (1, -1, *[0] * 11, 2)
    radical = molecule.v2000(codes=True).replace("M  END", "M  RAD  1   1   2\nM  END")
    assert read_sdf(written(tmp_path, radical)).charges == (0,) * 14
    molecule.charges = {}
    assert read_sdf(written(tmp_path, molecule.v2000().replace(" C   0  0", " C   0  4"))).charges == (0,) * 14


def test_topology(tmp_path: Path) -> None:
    topology = read_sdf(written(tmp_path, benzoate().v2000())).topology()
    assert [residue.name for residue in topology.residues] == ["BEN"]
    assert [atom.name for atom in topology.atoms][:9] == ["C1", "C2", "C3", "C4", "C5", "C6", "C7", "O1", "O2"]
    assert topology.atom(8).formal_charge == -1
    bonds = {(a.index, b.index): (bond.type, bond.order) for bond in topology.bonds for a, b in [bond]}
    assert bonds[0, 1] == bonds[0, 5] == (kinds.Aromatic, None)
    assert bonds[6, 7] == (kinds.Double, 2) and bonds[6, 8] == (kinds.Single, 1) and len(bonds) == 14
    again = pickle.loads(pickle.dumps(topology))  # as workers get it
    assert again == topology and rotatable_torsions(again) == rotatable_torsions(topology)


@pytest.mark.parametrize(
    ("title", "name"),
    [("n-butane", "NBU"), ("", "LIG"), ("?!", "LIG"), ("propane", "LIG"), ("water", "LIG"), ("A", "LIG"), ("3-hexyne", "3HE")],
)
def test_residue_names(tmp_path: Path, title: str, name: str) -> None:
    """Names of amino acids, nucleotides and water have bonds of their own in programs that read PDB files: WAT is one."""
    molecule = butane()
    molecule.title = title
    assert read_sdf(written(tmp_path, molecule.v2000())).topology().residue(0).name == name


def test_the_first_of_several_molecules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = f"{butane().v2000()}> <ENERGY>\n1.0\n\n$$$$\n"
    with caplog.at_level(logging.INFO, logger="hpc_molgen"):
        assert len(read_sdf(written(tmp_path, first)).elements) == 14 and not caplog.text
        assert len(read_sdf(written(tmp_path, f"{first}{benzamide().v2000()}$$$$\n{first}")).elements) == 14
    assert "the first molecule (n-butane) is taken, the other 2 are left" in caplog.text


def changed(number: int, line: str | None) -> Callable[[list[str]], list[str]]:
    """Replace a line (from 1), or leave it out."""
    return lambda lines: [*lines[: number - 1], *([] if line is None else [line]), *lines[number:]]


def cut(n: int) -> Callable[[list[str]], list[str]]:
    """Keep the first lines."""
    return lambda lines: [*lines[:n], ""]


def flat(lines: list[str]) -> list[str]:
    """Set every z to zero."""
    return [line[:20] + "    0.0000" + line[30:] if 5 <= n <= 18 else line for n, line in enumerate(lines, start=1)]


BUTANE = butane().v2000().split("\n")  # counts in line 4, atoms from 5 to 18, bonds from 19 to 31, M  END in 32
assert BUTANE[31] == "M  END"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut(0), "breaks off after line 0, where the title"), (cut(3), "breaks off after line 3, where the counts line"),
        (cut(10), "breaks off after line 10, where atom 7 of 14"), (cut(20), "breaks off after line 20, where bond 3 of 13"),
        (cut(31), 'breaks off after line 31, where "M  END"'),
        (changed(4, " 14 13  0  0  0"), "line 4: no molfile: the counts line must end in V2000 or V3000"),
        (changed(3, None), "line 4: no molfile"),
        (changed(4, " xx 13" + BUTANE[3][6:]), "line 4: ' xx' is no whole number"),
        (changed(4, "  0  0" + BUTANE[3][6:]), 'line 5: neither a property nor "M  END": the counts line tells 0 atoms'),
        (changed(4, " 13 13" + BUTANE[3][6:]), "line 18: '   ' is no whole number, .*bond 1: the counts line tells 13 atoms"),
        (changed(4, " 15 13" + BUTANE[3][6:]), "line 19: .* no coordinates of atom 15: the counts line tells 15 atoms"),
        (changed(4, " 14 12" + BUTANE[3][6:]), "line 31: neither a property .* tells 14 atoms and 12 bonds"),
        (changed(4, " 14 14" + BUTANE[3][6:]), "line 32: 'M  ' is no whole number, .*bond 14: .* 14 bonds"),
        (changed(6, BUTANE[5].replace(" C ", " Xx")), "line 6: there is no element 'Xx'"),
        (changed(6, BUTANE[5].replace(" C ", " A ")), "line 6: there is no element 'A'"),
        (changed(9, BUTANE[8].replace(" H ", " D ")), "line 9: there is no element 'D'"),
        (changed(6, BUTANE[5][:30]), "line 6: there is no element ''"),
        (changed(6, "    1.x290" + BUTANE[5][10:]), "line 6: '1.x290 .*' are no coordinates of atom 2"),
        (changed(6, "       nan" + BUTANE[5][10:]), "line 6: the coordinates of atom 2.* are not finite"),
        (changed(6, BUTANE[5].replace(" 0  0", " 0  9", 1)), r"line 6: there is no charge code 9 \(columns 37 to 39\)"),
        (changed(19, "  1  2  8  0"), "line 19: a bond of type 8: 1, 2, 3 and 4"),
        (changed(19, "  1  1  1  0"), "line 19: a bond of atoms 1 and 1, of 14"),
        (changed(19, "  1 15  1  0"), "line 19: a bond of atoms 1 and 15, of 14"),
        (changed(20, "  2  1  1  0"), "line 20: atoms 2 and 1 are bonded twice"),
        (changed(32, "M  CHG  2   1   1\nM  END"), "line 32: the number of entries is not what the line tells"),
        (changed(32, "M  CHG  1  15   1\nM  END"), "line 32: there is no atom 15: the counts line tells 14 atoms"),
        (changed(32, "M  CHG\nM  END"), "line 32: the number of entries"),
        (flat, "a drawing in two dimensions"),
        (changed(6, BUTANE[4]), "atoms 1 and 2 are at the same place"),
    ],
)  # fmt: skip
def test_files_of_version_2000_that_are_wrong(tmp_path: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    path = written(tmp_path, "\n".join(change(BUTANE)))
    with pytest.raises(InputError, match=f"(?s){path}.*({message})"):
        read_sdf(path)


V3000 = butane().v3000().split("\n")  # BEGIN CTAB in 5, COUNTS 6, BEGIN ATOM 7, atoms 8 (two lines) to 22, END ATOM 23
assert V3000[22] == "M  V30 END ATOM" and V3000[-5] == "M  V30 13 1 37 137"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut(4), "breaks off after line 4, where 'BEGIN CTAB'"), (cut(8), "breaks off after line 8, where atom 1 of 14"),
        (cut(12), "breaks off after line 12, where atom 5 of 14"), (cut(30), "breaks off after line 30, where bond 7 of 13"),
        (cut(len(V3000) - 2), 'where "M  END"'), (changed(5, "M  V30 CTAB"), "line 5: 'BEGIN CTAB' should be here"),
        (changed(6, "M  V30 COUNTS 14"), "line 6: 'COUNTS' with the numbers"),
        (changed(7, None), "line 8: 'BEGIN ATOM' should be here"),
        (changed(6, "M  V30 COUNTS 0 0 0 0 0"), "holds no atoms"),
        (changed(6, "M  V30 COUNTS 13 13 0 0 0"), "line 22: 'END ATOM' should be here, with 13 atoms by the COUNTS line"),
        (changed(6, "M  V30 COUNTS 15 13 0 0 0"), "line 23: the block ends after 14, with 15 atoms by the COUNTS line"),
        (changed(6, "M  V30 COUNTS 14 12 0 0 0"), "'END BOND' should be here, with 12 bonds"),
        (changed(6, "M  V30 COUNTS 14 14 0 0 0"), "the block ends after 13, with 14 bonds"),
        (changed(6, "M  V30 COUNTS 14 x 0 0 0"), "line 6: 'x' is no whole number"),
        (changed(10, "M  V30 17 C 1.5 0"), "line 10: an atom has an index, .* this has 4 entries"),
        (changed(10, "M  V30 17 Q 1.529 0 0 0"), "line 10: there is no element 'Q'"),
        (changed(10, "M  V30 17 C 1.529 0 z 0"), "line 10: '1.529 0 z' are no coordinates of atom 17"),
        (changed(10, "M  V30 17 C 1.529 0 0 0 CHG=x"), "line 10: 'x' is no whole number, which a charge must be"),
        (changed(10, "M  V30 7 C 1.529 0 0 0"), "line 10: two atoms have the index 7"),
        (changed(10, "17 C 1.529 0 0 0"), "line 10: atom 2 of 14 should be here, in a line that starts with 'M  V30 '"),
        (changed(25, "M  V30 1 1 7"), "line 25: a bond has an index, an order and two atoms, and this has 3 entries"),
        (changed(25, "M  V30 1 9 7 17"), "line 25: a bond of type 9"), (changed(25, "M  V30 1 1 7 8"), "bond of atoms 7 and 8"),
    ],
)  # fmt: skip
def test_files_of_version_3000_that_are_wrong(tmp_path: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    path = written(tmp_path, "\n".join(change(V3000)))
    with pytest.raises(InputError, match=f"(?s){path}.*({message})"):
        read_sdf(path)


def test_flat_molecules_are_no_drawings_unless_they_say_so(tmp_path: Path) -> None:
    ring = Drawn("formaldehyde", ["C", "O", "H", "H"], np.zeros((4, 3)), [(0, 1, 2), (0, 2, 1), (0, 3, 1)], {})
    ring.positions_angstrom[1:, :2] = [[1.2, 0], [-0.6, 0.9], [-0.6, -0.9]]
    assert len(read_sdf(written(tmp_path, ring.v2000())).elements) == 4
    with pytest.raises(InputError, match="a drawing in two dimensions"):
        read_sdf(written(tmp_path, ring.v2000(program="  tests   01012600002D")))
    said = butane().v2000(program="  tests   01012600002D")
    assert len(read_sdf(written(tmp_path, said)).elements) == 14  # its z are not zero


def test_energies_are_those_of_the_system(tmp_path: Path) -> None:
    system = loaded(tmp_path, benzamide(), benzamide_system())
    context = openmm.Context(benzamide_system(), openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(system.positions_nm)
    energy = context.getState(getEnergy=True).getPotentialEnergy()._value
    ours = Engine(system, "Reference").reduced_energy(system.positions_nm[None])[0] * system.kt_kj_mol
    assert ours == pytest.approx(energy, abs=1e-9) and system.name == "mine" and "mine.xml" in system.description
    path = tmp_path / "back.pdb"
    path.write_text(pdb_text(system.topology, system.positions_nm, []))
    centred = system.positions_nm - system.positions_nm.mean(axis=0)
    np.testing.assert_allclose(read_pdb_positions(path, system), centred, atol=6e-5)
    again = mdtraj.load_pdb(str(path), standard_names=False).topology
    pairs = [{(a.index, b.index) for a, b in topology.bonds} for topology in (again, system.topology)]
    assert pairs[0] == pairs[1]


def test_files_that_are_missing(tmp_path: Path) -> None:
    write_files(tmp_path, butane(), butane_system())
    sdf, xml = str(tmp_path / "mine.sdf"), str(tmp_path / "mine.xml")
    for values, message in (
        ({"system_xml": xml}, "system.sdf: system.name 'sdf-xml' needs the path or the http"),
        ({"sdf": f"{sdf}x", "system_xml": xml}, "mine.sdfx: there is no such SD file"),
        ({"sdf": sdf}, "system.system_xml: system.name 'sdf-xml' needs the path"),
        ({"sdf": sdf, "system_xml": f"{xml}x"}, "mine.xmlx: there is no such file"),
        ({"sdf": sdf, "system_xml": sdf}, "not a serialised openmm.System"),
    ):
        with pytest.raises(InputError, match=message):
            load_system(SystemConfig(name="sdf-xml", **values))


def test_hydrogens_that_are_not_written(tmp_path: Path) -> None:
    bare = butane()
    bare.elements, bare.positions_angstrom, bare.bonds = bare.elements[:4], bare.positions_angstrom[:4], bare.bonds[:3]
    with pytest.raises(InputError, match=r"14 particles but .* has 4 atoms: .* has 0 hydrogen atoms: all must be written"):
        loaded(tmp_path, bare, butane_system())


def test_masses_that_are_not_of_the_elements(tmp_path: Path) -> None:
    """Atoms in another order are noticed; mass that hydrogens took from their heavy atoms is none's loss."""
    heavy = butane_system()
    for hydrogen, carbon in zip(range(4, 14), (0, 0, 0, 1, 1, 2, 2, 3, 3, 3), strict=True):
        heavy.setParticleMass(hydrogen, 3.0)
        heavy.setParticleMass(carbon, heavy.getParticleMass(carbon)._value - (3.0 - mdtraj.element.hydrogen.mass))
    assert loaded(tmp_path, butane(), heavy).n_atoms == 14
    heavy.setParticleMass(4, 3.6)
    with pytest.raises(
        InputError, match=r"other masses .*: C1 \(C, number 1\) with a mass of 6.035; are the atoms in the same"
    ):
        loaded(tmp_path, butane(), heavy)
    swapped = butane_system()
    swapped.setParticleMass(3, 1.008)
    swapped.setParticleMass(4, 12.011)
    with pytest.raises(InputError, match=r"C1 \(C, number 1\).*, C4 \(C, number 4\) with a mass of 1.008"):
        loaded(tmp_path, butane(), swapped)
    (tmp_path / "mine.pdb").write_text(pdb_text(loaded(tmp_path, butane(), butane_system()).topology, np.zeros((14, 3)), []))
    (tmp_path / "mine.xml").write_text(openmm.XmlSerializer.serialize(swapped))
    files = {"pdb": str(tmp_path / "mine.pdb"), "system_xml": str(tmp_path / "mine.xml")}
    with pytest.raises(InputError, match="other masses than the elements"):
        load_system(SystemConfig(name="pdb-xml", **files))


def with_bonds(*pairs: tuple[int, int], constrained: bool = False) -> openmm.System:
    """Butane's System without its bonds to the first hydrogen, and with those of `pairs`."""
    system, other = butane_system(), butane_system()
    system.removeForce(0)
    bonds = openmm.HarmonicBondForce()
    force = other.getForce(0)
    for i, j, length, k in (force.getBondParameters(index) for index in range(force.getNumBonds())):
        if 4 not in (i, j):
            bonds.addBond(i, j, length, k)
    for i, j in pairs:
        if constrained:
            system.addConstraint(i, j, 0.109)
        else:
            bonds.addBond(i, j, 0.109, 1e5)
    system.addForce(bonds)
    return system


def test_bonds_that_are_not_those_of_the_system(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        InputError, match=r"the same bonds: C1-H1 in the file alone; C4-H1 in the System alone; are the atoms in"
    ):
        loaded(tmp_path, butane(), with_bonds((3, 4)))
    with pytest.raises(InputError, match=r"the same bonds: C1-H1 in the file alone; are"):
        loaded(tmp_path, butane(), with_bonds())
    assert not caplog.text
    for system in (with_bonds((0, 4)), with_bonds((0, 4), (4, 5)), with_bonds((0, 4), constrained=True)):
        loaded(tmp_path, butane(), system)  # the second has a term of Urey and Bradley
    stretched = with_bonds()
    custom = openmm.CustomBondForce("r^4")
    custom.addBond(0, 4, [])
    stretched.addForce(custom)
    loaded(tmp_path, butane(), stretched)
    assert not caplog.text
    loaded(tmp_path, butane(), with_bonds((0, 4), (0, 3)))
    assert "the same bonds: C1-C4 in the System alone" in caplog.text
    caplog.clear()
    system = loaded(tmp_path, butane(), with_bonds((0, 4)))
    (tmp_path / "mine.pdb").write_text(pdb_text(system.topology, system.positions_nm, []))
    (tmp_path / "mine.xml").write_text(openmm.XmlSerializer.serialize(with_bonds()))
    files = {"pdb": str(tmp_path / "mine.pdb"), "system_xml": str(tmp_path / "mine.xml")}
    assert load_system(SystemConfig(name="pdb-xml", **files)).n_atoms == 14
    assert "C1-H1 in the file alone" in caplog.text  # PDB files may lack bonds, and warn


def test_charges_that_are_not_those_of_the_system(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded(tmp_path, butane(), butane_system())
    assert not caplog.text
    ion = butane()
    ion.charges = {0: -1}
    loaded(tmp_path, ion, butane_system())
    assert "has a total charge of" in caplog.text and "formal charges of" in caplog.text and "add up to -1" in caplog.text


def test_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths become absolute, and a changed file is noticed by its content."""
    write_files(tmp_path, butane(), butane_system())
    monkeypatch.chdir(tmp_path)
    config = load_config("tiny", ["system.name=sdf-xml", "system.sdf=mine.sdf", "system.system_xml=mine.xml"])
    assert config.system.sdf == str(tmp_path / "mine.sdf") and config.system.system_xml == str(tmp_path / "mine.xml")
    run = Run(tmp_path / "run", config, Workers())
    before = run.fingerprint("reference")
    (tmp_path / "mine.sdf").write_text(butane().v2000() + "\n")
    assert run.fingerprint("reference") != before
    with pytest.raises(InputError, match="sdf_sha256"):
        load_config("tiny", ["system.sdf_sha256=abc"])


@every_molecule
@pytest.mark.parametrize("orders", [True, False], ids=["orders", "no orders"])
def test_bonds_that_rotate(name: str, orders: bool) -> None:
    """The same by the orders of bonds and, as after a PDB file, by counting neighbours."""
    heavy, bonds, expected = MOLECULES[name]
    topology = graph(heavy, bonds, orders=orders)
    quads = rotatable_torsions(topology)
    assert [tuple(sorted(quad[1:3])) for quad in quads] == sorted(expected)
    bonded = {frozenset((a.index, b.index)) for a, b in topology.bonds}
    for quad in quads:
        assert all(frozenset(pair) in bonded for pair in itertools.pairwise(quad))
        assert all(topology.atom(atom).element.symbol != "H" for atom in quad)
    assert named_torsions(topology)["torsion"] == quads
    names = {f"torsion{number}": quad for number, quad in enumerate(quads, start=1)}
    assert {key: quad for key, quad in torsions_by_name(topology).items() if key[-1].isdigit() and key[0] == "t"} == names


@every_molecule
def test_torsions_are_coordinates_in_every_order_of_atoms(name: str) -> None:
    heavy, bonds, _ = MOLECULES[name]
    generator = np.random.default_rng(1)
    n = len(heavy.split())
    for order in [np.arange(n), *(generator.permutation(n) for _ in range(20))]:
        place = np.argsort(order).tolist()
        elements = " ".join(heavy.split()[old] for old in order)
        pairs = []
        for word in bonds.split():
            kind = next(mark for mark in "-=#:" if mark in word)
            pairs.append(kind.join(str(place[int(atom)]) for atom in word.split(kind)))
        topology = graph(elements, " ".join(pairs))
        zmatrix = ZMatrix(topology)
        quads = rotatable_torsions(topology)
        assert len(quads) == len(MOLECULES[name][2])
        assert all(torsion_row(zmatrix, quad) is not None for quad in quads)


def test_names_of_torsions(tmp_path: Path, alanine: MolecularSystem) -> None:
    small = graph("C C C C C", "0-1 1-2 2-3 3-4")
    assert torsion_by_name(small, "torsion2") == (1, 2, 3, 4)
    with pytest.raises(InputError, match="no torsion 'phi' in this molecule; it has: torsion1, torsion2; or give"):
        torsion_by_name(small, "phi")
    with pytest.raises(InputError, match="no torsion 'torsion1' in this molecule; it has: omega1, omega2, phi"):
        torsion_by_name(alanine.topology, "torsion1")
    long = graph("C " * 60, " ".join(f"{k}-{k + 1}" for k in range(59)))
    with pytest.raises(InputError, match=r"torsion45, \.\.\.; or give"):
        torsion_by_name(long, "phi")
    system = loaded(tmp_path, benzamide(), benzamide_system())
    assert set(torsions_by_name(system.topology)) == {"omega1", "omega", "torsion1", "torsion"}
    chosen = choose_torsions(system, "phi")
    assert chosen.names == ("torsion1",) and "uses the rotatable torsion torsion1 in its place" in chosen.notes[0]


def test_spread_starts_turn_what_rotates(tmp_path: Path) -> None:
    """The bond of butane all around; ring, amide and double bond of the other as they were."""
    system = loaded(tmp_path, butane(), butane_system())
    quad = torsion_by_name(system.topology, "torsion1")
    turned = np.sort(torsion_angles(spread_structures(system, 16, 1), quad))
    assert np.diff(turned).max() < np.radians(60) and np.ptp(turned) > np.radians(300)
    other = loaded(tmp_path, benzamide(), benzamide_system())
    structures = spread_structures(other, 8, 1)
    omega, ring = torsion_by_name(other.topology, "omega1"), (0, 1, 2, 3)
    for atoms in (omega, ring):
        np.testing.assert_allclose(np.cos(torsion_angles(structures, atoms) - torsion_angles(other.positions_nm, atoms)), 1)
    assert np.ptp(torsion_angles(structures, torsion_by_name(other.topology, "torsion1"))) > np.radians(200)
