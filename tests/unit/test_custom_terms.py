"""Custom forces of the batched engine: energies and forces are those of OpenMM's Reference platform."""

import pickle
from collections.abc import Callable

import numpy as np
import openmm
import pytest
import torch
from openmm import app, unit

from hpc_molgen.dynamics.custom.cmap import bicubic_coefficients
from hpc_molgen.dynamics.custom.terms import read_custom
from hpc_molgen.errors import InputError, UnsupportedForce
from hpc_molgen.systems.alanine_dipeptide import _build

N_COPIES = 8


def system_of(force: openmm.Force, n_atoms: int) -> openmm.System:
    system = openmm.System()
    for _ in range(n_atoms):
        system.addParticle(12.0)
    system.addForce(force)
    return system


def reference(system: openmm.System, positions_nm: np.ndarray, group: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Energies, shape=(n_copies,), and forces, shape=(n_copies, n_atoms, 3)."""
    context = openmm.Context(system, openmm.VerletIntegrator(1e-3), openmm.Platform.getPlatformByName("Reference"))
    energies, forces = [], []
    for frame in positions_nm:
        context.setPositions(frame)
        state = context.getState(getEnergy=True, getForces=True, groups={group})
        energies.append(state.getPotentialEnergy()._value)
        forces.append(state.getForces(asNumpy=True)._value)
    return np.array(energies), np.array(forces)


def batched(
    force: openmm.Force, system: openmm.System, positions_nm: np.ndarray, dtype: torch.dtype = torch.float64
) -> tuple[np.ndarray, np.ndarray]:
    energy = pickle.loads(pickle.dumps(read_custom(force, system))).build(dtype, torch.device("cpu"))
    x = torch.tensor(positions_nm.transpose(2, 1, 0).copy(), dtype=dtype, requires_grad=True)
    energies = energy(x)
    assert energies.dtype == dtype
    (gradient,) = torch.autograd.grad(energies.sum(), x)
    return energies.detach().numpy(), -gradient.numpy().transpose(2, 1, 0)


def assert_same(
    force: openmm.Force, system: openmm.System, positions_nm: np.ndarray, group: int = 0, tolerance: float = 1e-9
) -> None:
    energies, forces = batched(force, system, positions_nm)
    expected, expected_forces = reference(system, positions_nm, group)
    assert np.std(expected) > 0
    assert (np.abs(energies - expected) <= tolerance * np.maximum(1, np.abs(expected))).all()
    rms = np.sqrt(np.mean(expected_forces**2))
    assert np.abs(forces - expected_forces).max() <= 1e-6 * rms
    single, _ = batched(force, system, positions_nm, torch.float32)
    assert np.abs(single - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def cloud(n_atoms: int, seed: int = 1, size_nm: float = 0.6) -> np.ndarray:
    """Random points, no two closer than 0.08 nm."""
    rng = np.random.default_rng(seed)
    frames = []
    while len(frames) < N_COPIES:
        points = rng.uniform(-size_nm / 2, size_nm / 2, (n_atoms, 3))
        distances = np.linalg.norm(points[:, None] - points, axis=2)[np.triu_indices(n_atoms, 1)]
        if distances.min() > 0.08:
            frames.append(points)
    return np.array(frames)


def test_bonds() -> None:
    force = openmm.CustomBondForce("d*(1-exp(-a*(r-r0)))^2 + shift*r^n")
    for name in ("d", "a", "r0", "n"):
        force.addPerBondParameter(name)
    force.addGlobalParameter("shift", 0.3)
    force.addBond(0, 1, [400.0, 20.0, 0.11, 2.0])
    force.addBond(4, 2, [300.0, 25.0, 0.14, 3.0])
    force.addBond(1, 3, [350.0, 21.0, 0.13, 1.5])
    system = system_of(force, 5)
    assert_same(force, system, cloud(5))
    assert read_custom(force, system).translation_invariant


def test_angles() -> None:
    force = openmm.CustomAngleForce("k*(theta-theta0)^2+cos(theta)/(2+theta)")
    force.addPerAngleParameter("k")
    force.addPerAngleParameter("theta0")
    force.addAngle(0, 1, 2, [400.0, 1.9])
    force.addAngle(3, 0, 4, [300.0, 2.1])
    assert_same(force, system_of(force, 5), cloud(5))


def test_torsions_and_their_sign() -> None:
    force = openmm.CustomTorsionForce("k*theta+select(step(theta), sqrt(theta), 3)")
    force.addPerTorsionParameter("k")
    force.addTorsion(0, 1, 2, 3, [5.0])
    force.addTorsion(4, 2, 3, 1, [-3.0])
    assert_same(force, system_of(force, 5), cloud(5))


def test_gradients_are_finite_at_singular_geometries() -> None:
    line = np.zeros((1, 4, 3))
    line[0, :, 0] = [0.0, 0.1, 0.2, 0.3]
    for force, atoms in (
        (openmm.CustomBondForce("100*(r-0.1)^2"), (0, 0)),
        (openmm.CustomAngleForce("3*(theta-2)^2"), (0, 1, 2)),
        (openmm.CustomTorsionForce("theta^2"), (0, 1, 2, 3)),
    ):
        add = {2: "addBond", 3: "addAngle", 4: "addTorsion"}[len(atoms)]
        getattr(force, add)(*atoms, [])
        energies, forces = batched(force, system_of(force, 4), line)
        assert np.isfinite(energies).all()
        assert np.isfinite(forces).all()


def test_external_forces_tell_whether_they_move_with_the_molecule() -> None:
    force = openmm.CustomExternalForce("k*((x-x0)^2+y*z)+a*b; a=x+y; b=z^2")
    force.addGlobalParameter("k", 12.0)
    force.addPerParticleParameter("x0")
    force.addParticle(3, [0.2])
    force.addParticle(1, [-0.1])
    system = system_of(force, 4)
    assert_same(force, system, cloud(4))
    assert not read_custom(force, system).translation_invariant
    constant = openmm.CustomExternalForce("k^2")
    constant.addPerParticleParameter("k")
    constant.addParticle(0, [3.0])
    constant.addParticle(1, [4.0])
    term = read_custom(constant, system_of(constant, 2))
    assert term.translation_invariant
    x = torch.zeros(3, 2, 5)
    assert term.build(torch.float32, torch.device("cpu"))(x).tolist() == [25.0] * 5


def lennard_jones(n_atoms: int = 7) -> openmm.CustomNonbondedForce:
    force = openmm.CustomNonbondedForce(
        "138.9*q1*q2/r + 4*epsilon*((sigma/r)^12-(sigma/r)^6); sigma=(s1+s2)/2; epsilon=sqrt(e1*e2)*scale"
    )
    for name in "qse":
        force.addPerParticleParameter(name)
    force.addGlobalParameter("scale", 0.8)
    rng = np.random.default_rng(5)
    for _ in range(n_atoms):
        force.addParticle([rng.uniform(-0.5, 0.5), rng.uniform(0.1, 0.2), rng.uniform(0, 1)])
    force.addExclusion(0, 1)
    force.addExclusion(4, 2)
    return force


@pytest.mark.parametrize("switch", [False, True])
@pytest.mark.parametrize("cutoff", [False, True])
def test_pairs(cutoff: bool, switch: bool) -> None:
    force = lennard_jones()
    if cutoff:
        force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)
        force.setCutoffDistance(0.4)
    force.setUseSwitchingFunction(switch)
    force.setSwitchingDistance(0.3)
    assert_same(force, system_of(force, 7), cloud(7))


def test_interaction_groups_count_each_pair_as_openmm_does() -> None:
    force = openmm.CustomNonbondedForce("(a1+2*a2)/r")
    force.addPerParticleParameter("a")
    for index in range(7):
        force.addParticle([1.0 + 0.3 * index])
    force.addInteractionGroup({0, 3, 5}, {1, 3, 5, 6})
    force.addInteractionGroup({6, 4}, {2, 0, 4})
    force.addExclusion(3, 1)
    assert_same(force, system_of(force, 7), cloud(7))


def test_tabulated_functions_and_computed_values() -> None:
    rng = np.random.default_rng(3)
    periodic = rng.normal(size=9)
    periodic[-1] = periodic[0]
    force = openmm.CustomNonbondedForce(
        "natural(r)*one(kind1)*w1 + round(9*r) + wrapped(5*r) + two(kind1,kind2)/r + three(kind2,1,kind1)*r*w2"
    )
    force.addPerParticleParameter("kind")
    force.addComputedValue("w", "1+one(kind)^2*scale")
    force.addGlobalParameter("scale", 0.5)
    for index in range(6):
        force.addParticle([index % 3])
    force.addTabulatedFunction("natural", openmm.Continuous1DFunction(rng.normal(size=6), 0.1, 0.5))
    force.addTabulatedFunction("wrapped", openmm.Continuous1DFunction(periodic, 0.4, 1.7, True))
    force.addTabulatedFunction("one", openmm.Discrete1DFunction(rng.normal(size=3)))
    force.addTabulatedFunction("round", openmm.Discrete1DFunction(rng.normal(size=20)))
    force.addTabulatedFunction("two", openmm.Discrete2DFunction(3, 4, rng.normal(size=12)))
    force.addTabulatedFunction("three", openmm.Discrete3DFunction(3, 2, 4, rng.normal(size=24)))
    assert_same(force, system_of(force, 6), cloud(6))


def test_lookups_beyond_a_table_are_not_a_number() -> None:
    force = openmm.CustomNonbondedForce("one(r)*r")
    force.addTabulatedFunction("one", openmm.Discrete1DFunction([1.0, 2.0]))
    for _ in range(2):
        force.addParticle([])
    x = torch.zeros(3, 2, 3)
    x[0, 1] = torch.tensor([0.4, 1.2, 7.0])
    energies = read_custom(force, system_of(force, 2)).build(torch.float32, torch.device("cpu"))(x)
    assert energies[:2].tolist() == pytest.approx([0.4, 2.4])
    assert energies[2].isnan()


def distorted(positions_nm: np.ndarray, seed: int = 2) -> np.ndarray:
    """Copies with noise that leaves nothing overlapping, from small to large."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(N_COPIES, *positions_nm.shape))
    return positions_nm + np.linspace(0.0, 0.02, N_COPIES)[:, None, None] * noise


def force_of(files: tuple[str, ...], kind: type, **options: object) -> tuple[openmm.Force, openmm.System, np.ndarray]:
    topology, positions = _build()
    system = app.ForceField(*files).createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=None, **options)
    force = next(f for f in system.getForces() if isinstance(f, kind))
    force.setForceGroup(7)
    return force, system, distorted(positions)


@pytest.mark.parametrize("model", ["hct", "obc1", "obc2", "gbn", "gbn2"])
def test_implicit_solvents(model: str) -> None:
    force, system, positions = force_of(("amber14/protein.ff14SB.xml", f"implicit/{model}.xml"), openmm.CustomGBForce)
    assert_same(force, system, positions, group=7)
    assert read_custom(force, system).translation_invariant


def test_implicit_solvent_with_salt() -> None:
    files = ("amber14/protein.ff14SB.xml", "implicit/gbn2.xml")
    assert_same(*force_of(files, openmm.CustomGBForce, implicitSolventKappa=1.3 / unit.nanometer), group=7)


def test_generalised_born_with_exclusions_and_places() -> None:
    force = openmm.CustomGBForce()
    force.addPerParticleParameter("q")
    force.addGlobalParameter("k", 0.7)
    force.addComputedValue("I", "q1*q2^2*exp(-r/k)", openmm.CustomGBForce.ParticlePair)
    force.addComputedValue("B", "1+I^2+q*x*y", openmm.CustomGBForce.SingleParticle)
    force.addComputedValue("C", "q+k", openmm.CustomGBForce.SingleParticle)
    force.addEnergyTerm("(q1*B1+2*q2*B2+I1)/r", openmm.CustomGBForce.ParticlePair)
    force.addEnergyTerm("C1*C2*B1*B2*r", openmm.CustomGBForce.ParticlePairNoExclusions)
    force.addEnergyTerm("B^3+z*q", openmm.CustomGBForce.SingleParticle)
    force.addEnergyTerm("q", openmm.CustomGBForce.SingleParticle)
    for index in range(5):
        force.addParticle([0.3 * index - 0.4])
    force.addExclusion(3, 1)
    force.addExclusion(0, 4)
    system = system_of(force, 5)
    assert_same(force, system, cloud(5))
    assert not read_custom(force, system).translation_invariant


def test_generalised_born_of_one_atom() -> None:
    single, _whole, _ = force_of(("amber14/protein.ff14SB.xml", "implicit/obc2.xml"), openmm.CustomGBForce)
    ion = openmm.CustomGBForce()
    for index in range(single.getNumPerParticleParameters()):
        ion.addPerParticleParameter(single.getPerParticleParameterName(index))
    for index in range(single.getNumComputedValues()):
        ion.addComputedValue(*single.getComputedValueParameters(index))
    for index in range(single.getNumEnergyTerms()):
        ion.addEnergyTerm(*single.getEnergyTermParameters(index))
    ion.addParticle([1.0, 0.12, 0.09])
    system = system_of(ion, 1)
    energies, forces = batched(ion, system, np.zeros((2, 1, 3)))
    assert energies == pytest.approx(reference(system, np.zeros((2, 1, 3)))[0], rel=1e-12)
    assert not forces.any()


def test_correction_maps_of_ff19sb() -> None:
    force, system, positions = force_of(("amber19/protein.ff19SB.xml",), openmm.CMAPTorsionForce)
    assert force.getNumTorsions() > 0
    assert_same(force, system, positions, group=7)


def test_correction_maps_of_several_sizes() -> None:
    rng = np.random.default_rng(8)
    force = openmm.CMAPTorsionForce()
    for size in (6, 11):
        force.addMap(size, rng.normal(size=size * size))
    force.addTorsion(1, 0, 1, 2, 3, 1, 2, 3, 4)
    force.addTorsion(0, 4, 1, 0, 3, 1, 2, 3, 0)
    force.addTorsion(1, 3, 2, 1, 0, 4, 0, 2, 3)
    assert_same(force, system_of(force, 5), cloud(5))


def test_correction_maps_are_splines() -> None:
    rng = np.random.default_rng(4)
    energy = rng.normal(size=(7, 7))
    coefficients = bicubic_coefficients(energy)
    powers = np.ones(4)  # at the far corner of each cell
    corner = np.einsum("klij,k,l->ij", coefficients, powers, powers)
    assert np.allclose(corner, np.roll(energy, (-1, -1), (0, 1)), atol=1e-13)


def periodic(force: openmm.Force) -> openmm.Force:
    force.setUsesPeriodicBoundaryConditions(True)
    return force


def with_method(force: openmm.Force, method: int) -> openmm.Force:
    force.setNonbondedMethod(method)
    return force


def tabulated_in_two_dimensions() -> openmm.Force:
    force = openmm.CustomNonbondedForce("table(r,r)")
    force.addTabulatedFunction("table", openmm.Continuous2DFunction(2, 2, [0.0] * 4, 0, 1, 0, 1))
    return force


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (openmm.HarmonicBondForce, "HarmonicBondForce.*does not know this force; it knows CMAPTorsionForce"),
        (lambda: openmm.CustomHbondForce("0"), "CustomHbondForce"),
        (openmm.AmoebaVdwForce, "AmoebaVdwForce"),
        (lambda: periodic(openmm.CustomBondForce("r")), "CustomBondForce.*periodic"),
        (lambda: periodic(openmm.CMAPTorsionForce()), "CMAPTorsionForce.*periodic"),
        (lambda: openmm.CustomExternalForce("periodicdistance(x,y,z,0,0,0)"), "CustomExternalForce.*periodic"),
        (lambda: with_method(openmm.CustomNonbondedForce("r"), 2), "CustomNonbondedForce.*periodic"),
        (lambda: with_method(openmm.CustomGBForce(), 1), "CustomGBForce.*cut-off"),
        (lambda: with_method(openmm.CustomGBForce(), 2), "CustomGBForce.*periodic"),
        (tabulated_in_two_dimensions, "CustomNonbondedForce.*'table' is a Continuous2DFunction"),
    ],
)
def test_what_is_not_known_is_named(make: Callable[[], openmm.Force], message: str) -> None:
    force = make()
    with pytest.raises(UnsupportedForce, match=message):
        read_custom(force, system_of(force, 0))


def test_a_bad_expression_names_its_force() -> None:
    force = openmm.CustomBondForce("k*(r-length)^2")
    force.addGlobalParameter("k", 1.0)
    with pytest.raises(InputError, match=r"CustomBondForce\): unknown variable 'length' \(known: k, r\)") as caught:
        read_custom(force, system_of(force, 2))
    assert not isinstance(caught.value, UnsupportedForce)


def test_a_copy_that_is_not_a_number_harms_no_other() -> None:
    force, system, positions = force_of(("amber19/protein.ff19SB.xml",), openmm.CMAPTorsionForce)
    expected, _ = batched(force, system, positions)
    positions[3] = np.nan
    energies, _ = batched(force, system, positions)
    assert np.isnan(energies[3])
    assert np.array_equal(np.delete(energies, 3), np.delete(expected, 3))


def test_compiled_energies_are_the_same() -> None:
    force, system, positions = force_of(("amber14/protein.ff14SB.xml", "implicit/gbn2.xml"), openmm.CustomGBForce)
    term = read_custom(force, system).build(torch.float64, torch.device("cpu"))
    x = torch.tensor(positions.transpose(2, 1, 0).copy())
    # "aot_eager" traces forward and backward as a whole, but needs no C++ compiler
    compiled = torch.compile(term, fullgraph=True, backend="aot_eager")
    y = x.clone().requires_grad_()
    x.requires_grad_()
    ours, theirs = term(x), compiled(y)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    ours.sum().backward()
    theirs.sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-9, atol=1e-9)
