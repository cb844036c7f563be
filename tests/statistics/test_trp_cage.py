"""The C-alpha model of Trp-cage: its native structure, its energies by hand, and that it folds and unfolds."""

from __future__ import annotations

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from hpc_molgen import preflight
from hpc_molgen.config import SystemConfig, load_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import InputError
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.observables import make_observables
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.structure_based import EPSILON_KJ_MOL, build_model, contacts_of
from hpc_molgen.systems.trp_cage import CONTACTS

PDB = Path(__file__).parents[3] / "shared" / "data" / "pdb" / "1l2y.pdb"


@pytest.fixture(scope="module")
def cage() -> MolecularSystem:
    return load_system(SystemConfig(name="trp-cage", temperature_kelvin=320.0))


def test_the_native_structure_is_the_minimum(cage: MolecularSystem) -> None:
    """All bonds, angles and dihedrals are at rest and every contact at its depth, but for the repulsion of the others."""
    engine = Engine(cage, "Reference")
    energy = float(engine.reduced_energy(cage.positions_nm[None])[0]) * cage.kt_kj_mol
    assert -EPSILON_KJ_MOL * len(CONTACTS) <= energy < -0.95 * EPSILON_KJ_MOL * len(CONTACTS)
    assert engine.minimise() <= energy + 1e-6


def test_energies_by_hand() -> None:
    """Six beads on a line, one contact, stretched: bonds and the pairs four and five apart, nothing else."""
    native = np.zeros((6, 3))
    native[:, 0] = 0.38 * np.arange(6)
    native[:, 1] = 0.01 * np.array([0, 1, 0, 1, 0, 1])  # not quite straight: dihedrals of a line have no value
    import openmm

    system = build_model(native, [(0, 5)])
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    stretched = native * np.array([1.1, 1.0, 1.0])
    context.setPositions(stretched)
    forces = {type(force).__name__: index for index, force in enumerate(system.getForces())}
    for index, force in enumerate(system.getForces()):
        force.setForceGroup(index)
    context.reinitialize(preserveState=True)

    def energy(name: str) -> float:
        return context.getState(getEnergy=True, groups={forces[name]}).getPotentialEnergy()._value

    lengths = np.linalg.norm(np.diff(native, axis=0), axis=1), np.linalg.norm(np.diff(stretched, axis=0), axis=1)
    assert energy("HarmonicBondForce") == pytest.approx(0.5 * 20_000 * 2.5 * ((lengths[1] - lengths[0]) ** 2).sum(), rel=1e-9)
    pairs = 0.0
    for i, j in ((0, 4), (1, 5), (0, 5)):
        r, r0 = np.linalg.norm(stretched[i] - stretched[j]), np.linalg.norm(native[i] - native[j])
        contact = 5 * (r0 / r) ** 12 - 6 * (r0 / r) ** 10
        pairs += 2.5 * (contact if (i, j) == (0, 5) else (0.4 / r) ** 12)
    assert energy("CustomBondForce") == pytest.approx(pairs, rel=1e-9)


def test_it_folds_and_unfolds(cage: MolecularSystem) -> None:
    """At 320 K native contacts pass between 0.3 and 0.75 often (facts/md.md: 3 times a ns each way); hot, there are few."""
    shares, passages = {}, 0
    for kelvin in (320.0, 450.0):
        engine = Engine(cage, "Reference", 3, timestep_fs=10, friction_per_ps=1, temperature_kelvin=kelvin)
        engine.set_positions(cage.positions_nm, draw_velocities=True)
        engine.step(5000)
        frames = next(engine.simulate(3000, 100, block=3000))
        q = make_observables(("q",), cage, cage.positions_nm)["q"][0](frames.positions_nm)
        shares[kelvin] = float(q.mean())
        if kelvin == 320:
            inside = np.where(q < 0.3, 0, np.where(q > 0.75, 1, -1))
            visited = inside[inside >= 0]
            passages = int((np.diff(visited) != 0).sum())
            kinetic = frames.kinetic_kj_mol
            blocks = kinetic.reshape(10, -1).mean(axis=1) * 2 / (60 * 0.00831446)
            assert abs(blocks.mean() - 320) < 4 * blocks.std(ddof=1) / np.sqrt(10)
    assert passages >= 4 and 0.25 < shares[320.0] < 0.8 and shares[450.0] < shares[320.0] - 0.15


@pytest.mark.skipif(not PDB.is_file(), reason="needs 1L2Y beside the repository")
def test_it_is_the_published_structure(cage: MolecularSystem, alanine: MolecularSystem, tmp_path: Path) -> None:
    """C-alpha atoms of the built backbone within 0.1 nm of 1L2Y's (0.08 in facts/md.md), and the same contacts."""
    published = load_system(SystemConfig(name="trp-cage", pdb=str(PDB)))
    both = [mdtraj.Trajectory(s.positions_nm[None], s.topology) for s in (cage, published)]
    assert float(mdtraj.rmsd(*both)[0]) < 0.1
    found = mdtraj.load(str(PDB))[0]
    heavy = {r.index: found.xyz[0][[a.index for a in r.atoms if a.element.symbol != "H"]] for r in found.topology.residues}
    assert contacts_of(heavy, 0.6) == CONTACTS
    (tmp_path / "other.pdb").write_text(pdb_text(alanine.topology, alanine.positions_nm, []))
    with pytest.raises(InputError, match="and Trp-cage is ASN"):
        load_system(SystemConfig(name="trp-cage", pdb=str(tmp_path / "other.pdb")))


@pytest.mark.skipif(not PDB.is_file(), reason="needs 1L2Y beside the repository")
def test_the_preset_with_all_atoms_can_run() -> None:
    """It is typed as it stands, all checks before a run pass, and the farm's step of 4 fs has its heavy hydrogens."""
    config = load_config("trp-cage-all-atom", [f"system.pdb={PDB}"])
    system = load_system(config.system)
    assert system.n_atoms == 304 and "gbn2" in system.description
    preflight.check(config, system)
    preflight.check_time_steps(config, system)
