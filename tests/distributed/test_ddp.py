"""Training by torch's ranks is training by one process, and a killed training that goes on ends where it would have."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
# the trainer computes in float32: ranks add the same gradients in another order, and Adam carries that along
RELATIVE_TOLERANCE = 1e-4


def line_of(out: Path, *settings: str) -> list[str]:
    values = [part for setting in settings for part in ("--set", setting)]
    return ["hpc_molgen", "run", "tiny", "--out", str(out), "--only", "train", *values]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def losses(out: Path) -> dict[tuple[str, int], float]:
    records = [json.loads(line) for line in (out / "train" / "metrics.jsonl").read_text().splitlines()]
    return {(name, record["step"]): record[name] for record in records for name in ("loss", "held_out_loss") if name in record}


@pytest.fixture
def untrained(tiny_run: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    shutil.rmtree(out / "train")
    return out


def test_two_ranks_train_as_one_process_does(tiny_run: Path, untrained: Path) -> None:
    ended = run([*TORCHRUN, *line_of(untrained)])
    assert ended.returncode == 0, ended.stderr
    one, two = losses(tiny_run), losses(untrained)
    assert one.keys() == two.keys() and ("held_out_loss", 60) in one
    assert two == pytest.approx(one, rel=RELATIVE_TOLERANCE)
    done = json.loads((untrained / "train" / "done.json").read_text())
    assert done["details"]["ranks"] == 2


def test_a_killed_training_ends_with_the_same_bits(untrained: Path, tmp_path: Path) -> None:
    settings = ("train.n_steps=400", "train.checkpoint_every_s=0.3")
    whole = tmp_path / "whole"
    shutil.copytree(untrained, whole)
    ended = run([sys.executable, "-m", *line_of(whole, *settings)])
    assert ended.returncode == 0, ended.stderr

    command = [sys.executable, "-m", *line_of(untrained, *settings)]
    victim = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list((untrained / "train").glob("checkpoint-*.pt")):
            assert victim.poll() is None and time.monotonic() < deadline, "it ended before a checkpoint was written"
            time.sleep(0.01)
    finally:
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
    assert not (untrained / "train" / "done.json").exists()

    resumed = run(command)
    assert resumed.returncode == 0 and "training resumes at step" in resumed.stderr, resumed.stderr
    first, second = (load_file(out / "train" / "surrogate.safetensors") for out in (whole, untrained))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert losses(whole) == losses(untrained)
