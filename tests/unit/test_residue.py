"""Residues: their features, their torsions, and the representation made of these."""

from __future__ import annotations

from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from hpc_molgen.angles import wrap, wrap_angle
from hpc_molgen.config import RepresentationConfig, SystemConfig, load_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import InputError
from hpc_molgen.preflight import check
from hpc_molgen.representations.base import load_representation
from hpc_molgen.representations.residue import ResidueRepresentation
from hpc_molgen.structures import StructureChecker, check_fractions
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.residues import STANDARD, residue_features, residue_torsions
from hpc_molgen.systems.torsions import named_torsions, set_torsion, torsion_angles

CONFIG = RepresentationConfig(name="residue")
CHIGNOLIN = "G-Y-D-P-E-T-G-T-W-G"


def peptide(sequence: str) -> MolecularSystem:
    return load_system(SystemConfig(name="peptide", sequence=sequence))


def md(system: MolecularSystem, n_frames: int, seed: int = 5, kelvin: float = 300.0) -> np.ndarray:
    engine = Engine(system, "CPU", seed, temperature_kelvin=kelvin)
    engine.minimise()
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    return np.concatenate([block.positions_nm for block in engine.simulate(n_frames, 40)]).astype(np.float64)


@pytest.fixture(scope="module")
def two() -> MolecularSystem:
    return peptide("ALA-SER")


@pytest.fixture(scope="module")
def frames(two: MolecularSystem) -> np.ndarray:
    return md(two, 400, kelvin=600.0)


@pytest.fixture(scope="module")
def ten() -> MolecularSystem:
    return peptide(CHIGNOLIN)


def test_features_of_each_residue(ten: MolecularSystem) -> None:
    found = residue_features(ten.topology)
    assert found.values.shape == (10, 26) and len(STANDARD) == 20
    assert found.names[20:] == ("place", "from_start", "to_end", "helix", "strand", "coil")
    assert found.residues[0] == "GLY2" and list(found.indices) == list(range(1, 11))  # without the caps
    types = [found.names[row[:20].argmax()] for row in found.values]
    assert " ".join(types) == "GLY TYR ASP PRO GLU THR GLY THR TRP GLY" and (found.values[:, :20].sum(1) == 1).all()
    np.testing.assert_allclose(found.values[:, 20], np.arange(10) / 9)
    assert (found.values[:, 21] == np.arange(10)).all() and (found.values[:, 22] == 9 - np.arange(10)).all()
    assert not found.values[:, 23:].any()  # nothing is known of the structure without frames


def test_protonation_does_not_change_the_type() -> None:
    found = residue_features(peptide("HIE-ASH-LYN-CYM").topology)
    assert [STANDARD[row[:20].argmax()] for row in found.values] == ["HIS", "ASP", "LYS", "CYS"]
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for name, atoms in (("HSP", "CA"), ("CYX", "CA"), ("SEP", "N CA C"), ("HOH", "O"), ("CA", "CA")):
        residue = topology.add_residue(name, chain)
        for atom in atoms.split():
            topology.add_atom(atom, mdtraj.element.carbon, residue)
    found = residue_features(topology)
    assert found.residues == ("HSP0", "CYX1", "SEP2")  # an unknown amino acid is a residue, water and calcium are none
    assert [STANDARD[row[:20].argmax()] for row in found.values[:2]] == ["HIS", "CYS"] and not found.values[2, :20].any()
    assert list(found.values[:, 20]) == [0, 0.5, 1]


def test_secondary_structure_is_shared_by_weight() -> None:
    system = peptide("-".join("A" * 12))
    helix = system.positions_nm
    for kind, angle in (("phi", -57.0), ("psi", -47.0)):
        for quad in named_torsions(system.topology)[kind]:
            helix = set_torsion(system.topology, helix, quad, np.radians(angle))
    shares = residue_features(system.topology, np.stack([helix, system.positions_nm]), np.array([1.0, 3.0])).values[:, 23:]
    assert (shares[3:9] == [0.25, 0, 0.75]).all()  # the last turns at both ends are frayed
    np.testing.assert_allclose(shares.sum(1), 1)
    alike = residue_features(system.topology, np.stack([helix, system.positions_nm])).values[:, 23:]
    assert (alike[3:9] == [0.5, 0, 0.5]).all()


def test_beads_and_other_molecules() -> None:
    beads = load_system(SystemConfig(name="trp-cage"))
    found = residue_features(beads.topology, beads.positions_nm[None])
    assert found.values.shape == (20, 26) and not found.values[:, 23:].any()  # no hydrogen bonds to see
    assert STANDARD[found.values[5, :20].argmax()] == "TRP"
    other = mdtraj.Topology()
    residue = other.add_residue("LIG", other.add_chain())
    other.add_atom("C1", mdtraj.element.carbon, residue)
    assert residue_features(other, np.zeros((1, 1, 3))).values.shape == (0, 26)
    with pytest.raises(InputError, match="of peptides and proteins"):
        residue_torsions(other)
    with pytest.raises(InputError, match="of peptides and proteins"):
        check(
            load_config("trp-cage", ["representation.name=residue", "surrogate={name: diffusion}", "reference.labels=[]"]),
            beads,
        )


def test_torsions_in_the_order_of_residues_and_none_in_a_ring(ten: MolecularSystem) -> None:
    names = [name for name, _ in residue_torsions(ten.topology)]
    assert names[:6] == ["GLY2-phi", "GLY2-psi", "TYR3-phi", "TYR3-psi", "TYR3-chi1", "TYR3-chi2"]
    assert [name for name in names if name.startswith("PRO")] == ["PRO5-psi"] and len(names) == 30
    with_omega = [name for name, _ in residue_torsions(ten.topology, omega=True)]
    assert len(with_omega) == 41 and with_omega[:3] == ["ACE1-omega", "GLY2-phi", "GLY2-psi"]  # eleven amides


def test_what_is_asked_for_is_set(two: MolecularSystem, frames: np.ndarray) -> None:
    representation = ResidueRepresentation.fit(two, CONFIG, frames, np.ones(len(frames)))
    assert representation.names == ("ALA2-phi", "ALA2-psi", "SER3-phi", "SER3-psi", "SER3-chi1")
    assert (representation.n_torus, representation.n_euclidean) == (5, 0)
    assert "conditional mean" in representation.target
    features = (torch.rand((200, 5), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1) * 3.1
    x = torch.as_tensor(frames)
    for given in (representation.encode(x), features):
        positions, log_det = representation.decode(given)
        assert not log_det.any() and wrap_angle(representation.encode(positions) - given).abs().max() < 1e-9
    decoded = representation.decode(representation.encode(x))[0].numpy()
    for _, quad in residue_torsions(two.topology):
        assert np.abs(wrap(torsion_angles(decoded, quad) - torsion_angles(frames, quad))).max() < 1e-9
    failed = check_fractions(StructureChecker(two, np.inf)(representation.decode(features)[0].numpy(), np.zeros(200)))
    assert failed["chirality"] == failed["bonds"] == 0  # also where there were no frames
    with_omega = ResidueRepresentation.fit(two, RepresentationConfig(name="residue", omega=True), frames, np.ones(len(frames)))
    assert [name for name in with_omega.names if "omega" in name] == ["ACE1-omega", "ALA2-omega", "SER3-omega"]


def test_ten_residues_from_a_few_frames(ten: MolecularSystem) -> None:
    frames = md(ten, 60)
    representation = ResidueRepresentation.fit(ten, CONFIG, frames, np.ones(60))
    assert representation.n_torus == 30 and "PRO5-phi" not in representation.names
    features = representation.encode(torch.as_tensor(frames))
    positions, _ = representation.decode(features)
    assert wrap_angle(representation.encode(positions) - features).abs().max() < 1e-9
    for seed_frames in (frames, md(ten, 20, seed=6)):
        made = representation.decode(representation.encode(torch.as_tensor(seed_frames)))[0].numpy()
        assert not check_fractions(StructureChecker(ten, np.inf)(made, np.zeros(len(made))))["any"]
    np.testing.assert_allclose(representation.residues.values[:, 23:].sum(1), 1)


def test_files(two: MolecularSystem, frames: np.ndarray, tmp_path: Path) -> None:
    weights = np.linspace(0.1, 1, len(frames))
    representation = ResidueRepresentation.fit(two, CONFIG, frames, weights)
    representation.save(tmp_path / "r.safetensors", two)
    loaded = load_representation(tmp_path / "r.safetensors", two)
    assert isinstance(loaded, ResidueRepresentation) and loaded.names == representation.names
    x = torch.as_tensor(frames[:50])
    assert torch.equal(loaded.encode(x), representation.encode(x))
    assert np.array_equal(loaded.residues.values, residue_features(two.topology, frames, weights).values)
    assert loaded.about() == representation.about()
    rows = loaded.about()["residues"]
    assert isinstance(rows, list) and [row["residue"] for row in rows] == ["ALA2", "SER3"] and rows[1]["SER"] == 1
