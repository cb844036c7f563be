"""The suite `flow`: a real run at its smallest size, and what it says of histograms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpc_molgen.efficiency.suites.flow import expected_variation
from hpc_molgen.efficiency.suites.verdict_scores import total_variation
from tests.conftest import CommandLine


@pytest.fixture(scope="module")
def smoke(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("flow-suite")
    ended = command("benchmark", "flow", "--size", "smoke", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    return out


def test_smoke_run_writes_a_complete_record(smoke: Path) -> None:
    record, text = json.loads((smoke / "flow-smoke.json").read_text()), (smoke / "flow-smoke.md").read_text()
    (result,) = record["results"]
    rows = result["seeds"]
    assert [row["seed"] for row in rows] == [1, 2] and rows[0]["ess"] != rows[1]["ess"]
    for row in rows:
        directory = smoke / "flow-smoke" / "runs" / f"alanine-dipeptide-{row['seed']}"
        found = json.loads((directory / "correct" / "done.json").read_text())["details"]
        assert row["ess_fraction"] == found["ess_fraction"] and row["n"] == 1000
        assert row["forward_ess"] == found["coverage"]["density"]["forward_ess"]
        lines = [line for path in (directory / "costs").iterdir() for line in path.read_text().splitlines()]
        assert row["cpu_s"] == pytest.approx(sum(json.loads(line)["cpu_s"] for line in lines), abs=0.3)
        assert 0 < row["raw_variation"] < 1 and row["expected_noise"] > 0
    targets = {row["name"].split(": ")[1]: row for row in record["targets"]}
    assert targets["ESS / %"]["measured"] == pytest.approx(100 * min(row["ess_fraction"] for row in rows))
    assert not targets["ESS / %"]["reached"] and "ESS / %" in text  # forty steps teach no flow to hold a record


def test_a_second_start_repeats_nothing(command: CommandLine, smoke: Path) -> None:
    before = json.loads((smoke / "flow-smoke.json").read_text())
    assert command("benchmark", "flow", "--size", "smoke", "--out", str(smoke)).returncode == 0
    assert json.loads((smoke / "flow-smoke.json").read_text())["results"] == before["results"]


def test_the_noise_of_histograms_is_as_expected() -> None:
    """Of independent samples of uneven shares, many times over, within four standard errors of the mean."""
    generator = np.random.default_rng(2)
    p = generator.dirichlet(np.full(300, 0.3))
    pairs = [(generator.multinomial(20_000, p), generator.multinomial(50_000, p)) for _ in range(200)]
    found = np.array([total_variation(a.astype(float), b.astype(float)) for a, b in pairs])
    expected = expected_variation(p, 20_000, 50_000)
    # the normal distribution that the formula takes is not that of bins with a count or two: 2 % of allowance
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(found)) + 0.02 * expected
