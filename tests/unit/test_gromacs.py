"""GROMACS runs what OpenMM would: energies, conditions, bits; and a replica in it is a replica like others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmm
import pytest
from openmm import app, unit

from hpc_molgen.config import FarmConfig
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.dynamics.gromacs import GromacsBox, GromacsProblem, call, gromacs_version, unwrapped
from hpc_molgen.dynamics.gromacs_topology import topology_text
from hpc_molgen.dynamics.modified import modified_system
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.farm import copies
from hpc_molgen.farm.protocol import Segment
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.forcefield import build_system, solvate
from tests.conftest import needs_gromacs

EDGE_NM = 2.2


@pytest.fixture(scope="module")
def box(alanine: MolecularSystem) -> MolecularSystem:
    return solvate(alanine, alanine.positions_nm, "tip3p.xml", EDGE_NM, "amber99sbildn.xml")


@pytest.fixture(scope="module")
def salty(alanine: MolecularSystem) -> MolecularSystem:
    """The same with ions between the waters, so that molecules of a kind are not all neighbours."""
    force_field = app.ForceField("amber99sbildn.xml", "tip3p.xml")
    modeller = app.Modeller(alanine.topology.to_openmm(), alanine.positions_nm * unit.nanometer)
    modeller.addSolvent(force_field, boxSize=openmm.Vec3(2.4, 2.4, 2.4) * unit.nanometer, ionicStrength=0.5 * unit.molar)
    positions = np.asarray(modeller.positions.value_in_unit(unit.nanometer))
    files = ("amber99sbildn.xml", "tip3p.xml")
    return build_system("salty", modeller.topology, positions, files, 300.0, "salty", "salty water")


def gromacs(system: openmm.System) -> GromacsBox:
    return GromacsBox("gmx", system, 22)


@needs_gromacs
@pytest.mark.parametrize("name", ["box", "salty"])
def test_energies_are_those_of_openmm(name: str, request: pytest.FixtureRequest) -> None:
    """To 1 J/mol and atom: GROMACS computes in single precision, and each has an Ewald grid of its own."""
    system: MolecularSystem = request.getfixturevalue(name)
    noise = np.random.default_rng(2).standard_normal(system.positions_nm.shape)
    whole = np.repeat(np.arange(system.topology.n_residues), [residue.n_atoms for residue in system.topology.residues])
    whole[:22] = 0
    positions = system.positions_nm + 0.01 * noise[whole]  # rigid waters move as a whole
    edges = Engine(system, "CPU").state()["box"]
    plain = modified_system(system)
    expected = float(Engine(system, "Reference").reduced_energy(positions[None])[0]) * system.kt_kj_mol
    found = gromacs(plain).energy_kj_mol(positions, edges)
    assert abs(found - expected) < 1e-3 * system.n_atoms
    far = positions + np.diag(edges) * np.random.default_rng(3).integers(-1, 2, (system.topology.n_residues, 3))[whole]
    again = gromacs(plain).energy_kj_mol(far, edges)
    assert again == pytest.approx(found, abs=1e-3 * system.n_atoms)  # other images are the same


@needs_gromacs
def test_molecules_are_recognised(box: MolecularSystem, salty: MolecularSystem) -> None:
    text = topology_text(modified_system(box, constraints="hbonds"), restrained=(4, 5))
    n_waters = (box.n_atoms - 22) // 3
    assert text.count("[ moleculetype ]") == 2 and text.rstrip().endswith(f"M1 1\nM2 {n_waters}")
    assert text.count("[ settles ]") == 1 and text.count("[ constraints ]") == 1 and text.count("SPRING") == 7
    kinds = [residue.name for residue in salty.topology.residues if residue.n_atoms == 1]
    listed = topology_text(modified_system(salty)).split("[ molecules ]\n")[1].split("\n")
    counts = [int(line.split()[1]) for line in listed if line]
    assert len(kinds) >= 2 and sum(counts) == salty.topology.n_residues - 2  # the three residues of the peptide are one


def test_what_gromacs_does_not_know(alanine: MolecularSystem, box: MolecularSystem) -> None:
    with pytest.raises(InputError, match="no counterpart of GBSAOBCForce"):
        topology_text(modified_system(alanine))
    system = modified_system(box)
    next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce)).setUseSwitchingFunction(True)
    with pytest.raises(InputError, match="plain cut-off"):
        gromacs(system)
    for settings in ({"solvent": "same"}, {"solvent": "tip3p", "platform": "CPU"}):
        with pytest.raises(ValueError, match="engine 'gromacs' runs boxes of water"):
            FarmConfig(engine="gromacs", **settings)  # type: ignore[arg-type]


def test_without_gromacs_it_says_so(box: MolecularSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem, match="no executable gmx on"):
        copies.GromacsCopy(box, 22, FarmConfig(engine="gromacs", solvent="tip3p"), seed=1)


@needs_gromacs
def test_a_box_that_is_too_small(alanine: MolecularSystem) -> None:
    small = solvate(alanine, alanine.positions_nm, "tip3p.xml", 2.05, "amber99sbildn.xml")
    with pytest.raises(InputError, match=r"a box of 2\.05 nm is too small for GROMACS"):
        copies.GromacsCopy(small, 22, FarmConfig(engine="gromacs", solvent="tip3p"), seed=1).minimise(300.0)


@needs_gromacs
def test_errors_are_those_of_gromacs(tmp_path: Path) -> None:
    with pytest.raises(GromacsProblem, match=r"gmx grompp failed.*absent\.mdp"):
        call("gmx", tmp_path, "grompp", "-f", "absent.mdp")
    assert gromacs_version("gmx").startswith("GROMACS 2") and "precision" in gromacs_version("gmx")


def test_unwrapping_follows_atoms_through_the_walls() -> None:
    edges = np.array([2.0, 3.0, 4.0])
    path = np.cumsum(np.random.default_rng(4).uniform(-0.4, 0.4, (200, 5, 3)), axis=0)
    before = path[0]
    for true in path[1:]:
        before = unwrapped(np.mod(true, edges), before, edges)
        np.testing.assert_allclose(before, true, atol=1e-9)


def mean_and_error(values: np.ndarray, n_blocks: int = 10) -> tuple[float, float]:
    blocks = values[: len(values) // n_blocks * n_blocks].reshape(n_blocks, -1).mean(axis=1)
    return float(blocks.mean()), float(blocks.std(ddof=1) / np.sqrt(n_blocks))


@needs_gromacs
def test_temperature_and_constraints(box: MolecularSystem) -> None:
    """The mean kinetic energy is that of the degrees of freedom, within 4 standard errors over blocks; bonds keep lengths."""
    config = FarmConfig(solvent="tip3p", engine="gromacs", minimise_iterations=100, friction_per_ps=10)
    copy = copies.GromacsCopy(box, 22, config, seed=3)
    copy.minimise(320.0)
    copy.run(Segment(2000, 0, 320.0, 0.0, None), 0, 10)
    positions, potential, kinetic = copy.run(Segment(3000, 300, 320.0, 0.0, None), 1, 10)
    assert positions.shape == (300, 1, 22, 3) and potential.shape == kinetic.shape == (300, 1)
    mean, error = mean_and_error(copies.kinetic_temperature(kinetic[:, 0], copy.degrees_of_freedom))
    assert abs(mean - 320) < 4 * error and error < 2
    system = modified_system(box, constraints="hbonds")
    rigid = [system.getConstraintParameters(number) for number in range(system.getNumConstraints())]
    solute = [(i, j, length._value) for i, j, length in rigid if j < 22]
    found = np.linalg.norm(positions[:, 0, [i for i, _, _ in solute]] - positions[:, 0, [j for _, j, _ in solute]], axis=2)
    assert len(solute) == 12 and np.abs(found - [length for _, _, length in solute]).max() < 1e-4
    assert np.ptp(positions[:, 0].reshape(-1, 3), axis=0).max() < EDGE_NM  # whole, and continuous
    assert np.abs(np.diff(positions[:, 0], axis=0)).max() < 0.2


@needs_gromacs
def test_springs_and_pressure(box: MolecularSystem) -> None:
    """Held heavy atoms stay, with at most three springs' mean square distance; the volume answers to the pressure."""
    spring = 20_000.0
    config = FarmConfig(solvent="tip3p", engine="gromacs", minimise_iterations=100, restraint_kj_mol_nm2=spring)
    copy = copies.GromacsCopy(box, 22, config, seed=4)
    copy.minimise(300.0)
    held = copy.state()["held"]
    heavy = [atom.index for atom in box.topology.atoms if atom.index < 22 and atom.element.symbol != "H"]
    positions, _, _ = copy.run(Segment(2000, 100, 300.0, spring, None), 0, 20)
    squared = ((positions[20:, 0][:, heavy] - held[heavy]) ** 2).sum(axis=2).mean()
    assert 0.1 * 3 * box.kt_kj_mol / spring < squared < 1.5 * 3 * box.kt_kj_mol / spring
    start, volumes = copy.state(), {}
    for pressure in (1.0, 20_000.0):
        assert copy.restore(start)
        copy.run(Segment(2000, 0, 300.0, 0.0, pressure), 1, 20)
        volumes[pressure] = float(np.linalg.det(copy.state()["box"]))
    # water at 300 K loses about 35 % of its volume per compressibility (4.5e-5 / bar) x 20,000 bar; half of that in 4 ps
    assert volumes[20_000.0] < 0.92 * volumes[1.0]
