"""Surrogates too poor for weights: their samples are moved to the Boltzmann distribution, and hot or absent data suffice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hpc_molgen import datasets
from hpc_molgen.annealing import join_islands, move_island, plan_islands
from hpc_molgen.config import load_config
from hpc_molgen.correction import chunk_energies, plan_chunks
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.efficiency.verdict import gate
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.densities import BoltzmannDensity
from hpc_molgen.representations.base import load_representation
from hpc_molgen.reweighting import normalised_weights
from hpc_molgen.run import Run
from hpc_molgen.surrogates.base import load_surrogate
from tests.conftest import CommandLine

FLOW = {
    "surrogate": "{name: flow, layers: 4, hidden: 32}", "reference.n_walkers": 16, "reference.production_ps": 60,
    "reference.equilibration_ps": 5, "train.n_steps": 30, "train.warmup_steps": 5, "train.batch_size": 256,
    "sample.n_samples": 800, "correct.n_structures": 5, "correct.check_frames": 200, "correct.island_size": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def referred(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose reference and representation the tests share."""
    directory = tmp_path_factory.mktemp("referred") / "run"
    execute(command, directory, FLOW, "featurize")
    return directory


def execute(command: CommandLine, directory: Path, settings: dict[str, object], last: str = "correct") -> Run:
    given = (part for key, value in settings.items() for part in ("--set", f"{key}={value}"))
    ended = command("run", "alanine-dipeptide", "--out", str(directory), "--to", last, *given)
    assert ended.returncode == 0, ended.stderr
    return Run.open(directory)


def mean_by_units(values: np.ndarray, weights: np.ndarray, units: np.ndarray) -> tuple[float, float]:
    """Weighted mean and its jackknife error over independent units."""
    found, index = np.unique(units, return_inverse=True)
    top, total = np.bincount(index, weights * values), np.bincount(index, weights)
    left = (top.sum() - top) / (total.sum() - total)
    n = len(found)
    return float(top.sum() / total.sum()), float(np.sqrt((n - 1) / n * np.sum((left - left.mean()) ** 2)))


def check_against_md(run: Run) -> None:
    """The mean energy of what was moved is that of held-out MD, within four standard errors of both."""
    moved = read_ensemble(run.path("correct", "annealed.h5"), run.system)
    _, held_out = datasets.load_split(run)
    ours = mean_by_units(moved.reduced_energy, normalised_weights(moved.log_weight), moved.trajectory)
    md = mean_by_units(held_out.reduced_energy, normalised_weights(held_out.log_weight), held_out.trajectory)
    assert abs(ours[0] - md[0]) < 4 * np.hypot(ours[1], md[1])
    assert np.hypot(ours[1], md[1]) < 1.0  # kT; raw samples of such a surrogate are tens of kT off
    raw = read_ensemble(run.path("correct", "weighted.h5"), run.system).reduced_energy
    assert raw.mean() - ours[0] > 5
    chosen = np.arange(0, len(moved), len(moved) // 40)
    energies = Engine(run.system, "Reference").reduced_energy(moved.positions_nm[chosen])
    np.testing.assert_allclose(moved.reduced_energy[chosen], energies, atol=1e-3, rtol=1e-5)
    assert len(list(run.path("correct", "pdb").glob("*.pdb"))) == 5


def test_a_poor_flow_is_annealed(command: CommandLine, referred: Path, tmp_path: Path) -> None:
    shutil.copytree(referred, tmp_path / "run")
    run = execute(command, tmp_path / "run", FLOW | {"train.n_steps": 8})
    found = json.loads(run.path("correct", "diagnostics.json").read_text())
    assert found["importance"]["ess_fraction"] < 0.1 < found["ess_fraction"]
    about = found["annealed"]
    assert about["kind"] == "sequential Monte Carlo" and about["islands"] == about["independent_parts"] == 8
    assert about["n_energies"] > 800 * about["levels"] * 3 and about["ancestors"] > 50
    check_against_md(run)
    check_that_a_finished_island_is_read(run)
    check_that_a_bad_island_is_a_record(run)


def check_that_a_bad_island_is_a_record(run: Run) -> None:
    """One whose samples have no finite energy is left out and told; where all are such, that is an error."""
    islands = plan_islands(run, [chunk_energies(chunk) for chunk in plan_chunks(run)])[:2]
    islands[0] = replace(islands[0], positions_nm=np.zeros_like(islands[0].positions_nm))
    moved = [move_island(island) for island in islands]
    ensemble, about = join_islands(run, islands, moved)
    assert about["islands"] == 1 and len(ensemble) == len(moved[1].positions_nm) and len(about["failures"]) == 1
    assert "finite energy" in about["failures"][0] and ensemble.parent.min() >= islands[1].start
    (check,) = (check for check in gate("phi", True, 0.1, 99, None, None, [], about) if check.name == "annealed samples")
    assert not check.passed and "1 other islands" in check.detail
    with pytest.raises(InputError, match="none of the 1 islands"):
        join_islands(run, islands[:1], moved[:1])
    for island in islands:
        island.path.unlink()


def check_that_a_finished_island_is_read(run: Run) -> None:
    energies = [chunk_energies(chunk) for chunk in plan_chunks(run)]
    island = plan_islands(run, energies)[3]
    whole = read_ensemble(run.path("correct", "annealed.h5"), run.system)
    first = move_island(replace(island, seed=1))
    again = move_island(island)  # with another seed, and yet the same, for the file is there
    assert np.array_equal(again.positions_nm, first.positions_nm)
    island.path.unlink()
    np.testing.assert_array_equal(move_island(island).reduced_energy, whole.reduced_energy[300:400])
    island.path.unlink()


@pytest.mark.slow
def test_a_poor_diffusion_makes_proposals_of_chains(command: CommandLine, referred: Path, tmp_path: Path) -> None:
    shutil.copytree(referred, tmp_path / "run")
    small = {"surrogate": "{hidden: 32, depth: 1}", "train.n_steps": 200, "train.warmup_steps": 20, "sample.n_steps": 6}
    run = execute(command, tmp_path / "run", FLOW | small | {"sample.n_samples": 1600, "correct.island_size": 800})
    found = json.loads(run.path("correct", "diagnostics.json").read_text())
    assert found["annealed"]["kind"] == "chains" and found["annealed"]["independent_parts"] == 40
    assert 0 < found["annealed"]["independence_acceptance"] < 0.5
    check_against_md(run)


def test_hot_frames_are_cooled(command: CommandLine, tmp_path: Path) -> None:
    """Training walkers run hot and are weighed so; rounds end at the system's temperature; one flow then serves them all."""
    hot = {
        "surrogate": "{name: flow, layers: 4, hidden: 32, temperatures: true}", "reference.training_kelvin": 400,
        "reference.training_ps": 80, "reference.production_ps": 20, "sample.n_samples": 200, "correct.method": "weights",
        "train.n_steps": 100, "refine.n_samples": 4000, "refine.n_steps": 40, "refine.cooling_ess": 0.01,
    }  # fmt: skip
    run = execute(command, tmp_path / "run", FLOW | hot)
    train, held_out = datasets.load_split(run)
    assert len(train) == 4 * len(held_out)
    level = datasets.training_log_temperature(run)
    weights = datasets.boltzmann_weights(train, level)
    hot_mean, cold_mean = weights @ train.reduced_energy, datasets.boltzmann_weights(held_out) @ held_out.reduced_energy
    # equipartition: 3N - 6 = 60 vibrations have kT/2 each of potential energy, ten more kT at 400 than at 300 K
    assert 7 < hot_mean - cold_mean < 13
    assert datasets.boltzmann_weights(train).max() > 20 * weights.max()  # weights back to 300 K: few frames carry them
    rounds = run.details("train")["rounds"]
    kelvin = [part["kelvin"] for part in rounds]
    assert kelvin == sorted(kelvin, reverse=True) and kelvin[-1] == pytest.approx(300) and kelvin[0] < 400
    tried = [json.loads(path.read_text())["n_energies"] for path in run.path("train").glob("round-*/temperature.json")]
    assert set(tried) <= {4000, 7 * 4000}
    # a weight and a score for each sample, scores of the frames, and trials
    assert run.details("train")["n_energies"] == len(train) + 2 * 4000 * len(rounds) + sum(tried)
    surrogate = load_surrogate(run.path("train", "surrogate.safetensors"), run.system.key)
    items = load_file(run.path("train", "round-1", "samples-00000.safetensors"))["features"]
    cold, warm = (surrogate.log_density(items[:500], log_temperature=value) for value in (0.0, level))
    assert (warm - cold).abs().mean() > 0.1


def test_energies_alone_train_a_flow(command: CommandLine, referred: Path, tmp_path: Path) -> None:
    """No frame is trained on: samples that come from the prior are, and they have the Boltzmann distribution."""
    shutil.copytree(referred, tmp_path / "run")
    alone = {"refine.start": "prior", "refine.start_samples": 1000, "correct.method": "weights"}
    run = execute(command, tmp_path / "run", FLOW | alone)
    parts = [load_file(path) for path in sorted(run.path("train", "start").glob("samples-*.safetensors"))]
    assert run.details("train")["n_items"] == sum(len(part["features"]) for part in parts) >= 1000
    assert run.details("train")["n_energies"] == sum(int(part["n_energies"]) for part in parts) > 20_000
    assert all(len(part["score"]) == len(part["features"]) for part in parts)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    features = torch.cat([part["features"] for part in parts]).double()
    weights = normalised_weights(torch.cat([part["log_weight"] for part in parts]).numpy())
    value, _ = BoltzmannDensity(run.system, representation)(features)
    energy = (representation.decode(features)[1] - value).numpy()
    _, held_out = datasets.load_split(run)
    md = mean_by_units(held_out.reduced_energy, normalised_weights(held_out.log_weight), held_out.trajectory)
    spread = np.sqrt(weights @ (energy - weights @ energy) ** 2) * np.sqrt((weights**2).sum())
    assert abs(weights @ energy - md[0]) < 4 * np.hypot(md[1], 2 * spread)  # particles share ancestors: twice their spread


def test_what_cannot_be_cooled_is_refused() -> None:
    for settings, words in (
        (["reference.training_kelvin=250"], "must be above"),
        (
            ["reference.training_kelvin=400", "reference.bias_torsion=null", "reference.tempering_kelvin=[400]"],
            "tempering_kelvin",
        ),
        (["surrogate={name: flow, temperatures: true}"], "training_kelvin"),
    ):
        with pytest.raises(InputError, match=words):
            load_config("alanine-dipeptide", settings)
