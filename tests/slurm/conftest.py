"""One Slurm cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster, two_nodes


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    yield from two_nodes()
