"""The suite `verdict`: a real run at its smallest size, and its scores against closed forms."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_molgen.analysis.free_energy import free_energy_difference
from hpc_molgen.efficiency.suites import verdict_surrogates
from hpc_molgen.efficiency.suites.verdict import SIZES, make_plans
from hpc_molgen.efficiency.suites.verdict_curves import EXTRAPOLATED, NEVER, REACHED, Price, covers, crossing, price, time_to
from hpc_molgen.efficiency.suites.verdict_figure import median_curve
from hpc_molgen.efficiency.suites.verdict_methods import backbone, phi_psi
from hpc_molgen.efficiency.suites.verdict_samplers import ParticleMethod, ParticleSettings, particle_series, rigid_structures
from hpc_molgen.efficiency.suites.verdict_scores import (
    MIN_GROUPS,
    NORMAL,
    Checkpoint,
    Series,
    Truth,
    checkpoint,
    group_free_energy,
    grouped_checkpoints,
    prefixes,
    total_variation,
    weighted_checkpoints,
    weighted_free_energy,
)
from hpc_molgen.efficiency.suites.verdict_sums import Sums, Window, join, side_by_side, sum_frames
from hpc_molgen.efficiency.suites.verdict_tables import (
    BIASED,
    MD,
    SURROGATE,
    Entry,
    answer,
    best,
    ratio,
    results,
    seed_spread,
    tables,
)
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.from_zero import Population, Scaled
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import set_torsion
from tests.conftest import CommandLine

METHODS = {"openmm", "md-4fs", "tempering", "bias", "prior", "smc", "flow", "published-ddpm"}
CONVERGED_KT = 3.855  # by the suite `tempering`


def some_truth(free_energy_kt: float = 1.0) -> Truth:
    return Truth(free_energy_kt, 0.01, np.ones((2, 60, 60)), np.array([0.0, 1.0]), np.ones(2), {})


def curve(fixed_cpu_s: float, precision: float, times: np.ndarray, key: str = "x", **facts: Any) -> Series:
    points = [
        Checkpoint(float(t), float(t), 1.0, float(np.sqrt(precision / (t - fixed_cpu_s))), 0.1, 0.1, None, 1) for t in times
    ]
    return Series(key, 0, fixed_cpu_s, points, facts)


@pytest.fixture(scope="module")
def smoke(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verdict")
    shown = command("benchmark", "verdict", "--size", "smoke", "--out", str(out))
    assert shown.returncode == 0, shown.stderr
    return out


def test_smoke_run_writes_a_complete_record(smoke: Path) -> None:
    record = json.loads((smoke / "verdict-smoke.json").read_text())
    results, text = record["results"], (smoke / "verdict-smoke.md").read_text()
    assert results.keys() == METHODS and len(record["answer"]) >= 3 and record["truth"]["half_width_kt"] > 0
    for row in results.values():
        assert len(row["series"]) == len(row["outcomes"]) == SIZES["smoke"].n_repeats
        for series in row["series"]:
            times = [point["cpu_s"] for point in series["checkpoints"]]
            assert times == sorted(times) and times[0] > series["fixed_cpu_s"] > 0
            for point in series["checkpoints"]:
                assert 0 < point["total_variation"] <= 1 and 0 < point["divergence"] <= np.log(2)
    assert not results["published-ddpm"]["certified"] and results["published-ddpm"]["median_s"] is None
    assert all(point["energy_w1_kt"] is None for point in results["md-4fs"]["series"][0]["checkpoints"])
    for series in results["bias"]["series"]:  # reweighting is right: 4 standard errors, from few picoseconds
        last = series["checkpoints"][-1]
        assert abs(last["free_energy_kt"] - CONVERGED_KT) < 4 * last["half_width_kt"] / NORMAL
    assert "![" in text and "(verdict-smoke.png)" in text and "weights exp(-u)" in text
    assert (smoke / "verdict-smoke.png").stat().st_size > 10_000


def test_everything_that_stages_recorded_is_paid_for(smoke: Path) -> None:
    runs = smoke / "verdict-smoke" / "runs"
    facts = json.loads((smoke / "verdict-smoke.json").read_text())["results"]["flow"]["series"][0]["facts"]
    lines = [line for path in (runs / "flow-0" / "costs").iterdir() for line in path.read_text().splitlines()]
    paid = sum(facts[f"{part}_cpu_s"] for part in ("reference", "featurize", "train", "start_of_sampling", "checks"))
    recorded = sum(json.loads(line)["cpu_s"] for line in lines)
    assert paid + facts["n_samples"] * facts["cpu_s_per_sample"] == pytest.approx(recorded, abs=0.3)  # clocks tick in 10 ms
    # a variant that begins alike takes the stage's files over, and its bill
    own, taken = (runs / name / "costs" / "reference.jsonl" for name in ("flow-0", "published-ddpm-0"))
    assert own.read_text() == taken.read_text()


def test_a_second_start_repeats_nothing(command: CommandLine, smoke: Path) -> None:
    before = json.loads((smoke / "verdict-smoke.json").read_text())
    shown = command("benchmark", "verdict", "--size", "smoke", "--out", str(smoke))
    after = json.loads((smoke / "verdict-smoke.json").read_text())
    n = len(METHODS) * SIZES["smoke"].n_repeats
    assert shown.returncode == 0 and f"{n} of {n} curves" in after["notes"][-1]
    assert before["results"] == after["results"] and before["truth"] == after["truth"]


def test_what_the_configuration_refuses_is_left_out_and_named(
    alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = verdict_surrogates.SurrogateMethod("a sampler to come", "to come", ("sample.sampler=none-such",))
    monkeypatch.setitem(verdict_surrogates.SURROGATES, "to-come", refused)
    plans, skipped = make_plans(SIZES["laptop"], alanine, some_truth(), tmp_path, 1)
    keys = [plan.key for plan in plans]
    assert "to-come" not in keys and {"diffusion-ode", "flow", "bias", "published-ddpm"} <= set(keys)
    assert any("a sampler to come" in sentence for sentence in skipped)


def test_a_pupil_depends_on_its_teacher_and_not_on_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, molecule = SIZES["laptop"].surrogate, SIZES["laptop"].system
    (tmp_path / "teacher").mkdir()
    resolved = verdict_surrogates.resolve("flow-taught", settings, molecule, 7, tmp_path / "teacher")
    assert resolved.refine.start == "teacher" and resolved.refine.teacher == str(tmp_path / "teacher") and resolved.seed == 7
    before = verdict_surrogates.identity("flow-taught", settings, molecule, 7)
    assert before["refine"]["teacher"] == verdict_surrogates.identity("diffusion-ode", settings, molecule, 7)
    other = dataclasses.replace(verdict_surrogates.SURROGATES["diffusion-ode"], assignments=("train.n_steps=17",))
    monkeypatch.setitem(verdict_surrogates.SURROGATES, "diffusion-ode", other)
    assert verdict_surrogates.identity("flow-taught", settings, molecule, 7) != before
    assert verdict_surrogates.identity("flow", settings, molecule, 7)["refine"]["teacher"] is None


def weighted_samples(generator: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """A state of probability 0.1, drawn with 0.3, under weights that vary within each state."""
    inside = generator.random(n) < 0.3
    log_weights = np.log(np.where(inside, 0.1 / 0.3, 0.9 / 0.7)) + 0.8 * generator.standard_normal(n)
    return inside, log_weights + 50.0


def test_the_interval_of_weighted_samples_against_the_bootstrap_and_the_truth() -> None:
    generator = np.random.default_rng(5)
    inside, log_weights = weighted_samples(generator, 4000)
    value, half_width = weighted_free_energy(inside, log_weights)
    assert value is not None and half_width is not None
    angles = np.where(inside, 1.0, -1.0)
    bootstrap = free_energy_difference(angles, np.exp(log_weights - 50), None, 2000, generator)
    assert bootstrap.value == pytest.approx(value)
    assert half_width / NORMAL == pytest.approx(bootstrap.standard_error, rel=4 / np.sqrt(2 * 2000))  # 4 standard errors
    found = np.array([weighted_free_energy(*weighted_samples(generator, 2000)) for _ in range(400)], dtype=np.float64)
    covered = np.mean(np.abs(found[:, 0] - np.log(9)) < found[:, 1])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)


def test_weighted_samples_that_know_one_side_alone_have_no_interval() -> None:
    inside, log_weights = np.array([True, False, False, False]), np.zeros(4)
    assert weighted_free_energy(inside, log_weights) == (None, None)
    assert weighted_free_energy(inside, np.full(4, -np.inf)) == (None, None)
    value, _ = weighted_free_energy(np.array([True, True, False, False]), np.log([1.0, 1.0, 3.0, 3.0]))
    assert value == pytest.approx(np.log(3))


def groups(inside: np.ndarray, total: np.ndarray) -> Sums:
    return Sums(total, inside, np.ones((2, 60, 60)), np.empty(0), np.empty(0), 1)


def test_the_interval_of_groups_holds_the_truth_as_often_as_it_says() -> None:
    generator, n_groups, n_tests, covered = np.random.default_rng(9), 16, 400, 0
    for _ in range(n_tests):
        shares = generator.beta(20, 180, n_groups)  # 0.1, from correlated frames
        value, half_width = group_free_energy(groups(shares, np.ones(n_groups)))
        assert value is not None and half_width is not None
        covered += abs(value - np.log(9)) < half_width
    assert abs(covered / n_tests - 0.95) < 4 * np.sqrt(0.95 * 0.05 / n_tests)


def test_groups_need_both_sides_seen_by_enough() -> None:
    few = np.r_[np.full(MIN_GROUPS - 1, 0.5), np.zeros(20)]
    assert group_free_energy(groups(few, np.ones(len(few)))) == (None, None)
    enough = np.r_[few, 0.5]
    value, _ = group_free_energy(groups(enough, np.ones(len(enough))))
    assert value == pytest.approx(np.log((len(enough) - enough.sum()) / enough.sum()))
    assert group_free_energy(groups(np.ones(20), np.ones(20))) == (None, None)  # never anywhere else
    broken = group_free_energy(groups(np.r_[enough, 0.0], np.r_[np.ones(len(enough)), 0.0]))  # a copy that blew up
    assert broken[0] == pytest.approx(value)


def test_time_to_an_accuracy_of_a_known_curve() -> None:
    times = np.arange(11.0, 300.0)
    reached = time_to(curve(10.0, 1.0, times))  # 0.1 kT at 10 + 100
    assert reached.kind == REACHED and reached.cpu_s == pytest.approx(110.0)
    ahead = time_to(curve(10.0, 1.0, times[:40]))
    assert ahead.kind == EXTRAPOLATED and ahead.cpu_s == pytest.approx(110.0)
    wide = curve(10.0, 1.0, times)
    wide.checkpoints[200] = Checkpoint(float(times[200]), 0.0, 1.0, 0.2, 0.1, 0.1, None, 1)  # wider again: not there yet
    assert time_to(wide).cpu_s == times[201]
    never = Series("x", 0, 1.0, [Checkpoint(5.0, 5.0, None, None, 0.5, 0.5, None, 1)])
    assert time_to(never).kind == NEVER and time_to(never).cpu_s is None and covers(never, some_truth()) is None


def test_coverage_counts_both_intervals() -> None:
    series = curve(0.0, 1.0, np.array([100.0]))  # 1.0 +- 0.1
    assert covers(series, some_truth(1.09)) is True and covers(series, some_truth(1.12)) is False
    blurred = Truth(1.12, 0.1, np.ones((2, 60, 60)), np.zeros(1), np.ones(1), {})
    assert covers(series, blurred) is True


def test_curves_cross_where_both_are_as_wide() -> None:
    md, surrogate = Price(2.0, 40.0), Price(300.0, 4.0)
    found = crossing(surrogate, md)
    assert found.half_width_kt is not None
    assert surrogate.time_to(found.half_width_kt) == pytest.approx(md.time_to(found.half_width_kt))
    assert surrogate.time_to(found.half_width_kt / 2) < md.time_to(found.half_width_kt / 2)
    assert crossing(Price(300.0, 50.0), md).words == "never"
    assert crossing(Price(1.0, 4.0), md).words == "ahead from the beginning"
    measured = price([curve(2.0, 40.0, np.arange(3.0, 50.0)), curve(2.0, 40.0, np.arange(3.0, 90.0))])
    assert measured is not None and measured.fixed_cpu_s == 2.0 and measured.precision == pytest.approx(40.0)
    # n effective samples of a state of probability p give a half-width of 1.96 / sqrt(n p (1 - p))
    n = 1000 / md.per_effective_sample(0.2)
    assert md.time_to(NORMAL / np.sqrt(n * 0.2 * 0.8)) == pytest.approx(md.fixed_cpu_s + 1000)


def entry(key: str, kind: str, *series: Series, knows_cv: bool = True) -> Entry:
    return Entry(key, key, key, kind, knows_cv, list(series))


def test_the_first_is_certified_and_right() -> None:
    times, truth = np.arange(11.0, 300.0), some_truth(1.0)
    md, slow = entry("md", MD, curve(10.0, 1.0, times)), entry("slow", MD, curve(10.0, 2.0, times), knows_cv=False)
    fast = entry("fast", SURROGATE, curve(10.0, 0.5, times, certified=False, k_hat=0.9))
    good = entry("good", SURROGATE, curve(10.0, 0.5, times, certified=True, k_hat=0.5))
    entries = [md, slow, fast]
    assert best(entries, truth, [MD, SURROGATE]) is md and fast.median_s is None and ratio(md, fast) is None
    assert best(entries, truth, [MD], blind=True) is slow
    assert best([*entries, good], truth, [MD, SURROGATE]) is good
    compared = ratio(md, good)
    assert compared is not None and compared["mean"] == pytest.approx(110.0 / 60.0)
    assert best(entries, some_truth(9.0), [MD]) is None  # all intervals miss


def test_the_answer_and_the_tables_of_known_curves() -> None:
    times, facts = np.geomspace(11.0, 300.0, 200), {"ladders": 4, "ns_per_ladder": 1.0, "protocol": "long"}
    facts |= {"total_variation_of_halves": 0.1, "divergence_of_halves": 0.01, "energy_w1_of_halves_kt": 0.2}
    truth = Truth(1.0, 0.01, np.ones((2, 60, 60)), np.zeros(1), np.ones(1), facts)
    quick = entry("quick MD", MD, *(curve(1.0, 0.2, times) for _ in range(3)))
    blind = entry("blind MD", MD, *(curve(1.0, 30.0, times) for _ in range(3)), knows_cv=False)
    learned = entry(
        "learned", SURROGATE, *(curve(10.0, factor, times, certified=True, k_hat=0.4) for factor in (2.0, 2.2, 1.8))
    )
    wrong = entry("wrong one", BIASED, *(curve(10.0, 1.0, times, certified=False) for _ in range(3)))
    entries = [quick, blind, learned, wrong]
    found = results(entries, truth)
    text = " ".join(answer(entries, found, truth, ["left out: x."]))
    assert "MD wins: first at 0.1 kT (95 %) is quick MD" in text and "the wrong one" in text.lower() and "left out: x." in text
    assert "Without being told that phi is slow: blind MD, after 3,001 CPU s (extrapolated)" in text
    to_best, to_blind = found["learned"]["ratios"].values()
    assert to_best["mean"] == pytest.approx(21.0 / 210, rel=0.1) and to_best["crossing"].words == "never"
    # below where (30 - 2) / h^2 = 10 - 1 the surrogate is ahead of MD that knows as little
    assert to_blind["n"] == 3 and to_blind["crossing"].half_width_kt == pytest.approx(np.sqrt(28 / 9), rel=1e-6)
    first, end, compared = tables(entries, found, truth)
    assert [row[0] for row in first["rows"]] == [e.name for e in entries] and len(compared["rows"]) == 2
    assert first["rows"][1][3] == "3,001*" and first["rows"][3][3] == "never: biased" and first["rows"][2][4] == "3 of 3"
    assert all(len(row) == len(end["columns"]) for row in end["rows"])
    assert found["wrong one"]["median_s"] is None and seed_spread(quick) == 0


def test_the_expected_spread_over_seeds_is_one() -> None:
    generator, spreads = np.random.default_rng(8), []
    for _ in range(300):
        ends = [Checkpoint(1.0, 1.0, float(value), NORMAL * 0.3, 0.1, 0.1, None, 1) for value in generator.normal(2.0, 0.3, 3)]
        spreads.append(seed_spread(entry("x", MD, *(Series("x", k, 0.0, [end]) for k, end in enumerate(ends)))))
    squares = np.array(spreads, dtype=np.float64) ** 2  # mean 1 and, of three seeds, variance 1
    assert abs(squares.mean() - 1) < 4 / np.sqrt(300)


def test_sums_of_blocks_are_those_of_all_frames() -> None:
    generator = np.random.default_rng(2)
    angles, weights = generator.uniform(-3, 3, (40, 6, 2)), generator.random((40, 6))
    energies = generator.random((40, 6))
    blocks = [sum_frames(angles[k : k + 1], weights[k : k + 1], energies[k], weights[k]) for k in range(40)]
    whole = sum_frames(angles, weights, energies.ravel(), weights.ravel())
    for name in ("total", "inside", "histogram", "energies_kt"):
        np.testing.assert_allclose(getattr(join(blocks), name), getattr(whole, name))
    np.testing.assert_allclose(whole.total, weights.sum(axis=0))
    np.testing.assert_allclose(whole.inside, (weights * (angles[..., 0] > 0)).sum(axis=0))
    beside = side_by_side([sum_frames(angles[:, [k]], weights[:, [k]]) for k in range(6)])
    np.testing.assert_allclose(beside.histogram, whole.histogram)
    np.testing.assert_allclose(beside.inside, whole.inside)


def test_a_window_forgets_its_beginning_and_stays_small() -> None:
    late, early = sum_frames(np.full((1, 4, 2), 1.0), np.ones((1, 4))), sum_frames(np.full((1, 4, 2), -1.0), np.ones((1, 4)))
    window = Window(0.2, most=16)
    for number in range(1000):
        window.add(early if number < 100 else late)
    found = window.sums()
    assert len(window._blocks) < 16
    np.testing.assert_allclose(found.inside, found.total)  # what came before a tenth of the past is not in it
    assert 700 <= found.n_frames / 4 <= 850
    broken = sum_frames(np.full((1, 4, 2), np.nan), np.ones((1, 4)))
    assert broken.n_frames == 0 and (broken.total == 0).all()


def test_distances_of_known_histograms_and_energies() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 3.0, 3.0])
    assert total_variation(p, q) == pytest.approx(0.5) and total_variation(p, 7 * p) == 0
    sums = Sums(np.ones(2), np.ones(2), np.ones((2, 60, 60)), np.array([2.5, 3.5]), np.ones(2), 2)
    found = checkpoint(sums, (1.0, 0.1), some_truth(), 3.0, 2.0)
    assert found.energy_w1_kt == pytest.approx(2.5) and found.total_variation == found.divergence == 0


def test_checkpoints_of_weighted_samples_cost_what_each_costs() -> None:
    generator = np.random.default_rng(4)
    inside, log_weights = weighted_samples(generator, 3000)
    angles = np.where(inside, 1.0, -1.0)[:, None] * np.ones(2)
    points = weighted_checkpoints(angles, log_weights, np.zeros(3000), some_truth(), (100.0, 50.0), (0.1, 0.05))
    assert points[-1].cpu_s == pytest.approx(400.0) and points[-1].wall_s == pytest.approx(200.0)
    assert [point.n_frames for point in points] == prefixes(3000) and prefixes(3000)[0] >= 200
    assert points[-1].free_energy_kt == weighted_free_energy(inside, log_weights)[0]


def test_units_that_are_independent_are_what_the_jackknife_leaves_out() -> None:
    generator = np.random.default_rng(6)
    units = np.repeat(np.arange(40), 50)[generator.permutation(2000)]
    inside = generator.random(40)[units] < 0.4  # all samples of a unit alike
    angles, log_weights = np.where(inside, 1.0, -1.0)[:, None] * np.ones(2), np.where(inside, np.log(0.5), 0.0)
    points = grouped_checkpoints(angles, log_weights, np.zeros(2000), units, some_truth(), (10.0, 5.0), (0.1, 0.1))
    last, n_inside = points[-1], len(np.unique(units[inside]))
    assert last.free_energy_kt == pytest.approx(np.log((40 - n_inside) / (0.5 * n_inside))) and last.cpu_s == pytest.approx(
        210.0
    )
    alone = weighted_free_energy(inside, log_weights)[1]
    assert last.half_width_kt is not None and alone is not None
    assert last.half_width_kt / alone == pytest.approx(np.sqrt(50), rel=0.15)  # 40 units, not 2000 samples
    assert len(points) > 5 and points[0].n_frames >= 50 * (MIN_GROUPS - 1)


def test_rigid_structures_have_the_torsions_asked_for(alanine: MolecularSystem) -> None:
    asked = np.random.default_rng(1).uniform(-3, 3, (5, 2))
    found = rigid_structures(alanine, asked)
    np.testing.assert_allclose(phi_psi(alanine, found), asked, atol=1e-9)
    lengths = [np.linalg.norm(found[:, a.index] - found[:, b.index], axis=1) for a, b in alanine.topology.bonds]
    np.testing.assert_allclose(np.ptp(lengths, axis=1), 0, atol=1e-9)


def test_populations_of_particles_are_joined_by_their_weights(alanine: MolecularSystem) -> None:
    """Particles on two structures with weights 1 and 3: the mean share of phi > 0 is known."""
    phi = backbone(alanine)[0]
    two = np.array([set_torsion(alanine.topology, alanine.positions_nm, phi, angle) for angle in (-1.0, 1.0)])

    def draw(scaled: Scaled, seed: int, n: int) -> Population:
        which = np.random.default_rng(seed).integers(0, 2, n)
        return Population(torch.zeros(n, 1), two[which], np.log(np.where(which == 1, 1.0, 3.0)) - 700.0, n)

    method = ParticleMethod("x", "x", draw, size=5)
    series = particle_series("x", method, alanine, ParticleSettings(100, 12), some_truth(), 3, 0)
    last = series.checkpoints[-1]
    assert last.free_energy_kt is not None and last.half_width_kt is not None
    assert series.facts["n_samples"] == 6000 and series.fixed_cpu_s > 0
    assert abs(last.free_energy_kt - np.log(3)) < 4 * last.half_width_kt / NORMAL
    assert last.half_width_kt == pytest.approx(NORMAL * 2 / np.sqrt(6000), rel=0.8)  # 1 / sqrt(n p q) of a fair coin


def test_the_median_of_power_laws_is_the_middle_one() -> None:
    x = np.geomspace(1, 100, 50)
    grid, values = median_curve([(x, factor / np.sqrt(x)) for factor in (1.0, 5.0, 2.0)])
    np.testing.assert_allclose(values, 2 / np.sqrt(grid))


def test_a_wrong_size_lists_the_sizes() -> None:
    from hpc_molgen.efficiency.suites.verdict import verdict

    with pytest.raises(InputError, match="laptop, smoke"):
        verdict("huge", Path(), 1)
