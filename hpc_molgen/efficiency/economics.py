"""What an effective sample costs from MD and from the surrogate, and where the two break even.

"Effective" depends on the question, so it is counted in three ways, each by the same code for both sides: by the slowest
certified observable of each side (the price of an ensemble in which everything is converged), by the certified free-energy
difference alone, and by the convention of facts/metrics.md (MD by its slowest observable, the surrogate by Kish's ESS).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.efficiency.baseline import GPU_PLATFORMS, Speed, rule_of_three
from hpc_molgen.efficiency.costs import CostBook, Marginal, Scenario, marginal_cost, scenarios
from hpc_molgen.efficiency.verdict import Z_LIMIT

if TYPE_CHECKING:
    from hpc_molgen.analysis.kinetics import EffectiveSamples
    from hpc_molgen.efficiency.evidence import Evidence
    from hpc_molgen.efficiency.findings import Findings


@dataclass(frozen=True)
class Contest:
    """MD against the surrogate under one way of counting effective samples.

    Attributes
    ----------
    name : str
        "slowest", "dF" or "Kish".
    md_by, surrogate_by : str
        The observable that counts on each side.
    md : dict of Marginal
        CPU seconds per effective sample: the reference as it was run, then scaled to each measured speed.
    best : str
        Key of the cheapest in `md`, the one that the scenarios use.
    surrogate : Marginal
    n_drawn : float
        Effective samples that this run drew from the surrogate.
    n_0 : float
        Effective samples of the training data themselves, by the MD's observable.
    scenarios : list of Scenario
    advantage, advantage_low, advantage_high : float
        Cost of `n_drawn` effective samples by MD over that by the surrogate, everything paid; above 1 the surrogate wins.
    """

    name: str
    md_by: str
    surrogate_by: str
    md: dict[str, Marginal]
    best: str
    surrogate: Marginal
    n_drawn: float
    n_0: float
    scenarios: list[Scenario]
    advantage: float
    advantage_low: float
    advantage_high: float

    @property
    def winner(self) -> str:
        """Return "surrogate", "MD", or "undecided" when the interval of the advantage holds 1."""
        if self.advantage_low > 1:
            return "surrogate"
        return "MD" if self.advantage_high < 1 else "undecided"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "counted_by": {"md": self.md_by, "surrogate": self.surrogate_by},
            "md_cpu_s_per_effective_sample": {
                key: dict(zip(("value", "low", "high"), (cost.value, *cost.interval()), strict=True))
                for key, cost in self.md.items()
            },
            "best_md": self.best,
            "surrogate_cpu_s_per_effective_sample": dict(
                zip(("value", "low", "high"), (self.surrogate.value, *self.surrogate.interval()), strict=True)
            ),
            "effective_samples_drawn": self.n_drawn,
            "n_0": self.n_0,
            "n_star": {
                s.name: {"words": s.words(), "fixed_cpu_s": s.fixed_cpu_s, "value": s.n_star, "low": s.low, "high": s.high}
                for s in self.scenarios
            },
            "advantage_at_drawn": {"value": self.advantage, "low": self.advantage_low, "high": self.advantage_high},
            "winner": self.winner,
        }


def certified_observables(evidence: Evidence, findings: Findings) -> list[str]:
    """Return the observables whose corrected share agrees with held-out MD within 1.96 combined standard errors.

    "dF" is among them when the run is certified at all; a basin that one side never saw is not.
    """
    if evidence.corrected is None:
        return []
    names = ["dF"]
    md, corrected = (findings.basins.get(part.label, {}) for part in (evidence.held_out, evidence.corrected))
    for name in md:
        error = float(np.hypot(md[name].standard_error, corrected[name].standard_error))
        visited = md[name].value > 0 and corrected[name].value > 0
        if name != "other" and visited and abs(md[name].value - corrected[name].value) <= Z_LIMIT * error:
            names.append(name)
    return names


def contests(evidence: Evidence, findings: Findings, costs: CostBook, speeds: list[Speed]) -> list[Contest]:
    """Return the contests of a certified run; the first is the one that the verdict is about."""
    if evidence.corrected is None:
        return []
    names = certified_observables(evidence, findings)
    md, training = findings.effective[evidence.reference.label], findings.effective[evidence.training.label]
    corrected = findings.effective[evidence.corrected.label]
    slowest = min(names, key=lambda name: md[name].n_effective)
    hardest = min(names, key=lambda name: corrected[name].n_effective)
    kish = (evidence.corrected.ess, findings.kish)
    own = {name: (corrected[name].n_effective, corrected[name].replicates) for name in names}
    worst = min((own[hardest], kish), key=lambda pair: pair[0])
    ways = [
        ("slowest", slowest, hardest if worst is not kish else "Kish ESS", worst),
        ("dF", "dF", "dF", own["dF"]),
        ("Kish", slowest, "Kish ESS", kish),
    ]
    return [
        _contest(
            name,
            (md_by, surrogate_by),
            md[md_by],
            training[md_by].n_effective,
            drawn,
            costs,
            speeds,
            _production_ns(evidence, costs),
        )
        for name, md_by, surrogate_by, drawn in ways
    ]


def _production_ns(evidence: Evidence, costs: CostBook) -> float:
    """Length of the reference's production, over all trajectories."""
    if costs.production_ns > 0:
        return costs.production_ns
    time, trajectory = evidence.reference_time_ps, evidence.reference.units
    assert trajectory is not None
    return sum(float(np.ptp(time[trajectory == number])) for number in np.unique(trajectory)) * 1e-3


def _contest(
    name: str,
    by: tuple[str, str],
    md: EffectiveSamples,
    n_0: float,
    drawn: tuple[float, np.ndarray],
    costs: CostBook,
    speeds: list[Speed],
    production_ns: float,
) -> Contest:
    prices = {}
    spent_on_md = costs.data + costs.validation - costs.equilibration
    if costs.production_ns > 0:  # imported trajectories have no cost of their own here
        prices["as run"] = marginal_cost(spent_on_md, md.n_effective, md.replicates)
    for speed in speeds:
        cpu_s = production_ns / speed.mean
        if speed.platform in GPU_PLATFORMS:  # measured in seconds of a GPU: comparable with a reference from it alone
            if speeds[0].platform not in GPU_PLATFORMS or costs.production_ns == 0:
                continue
            cpu_s = spent_on_md * speeds[0].mean / speed.mean
        prices[speed.label] = marginal_cost(cpu_s, md.n_effective, md.replicates)
    best = min(prices, key=lambda label: prices[label].value)
    surrogate = marginal_cost(costs.sampling + costs.energies, *drawn)
    # what the surrogate took is known; how many effective samples that was, and what MD would have taken for them, is not
    spent = costs.data + costs.training + costs.validation + costs.checks + costs.sampling + costs.energies
    ratio = (costs.equilibration + drawn[1] * prices[best].replicates) / spent
    low, high = np.quantile(ratio, [0.025, 0.975], method="inverted_cdf")
    return Contest(
        name=name,
        md_by=by[0],
        surrogate_by=by[1],
        md=prices,
        best=best,
        surrogate=surrogate,
        n_drawn=drawn[0],
        n_0=n_0,
        scenarios=scenarios(costs, prices[best], surrogate),
        advantage=(costs.equilibration + drawn[0] * prices[best].value) / spent,
        advantage_low=float(low),
        advantage_high=float(high),
    )


def plain_md(evidence: Evidence, findings: Findings) -> dict[str, Any]:
    """Return what the farm's plain MD says about its own cost per passage: a count, or only a bound; never a guess."""
    farm = evidence.farm
    if farm is None or not evidence.torsions.names:
        return {"available": False, "reason": "the farm has not run" if farm is None else "this molecule has no CV"}
    cpu_s = float(farm.details["cpu_s"])
    per_passage, at_least = rule_of_three(findings.farm_passages, cpu_s)
    return {
        "available": True,
        "simulated_ns": float(farm.details["simulated_ns"]),
        "cpu_s": cpu_s,
        "passages": findings.farm_passages,
        "cpu_s_per_passage": per_passage,
        "cpu_s_per_passage_at_least": at_least,
    }
