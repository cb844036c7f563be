"""Sets of trajectories: files, folders, observables, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_molgen.errors import InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import torsion_angles, torsion_by_name
from hpc_molgen.trajectories import TrajectorySet, observe, read_trajectories


def test_ragged_set_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    original = TrajectorySet((rng.normal(size=(5, 2)), rng.normal(size=(9, 2))), ("a", "b"), ("nm", "rad"), 0.5, ("one", "two"))
    original.write(tmp_path / "t.h5")
    back = read_trajectories(tmp_path / "t.h5")
    assert (back.feature_names, back.units, back.dt_ps, back.labels) == (("a", "b"), ("nm", "rad"), 0.5, ("one", "two"))
    assert back.n_frames == (5, 9) and all(np.array_equal(x, y) for x, y in zip(back.features, original.features, strict=True))
    assert back[1].labels == ("two",) and back[[1, 0]].n_frames == (9, 5)


def test_published_folder_of_arrays(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        np.save(tmp_path / f"trajectory_{number}.npy", np.full((4, 2), float(number)))
    found = read_trajectories(tmp_path, dt_ps=1.0)
    assert found.labels == ("trajectory_1", "trajectory_2", "trajectory_10") and found.feature_names == ("x0", "x1")


def test_observables_of_a_molecule(alanine: MolecularSystem) -> None:
    phi = torsion_by_name(alanine.topology, "phi")
    found = observe([alanine.positions_nm[None]], {"phi": (lambda x: torsion_angles(x, phi), "rad")}, 1.0, ["start"])
    assert np.degrees(found.features[0]) == pytest.approx(-80)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ([], "no .npy"),
        ([np.zeros((3, 2)), np.zeros((3, 4))], "shape"),
        ([np.array([[1.0, np.nan]])], "not finite"),
        ([np.array([{"a": 1}], dtype=object)], "plain numbers"),
    ],
)
def test_bad_folders(tmp_path: Path, arrays: list[np.ndarray], word: str) -> None:
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=word):
        read_trajectories(tmp_path)


def test_truncated_file(tmp_path: Path) -> None:
    (tmp_path / "t.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"t\.h5"):
        read_trajectories(tmp_path / "t.h5")
