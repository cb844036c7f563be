"""Slurm's warning before a time limit, which goes to every process of a job: the run leaves, says why, and goes on later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil


def test_a_warning_ends_a_run_on_several_processes_and_leaves_word(tmp_path: Path) -> None:
    word = tmp_path / "word"
    settings = ["production_ps=5000", "platform=Reference", "bias_torsion=null", "starts=given"]
    line = [sys.executable, "-m", "hpc_molgen", "run", "tiny", "--out", str(tmp_path / "run"), "--only", "reference"]
    line += [part for setting in settings for part in ("--set", f"reference.{setting}")]
    env = os.environ | {"HPC_MOLGEN_REQUEUE": str(word)}
    with subprocess.Popen(line, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        deadline = time.monotonic() + 120
        while len(psutil.Process(run.pid).children()) < 2 and time.monotonic() < deadline:  # workers, and Python's own helper
            assert run.poll() is None, run.stderr.read() if run.stderr else ""
            time.sleep(0.1)
        children = psutil.Process(run.pid).children(recursive=True)
        os.killpg(run.pid, signal.SIGUSR2)
        _, text = run.communicate(timeout=60)
    assert run.returncode == 130, text
    assert word.read_text() == "SIGUSR2\n"
    assert "interrupted; what was finished is kept" in text and "Traceback" not in text and "resource_tracker" not in text
    assert len(children) >= 2 and psutil.wait_procs(children, timeout=30)[1] == []
