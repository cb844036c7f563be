"""One Slurm cluster of two nodes with one CPU each, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    problem = why_not()
    if problem:
        pytest.skip(problem)
    with Cluster(n_nodes=2, n_cpus=1) as running:
        yield running
