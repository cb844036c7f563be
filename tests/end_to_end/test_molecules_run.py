"""One surrogate for alanine and glycine that has learnt from alanine alone: killed, resumed, in parts, and to the report."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file

from hpc_molgen import datasets, molecules
from hpc_molgen.config import load_config
from hpc_molgen.pipeline import run_stages
from hpc_molgen.representations import relaxed
from hpc_molgen.run import STAGES, Run, stage_costs
from hpc_molgen.training import shared
from hpc_molgen.workers import Workers
from tests.conftest import CommandLine

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
LIST = ["molecules=[ALA,GLY]", "unseen=[GLY]"]
SETTINGS = [
    "reference.n_walkers=4", "reference.production_ps=6", "reference.equilibration_ps=0.5", "reference.platform=batched",
    "surrogate.hidden=32", "surrogate.width=16", "surrogate.layers=1", "train.n_steps=30", "train.batch_size=128",
    "sample.n_samples=300", "sample.shard_size=150", "sample.n_steps=4", "correct.n_structures=4", "correct.method=weights",
    "farm.n_replicas=2", "farm.production_ps=0.5", "farm.equilibration_ps=0.1", "farm.minimise_iterations=20",
    "farm.platform=batched", "report.bootstrap_samples=20", "report.baseline_steps=1000",
]  # fmt: skip
# A representation from fewer trial structures takes a tenth of the time. One core: no process for each shard has to start.
QUICK = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
from hpc_molgen.representations import relaxed
relaxed.TRIALS, relaxed.HESSIANS, relaxed.ROUNDS = 200, 6, 1
from hpc_molgen.cli import main
main()
"""
RANKS = """
import sys
from pathlib import Path
from hpc_molgen.pipeline import run_stages
from hpc_molgen.run import Run
from hpc_molgen.workers import Workers
run_stages(Run.open(Path(sys.argv[1]), Workers.detect()), ["train", "sample"])
"""


def line(out: Path, *further: str) -> list[str]:
    values = [part for value in (*LIST, *SETTINGS) for part in ("--set", value)]
    return ["run", "peptides", "--out", str(out), *values, *further]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, ended by SIGTERM when the first molecule has its representation, done by the same command, and reported on."""
    out = tmp_path_factory.mktemp("molecules") / "run"
    quick = [sys.executable, "-c", QUICK]
    command = [*quick, *line(out, "--to", "farm")]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "molecules" / "ALA" / "featurize" / "done.json").exists():
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    _, message = first.communicate(timeout=60)
    assert first.returncode == 130 and "Traceback" not in message and "goes on" in message.splitlines()[-1]
    assert not (out / "farm").exists()
    representation = out / "molecules" / "ALA" / "featurize" / "representation.safetensors"
    kept = representation.stat()
    again = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0 and not (out / "report").exists(), again.stderr
    report = subprocess.run([*quick, "report", str(out)], capture_output=True, text=True, timeout=240, check=False)
    assert report.returncode == 3, report.stderr  # so little MD has no converged free energy
    assert "Certified: 0 of 1 molecules that the surrogate learnt from (not ALA), and 0 of 1 molecules" in report.stdout
    assert (representation.stat().st_ino, representation.stat().st_mtime_ns) == (kept.st_ino, kept.st_mtime_ns)
    assert [stage_costs(Run.open(out), stage)["attempts"] for stage in ("reference", "report")] == [1, 1]
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A copy that may be changed."""
    shutil.copytree(finished, tmp_path / "run")
    return Run.open(tmp_path / "run")


def without(run: Run, *stages: str) -> Run:
    """Forget stages, of the whole and of its molecules."""
    for one in (run, *molecules.members(run)):
        for stage in stages:
            shutil.rmtree(one.path(stage))
    return run


def assert_same_proposals(first: Path, second: Path) -> None:
    for name in ("ALA", "GLY"):
        paths = [out / "molecules" / name / "sample" / "proposals.h5" for out in (first, second)]
        with h5py.File(paths[0]) as one, h5py.File(paths[1]) as other:
            assert len(one["coordinates"]) == 300
            for key in ("coordinates", "log_density"):
                np.testing.assert_array_equal(one[key][()], other[key][()], err_msg=f"{key} of {name}")


def same_surrogate(first: Path, second: Path) -> bool:
    one, two = (load_file(out / "train" / "surrogate.safetensors") for out in (first, second))
    return one.keys() == two.keys() and all(bool((one[key] == two[key]).all()) for key in one)


def test_the_report_has_the_figures_of_the_molecules(finished: Path) -> None:
    whole = read(finished / "report" / "report.json")
    assert whole["surrogate"]["molecules"] == ["ALA"] and 0 < whole["surrogate"]["cpu_s"] < 100
    html = (finished / "report" / "report.html").read_text()
    for row, name, role in zip(whole["molecules"], ("ALA", "GLY"), ("seen", "unseen"), strict=True):
        own = Run.open(finished / "molecules" / name)
        theirs = read(own.path("report", "report.json"))
        plane = [part for part in theirs["divergences"] if part["observable"].startswith("(phi1, psi1)")]
        assert row["ratio"] == {part["label"].split()[0]: part["ratio"] for part in plane} and len(plane) == 2
        assert (row["ess_fraction"], row["k_hat"]) == (theirs["weights"]["ess_fraction"], theirs["weights"]["k_hat"])
        assert row["delta_f"]["corrected"] == theirs["delta_f"]["corrected"] and row["cv"] == "phi1"
        assert row["delta_f"]["held_out"] == theirs["delta_f"]["reference"]
        assert row["reason"] == theirs["verdict"]["reasons"][0] and not row["certified"]
        assert (row["name"], row["role"], row["n_atoms"]) == (name, role, own.system.n_atoms)
        assert row["n_torsions"] == own.details("featurize")["n_torus"]
        spent = {stage["stage"]: stage["cpu_s"] for stage in theirs["costs"]["stages"]}
        assert row["reference_cpu_s"] == spent["reference"] and row["farm_cpu_s"] == spent["farm"]
        assert row["own_cpu_s"] == pytest.approx(sum(spent[s] for s in ("featurize", "train", "sample", "correct")))
        assert f'<a href="../molecules/{name}/report/report.html">{name}</a>' in html
        assert (finished / "report" / ".." / "molecules" / name / "report" / "report.html").is_file()
    unseen = whole["molecules"][1]
    assert whole["unseen_medians"] == {"ess_fraction": unseen["ess_fraction"], "ratio": unseen["ratio"]["corrected"]}


def test_frames_of_the_unseen_molecule_do_not_enter_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other frames of glycine leave every bit of the surrogate as it is; other frames of alanine do not."""
    ala = molecules.members(run)[0]
    assert run.details("train")["n_items"] == len(datasets.load_split(ala)[0]) > 0
    monkeypatch.setattr(relaxed, "TRIALS", 200)
    monkeypatch.setattr(relaxed, "HESSIANS", 6)
    monkeypatch.setattr(relaxed, "ROUNDS", 1)
    for name, same in (("GLY", True), ("ALA", False)):
        entries = [{"name": one, "system": {"sequence": one}, "seed": 2 if one == name else 1} for one in ("ALA", "GLY")]
        values = [f"molecules={json.dumps(entries)}", LIST[1], *SETTINGS]
        out = run.directory.with_name(name)
        shutil.copytree(run.directory, out)
        if same:
            (out / "train" / "shared.json").unlink()  # or else it would be taken over and not trained
        other = Run.create(out, load_config("peptides", values), Workers())
        run_stages(other, ["reference", "featurize", "train"])
        walkers = [out / "molecules" / name / "reference" / "walker-0000.h5", out / "molecules" / name]
        old = next(walkers[1].glob("reference.old-*")) / "walker-0000.h5"
        with h5py.File(walkers[0]) as new, h5py.File(old) as before:
            assert not np.array_equal(new["coordinates"][()], before["coordinates"][()])
        assert stage_costs(other, "train")["attempts"] == 2 and same_surrogate(run.directory, out) is same


def test_a_further_molecule_gets_the_surrogate_that_is_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third one comes when all is done: nothing of the first two is made again, and no surrogate is trained."""
    for name, value in (("TRIALS", 200), ("HESSIANS", 6), ("ROUNDS", 1)):
        monkeypatch.setattr(relaxed, name, value)
    monkeypatch.setattr(shared, "train_shared", lambda *_: pytest.fail("trains"))
    before = [[stage_costs(one, stage)["attempts"] for stage in STAGES] for one in molecules.members(run)]
    kept = run.path("train", "surrogate.safetensors").read_bytes()
    values = ["molecules=[SER,ALA,GLY]", "unseen=[GLY,SER]", *SETTINGS]
    further = Run.create(run.directory, load_config("peptides", values), Workers())
    run_stages(further, ["reference", "featurize", "train", "sample", "correct"])
    ser, *others = molecules.members(further)
    assert all(molecules.is_done(further, stage) for stage in ("reference", "featurize", "train", "sample", "correct"))
    assert [[stage_costs(one, stage)["attempts"] for stage in STAGES] for one in others] == before
    assert further.path("train", "surrogate.safetensors").read_bytes() == kept
    assert further.details("train")["molecules"] == ["ALA"] and further.details("train")["n_items"] > 0
    assert stage_costs(further, "shared")["attempts"] == 1 and stage_costs(further, "train")["attempts"] == 2
    with h5py.File(ser.path("sample", "proposals.h5")) as file:
        assert len(file["coordinates"]) == 300 and np.isfinite(file["log_density"][()]).all()


def test_the_same_command_again_does_nothing(command: CommandLine, finished: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = command(*line(finished))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert again.returncode == 3 and "starts" not in again.stderr, again.stderr
    assert again.stderr.count("of all molecules: done before with the same inputs, skipped") == 7
    assert after.ru_utime - before.ru_utime < 5  # no torch, no OpenMM


def test_what_is_missing_of_one_molecule_is_made_again(run: Run) -> None:
    shutil.rmtree(run.path("molecules", "GLY", "correct"))
    attempts = {name: stage_costs(one, "correct")["attempts"] for name, one in zip("AG", molecules.members(run), strict=True)}
    run_stages(run, ["train", "sample", "correct"])
    ala, gly = molecules.members(run)
    assert gly.is_done("correct") and stage_costs(gly, "correct")["attempts"] == attempts["G"] + 1
    assert stage_costs(ala, "correct")["attempts"] == attempts["A"]


def test_parts_of_an_array_are_merged(run: Run, finished: Path) -> None:
    without(run, "sample")
    for number in (1, 0):
        run_stages(Run.open(run.directory, Workers(share=(number, 2))), ["sample"])
        shards = {path.relative_to(run.directory / "molecules") for path in run.directory.glob("molecules/*/sample/shard-*.h5")}
        assert not run.is_done("sample")
        if number == 1:  # who does the second part of the first molecule does the first one of the second
            assert {str(path) for path in shards} == {"ALA/sample/shard-00001.h5", "GLY/sample/shard-00000.h5"}
    assert len(shards) == 4
    run_stages(run, ["sample"])
    assert molecules.is_done(run, "sample")
    assert_same_proposals(finished, run.directory)


@pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec here: pip install 'hpc-molgen[mpi]'")
def test_two_ranks_of_mpi_give_the_same_bits(run: Run, finished: Path) -> None:
    without(run, "train", "sample")
    ranks = [str(MPIEXEC), "-n", "2", sys.executable, "-c", RANKS, str(run.directory)]
    ended = subprocess.run(ranks, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    assert same_surrogate(finished, run.directory)
    assert_same_proposals(finished, run.directory)


def test_jobs_run_the_stages_of_all_molecules(command: CommandLine, run: Run) -> None:
    """`submit` to this machine, `farm` and `status` of a run of many."""
    without(run, "correct", "farm")
    out = str(run.directory)
    submitted = command("submit", *line(run.directory, "--site", "local", "--only", "correct")[1:])
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert molecules.is_done(run, "correct") and not run.path("farm").exists()
    shared = command("farm", out, "--share", "0/2")
    assert shared.returncode == 0 and "replicas" not in shared.stdout, shared.stderr
    farm = command("farm", out, "--resume")
    assert farm.returncode == 0 and "4 of 4 replicas of 2 molecules done" in farm.stdout, farm.stderr
    rows = json.loads(command("status", out, "--json").stdout)
    assert [row["stage"] for row in rows[:7]] == list(STAGES)
    assert [(row["molecule"], row["state"]) for row in rows[7:]] == [("ALA", "done"), ("GLY", "done")]
    assert "GLY (unseen)  report     done" in command("status", out).stdout
