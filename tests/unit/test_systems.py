"""Molecular systems: energies of known value, the general doors, and messages for broken input."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from hpc_molgen.angles import wrap
from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.bias import spread_structures
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.dynamics.modified import TorsionBias
from hpc_molgen.errors import InputError
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import set_torsion, torsion_angles, torsion_by_name


def pdb_of(system: MolecularSystem, without: tuple[str, ...] = (), rename: dict[str, str] | None = None) -> str:
    text = pdb_text(system.topology, system.positions_nm, [])
    lines = [line for line in text.splitlines() if line[12:16].strip() not in without or not line.startswith(("ATOM", "HET"))]
    if without:
        lines = [line for line in lines if not line.startswith("CONECT")]
    text = "\n".join(lines)
    for old, new in (rename or {}).items():
        text = text.replace(old, new)
    return text


def test_alanine_dipeptide_has_the_known_minimum(alanine: MolecularSystem) -> None:
    """The lowest of several minima: which one a single start leads to hangs on the processor's rounding."""
    engine, found = Engine(alanine, "Reference"), []
    for start in spread_structures(alanine, 16, 1):
        engine.set_positions(start)
        found.append(engine.minimise())
    assert min(found) == pytest.approx(-134.27, abs=0.1)  # facts/md.md, section 1
    assert engine.platform == "Reference" and alanine.n_atoms == 22


def test_phi_psi_of_the_built_structure(alanine: MolecularSystem) -> None:
    angles = [np.degrees(torsion_angles(alanine.positions_nm, torsion_by_name(alanine.topology, n))) for n in ("phi", "psi")]
    assert angles == pytest.approx([-80, 80], abs=1e-6)


def test_setting_a_torsion_moves_nothing_else(alanine: MolecularSystem) -> None:
    phi, psi = (torsion_by_name(alanine.topology, name) for name in ("phi", "psi"))
    turned = set_torsion(alanine.topology, alanine.positions_nm, phi, 1.234)
    assert float(torsion_angles(turned, phi)) == pytest.approx(1.234, abs=1e-12)
    assert float(torsion_angles(turned, psi)) == pytest.approx(np.radians(80), abs=1e-9)
    bonds = np.array([(a.index, b.index) for a, b in alanine.topology.bonds])
    lengths = [np.linalg.norm(x[bonds[:, 0]] - x[bonds[:, 1]], axis=1) for x in (alanine.positions_nm, turned)]
    assert lengths[0] == pytest.approx(lengths[1], abs=1e-12)


def test_wrap_keeps_pi() -> None:
    assert wrap(np.array([np.pi, -np.pi, 3 * np.pi, 0.5])) == pytest.approx([np.pi, np.pi, np.pi, 0.5])


def test_key_names_the_energy_function_and_survives_pickling(alanine: MolecularSystem) -> None:
    vacuum = load_system(SystemConfig(name="alanine-dipeptide-vacuum"))
    hot = load_system(SystemConfig(temperature_kelvin=310.0))
    assert len({alanine.key, vacuum.key, hot.key}) == 3
    assert pickle.loads(pickle.dumps(alanine)).key == alanine.key


def test_water_variant_is_periodic_with_rigid_water() -> None:
    system = load_system(SystemConfig(name="alanine-dipeptide-water"))
    built = openmm.XmlSerializer.deserialize(system.system_xml)
    assert built.usesPeriodicBoundaryConditions() and built.getNumConstraints() == system.n_atoms - 22


def test_user_pdb_gives_the_energy_of_its_force_field(alanine: MolecularSystem, tmp_path: Path) -> None:
    path = tmp_path / "mine.pdb"
    path.write_text(pdb_of(alanine))
    system = load_system(SystemConfig(name="pdb", pdb=str(path)))
    pdb = app.PDBFile(str(path))
    direct = app.ForceField("amber14/protein.ff14SB.xml", "implicit/obc2.xml").createSystem(pdb.topology)
    context = openmm.Context(direct, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(pdb.positions)
    energy = context.getState(getEnergy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    ours = Engine(system, "Reference").reduced_energy(system.positions_nm[None])[0] * system.kt_kj_mol
    assert ours == pytest.approx(energy, abs=1e-6)


def test_user_xml_gives_its_own_energies(alanine: MolecularSystem, tmp_path: Path) -> None:
    (tmp_path / "a.pdb").write_text(pdb_of(alanine))
    (tmp_path / "a.xml").write_text(alanine.system_xml)
    system = load_system(SystemConfig(name="pdb-xml", pdb=str(tmp_path / "a.pdb"), system_xml=str(tmp_path / "a.xml")))
    x = alanine.positions_nm[None]
    assert Engine(system, "Reference").reduced_energy(x) == pytest.approx(Engine(alanine, "Reference").reduced_energy(x))


def test_missing_atom_is_named(alanine: MolecularSystem, tmp_path: Path) -> None:
    path = tmp_path / "gap.pdb"
    path.write_text(pdb_of(alanine, without=("HB2",)))
    with pytest.raises(InputError, match=r"(?s)gap\.pdb.*residue ALA 2.*missing atoms HB2") as error:
        load_system(SystemConfig(name="pdb", pdb=str(path)))
    assert "PDBFixer" in str(error.value).replace("\n", " ")


def test_unknown_residue_is_named(alanine: MolecularSystem, tmp_path: Path) -> None:
    path = tmp_path / "odd.pdb"
    path.write_text(pdb_of(alanine, without=("HB1",), rename={"ALA": "XYZ"}))
    with pytest.raises(InputError, match="residue XYZ 2 of chain A: the force field does not know"):
        load_system(SystemConfig(name="pdb", pdb=str(path)))


@pytest.mark.parametrize(("text", "word"), [("", "not a PDB"), ("ATOM garbage\n", "not a PDB"), (None, "no such PDB")])
def test_files_that_are_no_pdb(tmp_path: Path, text: str | None, word: str) -> None:
    path = tmp_path / "x.pdb"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=word):
        load_system(SystemConfig(name="pdb", pdb=str(path)))


def test_xml_of_another_molecule_is_refused(alanine: MolecularSystem, tmp_path: Path) -> None:
    (tmp_path / "a.pdb").write_text(pdb_of(alanine))
    other = openmm.System()
    other.addParticle(1.0)
    (tmp_path / "a.xml").write_text(openmm.XmlSerializer.serialize(other))
    with pytest.raises(InputError, match=r"1 particles.*22 atoms"):
        load_system(SystemConfig(name="pdb-xml", pdb=str(tmp_path / "a.pdb"), system_xml=str(tmp_path / "a.xml")))


def test_unknown_torsion_lists_the_known(alanine: MolecularSystem) -> None:
    with pytest.raises(InputError, match="omega1, omega2, phi"):
        torsion_by_name(alanine.topology, "chi1")
    assert torsion_by_name(alanine.topology, "4-6-8-14") == torsion_by_name(alanine.topology, "phi")


def test_bias_force_has_the_energy_it_reports(alanine: MolecularSystem) -> None:
    bias = TorsionBias(torsion_by_name(alanine.topology, "phi"), (1.0, -2.0), (0.5, 3.0))
    system = openmm.System()
    for _ in range(22):
        system.addParticle(1.0)
    bias.add_to(system)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(alanine.positions_nm)
    energy = context.getState(getEnergy=True).getPotentialEnergy()._value
    constant = np.hypot(bias.cos_kj_mol, bias.sin_kj_mol).sum()  # k (1 + cos) in place of k cos
    expected = float(bias.energy_kj_mol(torsion_angles(alanine.positions_nm, bias.atoms)))
    assert energy - constant == pytest.approx(expected, abs=1e-9)


def test_energies_of_broken_conformations_are_infinite(alanine: MolecularSystem) -> None:
    positions = np.stack([alanine.positions_nm, np.full((22, 3), np.nan), alanine.positions_nm])
    energies = Engine(alanine, "Reference").reduced_energy(positions)
    assert np.isinf(energies[1]) and energies[0] == energies[2] and np.isfinite(energies[0])


def test_written_pdb_opens_in_openmm(alanine: MolecularSystem) -> None:
    pdb = app.PDBFile(io.StringIO(pdb_of(alanine)))
    assert pdb.topology.getNumBonds() == alanine.topology.n_bonds
    assert [atom.name for atom in pdb.topology.atoms()] == [atom.name for atom in alanine.topology.atoms]
