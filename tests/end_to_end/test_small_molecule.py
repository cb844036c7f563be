"""Small molecules from an SD file and a System XML to the report, and butane's populations against long biased MD."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpc_molgen import datasets
from hpc_molgen.config import load_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.ensemble import Ensemble, read_ensemble
from hpc_molgen.pipeline import STAGE_FUNCTIONS
from hpc_molgen.representations.base import load_representation
from hpc_molgen.reweighting import importance_log_weights, normalised_weights
from hpc_molgen.run import Run
from hpc_molgen.structures import read_pdb_positions
from hpc_molgen.systems.torsions import Quad, torsion_angles, torsion_by_name
from hpc_molgen.workers import Workers
from tests.conftest import CommandLine
from tests.small_molecules import benzamide, benzamide_system, butane, butane_system, write_files

SETTINGS = [
    "reference.bias_torsion=torsion1", "report.cv=torsion1", "reference.n_walkers=8", "reference.production_ps=200",
    "reference.save_every_ps=0.1", "surrogate={name: flow, layers: 4, hidden: 32}", "train.n_steps=80", "train.batch_size=256",
    "sample.n_samples=4000", "sample.shard_size=4000", "correct.n_structures=4", "correct.check_frames=200",
    "farm.n_replicas=2",
]  # fmt: skip
TRANS = np.radians(120)
PARTS = 10  # blocks of a walker, of 20 ps: the flattened torsion forgets in less than one


@pytest.fixture(scope="module")
def run(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """n-butane in the preset `tiny` with a flow, from its files to the report."""
    folder = tmp_path_factory.mktemp("butane")
    values = [*write_files(folder, butane(), butane_system()), *SETTINGS]
    ended = command("run", "tiny", "--out", str(folder / "run"), *(part for value in values for part in ("--set", value)))
    assert ended.returncode in (0, 3), ended.stderr
    return Run.open(folder / "run")


def block_sums(is_trans: np.ndarray, weights: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Weights of trans and of all frames of each block, shape=(n_blocks, 2)."""
    return np.stack([np.bincount(blocks, weights * is_trans), np.bincount(blocks, weights)], axis=1)


def population(sums: np.ndarray) -> tuple[float, float]:
    """Weighted share of trans, and its standard error by a bootstrap over blocks."""
    drawn = np.random.default_rng(1).integers(len(sums), size=(300, len(sums)))
    replicates = np.array([sums[rows].sum(axis=0) for rows in drawn])
    value, total = sums.sum(axis=0)
    return float(value / total), float((replicates[:, 0] / replicates[:, 1]).std())


def by_md(both: Ensemble, quad: Quad, weights: np.ndarray) -> tuple[float, float]:
    """Share of trans by walkers, which all have the same number of frames."""
    walker = np.unique(both.trajectory, return_inverse=True)[1]
    n_frames = len(both) // (walker.max() + 1)
    blocks = walker * PARTS + np.arange(len(both)) % n_frames * PARTS // n_frames
    return population(block_sums(np.abs(torsion_angles(both.positions_nm, quad)) > TRANS, weights, blocks))


def test_trans_and_gauche_of_butane(run: Run) -> None:
    """Corrected samples against 1.6 ns of biased MD; by the mirror image both gauche states have the same share."""
    quad = torsion_by_name(run.system.topology, "torsion1")
    both = Ensemble.concatenate(list(datasets.load_split(run)))
    assert np.ptp(both.log_weight) > 1  # a bias is there
    md, md_error = by_md(both, quad, normalised_weights(both.log_weight))
    samples = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    angles, weights = torsion_angles(samples.positions_nm, quad), normalised_weights(samples.log_weight)
    ours, error = population(block_sums(np.abs(angles) > TRANS, weights, np.arange(len(samples))))
    assert 1 / np.sum(weights**2) > 400 and md_error < 0.015 and error < 0.03
    assert abs(ours - md) < 4 * np.hypot(error, md_error)
    biased, biased_error = by_md(both, quad, np.ones(len(both)))  # what such error bars tell apart
    assert abs(biased - ours) > 10 * np.hypot(error, biased_error)
    plus, plus_error = population(block_sums((angles > 0) & (angles < TRANS), weights, np.arange(len(samples))))
    minus, minus_error = population(block_sums((angles < 0) & (angles > -TRANS), weights, np.arange(len(samples))))
    assert plus > 0.05 and abs(plus - minus) < 4 * np.hypot(plus_error, minus_error)


def test_butane_to_the_report(run: Run) -> None:
    """Weights are those of OpenMM's energies; PDB files, the farm and the report are of this molecule and its torsion."""
    weighted = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    chosen = np.arange(0, len(weighted), 80)
    energies = Engine(run.system, "Reference").reduced_energy(weighted.positions_nm[chosen])
    expected = importance_log_weights(energies, weighted.log_density[chosen])
    calm = energies < 1e3
    assert calm.sum() > 40
    np.testing.assert_allclose(weighted.log_weight[chosen][calm], expected[calm], atol=0.05)  # positions are kept in float32
    files = sorted(run.path("correct", "pdb").glob("*.pdb"))
    assert len(files) == 4 and read_pdb_positions(files[0], run.system).shape == (14, 3)
    assert " NBU A" in files[0].read_text() and "CONECT    1    2    5    6    7" in files[0].read_text()
    report = json.loads(run.path("report", "report.json").read_text())
    assert report["torsions"]["names"] == ["torsion1"] and report["farm"]["n_failed"] == 0
    assert report["coverage"]["density"]["forward_ess"]["value"] > 0.01
    assert "dF(torsion1 &gt; 0)" in run.path("report", "report.html").read_text()
    value, error = report["delta_f"]["corrected"]["value"], report["delta_f"]["corrected"]["standard_error"]
    assert abs(value) < 4 * error < 1  # zero, by the mirror image


def test_a_ring_and_an_amide_on_one_torsion(tmp_path: Path) -> None:
    """N-methylbenzamide in the `torsion` representation: torsion1 turns, ring and amide stay what they are."""
    values = [*write_files(tmp_path, benzamide(), benzamide_system()), "representation={name: torsion, torsions: [torsion1]}"]
    values += ["reference.bias_torsion=torsion1", "report.cv=torsion1", "farm.n_replicas=2", "sample.n_samples=200"]
    run = Run.create(tmp_path / "run", load_config("tiny", values), Workers(n_processes=1))
    for stage in STAGE_FUNCTIONS:
        STAGE_FUNCTIONS[stage](run)
    quad, omega = (torsion_by_name(run.system.topology, name) for name in ("torsion1", "omega1"))
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    assert (representation.n_torus, representation.n_euclidean) == (1, 0)
    weighted = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    turned = np.sort(torsion_angles(weighted.positions_nm, quad))
    assert len(weighted) == 200 and np.diff(turned).max() < np.radians(90) and np.ptp(turned) > np.radians(250)
    for atoms, centre in ((omega, np.pi), ((0, 1, 2, 3), 0.0)):
        assert np.abs(np.angle(np.exp(1j * (torsion_angles(weighted.positions_nm, atoms) - centre)))).max() < np.radians(30)
    report = json.loads(run.path("report", "report.json").read_text())
    assert report["torsions"]["names"] == ["torsion1"]
