"""Tables of the report about costs: stages, speed of MD, effective samples, break-even."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hpc_molgen.efficiency.costs import samples_in_words
from hpc_molgen.efficiency.tables import Table, number, share

if TYPE_CHECKING:
    from hpc_molgen.efficiency.baseline import Speed
    from hpc_molgen.efficiency.costs import CostBook, Marginal, Prices, Scenario
    from hpc_molgen.efficiency.economics import Contest
    from hpc_molgen.efficiency.evidence import Evidence
    from hpc_molgen.efficiency.findings import Findings

COUNTING = {
    "slowest": "all observables, each side by its slowest",
    "dF": "the free-energy difference alone",
    "Kish": "MD by its slowest, surrogate by Kish ESS",
}


def stage_table(costs: CostBook, prices: Prices) -> Table:
    """Costs per stage, with money where a price is known."""
    columns = ["stage", "CPU s", "of it start-up", "wall s", "core hours", "GPU hours", "attempts"]
    rows = []
    for cost in costs.stages:
        start = max(0.0, cost.cpu_s - cost.work_cpu_s)
        figures = (cost.cpu_s, start, cost.wall_s, cost.cpu_s / 3600, cost.gpu_h)
        rows.append([cost.stage, *map(number, figures), str(cost.attempts)])
    total = [sum(getattr(cost, name) for cost in costs.stages) for name in ("cpu_s", "wall_s", "gpu_h")]
    rows.append(["total", number(total[0]), "", number(total[1]), number(total[0] / 3600), number(total[2]), ""])
    note = (
        f"All attempts, interrupted ones included. Reference MD: {number(costs.data)} CPU s for the walkers that training "
        f"saw, {number(costs.validation)} "
        f"for those held out; these and the comparison by ln q, {number(costs.checks)} CPU s of 'correct', are the validation. "
        f"Start-up: imports, processes, the bias scan, measurements, files."
    )
    joules = [cost.joules for cost in costs.stages]
    if any(value is not None for value in joules):
        columns.append("joules")
        for row, value in zip(rows, [*joules, sum(value or 0.0 for value in joules)], strict=True):
            row.append("-" if value is None else number(value))
        note += " Joules: of the whole nodes, by RAPL and NVML."
    else:
        note += " Joules: no counter could be read."
    if prices.known:
        columns.append("money")
        for row, cost in zip(rows, costs.stages, strict=False):
            row.append(number(prices.money(cost.cpu_s, cost.gpu_h)))
        rows[-1].append(number(prices.money(total[0], total[2])))
        note += f" {prices.words(total[2])}"
    return Table("Costs per stage", tuple(columns), rows, note)


def speed_table(speeds: list[Speed]) -> Table:
    """Measured speeds of MD."""
    rows = [
        [
            s.protocol.label,
            s.platform,
            f"{s.steps_per_repeat:,}",
            f"{s.mean * 86400:,.0f} ± {number(s.spread * 86400, 2)}",
            number(s.mean),
            f"{s.mean / speeds[0].mean:.2f}",
        ]
        for s in speeds
    ]
    note = (
        f"Mean ± standard deviation of {len(speeds[0].ns_per_cpu_s)} interleaved repeats of so many steps (of all copies), one "
        "core, measured when this report was written. batched: many copies at once, their lengths added up. On GPUs: per "
        "second of the GPU."
    )
    columns = ("protocol", "platform", "steps", "ns/day/core", "ns per CPU s", "relative")
    return Table("Speed of MD on this machine", columns, rows, note, (0, 1))


def _price(cost: Marginal) -> str:
    low, high = cost.interval()
    return f"{number(cost.value, 2)} [{number(low, 2)}, {number(high, 2)}]"


def price_table(contests: list[Contest]) -> Table:
    """What one effective sample costs from each side, under each way of counting."""
    best = contests[0].best
    rows = [["counted by, MD", *(c.md_by for c in contests)], ["counted by, surrogate", *(c.surrogate_by for c in contests)]]
    rows += [[f"MD, {label}", *(_price(c.md[label]) for c in contests)] for label in contests[0].md]
    rows.append(["surrogate", *(_price(c.surrogate) for c in contests)])
    note = (
        "CPU-core seconds, 95 % intervals (bootstrap over trajectories, over samples). n_eff = p(1-p) / var(p), the same for "
        "both sides. As run: the reference MD itself; the others: its length at their measured speed, assuming that a ns "
        f"of each decorrelates as much; the cheapest, '{best}', enters the break-even. "
        "Surrogate: sampling, ln q and energies."
    )
    columns = ("effective samples by", *(COUNTING[c.name] for c in contests))
    return Table("Marginal cost of one effective sample / CPU s", columns, rows, note)


def _star(scenario: Scenario) -> str:
    if scenario.fixed_cpu_s is None or not np.isfinite(scenario.n_star):
        return scenario.words()
    return f"{scenario.words()} [{samples_in_words(scenario.low)}, {samples_in_words(scenario.high)}]"


def break_even_table(contests: list[Contest]) -> Table:
    """Break-even numbers n* under the four scenarios."""
    rows = [
        [COUNTING[c.name], number(c.n_0), number(c.n_drawn), *(_star(s) for s in c.scenarios),
         f"{number(c.advantage, 2)} [{number(c.advantage_low, 2)}, {number(c.advantage_high, 2)}]"]
        for c in contests
    ]  # fmt: skip
    columns = (
        "effective samples counted by",
        "n₀",
        "drawn",
        *(f"n*, {s.name}" for s in contests[0].scenarios),
        "MD / surrogate at drawn",
    )
    meaning = "; ".join(f"{s.name}: {s.meaning}" for s in contests[0].scenarios)
    note = (
        f"n* = (fixed costs of the surrogate - those of MD) / (c_MD - c_S) against the best MD, 95 % interval. n₀: effective "
        f"samples in the training data themselves. "
        f"{meaning}. Last column: cost of the drawn number by MD over that by the surrogate, everything paid. One training "
        f"run: its seed is not in the interval."
    )
    return Table("Break-even n* / effective samples", columns, rows, note)


def observables(evidence: Evidence, findings: Findings, certified: list[str], dt_ps: float | None, passed: bool) -> Table:
    """Effective samples by observable."""
    md = findings.effective[evidence.reference.label]
    corrected = findings.effective.get("corrected samples", {}) if passed else {}
    unit = "ps" if dt_ps else "frames"
    rows = []
    for name, found in md.items():
        time = number(found.inefficiency * (dt_ps or 1.0)) if np.isfinite(found.inefficiency) else "-"
        row = [
            f"dF({evidence.torsions.names[0]} > 0)" if name == "dF" else f"share of {name}",
            share(found.share),
            time,
            number(found.n_effective),
        ]
        if passed:
            row += [share(corrected[name].share), number(corrected[name].n_effective), "yes" if name in certified else "no"]
        rows.append(row)
    extra = ("share, corrected", "effective samples, corrected", "agrees with held-out MD") if passed else ()
    note = (
        f"g: statistical inefficiency of the weighted share, the larger of Geyer's initial positive sequence and batch "
        f"means; effective samples p(1-p) / var(p) of {len(evidence.reference):,} MD "
        "frames. A bias that visits a rare state often can make them more than the frames."
    )
    return Table(
        "Effective samples by observable",
        ("observable", "share, all MD", f"g / {unit}", "effective samples, all MD", *extra),
        rows,
        note,
    )
