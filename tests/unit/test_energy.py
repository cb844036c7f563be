"""Joules from the processor's counters, on files that look like Linux's."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_molgen.config import RunConfig
from hpc_molgen.efficiency.cost_tables import stage_table
from hpc_molgen.efficiency.costs import Prices, collect_costs
from hpc_molgen.energy import EnergyMeter
from hpc_molgen.run import Run, stage_costs
from hpc_molgen.workers import Workers


def domain(powercap: Path, folder: str, name: str, energy_uj: int) -> Path:
    path = powercap / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text("1000000000\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path / "energy_uj"


def test_packages_and_memory_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    core = domain(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 0)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 999_000_000)
    meter = EnergyMeter(tmp_path)
    assert meter.sources[:3] == ("package-0", "dram", "package-1")
    for file, value in ((first, 8_000_000), (core, 3_000_000), (memory, 500_000), (second, 2_000_000)):
        file.write_text(f"{value}\n")
    assert meter.joules == pytest.approx(3 + 0.5 + 3)  # the last one has begun again at zero


def test_nothing_is_estimated_where_there_is_no_counter(tmp_path: Path) -> None:
    if EnergyMeter(tmp_path).sources:
        pytest.skip("a GPU here counts its energy")
    assert EnergyMeter(tmp_path).joules is None
    file = domain(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    meter = EnergyMeter(tmp_path)
    file.unlink()
    assert meter.joules is None


def test_the_counters_of_this_machine() -> None:
    """They count upwards where there are any."""
    meter = EnergyMeter()
    joules = meter.joules
    assert (joules is None) == (not meter.sources)
    assert joules is None or joules >= 0


def test_a_stage_counts_the_joules_of_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_config: RunConfig) -> None:
    """On the node's first rank alone; attempts add up where all were counted, and the table of costs shows them."""
    counter = domain(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr("hpc_molgen.run.EnergyMeter", lambda: EnergyMeter(tmp_path / "powercap"))
    run = Run.create(tmp_path / "run", tiny_config, Workers())
    for ends in (3_000_000, 7_000_000):
        with run.stage("reference") as details:
            counter.write_text(f"{ends}\n")
            details["walkers"] = [{"cpu_s": 1.0, "wall_s": 1.0, "ns": 0.1}] * 4
    if len(EnergyMeter(tmp_path / "powercap").sources) > 1:
        pytest.skip("a GPU here counts its energy as well")
    assert stage_costs(run, "reference")["joules"] == pytest.approx(7) and "joules" not in stage_costs(run, "train")
    shown = stage_table(collect_costs(run), Prices(None, None))
    assert shown.columns[-1] == "joules" and [row[-1] for row in shown.rows[:2]] == ["7", "-"] and shown.rows[-1][-1] == "7"
    monkeypatch.setenv("SLURM_LOCALID", "1")  # not the node's first rank: nothing is counted, and then no sum is told
    with run.stage("reference"):
        counter.write_text("9000000\n")
    assert "joules" not in stage_costs(run, "reference")
