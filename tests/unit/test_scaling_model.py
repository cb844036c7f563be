"""The model behind the suite `scaling` against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hpc_molgen.efficiency.suites.scaling_inputs import Points, measured_network
from hpc_molgen.efficiency.suites.scaling_model import (
    MIB,
    Compute,
    Exchange,
    Network,
    buckets,
    fit_line,
    forecast,
    jitter,
    largest_normal,
    rank_numbers,
)
from hpc_molgen.efficiency.suites.training_workloads import WORKLOADS, parameter_bytes

COMPUTE = Compute(fixed_s=0.01, item_s=1e-4, jitter=0.02)
NETWORK = Network(4, intra_bandwidth=100e9, intra_latency_s=3e-6, bandwidth=10e9, latency_s=2e-5)
PERFECT = Network(4, math.inf, 0.0, math.inf, 0.0)


def test_all_reduce_of_two_ranks_by_hand() -> None:
    """Each sends half of the bytes twice: bytes / bandwidth + 2 latencies; between nodes the same."""
    inside = Network(2, 1e9, 1e-3, 1.0, 9.0).all_reduce_s(1e8, 2)
    between = Network(1, 1.0, 9.0, 1e9, 1e-3).all_reduce_s(1e8, 2)
    assert inside == pytest.approx(0.1 + 2e-3) and between == pytest.approx(0.1 + 2e-3)
    assert Network(2, 1e9, 1e-3, 1e9, 1e-3).all_reduce_s(1e8, 1) == 0


def test_all_reduce_of_a_cluster_by_hand() -> None:
    """Eight nodes of four: 1.5 s / B and 6 latencies inside; between, trees for few bytes and a ring for many."""
    inside = 1.5 * 1e4 / 100e9 + 6 * 3e-6
    assert NETWORK.all_reduce_s(1e4, 32) == pytest.approx(inside + 2 * 1e4 / 10e9 + 6 * 2e-5)
    inside = 1.5 * 1e9 / 100e9 + 6 * 3e-6
    assert NETWORK.all_reduce_s(1e9, 32) == pytest.approx(inside + 1.75 * 1e9 / 10e9 + 14 * 2e-5)


@pytest.mark.parametrize("n_bytes", [4, 4e6, 4e9])
def test_more_ranks_never_exchange_faster(n_bytes: float) -> None:
    seconds = [NETWORK.all_reduce_s(n_bytes, n) for n in range(1, 513)]
    assert seconds == sorted(seconds) and seconds[-1] > seconds[1] > 0


def test_a_perfect_network_and_no_fixed_part_lose_nothing() -> None:
    compute, exchange = Compute(0.0, 1e-4), Exchange(((1000, 2000), (500,)), 0.5)
    for n in rank_numbers(512):
        strong, weak = (forecast(batch, n, compute, exchange, PERFECT) for batch in (1024, 1024 * n))
        assert strong.efficiency(forecast(1024, 1, compute, exchange, PERFECT)) == pytest.approx(1)
        assert weak.efficiency(forecast(1024, 1, compute, exchange, PERFECT)) == pytest.approx(1)
    # what is left of Amdahl's law: (a + b n) / (a N + b n)
    row, one = (forecast(1000, n, Compute(0.02, 1e-4), exchange, PERFECT) for n in (10, 1))
    assert row.efficiency(one) == pytest.approx(0.12 / 0.30)


def test_a_batch_that_does_not_divide_waits_for_the_largest_share() -> None:
    row = forecast(10, 4, Compute(0.0, 1.0), Exchange(((4,),), 0.0), PERFECT)
    assert row.n_items == 3 and row.step_s == pytest.approx(3) and row.samples_per_s == pytest.approx(10 / 3)


@pytest.mark.parametrize("share", [0.0, 2 / 3])
def test_efficiency_falls_with_ranks_and_strong_never_beats_weak(share: float) -> None:
    exchange = Exchange((buckets([3_000_000] * 40, 25 * MIB),), share)
    strong = [forecast(1024, n, COMPUTE, exchange, NETWORK) for n in rank_numbers(512)]
    weak = [forecast(1024 * n, n, COMPUTE, exchange, NETWORK) for n in rank_numbers(512)]
    efficiencies = [[row.efficiency(rows[0]) for row in rows] for rows in (strong, weak)]
    for values in efficiencies:
        assert values == sorted(values, reverse=True) and values[0] == 1 > values[-1] > 0
    assert all(a <= b for a, b in zip(*efficiencies, strict=True))
    assert strong[-1].efficiency(strong[0]) < 0.5 * weak[-1].efficiency(weak[0])


def test_buckets_travel_behind_the_backward_pass_but_for_the_last() -> None:
    """Two equal buckets, ready at half and at the end of a backward pass of 6 s; each takes t to send."""
    network = Network(1, 1.0, 0.0, 1.0, 0.0)  # two ranks: as many seconds as bytes
    for t, exposed in ((2, 2), (3, 3), (4, 5), (10, 17)):
        assert Exchange(((t, t),), 0.6).exposed_s(10.0, network, 2) == pytest.approx(exposed)
    assert Exchange(((2, 2),), 0.0).exposed_s(10.0, network, 2) == pytest.approx(4)  # nothing hides
    assert Exchange(((4, 4), (3,)), 0.6).exposed_s(20.0, network, 2) == pytest.approx(5 + 3)  # each update by itself


def test_buckets_are_those_of_ddp() -> None:
    """One is full once it reaches its limit: 1 MiB for the first, 25 MiB for the others."""
    kib = 1024
    assert buckets([600 * kib, 600 * kib, 20 * MIB, 4 * MIB, 2 * MIB, 5], 25 * MIB) == (1200 * kib, 26 * MIB, 5)
    assert buckets([10, 20], 25 * MIB) == (30,)
    (score,) = (buckets(sizes, 25 * MIB) for sizes in parameter_bytes(WORKLOADS["diffusion"]))
    assert sum(score) == 4_096_952 and len(score) == 2  # torch 2.13 reports 1067960 and 3028992 for this network


def test_the_slowest_of_many_ranks() -> None:
    """Mean of the largest of n standard normal numbers: closed forms for 2 and 3, a simulation for 64."""
    assert largest_normal(1) == 0
    assert largest_normal(2) == pytest.approx(1 / math.sqrt(math.pi), rel=1e-5)
    assert largest_normal(3) == pytest.approx(1.5 / math.sqrt(math.pi), rel=1e-5)
    largest = np.random.default_rng(0).standard_normal((20_000, 64)).max(axis=1)
    assert abs(largest.mean() - largest_normal(64)) < 5 * largest.std() / math.sqrt(len(largest))
    assert Compute(1.0, 0.0, 0.1).straggler_s(5, 2, 4) == pytest.approx(2 * 0.1 / math.sqrt(math.pi))
    row = forecast(10, 2, Compute(1.0, 0.0, 0.1), Exchange(((4,),), 0.0), Network(1, 1.0, 0.0, 1.0, 0.0))
    assert row.step_s == pytest.approx(1 + 0.1 / math.sqrt(math.pi) + 4)


def test_jitter_is_the_noise_of_steps_and_not_their_drift() -> None:
    noise = 1 + 0.05 * np.random.default_rng(0).standard_normal(20_000)
    assert jitter(noise) == pytest.approx(0.05, rel=0.05)
    assert jitter(np.linspace(1, 2, 1000)) < 1e-3 and jitter([1.0]) == 0


def test_the_fit_gives_back_what_made_the_times() -> None:
    x = [1, 16, 64, 256, 1024]
    fixed, item, residuals = fit_line(x, [3e-3 + 2e-5 * n for n in x])
    assert (fixed, item) == pytest.approx((3e-3, 2e-5)) and residuals == pytest.approx([0] * 5, abs=1e-9)
    fixed, item, residuals = fit_line(x, [1e-5 * n for n in x])
    assert fixed == pytest.approx(0, abs=1e-12) and item == pytest.approx(1e-5)
    _, _, residuals = fit_line([1, 2, 3], [1.0, 2.0, 6.0])  # not a line: the residuals say so, relative to what was measured
    assert max(map(abs, residuals)) > 0.1
    fixed, item, _ = fit_line([1, 2], [1.0, 9.0])
    assert fixed >= 0 and item > 0  # never a negative time for few items


def points(ranks: int, nodes: int, network: Network) -> Points:
    n_bytes = (4, 2**16, 2**20, 2**24)
    return Points(
        surrogate="diffusion", precision="float32", compile=False, device="cuda", device_name="x", batch_size=1024,
        items_per_rank=1024, ranks=ranks, nodes=nodes, items=(1, 2), step_s=(1.0, 2.0), jitter=0.0, strong_s=(1.0,),
        weak_s=(1.0,), all_reduce_bytes=n_bytes, all_reduce_s=tuple(network.all_reduce_s(n, ranks) for n in n_bytes),
    )  # fmt: skip


def test_the_network_is_read_from_measured_all_reduces() -> None:
    """Runs of one node and of two give back the links that made their times."""
    found = measured_network([points(4, 1, NETWORK), points(8, 2, NETWORK)])
    values = {name: value for name, (value, _, _) in found.items()}
    assert values == pytest.approx(
        {"gpus_per_node": 4, "intra_bandwidth_gb_s": 100, "intra_latency_us": 3, "bandwidth_gb_s": 10, "latency_us": 20},
        rel=1e-3,
    )
    assert (
        found["bandwidth_gb_s"][2] == "measured: scaling-8.json" and found["intra_latency_us"][2] == "measured: scaling-4.json"
    )
    assert measured_network([points(1, 1, NETWORK)]) == {}
