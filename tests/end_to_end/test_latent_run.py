"""Latent coordinates from the first command to the report; what they are learned from, and where they are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_molgen.config import load_config
from hpc_molgen.datasets import fit_representation, load_channels, load_series
from hpc_molgen.ensemble import read_ensemble, write_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import load_representation
from hpc_molgen.representations.latent import LatentVariables
from hpc_molgen.run import Run, stage_costs
from hpc_molgen.trajectories import read_trajectories
from tests.conftest import CommandLine

SMALL = {
    "representation": "{name: latent, cvs: [q], latent: 2, latent_steps: 120, latent_components: 20}",
    "reference.labels": "[]", "surrogate.start_frame": "false", "sample.segment_frames": "null",
    "reference.n_walkers": 4, "reference.production_ps": 800, "reference.equilibration_ps": 50, "surrogate.n_frames": 32,
    "surrogate.hidden": 8, "surrogate.widest": 16, "surrogate.levels": 2, "surrogate.lags": 3, "train.n_steps": 4,
    "train.batch_size": 8, "train.validate_every": 2, "train.log_every": 2, "sample.n_samples": 3, "sample.n_frames": 300,
    "sample.shard_size": 2, "correct.n_structures": 6, "farm.n_replicas": 2, "farm.production_ps": 20,
    "farm.observables": "[q]", "report.bootstrap_samples": 20, "report.n_clusters": 10, "report.memorisation_frames": 16,
}  # fmt: skip
SETTINGS = [f"{key}={value}" for key, value in SMALL.items()]


@pytest.fixture(scope="module")
def finished(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latent") / "run"
    ended = command("run", "trp-cage", "--out", str(out), *(part for setting in SETTINGS for part in ("--set", setting)))
    assert ended.returncode == 3, ended.stderr  # four steps of training pass no gate, and say so
    assert "Traceback" not in ended.stderr
    return out


def latent_of(directory: Path) -> tuple[Run, LatentVariables]:
    run = Run.open(directory)
    variables = load_representation(directory / "featurize" / "representation.safetensors", run.system)
    assert isinstance(variables, LatentVariables)
    return run, variables


def test_a_run_ends_in_a_report(finished: Path) -> None:
    """Every stage knows the latent coordinates by their names, and `featurize` counts what learning them cost."""
    run, variables = latent_of(finished)
    assert variables.names == ("q", "z1", "z2")
    made = read_trajectories(finished / "sample" / "trajectories.h5")
    assert made.feature_names == variables.names and made.n_frames == (300,) * 3
    report = (finished / "report" / "report.md").read_text()
    assert "z1" in report and "z2" in report and "No importance weights exist" in report
    assert stage_costs(run, "featurize")["cpu_s"] > 0.2  # 120 steps of two networks, and what `featurize` does besides
    frames = read_ensemble(finished / "correct" / "frames.h5", run.system)
    chosen = np.concatenate(made.features)[frames.parent]
    near = np.linalg.norm(variables.channels(chosen) - variables.channels(variables.measure(frames.positions_nm)), axis=1)
    diagnostics = json.loads((finished / "correct" / "diagnostics.json").read_text())
    assert near.max() == pytest.approx(diagnostics["distance_to_reference"]["largest"], rel=1e-3)
    assert len((finished / "farm" / "manifest.jsonl").read_text().splitlines()) == 2


def test_training_and_report_see_the_same_features(finished: Path) -> None:
    run, variables = latent_of(finished)
    train, held_out = load_series(run)  # measured again, by what was saved
    assert train.labels == ("walker-0000", "walker-0002") and held_out.labels == ("walker-0001", "walker-0003")
    found = load_channels(run.path("featurize"), "train")
    channels, lengths = found.values, found.n_frames
    assert lengths == [400, 400]
    np.testing.assert_allclose(variables.channels(np.concatenate(train.features)), channels, atol=1e-5)
    np.testing.assert_allclose(channels.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(channels.std(axis=0), 1, atol=1e-3)
    about = json.loads((finished / "featurize" / "latent.json").read_text())
    assert about["walkers"] == ["walker-0000", "walker-0002"] and about["n_frames"] == 800
    assert about["autocorrelations"][0] >= about["autocorrelations"][1] and about["loss_set_apart"] <= about["loss_linear"]


def test_learning_never_sees_held_out_walkers(finished: Path, tmp_path: Path) -> None:
    """With other held-out frames all that was learned is the same, bit for bit; with other training frames it is not."""
    run, variables = latent_of(finished)
    for walkers, same in (((1, 3), True), ((2,), False)):
        copied = tmp_path / f"{same}"
        shutil.copytree(finished, copied)
        for walker in walkers:
            path = copied / "reference" / f"walker-{walker:04d}.h5"
            frames = read_ensemble(path, run.system)
            other = frames[np.random.default_rng(1).permutation(len(frames))]
            write_ensemble(path, other, run.system, seed=1)
        again = fit_representation(Run.open(copied))
        tensors, values = variables.state()
        found, known = again.state()
        assert (known == values) is same
        assert all(torch.equal(found[name], value) for name, value in tensors.items()) is same


def test_where_there_are_no_structures_it_is_refused(command: CommandLine, tmp_path: Path) -> None:
    learned = ["--set", "representation={name: latent, cvs: []}"]
    well = command("run", "triple-well", "--out", str(tmp_path / "well"), *learned)
    assert well.returncode == 2 and "no structures with distances" in well.stderr and "Traceback" not in well.stderr
    np.save(tmp_path / "a.npy", np.random.default_rng(1).normal(size=(500, 2)))
    series = ["--set", f"reference.trajectories=[{tmp_path}]", *learned]
    ended = command("run", "published-triple-well", "--out", str(tmp_path / "run"), *series)
    assert ended.returncode == 2 and "no structures" in ended.stderr and "Traceback" not in ended.stderr


def test_time_series_that_are_there_are_refused(finished: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(finished, copied)
    train, _ = load_series(Run.open(finished))
    train.write(copied / "reference" / "series.h5")
    for call in (fit_representation, load_series):
        with pytest.raises(InputError, match="imported time series have none"):
            call(Run.open(copied))


def test_presets_name_the_learned_coordinates() -> None:
    config = load_config("alpha-synuclein")
    assert config.representation.is_series and config.representation.cvs == ("rg", "ree") and config.makes_trajectories
