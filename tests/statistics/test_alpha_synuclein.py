"""Chains of CALVADOS 2: energies by hand, screening, charges and masses; an ideal limit; and the size of alpha-synuclein."""

from __future__ import annotations

import itertools

import numpy as np
import openmm
import pytest

from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import InputError
from hpc_molgen.systems import calvados
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.observables import make_observables, values_of
from hpc_molgen.systems.registry import load_system
from hpc_molgen.units import BOLTZMANN_KJ_MOL_KELVIN


@pytest.fixture(scope="module")
def synuclein() -> MolecularSystem:
    return load_system(SystemConfig(name="alpha-synuclein", temperature_kelvin=293.0))


def chain(sequence: str, **settings: float) -> MolecularSystem:
    return load_system(SystemConfig(name="calvados", sequence=sequence, temperature_kelvin=293.0, **settings))


def by_hand(sequence: str, charges: np.ndarray, x: np.ndarray) -> float:
    """Energy in kJ/mol: springs of neighbours; both potentials of all others, less what they are at their cut-offs."""
    epsilon_r, total = 80.3088, 0.0  # water at 293 K
    kappa = 1 / 0.682049
    table = [calvados.RESIDUES[letter] for letter in sequence]
    for i, j in itertools.combinations(range(len(sequence)), 2):
        r = float(np.linalg.norm(x[i] - x[j]))
        if j == i + 1:
            total += 0.5 * 8033 * (r - 0.38) ** 2
            continue
        sigma = 0.5 * (table[i].sigma_nm + table[j].sigma_nm)
        stick = 0.5 * (table[i].stickiness + table[j].stickiness)
        well, edge = (4 * 0.8368 * ((sigma / d) ** 12 - (sigma / d) ** 6) for d in (r, 2.0))
        if r < 2.0:
            total += well + 0.8368 * (1 - stick) - stick * edge if r <= 2 ** (1 / 6) * sigma else stick * (well - edge)
        if r < 4.0:
            screened, end = (138.935458 / epsilon_r * np.exp(-kappa * d) / d for d in (r, 4.0))
            total += charges[i] * charges[j] * (screened - end)
    return total


@pytest.mark.parametrize("apart", [0.42, 0.6, 1.9, 2.1, 3.9, 4.1])
def test_energies_by_hand(apart: float) -> None:
    """The repulsive and the attractive branch, and either side of both cut-offs, of the pair of ends of a bent chain."""
    sequence = "KGGHWGGGGGGGGE"
    system = chain(sequence, ph=6.0)
    n = len(sequence)
    angle = np.linspace(0, 1, n)
    x = np.stack([apart * angle, np.sin(np.pi * angle) * 2.2, 0.05 * (-1) ** np.arange(n)], axis=1)
    charges = np.array([2.0, 0, 0, 0.5, *[0.0] * 9, -2.0])
    assert calvados.residue_charges(sequence, 6.0) == pytest.approx(charges)
    assert np.linalg.norm(x[0] - x[-1]) == pytest.approx(apart, abs=0.03)
    expected = by_hand(sequence, charges, x)
    for platform, error in (("Reference", 2e-5), ("CPU", 1e-3)):
        energy = float(Engine(system, platform).reduced_energy(x[None])[0]) * system.kt_kj_mol
        assert energy == pytest.approx(expected, abs=error * max(1.0, abs(expected)))


def test_potentials_end_without_a_step() -> None:
    """The energy of two beads, with one at rest between them, on both sides of the cut-offs and of the branches' seam."""
    engine = Engine(chain("KGE"), "Reference")
    seam = 2 ** (1 / 6) * 0.5 * (0.636 + 0.592)

    def energy(apart: float) -> float:
        x = np.array([[0, 0, 0], [apart / 2, 0, 0], [apart, 0, 0]])
        springs = 8033 * (apart / 2 - 0.38) ** 2
        return float(engine.reduced_energy(x[None])[0]) * engine.system.kt_kj_mol - springs

    for place in (seam, 2.0, 4.0):
        below, above = energy(place - 1e-6), energy(place + 1e-6)
        assert below == pytest.approx(above, abs=1e-4)
    assert abs(energy(4.5)) < 1e-6 and energy(1.0) < -0.1  # opposite charges attract


def test_screening_charges_and_masses(synuclein: MolecularSystem) -> None:
    """Debye length of 0.682 nm at 293 K and 0.2 M; 0.304 nm / sqrt(I) in water of 298 K (Israelachvili 2011, eq. 14.36)."""
    assert calvados.debye_length_nm(293.0, 0.2) == pytest.approx(0.682, abs=5e-4)
    assert calvados.debye_length_nm(298.15, 0.1) == pytest.approx(0.304 / np.sqrt(0.1), rel=5e-3)
    assert calvados.debye_length_nm(293.0, 0.0) == np.inf
    assert calvados.water_permittivity(298.15) == pytest.approx(78.4, abs=0.3)  # of tables
    sequence = calvados.ALPHA_SYNUCLEIN
    counts = {letter: sequence.count(letter) for letter in "KRDEH"}
    assert len(sequence) == 140 and counts == {"K": 15, "R": 0, "D": 6, "E": 18, "H": 1}
    assert calvados.residue_charges(sequence, 7.4).sum() == pytest.approx(-9 + 1 / (1 + 10**1.4))
    system = openmm.XmlSerializer.deserialize(synuclein.system_xml)
    masses = np.array([system.getParticleMass(index)._value for index in range(140)])
    # residues of table and the 18 u of a water molecule: 14,460 u in UniProt's entry P37840
    assert masses.sum() == pytest.approx(14460, abs=3)
    assert masses[0] == pytest.approx(131.20 + 2) and masses[-1] == pytest.approx(71.07 + 16)
    distances = np.linalg.norm(synuclein.positions_nm[:, None] - synuclein.positions_nm[None], axis=2)
    assert np.diagonal(distances, 1) == pytest.approx(0.38, abs=1e-9) and distances[np.triu_indices(140, 2)].min() > 0.5
    assert np.array_equal(calvados.self_avoiding_chain(140), synuclein.positions_nm)
    assert len({synuclein.key, load_system(SystemConfig(name="alpha-synuclein", temperature_kelvin=298.0)).key}) == 2


def test_a_sequence_that_is_none_is_refused() -> None:
    for sequence, message in (("GXZ", "no residues X, Z"), ("G", "two residues"), (None, "two residues")):
        with pytest.raises(InputError, match=message):
            load_system(SystemConfig(name="calvados", sequence=sequence))
    with pytest.raises(InputError, match="has its own"):
        load_system(SystemConfig(name="alpha-synuclein", sequence="GG"))


def test_size_of_beads_is_by_their_masses(alanine: MolecularSystem) -> None:
    """Two beads: each is away from the centre by the share of the other's mass."""
    pair = chain("GW")
    x = np.array([[[0.0, 0, 0], [1.0, 0, 0]]])
    masses = np.array([57.05 + 2, 186.22 + 16])
    shares = masses / masses.sum()
    found = values_of(make_observables(("rg", "ree"), pair, pair.positions_nm), x)
    np.testing.assert_allclose(found, [[np.sqrt(shares[0] * shares[1]), 1.0]], rtol=1e-12)
    with pytest.raises(InputError, match="1 C-alpha atoms"):
        make_observables(("ree",), alanine, alanine.positions_nm)


def blocks(values: np.ndarray, n: int = 10) -> tuple[float, float]:
    """Mean and standard error by the means of `n` blocks."""
    means = values[: len(values) // n * n].reshape(n, -1).mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(n))


def test_an_ideal_chain_is_a_random_walk() -> None:
    """Springs alone: <Ree^2> = (n - 1) <b^2>, with b^2 exp(-k (b - b0)^2 / 2 kT) the density of a bond's length."""
    system = chain("G" * 12)
    model = openmm.XmlSerializer.deserialize(system.system_xml)
    for index in reversed(range(model.getNumForces())):
        if not isinstance(model.getForce(index), openmm.HarmonicBondForce):
            model.removeForce(index)
    ideal = MolecularSystem("ideal", system.topology, openmm.XmlSerializer.serialize(model), system.positions_nm, 293.0)
    engine = Engine(ideal, "Reference", 5, timestep_fs=10, friction_per_ps=1)
    engine.set_positions(ideal.positions_nm, draw_velocities=True)
    engine.step(20_000)
    frames = next(engine.simulate(6000, 100, block=6000))
    found, error = blocks(values_of(make_observables(("ree",), ideal, ideal.positions_nm), frames.positions_nm)[:, 0] ** 2)
    b = np.linspace(0.2, 0.6, 20_001)
    density = b**2 * np.exp(-0.5 * 8033 * (b - 0.38) ** 2 / ideal.kt_kj_mol)
    expected = 11 * float((density * b**2).sum() / density.sum())
    assert error < 0.06 * expected and abs(found - expected) < 4 * error
    kinetic, kinetic_error = blocks(2 * frames.kinetic_kj_mol / (36 * BOLTZMANN_KJ_MOL_KELVIN))
    assert abs(kinetic - 293) < 4 * kinetic_error


@pytest.mark.slow
def test_alpha_synuclein_is_as_large_as_published(synuclein: MolecularSystem) -> None:
    """<Rg> within 3 standard errors of 3.2 to 3.6 nm (facts/md.md, section 4), and far from a random walk's 1.8 nm."""
    engine = Engine(synuclein, "CPU", 11, timestep_fs=10, friction_per_ps=0.01)
    engine.minimise(200)
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    engine.step(30_000)
    frames = next(engine.simulate(160, 1000, block=160))
    sizes = values_of(make_observables(("rg", "ree"), synuclein, synuclein.positions_nm), frames.positions_nm)
    size, error = blocks(sizes[:, 0], 8)
    assert error < 0.35 and 3.2 - 3 * error < size < 3.6 + 3 * error
    assert size - 3 * error > 1.9
    bonds = np.linalg.norm(np.diff(frames.positions_nm.astype(float), axis=1), axis=2)
    assert bonds.mean() == pytest.approx(0.383, abs=0.002)
    kinetic, kinetic_error = blocks(2 * frames.kinetic_kj_mol / (420 * BOLTZMANN_KJ_MOL_KELVIN))
    assert abs(kinetic - 293) < 4 * kinetic_error
