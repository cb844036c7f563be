"""Sections of a campaign's report, in the order of reading; figures are drawn into a folder, or taken as they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_molgen.efficiency import accuracy, exclusions, pages
from hpc_molgen.efficiency.costs import Prices
from hpc_molgen.efficiency.document import Picture, Section
from hpc_molgen.efficiency.suites import (
    campaign_exclusions,
    campaign_figures,
    campaign_tables,
    campaign_verdict,
    campaign_weights,
)
from hpc_molgen.efficiency.suites.campaign_figures import Points
from hpc_molgen.efficiency.suites.campaign_folder import FAULTS, Campaign, RunReport
from hpc_molgen.efficiency.tables import Table

_PANELS = {  # pictures of a run's report -> what they show
    "maps": "(phi, psi) of held-out MD, raw and corrected samples, on one scale",
    "profile": "free energy along the first torsion with 95 % intervals, and free-energy differences of all sets",
    "surfaces": "free energy of the first features of held-out MD, generated trajectories and a Markov state model",
}


@dataclass
class Pages:
    """What is gathered while sections are made.

    Attributes
    ----------
    campaign : Campaign
    prices : Prices
    drawn : Path
        Folder of figures that were drawn, as PNG and SVG.
    images : dict
        Name of a picture -> its address in the page that needs no other file.
    problems : list of (str, str)
        Sections that could not be made, and why.
    """

    campaign: Campaign
    prices: Prices
    drawn: Path
    images: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def picture(self, name: str, caption: str) -> Picture:
        """Take in a figure that was drawn."""
        self.images[name] = pages.embedded(self.drawn / f"{name}.svg")
        return Picture(name, caption)

    def kept(self, path: Path, name: str, caption: str) -> Picture | None:
        """Take in a figure that lies in the campaign's folder, as SVG where there is one; None where there is none."""
        own = [file for ending in (".svg", ".png") if (file := self.campaign.folder / path.with_suffix(ending)).is_file()]
        if not own:
            return None
        self.images[name] = pages.embedded(own[0])
        return Picture(name, caption, str(own[-1].relative_to(self.campaign.folder)))

    def sections(self) -> list[Section]:
        """Make all sections; one that fails is a sentence."""
        makers: dict[str, Callable[[str], Section | None]] = {
            "Cost against accuracy, from zero": self._curves,
            "Break-even": self._break_even,
            "Costs": self._costs,
            "Scaling": self._scaling,
            "Conformations and free energies": self._conformations,
            "Effective samples": self._weights,
            "Targets missed": self._targets,
            exclusions.TITLE: self._excluded,
        }
        found = [self._guarded(title, make) for title, make in makers.items()]
        return [section for section in found if section is not None]

    def _guarded(self, title: str, make: Callable[[str], Section | None]) -> Section | None:
        try:
            return make(title)
        except FAULTS as fault:
            reason = f"a record lacks what it needs, or holds it in another form ({type(fault).__name__}: {fault})"
            self.problems.append((title, reason))
            return Section(title, (f"Left out: {reason}.",))

    def _curves(self, title: str) -> Section:
        found: list[Picture | Table] = []
        for name, record in list(self.campaign.measured("verdict"))[:1]:
            found += self.campaign.guarded(name, "its times and curves", self._curves_of_record, name, record)
        for run in self.campaign.runs:
            if run.of_structures:
                found += self.campaign.guarded(run.name, "its curves", self._curves_of_run, run)
        pictures = tuple(one for one in found if isinstance(one, Picture))
        text = () if pictures else ("No record of the suite 'verdict' and no certified run holds such a curve.",)
        return Section(title, text, pictures, tuple(one for one in found if isinstance(one, Table)))

    def _curves_of_record(self, name: str, record: Mapping[str, Any]) -> Iterator[Picture | Table]:
        yield campaign_verdict.table(record)
        caption = (
            f"Half-width of the 95 % interval of dF(phi > 0) against core-seconds from zero, all costs counted, of {name}. "
            "Thin: seeds; bold: their median, from where the fixed costs are paid; dotted: extrapolated by 1/sqrt of the time "
            "since then."
        )
        if campaign_figures.verdict_curves(self.drawn, "verdict-curves", record):
            yield self.picture("verdict-curves", caption)
            return
        kept = [self.kept(Path(one["file"]), "verdict-curves", caption) for one in record.get("figures", [])]
        yield from (one for one in kept[:1] if one is not None)

    def _curves_of_run(self, run: RunReport) -> Iterator[Picture | Table]:
        if not (found := accuracy.of_record(run.data)):
            return
        accuracy.draw(self.drawn, found, f"accuracy-{run.name}")
        yield self.picture(f"accuracy-{run.name}", f"Run '{run.name}'. {accuracy.caption(found)}")
        table = accuracy.table(found)
        yield Table(f"{table.title}, run '{run.name}'", table.columns, table.rows, table.note, table.words)

    def _break_even(self, title: str) -> Section:
        table = campaign_tables.break_even(self.campaign)
        if table is None:
            return Section(
                title, ("No run in this folder has passed its quality gate, so nothing has a price to be compared.",)
            )
        return Section(title, (), (), (table,))

    def _costs(self, title: str) -> Section | None:
        lines = list(campaign_tables.cost_lines(self.campaign))
        return Section(title, (), (), tuple(campaign_tables.costs(lines, self.prices))) if lines else None

    def _scaling(self, title: str) -> Section:
        panels: dict[str, list[Points]] = {
            "training, measured": list(campaign_figures.training_points(self.campaign)),
            "farm, measured": list(campaign_figures.farm_points(self.campaign)),
            "training, modelled": list(campaign_figures.plan_points(self.campaign)),
        }
        panels = {name: points for name, points in panels.items() if points}
        if not panels:
            return Section(title, ("No record in this folder measures or models scaling.",))
        campaign_figures.scaling(self.drawn, "scaling", panels)
        caption = (
            "Speed over ranks times the speed of one rank (dotted: ideal); bars: standard deviation over rounds. Strong: the "
            "same work for all; weak: as much for each rank."
        )
        assumed = [
            given
            for name, record in self.campaign.measured("scaling")
            for given in self.campaign.guarded(name, "what its model assumes", _assumed, record)
        ]
        text = (
            ["The modelled curves are a forecast of `benchmark scaling --plan`, not a measurement"
             + (f"; assumed in it: {', '.join(dict.fromkeys(assumed))}." if assumed else ".")]
            if "training, modelled" in panels else []
        )  # fmt: skip
        rows = [
            [panel, points.name, points.kind, " / ".join(map(str, points.ranks)),
             " / ".join(f"{100 * value:.0f}" for value in points.efficiency)]
            for panel, found in panels.items() for points in found
        ]  # fmt: skip
        columns = ("what", "of", "kind", "ranks", "efficiency / %")
        return Section(
            title, tuple(text), (self.picture("scaling", caption),), (Table("Efficiency", columns, rows, "", (0, 1, 2, 3, 4)),)
        )

    def _conformations(self, title: str) -> Section | None:
        pictures = [
            found
            for run in self.campaign.runs
            for name, words in _PANELS.items()
            if (found := self.kept(run.place / "figures" / f"{name}.png", f"{name}-{run.name}", f"Run '{run.name}': {words}."))
        ]
        table = campaign_tables.gates(self.campaign)
        text = () if table else ("There is no report of a run in this folder.",)
        return Section(title, text, tuple(pictures), (table,) if table else ())

    def _weights(self, title: str) -> Section:
        found = campaign_weights.weights(self.campaign)
        if not found:
            return Section(title, ("No record and no run in this folder has importance weights.",))
        return Section(title, (), (), (campaign_weights.weights_table(found),))

    def _targets(self, title: str) -> Section:
        text, table = campaign_tables.targets(self.campaign)
        return Section(title, (text,), (), (table,) if table else ())

    def _excluded(self, title: str) -> Section:
        return Section(title, (), (), (campaign_exclusions.table(self.campaign, self.problems),))


def _assumed(record: Mapping[str, Any]) -> list[str]:
    inputs = (record.get("results") or {}).get("inputs") or {}
    return [name for name, given in inputs.items() if "assumed" in str(given.get("source", ""))]
