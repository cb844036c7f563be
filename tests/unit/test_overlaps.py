"""Copies and overlapping windows of time series are found, joined and kept together; chance and discrete data are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_molgen.overlaps import find_parents
from hpc_molgen.trajectories import read_trajectories

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "threewell"


def walk(n: int, seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).normal(size=(n, 2)), axis=0)


def test_windows_are_joined_and_others_stay_apart() -> None:
    first, second = walk(1000, 1), walk(300, 2)
    series = [first[400:900], second, first[:500], first[400:900].copy(), first[600:], second[:200] + 1e-9]
    parents = find_parents(series)
    assert [parent.members for parent in parents] == [((2, 0), (0, 400), (3, 400), (4, 600)), ((1, 0),), ((5, 0),)]
    assert np.array_equal(parents[0].assemble(series), first) and parents[1].assemble(series) is series[1]
    assert len({parent.group for parent in parents}) == 3


def test_series_that_part_ways_are_one_group() -> None:
    """A restart from one checkpoint with another seed: equal at first, then different. No split may divide them."""
    trunk = walk(500, 3)
    branches = [np.concatenate([trunk, trunk[-1] + walk(400, seed)]) for seed in (4, 5)]
    parents = find_parents([*branches, walk(900, 6)])
    assert [len(parent.members) for parent in parents] == [1, 1, 1]
    assert parents[0].group == parents[1].group != parents[2].group


def test_discrete_series_are_not_joined_by_chance() -> None:
    generator = np.random.default_rng(7)
    series = [generator.integers(0, 3, (2000, 1)).astype(float) for _ in range(4)]
    assert [len(parent.members) for parent in find_parents(series)] == [1, 1, 1, 1]
    still = [np.zeros((500, 2)), np.zeros((400, 2))]  # nothing happens in them: no frame tells where one belongs
    assert [parent.members for parent in find_parents(still)] == [((0, 0),), ((1, 0),)]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published triple-well files beside the repository")
def test_the_published_files_are_one_trajectory() -> None:
    found = read_trajectories(PUBLISHED)
    (parent,) = find_parents(found.features)
    assert len(found) == len(parent.members) == 20 and parent.n_frames == 100_000
    joined = parent.assemble(found.features)
    assert all(np.array_equal(joined[start : start + 40_000], found.features[index]) for index, start in parent.members)
    assert len({start for _, start in parent.members}) == 7
