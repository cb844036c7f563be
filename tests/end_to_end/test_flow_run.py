"""A flow instead of the diffusion: the same stages, the same weights of all internal coordinates."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.integrate import simpson

from hpc_molgen import coverage, datasets, temperatures
from hpc_molgen.config import load_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.efficiency import temperature_report
from hpc_molgen.efficiency.costs import collect_costs, teacher_cost
from hpc_molgen.efficiency.evidence import choose_torsions
from hpc_molgen.efficiency.suites.runs import run_bill
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import load_representation
from hpc_molgen.reweighting import importance_log_weights, normalised_weights
from hpc_molgen.run import Run
from hpc_molgen.surrogates.base import load_surrogate
from tests.conftest import CommandLine

SETTINGS = {
    "surrogate": "{name: flow, layers: 4, hidden: 48}", "reference.n_walkers": 8, "reference.production_ps": 250,
    "train.n_steps": 60, "train.warmup_steps": 20, "train.batch_size": 256, "sample.n_samples": 2000,
    "correct.n_structures": 5, "correct.method": "weights", "refine.rounds": 2, "refine.n_samples": 20000,
    "refine.n_steps": 50, "refine.learning_rate": 1.5e-3,
}  # fmt: skip


def held_out_loss(directory: Path) -> float:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return float([record["held_out_loss"] for record in records if "held_out_loss" in record][-1])


def check_weights_of_the_second_round(run: Run) -> None:
    """They are those of OpenMM's energies and of ln q of the surrogate that the first round left."""
    made = load_file(run.path("train", "round-2", "samples-00001.safetensors"))
    surrogate = load_surrogate(run.path("train", "round-1", "surrogate.safetensors"), run.system.key)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    features = made["features"][:40]
    positions, log_abs_det = representation.decode(features)
    energies = Engine(run.system, "Reference").reduced_energy(positions.numpy())
    expected = -energies - (surrogate.log_density(features) - log_abs_det).numpy()
    calm = energies < 1e3  # features are kept in float32, which a clash feels
    assert calm.sum() > 20
    np.testing.assert_allclose(made["log_weight"][:40].numpy()[calm], expected[calm], atol=2e-2)


def execute(command: CommandLine, directory: Path, settings: dict[str, object], last: str) -> Run:
    given = (part for key, value in settings.items() for part in ("--set", f"{key}={value}"))
    ended = command("run", "alanine-dipeptide", "--out", str(directory), "--to", last, *given)
    assert ended.returncode == 0, ended.stderr
    return Run.open(directory)


@pytest.fixture(scope="module")
def run(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return execute(command, tmp_path_factory.mktemp("flow") / "run", SETTINGS, "correct")


def test_a_flow_is_a_surrogate_like_the_other(run: Run) -> None:
    """Weights are those of OpenMM's energies and the flow's own ln q; many samples share them."""
    assert run.details("sample")["network_evaluations"] == 1
    proposals = read_ensemble(run.path("sample", "proposals.h5"), run.system)
    weighted = read_ensemble(run.path("correct", "weighted.h5"), run.system)
    chosen = np.arange(0, 2000, 40)
    energies = Engine(run.system, "Reference").reduced_energy(proposals.positions_nm[chosen])
    expected = importance_log_weights(energies, proposals.log_density[chosen])
    finite = np.isfinite(expected) & (energies < 1e4)
    assert finite.sum() > 40
    np.testing.assert_allclose(weighted.log_weight[chosen][finite], expected[finite], atol=1e-2, rtol=1e-5)
    found = json.loads(run.path("correct", "diagnostics.json").read_text())
    rounds = run.details("train")["rounds"]
    n_frames = len(datasets.load_split(run)[0])
    assert len(rounds) == 2 and run.details("train")["n_energies"] == n_frames + 2 * 2 * 20000  # scores and weights
    assert found["ess_fraction"] > 0.2
    check_weights_of_the_second_round(run)
    # weighted independent samples mend what few correlated frames have taught it wrong. The losses' standard error is 0.06
    # each; 0.34 were seen. (An ESS of some thousand samples hangs on the largest weights, too loosely to be compared.)
    assert held_out_loss(run.path("train", "round-2")) < held_out_loss(run.path("train"))
    assert len(list(run.path("correct", "pdb").glob("*.pdb"))) == 5


def test_scores_are_forces_on_features(run: Run) -> None:
    """Of frames and of samples: the slope of ln p by OpenMM's energies, along random directions."""
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    engine = Engine(run.system, "Reference")

    def log_p(features: torch.Tensor) -> np.ndarray:
        positions, log_abs_det = representation.decode(features)
        return log_abs_det.numpy() - engine.reduced_energy(positions.numpy())

    for folder in ("start", "round-2"):
        made = load_file(run.path("train", folder, "samples-00001.safetensors"))
        sound = torch.isfinite(made["log_weight"]) & (made["log_weight"] > made["log_weight"].median() - 2)
        features, score = (made[name][sound][:30].double() for name in ("features", "score"))
        direction = torch.randn(features.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        slope = (log_p(features + 1e-4 * direction) - log_p(features - 1e-4 * direction)) / 2e-4
        np.testing.assert_allclose(slope, (direction * score).sum(1), rtol=2e-3, atol=0.1)


def test_a_flow_learns_from_a_teacher(command: CommandLine, run: Run, tmp_path: Path) -> None:
    """Weighted samples of another run's surrogate, instead of frames: this one's held-out loss comes near the teacher's."""
    shutil.copytree(run.directory, tmp_path / "run")
    taught = {"refine.start": "teacher", "refine.teacher": run.directory, "refine.start_samples": 8000, "refine.rounds": 0}
    pupil = execute(command, tmp_path / "run", SETTINGS | taught | {"train.n_steps": 100}, "train")
    parts = [load_file(path) for path in sorted(pupil.path("train", "start").glob("samples-*.safetensors"))]
    assert pupil.details("train")["n_items"] == sum(len(part["features"]) for part in parts) >= 8000
    assert held_out_loss(pupil.path("train")) < held_out_loss(run.path("train", "round-2")) + 0.5
    paid, of_teacher = collect_costs(pupil), collect_costs(run)
    own = sum(stage.cpu_s for stage in paid.stages if stage.stage in ("featurize", "train"))
    assert paid.training == pytest.approx(own + of_teacher.training)  # its data are this run's own, and counted there
    bill, alone = run_bill(pupil, 1), run_bill(run, 1)
    assert bill.parts["teacher_cpu_s"] == pytest.approx(of_teacher.training) and alone.parts["teacher_cpu_s"] == 0
    assert bill.fixed_s[0] == pytest.approx(sum(bill.parts.values())) and bill.fixed_s[1] > alone.parts["train_cpu_s"]
    other = yaml.safe_load((run.directory / "config.yaml").read_text()) | {"seed": 99}
    (pupil.directory / "config.yaml").write_text(
        yaml.safe_dump(other | {"refine": pupil.config.refine.model_dump(mode="json")})
    )
    assert teacher_cost(Run.open(pupil.directory))[0] == pytest.approx(of_teacher.data + of_teacher.training)


def test_a_teacher_without_weights_is_refused(command: CommandLine, run: Run, tmp_path: Path) -> None:
    for name in ("mute", "run"):
        shutil.copytree(run.directory, tmp_path / name)
    silent = {"refine": {"rounds": 0}, "sample": {"log_density": False}, "correct": {"weights": False}}
    values = yaml.safe_load((tmp_path / "mute" / "config.yaml").read_text())
    (tmp_path / "mute" / "config.yaml").write_text(yaml.safe_dump(values | {key: values[key] | silent[key] for key in silent}))
    settings = SETTINGS | {"refine.start": "teacher", "refine.teacher": tmp_path / "mute"}
    given = (part for key, value in settings.items() for part in ("--set", f"{key}={value}"))
    ended = command("run", "alanine-dipeptide", "--out", str(tmp_path / "run"), "--to", "train", *given)
    assert ended.returncode == 2 and "refine.teacher: its samples come without ln q" in ended.stderr


def weighted_mean(values: np.ndarray, log_weight: np.ndarray) -> tuple[float, float]:
    """Self-normalised mean of independent samples, with its standard error by the delta method."""
    weights = normalised_weights(log_weight)
    seen = weights > 0
    mean = float(np.sum(weights[seen] * values[seen]))
    return mean, float(np.sqrt(np.sum((weights[seen] * (values[seen] - mean)) ** 2)))


def test_other_temperatures(command: CommandLine, run: Run, tmp_path: Path) -> None:
    """A flow's own samples at 330 and 360 K agree with those of 300 K weighed to 330 K, and their ln Z with their energies."""
    shutil.copytree(run.directory, tmp_path / "run")
    asked = {"sample.temperatures_kelvin": "[330, 360]", "sample.n_samples": 8000, "sample.shard_size": 4000}
    warm = execute(command, tmp_path / "run", SETTINGS | asked, "correct")
    assert warm.is_done("train") and warm.details("train") == run.details("train")  # nothing is trained again
    system, there = warm.system, warm.system.at(330)
    assert there.key != system.key and system.at(system.temperature_kelvin).key == system.key
    drawn = read_ensemble(warm.path("correct", "weighted-330K.h5"), there)
    chosen = np.arange(0, 8000, 200)
    energies = Engine(there, "Reference").reduced_energy(drawn.positions_nm[chosen])
    calm = energies < 1e3
    assert calm.sum() > 20
    np.testing.assert_allclose(drawn.reduced_energy[chosen][calm], energies[calm], atol=2e-3)
    log_q = coverage.log_density_of(warm, drawn.positions_nm[chosen], float(np.log(330 / 300)))
    np.testing.assert_allclose(drawn.log_density[chosen][calm], log_q[calm], atol=2e-2)

    (task, _) = temperatures.plan(warm)
    weighed = dataclasses.replace(task, drawn=False, proposals=warm.path("sample", "proposals.h5"), weighted=tmp_path / "as.h5")
    temperatures.weigh(weighed)
    both = [drawn, read_ensemble(tmp_path / "as.h5", there)]
    means = [weighted_mean(one.reduced_energy, one.log_weight) for one in both]
    assert abs(means[0][0] - means[1][0]) < 4 * np.hypot(means[0][1], means[1][1])

    rows = json.loads(warm.path("correct", "diagnostics.json").read_text())["temperatures"]
    assert [row["kelvin"] for row in rows] == [330, 360] and all(row["drawn"] and row["ess_fraction"] > 0.1 for row in rows)
    for row in rows:
        (value, error), (by_bar, bar_error) = row["log_z_difference"], row["log_z_bar"]
        assert 0 < error < 0.2 and abs(value - by_bar) < 4 * np.hypot(error, bar_error)
    # d ln Z / d beta = -<U>, by Simpson's rule for three values that are nearly in line
    base = read_ensemble(warm.path("correct", "weighted.h5"), system)
    hot = read_ensemble(warm.path("correct", "weighted-360K.h5"), system.at(360))
    beta = 1 / np.array([300.0, 330.0, 360.0])
    found = [weighted_mean(one.reduced_energy / b, one.log_weight) for one, b in zip((base, drawn, hot), beta, strict=True)]
    slopes, errors = np.array(found).T
    weights = simpson(np.eye(3), x=beta[::-1])[::-1]
    expected, spread = float(np.sum(weights * slopes)), float(np.sqrt(np.sum((weights * errors) ** 2)))
    value, error = rows[1]["log_z_difference"]
    assert abs(value - expected) < 4 * np.hypot(error, spread)

    torsions = choose_torsions(system, "phi")
    collected = temperature_report.collect(warm, torsions, {"temperatures": rows})
    shown = temperature_report.table(collected, "phi", 0.7)
    assert [row[0] for row in shown.rows] == ["330", "360"] and all(3 < row["delta_f"].value < 4.5 for row in collected)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["sample.temperatures_kelvin=[300]"], "must be positive, all different"),
        (["sample.temperatures_kelvin=[350, 350]"], "must be positive, all different"),
        (["sample.temperatures_kelvin=[350]", "correct.weights=false"], "needs correct.weights"),
    ],
)
def test_temperatures_that_make_no_sense(assignments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config("alanine-dipeptide", assignments)
