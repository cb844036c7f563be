"""Molecules joined of fragments: exact moves against closed forms, and against converged parallel tempering."""

import math

import numpy as np
import pytest
import torch

from hpc_molgen import reweighting
from hpc_molgen.analysis.divergence import ramachandran_histogram
from hpc_molgen.config import RepresentationConfig, SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import BatchedDynamics
from hpc_molgen.efficiency.suites.tempering import CONVERGED_KT, free_energy
from hpc_molgen.ensemble import Ensemble, read_ensemble, write_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.blocks import Block
from hpc_molgen.montecarlo.densities import BoltzmannDensity
from hpc_molgen.montecarlo.fragments import Moves, Whole, join, resampled, run_joined
from hpc_molgen.montecarlo.hamiltonian import HamiltonianMoves
from hpc_molgen.montecarlo.libraries import Tempering, fragment_of, tempered_library
from hpc_molgen.montecarlo.torus_mixture import TorusMixture, fit_mixture
from hpc_molgen.montecarlo.windows import backbone_columns, windows_of
from hpc_molgen.representations.internal import InternalRepresentation
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.registry import load_system

KAPPA, COUPLING = 1.5, 2.0  # of the analytic target: each angle about 2.0, each with the next
SPREAD_NM, SPREAD_RAD = 0.0025, 0.025  # of its stiff coordinates; in the libraries 0.003 and 0.03


@pytest.fixture(autouse=True)
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def peptide(sequence):
    return load_system(SystemConfig(name="peptide", sequence=sequence))


def made_up(system, seed, n=2000):
    """A library that no energy has made: angles about 0.5 radians in three of four conformations, other bonds normal."""
    whole, generator = Whole(system), np.random.default_rng(seed)
    coordinates = whole.coordinates(system.positions_nm[None]).repeat(n, 1)
    spread = np.r_[np.full(system.n_atoms - 1, 0.003), np.full(2 * system.n_atoms - 5, 0.03)]
    coordinates += torch.from_numpy(spread * generator.standard_normal((n, len(spread))))
    columns = backbone_columns(whole.zmatrix, system.topology).ravel()
    angles = np.where(
        generator.random((n, 1)) < 0.75, generator.vonmises(0.5, 4.0, (n, len(columns))),
        generator.uniform(-np.pi, np.pi, (n, len(columns))),
    )  # fmt: skip
    coordinates[:, columns] = torch.from_numpy(angles)
    return Ensemble.create(system, whole.positions_nm(coordinates)[0])


def blocks_of(whole, sequence, sizes, seed):
    found = []
    for window in [window for size in sizes for window in windows_of(len(sequence), size)]:
        fragment = fragment_of(whole.system, sequence, window)
        found.append(Block.fit(whole.system, whole.zmatrix, window, fragment, made_up(fragment, seed), seed, n_kernels=200))
    return found


def standard_error(values):
    """Of the mean over everything, from the means of chains: values (n_sweeps, n_chains, k)."""
    means = values.mean(axis=0)
    return means.mean(axis=0), means.std(axis=0, ddof=1) / math.sqrt(len(means))


def chain_of_angles(n):
    """Mean cosine of each of `n` angles about 2.0 and of each difference of neighbours, by transfer matrices on a grid."""
    grid = 2 * np.pi * np.arange(240) / 240
    field, link = np.exp(KAPPA * np.cos(grid - 2.0)), np.exp(COUPLING * np.cos(grid[:, None] - grid))
    left = [field]
    for _ in range(n - 1):
        left.append(field * (left[-1] @ link))
    right = [np.ones(240)]
    for _ in range(n - 1):
        right.insert(0, link @ (field * right[0]))
    total = left[-1].sum()
    cosines = [(a * b * np.cos(grid - 2.0)).sum() / (a * b).sum() for a, b in zip(left, right, strict=True)]
    pairs = [
        np.einsum("i,ij,j->", left[k], link * np.cos(grid[:, None] - grid), field * right[k + 1]) / total for k in range(n - 1)
    ]
    return np.array(cosines + pairs)


@pytest.mark.parametrize("refresh", [0.0, 0.4])
def test_overlapping_windows_have_the_target_as_their_stationary_distribution(refresh):
    """Two residues, windows of one and of two, a library far from the target; four standard errors over 128 chains."""
    sequence = ["ALA", "ALA"]
    system = peptide("ALA ALA")
    plain = Whole(system)
    columns = backbone_columns(plain.zmatrix, system.topology).ravel()
    rest = plain.coordinates(system.positions_nm[None])
    carbonyl = next(
        number - 1 for number, row in enumerate(plain.zmatrix.rows) if str(system.topology.atom(row.atom)).startswith("ALA2-O")
    )

    def reduced_energy(positions_nm):
        z = plain.coordinates(positions_nm)
        angles, stiff = z[:, columns], (z - rest)[:, : 2 * system.n_atoms - 3]
        scale = torch.full_like(stiff[0], SPREAD_RAD)
        scale[: system.n_atoms - 1] = SPREAD_NM
        value = KAPPA * torch.cos(angles - 2.0).sum(1) + COUPLING * torch.cos(angles[:, 1:] - angles[:, :-1]).sum(1)
        value = value - 0.5 * ((stiff / scale) ** 2).sum(1)
        offsets = (z - rest)[:, 2 * system.n_atoms - 3 :]
        others = [k for k in range(offsets.shape[1]) if k + 2 * system.n_atoms - 3 not in set(columns.tolist())]
        value = value + (torch.cos(offsets[:, others]) - 1).sum(1) / SPREAD_RAD**2
        return (plain.positions_nm(z)[1] - value).numpy()  # its volume element goes: the density is that of the coordinates

    whole = Whole(system, reduced_energy)
    blocks = blocks_of(whole, sequence, (1, 2), 3)
    generator = np.random.default_rng(4)
    coordinates, log_weight = join(whole, blocks[-1:], 4000, generator)
    starts = resampled(coordinates, log_weight, 128, generator)
    found = run_joined(whole, blocks, starts, 200, 5, Moves("both", refresh, 0))
    lengths = (found.coordinates[:, carbonyl] - rest[0, carbonyl]).numpy()
    angles = found.angles_rad.reshape(*found.angles_rad.shape[:2], -1)
    observed = np.concatenate([np.cos(angles - 2.0), np.cos(angles[..., 1:] - angles[..., :-1])], axis=2)
    mean, error = standard_error(observed)
    exact = chain_of_angles(4)
    assert (np.abs(mean - exact) < 4 * error).all(), (mean, exact, error)
    assert error.max() < 0.03
    raw = np.cos(whole.backbone_rad(coordinates).reshape(4000, -1) - 2.0).mean(axis=0)
    assert (np.abs(raw - exact[:4]) > 10 * error[:4]).all()  # of the library: the moves have done it
    if refresh:  # 128 independent bonds: their variance is known to sqrt(2 / 128) of itself
        assert lengths.var() == pytest.approx(SPREAD_NM**2, rel=4 * math.sqrt(2 / 128))
    assert all(share > 0.01 for share in found.acceptance.values()) and set(found.acceptance) == {"1", "2", "1-2"}


def test_a_biased_library_gives_the_converged_free_energy():
    """Alanine dipeptide: phi > 0 weighs 20 times too much in the library; dF within four standard errors of tempering."""
    system = peptide("ALA")
    library = tempered_library(system, Tempering(8, 4, 40.0), 7)
    whole = Whole(system)
    phi = whole.backbone_rad(whole.coordinates(library.positions_nm))[:, 0, 0]
    assert (phi > 0).sum() > 20
    biased = Ensemble.create(system, library.positions_nm, log_weight=np.where(phi > 0, np.log(20.0), 0.0))
    blocks = [Block.fit(system, whole.zmatrix, windows_of(1, 1)[0], system, biased, 7)]
    generator = np.random.default_rng(8)
    coordinates, log_weight = join(whole, blocks, 4000, generator)
    raw = (whole.backbone_rad(coordinates)[:, 0, 0] > 0).mean()
    starts = resampled(coordinates, log_weight, 256, generator)
    found = run_joined(whole, blocks, starts, 200, 9, Moves())
    inside = found.angles_rad[:, :, 0, 0] > 0
    dF = free_energy(inside.sum(axis=0).astype(float), np.full(256, float(len(inside))))
    error = math.hypot(dF["standard_error"], CONVERGED_KT[1] / 1.96)
    assert abs(dF["value"] - CONVERGED_KT[0]) < 4 * error and dF["standard_error"] < 0.1
    assert abs(math.log((1 - raw) / raw) - CONVERGED_KT[0]) > 10 * error
    assert reweighting.kish_ess(log_weight) > 0.01 * len(log_weight)


def test_windows_of_a_longer_peptide_agree_with_weights_of_the_whole():
    """Three residues: chains and importance weights of the joined population know the same shares, by four standard errors."""
    system, sequence = peptide("ALA ALA ALA"), ["ALA"] * 3
    whole, cache = Whole(system), {}
    for window in windows_of(3, 2):
        fragment = fragment_of(system, sequence, window)
        library = cache.setdefault(fragment.key, tempered_library(fragment, Tempering(8, 4, 40.0), 11))
        cache[window] = Block.fit(system, whole.zmatrix, window, fragment, library, 11)
    blocks = [cache[window] for window in windows_of(3, 2)]
    generator = np.random.default_rng(12)
    coordinates, log_weight = join(whole, blocks, 20_000, generator)
    # without moves of the whole the coordinates that no window knows stay, as they do in the weights
    found = run_joined(whole, blocks, resampled(coordinates, log_weight, 256, generator), 150, 13, Moves("both", 0.7, 0))
    psi = found.angles_rad[..., 1]
    helix = (np.abs(psi + 0.7) < 0.9).astype(float)
    mean, error = standard_error(helix)
    weights = reweighting.normalised_weights(log_weight)
    inside = (np.abs(whole.backbone_rad(coordinates)[..., 1] + 0.7) < 0.9).astype(float)
    expected = weights @ inside
    of_weights = np.sqrt(((weights[:, None] * (inside - expected)) ** 2).sum(axis=0))
    assert (np.abs(mean - expected) < 4 * np.hypot(error, of_weights)).all(), (mean, expected, error, of_weights)
    assert of_weights.max() < 0.15 and error.max() < 0.05


def test_hamiltonian_moves_keep_the_mean_energy():
    """Against Langevin dynamics of the same molecule at one femtosecond, within four standard errors."""
    system = peptide("GLY")
    batched = BatchedSystem(system, "float64", threads=1)
    moves, generator = HamiltonianMoves(batched, system.kt_kj_mol, 10), np.random.default_rng(3)
    positions, energies = np.repeat(system.positions_nm[None], 128, axis=0), []
    for sweep in range(600):
        positions, energy, accepted = moves.move(positions, generator)
        if sweep < 150:
            moves.tune(float(accepted.mean()))
        else:
            energies.append(energy)
    seeds = [derive_seed(4, copy) for copy in range(128)]
    dynamics = BatchedDynamics(
        BatchedSystem(system, "float32", threads=1), positions, seeds, temperature_kelvin=300.0, timestep_fs=1.0
    )
    dynamics.step(2000)
    of_dynamics = np.concatenate([block.potential_kj_mol for block in dynamics.simulate(400, 25, coordinates_every=0)])
    own, other = (np.array(values).mean(axis=0) for values in (energies, of_dynamics))
    error = math.hypot(own.std(ddof=1), other.std(ddof=1)) / math.sqrt(128)
    assert abs(own.mean() - other.mean()) < 4 * error and error < 0.5
    assert 0.5 < accepted.mean() < 1


def test_the_target_is_that_of_the_features_of_a_representation():
    """Both have the volume element; they differ by a constant, which the volume element is not."""
    system = peptide("ALA")
    batched, generator = BatchedSystem(system, "float64", threads=1), np.random.default_rng(6)
    moves, positions = HamiltonianMoves(batched, system.kt_kj_mol, 10), np.repeat(system.positions_nm[None], 64, axis=0)
    frames = []
    for _ in range(60):
        positions = moves.move(positions, generator)[0]
        frames.append(positions)
    found = np.concatenate(frames[20:])
    representation = InternalRepresentation.fit(system, RepresentationConfig(), found, np.full(len(found), 1 / len(found)))
    whole = Whole(system)
    own = whole.log_target(whole.coordinates(positions))
    other, _ = BoltzmannDensity(system, representation)(representation.encode(torch.from_numpy(positions)))
    volume = whole.positions_nm(whole.coordinates(positions))[1]
    assert float((own - other).std()) < 1e-6 and float(volume.std()) > 0.05


def test_a_mixture_draws_what_its_density_says():
    """Density integrates to one; draws of some angles given others have the histogram of the conditional."""
    generator = np.random.default_rng(5)
    centres = torch.from_numpy(generator.vonmises([0.5, -2.0], 3.0, (300, 2)))
    mixture = fit_mixture(centres, 100, generator)
    grid = torch.linspace(-math.pi, math.pi, 181, dtype=torch.float64)[:-1]
    points = torch.cartesian_prod(grid, grid)
    density = torch.exp(mixture.log_density(points)).reshape(180, 180)
    cell = (2 * math.pi / 180) ** 2
    assert float(density.sum()) * cell == pytest.approx(1, abs=1e-6)
    marginal = torch.exp(mixture.log_density(points, [1])).reshape(180, 180)[0]
    assert marginal == pytest.approx(density.sum(0) * math.sqrt(cell), abs=1e-6)
    drawn = mixture.draw(torch.zeros((40_000, 2), dtype=torch.float64), [0, 1], generator).numpy()
    counts, _, _ = np.histogram2d(*drawn.T, bins=6, range=[[-np.pi, np.pi]] * 2)
    expected = (density.reshape(6, 30, 6, 30).sum((1, 3)) * cell).numpy() * 40_000
    assert ((counts - expected) ** 2 / expected).sum() < 36 + 5 * math.sqrt(72)
    given = torch.full((20_000, 2), 1.2, dtype=torch.float64)
    drawn = mixture.draw(given, [0], generator)
    assert (drawn[:, 1] == 1.2).all()
    row = torch.stack([grid, torch.full_like(grid, 1.2)], dim=1)
    conditional = torch.exp(mixture.log_density(row) - mixture.log_density(row, [1])).reshape(6, 30).sum(1)
    expected = conditional.numpy() * math.sqrt(cell) * 20_000
    counts, _ = np.histogram(drawn[:, 0], bins=6, range=(-np.pi, np.pi))
    assert ((counts - expected) ** 2 / expected).sum() < 6 + 5 * math.sqrt(12)


def test_weights_of_a_library_are_used_and_faults_are_named(tmp_path):
    """The library is a file, as `correct` writes one of weighted samples of a surrogate."""
    system = peptide("ALA")
    whole, library = Whole(system), made_up(peptide("ALA"), 1)
    phi = whole.backbone_rad(whole.coordinates(library.positions_nm))[:, 0, 0]
    one_sided = Ensemble.create(system, library.positions_nm, log_weight=np.where(phi > 0, 0.0, -np.inf))
    write_ensemble(tmp_path / "weighted.h5", one_sided, system, seed=1)
    window = windows_of(1, 1)[0]
    block = Block.fit(system, whole.zmatrix, window, system, read_ensemble(tmp_path / "weighted.h5", system), 1)
    assert isinstance(block.mixture, TorusMixture) and (block.mixture.centres[:, 0] > 0).all()
    drawn, _ = join(whole, [block], 500, np.random.default_rng(2))
    histogram = ramachandran_histogram(whole.backbone_rad(drawn)[:, 0], bins=2)
    assert histogram[1].sum() > 0.9
    with pytest.raises(InputError, match="is none of ACE-ALA-ALA-NME"):
        Block.fit(system, whole.zmatrix, window, peptide("ALA ALA"), library, 1)
    with pytest.raises(InputError, match="not made of the residues ALA"):
        Block.fit(system, whole.zmatrix, window, peptide("GLY"), made_up(peptide("GLY"), 1), 1)
    with pytest.raises(InputError, match=r"no window holds the residues \[2\]"):
        two = Whole(peptide("ALA ALA"))
        own = windows_of(2, 1)[0]
        join(two, [Block.fit(two.system, two.zmatrix, own, system, library, 1)], 4, np.random.default_rng(1))
    with pytest.raises(InputError, match="windows of 1 to 2 of them, not of 3"):
        windows_of(2, 3)
    with pytest.raises(InputError, match="follow the molecule's own energy"):
        run_joined(Whole(system, lambda x: np.zeros(len(x))), [block], drawn[:8], 2, 1, Moves())
