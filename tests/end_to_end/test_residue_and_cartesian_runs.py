"""Runs of the representations `cartesian` and `residue`, from nothing to a report."""

from __future__ import annotations

import json

import mdtraj
import numpy as np
import pytest
import torch
from openmm import app

from hpc_molgen.angles import wrap
from hpc_molgen.config import load_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.pipeline import run_stages
from hpc_molgen.representations.base import load_representation
from hpc_molgen.representations.residue import ResidueRepresentation
from hpc_molgen.run import Run
from hpc_molgen.structures import read_manifest, read_pdb_positions
from hpc_molgen.systems.torsions import named_torsions, torsion_angles
from hpc_molgen.workers import Workers

CARTESIAN = ["representation.name=cartesian", "train.n_steps=150"]
RESIDUE = [
    "representation.name=residue", "system={name: peptide, sequence: ALA-SER}", "reference.bias_torsion=phi1", "report.cv=phi1",
    "reference.production_ps=20", "farm.observables=[phi1, psi1]",
]  # fmt: skip
PDB_ROUNDING = 0.02  # radians, of torsions from coordinates to 0.001 Angstrom


@pytest.fixture(scope="module", params=[CARTESIAN, RESIDUE], ids=["cartesian", "residue"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = Run.create(tmp_path_factory.mktemp("run") / "run", load_config("tiny", request.param), Workers(n_processes=1))
    run_stages(made)
    return made


def test_weights_are_those_of_the_stated_target(run: Run) -> None:
    """-u - ln q, with OpenMM's energies; of what, every table says."""
    weighted = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    known = np.isfinite(weighted.log_weight) & (weighted.reduced_energy < 1e6)
    assert known.sum() > 20 and len(weighted) == 400
    energies = Engine(run.system, "Reference").reduced_energy(weighted.positions_nm[known][:40])
    expected = -energies - weighted.log_density[known][:40]
    np.testing.assert_allclose(weighted.log_weight[known][:40], expected, rtol=1e-6, atol=1e-3)
    diagnostics = json.loads(run.path("correct", "diagnostics.json").read_text())
    words = {"cartesian": "all 3N - 6 Cartesian", "residue": "held at its conditional mean"}[run.config.representation.name]
    assert diagnostics["weighted"] and diagnostics["density"] == "exact" and words in diagnostics["target"]
    report = run.path("report", "report.md").read_text()
    assert report.count(words) > 3 and "Not certified" in report  # seconds of training


def test_structures_are_what_was_sampled(run: Run) -> None:
    """Every PDB file opens, is of L residues, and has the (phi, psi) of the sample that it was made from."""
    weighted = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    directory, kinds = run.path("correct", "pdb"), named_torsions(run.system.topology)
    rows = read_manifest(directory, run.system)
    assert len(rows) == 10
    for row in rows:
        path = directory / str(row["file"])
        found, asked = read_pdb_positions(path, run.system), weighted.positions_nm[int(str(row["parent"]))]
        for quad in (*kinds["phi"], *kinds["psi"]):
            assert abs(wrap(torsion_angles(found, quad) - torsion_angles(asked, quad))) < PDB_ROUNDING
        angles = [function(mdtraj.load(path))[1][0] for function in (mdtraj.compute_phi, mdtraj.compute_psi)]
        np.testing.assert_allclose(
            np.cos(angles),
            [[np.cos(torsion_angles(found, quad)) for quad in kinds[kind]] for kind in ("phi", "psi")],
            atol=1e-4,
        )
        assert app.PDBFile(str(path)).topology.getNumAtoms() == run.system.n_atoms
        for residue in run.system.topology.residues:
            atoms = {atom.name: found[atom.index] for atom in residue.atoms}
            if "CB" in atoms:
                u, v, w = (atoms[name] - atoms["CA"] for name in ("N", "C", "CB"))
                assert np.dot(np.cross(u, v), w) > 0  # L
    assert len(list(run.path("farm").glob("replica-*.h5"))) == 4


def test_features_of_residues_are_listed(run: Run) -> None:
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    listed = run.path("featurize", "residues.json")
    if not isinstance(representation, ResidueRepresentation):
        assert not listed.exists()
        return
    about = json.loads(listed.read_text())
    assert about["torsions"] == ["ALA2-phi", "ALA2-psi", "SER3-phi", "SER3-psi", "SER3-chi1"] == list(representation.names)
    assert [(row["residue"], row["ALA"], row["SER"], row["coil"]) for row in about["residues"]] == [
        ("ALA2", 1, 0, 1), ("SER3", 0, 1, 1),
    ]  # fmt: skip
    assert len(about["columns"]) == representation.residues.values.shape[1] == 26
    proposals = read_ensemble(run.path("sample", "proposals.h5"), run.system)
    features = representation.encode(torch.as_tensor(proposals.positions_nm, dtype=torch.float64))
    again = representation.decode(features)[0].numpy()  # the rest of the geometry follows from these torsions
    np.testing.assert_allclose(
        np.linalg.norm(again[:, 4] - again[:, 20], axis=1),
        np.linalg.norm(proposals.positions_nm[:, 4] - proposals.positions_nm[:, 20], axis=1),
        atol=1e-5,
    )
