"""What a run of a surrogate of trajectories cost: the section of its report, and the same as data."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hpc_molgen.efficiency.costs import Prices, StageCost, stage_cost
from hpc_molgen.efficiency.document import Section
from hpc_molgen.efficiency.series_findings import GENERATED, SeriesFindings
from hpc_molgen.efficiency.series_verdict import score
from hpc_molgen.efficiency.tables import Table, number
from hpc_molgen.files import read_json
from hpc_molgen.run import STAGES, stage_costs

if TYPE_CHECKING:
    from hpc_molgen.run import Run


def stages(run: Run) -> list[StageCost]:
    """Costs of every stage but the report that was ever begun; without knowledge of which part was start-up."""
    found = [stage_cost(run, stage, None) for stage in STAGES if stage != "report"]
    return [cost for cost in found if cost.attempts]


def record(run: Run) -> dict[str, Any]:
    """Return what report.json holds of the costs."""
    prices, costs = Prices.of(run), stages(run)
    money = {cost.stage: prices.money(cost.cpu_s, cost.gpu_h) for cost in costs}
    rows = [{name: value for name, value in asdict(cost).items() if name != "work_cpu_s"} for cost in costs]
    return {"stages": rows, "money": money | {"total": sum(money.values())} if prices.known else None}


def section(run: Run, findings: SeriesFindings) -> Section:
    """Return the section of the report, with baselines and other runs beside."""
    rows, prices, costs = [], Prices.of(run), stages(run)
    counted = any(cost.joules is not None for cost in costs)
    for cost in costs:
        figures = (cost.cpu_s, cost.cpu_s / 3600, cost.wall_s, cost.gpu_h)
        rows.append([cost.stage, *map(number, figures), str(cost.attempts)])
        rows[-1] += [number(cost.joules)] if counted else []
        rows[-1] += [number(prices.money(cost.cpu_s, cost.gpu_h))] if prices.known else []
    rest = ["-"] * (3 + counted + prices.known)
    extra = [
        (f"{name} (fit and sample)", part.made_cpu_s) for name, part in findings.sets.items() if part.made_cpu_s is not None
    ]
    extra += [(f"{name}: training", other.train_cpu_s) for name, other in findings.others.items()]
    rows += [[name, number(cpu_s), number(cpu_s / 3600), *rest] for name, cpu_s in extra]
    columns = ("stage", "CPU s", "core hours", "wall s", "GPU hours", "attempts", *(["joules"] if counted else []))
    note = f"All attempts. Joules: {'of the whole nodes, by RAPL and NVML' if counted else 'no counter could be read'}."
    if prices.known:
        columns, note = (*columns, "money"), f"{note} {prices.words(sum(cost.gpu_h for cost in costs))}"
    return Section("Cost", (_words(run, findings),), (), (Table("Cost", columns, rows, note),))


def _words(run: Run, findings: SeriesFindings) -> str:
    train, sample = (read_json(run.path(stage, "done.json"))["details"] for stage in ("train", "sample"))
    text = (
        f"The surrogate has {train['n_parameters']:,} weights and was trained on {train['n_items']:,} windows. It makes "
        f"{sample['frames_per_cpu_s']:,.0f} frames per CPU second."
    )
    spent = stage_costs(run, "train")["cpu_s"]
    for name, other in findings.others.items():
        weights, time = other.n_parameters / train["n_parameters"], other.train_cpu_s / spent
        text += (
            f" {name} ({other.architecture}) has {other.n_parameters:,} weights, {weights:.1f} times as many, and its training "
            f"took {time:.2f} times as long; scores {score(findings, name):.3g} and {score(findings, GENERATED):.3g} (small is "
            "good)."
        )
    return text
