"""Tables of a campaign's report: break-even, costs, targets, and where the records come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_molgen.efficiency.cost_tables import COUNTING
from hpc_molgen.efficiency.costs import Prices
from hpc_molgen.efficiency.suites.campaign_folder import Campaign, RunReport
from hpc_molgen.efficiency.tables import Table, number, unbroken


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
    contests = [one for run in campaign.runs for one in campaign.guarded(run.name, "its break-even points", _contests, run)]
    scenarios = list(contests[0][1]) if contests else []
    rows = [[*first, *(stars.get(scenario, "-") for scenario in scenarios), last] for first, stars, last in contests]
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


def _contests(run: RunReport) -> Iterator[tuple[list[str], dict[str, str], str]]:
    """Yield, for each way of counting, the cells before n*, n* of every scenario, and the cell behind them."""
    contests = run.data.get("break_even") or {}
    for name in COUNTING:
        if name in contests:
            contest = contests[name]
            gain = contest["advantage_at_drawn"]
            yield (
                [run.name, COUNTING[name], number(contest["n_0"]), number(contest["effective_samples_drawn"])],
                {scenario: _star(star) for scenario, star in contest["n_star"].items()},
                unbroken(f"{number(gain['value'], 2)} [{number(gain['low'], 2)}, {number(gain['high'], 2)}]"),
            )


def _star(star: Mapping[str, Any] | None) -> str:
    if star is None or star["value"] is None:
        return str(star["words"]) if star else "-"
    ends = [f"{end:,.0f}" if end is not None else "never" for end in (star["low"], star["high"])]
    return unbroken(f"{star['words']} [{ends[0]}, {ends[1]}]")


@dataclass(frozen=True)
class CostLine:
    """What one stage of a record or of a run cost; None where that was not recorded.

    `alone`: whether it may be of this process alone, without those that it started, as in records of old versions.
    """

    source: str
    stage: str
    cpu_s: float
    wall_s: float
    gpu_h: float | None
    joules: float | None
    load: float | None
    alone: bool = False


def cost_lines(campaign: Campaign) -> Iterator[CostLine]:
    """Yield the costs of every stage of every record and run."""
    for name, record in campaign.records.items():
        yield from campaign.guarded(name, "its costs", _costs_of_record, name, record)
    for run in campaign.runs:
        yield from campaign.guarded(run.name, "its costs", _costs_of_run, run)


def _costs_of_record(name: str, record: Mapping[str, Any]) -> Iterator[CostLine]:
    gpus = record["provenance"]["gpus"]
    for cost in record["costs"]:
        gpu_h = cost.get("gpu_h")
        gpu_h = 0.0 if gpu_h is None and not gpus else gpu_h
        spent, load = (float(cost["cpu_s"]), float(cost["wall_s"])), cost["load_average_1min"]
        yield CostLine(name, cost["stage"], *spent, gpu_h, cost.get("joules"), load, cost.get("core_h") is None)


def _costs_of_run(run: RunReport) -> Iterator[CostLine]:
    of_stages = (run.data.get("provenance") or {}).get("stages") or {}
    for cost in (run.data.get("costs") or {}).get("stages") or []:
        load = next(iter((of_stages.get(cost["stage"]) or {}).get("load_average") or []), None)
        gpu_h, joules, load = (None if one is None else float(one) for one in (cost.get("gpu_h"), cost.get("joules"), load))
        yield CostLine(run.name, str(cost["stage"]), float(cost["cpu_s"]), float(cost["wall_s"]), gpu_h, joules, load)


def counted_once(lines: Sequence[CostLine]) -> list[CostLine]:
    """Return all lines but those that another record before has too: a training, say, that two suites share.

    Such lines have the same times to the last digit; "our GAN, seed 1: train" of one is "seed 1: train" of the other.
    """
    first: dict[tuple[str, float, float], str] = {}
    keys = [(line.stage.rpartition(": ")[2], line.cpu_s, line.wall_s) for line in lines]
    return [line for line, key in zip(lines, keys, strict=True) if first.setdefault(key, line.source) == line.source]


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
    counted = counted_once(lines)
    totals.append(["all", *_cells(counted, prices, with_joules)])
    return [
        Table("Costs of every record and run", ("record", *columns), totals, _cost_note(lines, counted, prices)),
        Table(
            "Costs of every stage", ("record", "stage", *columns, "load average at the end"), stages,
            "Load average: of one minute, of the whole machine.", (0, 1),
        ),
    ]  # fmt: skip


def _cost_note(lines: Sequence[CostLine], counted: Sequence[CostLine], prices: Prices) -> str:
    sentences = []
    if again := len(lines) - len(counted):
        sentences.append(
            f"'all' counts once what two records share: {again} {'stages have' if again > 1 else 'stage has'} the name (behind "
            "its last colon), the CPU seconds and the wall seconds of a stage of another record."
        )
    if any(line.alone for line in lines):
        sentences.append(
            "CPU seconds are those that the records hold: of a stage 'of this process' those of programs it started are "
            "missing."
        )
    if all(line.joules is None for line in lines):
        sentences.append("Joules: no counter could be read.")
    if prices.known:
        sentences.append(prices.words(sum(line.gpu_h or 0.0 for line in counted)))
    return " ".join(sentences)


def _cells(lines: Sequence[CostLine], prices: Prices, with_joules: bool) -> list[str]:
    cpu_s, wall_s = (sum(getattr(line, name) for line in lines) for name in ("cpu_s", "wall_s"))
    gpu_h, joules = ([getattr(line, name) for line in lines] for name in ("gpu_h", "joules"))
    cells = [number(cpu_s), number(cpu_s / 3600), number(wall_s), number(_sum(gpu_h))]
    cells += [number(_sum(joules))] if with_joules else []
    return cells + ([number(prices.money(cpu_s, _sum(gpu_h) or 0.0))] if prices.known else [])


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


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
    rows = [row for run in campaign.runs for row in campaign.guarded(run.name, "its checks", _gate, run)]
    columns = ("run", "verdict", "checks passed", "not passed")
    return Table("Reports of runs", columns, rows, "", (0, 1, 3)) if rows else None


def _gate(run: RunReport) -> Iterator[list[str]]:
    verdict = run.data["verdict"]
    checks = verdict.get("checks") or []
    passed = sum(bool(check["passed"]) for check in checks)
    yield [run.name, str(verdict.get("headline", "")), f"{passed} of {len(checks)}", "; ".join(verdict.get("reasons") or [])]


def origins(campaign: Campaign) -> Table:
    """Where, when and by which command each record was made."""
    what, rows = "where it comes from", list[list[str]]()
    for name, record in campaign.records.items():
        rows += campaign.guarded(name, what, _origin_of_record, name, record)
    kinds = {record["provenance"]["cpu"] for record in campaign.records.values()}
    for run in campaign.runs:
        for cpu, row in campaign.guarded(run.name, what, _origin_of_run, run):
            kinds.add(cpu)
            rows.append(row)
    note = f"{len(kinds)} kinds of processors: compare ratios inside a record, not seconds of two." if len(kinds) > 1 else ""
    columns = ("record", "made (UTC)", "hardware", "load average", "commit", "command")
    return Table("Records", columns, rows, note, (0, 1, 2, 4, 5))


def _origin_of_record(name: str, record: Mapping[str, Any]) -> Iterator[list[str]]:
    origin = record["provenance"]
    hardware = f"{origin['cpu']}, {origin['cores']} cores" + (f", {', '.join(origin['gpus'])}" if origin["gpus"] else "")
    load = (record.get("load") or {}).get("load_average_1min", {}).get("mean", origin["load_average"][0])
    yield [name, record["date_utc"], hardware, number(load, 2), origin["git_commit"] or "-", record["command"]]


def _origin_of_run(run: RunReport) -> Iterator[tuple[str, list[str]]]:
    """Yield the processor and the line of a run; nothing where its report, of an older version, does not hold them."""
    found = run.data.get("provenance") or {}
    origin = next(iter((found.get("stages") or {"report": found}).values()))
    if "cpu" in origin:
        hardware = f"{origin['cpu']}, {origin['cores']} cores" if "cores" in origin else str(origin["cpu"])
        load = number(next(iter(origin.get("load_average") or []), None), 2)
        words = "report of a run: its configuration is there"
        yield str(origin["cpu"]), [run.name, "-", hardware, load, str(origin.get("git_commit") or "-"), words]
