"""Training by any number of ranks is training by one process, and one that was killed or stopped ends where it would have.

`train_ranks.py` trains a diffusion surrogate, a WGAN-GP (with gradients of second order) and a surrogate of several molecules,
with different numbers of torsions, on made-up data.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("train_ranks.py")
JOBS = ["diffusion,precision=float64", "gan,precision=float64", "diffusion", "gan", "transferable,precision=float64"]
# float64: the issue asks for 1e-5, rounding leaves 1e-15 (diffusion) and 3e-13 (GAN). float32: ranks add the same gradients in
# another order, and Adam carries that along; 2e-7 (diffusion) and 5e-5 (GAN) were seen over 20 steps. A GAN's losses are
# differences of order one that pass through zero: below ABSOLUTE_TOLERANCE (7e-7 were seen) they are compared no further
RELATIVE_TOLERANCE = {"0": 1e-10, "1": 1e-10, "2": 1e-5, "3": 1e-4, "4": 1e-10}
ABSOLUTE_TOLERANCE = {"0": 0.0, "1": 0.0, "2": 0.0, "3": 5e-6, "4": 0.0}


def command(n_ranks: int, out: Path, *jobs: str) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_ranks}"]
    return [sys.executable, *(torchrun if n_ranks > 1 else []), str(SCRIPT), str(out), *jobs]


def train(n_ranks: int, out: Path, *jobs: str) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(command(n_ranks, out, *jobs), capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended


def curve(out: Path) -> dict[tuple[str, int], float]:
    """Losses, held-out losses and norms of gradients, by name and step."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        (name, record["step"]): value
        for record in records
        for name, value in record.items()
        if "loss" in name or "norm" in name
    }


def same_bits(first: Path, second: Path) -> bool:
    one, two = (load_file(out / "surrogate.safetensors") for out in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one")
    train(1, out, *JOBS)
    return out


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_ranks_train_as_one_process_does(one_process: Path, n_ranks: int, tmp_path: Path) -> None:
    """120 items on 4 ranks touch one block of draws each; gradients, losses and averages must agree at every step."""
    train(n_ranks, tmp_path, *JOBS)
    for job, tolerance in RELATIVE_TOLERANCE.items():
        one, many = curve(one_process / job), curve(tmp_path / job)
        assert one.keys() == many.keys() and ("held_out_loss", 20) in one
        assert many == pytest.approx(one, rel=tolerance, abs=ABSOLUTE_TOLERANCE[job]), JOBS[int(job)]
    assert ("loss_critic", 20) in curve(one_process / "1")


def test_micro_batches_add_up_to_the_batch(one_process: Path, tmp_path: Path) -> None:
    """Three micro-batches on two ranks: 20 items each, and the gradients are exchanged once."""
    train(2, tmp_path, *(f"{job},accumulate=3" for job in JOBS[:2]))
    for job in ("0", "1"):
        assert curve(tmp_path / job) == pytest.approx(curve(one_process / job), rel=RELATIVE_TOLERANCE[job])


def kill_after_a_checkpoint(line: list[str], checkpoints: Path) -> None:
    victim = subprocess.Popen(line, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not list(checkpoints.glob("checkpoint-*.pt")):
            assert victim.poll() is None and time.monotonic() < deadline, "it ended before a checkpoint was written"
            time.sleep(0.01)
    finally:
        # torchrun's ranks are sessions of their own: one that is left would write into the folder of those that go on
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [*psutil.Process(victim.pid).children(recursive=True), psutil.Process(victim.pid)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family, timeout=10)
        victim.wait()


@pytest.mark.parametrize("name", ["diffusion", "gan"])
def test_a_killed_training_of_two_ranks_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    job = f"{name},n_steps=80,checkpoint_every_s=0.05,batch_size=16"
    train(2, tmp_path / "whole", job)
    line = command(2, tmp_path / "killed", job)
    kill_after_a_checkpoint(line, tmp_path / "killed" / "0")
    assert not (tmp_path / "killed" / "0" / "surrogate.safetensors").exists()
    train(2, tmp_path / "killed", job)
    assert same_bits(tmp_path / "whole" / "0", tmp_path / "killed" / "0")
    assert curve(tmp_path / "whole" / "0") == curve(tmp_path / "killed" / "0")


def test_training_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    job = "diffusion,n_steps=80,checkpoint_every_s=0.05,batch_size=16,precision=float64"
    train(1, tmp_path / "whole", job)
    kill_after_a_checkpoint(command(2, tmp_path / "other", job), tmp_path / "other" / "0")
    train(1, tmp_path / "other", job)
    assert curve(tmp_path / "other" / "0") == pytest.approx(curve(tmp_path / "whole" / "0"), rel=1e-8)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    job = "diffusion,n_steps=80,checkpoint_every_s=0.05,batch_size=16"
    train(1, tmp_path / "whole", job)
    folder = tmp_path / "killed" / "0"
    line = command(1, tmp_path / "killed", job)
    victim = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("checkpoint-*.pt"))) < 2:
        assert victim.poll() is None and time.monotonic() < deadline, "it ended before two checkpoints were written"
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    newest = sorted(folder.glob("checkpoint-*.pt"))[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    newest.write_bytes(content)
    ended = train(1, tmp_path / "killed", job)
    assert f"{newest.name} is damaged" in ended.stderr
    assert same_bits(tmp_path / "whole" / "0", folder)


def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path: Path) -> None:
    """Slurm's warning may reach one rank before another; the checkpoint must be of one step, and the training go on."""
    job = "diffusion,n_steps=150,batch_size=16"
    train(2, tmp_path / "whole", job)
    line = command(2, tmp_path / "stopped", job)
    launcher = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    metrics = tmp_path / "stopped" / "0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 20):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    ranks = {process.environ()["RANK"]: process for process in psutil.Process(launcher.pid).children(recursive=True)}
    ranks["1"].send_signal(signal.SIGUSR2)
    said, _ = launcher.communicate(timeout=60)
    assert said.count("training stopped at step") == 2 and len({line for line in said.splitlines() if "stopped" in line}) == 1
    assert len(list(metrics.parent.glob("checkpoint-*.pt"))) == 1
    train(2, tmp_path / "stopped", job)
    assert same_bits(tmp_path / "whole" / "0", tmp_path / "stopped" / "0")


def test_mixed_precision_keeps_weights_in_float32(one_process: Path, tmp_path: Path) -> None:
    """bf16 has 8 bits of mantissa: losses follow those of float32 to a percent, and not to the last digit.

    A critic's loss is a difference that passes through zero later: it is compared at its first steps, where it is not small.
    """
    train(1, tmp_path, "diffusion,precision=bf16", "gan,precision=bf16")
    for job, reference in (("0", "2"), ("1", "3")):
        mixed, full = curve(tmp_path / job), curve(one_process / reference)
        name, steps = ("loss_score", (10,)) if job == "0" else ("loss_critic", (1, 2, 3))
        for step in steps:
            assert mixed[name, step] == pytest.approx(full[name, step], rel=2e-2) and mixed[name, step] != full[name, step]
        weights = load_file(tmp_path / job / "surrogate.safetensors").values()
        assert {value.dtype for value in weights} == {torch.float32}


def test_a_batch_smaller_than_the_ranks_is_refused(tmp_path: Path) -> None:
    line = command(1, tmp_path, "diffusion,batch_size=4,accumulate=5")
    ended = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0 and "train.batch_size 4 is too small" in ended.stderr


def test_compiled_training_follows_the_eager_one(tmp_path: Path) -> None:
    """Of the GAN the generator is compiled; the critic's penalty needs gradients of gradients, which the compiler lacks."""
    ended = train(1, tmp_path, *(f"{name},n_steps=4{how}" for how in ("", ",compile=true") for name in ("diffusion", "gan")))
    for name, (eager, compiled) in {"diffusion": ("0", "2"), "gan": ("1", "3")}.items():
        assert curve(tmp_path / compiled) == pytest.approx(curve(tmp_path / eager), rel=1e-3, abs=1e-4), name
        assert curve(tmp_path / compiled) != curve(tmp_path / eager), "the compiler rounds otherwise: was it used?"
    assert "recompile" not in ended.stderr
