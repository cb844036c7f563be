"""Run directories: what makes a stage out of date, what it cost, what went wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hpc_molgen import datasets
from hpc_molgen.config import load_config
from hpc_molgen.errors import InputError
from hpc_molgen.files import appearing_whole
from hpc_molgen.progress import Progress
from hpc_molgen.run import STAGES, Run, stage_costs
from hpc_molgen.status import run_status
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.base import MolecularSystem
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
    fingerprint = run.fingerprint("reference")
    other = Run.create(tmp_path / "run", load_config("tiny", ["reference.production_ps=11"]), Workers())
    with other.stage("reference"):
        assert not other.path("reference", "walker-0000.h5").exists()
    assert not run.is_done("reference") and other.is_done("reference")
    assert (run.directory / f"reference.old-{fingerprint}" / "walker-0000.h5").read_text() == "old"
    assert stage_costs(other, "reference")["attempts"] == 2  # searches over settings are counted


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("# mine\nname: mine\n")
    with pytest.raises(InputError, match="not of an hpc-molgen run"):
        Run.create(tmp_path, load_config("tiny"), Workers())
    assert (tmp_path / "config.yaml").read_text() == "# mine\nname: mine\n"
    run = Run.create(tmp_path / "run", load_config("tiny"), Workers())
    (tmp_path / "run" / "reference").mkdir()
    (tmp_path / "run" / "reference" / "mine.xtc").write_text("precious")
    with pytest.raises(InputError, match="no stage of hpc-molgen wrote"), run.stage("reference"):
        pass
    assert (tmp_path / "run" / "reference" / "mine.xtc").read_text() == "precious"


def test_a_missing_walker_does_not_change_the_split(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "reference" / "walker-0001.h5").unlink()
    with pytest.raises(InputError, match=r"walkers \[1\] of 4 are missing"):
        datasets.load_split(reopened(tmp_path / "run"))


def test_a_changed_input_file_is_noticed_by_content(alanine: MolecularSystem, tmp_path: Path) -> None:
    pdb = tmp_path / "mine.pdb"
    pdb.write_text(pdb_text(alanine.topology, alanine.positions_nm, []))
    config = load_config("tiny", ["system.name=pdb", f"system.pdb={pdb}"])
    run = Run(tmp_path / "run", config, Workers())
    before = run.fingerprint("reference")
    text = pdb.read_text()
    pdb.write_text(text)
    assert run.fingerprint("reference") == before
    pdb.write_text(text.replace("END", "REMARK\nEND"))
    assert run.fingerprint("reference") != before


def test_stages_need_finished_inputs_of_the_same_settings(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    run = reopened(tmp_path / "run", "reference.production_ps=11")
    with pytest.raises(InputError, match="'reference', which was made with other settings"), run.stage("featurize"):
        pass


def test_every_list_of_stages_is_the_same() -> None:
    """The command line keeps its own copy, so that --help imports nothing."""
    from hpc_molgen import cli, pipeline

    assert list(cli._STAGES) == list(STAGES) == list(pipeline.STAGE_FUNCTIONS)


def test_a_damaged_marker_is_named(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "train" / "done.json").write_text("{")
    with pytest.raises(InputError, match=r"done\.json"):
        reopened(tmp_path / "run").is_done("train")


def test_time_left_counts_this_attempt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """90 of 100 steps were done before; 5 more in 10 s leave 5, so 10 s."""
    clock = [0.0]
    monkeypatch.setattr("hpc_molgen.progress.time.monotonic", lambda: clock[0])
    progress = Progress("train", 100, "steps", None)
    progress.set(90)
    assert progress.eta_s is None
    clock[0] = 10.0
    progress.set(95)
    assert progress.eta_s == pytest.approx(10.0)


def test_what_a_killed_process_left_of_the_first_file_of_a_stage_is_no_obstacle(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", load_config("tiny"), Workers())
    run.path("reference").mkdir()
    (run.path("reference") / ".inputs.json.partial-1").write_text("{")
    with run.stage("reference") as details:
        details["walkers"] = []
    assert run.is_done("reference")


def test_an_interruption_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), appearing_whole(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
