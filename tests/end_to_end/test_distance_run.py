"""A run whose features have no density, from the first command to the report; and one whose weights are estimates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.efficiency.verdict import decide, doubt_of, gate
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.pipeline import STAGE_FUNCTIONS
from hpc_molgen.run import Run
from hpc_molgen.structures import read_manifest, read_pdb_positions
from tests.conftest import CommandLine
from tests.end_to_end.test_report import GAINS

SMALL = {
    "reference.n_walkers": 4, "reference.production_ps": 1200, "reference.equilibration_ps": 50, "reference.save_every_ps": 2,
    "surrogate.hidden": 64, "surrogate.depth": 1, "train.n_steps": 300, "train.batch_size": 128, "train.validate_every": 150,
    "train.ema_decay": 0.98, "sample.n_samples": 300, "sample.shard_size": 150, "correct.n_structures": 20,
    "farm.n_replicas": 2, "farm.production_ps": 20, "report.bootstrap_samples": 20, "report.baseline_steps": 1000,
}  # fmt: skip
SETTINGS = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def finished(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("distance") / "run"
    ended = command("run", "trp-cage-distance", "--out", str(out), *SETTINGS)
    assert ended.returncode == 3, ended.stderr  # finished, and no gate is passed without weights
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("no importance weights are made, as the representation 'distance' has no density") == 1
    return out


def test_no_weights_are_made_and_all_files_say_why(finished: Path) -> None:
    run = Run.open(finished)
    features = run.details("featurize")
    assert features["density"] == "none" and "degrees of freedom" in features["density_note"]
    assert features["round_trip"]["right_handed"] > 0.99 and features["round_trip"]["bonds_rms_nm"] < 0.01
    assert run.details("sample")["density"] == "none"
    weighted = read_ensemble(finished / "correct" / "weighted.h5", run.system)
    assert not weighted.log_weight.any() and np.isnan(weighted.log_density).all()
    assert len(weighted) == 300 and np.isfinite(weighted.reduced_energy).all()
    diagnostics = json.loads((finished / "correct" / "diagnostics.json").read_text())
    assert diagnostics["weighted"] is False and diagnostics["density"] == "none"
    assert "the representation 'distance' has no density of conformations" in diagnostics["reason"]
    assert diagnostics["reason"] in diagnostics["coverage"]["skipped"] and diagnostics["coverage"]["density"] is None
    assert "k_hat" not in diagnostics and not diagnostics["temperatures"]
    assert not (finished / "correct" / "islands").exists()


def test_structures_are_right_handed_chains(finished: Path) -> None:
    run = Run.open(finished)
    folder = finished / "correct" / "pdb"
    rows = read_manifest(folder, run.system)
    assert len(rows) == 20 and {row["weight"] for row in rows} == {1 / 20}
    x = np.array([read_pdb_positions(folder / str(row["file"]), run.system) for row in rows])
    bonds = np.linalg.norm(np.diff(x, axis=1), axis=2)
    native = np.linalg.norm(np.diff(run.system.positions_nm, axis=0), axis=1)
    assert np.abs(bonds / native - 1).max() < 0.2  # what the check of structures lets pass
    assert np.sqrt(((bonds - native) ** 2).mean()) < 2 * 0.0073  # twice the thermal vibration of these bonds at 320 K
    engine = Engine(run.system, "Reference")
    wrong = engine.reduced_energy(x * np.array([1, 1, -1])) < engine.reduced_energy(x)
    # a surrogate trained for seconds mixes the handedness of parts in one of thirty samples: of 20, more than 4 has p = 4e-4
    assert wrong.sum() <= 4


def test_the_report_compares_raw_samples_and_promises_nothing(finished: Path) -> None:
    text = (finished / "report" / "report.md").read_text()
    record = json.loads((finished / "report" / "report.json").read_text())
    assert "No importance weights exist in this run, as the representation 'distance' has no density of conformations" in text
    assert "Raw samples beside held-out MD" in text and "come back as themselves" in text
    assert [row["name"] for row in record["observables"]] == ["q", "rmsd", "rg"]
    for row in record["observables"]:
        mean = row["means"]["held-out MD"]
        assert mean["low"] < mean["value"] < mean["high"] and row["distance"] > 0 and row["floor"] > 0
    assert not record["verdict"]["gate_passed"] and not record["break_even"].get("available", True)
    assert "no importance weights exist in this run, as the representation 'distance'" in record["verdict"]["sentence"]
    named = {row["what"]: row["why"] for row in record["left_out"]}
    assert "'distance'" in named["corrected samples"]
    assert len((finished / "farm" / "manifest.jsonl").read_text().splitlines()) == 2


def test_soft_contacts_run_as_well(finished: Path, command: CommandLine, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    asked = [*SETTINGS, "--set", "representation.distance_of=contacts", "--set", "train.n_steps=20"]
    ended = command(
        "run", "trp-cage-distance", "--out", str(tmp_path / "run"), *asked, "--from", "featurize", "--to", "correct"
    )
    assert ended.returncode == 0, ended.stderr
    run = Run.open(tmp_path / "run")
    found = run.details("featurize")["round_trip"]
    assert found["right_handed"] > 0.98 and 0 < found["saturated"] < 0.1 and found["bonds_rms_nm"] < 0.01
    x = read_ensemble(run.path("sample", "proposals.h5"), run.system).positions_nm
    assert np.abs(np.linalg.norm(np.diff(x, axis=1), axis=2) / 0.38 - 1).max() < 0.2  # though training has hardly begun


def test_what_needs_weights_ends_with_one_message(command: CommandLine) -> None:
    ended = command("check", "trp-cage-distance", "--set", "refine.rounds=1", "--set", "correct.method=anneal")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "has no density of conformations" in ended.stderr and "refine.rounds and correct.method anneal" in ended.stderr


def test_estimated_weights_are_never_certified(tiny_run: Path, tmp_path: Path) -> None:
    """The weights of a representation that says that its density is an estimate, here one that is exact in truth."""
    shutil.copytree(tiny_run, tmp_path / "run")
    run, note = Run.open(tmp_path / "run"), "its Jacobian is approximate"
    path = run.path("featurize", "done.json")
    done = json.loads(path.read_text())
    done["details"] |= {"density": "estimated", "density_note": note}
    path.write_text(json.dumps(done))
    for stage in ("correct", "report"):
        STAGE_FUNCTIONS[stage](run)
    diagnostics = json.loads(run.path("correct", "diagnostics.json").read_text())
    assert diagnostics["weighted"] and diagnostics["density"] == "estimated" and diagnostics["certified"] is False
    assert "ess_fraction" in diagnostics and doubt_of(diagnostics) == note
    html, text = (run.path("report", f"report.{kind}").read_text() for kind in ("html", "md"))
    assert f"The weights are estimates, which are never certified: {note}" in text
    assert (
        f"the weights are estimates: {note}" in json.loads(run.path("report", "report.json").read_text())["verdict"]["sentence"]
    )
    for page in (html, text):
        assert "Not certified" in page and not [word for word in GAINS if word in page.lower()]


def test_no_other_figure_makes_up_for_an_estimate() -> None:
    """A gate that nothing else would close stays closed."""
    sound = {check.name: check.passed for check in gate("phi", True, 0.1, 99, None, None, [])}
    assert all(sound.values())
    checks = gate("phi", True, 0.1, 99, None, None, [], None, "the map is not one to one")
    assert [check.name for check in checks if not check.passed] == ["exact weights"]
    verdict = decide("phi", checks, None, None, None, [])
    assert verdict.headline == "Not certified" and "the map is not one to one" in verdict.sentence
