"""Replicas in all engines: the same one by one and at once, stopped and not; and a bad one is a record."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest

from hpc_molgen import interrupts
from hpc_molgen.config import FarmConfig
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.ensemble import read_attributes, read_ensemble
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.farm import boxes, copies, pack
from hpc_molgen.farm.job import Job
from hpc_molgen.farm.plan import Task, read_start
from hpc_molgen.farm.protocol import make_protocol
from hpc_molgen.farm.replica import run_task
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.observables import make_observables
from hpc_molgen.systems.torsions import set_torsion, torsion_by_name
from tests.conftest import needs_gromacs

BOX = {"solvent": "tip3p", "box_nm": 2.1, "pressure_bar": 1.0, "production_ps": 0.3, "constant_volume_ps": 0.1}
SHORT = {"production_ps": 1, "equilibration_ps": 0.2, "save_every_ps": 0.1, "minimise_iterations": 50}


def make_job(system: MolecularSystem, directory: Path, platform: str = "batched", **settings: Any) -> Job:
    starts = directory / "starts"
    starts.mkdir(exist_ok=True, parents=True)
    for index, psi in enumerate((-2.5, -0.5, 1.0, 2.5)):
        positions = set_torsion(system.topology, system.positions_nm, torsion_by_name(system.topology, "psi"), psi)
        (starts / f"structure-{index}.pdb").write_text(pdb_text(system.topology, positions, []))
    return Job(system, FarmConfig(**(SHORT | settings)), 1, platform, starts, directory)


def make_task(*replicas: int, attempt: int = 1) -> Task:
    return Task(0, replicas, tuple(f"structure-{index}.pdb" for index in replicas), (0.5,) * len(replicas), attempt)


def never(_: list[dict[str, Any]]) -> bool:
    return False


def at(n: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Leave at the n-th chunk."""
    calls = iter(range(1, 10_000))
    return lambda _: next(calls) == n


def states(records: list[dict[str, Any]]) -> list[str]:
    return [record["event"] for record in records if record["event"] not in ("chunk", "ended")]


def test_at_once_and_one_by_one_are_the_same(alanine: MolecularSystem, tmp_path: Path) -> None:
    together, alone = make_job(alanine, tmp_path / "a"), make_job(alanine, tmp_path / "b")
    records = run_task(make_task(0, 1, 2, 3), together, never)
    assert states(records) == ["done"] * 4 and records[-1]["event"] == "ended"
    again = [record for index in (3, 2, 1, 0) for record in run_task(make_task(index), alone, never) if "state" in record]
    for index in range(4):
        first, second = (read_ensemble(job.path(index), alanine) for job in (together, alone))
        assert np.array_equal(first.positions_nm, second.positions_nm)
        energies = Engine(alanine, "Reference").reduced_energy(first.positions_nm)
        np.testing.assert_allclose(first.reduced_energy, energies, atol=1e-9)
        assert len(first) == 10 and np.allclose(first.time_ps, 0.1 * np.arange(1, 11)) and (first.log_weight == 0.5).all()
    ends = [record for record in records if "state" in record]
    assert [r["minimised_kj_mol"] for r in ends] == [r["minimised_kj_mol"] for r in reversed(again)]
    stamp = together.path(0).stat().st_mtime_ns
    kept = run_task(make_task(0, 1, 2, 3), together, never)
    assert [r for r in kept if "state" in r] == ends and together.path(0).stat().st_mtime_ns == stamp  # finished ones are kept


@pytest.mark.parametrize(
    ("platform", "settings"),
    [
        ("batched", {"heating_ps": 0.2}),
        ("Reference", {"heating_ps": 0.1, "restraint_kj_mol_nm2": 1000.0, "hydrogen_mass_amu": 3.0, "timestep_fs": 4.0}),
        ("CPU", {}),
        ("CPU", BOX),
        pytest.param("gromacs", BOX | {"engine": "gromacs", "box_nm": 2.4, "restraint_kj_mol_nm2": 500.0}, marks=needs_gromacs),
    ],
)
def test_a_stopped_replica_goes_on_with_the_same_bits(
    alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(pack, "segment_steps", lambda *_: 25)
    members = (0, 1, 2) if platform == "batched" else (1,)
    whole, cut = (make_job(alanine, tmp_path / name, platform, **settings, chunk_s=1e-9) for name in "ab")
    if whole.config.solvent == "tip3p":  # where waters lie is part of the start
        (tmp_path / "a" / "boxes").mkdir()
        boxes.boxed(
            alanine, read_start(whole.starts, "structure-1.pdb", alanine, tmp_path), whole.config, tmp_path / "a" / "boxes"
        )
        (tmp_path / "b" / "boxes").symlink_to(tmp_path / "a" / "boxes")
    assert states(run_task(make_task(*members), whole, never)) == ["done"] * len(members)
    stops = 0
    for n in (1, 2, 3, 50):
        records = run_task(make_task(*members), cut, at(n))
        stops += records == []
    assert stops >= 3 and states(records) == ["done"] * len(members)
    for index in members:
        first, second = (read_ensemble(job.path(index), alanine) for job in (whole, cut))
        assert np.array_equal(first.positions_nm, second.positions_nm), np.abs(first.positions_nm - second.positions_nm).max()
        assert np.array_equal(first.reduced_energy, second.reduced_energy) and np.array_equal(first.time_ps, second.time_ps)
        trajectory = mdtraj.load(str(cut.path(index)))
        assert trajectory.n_frames == len(first) == round(whole.config.production_ps / 0.1)
    assert list((tmp_path / "b" / "state").iterdir()) == []


def test_a_damaged_state_falls_back_to_the_older_one(
    alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pack, "segment_steps", lambda *_: 25)
    whole, cut = (make_job(alanine, tmp_path / name, "Reference", chunk_s=1e-9) for name in "ab")
    run_task(make_task(2), whole, never)
    for damage in (lambda data: data[: len(data) // 2], lambda data: data[:200] + b"\0" * 64 + data[264:], lambda _: b""):
        run_task(make_task(2), cut, at(4))
        newest, older = sorted((tmp_path / "b" / "state").iterdir(), key=lambda path: len(path.name))
        assert older.name == newest.name.replace(".npz", ".older.npz")
        newest.write_bytes(damage(newest.read_bytes()))
    older.unlink()  # now there is none: it starts again
    run_task(make_task(2), cut, never)
    first, second = (read_ensemble(job.path(2), alanine) for job in (whole, cut))
    assert np.array_equal(first.positions_nm, second.positions_nm) and "an older state serves" in caplog.text


def test_a_state_ahead_of_its_trajectory_is_not_believed(
    alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "segment_steps", lambda *_: 25)
    whole, cut = (make_job(alanine, tmp_path / name, chunk_s=1e-9) for name in "ab")
    run_task(make_task(0, 1), whole, never)
    run_task(make_task(0, 1), cut, at(18))
    cut.path(1).unlink()
    run_task(make_task(0, 1), cut, never)
    for index in (0, 1):
        first, second = (read_ensemble(job.path(index), alanine) for job in (whole, cut))
        assert np.array_equal(first.positions_nm, second.positions_nm)


def test_a_signal_keeps_what_was_finished(alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "segment_steps", lambda *_: 25)
    monkeypatch.setattr(interrupts, "_came", None)
    whole, cut = (make_job(alanine, tmp_path / name, "Reference") for name in "ab")
    run_task(make_task(3), whole, never)
    step, n = Engine.step, iter(range(1000))

    def stepping(engine: Engine, n_steps: int) -> None:
        if next(n) == 8:
            signal.raise_signal(signal.SIGTERM)
        step(engine, n_steps)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", stepping)
        with pytest.raises(KeyboardInterrupt):
            run_task(make_task(3), cut, never)
    monkeypatch.setattr(interrupts, "_came", None)
    frames = int(read_attributes(cut.path(3))["frames"])
    assert 0 < frames < 10
    run_task(make_task(3), cut, never)
    first, second = (read_ensemble(job.path(3), alanine) for job in (whole, cut))
    assert np.array_equal(first.positions_nm, second.positions_nm)


def test_a_damaged_structure_is_a_record(alanine: MolecularSystem, tmp_path: Path) -> None:
    job = make_job(alanine, tmp_path)
    pdb = job.starts / "structure-1.pdb"
    lines = pdb.read_text().splitlines()
    pdb.write_text("\n".join(lines[:5] + lines[6:]))
    records = run_task(make_task(0, 1, 2), job, never)
    assert sorted(states(records)) == ["done", "done", "failed"]
    (bad,) = (record for record in records if record["event"] == "failed")
    assert bad["replica"] == 1 and "structure-1.pdb: 21 atoms do not match the 22" in bad["error"]


@pytest.mark.parametrize("platform", ["batched", "Reference"])
def test_a_replica_that_blows_up_leaves_a_dump_and_the_others_alone(
    alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr(pack, "segment_steps", lambda *_: 25)
    job = make_job(alanine, tmp_path, platform)
    kind = copies.BatchedCopies if platform == "batched" else copies.OpenMMCopy
    whole, seeds = kind.run, []

    def run(self: Any, segment: Any, number: int, steps_per_frame: int) -> Any:
        if number == 6 and (platform == "Reference"):
            raise openmm.OpenMMException("Particle coordinate is NaN")
        recorded = whole(self, segment, number, steps_per_frame)
        if number == 6:
            seeds.append(tuple(self._seeds))
            self._dynamics._x[1] = np.nan
        return recorded

    monkeypatch.setattr(kind, "run", run)
    records = run_task(make_task(0, 1) if platform == "batched" else make_task(1), job, never)
    again = next(record for record in records if record["event"] == "again")
    assert again["replica"] == 1 and again["attempt"] == 1 and again["segment"] == 6
    assert again["error"] == ("positions or energies were not finite" if platform == "batched" else
                              "openmm.OpenMMException: Particle coordinate is NaN")  # fmt: skip
    with np.load(tmp_path / again["dump"]) as dump:
        assert dump["positions"].shape == (22, 3) and np.isfinite(dump["positions"]).all() and int(dump["segment"]) == 6
    assert mdtraj.load(str(tmp_path / "quarantine" / "replica-00001.pdb")).n_atoms == 22
    assert not job.path(1).exists() and records[-1]["event"] == "ended"
    monkeypatch.setattr(kind, "run", whole)
    second = run_task(make_task(1, attempt=2), job, never)
    assert states(second) == ["done"] and next(r for r in second if "state" in r)["attempts"] == 2
    assert not list((tmp_path / "quarantine").iterdir()), "it is sound after all"
    if platform == "batched":
        assert states(records) == ["again", "done"] and len(read_ensemble(job.path(0), alanine)) == 10


def test_a_full_disk_concerns_all(alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(alanine, tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise EnvironmentProblem("replica: cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(pack, "write_ensemble", full)
        with pytest.raises(EnvironmentProblem, match="No space"):
            run_task(make_task(0), job, never)
    assert states(run_task(make_task(0), job, never)) == ["done"]


# ---------------------------------------------------------------------- protocols


def test_a_protocol_has_its_lengths_and_its_conditions() -> None:
    config = FarmConfig(
        solvent="tip3p", pressure_bar=1.0, heating_ps=10, heating_from_kelvin=20, constant_volume_ps=5, equilibration_ps=8,
        production_ps=30, save_every_ps=0.5, restraint_kj_mol_nm2=400,
    )  # fmt: skip
    protocol = make_protocol(config, 300.0, 1000)
    assert protocol.n_frames == 60 and protocol.n_steps == 26_500 and protocol.simulated_ns == pytest.approx(0.053)
    heating, production = protocol.segments[:20], [s for s in protocol.segments if s.n_frames]
    assert [s.temperature_kelvin for s in heating] == pytest.approx([20 + 14 * n for n in range(1, 21)])
    assert all(s.pressure_bar is None and s.restraint_kj_mol_nm2 == 400 for s in protocol.segments[:23])
    assert [s.restraint_kj_mol_nm2 for s in protocol.segments[23:28]] == pytest.approx([400, 320, 240, 160, 80])
    assert all(s.n_steps <= 1000 for s in protocol.segments)
    assert all(s.pressure_bar == 1.0 and s.restraint_kj_mol_nm2 == 0 and s.n_steps == 250 * s.n_frames for s in production)


def test_restraints_hold_and_let_go(alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While held, an atom's mean square distance is at most that of three springs alone, 3 kT / k."""
    monkeypatch.setattr(pack, "segment_steps", lambda *_: 500)
    spring = 20_000.0
    job = make_job(alanine, tmp_path, "Reference", restraint_kj_mol_nm2=spring, constant_volume_ps=20, equilibration_ps=2)
    start = read_start(job.starts, "structure-1.pdb", alanine, tmp_path)
    copy = copies.OpenMMCopy(alanine, 22, job.config, "Reference", seed=5)
    copy.place(start)
    copy.minimise(300.0)
    held = copy.state()["held"]
    heavy = [atom.index for atom in alanine.topology.atoms if atom.element.symbol != "H"]
    squares = []
    for number, segment in enumerate(make_protocol(job.config, 300.0, 20).segments):
        if segment.restraint_kj_mol_nm2 < spring:
            break
        copy.run(segment, number, 50)
        squares.append(((copy.state()["positions"][heavy] - held[heavy]) ** 2).sum(axis=1).mean())
    blocks = np.array(squares[-300:]).reshape(10, -1).mean(axis=1)
    # springs along the stiff bonds of the molecule act together: each atom moves less than alone, never more
    assert blocks.mean() - 4 * blocks.std() / 3 < 3 * alanine.kt_kj_mol / spring
    assert blocks.mean() > 0.2 * 3 * alanine.kt_kj_mol / spring
    for segment in make_protocol(job.config, 300.0, 500).segments[-4:]:
        copy.run(segment, 999, 50)
    free = ((copy.state()["positions"][heavy] - held[heavy]) ** 2).sum(axis=1).mean()
    assert free > 10 * blocks.mean()


@pytest.mark.parametrize("platform", ["batched", "Reference"])
def test_recorded_temperatures(alanine: MolecularSystem, tmp_path: Path, platform: str) -> None:
    """Mean and variance of the kinetic temperature are those of 54 degrees of freedom, within 4 standard errors over blocks."""
    import h5py

    length = 200 if platform == "batched" else 60
    job = make_job(
        alanine, tmp_path, platform, production_ps=length, equilibration_ps=5, save_every_ps=0.02, temperature_kelvin=350
    )
    run_task(make_task(0), job, never)
    with h5py.File(job.path(0)) as file:
        values = file["temperature"][:]
        assert file["temperature"].attrs["units"] == "kelvin" and len(file["potentialEnergy"]) == 50 * length
    variance = 350**2 * 2 / (3 * 22 - 12)
    for quantity, expected in ((values, 350.0), ((values - 350) ** 2, variance)):
        blocks = quantity.reshape(20, -1).mean(axis=1)
        error = blocks.std(ddof=1) / np.sqrt(20)
        assert abs(blocks.mean() - expected) < 4 * error and error < 0.2 * expected


def test_observables(alanine: MolecularSystem) -> None:
    generator = np.random.default_rng(1)
    x = (alanine.positions_nm + 0.02 * generator.normal(size=(5, 22, 3))).astype(np.float32)
    found = make_observables(("rmsd", "rg", "phi"), alanine, alanine.positions_nm)
    trajectory = mdtraj.Trajectory(x, alanine.topology)
    masses = np.array([atom.element.mass for atom in alanine.topology.atoms])
    pairs = ((x[:, :, None].astype(np.float64) - x[:, None]) ** 2).sum(axis=3)
    squared = np.einsum("i,j,nij->n", masses, masses, pairs) / (2 * masses.sum() ** 2)  # Lagrange's form: no centre in it
    np.testing.assert_allclose(found["rg"][0](x), np.sqrt(squared), rtol=1e-6)
    np.testing.assert_allclose(found["phi"][0](x), mdtraj.compute_phi(trajectory)[1][:, 0], atol=1e-4)
    assert found["rmsd"][0](alanine.positions_nm[None])[0] == pytest.approx(0, abs=1e-4)
    with pytest.raises(InputError, match="no native contacts for 'q'"):
        make_observables(("q",), alanine, alanine.positions_nm)
    with pytest.raises(InputError, match="other names are: rmsd, rg, q"):
        make_observables(("chi1",), alanine, alanine.positions_nm)


def test_a_box_is_made_once(alanine: MolecularSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FarmConfig(solvent="tip3p", box_nm=2.1)
    made = boxes.boxed(alanine, alanine.positions_nm, config, tmp_path)
    monkeypatch.setattr(boxes, "solvate", None)
    again = boxes.boxed(alanine, alanine.positions_nm, config, tmp_path)
    assert made.key == again.key and np.array_equal(made.positions_nm, again.positions_nm) and made.n_atoms > 600
    (path,) = tmp_path.iterdir()
    assert mdtraj.load(str(path)).n_atoms == made.n_atoms
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        boxes.boxed(alanine, alanine.positions_nm, config, tmp_path)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
