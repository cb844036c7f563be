"""Sequential Monte Carlo and exact chains against targets whose answers are known in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from hpc_molgen import reweighting
from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.chains import run_chains
from hpc_molgen.montecarlo.from_zero import annealed_prior, scale_coordinates, weighted_prior
from hpc_molgen.montecarlo.mala import State, local_scale, mala_steps
from hpc_molgen.montecarlo.smc import anneal, next_level
from hpc_molgen.pools import thinned
from hpc_molgen.systems.registry import load_system

D = 6  # two angles, four real numbers
KAPPA = torch.tensor([3.0, 6.0], dtype=torch.float64)  # of von Mises wells of the target at 2.5
SHARE = 0.25  # of the second of the two wells of the real numbers, at -2 in the first of them
SD = torch.tensor([0.3, 0.4, 0.5, 2.0], dtype=torch.float64)


def start(x):
    """Uniform angles, normal numbers with standard deviation 1.5; normalised."""
    value = -0.5 * (x[:, 2:] ** 2 / 1.5**2).sum(1) - 4 * math.log(1.5 * math.sqrt(2 * math.pi)) - 2 * math.log(2 * math.pi)
    return value, torch.cat([torch.zeros_like(x[:, :2]), -x[:, 2:] / 1.5**2], dim=1)


def target(x):
    """Two wells in the third coordinate, at +2 and -2 with shares 3/4 and 1/4; everything else independent."""
    variable = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        angles = (KAPPA * torch.cos(variable[:, :2] - 2.5)).sum(1)
        centres = torch.tensor([2.0, -2.0], dtype=torch.float64)
        shares = torch.tensor([1 - SHARE, SHARE], dtype=torch.float64)
        wells = torch.logsumexp(torch.log(shares) - 0.5 * ((variable[:, 2:3] - centres) / SD[0]) ** 2, dim=1)
        rest = -0.5 * ((variable[:, 3:] / SD[1:]) ** 2).sum(1)
        value = angles + wells + rest
        (gradient,) = torch.autograd.grad(value.sum(), variable)
    return value.detach(), gradient


LOG_Z = float(torch.log(2 * math.pi * torch.special.i0(KAPPA)).sum() + torch.log(SD * math.sqrt(2 * math.pi)).sum())
MEAN_COSINE = (torch.special.i1(KAPPA) / torch.special.i0(KAPPA)).numpy()


def draw(n, seed):
    generator = torch.Generator().manual_seed(seed)
    angles = (2 * torch.rand((n, 2), generator=generator, dtype=torch.float64) - 1) * math.pi
    return torch.cat([angles, 1.5 * torch.randn((n, 4), generator=generator, dtype=torch.float64)], dim=1)


def observed(x):
    """Observables (n, 6) and their exact means."""
    values = torch.cat([torch.cos(x[:, :2] - 2.5), (x[:, 2:3] < 0).double(), x[:, 3:] ** 2], dim=1)
    return values.numpy(), np.array([*MEAN_COSINE, SHARE, *(SD[1:] ** 2).tolist()])


def test_annealing_gives_constant_and_means():
    """Islands are independent: their spread gives standard errors, of which four are allowed."""
    constants, numerators, totals = [], [], []
    for seed in range(16):
        particles = anneal(start, target, draw(200, seed), 2, seed, n_moves=4)
        weights = np.exp(particles.log_weight)
        values, exact = observed(particles.features)
        constants.append(weights.mean())
        numerators.append((weights[:, None] * values).sum(0))
        totals.append(weights.sum())
    ratio = np.array(constants) / math.exp(LOG_Z)
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / math.sqrt(16)
    assert ratio.std(ddof=1) < 0.5  # plain weights of 400 samples: see below
    numerators, totals = np.array(numerators), np.array(totals)
    mean = numerators.sum(0) / totals.sum()
    left_out = (numerators.sum(0) - numerators) / (totals.sum() - totals)[:, None]
    error = np.sqrt(15 / 16 * ((left_out - left_out.mean(0)) ** 2).sum(0))
    assert (np.abs(mean - exact) < 4 * error).all(), (mean, exact, error)
    assert (error[3:] / exact[3:] < 0.05).all()


def test_annealing_beats_plain_weights():
    particles = anneal(start, target, draw(2000, 1), 2, 1)
    plain = (target(draw(2000, 1))[0] - start(draw(2000, 1))[0]).numpy()
    assert reweighting.kish_ess(plain) / 2000 < 0.03
    assert reweighting.kish_ess(particles.log_weight) / 2000 > 0.5
    assert len(np.unique(particles.ancestor)) > 50
    assert particles.levels[-1] == 1.0
    assert all(late > early for early, late in zip(particles.levels, particles.levels[1:], strict=False))


def test_nothing_is_annealed_where_nothing_is_to_be_done():
    particles = anneal(start, start, draw(500, 2), 2, 2)
    assert particles.levels == (1.0,)
    assert np.allclose(particles.log_weight, 0.0)


def test_annealing_is_reproducible():
    first, second = (anneal(start, target, draw(100, 3), 2, 3) for _ in range(2))
    assert torch.equal(first.features, second.features)
    assert not torch.equal(first.features, anneal(start, target, draw(100, 3), 2, 4).features)


def test_clashes_do_not_stop_annealing():
    """A hard wall and energies of 1e12: the first temperatures are tiny, and weights stay finite."""

    def rough(x):
        value, gradient = target(x)
        clash = x[:, 5].abs() > 2.5
        value = torch.where(clash, value - 1e12 * (x[:, 5].abs() - 2.5), value)
        outside = x[:, 4].abs() > 1.5
        value = torch.where(outside, torch.full_like(value, -torch.inf), value)
        gradient = gradient.clone()
        gradient[:, 5] -= torch.where(clash, 1e12 * torch.sign(x[:, 5]), torch.zeros_like(x[:, 5]))
        return value, torch.where(outside[:, None], torch.zeros_like(gradient), gradient)

    numerator, total = [], []
    for seed in range(12):
        particles = anneal(start, rough, draw(200, seed), 2, seed)
        weights = np.exp(particles.log_weight)
        assert np.isfinite(weights).all()
        x = particles.features
        assert not weights[(x[:, 5].abs() > 2.51).numpy() | (x[:, 4].abs() > 1.5).numpy()].any()
        numerator.append((weights * (x[:, 2] < 0).numpy()).sum())
        total.append(weights.sum())
    share = np.sum(numerator) / np.sum(total)
    left = (np.sum(numerator) - np.array(numerator)) / (np.sum(total) - np.array(total))
    error = math.sqrt(11 / 12 * np.sum((left - left.mean()) ** 2))
    assert abs(share - SHARE) < 4 * error


def test_no_finite_energy_is_told():
    with pytest.raises(InputError, match="finite"):
        anneal(start, lambda x: (torch.full_like(x[:, 0], -torch.inf), torch.zeros_like(x)), draw(10, 1), 2, 1)


def test_next_level_meets_the_conditional_size():
    """For normal gains of standard deviation s the conditional size is exp(-(step s)^2) in the limit of many particles."""
    gain = 3.0 * np.random.default_rng(1).standard_normal(200_000)
    level = next_level(0.1, np.zeros(len(gain)), gain, 0.9)
    assert level - 0.1 == pytest.approx(math.sqrt(-math.log(0.9)) / 3.0, rel=0.02)


def test_langevin_moves_leave_the_target_as_it_is():
    """Particles drawn from the target stay in it; steps are long enough for the gradient's cut to matter."""
    generator = torch.Generator().manual_seed(5)
    n = 20_000
    rest = torch.randn((n, 4), generator=generator, dtype=torch.float64) * SD
    rest[:, 0] += torch.where(torch.rand(n, generator=generator) < SHARE, -2.0, 2.0)
    angles = [torch.as_tensor(np.random.default_rng(5).vonmises(0.0, float(kappa), n)) + 2.5 for kappa in KAPPA]
    x = torch.cat([torch.remainder(torch.stack(angles, 1) + math.pi, 2 * math.pi) - math.pi, rest], dim=1)
    state = State.of((target,), x)
    scale = local_scale(state.gradients[:, 0], torch.ones(n, dtype=torch.float64))
    assert torch.allclose(scale[2:], SD.clamp(max=1.5), rtol=0.25)
    state, accepted = mala_steps((target,), torch.ones(1, dtype=torch.float64), state, 2, scale, 1.2, 20, generator)
    assert 0.2 < accepted < 0.9
    values, exact = observed(state.features)
    error = values.std(0, ddof=1) / math.sqrt(n)
    assert (np.abs(values.mean(0) - exact) < 4 * error).all()
    assert not torch.equal(state.features, x)


def test_chains_have_the_target_as_their_limit():
    n, n_chains = 24_000, 40
    features = draw(n, 7)
    log_density = start(features)[0]
    chains = run_chains(lambda x: start(x)[0], target, features, log_density, 2, n_chains, 7)
    assert chains.features.shape[1:] == (n_chains, D)
    assert 0.005 < chains.independence_acceptance < 0.5
    values, exact = observed(chains.features.reshape(-1, D))
    by_chain = values.reshape(-1, n_chains, len(exact)).mean(0)
    error = by_chain.std(0, ddof=1) / math.sqrt(n_chains)
    assert (np.abs(by_chain.mean(0) - exact) < 4 * error).all(), (by_chain.mean(0), exact, error)
    assert (error[3:] / exact[3:] < 0.05).all()


def test_chains_need_samples():
    with pytest.raises(InputError, match="samples of the surrogate at least"):
        run_chains(lambda x: start(x)[0], target, draw(50, 1), start(draw(50, 1))[0], 2, 10, 1)


def test_thinning_keeps_the_sum_of_the_weights_and_its_averages():
    generator = np.random.default_rng(3)
    log_weight, values = 2.0 * generator.standard_normal(5000), generator.random(5000)
    exact = reweighting.normalised_weights(log_weight) @ values
    found = []
    for seed in range(40):
        chosen, thin = thinned(log_weight, 200, seed)
        assert logsumexp(thin) == pytest.approx(logsumexp(log_weight))
        found.append(values[chosen].mean())
    assert abs(np.mean(found) - exact) < 4 * np.std(found, ddof=1) / np.sqrt(40)
    kept, same = thinned(log_weight[:100], 200, 1)
    assert len(kept) == 100 and np.array_equal(same, log_weight[:100])


def test_a_molecule_from_zero_by_weights_and_by_annealing():
    """The configuration integral and the mean energy by importance weights of the prior, and by annealing it, are the same."""
    system = load_system(SystemConfig())
    scaled, n_energies = scale_coordinates(system, 1)
    assert n_energies > 128 * 2000
    blocks = [weighted_prior(scaled, seed, 4000) for seed in range(8)]
    islands = [annealed_prior(scaled, seed, 80) for seed in range(6)]
    results = []
    for parts in (blocks, islands):
        log_z = np.array([logsumexp(part.log_weight) - np.log(len(part.log_weight)) for part in parts])
        energies = [Engine(system, "Reference").reduced_energy(part.positions_nm[:80]) for part in parts]
        results.append((log_z, energies))
    of_weights, of_annealing = (np.exp(log_z - results[0][0].mean()) for log_z, _ in results)
    error = np.hypot(*(values.std(ddof=1) / np.sqrt(len(values)) for values in (of_weights, of_annealing)))
    assert abs(of_weights.mean() - of_annealing.mean()) < 4 * error and error < 0.3
    weights = np.exp(np.concatenate([part.log_weight for part in islands]) - islands[0].log_weight.max())
    annealed = np.concatenate(results[1][1])
    every = np.concatenate([part.log_weight for part in blocks])
    prior = np.concatenate([part.positions_nm for part in blocks])
    chosen = reweighting.systematic_resample(every, 400, np.random.default_rng(1))
    by_weights = Engine(system, "Reference").reduced_energy(prior[chosen])
    spread = np.hypot(annealed.std() / np.sqrt(200), by_weights.std() / np.sqrt(reweighting.kish_ess(every)))
    assert abs(np.average(annealed, weights=weights) - by_weights.mean()) < 4 * spread and spread < 1.0
