"""The triple-well particle: its Boltzmann distribution and its diffusion, against quadrature and the free process."""

from __future__ import annotations

import numpy as np
import openmm
import pytest

from hpc_molgen.config import RunConfig, SystemConfig, load_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.triple_well import CENTRES_NM, reduced_energy


@pytest.fixture(scope="module")
def well() -> MolecularSystem:
    return load_system(SystemConfig(name="triple-well"))


def brownian(system: MolecularSystem, seed: int) -> Engine:
    reference = load_config("triple-well").reference
    assert reference.integrator == "brownian"
    return Engine(
        system, "Reference", seed, integrator="brownian", timestep_fs=reference.timestep_fs,
        friction_per_ps=reference.friction_per_ps,
    )  # fmt: skip


def test_energies_and_wells(well: MolecularSystem) -> None:
    generator = np.random.default_rng(1)
    positions = np.concatenate([generator.uniform(-2.5, 2.5, (50, 1, 2)), np.zeros((50, 1, 1))], axis=2)
    found = Engine(well, "Reference").reduced_energy(positions)
    np.testing.assert_allclose(found, reduced_energy(positions[:, 0, 0], positions[:, 0, 1]), rtol=1e-12)
    grid = np.linspace(-2.5, 2.5, 501)
    diagonal = reduced_energy(grid, grid)
    minima = grid[1:-1][(diagonal[1:-1] < diagonal[:-2]) & (diagonal[1:-1] < diagonal[2:])]
    assert minima == pytest.approx(CENTRES_NM, abs=0.12)  # published maxima of the density: -1.45, 0, 1.45


def test_populations_are_those_of_the_boltzmann_distribution(well: MolecularSystem) -> None:
    """Shares of the three wells by quadrature, within 4 standard errors over walkers; Euler's scheme errs by less than 0.01."""
    x = np.linspace(-3.2, 3.2, 641)
    weights = np.exp(-reduced_energy(x[:, None], x[None]))
    u = (x[:, None] + x[None]) / np.sqrt(2)
    exact = np.array([weights[place].sum() for place in (u < -1.03, np.abs(u) <= 1.03, u > 1.03)]) / weights.sum()
    shares = []
    for seed in range(12):
        engine = brownian(well, seed + 1)
        engine.set_positions(np.array([[CENTRES_NM[seed % 3], CENTRES_NM[seed % 3], 0.0]]))
        engine.step(20 * 300)
        frames = next(engine.simulate(4000, 20, block=4000)).positions_nm[:, 0, :2].astype(np.float64)
        along = frames.sum(axis=1) / np.sqrt(2)
        shares.append([(along < -1.03).mean(), (np.abs(along) <= 1.03).mean(), (along > 1.03).mean()])
    error = np.std(shares, axis=0, ddof=1) / np.sqrt(12)
    assert (np.abs(np.mean(shares, axis=0) - exact) < 4 * error + 0.01).all() and (error < 0.04).all()


def test_brownian_motion_diffuses_as_it_should(well: MolecularSystem) -> None:
    """Without forces <dx^2> = 2 D t per axis with D = kT / (m friction) = 0.1 nm^2/ps, within 4 standard errors."""
    free = openmm.System()
    free.addParticle(1.0)
    import dataclasses

    system = dataclasses.replace(well, system_xml=openmm.XmlSerializer.serialize(free))
    engine = brownian(system, 3)
    steps = np.diff(next(engine.simulate(4000, 20, block=4000)).positions_nm[:, 0], axis=0)
    squared = (steps.astype(np.float64) ** 2).ravel()
    assert abs(squared.mean() - 0.2) < 4 * squared.std() / np.sqrt(len(squared))


def test_long_steps_are_for_models_without_hydrogen() -> None:
    from hpc_molgen.preflight import check

    config = RunConfig.model_validate({"reference": {"timestep_fs": 20}})
    with pytest.raises(InputError, match="has hydrogen atoms"):
        check(config, load_system(SystemConfig()))
    check(load_config("triple-well"), load_system(SystemConfig(name="triple-well")))
