"""The Boltzmann distribution without training: short runs scale the coordinates, and their prior is weighed or annealed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from hpc_molgen import reweighting
from hpc_molgen.config import RepresentationConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.bias import spread_structures
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.montecarlo.smc import anneal_prior
from hpc_molgen.representations.base import Representation
from hpc_molgen.representations.internal import InternalRepresentation
from hpc_molgen.seeding import derive_seed, torch_generator
from hpc_molgen.surrogates.prior import draw_prior, log_prior
from hpc_molgen.systems.base import MolecularSystem

N_COPIES = 128
RELAXATION_PS, LENGTH_PS, EVERY_PS, TIMESTEP_FS = 0.5, 2.0, 0.02, 1.0
MINIMISATION = 100
BLOCK = 8000


@dataclass(frozen=True)
class Scaled:
    """A molecule with whitened internal coordinates, at a temperature: all that the two functions below need."""

    system: MolecularSystem
    representation: Representation
    kelvin: float


@dataclass(frozen=True)
class Population:
    """Weighted samples.

    Attributes
    ----------
    features : torch.Tensor, shape=(n, n_features), float64
    positions_nm : np.ndarray, shape=(n, n_atoms, 3)
    log_weight : np.ndarray, shape=(n,)
        To exp(-U/kT). Their mean exp estimates the configuration integral without bias: populations are joined by putting them
        side by side.
    n_energies : int
        That it took.
    """

    features: torch.Tensor
    positions_nm: np.ndarray
    log_weight: np.ndarray
    n_energies: int


def scale_coordinates(system: MolecularSystem, seed: int) -> tuple[Scaled, int]:
    """Whiten a molecule's internal coordinates by short Langevin runs from structures whose torsions cover the torus.

    Returns
    -------
    Scaled, int
        And the number of energies that it took, those of the minimisation at their most.
    """
    batched = BatchedSystem(system, "float32")
    starts, _ = minimise(batched, spread_structures(system, N_COPIES, seed), max_iterations=MINIMISATION)
    seeds = [derive_seed(seed, "copy", copy) for copy in range(N_COPIES)]
    dynamics = BatchedDynamics(
        batched, starts, seeds, temperature_kelvin=system.temperature_kelvin, timestep_fs=TIMESTEP_FS, friction_per_ps=10.0
    )
    every = round(EVERY_PS * 1e3 / TIMESTEP_FS)
    dynamics.step(round(RELAXATION_PS * 1e3 / TIMESTEP_FS))
    frames = []
    for _ in range(round(LENGTH_PS / EVERY_PS)):
        dynamics.step(every)
        frames.append(dynamics.positions_nm.copy())
    positions = np.concatenate(frames).astype(np.float64)
    finite = np.isfinite(positions).all(axis=(1, 2))
    weights = np.full(int(finite.sum()), 1 / finite.sum())
    representation = InternalRepresentation.fit(system, RepresentationConfig(), positions[finite], weights)
    return Scaled(system, representation, system.temperature_kelvin), N_COPIES * (MINIMISATION + dynamics.n_steps)


def weighted_prior(scaled: Scaled, seed: int, n: int) -> Population:
    """Draw `n` samples of uniform torsions and whitened normal coordinates, and weigh them: importance sampling untrained."""
    representation, system = scaled.representation, scaled.system
    kt_kj_mol = system.kt_kj_mol * scaled.kelvin / system.temperature_kelvin
    energies, generator = BatchedSystem(system, "float64", threads=1), torch_generator(seed, "prior")
    features = draw_prior(n, representation.n_torus, representation.n_euclidean, generator).double()
    log_prior_of = log_prior(features, representation.n_torus)
    found, weights = [], []
    for rows, log_q in zip(torch.split(features, BLOCK), torch.split(log_prior_of, BLOCK), strict=True):
        positions, log_abs_det = representation.decode(rows)
        reduced_energy = energies.energies(positions.numpy()) / kt_kj_mol
        found.append(positions.numpy())
        weights.append(reweighting.importance_log_weights(reduced_energy, (log_q - log_abs_det).numpy()))
    return Population(features, np.concatenate(found), np.concatenate(weights), n)


def annealed_prior(scaled: Scaled, seed: int, n: int) -> Population:
    """Draw `n` of the same samples and anneal them to the Boltzmann distribution by sequential Monte Carlo."""
    particles, n_energies = anneal_prior(scaled.system, scaled.representation, scaled.kelvin, n, seed)
    positions, _ = scaled.representation.decode(particles.features)
    return Population(particles.features, positions.numpy(), particles.log_weight, n_energies)
