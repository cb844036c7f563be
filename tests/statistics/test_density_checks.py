"""Checks of ln q against closed forms: Gaussians with known Z and ESS, a missing mode, good surrogates on many seeds."""

from __future__ import annotations

import itertools
import logging
import math
import shutil
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from hpc_molgen.basins import N_CLUSTERS, Basin, Labelled, compare_basins, find_basins
from hpc_molgen.config import RunConfig
from hpc_molgen.coverage import CHECKED, check_coverage, log_weights_of, missing_modes, spread_over
from hpc_molgen.datasets import load_split
from hpc_molgen.density_checks import DensityCheck, LogWeights, bennett, check_density, decorrelated_frames, relative_densities
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.representations.base import load_representation
from hpc_molgen.run import Run
from hpc_molgen.surrogates.base import load_surrogate
from hpc_molgen.systems.torsions import place_atom

DIMENSIONS, SHIFT, SCALE, LOG_C = 4, 0.35, 0.92, -7.3
N_SAMPLES, N_UNITS, N_FRAMES = 8000, 40, 50


def log_q(x: np.ndarray) -> np.ndarray:
    """Standard normal density of rows."""
    found: np.ndarray = -0.5 * np.sum(x**2, axis=1) - 0.5 * x.shape[1] * math.log(2 * math.pi)
    return found


def log_target(x: np.ndarray) -> np.ndarray:
    """Unnormalised: a Gaussian of mean SHIFT and deviation SCALE in every dimension, times exp(LOG_C)."""
    return LOG_C - np.sum((x - SHIFT) ** 2, axis=1) / (2 * SCALE**2)


LOG_Z = LOG_C + 0.5 * DIMENSIONS * math.log(2 * math.pi * SCALE**2)


def exact_ess() -> float:
    """1 / E_q (p/q)^2 = [s^2 sqrt(a) exp(m^2/s^2 - 2 m^2 / (a s^4))]^d with a = 2/s^2 - 1, mean m and deviation s."""
    a = 2 / SCALE**2 - 1
    log_one = math.log(SCALE**2 * math.sqrt(a)) + SHIFT**2 / SCALE**2 - 2 * SHIFT**2 / (a * SCALE**4)
    return math.exp(DIMENSIONS * log_one)


def walkers(generator: np.random.Generator, memory: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Frames of the target by autoregressive walkers (stationary from the start), and the walker of each."""
    steps = generator.standard_normal((N_UNITS, N_FRAMES, DIMENSIONS))
    chain = steps.copy()
    for frame in range(1, N_FRAMES):
        chain[:, frame] = memory * chain[:, frame - 1] + math.sqrt(1 - memory**2) * steps[:, frame]
    return SHIFT + SCALE * chain.reshape(-1, DIMENSIONS), np.repeat(np.arange(N_UNITS), N_FRAMES)


def gaussian_case(seed: int, memory: float = 0.0) -> LogWeights:
    generator = np.random.default_rng(seed)
    samples = generator.standard_normal((N_SAMPLES, DIMENSIONS))
    frames, units = walkers(generator, memory)
    equal = np.full(len(frames), 1 / len(frames))
    return LogWeights(log_target(samples) - log_q(samples), log_target(frames) - log_q(frames), equal, units)


def scores(check: DensityCheck) -> dict[str, float]:
    """Deviations from the closed forms in standard errors."""
    exact = {"reverse_ess": exact_ess(), "forward_ess": exact_ess(), "deficit": 0.0}
    exact |= dict.fromkeys(("log_z_samples", "log_z_frames", "log_z_bar"), LOG_Z)
    return {name: (getattr(check, name).value - value) / getattr(check, name).standard_error for name, value in exact.items()}


def test_gaussians_have_their_closed_forms() -> None:
    check = check_density(gaussian_case(1), 200, np.random.default_rng(1))
    assert 0.2 < exact_ess() < 0.8  # a case that is neither perfect nor hopeless
    assert all(abs(score) < 4 for score in scores(check).values()), scores(check)
    assert check.log_z_bar.standard_error < check.log_z_frames.standard_error  # BAR is the best of the three
    assert check.log_z_bar.standard_error < 0.02
    assert check.bar_error == pytest.approx(check.log_z_bar.standard_error, rel=0.4)
    assert not missing_modes(check, [])


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_errors_are_honest(memory: float) -> None:
    """Over 60 experiments the z-scores have mean 0 and spread 1 (4 standard errors each), with correlated walkers too."""
    found = [scores(check_density(gaussian_case(100 + seed, memory), 100, np.random.default_rng(seed))) for seed in range(60)]
    for name in ("reverse_ess", "log_z_samples", "log_z_frames", "log_z_bar", "deficit"):
        values = np.array([row[name] for row in found])
        assert abs(values.mean()) < 4 / math.sqrt(60), (name, values.mean())
        assert abs(values.std() - 1) < 4 / math.sqrt(2 * 60), (name, values.std())


def test_biased_frames_with_weights_give_the_same() -> None:
    """Frames of a wider Gaussian, reweighted to the target: ln Z three ways and the forward ESS within 4 standard errors."""
    generator, wide = np.random.default_rng(5), 1.15
    samples = generator.standard_normal((N_SAMPLES, DIMENSIONS))
    frames = SHIFT + wide * SCALE * generator.standard_normal((N_UNITS * N_FRAMES, DIMENSIONS))
    log_bias = -np.sum((frames - SHIFT) ** 2, axis=1) / (2 * SCALE**2) * (1 - 1 / wide**2)
    weights = np.exp(log_bias - log_bias.max())
    given = LogWeights(
        log_target(samples) - log_q(samples), log_target(frames) - log_q(frames), weights / weights.sum(),
        np.repeat(np.arange(N_UNITS), N_FRAMES),
    )  # fmt: skip
    check = check_density(given, 200, generator)
    assert check.n_decorrelated < 0.95 * len(frames)
    assert all(abs(score) < 4 for score in scores(check).values()), scores(check)


def test_bennett_is_what_pymbar_says_and_quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    given = gaussian_case(2)
    caplog.set_level(logging.DEBUG)
    log_z, error = bennett(given.samples, given.frames)
    shown = capfd.readouterr()
    assert "JAX" not in shown.out + shown.err + caplog.text
    check = check_density(given, 50, np.random.default_rng(0))
    assert abs(log_z - LOG_Z) < 4 * error
    assert check.log_z_bar.value == pytest.approx(log_z, abs=0.02)
    from pymbar.other_estimators import bar_overlap

    every = LogWeights(given.samples, given.frames, given.frame_weights, np.arange(len(given.frames)))
    found = check_density(every, 20, np.random.default_rng(0))  # frames that share nothing: all of them enter
    assert found.n_decorrelated == len(given.frames)
    assert found.overlap == pytest.approx(bar_overlap(-given.samples, given.frames), abs=1e-3)
    assert found.log_z_bar.value == pytest.approx(log_z, abs=1e-8)


def test_overflowing_weights_are_no_problem() -> None:
    """Clashes (u of 1e9, infinity), a frame that q excludes, and two densities without anything in common."""
    given = gaussian_case(3)
    samples = given.samples.copy()
    samples[:100], samples[100:200] = -1e9, -np.inf
    frames = given.frames.copy()
    frames[0], frames[1] = np.inf, np.nan
    check = check_density(LogWeights(samples, frames, given.frame_weights, given.units), 50, np.random.default_rng(0))
    assert check.log_z_bar.value == pytest.approx(LOG_Z, abs=0.1)
    assert check.forward_ess.value < 1e-6
    assert check.beyond_largest.value > 1.9 / len(frames)
    far = LogWeights(given.samples, given.frames + 500, given.frame_weights, given.units)
    apart = check_density(far, 50, np.random.default_rng(0))
    assert apart.beyond_largest.value == 1 and apart.overlap < 1e-6
    assert missing_modes(apart, [])


def test_a_constant_weight_is_a_perfect_surrogate() -> None:
    units = np.repeat(np.arange(8), 25)
    given = LogWeights(np.full(1000, 3.0), np.full(200, 3.0), np.full(200, 1 / 200), units)
    check = check_density(given, 50, np.random.default_rng(0))
    assert check.forward_ess.value == pytest.approx(1) and check.reverse_ess.value == pytest.approx(1)
    assert check.log_z_bar.value == pytest.approx(3.0) and check.overlap == pytest.approx(1)
    assert not missing_modes(check, [])


# a target of two normal modes at -6 and +6 along the first axis, Z = 1; the surrogate's are wider by a factor
APART, WIDER = 6.0, 1.05


def log_modes(x: np.ndarray, right: float, wider: float = 1.0) -> np.ndarray:
    """Density of two modes, of which the right one holds a share."""
    centre = np.eye(DIMENSIONS)[0] * APART
    with np.errstate(divide="ignore"):
        left_part, right_part = np.log1p(-right) + log_q((x + centre) / wider), np.log(right) + log_q((x - centre) / wider)
    found: np.ndarray = np.logaddexp(left_part, right_part) - DIMENSIONS * math.log(wider)
    return found


def draw_modes(n: int, right: np.ndarray | float, wider: float, generator: np.random.Generator) -> np.ndarray:
    x = wider * generator.standard_normal((n, DIMENSIONS))
    x[:, 0] += APART * np.where(generator.random(n) < right, 1, -1)
    return x


def two_mode_case(
    seed: int, share: float, of_surrogate: float, of_md: float | None = None
) -> tuple[LogWeights, DensityCheck, list[Basin]]:
    """A target whose right mode holds `share`, a surrogate of which it holds another, and 20 MD walkers that cross.

    The share of the right mode in MD is `of_md`, where MD has not converged.
    """
    generator = np.random.default_rng(seed)
    samples = draw_modes(10_000, of_surrogate, WIDER, generator)
    frames = draw_modes(2000, share if of_md is None else of_md, 1.0, generator)
    units, equal = np.repeat(np.arange(20), 100), np.full(2000, 1 / 2000)
    ours, md = (log_modes(x, share) - log_modes(x, of_surrogate, WIDER) for x in (samples, frames))
    given = LogWeights(ours, md, equal, units)
    check = check_density(given, 100, generator)
    labels = (frames[:, 0] > 0).astype(int)
    sides = Labelled(labels, equal, units), Labelled((samples[:, 0] > 0).astype(int), np.full(10_000, 1e-4))
    weights = np.exp(ours - ours.max())
    ratios = relative_densities(given, labels, 2)
    corrected = Labelled(sides[1].labels, weights)
    return given, check, compare_basins(["left", "right"], *sides, corrected, ratios, 100, generator)


@pytest.mark.parametrize("share", [0.3, 0.05])
def test_a_missing_mode_is_seen(share: float) -> None:
    """Its own samples look nearly perfect; ln Z is short by ln(1 - share), BAR is right, and every check says so."""
    _, check, basins = two_mode_case(7, share, of_surrogate=0.0)
    assert check.reverse_ess.value > 0.95 and check.k_hat < 0.7
    assert check.forward_ess.value < 1e-3
    short = check.log_z_samples
    assert abs(short.value - math.log1p(-share)) < 4 * short.standard_error
    assert abs(check.log_z_bar.value) < 4 * check.log_z_bar.standard_error
    assert abs(check.log_z_frames.value) < 4 * check.log_z_frames.standard_error
    assert abs(check.beyond_largest.value - share) < 4 * check.beyond_largest.standard_error
    assert [basin.finding for basin in basins] == ["", "missing"]
    assert basins[1].relative_density < 1e-6 and basins[0].relative_density == pytest.approx(1, rel=0.05)
    reasons = " ".join(missing_modes(check, basins))
    for words in ("below BAR", f"misses {share:.0%}"[:8], "larger weight than every one", "basin right holds"):
        assert words in reasons


def test_a_mode_of_one_and_a_half_percent_is_seen() -> None:
    """Too small for ln Z to show: the basin and the mass beyond the samples' weights do."""
    _, check, basins = two_mode_case(11, 0.015, of_surrogate=0.0)
    assert check.deficit.value < 0.04
    assert basins[1].finding == "missing"
    assert missing_modes(check, basins)


@pytest.mark.parametrize("of_surrogate", [0.3, 0.1, 0.7])
def test_good_surrogates_raise_no_alarm(of_surrogate: float) -> None:
    """30 seeds each: a wrong population that the weights mend is no missing mode."""
    alarms = [reasons for seed in range(30) if (reasons := missing_modes(*two_mode_case(200 + seed, 0.3, of_surrogate)[1:]))]
    assert not alarms, alarms


def test_rare_basins_raise_no_alarm() -> None:
    """A mode of half a percent that surrogate and MD both know, on 30 seeds."""
    found = [two_mode_case(300 + seed, 0.005, of_surrogate=0.005)[1:] for seed in range(30)]
    assert not [reasons for case in found if (reasons := missing_modes(*case))]


def test_md_that_has_not_converged_is_told_from_a_missing_mode() -> None:
    """MD that is 40 % in a mode of 1 %: ln q is right there, so it is MD's population that is in doubt."""
    _, check, basins = two_mode_case(13, 0.01, of_surrogate=0.01, of_md=0.4)
    assert basins[1].finding == "disputed"
    assert basins[1].relative_density == pytest.approx(1, abs=0.1)
    assert abs(check.log_z_bar.value) < 4 * check.log_z_bar.standard_error  # the weights do not mind where MD is
    assert not missing_modes(check, basins)


def test_what_md_never_saw_is_noted() -> None:
    _, check, basins = two_mode_case(17, 0.2, of_surrogate=0.2, of_md=0.0)
    assert [basin.finding for basin in basins] == ["", "beyond MD"]
    assert math.isnan(basins[1].relative_density)
    assert not missing_modes(check, basins)


def test_two_walkers_tell_nothing() -> None:
    """A basin that one walker of two sat in has no lower limit, so nothing is said about it."""
    labels = np.repeat([0, 1], 100)
    md = Labelled(labels, np.full(200, 1 / 200), np.repeat([0, 1], 100))
    ours = Labelled(np.zeros(1000, int), np.full(1000, 1e-3))
    found = compare_basins(["a", "b"], md, ours, None, np.full(2, np.nan), 100, np.random.default_rng(0))
    assert [basin.finding for basin in found] == ["", ""]


def test_without_ln_q_raw_populations_tell() -> None:
    generator = np.random.default_rng(4)
    md = Labelled((generator.random(2000) < 0.2).astype(int), np.full(2000, 1 / 2000), np.repeat(np.arange(20), 100))
    ours = Labelled(np.zeros(1000, int), np.full(1000, 1e-3))
    found = compare_basins(["a", "b"], md, ours, None, np.full(2, np.nan), 100, generator)
    assert found[1].finding == "missing"
    assert "basin b holds" in missing_modes(None, found)[0]


def test_frames_of_walkers_count_as_what_they_are_worth() -> None:
    frames, units = walkers(np.random.default_rng(6), memory=0.9)
    n = decorrelated_frames(log_target(frames) - log_q(frames), np.full(len(frames), 1 / len(frames)), units)
    # ln w is linear and quadratic in the chain: correlations 0.9^t and 0.81^t, so g lies between 9.5 and 19
    assert len(frames) / 25 < n < len(frames) / 6


def test_frames_are_spread_over_walkers() -> None:
    units = np.repeat([3, 5, 9], [100, 10, 400])
    chosen = spread_over(units, 60)
    assert np.bincount(units[chosen], minlength=10)[[3, 5, 9]].tolist() == [20, 10, 20]
    assert np.all(np.diff(chosen) > 0)
    assert np.diff(chosen[units[chosen] == 9]).tolist() == [20] * 19
    assert len(spread_over(units, 0)) == 0 and len(spread_over(units, 2)) == 2


def pentane(angles_deg: np.ndarray) -> np.ndarray:
    """Five carbons with given torsions (n, 2)."""
    frames = []
    for first, second in angles_deg:
        atoms = [np.array([0.0, 0.0, 0.0]), np.array([0.153, 0.0, 0.0]), np.array([0.205, 0.144, 0.0])]
        atoms.append(place_atom(atoms[2], atoms[1], atoms[0], 0.153, 112, first))
        atoms.append(place_atom(atoms[3], atoms[2], atoms[1], 0.153, 112, second))
        frames.append(atoms)
    return np.array(frames)


def test_clusters_of_torsions_where_there_are_no_named_basins() -> None:
    """Nine wells, of which the samples lack one and MD another: both are seen."""
    topology, generator = mdtraj.Topology(), np.random.default_rng(3)
    residue = topology.add_residue("PEN", topology.add_chain())
    carbons = [topology.add_atom(f"C{k}", mdtraj.element.carbon, residue) for k in range(5)]
    for first, second in itertools.pairwise(carbons):
        topology.add_bond(first, second)
    wells = np.array([[a, b] for a in (-65, 65, 180) for b in (-65, 65, 180)])

    def draw(n: int, without: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = generator.choice([well for well in range(9) if well != without], n)
        return pentane(wells[chosen] + 8 * generator.standard_normal((n, 2))), chosen

    (md, md_well), (ours, _) = draw(1600, without=0), draw(1500, without=8)
    units, equal = np.repeat(np.arange(16), 100), np.full(1600, 1 / 1600)
    names, (labels, own) = find_basins(topology, [md, ours], equal, np.arange(0, 1600, 2), seed=1)
    assert len(names) == N_CLUSTERS == len(set(names))
    assert all(len(set(md_well[labels == label])) == 1 for label in set(labels))  # no cluster spans two wells
    sides = Labelled(labels, equal, units), Labelled(own, np.full(1500, 1 / 1500))
    found = compare_basins(names, *sides, None, np.full(len(names), np.nan), 100, generator)
    missing = {label for label, basin in enumerate(found) if basin.finding == "missing"}
    assert missing == set(labels[md_well == 8])
    beyond = [basin for basin in found if basin.finding == "beyond MD"]
    assert sum(basin.samples.value for basin in beyond) == pytest.approx(1 / 8, abs=0.04)
    assert np.all(np.diff([basin.frames.value for basin in found]) <= 1e-12)  # most populated first


@pytest.fixture
def copy(tiny_run: Path, tmp_path: Path) -> Run:
    shutil.copytree(tiny_run, tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_ln_w_of_held_out_frames_of_a_run(copy: Run) -> None:
    """Energies are OpenMM's; ln q is that of the features less ln|det J|, and own samples get theirs back."""
    checked = read_ensemble(copy.path("correct", CHECKED), copy.system)
    _, held_out = load_split(copy)
    assert len(checked) == copy.details("correct")["coverage"]["n_frames"] == len(held_out)
    assert np.array_equal(checked.log_weight, held_out.log_weight) and np.ptp(checked.log_weight) > 0  # biased MD
    some = checked[::50]
    np.testing.assert_allclose(
        some.reduced_energy, Engine(copy.system, "Reference").reduced_energy(some.positions_nm), atol=1e-2
    )
    import torch

    representation = load_representation(copy.path("featurize", "representation.safetensors"), copy.system)
    surrogate = load_surrogate(copy.path("train", "surrogate.safetensors"), copy.system.key)
    features = representation.encode(torch.as_tensor(some.positions_nm))
    _, log_abs_det = representation.decode(features)
    expected = surrogate.log_density(features, n_steps=40).cpu() - log_abs_det  # type: ignore[operator]
    np.testing.assert_allclose(some.log_density, expected, atol=0.2, rtol=1e-3)
    np.testing.assert_allclose(log_weights_of(some), -some.reduced_energy - some.log_density)
    assert copy.details("correct")["coverage"]["log_q"]["spread"] < 0.05


@pytest.mark.parametrize(
    ("section", "key", "value", "why"),
    [
        ("correct", "check_frames", 0, "check_frames is 0"),
        ("sample", "sampler", "path", "has no path"),
        ("correct", "weights", False, "no importance weights"),
        ("representation", "name", "torsion", "no sample"),
    ],
)
def test_where_ln_w_of_md_means_nothing_populations_are_compared(
    copy: Run, section: str, key: str, value: object, why: str
) -> None:
    values = copy.config.model_dump()
    values[section][key] = value
    copy.config = RunConfig.model_validate(values)
    copy.path("correct", CHECKED).unlink()
    _, held_out = load_split(copy)
    found = check_coverage(copy, read_ensemble(copy.path("correct", "weighted.h5"), copy.system), held_out)
    assert found["density"] is None and why in found["skipped"]
    of_the_molecule = section == "sample" or key == "check_frames"  # then weights mend the populations all the same
    assert len(found["basins"]) == 6
    assert all(
        (basin.corrected is not None) == of_the_molecule and math.isnan(basin.relative_density) for basin in found["basins"]
    )
    assert not copy.path("correct", CHECKED).exists()


def test_few_frames_are_enough_to_run(copy: Run) -> None:
    values = copy.config.model_dump()
    values["correct"]["check_frames"] = 20
    copy.config = RunConfig.model_validate(values)
    _, held_out = load_split(copy)
    found = check_coverage(copy, read_ensemble(copy.path("correct", "weighted.h5"), copy.system), held_out)
    checked = read_ensemble(copy.path("correct", CHECKED), copy.system)
    assert found["n_frames"] == len(checked) == 20
    assert np.unique(checked.trajectory, return_counts=True)[1].tolist() == [10, 10]
