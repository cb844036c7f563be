"""The suite `generalisation`: a real run at its smallest size, and what its tables make of known numbers."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_molgen.efficiency.suites import generalisation_tables as tables
from hpc_molgen.efficiency.suites.generalisation_scores import Residue, states_of
from hpc_molgen.training.stage import REHEARSED
from tests.conftest import CommandLine


@pytest.fixture(scope="module")
def smoke(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generalisation-suite")
    ended = command("benchmark", "generalisation", "--size", "smoke", "--out", str(out))
    assert ended.returncode == 0, ended.stderr
    return out


def test_smoke_run_writes_a_complete_record(smoke: Path) -> None:
    record = json.loads((smoke / "generalisation-smoke.json").read_text())
    results, shared = record["results"], smoke / "generalisation-smoke" / "shared"
    assert results["shared"]["molecules"] == ["ALA", "SER"] and [row["name"] for row in results["unseen"]] == ["GLY", "VAL"]
    for row in results["unseen"]:
        assert list(row["methods"]) == ["zero-shot", "few-shot", "own energies", "from scratch"]
        zero = row["methods"]["zero-shot"]
        diagnostics = json.loads((shared / "molecules" / row["name"] / "correct" / "diagnostics.json").read_text())
        assert zero["ess_fraction"] == diagnostics["ess_fraction"] and zero["k_hat"] == diagnostics["k_hat"]
        assert zero["data_cpu_s"] == 0 and row["methods"]["few-shot"]["data_cpu_s"] > 0
        assert row["methods"]["own energies"]["data_cpu_s"] == 0
        assert 0 < zero["n_effective"] <= 1.05 * zero["n"] and row["md"]["n_effective"] > 0
        assert ("corrected_chi" in zero) == (row["name"] == "VAL")  # glycine has no side chain
    few = json.loads((shared / "molecules" / "VAL-few-shot" / "train" / "done.json").read_text())["details"]
    assert few["n_rehearsed"] == REHEARSED
    assert few["steps"] == 5 and few["n_items"] - few["n_rehearsed"] == 20  # 4 ps of two walkers, a frame each 0.2 ps
    names = [row["name"] for row in record["targets"]]
    assert len(names) == 5 and any("median ESS" in name for name in names)


def _row(name: str, ess: float, n: int = 1000, **changes: float) -> dict[str, Any]:
    part = {"divergence": 0.02, "floor": 0.01, "ratio": 2.0}
    row = {"ess_fraction": ess, "k_hat": 0.3, "n": n, "n_effective": ess * n, "setup_cpu_s": 2.0, "data_cpu_s": 0.0}
    row |= {"sample_cpu_s": 1e-3, "raw_phi_psi": part, "corrected_phi_psi": part} | changes
    md = {"cpu_s": 50.0, "equilibration_cpu_s": 5.0, "n_effective": 900.0, "cpu_s_per_effective": 0.05, "slowest": "C5"}
    return {"name": name, **row, "md": md}


def _results() -> dict[str, Any]:
    seen = [_row("ALA", 0.5), _row("SER", 0.5)]
    unseen = []
    for name, ess in (("GLY", 0.4), ("VAL", 0.1)):
        row = _row(name, ess)
        md = row.pop("md")
        speed = {"zero-shot": {"ratio_cpu": {"mean": 0.5}}}
        unseen.append({"name": name, "methods": {"zero-shot": row}, "md": md, "speed": speed})
    shared = {"train_cpu_s": 100.0, "n_parameters": 1, "molecules": ["ALA", "SER"]}
    return {"unseen": unseen, "seen": seen, "shared": shared, "n_effective": 1000}


def test_costs_are_those_of_the_definitions() -> None:
    results = _results()
    glycine = results["unseen"][0]["methods"]["zero-shot"]
    assert tables.cost_of(glycine, 1000) == pytest.approx(2 + 1000 * 1e-3 / 0.4)
    assert tables.cost_of_md(results["unseen"][0]["md"], 1000) == pytest.approx(5 + 1000 * 0.05)
    whole = tables.totals(results)
    samples = 2 * (2 + 2.0) + (2 + 2.5) + (2 + 10.0)
    assert whole["surrogate_cpu_s"] == pytest.approx(100 + 100 + samples) and whole["md_cpu_s"] == pytest.approx(220)
    saved = 55 - np.mean([4.5, 12.0])
    assert whole["saved_cpu_s"] == pytest.approx(saved) and whole["break_even"] == pytest.approx(200 / saved)
    sentences = tables.record_of(results, "laptop")["answer"]
    assert "GLY (12.2 times), VAL (4.6 times)" in sentences[1] and "paid back by 5 molecules" in sentences[2]


def test_weights_that_are_not_certified_save_nothing() -> None:
    results = _results()
    bad = results["unseen"][1]["methods"]["zero-shot"]
    bad["k_hat"] = 0.9
    assert math.isinf(tables.cost_of(bad, 1000))
    whole = tables.totals(results)
    assert whole["left_to_md"] == 1 and whole["saved_cpu_s"] == pytest.approx((55 - 4.5 - (2 + 1)) / 2)  # and MD after all
    assert math.isinf(tables.strict_ratio(bad)) and tables.strict_ratio(results["unseen"][0]["methods"]["zero-shot"]) == 2.0
    assert "no certified weights for VAL" in tables.record_of(results, "laptop")["answer"][1]
    dear = copy.deepcopy(results)
    dear["unseen"][0]["methods"]["zero-shot"]["sample_cpu_s"] = 1.0
    assert tables.totals(dear)["break_even"] is None and "never" in tables.record_of(dear, "laptop")["answer"][2]


def test_states_are_basins_and_rotamers() -> None:
    angles = np.radians([[-60.0, -40.0, -60.0], [-120.0, 130.0, 180.0], [60.0, 40.0, 60.0]])
    residue = Residue(((0, 1, 2, 3),) * 3, angles, angles, np.zeros(3), np.zeros(3))
    states = states_of(angles, residue)
    assert states["alphaR"].tolist() == [True, False, False] and states["alphaL"].tolist() == [False, False, True]
    around = np.radians([[-60.0, -40.0, chi] for chi in (-61.0, -59.0, 175.0, -175.0, 59.0, 61.0)])
    rotamers = [[name for name in ("g+", "t", "g-") if states_of(around, residue)[f"chi1 {name}"][row]] for row in range(6)]
    assert rotamers == [["g-"], ["g-"], ["t"], ["t"], ["g+"], ["g+"]]
