"""Tables of a campaign's report: break-even, costs, weights, targets, and where the records come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_molgen.efficiency.cost_tables import COUNTING
from hpc_molgen.efficiency.costs import Prices
from hpc_molgen.efficiency.suites.campaign_folder import Campaign
from hpc_molgen.efficiency.tables import Table, number, share, unbroken
from hpc_molgen.reweighting import K_HAT_LIMIT


def measured_text(value: Any) -> str:
    """Write what a target measured: a number, a repeated measurement, words, or several of them."""
    if value is None:
        return "-"
    if isinstance(value, dict) and "mean" in value:
        return number(value["mean"]) + (f" ± {number(value['sd'], 2)}" if value.get("n", 1) > 1 else "")
    if isinstance(value, list):
        return " / ".join(map(measured_text, value))
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def break_even(campaign: Campaign) -> Table | None:
    """Return break-even numbers of all runs that have passed their gate, under all scenarios; None without one."""
    rows, scenarios = [], list[str]()
    for run in campaign.runs:
        contests = run.data.get("break_even") or {}
        for name in COUNTING:
            if name not in contests:
                continue
            contest = contests[name]
            scenarios = scenarios or list(contest["n_star"])
            gain = contest["advantage_at_drawn"]
            rows.append([
                run.name, COUNTING[name], number(contest["n_0"]), number(contest["effective_samples_drawn"]),
                *(_star(contest["n_star"].get(scenario)) for scenario in scenarios),
                unbroken(f"{number(gain['value'], 2)} [{number(gain['low'], 2)}, {number(gain['high'], 2)}]"),
            ])  # fmt: skip
    if not rows:
        return None
    columns = (
        "run",
        "effective samples counted by",
        "n₀",
        "drawn",
        *(f"n*, {name}" for name in scenarios),
        "MD / surrogate at drawn",
    )
    note = (
        "n*: effective samples from which on the surrogate is cheaper than the best MD, 95 % interval; n₀: what the training "
        "data themselves hold. Data paid: reference data, training and validation; data there: training alone; energies alone: "
        "no reference data; amortised: shared by ten temperatures or molecules (assumed). One training each: its seed is in no "
        "interval."
    )
    return Table("Break-even n* / effective samples", columns, rows, note, (0, 1))


def _star(star: Mapping[str, Any] | None) -> str:
    if star is None or star["value"] is None:
        return str(star["words"]) if star else "-"
    ends = [f"{end:,.0f}" if end is not None else "never" for end in (star["low"], star["high"])]
    return unbroken(f"{star['words']} [{ends[0]}, {ends[1]}]")


@dataclass(frozen=True)
class CostLine:
    """What one stage of a record or of a run cost; None where that was not recorded."""

    source: str
    stage: str
    cpu_s: float
    wall_s: float
    gpu_h: float | None
    joules: float | None
    load: float | None


def cost_lines(campaign: Campaign) -> Iterator[CostLine]:
    """Yield the costs of every stage of every record and run."""
    for name, record in campaign.records.items():
        gpus = record["provenance"]["gpus"]
        for cost in record["costs"]:
            gpu_h = cost.get("gpu_h")
            gpu_h = 0.0 if gpu_h is None and not gpus else gpu_h
            yield CostLine(
                name, cost["stage"], cost["cpu_s"], cost["wall_s"], gpu_h, cost.get("joules"), cost["load_average_1min"]
            )
    for run in campaign.runs:
        origin = run.data.get("provenance") or {}
        of_stages = origin.get("stages") or {}
        for cost in (run.data.get("costs") or {}).get("stages", []):
            load = (of_stages.get(cost["stage"]) or {}).get("load_average", [None])[0]
            yield CostLine(run.name, cost["stage"], cost["cpu_s"], cost["wall_s"], cost["gpu_h"], cost.get("joules"), load)


def costs(lines: Sequence[CostLine], prices: Prices) -> list[Table]:
    """Return what each record cost in all, and each stage of it."""
    with_joules = any(line.joules is not None for line in lines)
    columns = ["CPU s", "core hours", "wall s", "GPU hours", *(["joules"] if with_joules else [])]
    columns += ["money"] if prices.known else []
    totals, stages = [], []
    for source in dict.fromkeys(line.source for line in lines):
        own = [line for line in lines if line.source == source]
        totals.append([source, *_cells(own, prices, with_joules)])
        stages += [[source, line.stage, *_cells([line], prices, with_joules), number(line.load, 2)] for line in own]
    totals.append(["all", *_cells(lines, prices, with_joules)])
    note = "CPU seconds are those that the records hold: of a stage 'of this process' those of programs it started are missing."
    if not with_joules:
        note += " Joules: no counter could be read."
    if prices.known:
        note += f" {prices.words(sum(line.gpu_h or 0.0 for line in lines))}"
    return [
        Table("Costs of every record and run", ("record", *columns), totals, note),
        Table(
            "Costs of every stage", ("record", "stage", *columns, "load average at the end"), stages,
            "Load average: of one minute, of the whole machine.", (0, 1),
        ),
    ]  # fmt: skip


def _cells(lines: Sequence[CostLine], prices: Prices, with_joules: bool) -> list[str]:
    cpu_s, wall_s = (sum(getattr(line, name) for line in lines) for name in ("cpu_s", "wall_s"))
    gpu_h, joules = ([getattr(line, name) for line in lines] for name in ("gpu_h", "joules"))
    cells = [number(cpu_s), number(cpu_s / 3600), number(wall_s), number(_sum(gpu_h))]
    cells += [number(_sum(joules))] if with_joules else []
    return cells + ([number(prices.money(cpu_s, _sum(gpu_h) or 0.0))] if prices.known else [])


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


@dataclass(frozen=True)
class Weights:
    """Diagnostics of the weights of one surrogate, of one or more seeds."""

    source: str
    what: str
    seeds: tuple[Mapping[str, Any], ...]


_PASSED_OVER = ("results", "series", "facts", "seeds", "weights", "points", "processes")


def weights(campaign: Campaign) -> list[Weights]:
    """Return every set of weights that records and runs hold: wherever an ESS stands beside a k-hat."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in campaign.runs:
        own = run.data.get("weights") or {}
        if own.get("weighted"):
            forward = ((run.data.get("coverage") or {}).get("density") or {}).get("forward_ess")
            found[run.name, str(own.get("target", ""))] = [own.get("importance", own) | {"forward_ess": forward}]
    for name, record in campaign.records.items():
        for path, values in _with_weights(record.get("results"), ()):
            found.setdefault((name, ", ".join(path)), []).append(values)
    return [Weights(source, what, tuple(values)) for (source, what), values in found.items()]


def _with_weights(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    if isinstance(value, dict):
        if {"ess_fraction", "k_hat"} <= value.keys():
            yield path, value
            return
        named = (str(value["name"]),) if isinstance(value.get("name"), str) else ()
        for key, inner in value.items():
            own = () if key in _PASSED_OVER else (key,)
            yield from _with_weights(inner, (*(path[:-1] if named and path else path), *named, *own))
    elif isinstance(value, list):
        for item in value:
            yield from _with_weights(item, (*path, *_names_of(item)))


def _names_of(item: Any) -> tuple[str, ...]:
    """Return what tells one item of a list from others, but for its seed."""
    if not isinstance(item, dict):
        return ()
    if isinstance(item.get("molecule"), dict):
        return (str(item["molecule"].get("name", "")),)
    words = {"kind": "{}", "n_steps": "{} steps", "variance": "variance {}", "temperature_kelvin": "{} K"}
    return tuple(text.format(item[key]) for key, text in words.items() if isinstance(item.get(key), str | int | float))


def weights_table(found: Sequence[Weights]) -> Table:
    """One line for each surrogate; of several seeds the smallest and the largest figure."""
    rows = []
    for one in found:
        k_hats = [seed["k_hat"] for seed in one.seeds if seed["k_hat"] is not None]
        certified = [bool(seed.get("certified", (seed["k_hat"] or np.inf) <= K_HAT_LIMIT)) for seed in one.seeds]
        forward = [_value(seed.get("forward_ess")) for seed in one.seeds]
        n = [seed.get("n", seed.get("n_samples")) for seed in one.seeds]
        rows.append([
            one.source, one.what, str(len(one.seeds)), _range([v for v in n if v is not None], lambda v: f"{v:,.0f}"),
            _range([seed["ess_fraction"] for seed in one.seeds], share),
            _range([v for seed in one.seeds if (v := seed.get("ess_clipped_fraction")) is not None], share),
            _range(k_hats, lambda v: number(v, 2)), _range([v for v in forward if v is not None], share),
            "yes" if all(certified) else f"{sum(certified)} of {len(certified)}" if any(certified) else "no",
        ])  # fmt: skip
    columns = ("record", "samples of", "seeds", "N", "ESS", "clipped", "k-hat", "forward ESS", "certified")
    note = (
        "ESS: Kish's, of unclipped weights, over N; clipped: the largest 1e-4 of the weights set to the largest that remains; "
        f"forward: on held-out MD. Certified: k-hat of at most {K_HAT_LIMIT:g}, and what the record asks besides (no mode that "
        "samples lack). Of several seeds the smallest and the largest figure."
    )
    return Table("Effective samples and Pareto k-hat", columns, rows, note, (0, 1))


def _value(estimate: Any) -> float | None:
    return estimate.get("value") if isinstance(estimate, dict) else estimate


def _range(values: Sequence[float], write: Any) -> str:
    if not values:
        return "-"
    low, high = (str(write(end)) for end in (min(values), max(values)))
    return unbroken(low if low == high else f"{low.removesuffix(' %')} to {high}")


def targets(campaign: Campaign) -> tuple[str, Table | None]:
    """Return how many targets all records have reached, in words, and those missed."""
    listed = [(name, record["suite"], target) for name, record in campaign.records.items() for target in record["targets"]]
    missed = [
        [name, suite, target["name"], target["target"], measured_text(target["measured"])]
        for name, suite, target in listed
        if not target["reached"]
    ]
    having = len({name for name, _, _ in listed})
    text = f"{len(listed) - len(missed)} of {len(listed)} targets of {having} records were reached."
    columns = ("record", "suite", "figure", "target", "measured")
    return text, Table("Targets missed", columns, missed, "", (0, 1, 2, 3)) if missed else None


def gates(campaign: Campaign) -> Table | None:
    """Return the verdict of every run's report."""
    rows = []
    for run in campaign.runs:
        verdict = run.data["verdict"]
        checks = verdict.get("checks") or []
        passed = sum(bool(check["passed"]) for check in checks)
        rows.append(
            [run.name, str(verdict.get("headline", "")), f"{passed} of {len(checks)}", "; ".join(verdict.get("reasons") or [])]
        )
    columns = ("run", "verdict", "checks passed", "not passed")
    return Table("Reports of runs", columns, rows, "", (0, 1, 3)) if rows else None


def origins(campaign: Campaign) -> Table:
    """Where, when and by which command each record was made."""
    rows = []
    for name, record in campaign.records.items():
        origin = record["provenance"]
        hardware = f"{origin['cpu']}, {origin['cores']} cores" + (f", {', '.join(origin['gpus'])}" if origin["gpus"] else "")
        load = (record.get("load") or {}).get("load_average_1min", {}).get("mean", origin["load_average"][0])
        rows.append([name, record["date_utc"], hardware, number(load, 2), origin["git_commit"] or "-", record["command"]])
    kinds = {record["provenance"]["cpu"] for record in campaign.records.values()}
    for run in campaign.runs:
        found = run.data.get("provenance") or {}
        origin = next(iter((found.get("stages") or {"report": found}).values()))
        if "cpu" in origin:
            kinds.add(origin["cpu"])
            hardware = f"{origin['cpu']}, {origin['cores']} cores"
            load = number(origin["load_average"][0], 2)
            rows.append(
                [run.name, "-", hardware, load, origin["git_commit"] or "-", "report of a run: its configuration is there"]
            )
    note = f"{len(kinds)} kinds of processors: compare ratios inside a record, not seconds of two." if len(kinds) > 1 else ""
    columns = ("record", "made (UTC)", "hardware", "load average", "commit", "command")
    return Table("Records", columns, rows, note, (0, 1, 2, 4, 5))
