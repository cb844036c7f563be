"""Run directories: what makes a stage out of date, what it cost, what went wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hpc_molgen.config import load_config
from hpc_molgen.errors import InputError
from hpc_molgen.run import STAGES, Run, run_status, stage_costs
from hpc_molgen.workers import Workers


def reopened(directory: Path, *assignments: str) -> Run:
    return Run(directory, load_config("tiny", list(assignments)), Workers())


def stale(run: Run) -> list[str]:
    return [stage for stage in list(STAGES)[:-1] if not run.is_done(stage)]


def test_a_change_makes_what_depends_on_it_out_of_date(tiny_run: Path) -> None:
    assert stale(reopened(tiny_run)) == []
    assert stale(reopened(tiny_run, "farm.production_ps=3")) == ["farm"]
    assert stale(reopened(tiny_run, "sample.n_steps=7")) == ["sample", "correct", "farm"]
    assert stale(reopened(tiny_run, "seed=2")) == list(STAGES)[:-1]
    assert stale(reopened(tiny_run, "train.checkpoint_every_s=5", "train.log_every=1")) == []  # how, not what


def test_costs_of_all_attempts_are_added(tiny_config: object, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", load_config("tiny"), Workers())
    with pytest.raises(ZeroDivisionError), run.stage("reference"):
        _ = 1 / 0
    rows = {row["stage"]: row for row in run_status(run.directory)}
    assert rows["reference"]["state"] == "failed" and "ZeroDivisionError" in rows["reference"]["error"]
    with run.stage("reference") as details:
        details["answer"] = 42
    assert run.details("reference") == {"answer": 42} and run.is_done("reference")
    costs = stage_costs(run, "reference")
    assert costs["attempts"] == 2 and costs["wall_s"] > 0
    done = json.loads(run.path("reference", "done.json").read_text())
    assert done["provenance"]["packages"]["openmm"] and done["provenance"]["cores"] >= 1


def test_results_of_other_inputs_are_removed_and_never_resumed(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", load_config("tiny"), Workers())
    with run.stage("reference"):
        run.path("reference", "walker-0000.h5").write_text("old")
    other = Run.create(tmp_path / "run", load_config("tiny", ["reference.production_ps=11"]), Workers())
    with other.stage("reference"):
        assert not other.path("reference", "walker-0000.h5").exists()
    assert not run.is_done("reference") and other.is_done("reference")


def test_stages_need_finished_inputs_of_the_same_settings(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    run = reopened(tmp_path / "run", "reference.production_ps=11")
    with pytest.raises(InputError, match="'reference', which was made with other settings"), run.stage("featurize"):
        pass


def test_a_damaged_marker_is_named(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "train" / "done.json").write_text("{")
    with pytest.raises(InputError, match=r"done\.json"):
        reopened(tmp_path / "run").is_done("train")
