"""The suite `density` at its smallest size, and a run whose weights are those of whole paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.reweighting import importance_log_weights
from hpc_molgen.run import Run
from tests.conftest import CommandLine

FLOORS = Path(__file__).resolve().parents[2] / "benchmarks" / "floors.yaml"


def test_smoke_run_writes_a_complete_record(command: CommandLine, tmp_path: Path) -> None:
    shown = command("benchmark", "density", "--size", "smoke", "--out", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    record = json.loads((tmp_path / "density-smoke.json").read_text())
    results = record["results"]
    errors = {(row["integrator"], row["n_steps"]): row for row in results["errors"]}
    assert errors["rk4", 8]["n_evaluations"] == 32 and errors["adaptive", 0]["n_evaluations"] > 12
    assert errors["rk4", 8]["rms"] < errors["rk4", 4]["rms"] < errors["euler", 4]["rms"]
    for row in results["errors"]:
        assert 0 < row["rms"] <= row["max"] and row["round_trip"]["log_density_rms"] > 0
    assert set(results["speeds"]) == {"velocity", "batched", "loop", "full"}
    assert results["speeds"]["velocity"]["per_cpu_s"]["mean"] > results["speeds"]["batched"]["per_cpu_s"]["mean"]
    assert {row["kind"] for row in results["weights"]} == {"ode", "path"}
    for row in results["weights"]:
        assert 0 < row["ess_fraction"] <= 1 and row["effective_per_cpu_s"] > 0 and np.isfinite(row["log_z"])
    assert record["costs"][0]["cpu_s"] > 1 and len(record["targets"]) == 5
    assert "path weights" in (tmp_path / "density-smoke.md").read_text()
    guard = command("benchmark", "guard", str(FLOORS), str(tmp_path / "density-smoke.json"))
    assert guard.returncode == 0, guard.stdout + guard.stderr


def test_path_weights_through_the_pipeline(command: CommandLine, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")  # trained already
    settings = ["sample.sampler=path", "sample.n_steps=12", "sample.n_samples=60", "sample.shard_size=40"]
    values = [part for value in settings for part in ("--set", value)]
    shown = command("run", "tiny", "--out", str(tmp_path / "run"), "--to", "correct", *values)
    assert shown.returncode in (0, 3), shown.stderr
    run = Run.open(tmp_path / "run")
    details = run.details("sample")
    assert details["density"] == "path" and details["network_evaluations"] == 12 and "round_trip" not in details
    weighted = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    expected = importance_log_weights(weighted.reduced_energy, weighted.log_density)
    np.testing.assert_allclose(weighted.log_weight, expected)
    assert len(weighted) == 60 and 0 < run.details("correct")["ess_fraction"] <= 1


def test_exact_weights_say_how_exact(command: CommandLine, tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    values = [part for value in ("sample.integrator=heun", "sample.n_steps=10") for part in ("--set", value)]
    shown = command("run", "tiny", "--out", str(tmp_path / "run"), "--to", "sample", *values)
    assert shown.returncode == 0, shown.stderr
    details = Run.open(tmp_path / "run").details("sample")
    assert details["density"] == "exact" and details["network_evaluations"] == 20
    trip = details["round_trip"]
    assert 0 < trip["log_density_rms"] <= trip["log_density_max"] < 1 and 0 < trip["features_rms"] <= trip["features_max"] < 1


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["sample.sampler=path", "surrogate={name: flow}"], "needs surrogate.name diffusion"),
        (["sample.sampler=path", "sample.log_density=false"], "needs ln q"),
        (["sample.integrator=adaptive", "sample.n_steps=8"], "chooses its steps"),
    ],
)
def test_settings_that_contradict_each_other(assignments: list[str], words: str) -> None:
    from hpc_molgen.config import load_config

    with pytest.raises(InputError, match=words):
        load_config("alanine-dipeptide", ["sample.n_steps=null", *assignments])


def test_path_weights_serve_rounds() -> None:
    from hpc_molgen.config import load_config

    assert load_config("alanine-dipeptide", ["sample.sampler=path", "refine.rounds=1"]).refine.rounds == 1
