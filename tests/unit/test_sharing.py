"""How many processes a GPU is given: the same measurement, of cores here."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from hpc_molgen.config import FarmConfig
from hpc_molgen.farm import plan, sharing, stage
from hpc_molgen.farm.plan import Plan
from hpc_molgen.run import Run
from hpc_molgen.systems.base import MolecularSystem

CORES = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("cores", [CORES[:2], [CORES[0], CORES[0]], CORES[:1]])
def test_it_is_what_was_measured(alanine: MolecularSystem, caplog: pytest.LogCaptureFixture, cores: list[int]) -> None:
    """Real processes, on two cores, on one, and alone; who else works on these cores decides what is best, so the log does."""
    caplog.set_level("INFO")
    found = sharing.measured_per_gpu(alanine, FarmConfig(), "Reference", cores, measure_s=0.3)
    (listed,) = re.findall(r"farm: (\d) process\(es\) for each GPU \(steps/s of all: (.*)\)", caplog.text)
    speeds = {int(n): float(value.replace(",", "")) for n, value in re.findall(r"(\d): ([\d,]+)", listed[1])}
    assert list(speeds) == [1, 2][: len(cores)] and all(speed > 1000 for speed in speeds.values())
    assert found == int(listed[0]) == (2 if speeds.get(2, 0) >= sharing.GAIN * speeds[1] else 1)


def test_a_gpu_without_memory_for_more(alanine: MolecularSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_steps_per_s", lambda *arguments: {1: 100.0, 2: 150.0, 4: 0.0}[len(arguments[3])])
    assert sharing.measured_per_gpu(alanine, FarmConfig(), "CUDA", [0] * 16) == 2
    monkeypatch.setattr(sharing, "_steps_per_s", lambda *arguments: 100.0 + len(arguments[3]))
    assert sharing.measured_per_gpu(alanine, FarmConfig(), "CUDA", [0] * 16) == 1


def test_a_platform_that_is_not_there_is_an_error(alanine: MolecularSystem) -> None:
    with pytest.raises(Exception, match="ended early"):
        sharing.measured_per_gpu(alanine, FarmConfig(), "OpenCL", CORES[:1], measure_s=0.1)


def test_it_is_measured_once(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    fresh_run = Run.open(tiny_run)
    monkeypatch.setattr(fresh_run, "directory", tmp_path)
    monkeypatch.setattr(sharing, "measured_per_gpu", lambda *arguments: (asked.append(arguments[2]), 3)[1])
    monkeypatch.setattr(stage, "n_visible_gpus", lambda: 4)
    path = fresh_run.path("farm", "plan.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"platform": "CUDA", "pack_size": 1}))
    made = Plan("CUDA", 1, tmp_path, ["a.pdb"], [0.0])
    assert [stage._at_once(fresh_run, made) for _ in range(2)] == [12, 12] and asked == ["CUDA"]
    assert json.loads(path.read_text())["per_gpu"] == 3
    fresh_run.config = fresh_run.config.model_copy(update={"farm": FarmConfig(per_gpu=2)})
    assert stage._at_once(fresh_run, made) == 8
    assert stage._at_once(fresh_run, Plan("CPU", 1, tmp_path, ["a.pdb"], [0.0])) is None
    assert plan.processes_per_gpu(fresh_run, made) == 2
