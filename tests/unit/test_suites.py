"""The registry of suites: what every one of them offers."""

from __future__ import annotations

import importlib
import threading
import time
from pathlib import Path

import pytest

from hpc_molgen.efficiency.suites import SIZES, SUITES, run_suite
from hpc_molgen.efficiency.suites.rounds import target, target_sentence
from hpc_molgen.efficiency.suites.runs import alone
from hpc_molgen.errors import InputError


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_has_every_size(suite: str, tmp_path: Path) -> None:
    module = importlib.import_module(SUITES[suite].partition(":")[0])
    assert set(module.SIZES) == set(SIZES)
    with pytest.raises(InputError, match="'huge' does not exist; the sizes are: smoke, laptop, cluster"):
        run_suite(suite, "huge", tmp_path, 1)


def test_texts_name_as_many_jobs_as_there_are_suites() -> None:
    root = Path(__file__).resolve().parents[2]
    for place in ("slurm/benchmark.sbatch", "slurm/README.md", "benchmarks/README.md"):
        assert f"--array=0-{len(SUITES) - 1} " in (root / place).read_text(), place


def test_of_two_suites_that_share_a_run_one_waits(tmp_path: Path) -> None:
    seen: list[str] = []

    def second() -> None:
        with alone(tmp_path / "lock"):
            seen.append("second")

    thread = threading.Thread(target=second)
    with alone(tmp_path / "lock"):
        thread.start()
        time.sleep(0.7)
        seen.append("first")
    thread.join(10)
    assert seen == ["first", "second"]


def test_targets_are_meant_for_all_sizes_but_the_smallest() -> None:
    targets = [target("a", ">= 2", "3", 3.0), target("b", "<= 2", "3", 3.0)]
    for size in SIZES:
        sentence = target_sentence(targets, size)
        assert sentence.startswith("1 of 2 targets reached; missed: b.")
        assert ("They are meant for the size laptop" in sentence) == (size == "smoke")
