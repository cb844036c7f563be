"""`hpc-molgen benchmark report FOLDER`: one report over a folder of benchmark records and of reports of runs.

It is for someone who has seen none of them: the verdict first, then costs against accuracy from zero, break-even points, all
costs, scaling, conformations, effective samples, what missed its target, and what was left out. Nothing is measured here.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_molgen import __version__, containers
from hpc_molgen.efficiency import pages, sheet
from hpc_molgen.efficiency.costs import Prices
from hpc_molgen.efficiency.suites import campaign_data, campaign_tables, campaign_verdict
from hpc_molgen.efficiency.suites.campaign_folder import Campaign, read_campaign
from hpc_molgen.efficiency.suites.campaign_sections import Pages
from hpc_molgen.efficiency.tables import number
from hpc_molgen.errors import InputError
from hpc_molgen.files import write_atomically
from hpc_molgen.provenance import provenance

_FILES = ("report.html", "report.md", "report.csv")


def report_files(
    files: Sequence[Path], cost_per_core_hour: float | None = None, cost_per_gpu_hour: float | None = None
) -> tuple[str, bool]:
    """Write FOLDER/report.{html,md,csv} and FOLDER/figures; return a text that names them.

    Raises
    ------
    InputError
        When not one folder is given, or it holds neither records nor reports of runs.
    EnvironmentProblem
        When the folder cannot be written.
    """
    if len(files) != 1:
        raise InputError("report takes one folder: hpc-molgen benchmark report FOLDER [--cost-per-core-hour X]")
    campaign, prices = read_campaign(files[0]), Prices(cost_per_core_hour, cost_per_gpu_hour)
    with tempfile.TemporaryDirectory() as scratch:
        made = Pages(campaign, prices, Path(scratch))
        verdict = campaign_verdict.answer(campaign)
        _write(made, verdict)
    left_out = f"\nleft out: {', '.join(name for name, _ in campaign.unread)}" if campaign.unread else ""
    names = "\n".join(str(campaign.folder / name) for name in _FILES)
    about = f"{len(campaign.records)} records and {len(campaign.runs)} reports of runs"
    return f"{verdict.sentence}\n{about}{left_out}\n{names}\n", True


def _write(made: Pages, verdict: campaign_verdict.Answer) -> None:
    campaign = made.campaign
    table = sheet.as_csv(campaign_data.rows(campaign, made.prices), campaign_data.COLUMNS)
    values = {
        "title": campaign.folder.resolve().name, "version": __version__, "date": time.strftime("%Y-%m-%d"), "verdict": verdict,
        "target": verdict.remarks, "key_figures": _key_figures(campaign), "software": provenance(),
        "containers": _containers(campaign), "origins": campaign_tables.origins(campaign), "n_records": len(campaign.records),
        "n_runs": len(campaign.runs),
    }  # fmt: skip
    # last, as they end with all that was left out until then
    values |= {"sections": made.sections(), "images": made.images}
    for path in sorted(made.drawn.glob("*.png")):
        write_atomically(campaign.folder / "figures" / path.name, path.read_bytes())
    for name in ("html", "md"):
        write_atomically(campaign.folder / f"report.{name}", pages.render(f"campaign.{name}", values).encode())
    write_atomically(campaign.folder / "report.csv", table.encode())


def _key_figures(campaign: Campaign) -> list[tuple[str, str]]:
    lines = list(campaign_tables.cost_lines(campaign))
    counted = campaign_tables.counted_once(lines)
    once = ", what they share once" if len(counted) < len(lines) else ""
    targets = [target for record in campaign.records.values() for target in record["targets"]]
    suites = {record["suite"] for record in campaign.records.values()}
    figures = [
        (f"{sum(target['reached'] for target in targets)} of {len(targets)}", "targets reached"),
        (f"{number(sum(line.cpu_s for line in counted) / 3600)} core hours", f"of all records and runs{once}"),
        (f"{len(suites)} suites, {len(campaign.runs)} runs", "in this report"),
    ]
    return figures if campaign.records else figures[1:]


def _containers(campaign: Campaign) -> list[str]:
    found: dict[str, list[str]] = {}
    for name, record in campaign.records.items():
        for text in campaign.guarded(name, "its container", _container, record):
            found.setdefault(text, []).append(name)
    return [f"{', '.join(names)} {text}" for text, names in found.items() if text]


def _container(record: Mapping[str, Any]) -> Iterator[str]:
    yield containers.in_words(record["provenance"]["container"])
