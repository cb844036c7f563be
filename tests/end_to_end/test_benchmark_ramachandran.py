"""The benchmark suite `ramachandran` at its smallest size: real MD, real training, a complete record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import CommandLine

METHODS = {"floor", "kernel", "published", "fast", "ancestral"}


def test_smoke_run_writes_a_complete_record(command: CommandLine, tmp_path: Path) -> None:
    shown = command("benchmark", "ramachandran", "--size", "smoke", "--out", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    record = json.loads((tmp_path / "ramachandran-smoke.json").read_text())
    results = record["results"]
    assert results.keys() >= METHODS
    for name in METHODS:
        assert 0 < results[name]["jsd_60"]["mean"] < 0.6931472
    for name in METHODS - {"floor"}:
        assert results[name]["sampling_cpu_s"]["mean"] > 0 and len(results[name]["jsd_60"]["values"]) >= 2
    assert results["fast"]["samples_per_cpu_s"]["mean"] > results["ancestral"]["samples_per_cpu_s"]["mean"]
    # twenty steps of training cannot be as good as the data themselves
    assert results["published"]["jsd_60"]["mean"] > results["floor"]["jsd_60"]["mean"]
    assert "hpc-molgen benchmark ramachandran" in record["command"] and record["provenance"]["packages"]["torch"]
    table = (tmp_path / "ramachandran-smoke.md").read_text()
    assert "noise floor at equal n" in table and "published DDPM" in table and "wrapped kernel density estimate" in table


def test_wrong_size_lists_the_sizes(command: CommandLine, tmp_path: Path) -> None:
    shown = command("benchmark", "ramachandran", "--size", "huge", "--out", str(tmp_path))
    assert shown.returncode == 2 and "smoke, laptop, cluster" in shown.stderr


@pytest.mark.parametrize("line", ["ramachandran"])
def test_list(command: CommandLine, line: str) -> None:
    assert line in command("benchmark", "list").stdout.splitlines()
