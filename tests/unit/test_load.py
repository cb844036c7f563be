"""What a suite's record says of its costs and of what else ran."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from hpc_molgen.efficiency.suites.load import LoadWatch, _own_s
from hpc_molgen.efficiency.suites.record import Costs

SPIN = "import time; end = time.process_time() + {}\nwhile time.process_time() < end: pass"


@pytest.fixture
def stranger() -> Iterator[None]:
    """A program that keeps a core busy and has left this one's family."""
    quiet = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"  # or its pipe would keep us waiting
    detached = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', sys.argv[1]], {quiet}).pid)"
    shown = subprocess.run([sys.executable, "-c", detached, SPIN.format(60)], capture_output=True, text=True, check=True)
    yield
    subprocess.run(["kill", "-9", shown.stdout.strip()], check=True)


def test_programs_of_others_are_seen_and_own_ones_are_not(stranger: None) -> None:
    del stranger
    with LoadWatch(0.2) as watch:
        subprocess.run([sys.executable, "-c", SPIN.format(1)], check=True)
        time.sleep(0.5)
    seen = watch.seen
    assert seen["n"] >= 4 and seen["others_busy_cores"]["max"] > 0.3
    before = _own_s()
    subprocess.run([sys.executable, "-c", SPIN.format(0.5)], check=True)
    assert _own_s() - before > 0.5


def test_a_short_run_has_the_load_average_alone() -> None:
    with LoadWatch() as watch:
        pass
    assert watch.seen["n"] == 1 and watch.seen["others_busy_cores"] is None


def test_costs_count_what_a_stage_starts_and_its_hours() -> None:
    costs = Costs()
    with costs.stage("a program", gpus=2):
        subprocess.run([sys.executable, "-c", SPIN.format(0.5)], check=True)
    entry = costs.stages[0]
    assert 0.5 < entry["cpu_s"] < 5 and entry["core_h"] == pytest.approx(entry["cpu_s"] / 3600)
    assert entry["gpu_h"] == pytest.approx(2 * entry["wall_s"] / 3600)
