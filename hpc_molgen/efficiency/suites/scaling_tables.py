"""Sentences and tables of the suite `scaling`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.efficiency.suites.scaling_inputs import Input, Points
from hpc_molgen.efficiency.suites.scaling_model import Compute, Exchange, Forecast, fit_line

QUESTION = "How does training scale: how many samples a second, at which efficiency, on how many ranks?"
MODEL_NOTES = [
    "Modelled: a step takes a + b items, plus the wait for the slowest rank (normal times), plus what of the all-reduce does "
    "not fit behind the backward pass. All-reduce: rings inside nodes, ring or tree between nodes, whichever is faster; "
    "latency and bandwidth of each message (Thakur et al. 2005, Patarasuk and Yuan 2009; overlap of buckets: Li et al. 2020).",
    "Not in the model: other jobs on the network, slower clocks of full nodes unless measured there, reading of data, and the "
    "loss of quality that a larger batch can bring (weak scaling trains on more items a step).",
]
LABELS = {
    "gpus_per_node": "ranks a node",
    "bandwidth_gb_s": "bandwidth of a node",
    "intra_bandwidth_gb_s": "bandwidth inside a node",
    "latency_us": "latency between nodes",
    "intra_latency_us": "latency inside a node",
    "step_fixed_ms": "fixed part of a step",
    "step_item_us": "step, each item",
    "jitter": "jitter of a step (sd / mean)",
    "backward_share": "share of a step that hides the exchange",
}


def input_table(numbers: dict[str, Input]) -> dict[str, Any]:
    """Where every number of the model comes from; its key is what `--set` takes."""
    rows = [[LABELS[name], f"{name}={number.value:.4g}", number.unit, number.source] for name, number in numbers.items()]
    return {"caption": "What the model is told", "columns": ["", "--set", "unit", "source"], "rows": rows}


def fit_table(points: Points) -> dict[str, Any]:
    """Measured and fitted times of a step without exchange."""
    fixed, item, residuals = fit_line(points.items, points.step_s)
    rows = [
        [n, 1e3 * seconds, 1e3 * (fixed + item * n), f"{100 * residual:+.0f} %", n / seconds]
        for n, seconds, residual in zip(points.items, points.step_s, residuals, strict=True)
    ]
    caption = (
        f"Time of a step of one rank without exchange ({points.device_name}, {points.precision}): "
        f"{1e3 * fixed:.3g} ms + {1e6 * item:.3g} us for each item"
    )
    return {"caption": caption, "columns": ["items", "measured (ms)", "fit (ms)", "fit off by", "items/s"], "rows": rows}


def scaling_table(
    kind: str, caption: str, rows: Sequence[Forecast], one: Forecast, measured: Sequence[Points]
) -> dict[str, Any]:
    """One line for each number of ranks; `measured` are the runs with the same items."""
    runs = {run.ranks: seconds for run in measured if (seconds := getattr(run, f"{kind}_s"))}
    columns = [
        "ranks", "nodes", "items a rank", "compute (ms)", "straggler (ms)", "all-reduce (ms)", "of it not hidden (ms)",
        "step (ms)", "samples/s", "efficiency",
    ]  # fmt: skip
    if runs:
        columns += ["measured samples/s", "measured efficiency", "measured over modelled"]
    lines = []
    for row in rows:
        line: list[Any] = [row.n_ranks, row.nodes, row.n_items, 1e3 * row.compute_s, 1e3 * row.straggler_s]
        line += [1e3 * row.all_reduce_s, 1e3 * row.exposed_s, 1e3 * row.step_s, row.samples_per_s]
        line.append(f"{100 * row.efficiency(one):.1f} %")
        if runs:
            line += _measured(runs, row, 1 if kind == "strong" else row.n_ranks)
        lines.append(line)
    return {"caption": caption, "columns": columns, "rows": lines}


def _measured(runs: dict[int, tuple[float, ...]], row: Forecast, growth: int) -> list[Any]:
    """Speed, efficiency and model of one run; its batch is `growth` times that of one rank."""
    if row.n_ranks not in runs:
        return [None, None, None]
    speed = spread(row.batch_size / seconds for seconds in runs[row.n_ranks])
    efficiency = None
    if 1 in runs:
        alone = spread(row.batch_size / growth / seconds for seconds in runs[1])
        efficiency = f"{100 * speed['mean'] / (row.n_ranks * alone['mean']):.1f} %"
    return [speed, efficiency, speed["mean"] / row.samples_per_s]


def plan_answer(strong: Sequence[Forecast], weak: Sequence[Forecast], compute: Compute, gpu: bool) -> list[str]:
    """Sentences that answer the question for a cluster."""
    word = "GPUs" if gpu else "ranks"
    one, first, last = strong[0], weak[0], weak[-1]
    largest = [row for row in strong if row.efficiency(one) >= 0.5][-1]
    fastest = max(strong, key=lambda row: row.samples_per_s)
    return [
        f"Strong scaling, {one.batch_size} items in all: efficiency stays above 50 % up to {largest.n_ranks} {word} "
        f"({largest.samples_per_s:,.0f} samples/s); most samples a second at {fastest.n_ranks} "
        f"({fastest.samples_per_s:,.0f}, {fastest.samples_per_s / one.samples_per_s:.1f} times one). "
        f"There most of what is lost goes into {_loss(fastest, compute.fixed_s)}.",
        f"Weak scaling, {first.batch_size} items each: {100 * last.efficiency(first):.0f} % at {last.n_ranks} {word} "
        f"({last.samples_per_s:,.0f} samples/s); most of what is lost goes into {_loss(last, 0.0)}.",
    ]


def _loss(row: Forecast, fixed_s: float) -> str:
    parts = {
        "the part of a step that does not shrink with its items": fixed_s,
        "waiting for the slowest rank": row.straggler_s,
        "the exchange of gradients": row.exposed_s,
    }
    name = max(parts, key=lambda part: parts[part])
    return f"{name} ({1e3 * parts[name]:.3g} of {1e3 * row.step_s:.3g} ms)"


def model_parts(compute: Compute, exchange: Exchange) -> dict[str, Any]:
    """The model's constants for the record."""
    return {
        "fixed_s": compute.fixed_s, "item_s": compute.item_s, "jitter": compute.jitter,
        "bucket_bytes": exchange.updates, "gradient_bytes": exchange.n_bytes, "backward_share": exchange.backward_share,
    }  # fmt: skip


def measured_answer(points: Points) -> list[str]:
    """Sentences about one run."""
    sentences = []
    words = {"strong": f"{points.batch_size} items in all", "weak": f"{points.items_per_rank} items each"}
    for kind, batch in (("strong", points.batch_size), ("weak", points.items_per_rank * points.ranks)):
        seconds = getattr(points, f"{kind}_s")
        if seconds:
            speed = spread(batch / value for value in seconds)
            sentences.append(
                f"{points.ranks} rank(s) on {points.nodes} node(s), {words[kind]}: {speed['mean']:,.0f} ± {speed['sd']:,.0f} "
                "samples/s."
            )
    if points.ranks > 1:
        fixed, per_byte, _ = fit_line(points.all_reduce_bytes, points.all_reduce_s)
        bus = 2 * (points.ranks - 1) / points.ranks / max(per_byte, 1e-15) / 1e9
        sentences.append(f"An all-reduce takes {1e6 * fixed:.3g} us and {bus:.3g} GB/s of each rank's link.")
    return sentences


def measured_tables(points: Points) -> list[dict[str, Any]]:
    """Tables of one run."""
    listed = [fit_table(points)]
    rows = []
    for kind, batch in (("strong", points.batch_size), ("weak", points.items_per_rank * points.ranks)):
        seconds = getattr(points, f"{kind}_s")
        if seconds:
            rows.append([kind, batch, spread(1e3 * value for value in seconds), spread(batch / value for value in seconds)])
    columns = ["scaling", "global batch", "step (ms)", "samples/s"]
    listed.append({"caption": f"Training on {points.ranks} rank(s)", "columns": columns, "rows": rows})
    if points.ranks > 1:
        share = 2 * (points.ranks - 1) / points.ranks
        figures = [[n, 1e6 * s, share * n / s / 1e9] for n, s in zip(points.all_reduce_bytes, points.all_reduce_s, strict=True)]
        columns = ["bytes", "time (us)", "2 (N - 1) / N x bytes / time (GB/s)"]
        listed.append({"caption": "All-reduce alone, slowest rank", "columns": columns, "rows": figures})
    return listed


def check_answer(check: dict[str, Any]) -> str:
    """Sentence that compares the model with two processes."""
    measured, busy, idle = check["measured_ms"], check["busy"], check["idle"]
    return (
        f"Two gloo processes: a step measured {measured['mean']:.1f} ± {measured['sd']:.1f} ms; the model says "
        f"{busy['predicted_ms']:.1f} ms from steps timed beside another process ({_off(busy)}), and "
        f"{idle['predicted_ms']:.1f} ms from steps timed beside an idle core ({_off(idle)})."
    )


def _off(prediction: dict[str, Any]) -> str:
    ratio = prediction["predicted_over_measured"]
    return f"{100 * (ratio['mean'] - 1):+.0f} ± {100 * ratio['sd']:.0f} %"


def check_table(check: dict[str, Any]) -> dict[str, Any]:
    """Prediction beside measurement."""
    columns = ["steps timed", "compute (ms)", "straggler (ms)", "exchange (ms)", "predicted (ms)", "predicted over measured"]
    rows = []
    for name, words in (("busy", "beside another process"), ("idle", "beside an idle core")):
        part = check[name]
        figures = [part[key] for key in ("compute_ms", "straggler_ms", "exchange_ms", "predicted_ms")]
        rows.append([words, *figures, part["predicted_over_measured"]])
    rows.append(["measured", None, None, None, check["measured_ms"], None])
    reduce = check["all_reduce"]
    caption = (
        f"The model checked: two gloo processes on two cores share {check['items'][-1]} items; an all-reduce between them "
        f"takes {reduce['latency_us']:.0f} us + bytes / ({reduce['gb_s']:.2g} GB/s)"
    )
    return {"caption": caption, "columns": columns, "rows": rows}
