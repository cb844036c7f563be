"""Batched dynamics and tempering sample the right distribution, as OpenMM does, and copies know nothing of each other.

Statistical tests allow 5 standard errors, estimated from independent copies.
"""

from __future__ import annotations

import numpy as np
import openmm
import pytest
from openmm import unit
from scipy import stats

from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.dynamics.kernel import built_variants
from hpc_molgen.dynamics.langevin import BatchedDynamics, BatchFrames, minimise
from hpc_molgen.dynamics.modified import TorsionBias, modified_system
from hpc_molgen.dynamics.tempering import ParallelTempering, TemperingFrames, geometric_ladder
from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import set_torsion, torsion_angles, torsion_by_name
from hpc_molgen.units import kt_kj_mol

KT = kt_kj_mol(300.0)
ENGINES = [("kernel", "float32"), ("kernel", "float64"), ("torch", "float32"), ("torch", "float64")]


def assert_within_5_errors(of_copies: np.ndarray, expected: float, *, bias: float = 0.0) -> None:
    """`of_copies` (n,) holds one independent estimate for each copy; `bias` is a known bound of a systematic error."""
    error = of_copies.std(ddof=1) / np.sqrt(len(of_copies))
    assert error > 0
    assert abs(of_copies.mean() - expected) < 5 * error + bias, f"{of_copies.mean()} +- {error}, not {expected}"


def assert_agree(first: np.ndarray, second: np.ndarray) -> None:
    """Means of two independent sets of copies differ by no more than 5 standard errors."""
    error = np.hypot(first.std(ddof=1) / np.sqrt(len(first)), second.std(ddof=1) / np.sqrt(len(second)))
    assert abs(first.mean() - second.mean()) < 5 * error, f"{first.mean()} and {second.mean()} +- {error}"


def bare(masses_amu: list[float], *forces: openmm.Force) -> openmm.System:
    system = openmm.System()
    for mass in masses_amu:
        system.addParticle(mass)
    for force in forces:
        system.addForce(force)
    return system


def batched_of(system: openmm.System | MolecularSystem, dtype: str, backend: str, threads: int = 1) -> BatchedSystem:
    if backend == "kernel" and not built_variants():
        pytest.skip("the C++ kernel is not built here")
    return BatchedSystem(system, dtype, backend=backend, threads=threads)


def oscillators() -> openmm.System:
    """Two springs of no length: each an isotropic harmonic oscillator in three dimensions, whatever the time step."""
    bonds = openmm.HarmonicBondForce()
    bonds.addBond(0, 1, 0.0, 7500.0)
    bonds.addBond(2, 3, 0.0, 4000.0)
    return bare([1.0, 3.0, 2.0, 2.0], bonds)


STRENGTH, REDUCED_MASS = np.array([7500.0, 4000.0]), np.array([0.75, 1.0])


def stretches(positions_nm: np.ndarray) -> np.ndarray:
    """k / 3 times the squared extension of both oscillators, mean kT, shape=(..., 2)."""
    extension = np.asarray(positions_nm, dtype=np.float64)[..., ::2, :] - positions_nm[..., 1::2, :]
    energy: np.ndarray = STRENGTH / 3 * (extension**2).sum(-1)
    return energy


def scattered(n: int, n_atoms: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.03, size=(n, n_atoms, 3))


def run(dynamics: BatchedDynamics, n_frames: int, steps_per_frame: int) -> BatchFrames:
    return next(dynamics.simulate(n_frames, steps_per_frame, block=n_frames))


# closed forms


@pytest.mark.parametrize(("backend", "dtype"), ENGINES)
def test_harmonic_oscillators_at_a_long_time_step(backend: str, dtype: str) -> None:
    """The middle scheme's positions are exact for a harmonic oscillator whatever the time step (Zhang et al. 2019, J. Phys.
    Chem. A 123, 6056). Kinetic energies of full steps are low by a relative (w dt / 2)^2, here 25 and 10 %; half a kick adds
    just that, so those of half steps, which are recorded, are exact as well.
    """
    n = 1024
    batched = batched_of(oscillators(), dtype, backend)
    dynamics = BatchedDynamics(
        batched, scattered(n, 4), list(range(1, n + 1)), temperature_kelvin=300.0, timestep_fs=10.0, friction_per_ps=10.0
    )
    assert np.sqrt(STRENGTH / REDUCED_MASS) * 0.01 == pytest.approx([1.0, 0.632], abs=1e-3)
    dynamics.step(80)  # 8 relaxation times
    frames = run(dynamics, 100 if backend == "kernel" else 10, 10)
    for extension in np.moveaxis(stretches(frames.positions_nm), -1, 0):
        assert_within_5_errors(extension.mean(0), KT)
    assert_within_5_errors(frames.potential_kj_mol.mean(0), 3 * KT)
    assert_within_5_errors((frames.potential_kj_mol**2).mean(0), (9 + 3) * KT**2)
    assert_within_5_errors(frames.kinetic_kj_mol.mean(0), 6 * KT)
    assert_within_5_errors((frames.kinetic_kj_mol**2).mean(0), (36 + 6) * KT**2)


def chain() -> tuple[openmm.System, np.ndarray]:
    """Four atoms whose torsion has the density exp(-V/kT) exactly: nothing else in the energy or the Jacobian knows of it."""
    bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for index in range(3):
        bonds.addBond(index, index + 1, 0.15, 2e4)
    for index in range(2):
        angles.addAngle(index, index + 1, index + 2, 1.8, 150.0)
    torsions.addTorsion(0, 1, 2, 3, 1, 0.7, 1.5)
    torsions.addTorsion(0, 1, 2, 3, 2, -0.5, 2.0)
    start = np.array([[0.0, 0.14, 0.0], [0.0, 0.0, 0.0], [0.15, 0.0, 0.0], [0.18, 0.1, 0.1]])
    return bare([12.0, 12.0, 12.0, 12.0], bonds, angles, torsions), start


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rigid", [False, True])
def test_density_of_a_torsion(dtype: str, rigid: bool) -> None:
    """Rigid bonds change the density of the angles beside them (Fixman 1974), but not that of a torsion."""
    system, start = chain()
    if rigid:
        bonds = system.getForce(0)
        for index in range(3):
            i, j, length, _ = bonds.getBondParameters(index)
            bonds.setBondParameters(index, i, j, length, 0.0)
            system.addConstraint(i, j, length)
    n = 512
    dynamics = BatchedDynamics(
        batched_of(system, dtype, "kernel"),
        np.repeat(start[None], n, axis=0),
        list(range(1, n + 1)),
        temperature_kelvin=300.0,
        timestep_fs=4.0,
        friction_per_ps=3.0,
    )
    dynamics.step(1000)
    phi = torsion_angles(run(dynamics, 120, 40).positions_nm, (0, 1, 2, 3))
    grid = np.linspace(-np.pi, np.pi, 3600, endpoint=False)
    weight = np.exp(-(1.5 * np.cos(grid - 0.7) + 2.0 * np.cos(2 * grid + 0.5)) / KT)
    weight /= weight.sum()
    for n_fold in (1, 2, 3):
        assert_within_5_errors(np.cos(n_fold * phi).mean(0), float(weight @ np.cos(n_fold * grid)))
        assert_within_5_errors(np.sin(n_fold * phi).mean(0), float(weight @ np.sin(n_fold * grid)))
    assert_within_5_errors((phi > 0).mean(0), float(weight[grid > 0].sum()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_freely_jointed_rigid_trimer(dtype: str) -> None:
    """With c the cosine of the angle its density is proportional to sqrt(4 - c^2) (Fixman 1974, PNAS 71, 3050): constraints
    act on velocities too. A scheme that moved atoms onto their bonds and did no more would miss it.
    """
    system = bare([14.0, 14.0, 14.0])
    system.addConstraint(0, 1, 0.15)
    system.addConstraint(2, 1, 0.15)
    n = 2048
    rng = np.random.default_rng(4)
    cosine = rng.uniform(-1, 1, n)
    starts = np.zeros((n, 3, 3))
    starts[:, 0, 0] = 0.15
    starts[:, 2, 0], starts[:, 2, 1] = 0.15 * cosine, 0.15 * np.sqrt(1 - cosine**2)
    batched = batched_of(system, dtype, "kernel")
    dynamics = BatchedDynamics(
        batched, starts, list(range(1, n + 1)), temperature_kelvin=300.0, timestep_fs=5.0, friction_per_ps=3.0
    )
    dynamics.step(150)
    frames = run(dynamics, 100, 20)
    x = frames.positions_nm.astype(np.float64)
    c = np.einsum("...a,...a", x[:, :, 0] - x[:, :, 1], x[:, :, 2] - x[:, :, 1]) / 0.15**2
    grid = np.linspace(-1, 1, 20001)
    weight = np.sqrt(4 - grid**2)
    weight /= weight.sum()
    assert_within_5_errors(c.mean(0), 0.0)
    assert_within_5_errors((c**2).mean(0), float(weight @ grid**2))  # 0.3217; without constraints on velocities 1/3
    # velocities of half steps leave the bonds by a second-order amount
    assert_within_5_errors(frames.kinetic_kj_mol.mean(0), 3.5 * KT, bias=0.001 * KT)
    assert (c**2).mean(0).std() / np.sqrt(n) < (1 / 3 - weight @ grid**2) / 8  # the test can tell


# the molecule


@pytest.fixture(scope="module")
def minimum(alanine: MolecularSystem) -> np.ndarray:
    positions, _ = minimise(BatchedSystem(alanine, threads=1), alanine.positions_nm[None])
    start: np.ndarray = positions[0]
    return start


def dynamics_of(
    system: openmm.System | MolecularSystem,
    start_nm: np.ndarray,
    n: int,
    *,
    backend: str = "kernel",
    dtype: str = "float64",
    seeds: list[int] | None = None,
    threads: int = 1,
    temperature_kelvin: float | np.ndarray = 300.0,
    timestep_fs: float = 1.0,
    friction_per_ps: float = 1.0,
) -> BatchedDynamics:
    """`n` copies of one start (or given ones), seeds 1 to n."""
    batched = batched_of(system, dtype, backend, threads)
    starts = np.repeat(start_nm[None], n, axis=0) if start_nm.ndim == 2 else start_nm
    return BatchedDynamics(
        batched,
        starts,
        seeds or list(range(1, n + 1)),
        temperature_kelvin=temperature_kelvin,
        timestep_fs=timestep_fs,
        friction_per_ps=friction_per_ps,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("constraints", "mass_amu", "timestep_fs", "freedom"),
    [("none", None, 1.0, 66), ("hbonds", None, 2.0, 54), ("hbonds", 3.0, 3.0, 54)],
)
def test_kinetic_temperature(
    alanine: MolecularSystem,
    minimum: np.ndarray,
    dtype: str,
    constraints: str,
    mass_amu: float | None,
    timestep_fs: float,
    freedom: int,
) -> None:
    """Equipartition over all degrees of freedom, overall translation and rotation included."""
    system = modified_system(alanine, constraints=constraints, hydrogen_mass_amu=mass_amu)
    n = 128 if dtype == "float32" else 64
    dynamics = dynamics_of(system, minimum, n, dtype=dtype, timestep_fs=timestep_fs, friction_per_ps=20.0)
    dynamics.step(round(1000 / timestep_fs))
    frames = run(dynamics, 60, round(25 / timestep_fs))
    kelvin = 300 * frames.kinetic_kj_mol.mean(0) / (freedom * KT / 2)
    # an anharmonic molecule's error of second order in the step stays below half a kelvin
    assert_within_5_errors(kelvin, 300.0, bias=0.5)
    assert np.abs(frames.positions_nm.mean(2)).max() < 0.1  # it stays near the origin


def openmm_trajectory(
    system: openmm.System, start_nm: np.ndarray, n_steps: int, timestep_fs: float, friction_per_ps: float
) -> np.ndarray:
    """From rest at 0 K: no random number takes part."""
    integrator = openmm.LangevinMiddleIntegrator(0.0, friction_per_ps, timestep_fs * 1e-3)
    integrator.setConstraintTolerance(1e-10)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(start_nm)
    context.applyConstraints(1e-10)
    integrator.step(n_steps)
    positions = context.getState(getPositions=True).getPositions(asNumpy=True)
    array: np.ndarray = positions.value_in_unit(unit.nanometer)
    return array


@pytest.mark.parametrize("backend", ["kernel", "torch"])
@pytest.mark.parametrize("friction_per_ps", [0.0, 5.0])
@pytest.mark.parametrize(
    ("constraints", "mass_amu", "timestep_fs"), [("none", None, 1.0), ("hbonds", None, 2.0), ("hbonds", 3.0, 3.0)]
)
def test_trajectories_without_noise_are_openmms(
    alanine: MolecularSystem, backend: str, friction_per_ps: float, constraints: str, mass_amu: float | None, timestep_fs: float
) -> None:
    system = modified_system(alanine, constraints=constraints, hydrogen_mass_amu=mass_amu)
    strained = alanine.positions_nm + scattered(1, 22, seed=5)[0] / 6  # rest lasts a moment
    dynamics = dynamics_of(
        system, strained, 3, backend=backend, temperature_kelvin=0.0, timestep_fs=timestep_fs, friction_per_ps=friction_per_ps
    )
    start, n_steps = dynamics.positions_nm[1], 200 if backend == "kernel" else 40  # constraints hold at the start
    expected = openmm_trajectory(system, start, n_steps, timestep_fs, friction_per_ps)
    dynamics.step(n_steps)
    ours = dynamics.positions_nm[1]
    assert np.abs(expected - start).max() > 0.01
    assert friction_per_ps > 0 or dynamics.kinetic_kj_mol[1] > 27 * KT / 2
    difference = (ours - ours.mean(0)) - (expected - expected.mean(0))
    assert np.abs(difference).max() < (1e-11 if constraints == "none" else 2e-8)  # lengths hold to 1e-8


@pytest.mark.parametrize(
    ("name", "start_psi", "n_openmm"), [("alanine-dipeptide-vacuum", -0.5, 100), ("alanine-dipeptide", 0.6, 60)]
)
def test_relaxation_from_one_start_is_openmms(minimum: np.ndarray, name: str, start_psi: float, n_openmm: int) -> None:
    """Short runs: the share in the basin alpha-R, which changes with time by a half and more, and the energies."""
    system = load_system(SystemConfig(name=name, temperature_kelvin=500.0))
    phi, psi = (torsion_by_name(system.topology, torsion) for torsion in ("phi", "psi"))
    start = set_torsion(system.topology, set_torsion(system.topology, minimum, phi, -1.4), psi, start_psi)
    n_frames, steps_per_frame = 8, 75
    engine = Engine(system, "Reference", 1, friction_per_ps=5.0)
    blocks = []
    for seed in range(1, n_openmm + 1):
        engine.seed = seed
        engine.set_positions(start, draw_velocities=True)
        blocks.append(next(engine.simulate(n_frames, steps_per_frame)))
    theirs = torsion_angles(np.array([block.positions_nm for block in blocks]), psi).T  # (n_frames, n_copies)
    dynamics = dynamics_of(system, start, 512, dtype="float32", temperature_kelvin=500.0, friction_per_ps=5.0)
    frames = run(dynamics, n_frames, steps_per_frame)
    ours = torsion_angles(frames.positions_nm, psi)
    in_alpha = [(values > -2.0) & (values < 0.35) for values in (ours, theirs)]
    shares = in_alpha[0].mean(1)
    assert abs(shares[-1] - shares[0]) > 0.3
    for part in (slice(0, 3), slice(3, 8)):
        assert_agree(in_alpha[0][part].mean(0), in_alpha[1][part].mean(0))
    for function in (np.cos, np.sin):
        assert_agree(function(ours).mean(0), function(theirs).mean(0))
    for kind in ("potential_kj_mol", "kinetic_kj_mol"):
        values = getattr(frames, kind)
        expected = np.array([getattr(block, kind) for block in blocks]).T
        for part in (slice(0, 2), slice(2, 8)):
            assert_agree(values[part].mean(0), expected[part].mean(0))


def total_energy(dynamics: BatchedDynamics, n_steps: int) -> np.ndarray:
    """Energy after each step but the last, shape=(n_steps - 1, n); kinetic energies are those of the half steps around it."""
    frames = run(dynamics, n_steps, 1)
    energy: np.ndarray = frames.potential_kj_mol[:-1] + (frames.kinetic_kj_mol[:-1] + frames.kinetic_kj_mol[1:]) / 2
    return energy


@pytest.mark.parametrize(("constraints", "timestep_fs"), [("none", 0.5), ("hbonds", 1.0)])
def test_energy_is_kept_without_friction(
    alanine: MolecularSystem, minimum: np.ndarray, constraints: str, timestep_fs: float
) -> None:
    system = modified_system(alanine, constraints=constraints)
    sizes, drifts = [], []
    for divisor in (1, 2):
        dynamics = dynamics_of(system, minimum, 16, timestep_fs=timestep_fs / divisor, friction_per_ps=0.0)
        energy = total_energy(dynamics, round(1000 / timestep_fs) * divisor)
        sizes.append(energy.std(0))
        quarter = len(energy) // 4
        drifts.append(energy[-quarter:].mean(0) - energy[:quarter].mean(0))
    assert np.max(sizes[0]) < 0.5
    assert 3.6 < np.mean(sizes[0] / sizes[1]) < 4.4  # second order
    assert np.abs(np.mean(drifts[0])) < 0.05
    assert np.abs(np.mean(drifts[1])) < 0.02


@pytest.mark.parametrize("backend", ["kernel", "torch"])
def test_atoms_without_mass_stay(alanine: MolecularSystem, minimum: np.ndarray, backend: str) -> None:
    system = modified_system(alanine)
    fixed = [8, 14]
    for index in fixed:
        system.setParticleMass(index, 0.0)
    dynamics = dynamics_of(system, minimum, 3, backend=backend, friction_per_ps=10.0)
    dynamics.step(250 if backend == "kernel" else 120)
    moved = np.abs(dynamics.positions_nm - minimum).max((0, 2))
    assert (moved[fixed] == 0).all()
    assert (np.delete(moved, fixed) > 1e-3).all()


def test_the_bias_drives_but_is_not_recorded(alanine: MolecularSystem, minimum: np.ndarray) -> None:
    bias = TorsionBias(torsion_by_name(alanine.topology, "phi"), (30.0, -5.0), (20.0, 0.0))
    biased = BatchedSystem(modified_system(alanine, bias=bias), threads=1)
    plain = BatchedSystem(alanine, threads=1)
    starts = np.repeat(minimum[None], 16, axis=0)

    def start(system: BatchedSystem, recorded: BatchedSystem | None = None) -> BatchedDynamics:
        return BatchedDynamics(
            system, starts, list(range(16)), temperature_kelvin=300.0, friction_per_ps=10.0, unbiased=recorded
        )

    dynamics = start(biased, plain)
    frames = run(dynamics, 5, 50)
    assert np.array_equal(dynamics.potential_kj_mol, plain.energies(dynamics.positions_nm))
    assert np.array_equal(frames.potential_kj_mol[-1], dynamics.potential_kj_mol)
    constant = np.hypot(bias.cos_kj_mol, bias.sin_kj_mol).sum()
    phi = torsion_angles(dynamics.positions_nm, bias.atoms)
    expected = plain.energies(dynamics.positions_nm) + bias.energy_kj_mol(phi) + constant
    assert biased.energies(dynamics.positions_nm) == pytest.approx(expected, abs=1e-8)
    recorded = start(biased)
    run(recorded, 5, 50)
    assert np.array_equal(recorded.positions_nm, dynamics.positions_nm)  # recording changes nothing
    assert np.array_equal(recorded.potential_kj_mol, biased.energies(recorded.positions_nm))
    unbiased = start(plain)
    unbiased.step(250)
    assert np.abs(torsion_angles(unbiased.positions_nm, bias.atoms) - phi).min() > 1e-3  # the bias drove


# copies and what they depend on


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("constraints", ["none", "hbonds"])
def test_a_copy_depends_on_its_seed_alone(alanine: MolecularSystem, minimum: np.ndarray, constraints: str, dtype: str) -> None:
    """Bit for bit: not on the batch, its place in it, the number of threads, or how steps are grouped."""
    system, n, n_steps = modified_system(alanine, constraints=constraints), 37, 130
    rng = np.random.default_rng(6)
    starts = minimum + rng.normal(scale=0.002, size=(n, 22, 3))
    kelvin = np.linspace(100, 600, n)

    def final(rows: slice, parts: tuple[int, ...] = (n_steps,), *, threads: int = 1, changed: int | None = None) -> np.ndarray:
        seeds = [2**40 + 17 * k + (k == changed) for k in range(n)][rows]
        dynamics = dynamics_of(
            system, starts[rows], len(seeds), dtype=dtype, seeds=seeds, threads=threads, temperature_kelvin=kelvin[rows]
        )
        for part in parts:
            dynamics.step(part)
        assert dynamics.n_steps == n_steps
        return np.concatenate([dynamics.positions_nm.reshape(len(seeds), -1), dynamics.kinetic_kj_mol[:, None]], axis=1)

    whole = final(slice(None))
    assert len(np.unique(whole[:, 0])) == n
    for rows in (slice(0, 1), slice(36, 37), slice(5, 22), slice(None, None, -1)):
        assert np.array_equal(final(rows), whole[rows])
    assert np.array_equal(final(slice(None), threads=2), whole)
    assert np.array_equal(final(slice(None), (60, 40, 0, 30)), whole)
    other = final(slice(None), changed=9)
    assert np.array_equal(np.delete(other, 9, axis=0), np.delete(whole, 9, axis=0))
    assert np.abs(other[9] - whole[9]).max() > 1e-3


def test_a_copy_that_blows_up_harms_no_other(alanine: MolecularSystem, minimum: np.ndarray) -> None:
    starts = np.repeat(minimum[None], 20, axis=0)
    sound = dynamics_of(modified_system(alanine, constraints="hbonds"), starts, 20, timestep_fs=2.0)
    starts[3, 5] = starts[3, 16] + 1e-4
    starts[11] = np.nan
    spoilt = dynamics_of(modified_system(alanine, constraints="hbonds"), starts, 20, timestep_fs=2.0)
    with np.errstate(all="ignore"):
        for dynamics in (sound, spoilt):
            dynamics.step(100)
        assert (spoilt.potential_kj_mol[[3, 11]] == np.inf).all()
    rest = np.delete(np.arange(20), [3, 11])
    assert np.array_equal(spoilt.positions_nm[rest], sound.positions_nm[rest])
    assert np.isfinite(spoilt.potential_kj_mol[rest]).all()


@pytest.mark.parametrize("constraints", ["none", "hbonds"])
def test_trajectories_of_kernel_and_torch_are_the_same(alanine: MolecularSystem, minimum: np.ndarray, constraints: str) -> None:
    system = modified_system(alanine, constraints=constraints)
    ends = []
    for backend in ("kernel", "torch"):
        dynamics = dynamics_of(system, minimum, 5, backend=backend, timestep_fs=2.0 if constraints == "hbonds" else 1.0)
        dynamics.step(20)
        ends.append((dynamics.positions_nm, dynamics.kinetic_kj_mol))
    assert np.abs(ends[0][0] - minimum).max() > 0.01
    assert np.abs(ends[0][0] - ends[1][0]).max() < 1e-7  # deviates are of single precision
    assert np.abs(ends[0][1] - ends[1][1]).max() < 1e-4


@pytest.mark.parametrize(("backend", "dtype"), ENGINES)
def test_constraints_hold(alanine: MolecularSystem, minimum: np.ndarray, backend: str, dtype: str) -> None:
    system = modified_system(alanine, constraints="hbonds", hydrogen_mass_amu=3.0)
    dynamics = dynamics_of(
        system,
        minimum,
        20 if backend == "kernel" else 3,
        backend=backend,
        dtype=dtype,
        timestep_fs=3.0,
        temperature_kelvin=600.0,
    )
    terms = dynamics.batched.terms
    for n_steps in (1, 30, 300, 169) if backend == "kernel" else (1, 29):
        dynamics.step(n_steps)
        x = dynamics.positions_nm.astype(np.float64)
        length = np.linalg.norm(x[:, terms.constraints[:, 0]] - x[:, terms.constraints[:, 1]], axis=2)
        error = np.abs(length / terms.constraint_lengths_nm - 1).max()
        assert error < {"float32": 1e-5, "float64": 1e-7}[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_velocities_are_drawn_at_the_temperature(dtype: str) -> None:
    n = 3000
    kelvin = np.repeat([200.0, 500.0], n)
    dynamics = dynamics_of(oscillators(), scattered(2 * n, 4), 2 * n, dtype=dtype, temperature_kelvin=kelvin)
    for temperature in (200.0, 500.0):
        kinetic = dynamics.kinetic_kj_mol[kelvin == temperature] / kt_kj_mol(temperature)
        assert_within_5_errors(kinetic, 6.0)
        assert_within_5_errors((kinetic - 6.0) ** 2, 6.0)


def test_temperatures_of_copies(alanine: MolecularSystem, minimum: np.ndarray) -> None:
    kelvin = np.repeat([150.0, 300.0, 600.0], 32)
    dynamics = dynamics_of(alanine, minimum, 96, dtype="float32", temperature_kelvin=kelvin, friction_per_ps=20.0)
    assert np.allclose(dynamics.temperature_kelvin, kelvin)
    dynamics.step(500)
    frames = run(dynamics, 20, 25)
    for temperature in (150.0, 300.0, 600.0):
        rows = kelvin == temperature
        found = frames.kinetic_kj_mol[:, rows].mean(0) / (33 * kt_kj_mol(1.0))
        assert_within_5_errors(found, temperature, bias=0.004 * temperature)
    before = dynamics.kinetic_kj_mol
    dynamics.set_temperature(300.0)
    assert np.array_equal(dynamics.kinetic_kj_mol, before)
    dynamics.set_temperature(kelvin[::-1], rescale=True)
    assert dynamics.kinetic_kj_mol == pytest.approx(before * kelvin[::-1] / 300, rel=1e-5)
    assert dynamics.temperature_kelvin == pytest.approx(kelvin[::-1])


@pytest.mark.parametrize("backend", ["kernel", "torch"])
def test_frames_hold_what_was_asked_for(backend: str) -> None:
    dynamics = dynamics_of(oscillators(), scattered(5, 4), 5, backend=backend, timestep_fs=2.0)
    dynamics.step(10)
    observables = {"first": lambda x: x[:, 0, 0].astype(np.float64)}
    blocks = list(dynamics.simulate(7, 3, observables=observables, coordinates_every=2, block=3))
    assert [len(block.time_ps) for block in blocks] == [3, 3, 1]
    assert np.concatenate([block.time_ps for block in blocks]) == pytest.approx(0.02 + 0.006 * np.arange(1, 8))
    positions = np.concatenate([block.positions_nm for block in blocks])
    energies = np.concatenate([block.potential_kj_mol for block in blocks])
    first = np.concatenate([block.observables["first"] for block in blocks])
    assert positions.shape == (3, 5, 4, 3)
    assert positions.dtype == np.float32
    assert energies.shape == first.shape == (7, 5)
    assert positions[:, :, 0, 0] == pytest.approx(first[1::2], abs=1e-6)
    for frame, energy in zip(positions, energies[1::2], strict=True):
        assert dynamics.batched.energies(frame) == pytest.approx(energy, rel=1e-4)
    assert next(dynamics.simulate(2, 1, coordinates_every=0)).positions_nm.size == 0
    assert dynamics.n_steps == 10 + 21 + 2


@pytest.mark.parametrize("backend", ["kernel", "torch"])
def test_no_copies_are_no_problem(backend: str) -> None:
    dynamics = dynamics_of(oscillators(), np.empty((0, 4, 3)), 0, backend=backend)
    frames = run(dynamics, 3, 2)
    assert len(dynamics) == 0
    assert frames.potential_kj_mol.shape == frames.kinetic_kj_mol.shape == (3, 0)
    assert frames.positions_nm.shape[1:] == (0, 4, 3)


# tempering

LADDER = geometric_ladder(300.0, 900.0, 4)


def tempering_of(n_ladders: int, seed: int | list[int] = 3, *, backend: str = "kernel") -> ParallelTempering:
    batched = batched_of(oscillators(), "float32", backend)
    starts = scattered(n_ladders * 4, 4).reshape(n_ladders, 4, 4, 3)
    return ParallelTempering(batched, starts, LADDER, seed, steps_per_swap=10, timestep_fs=10.0, friction_per_ps=20.0)


@pytest.fixture(scope="module")
def tempered() -> tuple[ParallelTempering, TemperingFrames]:
    """400 ladders in equilibrium, 200 rounds."""
    tempering = tempering_of(400)
    list(tempering.simulate(40))
    tempering.accepted[:], tempering.attempted[:] = 0, 0
    potential = tempering.dynamics.batched
    observables = {"again": potential.energies, "stretch": lambda x: stretches(x)[..., 0]}
    blocks = list(tempering.simulate(200, observables=observables, keep_positions=True, block=200))
    return tempering, blocks[0]


def test_energies_at_each_temperature_are_gamma_distributed(tempered: tuple[ParallelTempering, TemperingFrames]) -> None:
    """Six harmonic degrees of freedom: mean 3 kT, variance 3 (kT)^2, while copies swap."""
    _, frames = tempered
    for level, kelvin in enumerate(LADDER):
        energy, kt = frames.potential_kj_mol[:, :, level], kt_kj_mol(kelvin)
        assert_within_5_errors(energy.mean(0), 3 * kt)
        assert_within_5_errors(((energy - 3 * kt) ** 2).mean(0), 3 * kt**2)
        assert_within_5_errors(frames.observables["stretch"][:, :, level].mean(0), kt)
        for quantile in (0.1, 0.5, 0.9):
            assert_within_5_errors((energy < stats.gamma(3, scale=kt).ppf(quantile)).mean(0), quantile)


def test_swaps_are_accepted_as_often_as_they_should(tempered: tuple[ParallelTempering, TemperingFrames]) -> None:
    """The mean of min(1, exp(db dU)) over two independent gamma variables, by quadrature on their quantiles."""
    tempering, frames = tempered
    accepted = np.zeros((400, 3))
    attempted = np.zeros(3)
    for number in range(len(frames.copy) - 1):  # a frame is of before its swap
        lower = np.flatnonzero((frames.copy[number] != frames.copy[number + 1]).any(0))
        first = number % 2  # 40 rounds came before
        assert set(lower) <= {k + d for k in range(first, 3, 2) for d in (0, 1)}
        for pair in range(first, 3, 2):
            attempted[pair] += 1
            accepted[:, pair] += frames.copy[number, :, pair] != frames.copy[number + 1, :, pair]
    assert (tempering.attempted == [400 * 100] * 3).all()
    assert tempering.acceptance == pytest.approx((accepted / attempted).mean(0), abs=0.01)
    levels = (np.arange(2000) + 0.5) / 2000
    for pair in range(3):
        betas = 1 / kt_kj_mol(LADDER[pair]), 1 / kt_kj_mol(LADDER[pair + 1])
        below, above = (stats.gamma(3, scale=1 / beta).ppf(levels) for beta in betas)
        exact = np.minimum(1, np.exp((betas[0] - betas[1]) * (below[:, None] - above))).mean()
        assert 0.3 < exact < 0.9
        assert_within_5_errors(accepted[:, pair] / attempted[pair], float(exact), bias=1e-4)


def test_every_copy_visits_every_temperature(tempered: tuple[ParallelTempering, TemperingFrames]) -> None:
    tempering, frames = tempered
    assert (np.sort(frames.copy, axis=2) == np.arange(4)).all()
    for copy in range(4):
        assert (frames.copy == copy).any(0).all()
        for level in range(4):
            assert_within_5_errors((frames.copy[:, :, level] == copy).mean(0), 0.25)
    temperatures = tempering.dynamics.temperature_kelvin.reshape(400, 4)
    assert np.allclose(np.sort(temperatures, axis=1), LADDER)
    kinetic = tempering.dynamics.kinetic_kj_mol.reshape(400, 4)  # right after a swap: velocities were rescaled
    for kelvin in LADDER:
        assert_within_5_errors(kinetic[np.isclose(temperatures, kelvin)], 6 * kt_kj_mol(kelvin))


def test_frames_of_tempering_belong_together(tempered: tuple[ParallelTempering, TemperingFrames]) -> None:
    tempering, frames = tempered
    assert frames.potential_kj_mol.shape == (200, 400, 4)
    assert np.array_equal(frames.observables["again"], frames.potential_kj_mol)
    assert frames.positions_nm.shape == (200, 400, 4, 3)
    coldest = tempering.dynamics.batched.energies(frames.positions_nm.reshape(-1, 4, 3)).reshape(200, 400)
    assert np.array_equal(coldest, frames.potential_kj_mol[:, :, 0])
    assert frames.time_ps == pytest.approx(0.1 * np.arange(41, 241))


@pytest.mark.parametrize("backend", ["kernel", "torch"])
def test_ladders_depend_on_their_seed_alone(backend: str) -> None:
    def energies(n_ladders: int, seed: int | list[int], block: int = 1000) -> np.ndarray:
        blocks = tempering_of(n_ladders, seed, backend=backend).simulate(12, block=block)
        return np.concatenate([block.potential_kj_mol for block in blocks])

    whole = energies(5, 3)
    assert np.array_equal(energies(5, 3, block=5), whole)
    assert not np.isclose(energies(5, 4), whole).any()
    named = energies(3, [11, 12, 13])
    if backend == "kernel":
        assert np.array_equal(energies(2, [11, 12]), named[:, :2])
    else:
        assert np.allclose(energies(2, [11, 12]), named[:, :2], rtol=1e-3)


def test_ladders_that_do_not_fit_are_refused() -> None:
    batched = BatchedSystem(oscillators(), threads=1)
    for temperatures in ([300.0, 400.0], [300.0, 500.0, 400.0], [300.0, 300.0, 400.0]):
        with pytest.raises(InputError, match="3 copies a ladder need as many ascending temperatures"):
            ParallelTempering(batched, scattered(6, 4).reshape(2, 3, 4, 3), np.array(temperatures), 1)
    with pytest.raises(InputError, match="2 ladders need as many seeds, not 3"):
        ParallelTempering(batched, scattered(6, 4).reshape(2, 3, 4, 3), np.array([300.0, 400.0, 500.0]), [1, 2, 3])
    assert LADDER[1:] / LADDER[:-1] == pytest.approx([3 ** (1 / 3)] * 3)
