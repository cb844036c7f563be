"""Which image a process runs in, and what its records say of it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from hpc_molgen import containers, mpi_ranks
from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.workers import Workers
from tests.conftest import CommandLine


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that this process is told to be inside of."""
    path = tmp_path / "farm.sif"
    path.write_bytes(b"an image")
    monkeypatch.setenv("APPTAINER_CONTAINER", str(path))
    monkeypatch.setattr(containers, "_INSIDE", tmp_path)
    monkeypatch.delenv(containers.IMAGE_SUM, raising=False)
    return path


def test_outside_of_containers_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(containers, "_INSIDE", tmp_path / "absent")
    monkeypatch.setenv("APPTAINER_CONTAINER", "/from/where/it/was/submitted.sif")
    assert containers.own_container() == {} and containers.in_words({}) == ""


def test_the_sum_is_of_the_bytes_unless_a_newer_file_or_the_script_tells_it(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_bytes = hashlib.sha256(b"an image").hexdigest()
    assert containers.own_container() == {"image": str(image), "sha256": of_bytes}
    beside = image.with_name("farm.sif.sha256")
    beside.write_text("1234  farm.sif\n")
    os.utime(beside, (1, 1))  # of an earlier build
    assert containers.image_sum(image) == of_bytes
    os.utime(beside)
    assert containers.image_sum(image) == "1234"
    monkeypatch.setenv(containers.IMAGE_SUM, f"5678  {image}")
    assert containers.image_sum(image) == "5678" and containers.image_sum(image.with_name("other.sif")) == ""
    assert containers.in_words(containers.own_container()) == "in the image farm.sif (SHA-256 5678)"


def test_an_image_that_is_not_seen_inside_is_named_by_its_build(image: Path) -> None:
    image.unlink()
    found = containers.own_container() | {"build": "ab-cd"}
    assert found["sha256"] == ""
    assert containers.in_words(found) == (
        "in the image farm.sif (whose SHA-256 could not be read inside; build ab-cd, which its lock file names)"
    )


def test_ranks_that_a_container_keeps_apart_are_refused(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = {1: (0, "init"), 50: (1, "hydra_pmi_proxy"), 60: (50, "starter"), 61: (50, "starter"), 70: (60, "python3")}
    monkeypatch.setattr(mpi_ranks, "_processes", lambda: family)
    with pytest.raises(EnvironmentProblem, match=r"hydra_pmi_proxy\) started 2 processes.*--cleanenv"):
        mpi_ranks.refuse_to_be_alone(70)
    del family[61]
    mpi_ranks.refuse_to_be_alone(70)  # mpiexec -n 1


def test_one_rank_of_a_launcher_is_not_refused(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI's mpirun on two nodes has a second child, which starts its daemons."""
    monkeypatch.setattr(
        mpi_ranks,
        "_processes",
        lambda: {os.getpid(): (60, "python3"), 60: (50, "starter"), 50: (1, "mpirun"), 61: (50, "srun")},
    )
    with pytest.raises(EnvironmentProblem):
        Workers.detect()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    assert Workers.detect().comm is None


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    mark = str(tmp_path / "pid")
    ended = containers.run_group(["sh", "-c", f"sleep 100 & echo $! >{mark}; wait"], dict(os.environ), 1.0)
    assert ended.returncode == 124 and "no answer within 1 s" in ended.stderr
    with pytest.raises(ProcessLookupError):
        for _ in range(50):  # the sleeper becomes init's, which collects it
            os.kill(int(Path(mark).read_text()), 0)
            time.sleep(0.1)


def test_mpich_under_the_launcher_of_open_mpi_is_one_clear_error(command: CommandLine, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PMI", "SLURM", "OMPI"))}
    of_open_mpi = {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "prterun-1@1"}
    ended = command("run", "tiny", "--out", str(tmp_path / "run"), env=environment | of_open_mpi)
    assert ended.returncode == 2 and "speaks PMIx, as Open MPI's does, which MPICH does not" in ended.stderr
