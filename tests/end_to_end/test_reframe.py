"""ReFrame really runs a suite through benchmarks/reframe_checks.py, and fails it when a ratio is below its floor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_molgen.dynamics.kernel import built_variants
from hpc_molgen.efficiency.suites import SUITES

CHECKS = Path(__file__).resolve().parents[2] / "benchmarks" / "reframe_checks.py"
REFRAME = Path(sys.executable).with_name("reframe")
pytestmark = pytest.mark.skipif(not REFRAME.is_file(), reason="no ReFrame here: pip install 'hpc-molgen[reframe]'")


def reframe(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it on its generic system, this machine, with all that it writes in a folder."""
    own = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    own["HOME"] = str(folder)  # it keeps reports and what it found out about this machine there
    own |= {"RFM_PREFIX": str(folder / "reframe"), "RFM_REPORT_FILE": str(folder / "report.json"), "RFM_COLORIZE": "no"}
    line = [str(REFRAME), "-c", str(CHECKS), *arguments]
    return subprocess.run(
        line, env=os.environ | own, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )  # fmt: skip


def test_a_check_for_every_suite(tmp_path: Path) -> None:
    shown = reframe(tmp_path, "-l")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    image = [] if os.environ.get("HPC_MOLGEN_CONTAINER") else ["container"]  # it needs one
    assert {name for name in SUITES if f"%suite={name} " not in shown.stdout} == set(image)


@pytest.mark.skipif(not built_variants(), reason="the floors are of the C++ kernel, which is not built here")
def test_a_suite_passes_and_fails_with_a_floor_that_nobody_reaches(tmp_path: Path) -> None:
    passed = reframe(tmp_path, "-r", "-n", "energies", "-S", "size=smoke")
    assert passed.returncode == 0 and "Ran 1/1 test case(s)" in passed.stdout, passed.stdout + passed.stderr
    ratio = "speeds / kernel generic float32 energies / ratio_cpu"
    assert f"P: {ratio}: " in passed.stdout and "P: speeds / openmm energies / per_cpu_s: " in passed.stdout
    (record,) = tmp_path.glob("reframe/output/**/results/energies-smoke.json")
    assert record.with_suffix(".md").is_file()

    floors = tmp_path / "floors.yaml"
    floors.write_text(f"energies: {{{ratio}: 1000000}}\n")
    failed = reframe(tmp_path, "-r", "-n", "energies", "-S", "size=smoke", "-S", f"floors={floors}")
    assert failed.returncode == 1 and f"failed to meet reference(s): {ratio}=" in failed.stdout, failed.stdout
    floors.write_text("energies: {speeds / nothing / ratio_cpu: 1}\n")
    failed = reframe(tmp_path, "-r", "-n", "energies", "-S", "size=smoke", "-S", f"floors={floors}")
    assert failed.returncode == 1 and "has no floor for anything that the suite 'energies' measured" in failed.stdout


def test_a_suite_that_ends_with_an_error_fails(tmp_path: Path) -> None:
    """Nothing was written: the record is missing."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "hpc-molgen").write_text("#!/bin/bash\nexit 1\n")
    (tmp_path / "bin" / "hpc-molgen").chmod(0o755)
    ended = reframe(tmp_path, "-r", "-n", "energies", "-S", "size=smoke", "-S", f"executable={tmp_path}/bin/hpc-molgen")
    assert ended.returncode == 1 and "Failing phase: sanity" in ended.stdout, ended.stdout
