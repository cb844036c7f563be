"""Dynamics: temperature, constraints, platforms, blow-ups; biased walkers reweighted to the unbiased molecule."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest

from hpc_molgen.config import ReferenceConfig
from hpc_molgen.dynamics import bias, copies, walkers
from hpc_molgen.dynamics.engine import Engine, available_platforms, fastest_platform
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import EnvironmentProblem, HpcMolgenError, InputError
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import torsion_angles, torsion_by_name
from hpc_molgen.units import BOLTZMANN_KJ_MOL_KELVIN


def relaxed(system: MolecularSystem, **options: object) -> Engine:
    engine = Engine(system, "Reference", 11, **options)  # type: ignore[arg-type]
    engine.minimise()
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    engine.step(2000)
    return engine


@pytest.mark.parametrize(("constraints", "timestep_fs", "freedom"), [("none", 1.0, 66), ("hbonds", 2.0, 54)])
def test_kinetic_temperature(alanine: MolecularSystem, constraints: str, timestep_fs: float, freedom: int) -> None:
    """Equipartition over all degrees of freedom, within 5 standard errors from 20 blocks."""
    engine = relaxed(alanine, constraints=constraints, timestep_fs=timestep_fs, friction_per_ps=10.0)
    kinetic = np.concatenate([block.kinetic_kj_mol for block in engine.simulate(2000, 20)])
    temperatures = 2 * kinetic / (freedom * BOLTZMANN_KJ_MOL_KELVIN)
    means = temperatures.reshape(20, -1).mean(1)
    # the kinetic energy at half steps is low by a relative (omega dt)^2 / 4 for each mode: below 1 % at these steps
    assert abs(means.mean() - 300) < 5 * means.std(ddof=1) / np.sqrt(20) + 3


def test_constrained_bonds_stay(alanine: MolecularSystem) -> None:
    frames = next(relaxed(alanine, constraints="hbonds", timestep_fs=2.0).simulate(100, 10)).positions_nm.astype(float)
    for a, b in alanine.topology.bonds:
        lengths = np.linalg.norm(frames[:, a.index] - frames[:, b.index], axis=1)
        rigid = "H" in (a.element.symbol, b.element.symbol)
        assert (lengths.std() < 1e-6) == rigid


def test_recorded_energies_are_those_of_the_frames(alanine: MolecularSystem) -> None:
    engine = relaxed(alanine, bias=bias.flattening_bias(alanine, torsion_by_name(alanine.topology, "phi"), 1))
    block = next(engine.simulate(50, 20))
    again = Engine(alanine, "Reference").reduced_energy(block.positions_nm) * alanine.kt_kj_mol
    assert np.abs(again - block.potential_kj_mol).max() < 2e-3  # positions are stored as float32


def test_the_fastest_platform_for_a_small_molecule_is_reference(alanine: MolecularSystem) -> None:
    assert "Reference" in available_platforms()
    if not {"CUDA", "OpenCL", "HIP"} & set(available_platforms()):
        assert fastest_platform(alanine) == "Reference"  # facts/md.md: 4 to 10 times the CPU platform
    with pytest.raises(InputError, match="no platform 'Metal'"):
        Engine(alanine, "Metal")


def test_walkers_that_blow_up_end_with_a_message(alanine: MolecularSystem, tmp_path: Path) -> None:
    config = ReferenceConfig(n_walkers=2, production_ps=1, timestep_fs=5.0, platform="Reference")  # flexible bonds, 5 fs
    task = walkers.plan_walkers(alanine, config, 1, tmp_path)[0]
    with pytest.raises(HpcMolgenError, match="walker 0 failed with 3 seeds"):
        walkers.run_walker(task)
    assert list(tmp_path.iterdir()) == []


def test_spread_starts_visit_both_signs_of_phi(alanine: MolecularSystem) -> None:
    phi = torsion_angles(bias.spread_structures(alanine, 16, 1), torsion_by_name(alanine.topology, "phi"))
    assert 6 <= (phi > 0).sum() <= 10


def test_biased_walkers_cross_and_know_their_weights(alanine: MolecularSystem, tmp_path: Path) -> None:
    config = ReferenceConfig(n_walkers=2, production_ps=40, save_every_ps=0.05, bias_torsion="phi", platform="Reference")
    task = walkers.plan_walkers(alanine, config, 1, tmp_path)[0]
    ensemble = read_ensemble(walkers.run_walker(task), alanine)
    phi = torsion_angles(ensemble.positions_nm, torsion_by_name(alanine.topology, "phi"))
    assert (phi > 0.3).any() and (phi < -0.3).any()
    assert task.bias is not None
    np.testing.assert_allclose(ensemble.log_weight, task.bias.energy_kj_mol(phi) / alanine.kt_kj_mol, atol=1e-4)
    stamp = task.path.stat().st_mtime_ns
    assert walkers.run_walker(task).stat().st_mtime_ns == stamp  # a finished walker is kept
    again = dataclasses.replace(task, path=tmp_path / "again.h5")
    assert np.array_equal(read_ensemble(walkers.run_walker(again), alanine).positions_nm, ensemble.positions_nm)


def batch_of(system: MolecularSystem, directory: Path, **settings: object) -> tuple[walkers.WalkerTask, ...]:
    options = {"n_walkers": 4, "production_ps": 2, "equilibration_ps": 0.5, "platform": "batched"}
    config = ReferenceConfig(**(options | settings))  # type: ignore[arg-type]
    return tuple(walkers.plan_walkers(system, config, 1, directory))


@pytest.mark.parametrize("settings", [{"bias_torsion": "phi"}, {"tempering_kelvin": (360.0, 430.0)}], ids=["bias", "tempering"])
def test_a_batched_walker_does_not_depend_on_its_batch(
    alanine: MolecularSystem, tmp_path: Path, settings: dict[str, object]
) -> None:
    together = walkers.run_walkers(batch_of(alanine, tmp_path / "a", **settings))
    alone = [walkers.run_walker(task) for task in reversed(batch_of(alanine, tmp_path / "b", **settings))]
    for one, other in zip(together, reversed(alone), strict=True):
        first, second = read_ensemble(one, alanine), read_ensemble(other, alanine)
        assert np.array_equal(first.positions_nm, second.positions_nm)
        assert np.array_equal(first.log_weight, second.log_weight)
        assert np.ptp(first.log_weight) > 0 or "bias_torsion" not in settings
        openmm_energy = Engine(alanine, "Reference").reduced_energy(first.positions_nm)
        np.testing.assert_allclose(first.reduced_energy, openmm_energy, rtol=0, atol=1e-9)  # without the bias


def test_batched_walkers_go_on_where_files_are_missing(alanine: MolecularSystem, tmp_path: Path) -> None:
    tasks = batch_of(alanine, tmp_path)
    walkers.run_walkers(tasks)
    stamps = [task.path.stat().st_mtime_ns for task in tasks]
    before = read_ensemble(tasks[2].path, alanine)
    tasks[2].path.unlink()
    walkers.run_walkers(tasks)
    assert [task.path.stat().st_mtime_ns == stamp for task, stamp in zip(tasks, stamps, strict=True)] == [
        True,
        True,
        False,
        True,
    ]
    assert np.array_equal(read_ensemble(tasks[2].path, alanine).positions_nm, before.positions_nm)


def test_batched_walkers_that_blow_up_end_with_a_message(alanine: MolecularSystem, tmp_path: Path) -> None:
    tasks = batch_of(alanine, tmp_path, timestep_fs=5.0)
    with pytest.raises(
        HpcMolgenError, match="walker 0 failed with 3 seeds; the last error: positions or energies are not finite"
    ):
        walkers.run_walkers(tasks)


def test_tempering_gives_the_energies_of_its_lowest_temperature(alanine: MolecularSystem, tmp_path: Path) -> None:
    """Mean potential energy at 300 K, ladders against plain walkers of another seed, within 5 standard errors over walkers."""
    means = []
    for name, settings in (("ladders", {"tempering_kelvin": (345.0, 400.0)}), ("plain", {})):
        options = {"n_walkers": 48, "production_ps": 12, "equilibration_ps": 8, "starts": "given", **settings}
        tasks = batch_of(alanine, tmp_path / name, **options)
        means.append([read_ensemble(path, alanine).reduced_energy.mean() for path in walkers.run_walkers(tasks)])
    ladders, plain = (np.array(values) for values in means)
    error = np.hypot(ladders.std(ddof=1), plain.std(ddof=1)) / np.sqrt(48)
    assert abs(ladders.mean() - plain.mean()) < 5 * error
    assert error < 0.3  # kT: the copies above 300 K are some 5 kT away, so a swap gone wrong would show


def run_with_checkpoints(tasks: tuple[walkers.WalkerTask, ...]) -> None:
    copies.CHECKPOINT_S = 0.2
    walkers.run_walkers(tasks)


@pytest.mark.parametrize("settings", [{"bias_torsion": "phi"}, {"tempering_kelvin": (360.0, 430.0)}], ids=["bias", "tempering"])
def test_a_killed_batch_goes_on_with_the_same_bits(
    alanine: MolecularSystem, tmp_path: Path, settings: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    length = {"production_ps": 120 if "bias_torsion" in settings else 40, **settings}
    whole = walkers.run_walkers(batch_of(alanine, tmp_path / "whole", **length))
    tasks = batch_of(alanine, tmp_path / "killed", **length)
    process = multiprocessing.get_context("spawn").Process(target=run_with_checkpoints, args=(tasks,))
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and not list((tmp_path / "killed").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert list((tmp_path / "killed").glob("checkpoint-*")) and not list((tmp_path / "killed").glob("walker-*"))
    with caplog.at_level(logging.INFO):
        again = walkers.run_walkers(tasks)
    assert "goes on after" in caplog.text
    assert not list((tmp_path / "killed").glob("checkpoint-*"))
    for one, other in zip(whole, again, strict=True):
        assert np.array_equal(read_ensemble(one, alanine).positions_nm, read_ensemble(other, alanine).positions_nm)
    # what the killed process spent is counted
    assert walkers.walker_costs(again)[0]["cpu_s"] > 0.05


@pytest.mark.parametrize("settings", [{}, {"tempering_kelvin": (360.0, 430.0)}], ids=["plain", "tempering"])
def test_a_full_disk_while_walkers_are_written_loses_nothing(
    alanine: MolecularSystem,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, object],
) -> None:
    """The rest of the batch goes on from the checkpoint of the whole, with the same bits."""
    whole = walkers.run_walkers(batch_of(alanine, tmp_path / "whole", **settings))
    tasks = batch_of(alanine, tmp_path / "full", **settings)
    write = walkers.write_ensemble

    def full_after_one(path: Path, *args: object, **options: object) -> None:
        if path == tasks[1].path:
            raise EnvironmentProblem("no space left")
        write(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(copies, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(walkers, "write_ensemble", full_after_one)
    with pytest.raises(EnvironmentProblem, match="no space"):
        walkers.run_walkers(tasks)
    assert [task.path.exists() for task in tasks] == [True, False, False, False]
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        again = walkers.run_walkers(tasks)
    assert "goes on after" in caplog.text and not list((tmp_path / "full").glob("checkpoint-*"))
    for one, other in zip(whole, again, strict=True):
        assert np.array_equal(read_ensemble(one, alanine).positions_nm, read_ensemble(other, alanine).positions_nm)


def test_a_damaged_checkpoint_starts_the_batch_again(
    alanine: MolecularSystem, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = batch_of(alanine, tmp_path)
    tmp_path.joinpath("checkpoint-0000-4.npz").write_bytes(b"PK\x03\x04 torn off")
    assert len(walkers.run_walkers(tasks)) == 4
    assert "checkpoint-0000-4.npz: damaged" in caplog.text


def test_swaps_fit_between_frames() -> None:
    def protocol(save_every_ps: float) -> copies.CopyProtocol:
        return copies.CopyProtocol(1.0, 1.0, "none", 0, 0.0, 1.0, save_every_ps, 300.0)

    assert copies.swaps_per_frame(protocol(0.2), 0.1) == 2
    assert copies.swaps_per_frame(protocol(0.1), 0.04) == 2  # 50 steps each: 40 do not divide 100
    assert copies.swaps_per_frame(protocol(0.05), 1.0) == 1
    assert copies.swaps_per_frame(protocol(1.1), 0.1) == 11
