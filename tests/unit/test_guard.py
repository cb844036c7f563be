"""Ratios of records against the floors that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hpc_molgen.efficiency.suites.compare import repeated
from hpc_molgen.efficiency.suites.guard import guard_files
from hpc_molgen.errors import InputError
from tests.conftest import CommandLine

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FLOORS = BENCHMARKS / "floors.yaml"


@pytest.mark.parametrize("suite", ["energies", "md", "density"])
def test_kept_records_are_above_all_floors_and_one_that_fell_is_not(suite: str, tmp_path: Path) -> None:
    kept = BENCHMARKS / "reports" / f"{suite}-laptop.json"
    text, passed = guard_files([FLOORS, kept])
    floors = yaml.safe_load(FLOORS.read_text())[suite]
    assert passed and text.count("| ok |") == len(floors) >= 1
    assert floors.keys() <= dict(repeated(json.loads(kept.read_text())["results"])).keys()

    record = json.loads(kept.read_text())
    name = next(iter(floors))
    first, *rest, last = name.split(" / ")
    place = record["results"][first]
    for key in rest:
        place = place[key]
    place[last]["values"] = [floors[name] * factor for factor in (0.9, 0.95, 3.0)]  # one lucky round does not save it
    (tmp_path / "slower.json").write_text(json.dumps(record))
    text, passed = guard_files([FLOORS, tmp_path / "slower.json"])
    assert not passed and text.count("BELOW") == 1
    place = record["results"][first]
    for key in rest[:-1]:
        place = place[key]
    del place[rest[-1]]  # instructions that a processor lacks
    (tmp_path / "lacks.json").write_text(json.dumps(record))
    if len(floors) == 1:
        with pytest.raises(InputError, match="no floor for anything"):
            guard_files([FLOORS, tmp_path / "lacks.json"])
        return
    text, passed = guard_files([FLOORS, tmp_path / "lacks.json"])
    assert passed and text.count("not measured here") == 1


def test_the_command_ends_with_the_code_of_a_gate(command: CommandLine, tmp_path: Path) -> None:
    kept = BENCHMARKS / "reports" / "md-laptop.json"
    assert command("benchmark", "guard", str(FLOORS), str(kept)).returncode == 0
    (tmp_path / "high.yaml").write_text("md: {speeds / implicit 1fs batched float32 / ratio_cpu: 1000}")
    ended = command("benchmark", "guard", str(tmp_path / "high.yaml"), str(kept))
    assert ended.returncode == 3 and "BELOW" in ended.stdout
    (tmp_path / "wrong.yaml").write_text("md: {a: fast}")
    for arguments in ([str(FLOORS)], [str(tmp_path / "wrong.yaml"), str(kept)]):
        assert command("benchmark", "guard", *arguments).returncode == 2
    with pytest.raises(InputError, match="no floor for anything"):
        guard_files([FLOORS, BENCHMARKS / "reports" / "tempering-laptop.json"])
