"""Ensembles and their files."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import h5py
import mdtraj
import numpy as np
import pytest

from hpc_molgen.config import SystemConfig
from hpc_molgen.ensemble import Ensemble, read_ensemble, write_ensemble
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system


@pytest.fixture
def ensemble(alanine: MolecularSystem) -> Ensemble:
    rng = np.random.default_rng(0)
    positions = alanine.positions_nm + 0.01 * rng.normal(size=(7, 22, 3))
    return Ensemble.create(
        alanine, positions, reduced_energy=np.arange(7.0), log_weight=-np.arange(7.0), time_ps=np.arange(7) * 0.5
    )


def test_file_keeps_every_array(alanine: MolecularSystem, ensemble: Ensemble, tmp_path: Path) -> None:
    write_ensemble(tmp_path / "e.h5", ensemble, alanine, seed=3)
    back = read_ensemble(tmp_path / "e.h5", alanine)
    assert np.abs(back.positions_nm - ensemble.positions_nm).max() < 1e-7
    for name in ("reduced_energy", "log_density", "log_weight", "parent", "trajectory", "time_ps"):
        np.testing.assert_array_equal(getattr(back, name), getattr(ensemble, name))


def test_mdtraj_opens_it(alanine: MolecularSystem, ensemble: Ensemble, tmp_path: Path) -> None:
    write_ensemble(tmp_path / "e.h5", ensemble, alanine, seed=3)
    trajectory = mdtraj.load(str(tmp_path / "e.h5"))
    assert trajectory.topology == alanine.topology and trajectory.topology.n_bonds == 21
    np.testing.assert_allclose(trajectory.xyz, ensemble.positions_nm, atol=1e-6)
    np.testing.assert_allclose(trajectory.time, ensemble.time_ps)


def test_arrays_carry_units_and_the_file_its_origin(alanine: MolecularSystem, ensemble: Ensemble, tmp_path: Path) -> None:
    write_ensemble(tmp_path / "e.h5", ensemble, alanine, seed=3, config_yaml="name: x")
    with h5py.File(tmp_path / "e.h5") as file:
        assert file["reduced_energy"].attrs["units"] == "kT"
        assert file["hpc_molgen"].attrs["system_key"] == alanine.key and file["hpc_molgen"].attrs["seed"] == 3


def test_indexing_indexes_all(ensemble: Ensemble) -> None:
    part = ensemble[np.array([4, 2])]
    assert part.reduced_energy.tolist() == [4, 2] and part.parent.tolist() == [4, 2] and len(ensemble[3]) == 1
    assert len(Ensemble.concatenate([part, ensemble])) == 9


def test_wrong_shapes_are_refused(alanine: MolecularSystem) -> None:
    with pytest.raises(InputError, match="22 atoms"):
        Ensemble.create(alanine, np.zeros((3, 21, 3)))
    with pytest.raises(InputError, match="reduced_energy"):
        Ensemble.create(alanine, np.zeros((3, 22, 3)), reduced_energy=np.zeros(2))


def test_another_systems_file_is_refused_with_both_keys(alanine: MolecularSystem, ensemble: Ensemble, tmp_path: Path) -> None:
    write_ensemble(tmp_path / "e.h5", ensemble, alanine, seed=3)
    vacuum = load_system(SystemConfig(name="alanine-dipeptide-vacuum"))
    with pytest.raises(InputError, match=f"{alanine.key}.*{vacuum.key}"):
        read_ensemble(tmp_path / "e.h5", vacuum)


@pytest.mark.parametrize("keep", [0, 300, 4000])
def test_truncated_files_are_named(alanine: MolecularSystem, ensemble: Ensemble, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "e.h5"
    write_ensemble(path, ensemble, alanine, seed=3)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"e\.h5.*truncated"):
        read_ensemble(path, alanine)


def test_a_write_that_fails_halfway_leaves_nothing(alanine: MolecularSystem, ensemble: Ensemble, tmp_path: Path) -> None:
    """The kernel refuses bytes beyond a limit on file size, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(EnvironmentProblem, match=r"e\.h5.*cannot be written"):
            write_ensemble(tmp_path / "e.h5", ensemble, alanine, seed=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
