"""Joules from the processor's counters, on files that look like Linux's."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_molgen.energy import EnergyMeter


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
