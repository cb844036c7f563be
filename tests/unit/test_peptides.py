"""Capped peptides: formulas, charges and handedness of every residue, its energies, its coordinates, and a run of one."""

from __future__ import annotations

import functools
import io
import re
from collections import Counter
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from openmm import app

from hpc_molgen.angles import wrap_angle
from hpc_molgen.config import RepresentationConfig, SystemConfig, load_config
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.bias import flattening_bias, spread_structures
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.pipeline import STAGE_FUNCTIONS
from hpc_molgen.representations.internal import InternalRepresentation
from hpc_molgen.representations.torsion import TorsionRepresentation
from hpc_molgen.reweighting import importance_log_weights
from hpc_molgen.run import Run
from hpc_molgen.structures import StructureChecker, pdb_text, read_pdb_positions
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.peptides import PDB_NAMES, RESIDUES, parse_sequence
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import amide_torsions, neighbours_of, torsion_angles, torsion_by_name
from hpc_molgen.workers import Workers

# formula and charge of -NH-CHR-CO-, and how many of chi1 to chi4 there are
KNOWN = {
    "ALA": ("C3H5NO", 0, 0), "ARG": ("C6H13N4O", 1, 4), "ASH": ("C4H5NO3", 0, 2), "ASN": ("C4H6N2O2", 0, 2),
    "ASP": ("C4H4NO3", -1, 2), "CYM": ("C3H4NOS", -1, 1), "CYS": ("C3H5NOS", 0, 1), "GLH": ("C5H7NO3", 0, 3),
    "GLN": ("C5H8N2O2", 0, 3), "GLU": ("C5H6NO3", -1, 3), "GLY": ("C2H3NO", 0, 0), "HID": ("C6H7N3O", 0, 2),
    "HIE": ("C6H7N3O", 0, 2), "HIP": ("C6H8N3O", 1, 2), "ILE": ("C6H11NO", 0, 2), "LEU": ("C6H11NO", 0, 2),
    "LYN": ("C6H12N2O", 0, 4), "LYS": ("C6H13N2O", 1, 4), "MET": ("C5H9NOS", 0, 3), "PHE": ("C9H9NO", 0, 2),
    "PRO": ("C5H7NO", 0, 2), "SER": ("C3H5NO2", 0, 1), "THR": ("C4H7NO2", 0, 1), "TRP": ("C11H10N2O", 0, 2),
    "TYR": ("C9H9NO2", 0, 2), "VAL": ("C5H9NO", 0, 1),
}  # fmt: skip
# hydrogens that tell states of one residue apart
TOLD_BY = {
    "ASP": set(), "ASH": {"HD2"}, "GLU": set(), "GLH": {"HE2"}, "HID": {"HD1"}, "HIE": {"HE2"}, "HIP": {"HD1", "HE2"},
    "LYS": {"HZ1", "HZ2", "HZ3"}, "LYN": {"HZ2", "HZ3"}, "CYS": {"HG"}, "CYM": set(),
}  # fmt: skip
POLAR = {"ASP": "HD2", "GLU": "HE2", "HIS": "HD1 HE2", "LYS": "HZ1 HZ2 HZ3", "CYS": "HG"}
# neighbours of a centre by falling priority (Cahn, Ingold and Prelog 1966), hydrogen last and not written, and what it is
CENTRES = {
    "ILE": ("CB", ("CA", "CG1", "CG2"), "S"),
    "THR": ("CB", ("OG1", "CA", "CG2"), "R"),
}
every_residue = pytest.mark.parametrize("name", RESIDUES)


@functools.cache
def built(sequence: str) -> MolecularSystem:
    return load_system(SystemConfig(name="peptide", sequence=sequence))


@functools.cache
def conformations(sequence: str) -> np.ndarray:
    """Its rotatable torsions all around, and every atom shaken; 160 of them."""
    x = spread_structures(built(sequence), 160, 1)
    return x + np.random.default_rng(1).normal(0, 0.004, x.shape)


def named(system: MolecularSystem, residue: int = 1) -> dict[str, int]:
    return {atom.name: atom.index for atom in system.topology.residue(residue).atoms}


def descriptor(x: np.ndarray, centre: int, ranked: list[int]) -> str:
    """R or S; the fourth neighbour is hydrogen."""
    return "S" if np.linalg.det(x[ranked] - x[centre]) > 0 else "R"


def formula(text: str) -> Counter[str]:
    return Counter({symbol: int(number or 1) for symbol, number in re.findall(r"([A-Z])(\d*)", text)})


@functools.cache
def openmm_system(sequence: str) -> openmm.System:
    return openmm.XmlSerializer.deserialize(built(sequence).system_xml)


def force_of(sequence: str, kind: type) -> openmm.Force:
    """Of a system that is kept: its forces do not outlive it."""
    return next(force for force in openmm_system(sequence).getForces() if isinstance(force, kind))


@functools.cache
def typed_by() -> app.ForceField:
    return app.ForceField("amber99sbildn.xml", "amber99_obc.xml")


@every_residue
def test_atoms_and_charge(name: str) -> None:
    system, (atoms, charge, _) = built(name), KNOWN[name]
    assert [residue.name for residue in system.topology.residues] == ["ACE", PDB_NAMES.get(name, name), "NME"]
    found = Counter(atom.element.symbol for atom in system.topology.atoms)
    assert found == formula(atoms) + formula("C2H3O") + formula("CH4N")
    rings = {"PRO": 1, "HID": 1, "HIE": 1, "HIP": 1, "PHE": 1, "TYR": 1, "TRP": 2}.get(name, 0)
    assert system.topology.n_bonds == system.n_atoms - 1 + rings
    if name in TOLD_BY:
        assert set(POLAR[PDB_NAMES.get(name, name)].split()) & named(system).keys() == TOLD_BY[name]
    assert openmm_system(name).getNumConstraints() == 0 and not openmm_system(name).usesPeriodicBoundaryConditions()
    for kind in (openmm.NonbondedForce, openmm.GBSAOBCForce):
        force = force_of(name, kind)
        total = sum(force.getParticleParameters(k)[0]._value for k in range(system.n_atoms))
        assert total == pytest.approx(charge, abs=1e-6)


@every_residue
def test_shape(name: str) -> None:
    system, x, atoms = built(name), built(name).positions_nm, named(built(name))
    if name != "GLY":  # cysteine is L and R: sulphur ranks above the carbonyl
        assert descriptor(x, atoms["CA"], [atoms[other] for other in ("N", "C", "CB")]) == "S"
    if name in CENTRES:
        centre, ranked, expected = CENTRES[name]
        assert descriptor(x, atoms[centre], [atoms[other] for other in ranked]) == expected
    omegas = amide_torsions(system.topology)
    assert len(omegas) == 2 and all(abs(np.degrees(torsion_angles(x, quad))) > 165 for quad in omegas)
    bonds = force_of(name, openmm.HarmonicBondForce)
    for i, j, length, _ in (bonds.getBondParameters(k) for k in range(bonds.getNumBonds())):  # rings are closed
        assert np.linalg.norm(x[i] - x[j]) == pytest.approx(length._value, rel=0.03)
    neighbours = neighbours_of(system.topology)
    distances = np.linalg.norm(x[:, None] - x, axis=-1) + 9 * np.eye(len(x))
    for atom, others in enumerate(neighbours):
        distances[atom, list({*others, *(k for other in others for k in neighbours[other])} - {atom})] = 9
    assert distances.min() > 0.18  # hydrogens of one chain
    assert not StructureChecker(system, np.inf)(x[None], np.zeros(1))[0].failed
    assert np.abs(torsion_angles(x, torsion_by_name(system.topology, "psi")) - np.radians(150)) < np.radians(25)


@every_residue
def test_hydrogens_are_numbered_as_the_pdb_does(name: str) -> None:
    """Clockwise as seen along the chain: a heavy atom, 2, 3 (IUPAC-IUB 1970, rule 2.2.2); planar NH2 have cis first."""
    x, atoms = built(name).positions_nm, named(built(name))
    after = {"CB": "CG SG OG CG1", "CG": "CD SD", "CG1": "CD1", "CD": "NE CE N", "CE": "NZ"}
    seen = 0
    for centre, others in after.items():
        pair = [f"H{centre[1:]}{k}" for k in (2, 3)]
        heavy = [other for other in others.split() if other in atoms]
        if set(pair) <= atoms.keys() and heavy and centre in atoms:
            volume = np.linalg.det(x[[atoms[heavy[0]], *(atoms[h] for h in pair)]] - x[atoms[centre]])
            assert volume > 0, centre  # clockwise as seen from the fourth neighbour
            seen += 1
    assert seen == {"ALA": 0, "GLY": 0, "VAL": 0, "THR": 0, "ILE": 1, "ARG": 3, "LYS": 4, "LYN": 4, "PRO": 3, "MET": 2}.get(
        name, 2 if name in ("GLN", "GLU", "GLH") else 1
    )
    cis = {
        "ARG": ("CD NE CZ NH1", "NE CZ NH1 HH11", "NE CZ NH2 HH21"),
        "ASN": ("OD1 CG ND2 HD21",),
        "GLN": ("OE1 CD NE2 HE21",),
    }
    for quad in cis.get(name, ()):
        assert abs(torsion_angles(x, tuple(atoms[atom] for atom in quad.split()))) < 0.5  # type: ignore[arg-type]


@every_residue
def test_energies_are_those_of_openmm_by_the_kernel_and_by_a_written_file(name: str) -> None:
    system = built(name)
    x = np.concatenate([system.positions_nm[None], conformations(name)[:12]])
    expected = Engine(system, "Reference").reduced_energy(x) * system.kt_kj_mol
    calm = np.abs(expected) < 1e5  # torsions all around clash now and then
    assert calm[0] and calm.sum() > 4 and expected[0] == expected[calm].min()
    energies, forces = BatchedSystem(system, "float64", threads=1).energies_and_forces(x[calm])
    assert np.abs(energies - expected[calm]).max() < 1e-6
    assert np.sqrt(np.mean(np.asarray(forces)[0] ** 2)) < 12  # minimised: OpenMM's tolerance is 10
    pdb = app.PDBFile(io.StringIO(pdb_text(system.topology, system.positions_nm, [])))
    again = typed_by().createSystem(pdb.topology, constraints=None, rigidWater=False, removeCMMotion=False)
    context = openmm.Context(again, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(system.positions_nm)
    # impropers hang on the order of atoms, which a file keeps
    assert context.getState(getEnergy=True).getPotentialEnergy()._value == pytest.approx(expected[0], abs=1e-6)


def geometry_differs_by(first: torch.Tensor, second: torch.Tensor) -> float:
    exact = "donot_use_mm_for_euclid_dist"
    return float((torch.cdist(first, first, compute_mode=exact) - torch.cdist(second, second, compute_mode=exact)).abs().max())


def numerical_log_det(representation: InternalRepresentation, features: torch.Tensor, step: float = 1e-5) -> float:
    """ln|det| of all 3N positions by the features, a rotation and a translation, by central differences."""
    shifts = step * torch.eye(len(features), dtype=torch.float64)
    moved = representation.decode(torch.cat([features + shifts, features - shifts]))[0].reshape(2, len(features), -1)
    x, axes = representation.decode(features[None])[0][0], torch.eye(3, dtype=torch.float64)
    turned = torch.stack([torch.linalg.cross(axis.expand_as(x), x).reshape(-1) for axis in axes])
    return float(
        torch.linalg.slogdet(torch.cat([(moved[0] - moved[1]) / (2 * step), turned, axes.repeat(1, len(x))])).logabsdet
    )


@every_residue
def test_internal_coordinates(name: str) -> None:
    system, x = built(name), torch.as_tensor(conformations(name))
    representation = InternalRepresentation.fit(system, RepresentationConfig(), x.numpy(), np.ones(len(x)))
    assert representation.n_features == 3 * system.n_atoms - 6
    canonical = representation.canonicalise(x)
    features = representation.encode(canonical)
    positions, log_det = representation.decode(features)
    assert torch.isfinite(log_det).all() and geometry_differs_by(positions, canonical) < 1e-9
    ca, *others = (named(system)[atom] for atom in ("CA", "N", "C", "HA" if name != "GLY" else "HA2"))
    hands = [torch.linalg.det(p[:, others] - p[:, [ca]]).sign() for p in (positions, canonical)]
    assert torch.equal(*hands)
    assert float(log_det[7]) == pytest.approx(numerical_log_det(representation, features[7]), abs=1e-4)
    # relabelling leaves the energy as it is, as the weights need
    moved = (canonical - x).abs().amax((1, 2)) > 0
    pairs = torch.stack([x[moved], canonical[moved]])[:, :4].reshape(-1, system.n_atoms, 3).numpy()
    energies = Engine(system, "Reference").reduced_energy(pairs).reshape(2, -1)
    np.testing.assert_allclose(energies[0], energies[1], rtol=1e-9, atol=1e-6)


@every_residue
def test_torsions_alone(name: str) -> None:
    """By name, where they are not in a ring beyond C-alpha, and all of them."""
    system, x = built(name), conformations(name)
    names = ("phi", "psi") if name == "PRO" else ("phi1", "psi1", *(f"chi{k}" for k in range(1, KNOWN[name][2] + 1)))
    for torsions in (names, "all"):
        config = RepresentationConfig(name="torsion", torsions=torsions)
        representation = TorsionRepresentation.fit(system, config, x, np.ones(len(x)))
        features = representation.encode(torch.as_tensor(x))
        decoded, log_det = representation.decode(features)
        assert representation.n_torus >= (1 if name == "PRO" else len(names)) and not log_det.any()
        assert wrap_angle(representation.encode(decoded) - features).abs().max() < 1e-9
    with pytest.raises(InputError, match=r"has: .*omega2, phi, phi1, psi, psi1"):
        torsion_by_name(system.topology, f"chi{KNOWN[name][2] + 1}")


def test_proline_says_what_it_cannot() -> None:
    system, x = built("PRO"), conformations("PRO")
    with pytest.raises(InputError, match="bond in a ring, as phi of proline does"):
        flattening_bias(system, torsion_by_name(system.topology, "phi1"), 1)
    with pytest.raises(InputError, match=r"'chi2' turns no bond of the Z-matrix \(it lies in a ring"):
        config = RepresentationConfig(name="torsion", torsions=("chi2",))
        TorsionRepresentation.fit(system, config, x, np.ones(len(x)))
    chi = [float(torsion_angles(system.positions_nm, torsion_by_name(system.topology, f"chi{k}"))) for k in (1, 2)]
    assert 15 < abs(np.degrees(chi[0])) < 45 and chi[0] * chi[1] < 0  # the ring is puckered


def test_alanine_is_the_alanine_dipeptide(alanine: MolecularSystem) -> None:
    ours = built("ALA")
    place = {str(atom): atom.index for atom in ours.topology.atoms}
    order = [place[str(atom)] for atom in alanine.topology.atoms]
    x = spread_structures(alanine, 20, 3) + np.random.default_rng(2).normal(0, 0.004, (20, 22, 3))
    mapped = np.empty_like(x)
    mapped[:, order] = x
    expected, found = (Engine(s, "Reference").reduced_energy(p) for s, p in ((alanine, x), (ours, mapped)))
    np.testing.assert_allclose(found * ours.kt_kj_mol, expected * alanine.kt_kj_mol, atol=1e-6)


def test_two_residues_and_more() -> None:
    system = built("SER-HIE")
    assert system.name == "ACE-SER-HIE-NME" and [r.name for r in system.topology.residues] == ["ACE", "SER", "HIS", "NME"]
    x, found = system.positions_nm, {name: torsion_by_name(system.topology, name) for name in ("phi1", "psi1", "phi2", "psi2")}
    first, second = named(system), named(system, 2)
    assert found["phi2"] == (first["C"], second["N"], second["CA"], second["C"])
    assert found["psi1"] == (first["N"], first["CA"], first["C"], second["N"])
    assert torsion_by_name(system.topology, "chi12") == tuple(second[name] for name in ("N", "CA", "CB", "CG"))
    assert torsion_by_name(system.topology, "chi2") == torsion_by_name(system.topology, "chi21")  # one residue alone has it
    with pytest.raises(InputError, match=r"no torsion 'phi' .*phi1, phi2, psi1, psi2"):
        torsion_by_name(system.topology, "phi")
    angles = mdtraj.compute_phi(mdtraj.Trajectory(x[None], system.topology))[1]
    assert angles[0] == pytest.approx([float(torsion_angles(x, found[name])) for name in ("phi1", "phi2")], abs=1e-4)
    representation = InternalRepresentation.fit(system, RepresentationConfig(), conformations("SER-HIE"), np.ones(160))
    canonical = representation.canonicalise(torch.as_tensor(conformations("SER-HIE")))
    assert geometry_differs_by(representation.decode(representation.encode(canonical))[0], canonical) < 1e-9
    assert representation.n_torus >= 7
    for sequence in ("PP", "WPGI", "KDTRYQ"):
        long = built(sequence)
        assert not StructureChecker(long, np.inf)(long.positions_nm[None], np.zeros(1))[0].failed
        centres = [named(long, k) for k in range(1, 1 + len(sequence)) if sequence[k - 1] != "G"]
        for atoms in centres:
            assert descriptor(long.positions_nm, atoms["CA"], [atoms[name] for name in ("N", "C", "CB")]) == "S"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ALA", "ALA"), ("SER HIE", "SER HIE"), ("ace-ala, gly-nme", "ALA GLY"), ("AG", "ALA GLY"), ("A-L-A", "ALA LEU ALA"),
        ("HIS", "HIE"), ("H", "HIE"), ("ASH", "ASH"), ("AGSK", "ALA GLY SER LYS"),
    ],
)  # fmt: skip
def test_sequences(text: str, names: str) -> None:
    assert parse_sequence(text) == names.split()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "one residue at least"), ("ACE-NME", "one residue at least"), ("MSE", "no residues MSE; .*ALA ARG ASH"),
        ("A1", "no residues 1;"), ("ALAGLY", "separate the residues of ALAGLY"), ("SER-UNK-AXX", "no residues AXX, UNK"),
    ],
)  # fmt: skip
def test_sequences_that_are_none(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_system(SystemConfig(name="peptide", sequence=text))


def test_the_configuration() -> None:
    preset = load_config("peptide", ["system.sequence=[ALA, HIP]"]).system
    assert preset.sequence == "ALA HIP" and preset.force_field == ("amber99sbildn.xml", "amber99_obc.xml")
    assert SystemConfig.model_validate(preset.model_dump()) == preset
    assert SystemConfig(name="pdb").force_field[0] == "amber14/protein.ff14SB.xml"
    other = load_system(SystemConfig(name="peptide", sequence="W", force_field=("amber14/protein.ff14SB.xml",)))
    assert other.key != built("W").key and "ff14SB" in other.description
    with pytest.raises(InputError, match=r"cannot type 3 residue\(s\)"):
        load_system(SystemConfig(name="peptide", sequence="W", force_field=("tip3p.xml",)))
    with pytest.raises(InputError, match="harmonic bonds and angles"):
        load_system(SystemConfig(name="peptide", sequence="W", force_field=("amoeba2018.xml",)))


def test_a_run_of_serine(tmp_path: Path) -> None:
    """Reference to correct: weights are those of OpenMM's energies, and files are of this molecule."""
    settings = ["system.name=peptide", "system.sequence=SER", "reference.bias_torsion=phi1", "reference.production_ps=20"]
    run = Run.create(tmp_path, load_config("tiny", settings), Workers(n_processes=1))
    for stage in ("reference", "featurize", "train", "sample", "correct"):
        STAGE_FUNCTIONS[stage](run)
    weighted = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    energies = Engine(run.system, "Reference").reduced_energy(weighted.positions_nm[:50])
    calm = energies < 1e3
    assert len(weighted) == 400 and calm.sum() > 10
    np.testing.assert_allclose(weighted.reduced_energy[:50][calm], energies[calm], atol=0.05)  # positions are kept in float32
    expected = importance_log_weights(weighted.reduced_energy, weighted.log_density)
    np.testing.assert_allclose(weighted.log_weight - weighted.log_weight.max(), expected - expected.max(), atol=1e-6)
    files = sorted(run.path("correct", "pdb").glob("*.pdb"))
    assert len(files) == 10 and read_pdb_positions(files[0], run.system).shape == (23, 3)
