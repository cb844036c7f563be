"""The model against the one cluster that every machine is: two gloo processes on two cores."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.efficiency.suites.scaling_inputs import make_exchange
from hpc_molgen.efficiency.suites.scaling_measure import Effort, fit_items
from hpc_molgen.efficiency.suites.scaling_model import Compute, Network, fit_line, forecast, jitter
from hpc_molgen.efficiency.suites.training_processes import AllReduce, Pair, Steps, Timing, pair_of_processes
from hpc_molgen.efficiency.suites.training_workloads import Workload


def check_two_processes(workload: Workload, effort: Effort, seed: int) -> dict[str, Any]:
    """Predict two processes that share a batch from one process and from all-reduces alone, and measure them.

    All of it in rounds. The prediction is made from the steps of one process while the other core idles ("idle"), and of
    two processes that do not know of each other ("busy"), as on a node of which all cores train.

    Returns
    -------
    dict
        "idle", "busy": the fit and the predicted milliseconds of a step; "measured_ms"; "one_ms", the step of one process
        with the whole batch; the fit of the all-reduce.
    """
    items = fit_items(workload.batch_size, effort.fractions)
    items = sorted({*items, -(-workload.batch_size // 2)})
    with pair_of_processes(seed) as pair:
        idle, busy, together, reduces = _measure(pair, workload, items, effort)
    latency_s, byte_s, residuals = fit_line(effort.reduce_bytes, [statistics.median(reduces[n]) for n in effort.reduce_bytes])
    exchange = make_exchange(workload, bucket_mib=25.0, backward_share=0.0)
    network = Network(2, 1 / max(byte_s, 1e-15), latency_s / 2, 1.0, 0.0)  # of two ranks: bytes / bandwidth + 2 latencies
    found: dict[str, Any] = {
        "measured_ms": spread(1e3 * seconds for seconds in together),
        "one_ms": spread(1e3 * timing.mean_s for timing in idle[workload.batch_size]),
        "all_reduce": {"latency_us": 1e6 * latency_s, "gb_s": 1e-9 / max(byte_s, 1e-15), "residuals": residuals},
    }
    for name, timings in (("idle", idle), ("busy", busy)):
        step_s = [statistics.median(timing.mean_s for timing in timings[n]) for n in items]
        fixed_s, item_s, off = fit_line(items, step_s)
        noise = statistics.median(jitter(timing.seconds) for timing in timings[items[-1]])
        row = forecast(workload.batch_size, 2, Compute(fixed_s, item_s, noise), exchange, network)
        found[name] = {
            "step_ms": [1e3 * seconds for seconds in step_s],
            "fixed_ms": 1e3 * fixed_s,
            "item_us": 1e6 * item_s,
            "residuals": off,
            "jitter": noise,
            "compute_ms": 1e3 * row.compute_s,
            "straggler_ms": 1e3 * row.straggler_s,
            "exchange_ms": 1e3 * row.exposed_s,
            "predicted_ms": 1e3 * row.step_s,
            "predicted_over_measured": spread(row.step_s / seconds for seconds in together),
        }
    return {"items": items, **found, "cpu_s": pair.cpu_s}


Timings = dict[int, list[Timing]]


def _measure(
    pair: Pair, workload: Workload, items: list[int], effort: Effort
) -> tuple[Timings, Timings, list[float], dict[int, list[float]]]:
    """Steps of one process, of two strangers, of two that share a batch (seconds of the slower), and all-reduces."""
    idle: Timings = {n: [] for n in items}
    busy: Timings = {n: [] for n in items}
    together: list[float] = []
    reduces: dict[int, list[float]] = {n: [] for n in effort.reduce_bytes}
    step_s = {n: pair.together(Steps(workload, n, 1))[0].mean_s for n in items}
    pair.together(Steps(workload, workload.batch_size, 1, exchange=True))

    def order(n: int, *, exchange: bool = False) -> Steps:
        length = step_s[-(-n // 2) if exchange else n]
        return Steps(workload, n, max(2, int(effort.measure_s / length)), exchange)

    def share() -> None:
        answers = pair.together(order(workload.batch_size, exchange=True))
        together.append(max(timing.mean_s for timing in answers))

    for number in range(effort.n_rounds):
        turns: list[Callable[[], object]] = [share]
        for n in items:
            turns += [
                lambda n=n, which=number % 2: idle[n].append(pair.alone(which, order(n))),  # type: ignore[misc]
                lambda n=n: busy[n].extend(pair.together(order(n))),  # type: ignore[misc]
            ]
        for turn in turns if number % 2 == 0 else reversed(turns):
            turn()
        for n in effort.reduce_bytes:
            answers = pair.together(AllReduce((n,), effort.reduce_repeats))
            reduces[n].append(max(statistics.median(timing.seconds) for timing in answers))
    return idle, busy, together, reduces
