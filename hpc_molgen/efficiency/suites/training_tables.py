"""Targets, sentences and tables of the suite `training`."""

from __future__ import annotations

from typing import Any

from hpc_molgen.efficiency.suites.record import spread
from hpc_molgen.efficiency.suites.rounds import target

QUESTION = (
    "How many samples a second does training make, with how many processes and in which precision, what limits it, and after "
    "how long is a surrogate good?"
)
NOTES = [
    "Steps are the trainer's own: drawing, forward and backward passes, clipping, AdamW, averages; one thread of torch for "
    "each process, each pinned to its core. ± is the standard deviation over rounds; every figure is taken once a round.",
    "Two processes share the global batch that one has, and exchange gradients by DDP over gloo. 'Beside another' are "
    "two such processes that do not know of each other: what they reach together is the ceiling.",
    "Parts of a step of two processes: drawing is measured inside it; computing is a step of half the batch without exchange "
    "beside another process; the all-reduce is of tensors with the sizes of DDP's buckets, alone; waiting is by how much the "
    "slower of two strangers exceeds their mean; the rest is what remains (DDP's hooks and copies; below zero where parts "
    "overlap).",
    "In CPU seconds the ratio leaves out all waiting, for each other and for other programs on the machine: the difference to "
    "the ratio in wall seconds is what waiting costs.",
    "Utilisation: operations of matrix products and convolutions over what a large matrix product reaches on the same core in "
    "the same round.",
    "Time to a quality: surrogates of (phi, psi) learn from half of the copies of the suite's own molecular dynamics, on one "
    "thread. After a geometric series of steps, with the clock stopped, samples of the averaged surrogate are held against the "
    "other half: Jensen-Shannon divergence on 60 x 60 bins, over that of as many frames of the training half. The target "
    "counts as reached where it is kept to the end of the series. The dynamics, first calls and evaluations are in no time.",
]
PARTS = {
    "draw": "drawing the batch",
    "compute": "computing, without exchange",
    "all_reduce": "all-reduce alone",
    "wait": "waiting for the slower process",
    "rest": "rest",
}


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the ratios with what they have to reach."""
    return [
        target(f"two processes over one, samples/s (wall), {row['words']}", ">= 1.6", row["ratio"], row["ratio"]["mean"])
        for row in results.values()
        if "ratio" in row
    ]


def answer(results: dict[str, Any]) -> list[str]:
    """Sentences that answer the question."""
    sentences = []
    for row in results.values():
        words = f"{row['words'][0].upper()}{row['words'][1:]}"
        text = f"{words}: one process trains on {row['one_per_s']['mean']:,.0f} {row['items']} a second"
        if "ratio" not in row:
            sentences.append(f"{text}.")
            continue
        factors = {name: _plus_minus(factor) for name, factor in row["factors"].items()}
        sentences.append(
            f"{text}, two on {row['two_per_s']['mean']:,.0f}: {_plus_minus(row['ratio'])} times as many. "
            f"That is {factors['halving']} from halving the batch of each, times {factors['sharing']} from sharing memory and "
            f"clock, times {factors['exchange']} from exchanging gradients and waiting. "
            f"Two processes that do not know of each other reach {_plus_minus(row['ceiling_half'])}."
        )
        share = 100 * row["parts_share"]["compute"]["mean"]
        lost = {name: part["mean"] for name, part in row["parts_share"].items() if name != "compute"}
        most = max(lost, key=lambda name: lost[name])
        sentences.append(
            f"{words}: of a step of two processes {share:.0f} % is computing; the largest other part is {PARTS[most]} "
            f"({100 * lost[most]:.0f} %)."
        )
    return sentences


def _plus_minus(value: dict[str, Any]) -> str:
    return f"{value['mean']:.2f} ± {value['sd']:.2f}"


def tables(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every table of the processes."""
    columns = ["", "processes", "samples/s", "step (ms)", "over one process", "utilisation", "waiting for data"]
    rows: list[list[Any]] = []
    for row in results.values():
        rows.append([row["words"], 1, row["one_per_s"], row["one_ms"], None, row["one_utilisation"], row["one_wait_share"]])
        if "ratio" in row:
            two = [row["two_per_s"], row["two_ms"], row["ratio"], row["two_utilisation"], row["two_wait_share"]]
            rows.append([row["words"], 2, *two])
    listed = [{"caption": "Training on CPU cores, float32", "columns": columns, "rows": rows}]
    compared = [row for row in results.values() if "ratio" in row]
    if compared:
        listed += [_factors(compared), _parts(compared)]
    return listed


def _factors(compared: list[dict[str, Any]]) -> dict[str, Any]:
    words = {"halving": "halving the batch", "sharing": "sharing memory and clock", "exchange": "exchange and waiting"}
    rows = [[text, *(row["factors"][name] for row in compared)] for name, text in words.items()]
    rows.append(["product: two processes over one", *(row["ratio"] for row in compared)])
    rows.append(["the same in CPU seconds", *(row["ratio_cpu"] for row in compared)])
    rows.append(["ceiling: two strangers with half the batch each", *(row["ceiling_half"] for row in compared)])
    rows.append(["ceiling: two strangers with the whole batch each", *(row["ceiling_whole"] for row in compared)])
    columns = ["factor", *(row["words"] for row in compared)]
    return {"caption": "From one process to two", "columns": columns, "rows": rows}


def _parts(compared: list[dict[str, Any]]) -> dict[str, Any]:
    columns = ["part"]
    for row in compared:
        columns += [f"{row['words']} (ms)", "share"]
    rows: list[list[Any]] = []
    for name, text in PARTS.items():
        line: list[Any] = [text]
        for row in compared:
            line += [row["parts_ms"][name], row["parts_share"][name]]
        rows.append(line)
    line = ["the step"]
    for row in compared:
        line += [row["two_ms"], None]
    caption = "A step of two processes; " + ", ".join(
        f"{row['words']}: {row['gradient_bytes'] / 1e6:.3g} MB in {row['exchanges']} all-reduces" for row in compared
    )
    return {"caption": caption, "columns": columns, "rows": [*rows, line]}


def quality_answer(quality: dict[str, Any]) -> list[str]:
    """One sentence for each surrogate that was trained to a quality."""
    limit, sentences = quality["reference"]["limit"], []
    for row in quality["time_to_quality"].values():
        words, n_missed = f"{row['words'][0].upper()}{row['words'][1:]}", row["n_missed"]
        if n_missed:
            last, which = (
                row["curve"][0][-1]["step"],
                "no seed was" if n_missed == row["n_seeds"] else f"{n_missed} seed(s) of ",
            )
            which += "" if n_missed == row["n_seeds"] else f"{row['n_seeds']} were not"
            sentences.append(f"{words}: {which} within {limit:g} times the noise floor after {last:,} steps; no time is given.")
            continue
        cpu, wall, steps = row["cpu_s"], row["wall_s"], row["steps"]
        sentences.append(
            f"{words}: within {limit:g} times the noise floor after {cpu['mean']:.3g} ± {cpu['sd']:.2g} CPU s of training "
            f"({wall['mean']:.3g} ± {wall['sd']:.2g} s, {steps['mean']:,.0f} steps; {row['n_seeds']} seeds)."
        )
    return sentences


def quality_tables(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """The way to the target of each surrogate, over its seeds."""
    listed, n = [], quality["reference"]["n_samples"]
    for row in quality["time_to_quality"].values():
        rows = [
            [int(points[0]["step"]), *(spread(point[key] for point in points) for key in ("cpu_s", "wall_s", "over_floor"))]
            for points in zip(*row["curve"], strict=True)
        ]
        listed.append({
            "caption": f"Training to a quality: {row['words']}, {n:,} samples, {row['n_seeds']} seeds",
            "columns": ["steps", "CPU s", "wall s", "divergence over the noise floor"], "rows": rows,
        })  # fmt: skip
    return listed


def gpu_tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One table for each workload of `training_on_gpu`."""
    listed = []
    for words in dict.fromkeys(row["words"] for row in rows):
        columns = [
            "batch", "method", "samples/s", "step (ms)", "over eager float32", "utilisation (MFU)", "waiting for data",
            "device busy", "peak memory (MiB)",
        ]  # fmt: skip
        lines = [
            [
                row["batch_size"], row["method"], row["per_wall_s"], row["step_ms"], row["ratio_wall"], row["utilisation"],
                row["wait_share"], row["busy_share"], row["memory_mib"],
            ]
            for row in rows
            if row["words"] == words
        ]  # fmt: skip
        devices = ", ".join(dict.fromkeys(row["device_name"] for row in rows))
        listed.append({"caption": f"On a GPU ({devices}): {words}", "columns": columns, "rows": lines})
    return listed
