"""Written structures: they open in OpenMM and mdtraj, keep their torsions, and defects are found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mdtraj
import numpy as np
import pytest
from openmm import app, unit

from hpc_molgen import structures
from hpc_molgen.angles import wrap
from hpc_molgen.ensemble import Ensemble, read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import atoms_beyond, set_torsion, torsion_angles, torsion_by_name


@pytest.fixture(scope="module")
def checker(alanine: MolecularSystem) -> structures.StructureChecker:
    return structures.StructureChecker(alanine, energy_limit=0.0)


def failures(checker: structures.StructureChecker, positions_nm: np.ndarray, energy: float = -1.0) -> set[str]:
    check = checker(positions_nm[None], np.array([energy]))[0]
    return {name for name, failed in dataclasses.asdict(check).items() if failed}


def test_each_defect_is_found(alanine: MolecularSystem, checker: structures.StructureChecker) -> None:
    good = alanine.positions_nm
    assert failures(checker, good) == set()
    assert failures(checker, good * [1, 1, -1]) == {"chirality"}
    assert failures(checker, good, energy=1.0) == {"energy"} and failures(checker, good, energy=np.nan) == {"energy"}
    omega = torsion_by_name(alanine.topology, "omega1")
    assert "omega" in failures(checker, set_torsion(alanine.topology, good, omega, 0.1))
    stretched = good.copy()
    beyond = atoms_beyond(alanine.topology, 8, 14)
    stretched[beyond] += 0.3 * (good[14] - good[8])
    assert "bonds" in failures(checker, stretched)
    clash = good.copy()
    clash[10] = good[5] + 0.1  # CB onto the oxygen of ACE
    assert "clash" in failures(checker, clash)


def test_every_structure_opens_with_the_torsions_that_were_sampled(alanine: MolecularSystem, tiny_run: Path) -> None:
    """The first published pipeline set the wrong bonds and never looked."""
    rows = structures.read_manifest(tiny_run / "correct" / "pdb", alanine)
    sampled = read_ensemble(tiny_run / "correct" / "weighted.h5", alanine)
    quads = [torsion_by_name(alanine.topology, name) for name in ("phi", "psi")]
    force_field = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
    assert len(rows) == 10
    for row in rows:
        path = tiny_run / "correct" / "pdb" / str(row["file"])
        parent = sampled.positions_nm[row["parent"]]
        by_mdtraj = mdtraj.load(str(path))
        pdb = app.PDBFile(str(path))
        by_openmm = np.asarray(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        for quad in quads:
            asked = torsion_angles(parent, quad)
            for positions in (by_mdtraj.xyz[0], by_openmm):
                assert abs(np.degrees(wrap(torsion_angles(positions, quad) - asked))) < 0.1
        assert [bond[0].index for bond in by_mdtraj.topology.bonds]
        assert by_mdtraj.topology.n_bonds == pdb.topology.getNumBonds() == alanine.topology.n_bonds
        force_field.createSystem(pdb.topology)
        text = path.read_text()
        assert f"parent proposal {row['parent']}" in text and alanine.key in text and row["weight"] == 0.1


def test_atoms_that_differ_are_named(alanine: MolecularSystem, tmp_path: Path) -> None:
    text = structures.pdb_text(alanine.topology, alanine.positions_nm, [])
    path = tmp_path / "x.pdb"
    path.write_text("\n".join(line for line in text.splitlines() if " HB2 " not in line and not line.startswith("CONECT")))
    with pytest.raises(InputError, match=r"x\.pdb: 21 atoms do not match the 22.*HB2"):
        structures.read_pdb_positions(path, alanine)
    path.write_text("")
    with pytest.raises(InputError, match=r"x\.pdb"):
        structures.read_pdb_positions(path, alanine)


def test_manifest_of_another_system_is_refused(alanine: MolecularSystem, tmp_path: Path) -> None:
    ensemble = Ensemble.create(alanine, alanine.positions_nm[None], reduced_energy=np.zeros(1))
    checks = [structures.StructureCheck(False, False, False, False, False)]
    structures.write_structures(tmp_path, ensemble, alanine, checks)
    other = dataclasses.replace(alanine, temperature_kelvin=310.0)
    with pytest.raises(InputError, match=f"{alanine.key}.*{other.key}"):
        structures.read_manifest(tmp_path, other)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match="not a manifest"):
        structures.read_manifest(tmp_path, alanine)
