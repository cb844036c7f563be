"""Cost records, marginal costs and break-even."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpc_molgen.analysis.free_energy import Estimate
from hpc_molgen.config import RunConfig
from hpc_molgen.efficiency import baseline
from hpc_molgen.efficiency.costs import CostBook, Marginal, break_even, collect_costs, marginal_cost, scenarios
from hpc_molgen.efficiency.verdict import MIN_PASSAGES, Check, decide, gate
from hpc_molgen.run import Run
from hpc_molgen.systems.base import MolecularSystem

BOOK = CostBook(
    stages=(), data=100, validation=80, equilibration=20, shared_start=5, training=140, sampling=50, energies=10,
    simulated_ns=4, production_ns=3.5,
)  # fmt: skip


def price(value: float) -> Marginal:
    return Marginal(value, np.array([0.9, 1.0, 1.1]) * value)


def test_break_even_is_fixed_costs_over_the_gain_of_each_sample() -> None:
    assert break_even(300, 0.5, 0.2) == pytest.approx(1000)


def test_break_even_is_never_when_md_is_as_cheap() -> None:
    assert np.isinf(break_even(300, 0.2, 0.2))
    assert np.isinf(break_even(300, 0.1, 0.2))
    assert np.isinf(break_even(300, np.inf, np.inf))


def test_break_even_is_at_once_when_nothing_is_to_be_paid_back() -> None:
    assert break_even(-5, 0.5, 0.2) == 0


def test_the_four_scenarios() -> None:
    found = {scenario.name: scenario for scenario in scenarios(BOOK, price(0.5), price(0.2))}
    assert found["data paid"].n_star == pytest.approx((100 + 80 + 140 - 20) / 0.3)
    assert found["data there"].n_star == pytest.approx(140 / 0.3)
    assert found["amortised over 10"].n_star == pytest.approx((320 / 10 - 20) / 0.3)
    assert found["energies alone"].words() == "not available in this run"
    untrained_on = scenarios(replace(BOOK, frames_trained_on=False), price(0.5), price(0.2))
    assert {scenario.name: scenario for scenario in untrained_on}["energies alone"].fixed_cpu_s == 100 + 140
    assert found["data paid"].low < found["data paid"].n_star < found["data paid"].high


def test_a_scenario_that_never_pays_says_so() -> None:
    assert scenarios(BOOK, price(0.1), price(0.2))[0].words() == "never"


def test_marginal_cost() -> None:
    found = marginal_cost(100, 50, np.array([25.0, 50.0, 0.0]))
    assert found.value == 2
    assert found.replicates.tolist() == [4, 2, np.inf]
    assert marginal_cost(100, 0, np.zeros(3)).value == np.inf


def test_costs_of_a_run_split_its_walkers(tiny_run: Path) -> None:
    run = Run.open(tiny_run)
    costs = collect_costs(run)
    walkers = [walker["cpu_s"] for walker in run.details("reference")["walkers"]]
    # a fraction of 0.5 holds out walkers 1 and 3
    assert costs.validation == pytest.approx(walkers[1] + walkers[3])
    assert costs.data == pytest.approx(walkers[0] + walkers[2])
    assert costs.equilibration == pytest.approx(sum(walkers) * 1 / 11)
    assert [cost.stage for cost in costs.stages] == ["reference", "featurize", "train", "sample", "correct", "farm"]
    assert all(cost.cpu_s > 0 and cost.wall_s > 0 and cost.attempts == 1 for cost in costs.stages)
    assert costs.sampling > 0
    assert costs.energies > 0


def test_rule_of_three() -> None:
    assert baseline.rule_of_three(0, 90.0) == (None, 30.0)
    per_event, at_least = baseline.rule_of_three(4, 100.0)
    assert per_event == 25
    assert at_least == pytest.approx(100 / 10.24, rel=1e-3)  # exact 97.5 % upper limit of a Poisson mean with 4 counts


def test_speeds_of_the_protocols(alanine: MolecularSystem, tiny_config: RunConfig) -> None:
    speeds = baseline.measure_speeds(alanine, tiny_config)
    assert [speed.protocol.timestep_fs for speed in speeds] == 2 * [1.0, 2.0, 4.0]
    assert {speed.platform for speed in speeds[:3]} != {speed.platform for speed in speeds[3:]}  # batched and OpenMM
    assert all(len(speed.ns_per_cpu_s) == baseline.REPEATS and speed.mean > 0 for speed in speeds)
    assert speeds[1].mean > 1.2 * speeds[0].mean and speeds[4].mean > 1.2 * speeds[3].mean
    assert len({speed.label for speed in speeds}) == 6


GOOD = Estimate(3.9, 3.6, 4.2, 0.15)
OURS = Estimate(3.7, 3.3, 4.1, 0.2)


def failed(checks: tuple[Check, ...]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def test_gate_passes() -> None:
    assert not failed(gate("phi", True, 0.4, 300, GOOD, OURS))


@pytest.mark.parametrize(
    ("weighted", "k_hat", "passages", "reference", "corrected", "wrong"),
    [
        (False, None, 300, GOOD, None, ["importance weights"]),
        (True, 0.71, 300, GOOD, OURS, ["tail of the weights"]),
        (True, float("inf"), 300, GOOD, OURS, ["tail of the weights"]),
        (True, 0.4, MIN_PASSAGES - 1, GOOD, OURS, ["reference crosses"]),
        (True, 0.4, 300, GOOD, Estimate(4.5, 4.1, 4.9, 0.2), ["free energies agree"]),
        (True, 0.4, 300, GOOD, Estimate(4.3, 1, 8, 2.0), ["error bars are narrow enough"]),
        (True, 0.4, 300, GOOD, Estimate(float("inf"), float("nan"), float("nan"), float("inf")), ["free energies agree"]),
    ],
)
def test_gate_fails(
    weighted: bool, k_hat: float | None, passages: int, reference: Estimate, corrected: Estimate | None, wrong: list[str]
) -> None:
    checks = gate("phi", weighted, k_hat, passages, reference, corrected)
    assert failed(checks) == wrong
    verdict = decide("phi", checks, reference, GOOD, corrected, [])
    assert not verdict.gate_passed
    assert verdict.sentence.startswith("Not certified")
    assert verdict.reasons[0] in verdict.sentence


def test_a_molecule_without_a_torsion_is_not_certified() -> None:
    checks = gate("", True, 0.4, 0, None, None)
    assert failed(checks) == ["free-energy difference"]
    assert "dF(" not in decide("", checks, None, None, None, []).sentence
