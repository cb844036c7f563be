"""One Slurm cluster of two nodes with four CPUs each, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    problem = why_not()
    if problem:
        pytest.skip(problem)
    with Cluster(n_nodes=2, n_cpus=4) as running:
        yield running
    assert not running.folder.exists()
    assert running.processes() == []
    assert running.unshared.as_posix() not in Path("/proc/self/mounts").read_text()
