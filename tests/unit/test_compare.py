"""Two records side by side: what is called better, worse or unchanged, and how often wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_molgen.efficiency.suites.compare import LEVEL, compare_records
from hpc_molgen.efficiency.suites.record import complete_record, spread
from hpc_molgen.errors import InputError
from tests.conftest import CommandLine

KEPT = Path(__file__).resolve().parents[2] / "benchmarks" / "reports"


def record(results: dict[str, Any]) -> dict[str, Any]:
    """A record of a suite that has these results."""
    empty = {"question": "", "answer": [], "targets": [], "tables": [], "costs": [], "notes": []}
    return complete_record({**empty, "results": results}, "energies", "smoke", 1)


def speeds(rng: np.random.Generator, mean: float, n: int = 6) -> dict[str, Any]:
    return spread(mean * np.exp(0.05 * rng.standard_normal(n)))


def test_twice_as_slow_is_worse_and_twice_as_long_is_worse() -> None:
    rng = np.random.default_rng(1)
    before = {"a": {"per_cpu_s": speeds(rng, 1000)}, "b": {"wall_s": speeds(rng, 3)}, "c": {"per_cpu_s": speeds(rng, 50)}}
    after = {"a": {"per_cpu_s": speeds(rng, 500)}, "b": {"wall_s": speeds(rng, 6)}, "c": {"per_cpu_s": speeds(rng, 100)}}
    found = {change.name: change for change in compare_records(record(before), record(after))}
    assert {name: change.verdict for name, change in found.items()} == {
        "a / per_cpu_s": "WORSE", "b / wall_s": "WORSE", "c / per_cpu_s": "better"
    }  # fmt: skip
    for name, truth in {"a / per_cpu_s": 0.5, "b / wall_s": 2.0, "c / per_cpu_s": 2.0}.items():
        assert found[name].low < truth < found[name].high and abs(found[name].ratio / truth - 1) < 0.2


def test_the_chance_of_any_false_alarm_is_the_stated_one() -> None:
    """200 comparisons of 10 measurements each that have not changed: at most 5 % with any alarm, within 3 standard errors."""
    rng, n, alarms = np.random.default_rng(2), 200, 0
    for _ in range(n):
        before, after = ({str(i): {"per_cpu_s": speeds(rng, 10.0 + i)} for i in range(10)} for _ in range(2))
        alarms += any(change.significant for change in compare_records(record(before), record(after)))
    assert alarms / n <= LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / n)
    assert alarms > 0  # else the test could not fail


def test_two_repeats_are_too_few_and_counts_need_no_test() -> None:
    before = {"a": {"per_cpu_s": spread([1.0, 2.0])}, "b": {"wall_s": spread([3.0, 3.0, 3.0])}}
    found = compare_records(record(before), record(before))
    assert [change.verdict for change in found] == ["too few repeats", "no change seen"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"suite": "md"}, "different suites"), ({"size": "laptop"}, "different sizes"), ({"results": {}}, "share no repeated")],
)
def test_records_that_cannot_be_compared_are_refused(changes: dict[str, Any], said: str) -> None:
    own = record({"a": {"per_cpu_s": spread([1.0, 2.0, 3.0])}})
    with pytest.raises(InputError, match=said):
        compare_records(own, own | changes)


def test_the_command(command: CommandLine, tmp_path: Path) -> None:
    path = KEPT / "energies-laptop.json"
    same = command("benchmark", "compare", str(path), str(path))
    assert same.returncode == 0 and "0 of " in same.stdout and "hardware" not in same.stdout, same.stderr
    slower = json.loads(path.read_text())
    slower["provenance"]["cpu"] = "another"

    def halve(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else ():
            if key == "per_cpu_s":
                inner |= spread(np.array(inner["values"]) / 2)
            halve(inner)

    halve(slower["results"])
    (tmp_path / "slower.json").write_text(json.dumps(slower))
    ended = command("benchmark", "compare", str(path), str(tmp_path / "slower.json"))
    assert ended.returncode == 3 and "| WORSE |" in ended.stdout and "**Different hardware" in ended.stdout
    assert "- processor: " in ended.stdout
    assert command("benchmark", "compare", str(path)).returncode == 2
    assert command("benchmark", "energies", str(path)).returncode == 2
