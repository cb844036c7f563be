"""Ctrl-C and SIGTERM in every stage: one message, exit code 130, and the same command goes on to the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc_molgen.ensemble import Ensemble, read_ensemble, write_ensemble
from hpc_molgen.run import Run
from hpc_molgen.systems.base import MolecularSystem
from tests.conftest import needs_gromacs

# stage -> settings that make it last some seconds
LONGER = {
    "reference": ["reference.production_ps=60"],
    "featurize": [],
    "train": ["train.n_steps=1500"],
    "sample": ["sample.n_samples=2000"],
    "correct": [],
    "farm": ["farm.production_ps=60"],
}


def start(stage: str, out: Path) -> tuple[list[str], subprocess.Popen[str]]:
    settings = [part for setting in LONGER[stage] for part in ("--set", setting)]
    line = [sys.executable, "-m", "hpc_molgen", "run", "tiny", "--out", str(out), "--only", stage, *settings]
    return line, subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def enlarge(out: Path, system: MolecularSystem) -> None:
    """Repeat the data that the two quick stages read, so that they last long enough to be interrupted."""
    for path, times in ((out / "sample" / "proposals.h5", 60), (out / "reference" / "walker-0000.h5", 60)):
        ensemble = read_ensemble(path, system)
        write_ensemble(path, Ensemble.concatenate([ensemble] * times), system, seed=1)


def wait_for(path: Path, process: subprocess.Popen[str], deadline_s: float = 60) -> None:
    end = time.monotonic() + deadline_s
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


@pytest.mark.parametrize("stage", list(LONGER))
def test_interrupt_and_go_on(stage: str, tiny_run: Path, alanine: MolecularSystem, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    enlarge(out, alanine)
    shutil.rmtree(out / stage)
    line, process = start(stage, out)
    wait_for(out / stage / "inputs.json", process)
    time.sleep(1.0 if LONGER[stage] else 0.05)
    os.killpg(process.pid, signal.SIGTERM if stage == "farm" else signal.SIGINT)  # a terminal signals the whole group
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert "Traceback" not in message
    assert "goes on" in message.splitlines()[-1]
    assert not (out / stage / "done.json").exists()
    again = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    assert Run.open(out).is_done(stage)


def test_a_signal_inside_compiled_text_keeps_the_exit_code(tmp_path: Path) -> None:
    lines = ("from hpc_molgen import cli", "cli.app = lambda **_: exec('raise KeyboardInterrupt')", "cli.main()")
    (tmp_path / "interrupted.py").write_text("\n".join(lines) + "\n")
    ended = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 130, ended.stderr
    assert "goes on" in ended.stderr


@needs_gromacs
def test_gromacs_ends_with_its_workers(tiny_run: Path, tmp_path: Path) -> None:
    """Its processes are in sessions of their own: a signal to the farm, and the death of a worker, end them all the same."""
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    shutil.rmtree(out / "farm")
    values = {"engine": "gromacs", "solvent": "tip3p", "box_nm": 2.4, "n_replicas": 2, "minimise_iterations": 5}
    settings = [part for key, value in values.items() for part in ("--set", f"farm.{key}={value}")]
    line = [sys.executable, "-m", "hpc_molgen", "run", "tiny", "--out", str(out), "--only", "farm", *settings]
    for sign, exit_code in ((signal.SIGTERM, 130), (signal.SIGKILL, -9)):
        farm = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
        deadline = time.monotonic() + 60
        while not (running := _processes_in(tmp_path, "mdrun")):
            assert farm.poll() is None and time.monotonic() < deadline, farm.communicate()
            time.sleep(0.1)
        farm.send_signal(sign)
        assert farm.wait(20) == exit_code, farm.communicate()
        deadline = time.monotonic() + 10
        while running := _processes_in(tmp_path, "mdrun"):
            assert time.monotonic() < deadline, running
            time.sleep(0.1)


def _processes_in(folder: Path, argument: str) -> list[int]:
    """Return the processes that work below a folder with this argument."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if argument.encode() in words and (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
    return found


def test_no_worker_outlives_a_killed_parent(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    _, process = start("reference", out)
    wait_for(out / "reference" / "inputs.json", process)
    time.sleep(2)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    group = str(process.pid)
    while time.monotonic() < deadline:
        left = subprocess.run(["pgrep", "-g", group], capture_output=True, text=True, check=False).stdout.split()
        if not left:
            return
        time.sleep(0.2)
    pytest.fail(f"processes {left} go on without their parent")
