"""The suites `training` and `scaling` at their smallest size: complete records. Speeds are not judged here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_molgen.efficiency.suites import run_suite, training_gpu
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.scaling import plan_record
from hpc_molgen.efficiency.suites.scaling_inputs import parse_inputs, read_points
from hpc_molgen.efficiency.suites.training import _two
from hpc_molgen.efficiency.suites.training_processes import Operations, Timing, count_operations
from hpc_molgen.efficiency.suites.training_quality import judged_steps, summary
from hpc_molgen.efficiency.suites.training_tables import gpu_tables, quality_answer
from hpc_molgen.efficiency.suites.training_workloads import SMALL_WORKLOADS, WORKLOADS, make_trainer, parameter_bytes
from hpc_molgen.errors import InputError
from hpc_molgen.training.loop import Trainer
from hpc_molgen.workers import available_cores
from tests.conftest import CommandLine

SCRIPTS = Path(__file__).parents[2] / "slurm"


def read_record(out: Path, name: str) -> tuple[dict[str, Any], str]:
    record = json.loads((out / f"{name}.json").read_text())
    assert record["question"] and record["answer"] and record["costs"] and record["provenance"]["packages"]["torch"]
    return record, (out / f"{name}.md").read_text()


def check_spread(value: dict[str, Any], n: int) -> np.ndarray:
    assert len(value["values"]) == value["n"] == n and all(v > 0 and math.isfinite(v) for v in value["values"])
    return np.array(value["values"])


def test_training(command: CommandLine, tmp_path: Path) -> None:
    shown = command("benchmark", "training", "--size", "smoke", "--out", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    record, text = read_record(tmp_path, "training-smoke")
    assert record["command"].startswith("hpc-molgen benchmark training --size smoke")
    assert any("no GPU" in note for note in record["notes"]) or record["results"]["gpu"]
    processes = record["results"]["processes"]
    assert processes.keys() == {"diffusion", "gan"}
    for name, row in processes.items():
        one = check_spread(row["one_ms"], 2)
        batch = row["workload"]["batch_size"]
        np.testing.assert_allclose(check_spread(row["one_per_s"], 2), 1e3 * batch / one)
        assert 0 < row["one_utilisation"]["mean"] < 1 and 0 < row["one_wait_share"]["mean"] < 1
        assert row["gradient_bytes"] == sum(map(sum, parameter_bytes(SMALL_WORKLOADS[name]))) and row["flops_per_step"] > 1e4
        if available_cores() > 1:
            two, ratio = check_spread(row["two_ms"], 2), check_spread(row["ratio"], 2)
            np.testing.assert_allclose(ratio, one / two)
            factors = np.prod([check_spread(factor, 2) for factor in row["factors"].values()], axis=0)
            np.testing.assert_allclose(factors, ratio)
            parts = np.sum([part["values"] for part in row["parts_ms"].values()], axis=0)
            np.testing.assert_allclose(parts, two)
            assert all(row["parts_ms"][part]["mean"] > 0 for part in ("draw", "compute", "all_reduce", "wait"))
            check_spread(row["ceiling_whole"], 2)
    assert len(record["targets"]) == (2 if available_cores() > 1 else 0)
    if available_cores() > 1:
        assert "From one process to two" in text and "all-reduce alone" in text
    check_quality(record, text)


def check_quality(record: dict[str, Any], text: str) -> None:
    """Curves of each seed at the same steps, whose divergence falls; the target's times are those of the curves."""
    results = record["results"]
    assert results["reference"]["floor"]["n"] == 3 and results["time_to_quality"].keys() == {"diffusion", "flow"}
    for row in results["time_to_quality"].values():
        assert row["n_seeds"] == len(row["curve"]) == 3 and f"Training to a quality: {row['words']}" in text
        for points in row["curve"]:
            assert [point["step"] for point in points][:3] == [8, 11, 16] and 0 < points[0]["cpu_s"] < points[-1]["cpu_s"]
            assert points[-1]["over_floor"] < points[0]["over_floor"]
        assert (row["cpu_s"] is None) == (row["n_missed"] > 0) and (row["cpu_s"] or {"n": 3})["n"] == 3
    assert sum("the noise floor after" in sentence for sentence in record["answer"]) == 2


def test_a_quality_is_reached_where_it_is_kept_and_a_seed_that_misses_it_leaves_no_mean_of_the_lucky_ones() -> None:
    def curve(*ratios: float) -> list[dict[str, float]]:
        return [{"step": 8 * 2**k, "cpu_s": 1.0 + k, "wall_s": 2.0 + k, "over_floor": ratio} for k, ratio in enumerate(ratios)]

    lucky_once, at_once, never = curve(1.2, 1.3, 1.25, 1.1), curve(1.2, 1.0, 1.1, 1.0), curve(3.0, 1.0, 1.1, 1.26)
    found = summary([lucky_once, at_once, never])
    assert (found["n_seeds"], found["n_missed"], found["curve"][2]) == (3, 1, never)
    assert found["cpu_s"] is None and found["wall_s"] is None and found["steps"] is None
    both = summary([lucky_once, at_once])
    assert both["cpu_s"]["values"] == [3.0, 1.0] and both["wall_s"]["values"] == [4.0, 2.0]
    assert both["steps"]["values"] == [32, 8]
    reference = {"limit": 1.25, "n_samples": 10}
    (said,) = quality_answer({"reference": reference, "time_to_quality": {"x": {"words": "a network", **both}}})
    assert said.startswith("A network: within 1.25 times the noise floor after 2 ± 1.4 CPU s") and "2 seeds)" in said
    (said,) = quality_answer({"reference": reference, "time_to_quality": {"x": {"words": "a network", **found}}})
    assert "1 seed(s) of 3 were not within 1.25 times the noise floor after 64 steps; no time is given" in said
    nobody = {"words": "a network", **summary([never, never])}
    assert nobody["cpu_s"] is None
    (said,) = quality_answer({"reference": reference, "time_to_quality": {"x": nobody}})
    assert said == "A network: no seed was within 1.25 times the noise floor after 64 steps; no time is given."
    assert judged_steps(64, 300) == [64, 91, 128, 181, 256, 300] and judged_steps(64, 128) == [64, 91, 128]


def test_ratios_and_parts_of_two_processes_by_hand() -> None:
    """One round: 8 s a step alone, 5 s for half of it, 6 s beside another, 7 s together (the slower one)."""

    def timings(*pairs: tuple[list[float], float]) -> list[list[Timing]]:
        return [[Timing(seconds, drawing_s, 0.9 * sum(seconds)) for seconds, drawing_s in pairs]]

    seen = {
        "one": timings(([8.0, 8.0], 0.0)),
        "half alone": timings(([5.0, 5.0], 0.0)),
        "half beside": timings(([5.0, 6.0], 1.0), ([6.0, 7.0], 1.0)),
        "whole beside": timings(([9.0], 0.0), ([11.0], 0.0)),
        "two": timings(([7.0, 7.0], 1.2), ([6.0, 7.0], 0.4)),
        "all-reduce": timings(([0.25], 0.0), ([0.125], 0.0)),
    }
    found = _two(seen, 64, flops=70.0, peaks=[20.0])
    assert found["ratio"]["mean"] == pytest.approx(8 / 7) and found["two_per_s"]["mean"] == pytest.approx(64 / 7)
    assert found["ratio_cpu"]["mean"] == pytest.approx(8 / 6.75)
    factors = {name: value["mean"] for name, value in found["factors"].items()}
    assert factors == pytest.approx({"halving": 8 / 5, "sharing": 5 / 6, "exchange": 6 / 7})
    assert (found["ceiling_half"]["mean"], found["ceiling_whole"]["mean"]) == pytest.approx((8 / 6, 2 * 8 / 10))
    parts = {name: value["mean"] / 1e3 for name, value in found["parts_ms"].items()}
    assert parts == pytest.approx({"draw": 0.4, "compute": 5.5, "all_reduce": 0.25, "wait": 0.5, "rest": 0.35})
    assert found["two_utilisation"]["mean"] == pytest.approx(70 / 7 / 40)


def test_what_runs_on_a_gpu_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code with another device: rows for both precisions, ratios to eager float32 in the same round."""
    made: list[str] = []

    def make(*arguments: Any, **settings: Any) -> Trainer:
        made.append(settings.get("precision", "for counting"))
        return make_trainer(*arguments, **settings)

    monkeypatch.setattr(training_gpu, "make_trainer", make)
    settings = training_gpu.GpuTraining(
        {"diffusion": (64, 128), "gan": (8,)}, False, n_rounds=2, measure_s=0.01, steps_per_call=2
    )
    costs = Costs()
    rows = training_gpu.training_on_gpu(SMALL_WORKLOADS, settings, 1, costs, device="cpu")
    assert [(row["batch_size"], row["method"]) for row in rows] == [
        (n, f"{precision} eager") for n in (64, 128, 8) for precision in ("float32", "bf16")
    ]
    assert made == ["float32", "bf16", "for counting"] * 3
    for row in rows:
        np.testing.assert_allclose(1e3 * row["batch_size"] / check_spread(row["step_ms"], 2), row["per_wall_s"]["values"])
        assert 0 < row["utilisation"]["mean"] < 1 and 0.01 < row["wait_share"] < 1 and 0.1 < row["busy_share"] < 1.1
    assert rows[0]["ratio_wall"]["values"] == [1, 1] and rows[1]["ratio_wall"]["values"] != [1, 1]
    assert len(costs.stages) == 6
    (diffusion, gan) = gpu_tables(rows)
    assert len(diffusion["rows"]) == 4 and len(gan["rows"]) == 2
    assert all(len(line) == len(diffusion["columns"]) for line in [*diffusion["rows"], *gan["rows"]])


def test_operations_of_a_batch_are_those_of_its_items() -> None:
    for workload in SMALL_WORKLOADS.values():
        few, many = (count_operations(Operations(workload, n), 1) for n in (8, 24))
        assert many == pytest.approx(3 * few)
        few, many = (training_gpu._flops(workload, n, 1, torch.device("cpu")) for n in (128, 512))
        assert many == pytest.approx(4 * few)  # counted on 256


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, command: CommandLine) -> Path:
    """A folder with runs of one and of two ranks."""
    out = tmp_path_factory.mktemp("scaling")
    options = ["benchmark", "scaling", "--size", "smoke", "--set", "batch_size=64", "--set", "items_per_rank=32"]
    shown = command(*options, "--out", str(out))
    assert shown.returncode == 0, shown.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "hpc_molgen"]
    ranks = subprocess.run([*launcher, *options, "--out", str(out)], capture_output=True, text=True, timeout=240, check=False)
    assert ranks.returncode == 0, ranks.stderr[-3000:]
    assert ranks.stdout.split() == [str(out / "scaling-2.json")]  # only the first rank writes and speaks
    return out


def test_scaling_measures_the_ranks_that_it_is_started_on(measured: Path) -> None:
    one, two = read_points(measured)
    assert (one.ranks, one.nodes, two.ranks, two.nodes) == (1, 1, 2, 1)
    for points in (one, two):
        assert (points.batch_size, points.items_per_rank, points.device) == (64, 32, "cpu")
        assert points.items == (4, 16, 32, 64) and len(points.step_s) == 4 and points.jitter >= 0
        assert len(points.strong_s) == len(points.weak_s) == 2
        assert all(s > 0 for s in (*points.step_s, *points.strong_s, *points.weak_s, *points.all_reduce_s))
        record, _ = read_record(measured, points.file)
        assert "--set batch_size=64 --set items_per_rank=32" in record["command"]
        check = record["results"]["check"]
        assert (check is None) == (points.ranks > 1 or available_cores() == 1)
        if check:
            for name in ("idle", "busy"):
                parts = sum(check[name][part] for part in ("compute_ms", "straggler_ms", "exchange_ms"))
                assert parts == pytest.approx(check[name]["predicted_ms"]) and check[name]["exchange_ms"] > 0
                late = check[name]["jitter"] * check[name]["compute_ms"] / np.sqrt(np.pi)  # the later of two
                assert check[name]["straggler_ms"] == pytest.approx(late, rel=1e-4)
                line = check[name]["fixed_ms"] + check[name]["item_us"] / 1e3 * np.array(check["items"])
                np.testing.assert_allclose(line, np.array(check[name]["step_ms"]) * (1 + np.array(check[name]["residuals"])))
                assert np.interp(32, check["items"], line) == pytest.approx(check[name]["compute_ms"])
                expected = check[name]["predicted_ms"] / check_spread(check["measured_ms"], 2)
                np.testing.assert_allclose(check_spread(check[name]["predicted_over_measured"], 2), expected)
    assert not one.all_reduce_bytes
    gradients = sum(map(sum, parameter_bytes(WORKLOADS["diffusion"])))
    assert gradients in two.all_reduce_bytes and len(two.all_reduce_s) == 4


def test_plan_prints_measured_beside_modelled(command: CommandLine, measured: Path) -> None:
    settings = ["max_ranks=8", "bandwidth_gb_s=12.5", "intra_bandwidth_gb_s=3"]  # batch sizes are those that were measured
    shown = command("benchmark", "scaling", "--plan", "--out", str(measured), *(f"--set={setting}" for setting in settings))
    assert shown.returncode == 0, shown.stderr
    record, text = read_record(measured, "scaling-plan")
    assert text.strip() in shown.stdout and "measured over modelled" in text
    one, two = read_points(measured)
    inputs = record["results"]["inputs"]
    assert inputs["bandwidth_gb_s"] == {"value": 12.5, "unit": "GB/s", "source": "given"}
    assert inputs["intra_bandwidth_gb_s"] == {"value": 3, "unit": "GB/s", "source": "given"}  # though it was measured
    assert inputs["gpus_per_node"]["value"] == 2 and inputs["intra_latency_us"]["source"] == "measured: scaling-2.json"
    assert "assumed" in inputs["latency_us"]["source"] and any("latency_us" in n and "Assumed" in n for n in record["notes"])
    assert inputs["step_fixed_ms"]["source"] == "measured: scaling-2.json"  # of a full node
    for kind, batch in (("strong", (64, 64)), ("weak", (32, 64))):
        table = next(t for t in record["tables"] if t["caption"].lower().startswith(kind))
        alone, both = (
            np.mean([n / s for s in getattr(points, f"{kind}_s")]) for n, points in zip(batch, (one, two), strict=True)
        )
        assert [row[0] for row in table["rows"]] == [1, 2, 4, 8]
        first, second, third = table["rows"][:3]
        assert first[-3]["mean"] == pytest.approx(alone) and second[-3]["mean"] == pytest.approx(both)
        assert first[-2] == "100.0 %" and float(second[-2].split()[0]) == pytest.approx(100 * both / 2 / alone, abs=0.06)
        assert second[-1] == pytest.approx(both / record["results"][kind][1]["samples_per_s"])
        assert third[-3:] == [None, None, None]
    other = plan_record(parse_inputs(["batch_size=32"]), measured, 1)
    assert "measured samples/s" not in other["tables"][-2]["columns"]  # of another global batch
    assert any(note.startswith("Not shown beside strong scaling") and "scaling-2.json" in note for note in other["notes"])
    other = plan_record(parse_inputs(["surrogate=gan", "step_fixed_ms=1", "step_item_us=1"]), measured, 1)
    assert not other["results"]["measured"] and any("other settings" in note for note in other["notes"])


def test_a_plan_from_given_numbers_measures_nothing(tmp_path: Path) -> None:
    settings = ["step_fixed_ms=2", "step_item_us=1", "batch_size=4096", "max_ranks=512", "jitter=0.01", "surrogate=gan"]
    record = plan_record(parse_inputs(settings), tmp_path, 1)
    strong, weak = record["results"]["strong"], record["results"]["weak"]
    assert [row["n_ranks"] for row in strong] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512] and strong[0]["efficiency"] == 1
    assert strong[0]["step_s"] == pytest.approx(2e-3 + 4096e-6)
    assert record["results"]["inputs"]["backward_share"]["value"] == pytest.approx(2 / 3)
    assert len(record["results"]["model"]["bucket_bytes"]) == 6  # five of the critic, one of the generator
    assert weak[-1]["efficiency"] > strong[-1]["efficiency"]
    assert "512 GPUs" in record["answer"][1]


def test_settings_that_do_not_exist_are_answered_by_those_that_do() -> None:
    with pytest.raises(InputError) as caught:
        parse_inputs(["bandwith_gb_s=3", "surrogate=vae", "latency_us=-1"])
    said = str(caught.value)
    assert "3 error(s)" in said and "did you mean 'bandwidth_gb_s'?" in said and "gpus_per_node, intra_bandwidth_gb_s" in said
    assert "'diffusion' or 'gan'" in said and "latency_us" in said
    with pytest.raises(InputError, match="belong together"):
        parse_inputs(["step_fixed_ms=2"])
    with pytest.raises(InputError, match="key=value"):
        parse_inputs(["latency_us"])


def test_plans_and_settings_belong_to_scaling_alone(tmp_path: Path) -> None:
    for options in ({"plan": True}, {"assignments": ["latency_us=1"]}):
        with pytest.raises(InputError, match="for the suite 'scaling'"):
            run_suite("training", "smoke", tmp_path / "out", 1, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_foreign_file_among_the_measured_ones_is_named(tmp_path: Path) -> None:
    (tmp_path / "scaling-4.json").write_text('{"results": {"points": {"ranks": 4}}}')
    with pytest.raises(InputError, match=r"scaling-4\.json: not a record"):
        read_points(tmp_path)
    (tmp_path / "scaling-4.json").write_text("[")
    with pytest.raises(InputError, match=r"scaling-4\.json"):
        read_points(tmp_path)


def test_the_script_for_a_site_submits_each_number_of_nodes(tmp_path: Path) -> None:
    """A stand-in for sbatch writes down what it is asked: tests/slurm has a real one for benchmark.sbatch."""
    fake = tmp_path / "sbatch"
    fake.write_text(f'#!/bin/bash\nprintf "%s\\n" "$*" >> {tmp_path}/asked\necho 7\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [str(SCRIPTS / "scaling.sh"), *arguments]
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=30, check=False)

    shown = call(str(tmp_path / "out"), "6", "--account=A", "--", "--set", "surrogate=gan")
    assert shown.returncode == 0, shown.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    nodes = [next(word for word in line.split() if word.startswith("--nodes=")) for line in asked]
    assert nodes == [f"--nodes={n}" for n in (1, 1, 2, 4, 6)] and "--ntasks=1" in asked[0] and "--ntasks=1" not in asked[1]
    for line in asked:
        assert line.endswith(f"{SCRIPTS}/benchmark.sbatch scaling {tmp_path}/out --set surrogate=gan") and "--account=A" in line
    assert f"--plan --out {tmp_path}/out --set surrogate=gan" in shown.stdout
    assert call(str(tmp_path / "out"), "many").returncode == 2
    assert "usage" in call().stderr
