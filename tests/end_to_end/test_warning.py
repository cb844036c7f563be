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


DEAF = """
from concurrent.futures import process
from hpc_molgen.workers import Workers

def as_if_told_to_shut_down_first(self, cause):
    self.pending_work_items.clear()
    self.join_executor_internals()

def work(item):
    return len(item)

def leave(_):
    raise KeyboardInterrupt

if __name__ == "__main__":
    process._ExecutorManagerThread.terminate_broken = as_if_told_to_shut_down_first
    try:
        Workers(n_processes=2).map(work, [bytes(1_000_000)] * 50, leave)
    except KeyboardInterrupt:
        print("left")
"""


def test_a_full_pipe_to_workers_that_are_gone_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """The executor's own way out closes that pipe only where it notices first that they died: here it does not."""
    (tmp_path / "deaf.py").write_text(DEAF)
    ended = subprocess.run([sys.executable, "deaf.py"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0 and ended.stdout == "left\n", ended.stderr
