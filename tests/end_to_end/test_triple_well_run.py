"""Surrogates of trajectories from the first command to the report: simulated, imported, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hpc_molgen.config import load_config
from hpc_molgen.correction import rare_first
from hpc_molgen.datasets import load_channels, load_series
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import load_representation
from hpc_molgen.representations.cvs import CollectiveVariables
from hpc_molgen.run import Run
from hpc_molgen.training.stage import training_sets, window_starts
from hpc_molgen.trajectories import read_trajectories
from tests.conftest import CommandLine

SMALL = {
    "reference.n_walkers": 4, "reference.production_ps": 600, "reference.equilibration_ps": 10, "surrogate.n_frames": 32,
    "surrogate.hidden": 8, "surrogate.widest": 16, "surrogate.levels": 2, "surrogate.lags": 3, "train.n_steps": 4,
    "train.batch_size": 8, "train.validate_every": 2, "train.log_every": 2, "sample.n_samples": 3, "sample.n_frames": 500,
    "sample.shard_size": 2, "report.bootstrap_samples": 20, "report.n_clusters": 20, "report.memorisation_frames": 16,
}  # fmt: skip


def settings(**further: object) -> list[str]:
    values = {**SMALL, **{name.replace("__", "."): value for name, value in further.items()}}
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def finished(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("well") / "run"
    ended = command("run", "triple-well", "--out", str(out), *settings())
    assert ended.returncode == 3, ended.stderr  # four steps of training pass no gate, and say so
    assert "score" in ended.stdout and "Traceback" not in ended.stderr
    return out


def test_a_run_ends_in_a_report(finished: Path) -> None:
    report = json.loads((finished / "report" / "report.json").read_text())
    verdict, found = report["verdict"], report["findings"]
    assert not verdict["gate_passed"] and {"divergence", "increments", "memorisation", "transitions"} <= {
        check["name"] for check in verdict["checks"]
    }
    sets = found["sets"]
    assert list(sets)[:3] == ["held-out MD", "training MD", "generated"] and len(sets) == 6
    assert sets["generated"]["n_trajectories"] == 3 and sets["generated"]["n_frames"] == 1500
    assert sets["held-out MD"]["divergence"] == 0 and found["noise_floor"] == sets["training MD"]["divergence"] > 0
    assert found["scores"]["generated"] > found["scores"]["training MD"] > 0
    text = (finished / "report" / "report.md").read_text()
    assert "No importance weights exist" in text and "Mean first-passage times" in text
    for name in ("surfaces", "kinetics"):
        assert (finished / "report" / "figures" / f"{name}.svg").stat().st_size > 5000
    stages = {stage["stage"]: stage for stage in report["costs"]["stages"]}
    assert list(stages) == ["reference", "featurize", "train", "sample"] and stages["train"]["cpu_s"] > 0
    rows = (finished / "report" / "report.csv").read_text().splitlines()
    assert rows[0] == "section,quantity,set,value,low,high,unit"
    assert f"costs,cpu_s,train,{stages['train']['cpu_s']},,,CPU s" in rows
    left = sets["generated"]["populations"][0]
    assert f"sets,populations / left,generated,{left['value']},{left['low']},{left['high']},1" in rows
    left_out = {row["what"]: row for row in report["left_out"]}
    assert left_out["farm"]["amount"] == "not run" and "comparison of costs with MD" in left_out
    assert "What was left out, and why" in text
    assert not (finished / "correct").exists() and not (finished / "farm").exists()


def test_what_a_run_holds(finished: Path) -> None:
    run = Run.open(finished)
    train, held_out = load_series(run)
    assert train.labels == ("walker-0000", "walker-0002") and held_out.n_frames == (600, 600) and train.dt_ps == 1
    variables = load_representation(finished / "featurize" / "representation.safetensors", run.system)
    assert isinstance(variables, CollectiveVariables) and variables.names == ("x", "y")
    found = load_channels(run.path("featurize"), "train")
    channels, lengths = found.values, found.n_frames
    assert lengths == [600, 600] and isinstance(channels, np.memmap)
    assert np.allclose(channels.mean(axis=0), 0, atol=1e-5) and np.allclose(channels.std(axis=0), 1, atol=1e-4)
    np.testing.assert_allclose(variables.features(channels[:600]), train.features[0], atol=1e-5)
    made = read_trajectories(finished / "sample" / "trajectories.h5")
    assert made.n_frames == (500, 500, 500) and made.feature_names == ("x", "y")
    assert isinstance(made.features[0], np.memmap)


def test_another_run_is_compared_in_the_same_tables(command: CommandLine, finished: Path, tmp_path: Path) -> None:
    """The published perceptron beside ours: its set, its weights, its training, and who is better."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(finished, theirs)
    shutil.copytree(finished, ours)
    perceptron = {"surrogate.architecture": "perceptron", "surrogate.n_frames": 100, "sample.n_frames": 100}
    ended = command("run", "triple-well", "--out", str(theirs), "--to", "sample", *settings(**perceptron))
    assert ended.returncode == 0, ended.stderr
    beside = settings(report__others=f"{{published: {theirs}}}")
    ended = command("run", "triple-well", "--out", str(ours), "--only", "report", *beside)
    assert ended.returncode == 3, ended.stderr
    found = json.loads((ours / "report" / "report.json").read_text())
    assert found["findings"]["sets"]["published"]["n_frames"] == 3 * 100
    own = json.loads((ours / "train" / "done.json").read_text())["details"]["n_parameters"]
    text = (ours / "report" / "report.md").read_text()
    ratio = found["findings"]["others"]["published"]["n_parameters"] / own
    assert f"{ratio:.1f} times as many" in text and "published: training" in text
    assert "better than published" in {check["name"] for check in found["verdict"]["checks"]}
    wrong = settings(report__others=f"{{generated: {theirs}}}")
    ended = command("run", "triple-well", "--out", str(ours), "--only", "report", *wrong)
    assert ended.returncode == 2 and "report.others" in ended.stderr and "Traceback" not in ended.stderr


def test_a_picture_of_a_training_that_goes_on(command: CommandLine, finished: Path, tmp_path: Path) -> None:
    """`report` while training runs: losses, and what the newest checkpoint makes, labels and starts included."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "train")
    early = command("report", str(out))
    assert early.returncode == 2 and "nothing to report" in early.stderr and "Traceback" not in early.stderr
    line = [sys.executable, "-m", "hpc_molgen", "run", "triple-well", "--out", str(out), "--to", "train"]
    further = {"train.n_steps": 100_000, "train.checkpoint_every_s": 0.5, "surrogate.start_frame": "true"}
    training = subprocess.Popen([*line, *settings(**further)], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list((out / "train").glob("checkpoint-*.sha256")):
            assert training.poll() is None and time.monotonic() < deadline, training.communicate()
            time.sleep(0.1)
        shown = command("report", str(out))
        assert shown.returncode == 0, shown.stderr
        picture = Path(shown.stdout.split("training: ")[1].strip())
        assert picture.parent == out / "train" / "pictures" and picture.stat().st_size > 20_000
        assert training.poll() is None
    finally:
        training.terminate()
        training.wait(30)


def test_weights_are_refused_and_explained(command: CommandLine, finished: Path) -> None:
    asked = command("run", "triple-well", "--out", str(finished), "--only", "correct", *settings())
    assert asked.returncode == 2 and "no importance weights" in asked.stderr and "Traceback" not in asked.stderr
    other = command("run", "tiny", "--out", str(finished.parent / "other"), "--set", "surrogate={name: gan}")
    assert other.returncode == 2 and "representation.cvs" in other.stderr


def walk(n: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    x = np.zeros((n, 2))
    for frame in range(1, n):
        x[frame] = 0.9 * x[frame - 1] + generator.normal(size=2)
    return x


def test_imported_windows_of_one_trajectory_are_joined_and_split_without_overlap(command: CommandLine, tmp_path: Path) -> None:
    parent, folder = walk(3000, 1), tmp_path / "files"
    folder.mkdir()
    for number, start in enumerate((0, 1000, 0, 500, 1000)):
        np.save(folder / f"trajectory_{number}.npy", parent[start : start + 2000])
    out = tmp_path / "run"
    line = ["run", "published-triple-well", "--out", str(out), *settings(reference__trajectories=f"[{folder}]")]
    ended = command(*line)
    assert ended.returncode == 3, ended.stderr
    assert "5 time series are 1 different one(s), 5 of them being copies or overlapping windows" in ended.stderr
    train, held_out = load_series(Run.open(out))
    assert train.n_frames == held_out.n_frames == (1500,)
    assert np.array_equal(np.concatenate([train.features[0], held_out.features[0]]), parent)
    with h5py.File(out / "reference" / "series.h5") as file:
        assert [int(values.attrs["group"]) for values in file["trajectories"].values()] == [0, 1]
    shutil.rmtree(folder)
    missing = command("run", "published-triple-well", "--out", str(tmp_path / "no"), *line[4:])
    assert missing.returncode == 2 and "there are no such time series" in missing.stderr


def test_ways_of_cutting_windows() -> None:
    assert window_starts([10, 3, 7], 4, "random", 1).tolist() == [*range(7), *range(13, 17)]
    assert window_starts([10, 3, 7], 4, "chunks", 1).tolist() == [0, 4, 13]
    assert window_starts([10, 10], 4, "bins", 3).tolist() == [0, 3, 6, 10, 13, 16]
    assert window_starts([4, 4], 4, "whole", 1).tolist() == [0, 4]
    with pytest.raises(InputError, match="series of exactly 4 frames"):
        window_starts([10, 3], 4, "whole", 1)
    with pytest.raises(InputError, match="series of at least 40 frames"):
        window_starts([10, 3], 40, "random", 1)
    assert len(window_starts([5_000_000], 4, "random", 1)) <= 2_500_000


def test_one_generator_serves_all_temperatures_and_one_that_it_never_saw(command: CommandLine, tmp_path: Path) -> None:
    """Walkers take their labels in turn; all of the unseen one are held out; segments are joined; all is in the report."""
    out = tmp_path / "run"
    further = {
        "reference.n_walkers": 7, "surrogate.start_frame": "true", "sample.segment_frames": 20, "sample.n_samples": 6,
        "reference.labels": "[{temperature_kelvin: 200}, {temperature_kelvin: 400, unseen: true}, {temperature_kelvin: 600}]",
    }  # fmt: skip
    ended = command("run", "triple-well", "--out", str(out), *settings(**further))
    assert ended.returncode == 3, ended.stderr
    run = Run.open(out)
    train, held_out = load_series(run)
    assert train.condition_names == ("temperature_kelvin",) and train.labels == ("walker-0000", "walker-0002", "walker-0006")
    assert train.conditions == ((200.0,), (600.0,), (200.0,))
    assert held_out.conditions == ((400.0,), (200.0,), (400.0,), (600.0,))
    spread = {row[0]: np.diff(part, axis=0).std() for part, row in zip(held_out.features, held_out.conditions, strict=True)}
    # as the root of kT, in free diffusion and in a harmonic well; these wells are softer higher up
    assert spread[600.0] / spread[200.0] == pytest.approx(3**0.5, rel=0.15)
    variables = load_representation(out / "featurize" / "representation.safetensors", run.system)
    assert isinstance(variables, CollectiveVariables)
    assert variables.labels.seen.tolist() == [True, True, False] and variables.labels.text(2) == "temperature_kelvin 400"
    np.testing.assert_allclose(variables.labels.scaled(variables.labels.values)[:, 0], [-1, 1, 0])
    windows = training_sets(run, variables)[0]
    chosen = torch.arange(0, len(windows), 97)
    items = windows.items(chosen)
    assert windows.starts is not None and items.shape == (len(chosen), 33, 3)
    of_series = windows.starts[chosen] // 600
    assert torch.equal(items[:, :, 2], torch.tensor([-1.0, 1.0, -1.0])[of_series][:, None].expand(-1, 33))
    made = read_trajectories(out / "sample" / "trajectories.h5")
    assert [row[0] for row in made.conditions] == [200, 600, 400, 200, 600, 400] and made.n_frames == (500,) * 6
    found = json.loads((out / "report" / "report.json").read_text())
    names = ["temperature_kelvin 200", "temperature_kelvin 600", "temperature_kelvin 400 (unseen)"]
    assert list(found["findings"]["labels"]) == names and len(found["findings"]["seams"]) == 2
    assert found["findings"]["sets"]["generated"]["n_trajectories"] == 4  # the unseen ones are in no other table
    assert {"seams", *names} <= {check["name"] for check in found["verdict"]["checks"]}
    assert "Agreement by label" in (out / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference.labels": "[{temperature_kelvin: 300}]"}, "two at least must be trained on"),
        ({"reference.labels": "[{temperature_kelvin: 300}, {temperature_kelvin: 300}]"}, "must differ"),
        ({"sample.segment_frames": 10}, "needs surrogate.start_frame"),
    ],
)
def test_labels_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_config("triple-well", [f"{key}={value}" for key, value in changes.items()])


def test_labels_of_a_folder_split_evenly(command: CommandLine, tmp_path: Path) -> None:
    """labels.csv names what the files differ by: of each label one half is held out; a file without a line is an error."""
    generator, folder = np.random.default_rng(1), tmp_path / "series"
    folder.mkdir()
    for number in range(8):
        np.save(folder / f"{number}.npy", generator.normal(size=(200, 2)).cumsum(axis=0))
    lines = [f"{number}.npy,{number // 4},{number // 4 * 10}" for number in range(8)]
    (folder / "labels.csv").write_text("\n".join(["file,label,salt", *lines]) + "\n")
    values = {**SMALL, "system.name": "series", "reference.trajectories": f"[{folder}]", "reference.held_out_fraction": 0.25}
    chosen = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    ended = command("run", "triple-well", "--out", str(tmp_path / "run"), "--to", "featurize", *chosen)
    assert ended.returncode == 0, ended.stderr
    train, held_out = load_series(Run.open(tmp_path / "run"))
    assert train.condition_names == ("label", "salt") and held_out.conditions == ((0.0, 0.0), (1.0, 10.0))
    (folder / "labels.csv").write_text("file,label\n0,1\n")
    with pytest.raises(InputError, match="no line for '1'"):
        read_trajectories(folder)


def test_torsions_go_round_the_circle(tmp_path: Path) -> None:
    """Angles become (cos, sin) and come back; what is not an angle is standardised."""
    config = load_config("tiny")
    from hpc_molgen.systems.registry import load_system
    from hpc_molgen.trajectories import TrajectorySet

    system = load_system(config.system)
    angles = np.array([[np.pi - 0.01, 3.0], [-np.pi + 0.01, 5.0], [0.3, 7.0]])
    train = TrajectorySet((angles,), ("phi", "rg"), ("radians", "nanometers"), 1.0, ("a",))
    variables = CollectiveVariables.of_series(system, train)
    channels = variables.channels(angles)
    assert variables.n_channels == channels.shape[1] == 3 and abs(channels[0] - channels[1])[:2].max() < 0.03
    np.testing.assert_allclose(variables.features(channels), angles, atol=1e-5)
    variables.save(tmp_path / "r.safetensors", system)
    again = load_representation(tmp_path / "r.safetensors", system)
    assert isinstance(again, CollectiveVariables) and np.array_equal(again.channels(angles), channels)
    with pytest.raises(InputError, match="do not determine a structure"):
        variables.decode(variables.encode(torch.as_tensor(system.positions_nm[None])))


def test_frames_of_a_molecule_become_structures_and_seeds(command: CommandLine, tmp_path: Path) -> None:
    """Generated (phi, psi, rg) of alanine dipeptide: nearest reference frames as PDBs, rare regions first, and MD from them."""
    out = tmp_path / "run"
    values = {
        "reference.bias_torsion": "null", "reference.production_ps": 20, "surrogate": "{name: gan, n_frames: 32, hidden: 8}",
        "representation": "{name: cvs, cvs: [phi, psi, rg]}", "train.n_steps": 3, "train.batch_size": 8, "sample.n_samples": 2,
        "sample.n_frames": 400, "report.n_clusters": 8, "report.bootstrap_samples": 20, "report.memorisation_frames": 16,
        "correct.n_structures": 12, "farm.n_replicas": 3,
    }  # fmt: skip
    ended = command("run", "tiny", "--out", str(out), *(part for k, v in values.items() for part in ("--set", f"{k}={v}")))
    assert ended.returncode == 3, ended.stderr
    rows = json.loads((out / "correct" / "pdb" / "manifest.json").read_text())["structures"]
    assert len(rows) == 12 and sum(row["weight"] for row in rows) == pytest.approx(1)
    assert len({row["parent"] for row in rows}) == 12
    diagnostics = json.loads((out / "correct" / "diagnostics.json").read_text())
    assert diagnostics["weighted"] is False and "no importance weights" in diagnostics["reason"]
    run = Run.open(out)
    frames = read_ensemble(out / "correct" / "frames.h5", run.system)
    made = np.concatenate(read_trajectories(out / "sample" / "trajectories.h5").features)[frames.parent]
    variables = load_representation(out / "featurize" / "representation.safetensors", run.system)
    assert isinstance(variables, CollectiveVariables)
    near = np.linalg.norm(variables.channels(made) - variables.channels(variables.measure(frames.positions_nm)), axis=1)
    assert near.max() == pytest.approx(diagnostics["distance_to_reference"]["largest"], rel=1e-3)
    records = (out / "farm" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["state"] for line in records] == ["done"] * 3
    assert "phi" in (out / "report" / "report.md").read_text()


def test_rare_regions_come_first() -> None:
    region = np.repeat([0, 1, 2], [70, 5, 25])
    chosen = rare_first(region, 20, np.random.default_rng(1))
    assert len(set(chosen.tolist())) == 20
    assert region[chosen][:6].tolist() == [1, 2, 0, 1, 2, 0] and np.bincount(region[chosen]).tolist() == [7, 5, 8]
