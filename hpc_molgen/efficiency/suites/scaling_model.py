"""What a training step costs on N ranks: computing, waiting for the slowest rank, exchanging gradients.

    step = a + b n + straggler(N) + what of the all-reduce does not fit behind the backward pass

n are the items of the rank that has most. The exchange follows the alpha-beta model of Thakur, Rabenseifner and Gropp 2005
(doi 10.1177/1094342005051521): a message of s bytes takes alpha + s / B. A ring takes 2 (p - 1) of them with s / p bytes each,
which moves the least data that is possible (Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002); trees take
2 log2(p) latencies and move 2 s bytes. Between nodes the faster one counts, as NCCL chooses by such a formula itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIB = 2**20
FIRST_BUCKET_BYTES = MIB  # DDP's first bucket is smaller, so that sending starts early


@dataclass(frozen=True)
class Network:
    """Links inside a node and between nodes.

    Parameters
    ----------
    ranks_per_node : int
    intra_bandwidth, bandwidth : float
        Bytes a second, each way: of a rank inside its node; of a whole node to the others.
    intra_latency_s, latency_s : float
        Of one message, inside a node and between nodes.
    """

    ranks_per_node: int
    intra_bandwidth: float
    intra_latency_s: float
    bandwidth: float
    latency_s: float

    def nodes(self, n_ranks: int) -> int:
        """Return how many nodes that many ranks fill."""
        return math.ceil(n_ranks / self.ranks_per_node)

    def all_reduce_s(self, n_bytes: float, n_ranks: int) -> float:
        """Seconds of an all-reduce: reduce-scatter inside each node, all-reduce between nodes, all-gather inside."""
        inside, nodes = min(n_ranks, self.ranks_per_node), self.nodes(n_ranks)
        seconds = _ring_s(n_bytes, inside, self.intra_bandwidth, self.intra_latency_s)
        if nodes > 1:
            tree = 2 * n_bytes / self.bandwidth + 2 * math.log2(nodes) * self.latency_s
            seconds += min(_ring_s(n_bytes, nodes, self.bandwidth, self.latency_s), tree)
        return seconds


def _ring_s(n_bytes: float, n: int, bandwidth: float, latency_s: float) -> float:
    return 2 * (n - 1) / n * n_bytes / bandwidth + 2 * (n - 1) * latency_s


@dataclass(frozen=True)
class Compute:
    """Time of a step on one rank, without exchange.

    Parameters
    ----------
    fixed_s, item_s : float
        a and b of a + b n.
    jitter : float
        Standard deviation of a step's time over its mean, from step to step and from rank to rank.
    """

    fixed_s: float
    item_s: float
    jitter: float = 0.0

    def step_s(self, n_items: float) -> float:
        """Seconds of a step on `n_items`."""
        return self.fixed_s + self.item_s * n_items

    def straggler_s(self, n_items: float, n_ranks: int, n_exchanges: int = 1) -> float:
        """How much longer than its own work a rank needs on average because every exchange waits for the slowest rank.

        Times between exchanges are taken as normal and independent. Petrini, Kerbyson and Pakin 2003 (SC, doi
        10.1145/1048935.1050204) show how such noise limits large machines.
        """
        return self.jitter * self.step_s(n_items) * math.sqrt(n_exchanges) * largest_normal(n_ranks)


@dataclass(frozen=True)
class Exchange:
    """What DDP sends in a step.

    Parameters
    ----------
    updates : tuple of tuple of int
        For each update of a part, the bytes of its buckets in the order in which they are sent.
    backward_share : float
        Share of the computing behind which buckets can travel: the backward pass on a GPU, nothing where the same cores
        compute and send.
    """

    updates: tuple[tuple[int, ...], ...]
    backward_share: float

    @property
    def n_bytes(self) -> int:
        """Bytes of a step."""
        return sum(map(sum, self.updates))

    def all_reduce_s(self, network: Network, n_ranks: int) -> float:
        """Seconds of all exchanges of a step, one after the other."""
        return sum(network.all_reduce_s(n_bytes, n_ranks) for update in self.updates for n_bytes in update)

    def exposed_s(self, compute_s: float, network: Network, n_ranks: int) -> float:
        """Seconds of the exchange that no computing hides (Li et al. 2020, VLDB, arXiv 2006.15704).

        A bucket leaves once its gradients are there, and buckets travel one after the other. Gradients are assumed to
        arrive evenly, by bytes, over the backward pass, so the last bucket is never hidden. All updates of a step are
        taken to compute equally long.
        """
        backward_s = self.backward_share * compute_s / len(self.updates)
        total = 0.0
        for buckets in self.updates:
            done = sent = 0.0
            for n_bytes in buckets:
                sent += n_bytes
                done = max(done, backward_s * sent / sum(buckets)) + network.all_reduce_s(n_bytes, n_ranks)
            total += done - backward_s
        return total


@dataclass(frozen=True)
class Forecast:
    """One row: a step on `n_ranks` with `n_items` on the rank that has most of the global batch `batch_size`."""

    n_ranks: int
    nodes: int
    n_items: int
    batch_size: int
    compute_s: float
    straggler_s: float
    all_reduce_s: float
    exposed_s: float

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return self.compute_s + self.straggler_s + self.exposed_s

    @property
    def samples_per_s(self) -> float:
        """Items that all ranks train on in a second."""
        return self.batch_size / self.step_s

    def efficiency(self, one: Forecast) -> float:
        """Speed over that of one rank, per rank: `one` has the same batch (strong scaling) or the same items (weak)."""
        return self.samples_per_s / (self.n_ranks * one.samples_per_s)


def forecast(batch_size: int, n_ranks: int, compute: Compute, exchange: Exchange, network: Network) -> Forecast:
    """Expected step of a global batch on a number of ranks."""
    n_items = math.ceil(batch_size / n_ranks)
    compute_s = compute.step_s(n_items)
    straggler_s = compute.straggler_s(n_items, n_ranks, len(exchange.updates))
    all_reduce_s = exposed_s = 0.0
    if n_ranks > 1:
        all_reduce_s = exchange.all_reduce_s(network, n_ranks)
        exposed_s = exchange.exposed_s(compute_s, network, n_ranks)
    return Forecast(n_ranks, network.nodes(n_ranks), n_items, batch_size, compute_s, straggler_s, all_reduce_s, exposed_s)


def rank_numbers(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself."""
    powers = [2**k for k in range(most.bit_length()) if 2**k <= most]
    return sorted({*powers, most})


def buckets(parameter_bytes: Sequence[int], bucket_bytes: float) -> tuple[int, ...]:
    """Sizes of DDP's buckets for parameters in the order of the backward pass: one is full once it reaches its limit."""
    sizes, filled, limit = [], 0, float(FIRST_BUCKET_BYTES)
    for n_bytes in parameter_bytes:
        filled += n_bytes
        if filled >= limit:
            sizes.append(filled)
            filled, limit = 0, bucket_bytes
    return (*sizes, filled) if filled else tuple(sizes)


def largest_normal(n: int) -> float:
    """Mean of the largest of `n` independent standard normal numbers (0, 0.564, 0.846, ...; David and Nagaraja 2003)."""
    if n == 1:
        return 0.0
    from scipy.integrate import trapezoid
    from scipy.special import log_ndtr

    x = np.linspace(0, 10, 4001)
    above, below = -np.expm1(n * log_ndtr(x)), np.exp(n * log_ndtr(-x))
    return float(trapezoid(above - below, x))


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, list[float]]:
    """Fit a + b x with a, b >= 0 to positive y, by least squares of the relative error.

    Returns
    -------
    float, float, list of float
        a, b, and (fit - y) / y at each point.
    """
    from scipy.optimize import nnls

    x_values, y_values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    scale = max(float(np.abs(x_values).max()), 1e-300)  # columns of one size
    design = np.stack([np.ones_like(x_values), x_values / scale], axis=1) / y_values[:, None]
    (a, b), _ = nnls(design, np.ones_like(y_values))
    residuals = design @ np.array([a, b]) - 1
    return float(a), float(b / scale), [float(value) for value in residuals]


def jitter(seconds: Sequence[float]) -> float:
    """Standard deviation of successive times over their mean, without slow drift, which all ranks would share.

    Half the mean square of successive differences (von Neumann 1941, doi 10.1214/aoms/1177731677).
    """
    values = np.asarray(seconds, dtype=np.float64)
    if len(values) < 2:
        return 0.0
    return float(np.sqrt(0.5 * np.mean(np.diff(values) ** 2)) / values.mean())
