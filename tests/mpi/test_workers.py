"""The same results from any number of MPI ranks, and one clear message where MPI is not what the launcher thinks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpc_molgen.config import load_config
from hpc_molgen.pipeline import run_stages
from hpc_molgen.run import Run
from hpc_molgen.workers import Workers

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec here: pip install 'hpc-molgen[mpi]'")
PARALLEL = ("reference", "sample", "farm")
# platforms are named, because 'auto' chooses by a measurement of speed and another platform gives other trajectories
SETTINGS = ["reference.production_ps=1", "reference.equilibration_ps=0.1", "train.n_steps=20", "sample.n_samples=150"]
SETTINGS += ["sample.shard_size=50", "correct.n_structures=5", "farm.n_replicas=5", "farm.production_ps=0.5"]
SETTINGS += ["farm.minimise_iterations=20", "reference.platform=Reference", "farm.platform=Reference"]
RUN = """
import sys
from pathlib import Path
from hpc_molgen.pipeline import run_stages
from hpc_molgen.run import Run
from hpc_molgen.workers import Workers
run = Run.open(Path(sys.argv[1]), Workers.detect())
for stage in sys.argv[2:]:
    run_stages(run, [stage])
"""
BROKEN = """
from hpc_molgen.cli import main
from hpc_molgen.errors import InputError
from hpc_molgen import sampling
whole = sampling.sample_shard
def broken(shard):
    if shard.index == 1:
        raise InputError("shard 1 is broken")
    return whole(shard)
sampling.sample_shard = broken
main()
"""


def mpiexec(n: int, *command: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    line = [str(MPIEXEC), "-n", str(n), sys.executable, *command]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | (env or {}), timeout=240, check=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one process, done up to the farm."""
    run = Run.create(tmp_path_factory.mktemp("base"), load_config("tiny", SETTINGS), Workers())
    for stage in ("reference", "featurize", "train", "sample", "correct", "farm"):
        run_stages(run, [stage])
    return run.directory


def assert_same_data(first: Path, second: Path) -> None:
    with h5py.File(first) as one, h5py.File(second) as other:
        assert one.keys() == other.keys()
        for name, data in one.items():
            if isinstance(data, h5py.Dataset):
                np.testing.assert_array_equal(data[()], other[name][()], err_msg=f"{name} of {second}")


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_ranks(base: Path, tmp_path: Path, n_ranks: int) -> None:
    out = tmp_path / "run"
    shutil.copytree(base, out)
    for stage in PARALLEL:
        shutil.rmtree(out / stage)
    ended = mpiexec(n_ranks, "-c", RUN, str(out), *PARALLEL)
    assert ended.returncode == 0, ended.stderr
    compared = 0
    for stage in PARALLEL:
        assert Run.open(out).is_done(stage)
        files = sorted(path.relative_to(base) for path in (base / stage).glob("*.h5"))
        assert files == sorted(path.relative_to(out) for path in (out / stage).glob("*.h5"))
        for file in files:
            assert_same_data(base / file, out / file)
            compared += 1
    assert compared == 4 + 1 + 5
    assert {line.split('"rank": ')[1][0] for line in (out / "costs" / "farm.jsonl").read_text().splitlines()} == {
        str(rank) for rank in range(n_ranks)
    }


def test_every_replica_is_in_the_manifest_whatever_the_ranks(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(base, out)
    shutil.rmtree(out / "farm")
    assert mpiexec(3, "-c", RUN, str(out), "farm").returncode == 0
    assert (out / "farm" / "manifest.jsonl").read_text().count("\n") == 5


def test_a_launcher_of_another_mpi_is_one_clear_error(tmp_path: Path) -> None:
    # what Open MPI's mpirun leaves in the environment of a rank whose mpi4py uses MPICH
    env = os.environ | {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
    line = [sys.executable, "-m", "hpc_molgen", "run", "tiny", "--out", str(tmp_path / "run")]
    ended = subprocess.run(line, capture_output=True, text=True, env=env, timeout=120, check=False)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "started 4 ranks, but MPI sees 1" in ended.stderr and "mpiexec of this environment" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_without_mpi4py_the_error_says_how_to_install_it(tmp_path: Path) -> None:
    shim = tmp_path / "shim" / "mpi4py"
    shim.mkdir(parents=True)
    (shim / "__init__.py").write_text("raise ImportError(\"No module named 'mpi4py'\")\n")
    command = ("-m", "hpc_molgen", "run", "tiny", "--out", str(tmp_path / "run"))
    ended = mpiexec(2, *command, env={"PYTHONPATH": str(shim.parent)})
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "started 2 ranks, but MPI cannot be used" in ended.stderr and "pip install 'hpc-molgen[mpi]'" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_an_error_on_one_rank_ends_all_of_them(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(base, out)
    shutil.rmtree(out / "sample")
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    started = time.monotonic()
    ended = mpiexec(2, "-c", BROKEN, "run", "tiny", "--out", str(out), "--only", "sample", *settings)
    assert ended.returncode == 2 and "shard 1 is broken" in ended.stderr and "Traceback" not in ended.stderr
    assert time.monotonic() - started < 60  # rank 0, which waits for rank 1, is ended with it
