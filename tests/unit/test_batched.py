"""The batched engine: energies, forces and minima are OpenMM's, in every backend; its random numbers are Threefry's."""

from __future__ import annotations

import ctypes
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit
from scipy import stats

from hpc_molgen import native
from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics import kernel, torch_energies
from hpc_molgen.dynamics.batched import BatchedSystem, split_copies, try_batched
from hpc_molgen.dynamics.born import OFFSET_NM, recognise
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.dynamics.kernel import NativeMolecule, built_variants, load_library
from hpc_molgen.dynamics.langevin import BatchedDynamics, apply_constraints, minimise
from hpc_molgen.dynamics.modified import modified_system
from hpc_molgen.dynamics.terms import read_terms
from hpc_molgen.dynamics.torch_langevin import normals, threefry
from hpc_molgen.errors import EnvironmentProblem, InputError, UnsupportedForce
from hpc_molgen.systems.alanine_dipeptide import _build
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.units import COULOMB_KJ_NM_MOL

VARIANTS = ("avx512", "avx2", "generic")
BACKENDS = (*VARIANTS, "torch")
DTYPES = ("float32", "float64")
Example = tuple[openmm.System, np.ndarray, np.ndarray, np.ndarray]  # with frames and OpenMM's energies and forces


def openmm_system(system: MolecularSystem) -> openmm.System:
    return openmm.XmlSerializer.deserialize(system.system_xml)


def require(variant: str) -> None:
    if variant not in built_variants():
        pytest.skip(f"the kernel's variant {variant} is not built, or not for this processor")


def batched_with(system: openmm.System | MolecularSystem, dtype: str, backend: str) -> BatchedSystem:
    """A BatchedSystem in torch, in the kernel, or in one variant of the kernel."""
    if backend == "torch":
        return BatchedSystem(system, dtype, backend="torch")
    require(backend if backend != "kernel" else (*built_variants(), "generic")[0])
    batched = BatchedSystem(system, dtype, backend="kernel", threads=1)
    if backend != "kernel":
        batched.native = NativeMolecule(batched.terms, batched.dtype, backend)
    return batched


def reference(system: openmm.System, positions_nm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """OpenMM's energies, shape=(n,), and forces, shape=(n, n_atoms, 3), on its Reference platform."""
    context = openmm.Context(system, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference"))
    energies, forces = [], []
    for frame in positions_nm:
        context.setPositions(np.asarray(frame, dtype=np.float64))
        state = context.getState(getEnergy=True, getForces=True)
        energies.append(state.getPotentialEnergy()._value)
        forces.append(state.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(forces)


def hot_frames(system: MolecularSystem, n_frames: int = 24) -> np.ndarray:
    """Frames at 600 K, float64."""
    engine = Engine(system, "Reference", 7, temperature_kelvin=600.0, friction_per_ps=20.0)
    engine.minimise()
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    engine.step(200)
    return next(engine.simulate(n_frames, 25)).positions_nm.astype(np.float64)


def bare(n_atoms: int, *forces: openmm.Force) -> openmm.System:
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(12.0)
    for force in forces:
        system.addForce(force)
    return system


def zigzag(n_atoms: int, n_frames: int = 24, seed: int = 3) -> np.ndarray:
    """A bent chain with bonds of 0.14 nm and noise that leaves no two atoms on each other."""
    rng = np.random.default_rng(seed)
    index = np.arange(n_atoms)
    chain = np.stack([0.12 * index, 0.07 * (index % 2), 0.04 * (index % 3)], axis=1)
    return chain + rng.normal(scale=0.015, size=(n_frames, n_atoms, 3))


def mixed_forces() -> openmm.System:
    """Two forces of harmonic bonds, torsions of all kinds, changed exceptions: what the built-in molecules lack."""
    n_atoms = 9
    first, second, angles = openmm.HarmonicBondForce(), openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
    for index in range(n_atoms - 1):
        (first if index % 2 else second).addBond(index, index + 1, 0.13 + 0.002 * index, 2e5 + 1e4 * index)
    second.addBond(2, 1, 0.15, 3e4)  # the same bond once more
    second.addBond(0, 1, 0.11, 0.0)
    for index in range(n_atoms - 2):
        angles.addAngle(index, index + 1, index + 2, 1.6 + 0.2 * index, 300.0 + 20 * index)
    periodic, ryckaert = openmm.PeriodicTorsionForce(), openmm.RBTorsionForce()
    for n, phase in zip(range(1, 7), (0.3, -1.7, 2.9, np.pi, 4.4, -0.01), strict=True):
        periodic.addTorsion(n - 1, n, n + 1, n + 2, n, phase, 3.0 + n)
        periodic.addTorsion(0, 1, 2, 3, n, phase + 1, 2.0 - n)
    periodic.addTorsion(2, 5, 3, 4, 2, np.pi, 40.0)  # an improper one
    ryckaert.addTorsion(0, 1, 2, 3, 9.2, 12.1, -13.1, -3.1, 26.2, -31.5)
    ryckaert.addTorsion(7, 6, 5, 4, -1.0, 2.0, 3.0, -4.0, 5.0, 6.0)
    nonbonded = openmm.NonbondedForce()
    for index in range(n_atoms):
        nonbonded.addParticle((-1) ** index * 0.1 * index, 0.05 + 0.015 * index, 0.1 * (index % 4))
    nonbonded.addException(0, 1, 0.0, 0.1, 0.0)
    nonbonded.addException(2, 1, 0.0, 1.0, 0.0)
    nonbonded.addException(3, 0, -0.7, 0.11, 1.3)
    nonbonded.addException(4, 8, 0.2, 0.2, 0.0)
    return bare(n_atoms, first, angles, second, periodic, ryckaert, nonbonded, openmm.CMMotionRemover())


def ff14sb(*more: str, **options: Any) -> openmm.System:
    topology, _ = _build()
    force_field = app.ForceField("amber14/protein.ff14SB.xml", *more)
    return force_field.createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=None, **options)


def odd_solvent(alanine: MolecularSystem) -> openmm.System:
    system = openmm_system(alanine)
    born = next(force for force in system.getForces() if isinstance(force, openmm.GBSAOBCForce))
    born.setSoluteDielectric(2.0)
    born.setSolventDielectric(20.0)
    born.setSurfaceAreaEnergy(7.0)
    return system


@pytest.fixture(scope="module")
def frames(alanine: MolecularSystem) -> np.ndarray:
    return hot_frames(alanine)


@pytest.fixture(scope="module")
def examples(alanine: MolecularSystem, frames: np.ndarray) -> dict[str, Example]:
    vacuum = load_system(SystemConfig(name="alanine-dipeptide-vacuum"))
    systems = {
        "implicit": (openmm_system(alanine), frames),
        "vacuum": (openmm_system(vacuum), hot_frames(vacuum)),
        "ff14SB": (ff14sb(), frames),
        "odd solvent": (odd_solvent(alanine), frames),
        "OBC1 by expressions": (ff14sb("implicit/obc1.xml"), frames),
        "OBC2 by expressions": (ff14sb("implicit/obc2.xml"), frames),
        "without surface": (ff14sb("implicit/obc2.xml", sasaMethod=None, solventDielectric=20.0, soluteDielectric=2.0), frames),
        "mixed": (mixed_forces(), zigzag(9)),
    }
    return {name: (system, positions, *reference(system, positions)) for name, (system, positions) in systems.items()}


# energies and forces


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name",
    ["implicit", "vacuum", "ff14SB", "odd solvent", "OBC1 by expressions", "OBC2 by expressions", "without surface", "mixed"],
)
def test_energies_and_forces_are_openmms(examples: dict[str, Example], name: str, backend: str) -> None:
    system, positions, energies, forces = examples[name]
    rms = np.sqrt(np.mean(forces**2))
    assert energies.std() > 1
    for dtype, tolerance, force_tolerance in (("float64", 1e-9, 1e-6), ("float32", 1e-3, 1e-5)):
        batched = batched_with(system, dtype, backend)
        ours, our_forces = batched.energies_and_forces(positions)
        assert ours.dtype == np.float64
        assert our_forces.dtype == np.dtype(dtype)
        assert np.abs(ours - energies).max() < tolerance
        assert np.sqrt(np.mean((our_forces - forces) ** 2)) < force_tolerance * rms
        assert np.abs(batched.energies(positions) - energies).max() < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_where_the_molecule_is_does_not_matter(examples: dict[str, Example], backend: str, dtype: str) -> None:
    system, positions, energies, _ = examples["implicit"]
    moved = positions + np.array([1000.0, -300.0, 20.0])  # 1e-13 nm is the resolution of float64 there
    batched = batched_with(system, dtype, backend)
    assert np.abs(batched.energies(moved) - energies).max() < {"float32": 1e-3, "float64": 1e-7}[dtype]


def test_terms_of_several_forces_are_collected() -> None:
    terms = read_terms(mixed_forces())
    assert len(terms.bonds) == 9  # the one without strength is left out
    assert len(terms.angles) == 7
    assert len({tuple(quad) for quad in terms.torsions}) == len(terms.torsions) == 8
    assert terms.torsion_cos.shape == terms.torsion_sin.shape == (8, 7)
    assert terms.coulomb[0, 3] == terms.coulomb[3, 0] == pytest.approx(-0.7 * COULOMB_KJ_NM_MOL)
    assert terms.coulomb[0, 1] == terms.c12[0, 1] == terms.c6[1, 2] == 0
    assert terms.c6[0, 3] == pytest.approx(4 * 1.3 * 0.11**6)
    assert not terms.coulomb.diagonal().any()
    assert terms.translation_invariant
    assert terms.born is None
    assert terms.custom == ()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_force_at_all(backend: str, dtype: str) -> None:
    energies, forces = batched_with(bare(3), dtype, backend).energies_and_forces(zigzag(3))
    assert not energies.any()
    assert not forces.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_atoms", [1, 2])
def test_ions_in_implicit_solvent(backend: str, n_atoms: int) -> None:
    born, nonbonded = openmm.GBSAOBCForce(), openmm.NonbondedForce()
    for charge in (1.0, -0.7)[:n_atoms]:
        born.addParticle(charge, 0.15, 0.8)
        nonbonded.addParticle(charge, 0.2, 0.4)
    system, positions = bare(n_atoms, born, nonbonded), zigzag(n_atoms)
    energies, forces = batched_with(system, "float64", backend).energies_and_forces(positions)
    expected, expected_forces = reference(system, positions)
    assert (np.abs(expected) > 10).all()
    assert np.abs(energies - expected).max() < 1e-9
    assert np.abs(forces - expected_forces).max() < 1e-6


def test_other_forces_and_high_multiplicities_go_to_torch(frames: np.ndarray) -> None:
    torsion = openmm.PeriodicTorsionForce()
    torsion.addTorsion(0, 1, 2, 3, 7, 0.4, 5.0)
    torsion.addTorsion(0, 1, 2, 3, 2, 0.4, 3.0)
    for system, positions, problem in (
        (bare(4, torsion), zigzag(4), "multiplicity above 6"),
        (ff14sb("implicit/gbn2.xml"), frames, "CustomGBForce"),
    ):
        with pytest.raises(UnsupportedForce, match=f"kernel cannot be used.*{problem}"):
            BatchedSystem(system, backend="kernel")
        batched = BatchedSystem(system)
        assert batched.backend == "torch"
        energies, forces = batched.energies_and_forces(positions)
        expected, expected_forces = reference(system, positions)
        assert np.abs(energies - expected).max() < 1e-9
        assert np.sqrt(np.mean((forces - expected_forces) ** 2)) < 1e-6 * np.sqrt(np.mean(expected_forces**2))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hct", {}),
        ("gbn", {}),
        ("obc1", {"implicitSolventKappa": 1.3 / unit.nanometer}),
        ("obc2", {"implicitSolventKappa": 1.3 / unit.nanometer}),
        ("obc2", {"nonbonded": app.CutoffNonPeriodic}),
    ],
)
def test_other_expressions_are_no_obc_solvent(name: str, options: dict[str, Any]) -> None:
    topology, _ = _build()
    force_field, method = app.ForceField("amber14/protein.ff14SB.xml", f"implicit/{name}.xml"), app.NoCutoff
    options = dict(options)
    system = force_field.createSystem(topology, nonbondedMethod=options.pop("nonbonded", method), **options)
    (force,) = (force for force in system.getForces() if isinstance(force, openmm.CustomGBForce))
    assert recognise(force) is None


@pytest.mark.parametrize("what", ["value", "energy", "parameter"])
def test_changed_expressions_are_no_obc_solvent(what: str) -> None:
    system = ff14sb("implicit/obc1.xml")
    (force,) = (force for force in system.getForces() if isinstance(force, openmm.CustomGBForce))
    assert recognise(force) is not None
    if what == "value":
        name, text, kind = force.getComputedValueParameters(1)
        force.setComputedValueParameters(1, name, text.replace("2.909125", "2.909126"), kind)
    elif what == "energy":
        force.addEnergyTerm(*force.getEnergyTermParameters(0))
    else:
        force.addPerParticleParameter("more")
    assert recognise(force) is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("native", [True, False])
def test_atoms_within_the_sphere_of_others(backend: str, *, native: bool) -> None:
    """OpenMM's two ways of the same model differ there, and ours follow each."""
    born, nonbonded = openmm.GBSAOBCForce(), openmm.NonbondedForce()
    if not native:
        molecule = ff14sb("implicit/obc2.xml")
        (like,) = (force for force in molecule.getForces() if isinstance(force, openmm.CustomGBForce))
        born = openmm.CustomGBForce()
        for index in range(3):
            born.addPerParticleParameter(like.getPerParticleParameterName(index))
        for index in range(2):
            born.addComputedValue(*like.getComputedValueParameters(index))
        for index in range(3):
            born.addEnergyTerm(*like.getEnergyTermParameters(index))
    for charge, radius, scale in ((0.8, 0.3, 0.9), (-0.5, 0.1, 0.8), (0.2, 0.12, 0.7)):
        inner = radius - OFFSET_NM
        born.addParticle(charge, radius, scale) if native else born.addParticle([charge, inner, scale * inner])
        nonbonded.addParticle(charge, 0.2, 0.4)
    system, positions = bare(3, born, nonbonded), 0.5 * zigzag(3)
    assert np.linalg.norm(positions[:, 0] - positions[:, 1], axis=1).min() < 0.9 * 0.291 - 0.091
    expected, expected_forces = reference(system, positions)
    energies, forces = batched_with(system, "float64", backend).energies_and_forces(positions)
    assert np.abs(energies - expected).max() < 1e-9 * np.abs(expected).max()
    assert np.abs(forces - expected_forces).max() < 1e-8 * np.abs(expected_forces).max()


def test_ff96_is_the_molecule_of_the_published_records() -> None:
    testsystems = pytest.importorskip("openmmtools.testsystems", reason="needs openmmtools")
    published, own = (
        testsystems.AlanineDipeptideImplicit(constraints=None),
        load_system(SystemConfig(name="alanine-dipeptide-ff96")),
    )
    positions = hot_frames(own)
    expected, _ = reference(published.system, positions)
    assert np.abs(BatchedSystem(own).energies(positions) - expected).max() < 1e-3


# batches


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_batch_changes_no_bit_in_the_kernel(alanine: MolecularSystem, frames: np.ndarray, variant: str, dtype: str) -> None:
    batched = batched_with(alanine, dtype, variant)
    positions = np.concatenate([frames + 0.001 * k for k in range(5)])[:100]
    one_by_one = [batched.energies_and_forces(positions[k : k + 1]) for k in range(100)]
    energies, forces = (np.concatenate(values) for values in zip(*one_by_one, strict=True))
    for n in (0, 1, 7, 16, 17, 100):
        for batched.threads in (1, 2):
            ours, our_forces = batched.energies_and_forces(positions[:n])
            assert ours.shape == (n,)
            assert our_forces.shape == (n, 22, 3)
            assert np.array_equal(ours, energies[:n])
            assert np.array_equal(our_forces, forces[:n])
    assert np.array_equal(batched.energies_and_forces(positions[::-1])[0], energies[::-1])  # not contiguous
    assert np.array_equal(
        batched.energies(positions[:17]), np.concatenate([batched.energies(row[None]) for row in positions[:17]])
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_and_chunks_in_torch(alanine: MolecularSystem, frames: np.ndarray, dtype: str) -> None:
    whole, chunked = (BatchedSystem(alanine, dtype, backend="torch", memory_mib=mib) for mib in (512, 1))
    assert whole._torch is not None
    assert chunked._torch is not None
    positions = np.concatenate([frames] * 5)[:100]
    assert chunked._torch.chunk < 100 < whole._torch.chunk
    energies, forces = whole.energies_and_forces(positions)
    for n in (0, 1, 7, 100):
        ours, our_forces = chunked.energies_and_forces(positions[:n])
        assert ours.shape == (n,)
        assert our_forces.shape == (n, 22, 3)
        tolerance = 2e-6 if dtype == "float32" else 1e-13
        assert np.allclose(ours, energies[:n], rtol=1e2 * tolerance, atol=1e2 * tolerance)  # some energies are near zero
        assert np.allclose(our_forces, forces[:n], rtol=0, atol=tolerance * 1e4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["kernel", "torch"])
def test_float32_positions_are_taken_as_they_are(
    alanine: MolecularSystem, frames: np.ndarray, backend: str, dtype: str
) -> None:
    batched = batched_with(alanine, dtype, backend)
    single = (frames + 0.1).astype(np.float32)  # taking off the centre must not round them
    energies, forces = batched.energies_and_forces(single)
    expected, expected_forces = batched.energies_and_forces(single.astype(np.float64))
    assert np.abs(energies - expected).max() < {"float32": 1e-3, "float64": 1e-9}[dtype]
    assert np.abs(forces - expected_forces).max() < {"float32": 1.0, "float64": 1e-6}[dtype]


@pytest.mark.parametrize("backend", ["kernel", "torch"])
def test_tensors_in_tensors_out(alanine: MolecularSystem, frames: np.ndarray, backend: str) -> None:
    batched = batched_with(alanine, "float64", backend)
    energies, forces = batched.energies_and_forces(frames)
    ours, our_forces = batched.energies_and_forces(torch.from_numpy(frames).requires_grad_())
    assert isinstance(ours, torch.Tensor)
    assert isinstance(our_forces, torch.Tensor)
    assert not ours.requires_grad
    assert np.array_equal(ours.numpy(), energies)
    assert np.array_equal(our_forces.numpy(), forces)
    assert np.array_equal(batched.energies(torch.from_numpy(frames)).numpy(), batched.energies(frames))


def test_copies_are_cut_at_whole_vectors() -> None:
    for n in (0, 1, 15, 16, 17, 100):
        for n_parts in (1, 2, 3, 40):
            parts = split_copies(n, 16, n_parts)
            assert [k for part in parts for k in range(n)[part]] == list(range(n))
            assert all(part.start % 16 == 0 for part in parts)
            assert len(parts) <= n_parts


# what is not finite


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_overlaps_and_lost_atoms_are_infinite_and_alone(
    alanine: MolecularSystem, frames: np.ndarray, backend: str, dtype: str
) -> None:
    batched = batched_with(alanine, dtype, backend)
    expected, expected_forces = batched.energies_and_forces(frames)
    spoilt = frames.copy()
    spoilt[2, 0] = spoilt[2, 18]  # one hydrogen on another, at the other end
    spoilt[5, 3, 1] = np.nan
    spoilt[6] = np.inf
    spoilt[9, 8] = -np.inf
    spoilt[11] = 0.0
    lost = [2, 5, 6, 9, 11]
    with np.errstate(all="ignore"):
        energies, forces = batched.energies_and_forces(spoilt)
        assert np.array_equal(batched.energies(spoilt)[lost], energies[lost])
    assert (energies[lost] == np.inf).all()
    assert np.array_equal(np.delete(energies, lost), np.delete(expected, lost))
    assert np.array_equal(np.delete(forces, lost, axis=0), np.delete(expected_forces, lost, axis=0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_clashes_have_openmms_energies(alanine: MolecularSystem, frames: np.ndarray, backend: str) -> None:
    system, clashes = openmm_system(alanine), frames.copy()
    rng = np.random.default_rng(5)
    for frame in clashes:  # far apart along the chain: neither bonded nor excluded
        i, j = rng.choice(6), rng.choice(np.arange(14, 22))
        direction = rng.normal(size=3)
        frame[i] = frame[j] + 1e-2 * direction / np.linalg.norm(direction)
    expected, expected_forces = reference(system, clashes)
    assert expected.min() > 1e6
    energies, forces = batched_with(system, "float64", backend).energies_and_forces(clashes)
    assert np.abs(energies / expected - 1).max() < 1e-9
    assert np.abs(forces - expected_forces).max() < 1e-9 * np.abs(expected_forces).max()
    single = batched_with(system, "float32", backend).energies(clashes)
    assert np.abs(single / expected - 1).max() < 1e-3


# what is not known


def with_method(force: openmm.Force, method: int) -> openmm.Force:
    force.setNonbondedMethod(method)
    return force


def nonbonded_with_offset(*, exception: bool) -> openmm.Force:
    force = openmm.NonbondedForce()
    for _ in range(3):
        force.addParticle(0.1, 0.2, 0.3)
    force.addException(0, 1, 0.1, 0.2, 0.3)
    force.addGlobalParameter("scale", 1.0)
    (force.addExceptionParameterOffset if exception else force.addParticleParameterOffset)("scale", 0, 1.0, 0.0, 0.0)
    return force


def in_a_box(force: openmm.Force) -> openmm.Force:
    force.setUsesPeriodicBoundaryConditions(True)
    return force


UNKNOWN: list[tuple[Callable[[], openmm.Force], str]] = [
    (lambda: with_method(openmm.NonbondedForce(), openmm.NonbondedForce.PME), "NonbondedForce.*periodic"),
    (lambda: with_method(openmm.NonbondedForce(), openmm.NonbondedForce.CutoffNonPeriodic), "NonbondedForce.*cut-off"),
    (lambda: nonbonded_with_offset(exception=False), "NonbondedForce.*offsets"),
    (lambda: nonbonded_with_offset(exception=True), "NonbondedForce.*offsets"),
    (lambda: with_method(openmm.GBSAOBCForce(), openmm.GBSAOBCForce.CutoffNonPeriodic), "GBSAOBCForce.*cut-off"),
    (lambda: in_a_box(openmm.HarmonicBondForce()), "HarmonicBondForce.*periodic"),
    (lambda: in_a_box(openmm.PeriodicTorsionForce()), "PeriodicTorsionForce.*periodic"),
    (openmm.GayBerneForce, "GayBerneForce"),
]


@pytest.mark.parametrize(("make", "message"), UNKNOWN)
def test_what_is_not_known_is_named(make: Callable[[], openmm.Force], message: str) -> None:
    with pytest.raises(UnsupportedForce, match=message):
        BatchedSystem(bare(3, make()))


def test_virtual_sites_and_two_solvents_are_not_known() -> None:
    system = bare(3)
    system.setParticleMass(2, 0.0)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(UnsupportedForce, match="virtual sites"):
        read_terms(system)
    with pytest.raises(UnsupportedForce, match="two GBSAOBCForces"):
        read_terms(bare(0, openmm.GBSAOBCForce(), openmm.GBSAOBCForce()))


def test_openmm_takes_over_with_a_message(alanine: MolecularSystem, caplog: pytest.LogCaptureFixture) -> None:
    system = openmm_system(alanine)
    system.addForce(openmm.GayBerneForce())
    strange = dataclasses.replace(alanine, system_xml=openmm.XmlSerializer.serialize(system))
    with caplog.at_level(logging.WARNING):
        assert try_batched(strange) is None
    assert "alanine-dipeptide" in caplog.text
    assert "GayBerneForce" in caplog.text
    caplog.clear()
    usual = try_batched(alanine, "float32", backend="torch")
    assert usual is not None
    assert usual.dtype == np.float32
    assert usual.backend == "torch"
    assert not caplog.text


@pytest.mark.parametrize("dtype", ["float16", "int64", "torch.bfloat16", "double-double", torch.bfloat16])
def test_other_precisions_are_refused(alanine: MolecularSystem, dtype: object) -> None:
    with pytest.raises(InputError, match="float32 or float64"):
        BatchedSystem(alanine, dtype)


def test_precisions_have_many_names(alanine: MolecularSystem) -> None:
    for dtype in ("float32", "torch.float32", np.float32, np.dtype("float32"), torch.float32):
        assert BatchedSystem(alanine, dtype).dtype == np.float32


@pytest.mark.parametrize("backend", ["kernel", "torch"])
def test_wrong_arguments_are_named(alanine: MolecularSystem, backend: str) -> None:
    batched = batched_with(alanine, "float64", backend)
    for shape in ((22, 3), (4, 21, 3), (4, 22, 2), (4, 22, 3, 1)):
        with pytest.raises(InputError, match="do not fit 22 atoms"):
            batched.energies(np.zeros(shape))
        with pytest.raises(InputError, match="do not fit 22 atoms"):
            batched.energies_and_forces(torch.zeros(shape))
    with pytest.raises(InputError, match="'cuda-kernel' does not exist; the backends are: auto, kernel, torch"):
        BatchedSystem(alanine, backend="cuda-kernel")
    with pytest.raises(UnsupportedForce, match="on CPUs, not on meta"):
        BatchedSystem(alanine, device="meta", backend="kernel")
    with pytest.raises(InputError, match="2 copies need as many seeds, not 3"):
        BatchedDynamics(batched, np.zeros((2, 22, 3)), [1, 2, 3], temperature_kelvin=300.0)


# which kernel


def test_without_the_kernel_torch_computes(
    alanine: MolecularSystem, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = BatchedSystem(alanine).energies(frames)
    monkeypatch.setenv("HPC_MOLGEN_KERNEL", "none")
    assert built_variants() == []
    with pytest.raises(EnvironmentProblem, match="not built"):
        load_library()
    with pytest.raises(UnsupportedForce, match="kernel cannot be used: it is not built"):
        BatchedSystem(alanine, backend="kernel")
    batched = BatchedSystem(alanine)
    assert batched.backend == "torch"
    assert batched.native is None
    assert "torch (eager, float64, cpu)" in batched.description
    assert np.abs(batched.energies(frames) - expected).max() < 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
def test_better_variants_can_be_left_out(alanine: MolecularSystem, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    require(variant)
    before = BatchedSystem(alanine, backend="kernel")  # one that came earlier in the same process
    monkeypatch.setenv("HPC_MOLGEN_KERNEL", variant)
    assert built_variants()[0] == variant
    batched = BatchedSystem(alanine, backend="kernel")
    assert batched.native is not None
    assert batched.native.lanes == {"avx512": 8, "avx2": 4, "generic": 2}[variant]
    assert batched.description == f"C++ kernel ({variant}, float64, {batched.native.lanes} copies per vector)"
    assert np.array_equal(
        before.energies(alanine.positions_nm[None]).round(8), batched.energies(alanine.positions_nm[None]).round(8)
    )


# random numbers

ANSWERS = [  # kat_vectors of Random123, threefry4x32 with 20 rounds: counter, key, result
    ("00000000 00000000 00000000 00000000", "00000000 00000000 00000000 00000000", "9c6ca96a e17eae66 fc10ecd4 5256a7d8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff ffffffff ffffffff", "2a881696 57012287 f6c7446e a16a6732"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0 082efa98 ec4e6c89", "59cd1dbb b8879579 86b5d00c ac8b6d84"),
]


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def kernel_normals(variant: str | None, seed: int, first_step: int, n_steps: int) -> np.ndarray:
    """The first four deviates of each step, shape=(n_steps, 4)."""
    out = np.empty((n_steps, 4), dtype=np.float32)
    load_library(variant).hm_normals(
        ctypes.c_uint32(seed & 0xFFFFFFFF),
        ctypes.c_uint32(seed >> 32),
        ctypes.c_uint64(first_step),
        ctypes.c_int64(n_steps),
        address(out),
    )
    return out


def torch_normals(seed: int, first_step: int, n_steps: int) -> np.ndarray:
    seeds = torch.from_numpy(np.array([[seed & 0xFFFFFFFF], [seed >> 32]], dtype=np.uint32).view(np.int32))
    return np.array([normals(seeds, first_step + step, 4).numpy()[:, 0] for step in range(n_steps)])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS)
def test_threefry_gives_the_published_answers(backend: str, counter: str, key: str, answer: str) -> None:
    if backend == "torch":
        tensors = [[torch.tensor([word]) for word in words(text).view(np.int32)] for text in (counter, key)]
        result = torch.cat(threefry(*tensors)).numpy().view(np.uint32)
    else:
        require(backend)
        result = np.empty(4, dtype=np.uint32)
        arrays = words(counter), words(key), result
        load_library(backend).hm_threefry(*(address(array) for array in arrays))
    assert np.array_equal(result, words(answer))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("seed", "step"), [(1, 0), (2**31 - 1, 10**9), (0xDEADBEEF12345678, 2**32 - 50), (5, 2**40)])
def test_deviates_of_kernel_and_torch_are_the_same(variant: str, seed: int, step: int) -> None:
    require(variant)
    ours, theirs = kernel_normals(variant, seed, step, 100), torch_normals(seed, step, 100)
    assert np.abs(ours - theirs).max() < 1e-5
    assert len(np.unique(ours)) == ours.size


@pytest.mark.parametrize("variant", VARIANTS)
def test_deviates_are_normal_and_independent(variant: str) -> None:
    """Moments, distribution and correlations within 5 standard errors of those of independent normal deviates."""
    require(variant)
    n_steps = 100_000
    x = kernel_normals(variant, 2024, 0, n_steps).astype(np.float64)
    n = x.size
    assert abs(x.mean()) < 5 / np.sqrt(n)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(np.mean(x**3)) < 5 * np.sqrt(15 / n)
    assert abs(np.mean(x**4) - 3) < 5 * np.sqrt(96 / n)
    assert stats.kstest(x.ravel(), "norm").pvalue > 1e-6
    assert 4.2 < np.abs(x).max() < 5.8
    other = kernel_normals(variant, 2025, 0, n_steps).astype(np.float64)
    far = kernel_normals(variant, 2024 + 2**32, 0, n_steps).astype(np.float64)
    for power in (1, 2):  # of values, and of sizes
        columns = np.concatenate([x[:-1], x[1:], other[:-1], far[:-1]], axis=1) ** power
        correlation = np.corrcoef(columns, rowvar=False)
        correlation[np.diag_indices(16)] = 0
        assert np.abs(correlation).max() < 5 / np.sqrt(n_steps)


def test_deviates_of_all_blocks_and_copies_differ() -> None:
    seeds = torch.arange(1, 9, dtype=torch.int32).repeat(2, 1)
    x = normals(seeds, 3, 66)
    assert x.shape == (66, 8)
    assert x.dtype == torch.float32
    assert len(np.unique(x.numpy())) == 66 * 8
    assert torch.equal(normals(seeds, 3, 7), x[:7])
    assert torch.equal(normals(seeds[:, 5:6], 3, 66), x[:, 5:6])


# torch.compile


@pytest.mark.skipif(not torch_energies.has_compiler("cpu"), reason="no C++ compiler: torch.compile cannot work")
def test_compiled_energies_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", True)  # or it compiles a test of each instruction set
    bonds = openmm.HarmonicBondForce()
    for index in range(3):
        bonds.addBond(index, index + 1, 0.13, 1e5)
    system, positions = bare(4, bonds), zigzag(4, 40)
    eager, compiled = (BatchedSystem(system, backend="torch", memory_mib=1, compiled=flag) for flag in (False, True))
    expected = eager.energies(positions)
    assert np.abs(compiled.energies(positions) - expected).max() < 1e-9
    assert "compiled" in compiled.description
    assert "eager" in eager.description
    assert any(tmp_path.iterdir())
    spoilt = positions.copy()
    spoilt[3] = np.nan
    energies = compiled.energies(spoilt)
    assert energies[3] == np.inf
    assert np.abs(np.delete(energies - expected, 3)).max() < 1e-9
    ours, our_forces = compiled.energies_and_forces(positions)
    assert np.abs(ours - expected).max() < 1e-9
    assert np.abs(our_forces - eager.energies_and_forces(positions)[1]).max() < 1e-6


def test_without_a_compiler_torch_stays_eager(
    alanine: MolecularSystem, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch_energies, "has_compiler", lambda _device: False)
    batched = BatchedSystem(alanine, backend="torch", compiled=True)
    with caplog.at_level(logging.WARNING):
        energies = batched.energies(frames)
        batched.energies(frames)
    assert caplog.text.count("no compiler was found") == 1
    assert "eager" in batched.description
    assert np.array_equal(energies, BatchedSystem(alanine, backend="torch").energies(frames))


# minimisation and constraints


def test_minima_are_openmms(alanine: MolecularSystem, frames: np.ndarray) -> None:
    """Both to the bottom: a copy that ends lower than OpenMM's found another basin, one that ends higher did so seldom."""
    batched = BatchedSystem(alanine, threads=1)
    minima, energies = minimise(batched, frames, max_iterations=5000, tolerance_kj_mol_nm=0.5)
    assert minima.shape == frames.shape
    recomputed, forces = batched.energies_and_forces(minima)
    assert np.array_equal(energies, recomputed)
    assert (np.sqrt(np.mean(forces**2, axis=(1, 2))) < 0.5).all()
    context = openmm.Context(
        openmm_system(alanine), openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference")
    )
    theirs = []
    for frame in frames:
        context.setPositions(frame)
        openmm.LocalEnergyMinimizer.minimize(context, 0.5)
        theirs.append(context.getState(getEnergy=True).getPotentialEnergy()._value)
    difference = energies - np.array(theirs)
    assert abs(np.median(difference)) < 0.1
    assert np.mean(np.abs(difference) < 0.3) > 0.7
    assert energies.min() == pytest.approx(min(theirs), abs=0.1)


@pytest.mark.parametrize(("backend", "dtype"), [("kernel", "float64"), ("kernel", "float32"), ("torch", "float64")])
def test_every_copy_is_minimised_to_the_tolerance(
    alanine: MolecularSystem, frames: np.ndarray, backend: str, dtype: str
) -> None:
    batched = batched_with(alanine, dtype, backend)
    starts = frames[:6].copy()
    starts[1, 0] = starts[1, 16] + 0.02  # a clash
    before = batched.energies(starts)
    minima, energies = minimise(batched, starts)
    _, forces = batched.energies_and_forces(minima)
    assert (np.sqrt(np.mean(forces**2, axis=(1, 2))) < 10.0).all()
    assert (energies < before - 1).all()
    again, _ = minimise(batched, minima)
    assert np.array_equal(again, minima)  # nothing to do
    alone, _ = minimise(batched, starts[2:3])
    if backend == "kernel":
        assert np.array_equal(alone[0], minima[2])


def test_minimisation_of_nothing_of_little_and_of_fixed_atoms(alanine: MolecularSystem, frames: np.ndarray) -> None:
    batched = BatchedSystem(alanine, threads=1)
    minima, energies = minimise(batched, frames[:0])
    assert minima.shape == (0, 22, 3)
    assert energies.shape == (0,)
    few, _ = minimise(batched, frames, max_iterations=3)
    assert 0 < np.linalg.norm(few - frames, axis=2).max() <= 3 * 0.02 + 1e-9
    system = openmm_system(alanine)
    for index in (0, 7, 12):
        system.setParticleMass(index, 0.0)
    held, lower = minimise(BatchedSystem(system, threads=1), frames)
    assert np.array_equal(held[:, [0, 7, 12]], frames[:, [0, 7, 12]])
    assert (lower < batched.energies(frames)).all()


def lengths(positions_nm: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    distances: np.ndarray = np.linalg.norm(positions_nm[:, pairs[:, 0]] - positions_nm[:, pairs[:, 1]], axis=2)
    return distances


@pytest.mark.parametrize(("backend", "dtype"), [("kernel", "float64"), ("kernel", "float32"), ("torch", "float64")])
def test_constraints_hold_from_the_start(alanine: MolecularSystem, frames: np.ndarray, backend: str, dtype: str) -> None:
    batched = batched_with(modified_system(alanine, constraints="hbonds"), dtype, backend)
    terms = batched.terms
    assert len(terms.constraints) == 12
    assert np.abs(lengths(frames, terms.constraints) - terms.constraint_lengths_nm).max() > 1e-3
    fixed = apply_constraints(frames, terms)
    assert np.abs(lengths(fixed, terms.constraints) / terms.constraint_lengths_nm - 1).max() < 1e-8
    centre = terms.masses_amu / terms.masses_amu.sum()
    assert np.abs(np.einsum("a,nac->nc", centre, fixed - frames)).max() < 1e-12  # moves by inverse mass
    minima, energies = minimise(batched, frames)
    assert np.abs(lengths(minima, terms.constraints) / terms.constraint_lengths_nm - 1).max() < 0.02  # stiff bonds there
    assert np.isfinite(energies).all()
    tolerance = {"float32": 1e-5, "float64": 1e-7}[dtype]
    for starts in (frames, minima):
        dynamics = BatchedDynamics(batched, starts, list(range(1, 25)), temperature_kelvin=300.0, timestep_fs=2.0)
        for n_steps in (0, 1, 5):
            dynamics.step(n_steps)
            found = lengths(dynamics.positions_nm.astype(np.float64), terms.constraints)
            assert np.abs(found / terms.constraint_lengths_nm - 1).max() < tolerance


def test_unit_of_mass_and_length_of_the_terms(alanine: MolecularSystem) -> None:
    terms, system = read_terms(modified_system(alanine, constraints="hbonds", hydrogen_mass_amu=3.0)), openmm_system(alanine)
    masses = [system.getParticleMass(index).value_in_unit(unit.dalton) for index in range(22)]
    assert terms.masses_amu.sum() == pytest.approx(sum(masses))
    assert sorted(terms.masses_amu)[:12] == pytest.approx([3.0] * 12)
    assert ((terms.constraint_lengths_nm > 0.1) & (terms.constraint_lengths_nm < 0.11)).all()


def test_a_damaged_or_foreign_kernel_library_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that does not load, and one whose structures differ from those of the Python code (an old build)."""
    real = native._library_path
    (tmp_path / "torn.so").write_bytes(b"no library")
    monkeypatch.setattr(native, "_library_path", lambda _directory, _name: tmp_path / "torn.so")
    native.open_variant.cache_clear()
    assert built_variants() == []
    assert "torn.so cannot be used" in caplog.text
    monkeypatch.setattr(native, "_library_path", real)
    monkeypatch.setattr(kernel, "_LAYOUT", kernel._LAYOUT + 1)
    native.open_variant.cache_clear()
    assert built_variants() == []
    if any(real(kernel._DIRECTORY, variant) for variant in VARIANTS):
        assert "built from other sources" in caplog.text
    monkeypatch.undo()
    native.open_variant.cache_clear()
