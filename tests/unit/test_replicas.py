"""Replicas of the farm in the batched engine: the same one by one and at once, and a bad one is a record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_molgen.config import FarmConfig
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.farm import replica as farm
from hpc_molgen.farm.replica import Replica, run_batch
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import set_torsion, torsion_by_name


def make_replicas(system: MolecularSystem, directory: Path, **settings: object) -> tuple[Replica, ...]:
    options = {"production_ps": 1, "equilibration_ps": 0.2, "save_every_ps": 0.1, "platform": "batched"}
    config = FarmConfig(**(options | settings))  # type: ignore[arg-type]
    directory.mkdir(exist_ok=True)
    found = []
    for index, psi in enumerate((-2.5, -0.5, 1.0, 2.5)):
        positions = set_torsion(system.topology, system.positions_nm, torsion_by_name(system.topology, "psi"), psi)
        pdb = directory / f"structure-{index}.pdb"
        pdb.write_text(pdb_text(system.topology, positions, []))
        found.append(Replica(index, system, config, 1, "batched", pdb, directory / f"replica-{index}.h5"))
    return tuple(found)


def test_at_once_and_one_by_one_are_the_same(alanine: MolecularSystem, tmp_path: Path) -> None:
    together, alone = make_replicas(alanine, tmp_path / "a"), make_replicas(alanine, tmp_path / "b")
    records = run_batch(together)
    assert [record.state for record in records] == ["done"] * 4
    assert [record.replica for record in records] == [0, 1, 2, 3]
    again = [run_batch((replica,))[0] for replica in reversed(alone)]
    for one, other in zip(together, alone, strict=True):
        first, second = read_ensemble(one.path, alanine), read_ensemble(other.path, alanine)
        assert np.array_equal(first.positions_nm, second.positions_nm)
        energies = Engine(alanine, "Reference").reduced_energy(first.positions_nm)
        np.testing.assert_allclose(first.reduced_energy, energies, atol=1e-9)
        assert len(first) == 10 and np.allclose(first.time_ps, 0.1 * np.arange(1, 11))
    assert [r.minimised_kj_mol for r in records] == [r.minimised_kj_mol for r in reversed(again)]
    stamp = together[0].path.stat().st_mtime_ns
    assert run_batch(together) == records and together[0].path.stat().st_mtime_ns == stamp  # finished ones are kept


def test_a_damaged_structure_is_a_record(alanine: MolecularSystem, tmp_path: Path) -> None:
    replicas = make_replicas(alanine, tmp_path)
    lines = replicas[1].pdb.read_text().splitlines()
    replicas[1].pdb.write_text("\n".join(lines[:5] + lines[6:]))
    records = run_batch(replicas)
    assert [record.state for record in records] == ["done", "failed", "done", "done"]
    assert "structure-1.pdb: 21 atoms do not match the 22" in records[1].error


def test_a_replica_that_blows_up_gets_new_seeds_then_a_record(
    alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = make_replicas(alanine, tmp_path, timestep_fs=5.0, constraints="none")
    attempts = []
    whole = farm._simulate_batch
    monkeypatch.setattr(farm, "_simulate_batch", lambda *args: attempts.append((len(args[0]), args[2])) or whole(*args))
    records = run_batch(replicas)
    assert [record.state for record in records] == ["failed"] * 4
    assert attempts == [(4, 1), (4, 2), (4, 3)]
    assert "not finite" in records[0].error
    assert not any(replica.path.exists() for replica in replicas)
