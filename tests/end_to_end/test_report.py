"""The report of a real, tiny run: self-contained, complete, and silent about gains that the gate does not allow."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpc_molgen.config import RunConfig
from hpc_molgen.efficiency import evidence as evidence_module
from hpc_molgen.efficiency import report as report_module
from hpc_molgen.efficiency.verdict import Check
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.errors import EXIT_GATE_FAILED, InputError
from hpc_molgen.pipeline import run_stages
from hpc_molgen.reweighting import kish_ess
from hpc_molgen.run import Run
from tests.conftest import CommandLine

FIGURES = ("maps", "profile", "energies", "weights", "coverage", "training", "farm", "tica")
GAINS = ("break-even", "break even", "n*", "speed-up", "advantage", "marginal cost", "cheaper", "breaks even")


@pytest.fixture(scope="module")
def reported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run with its report."""
    directory = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(tiny_run, directory)
    run_stages(Run.open(directory), ["report"])
    return directory


@pytest.fixture
def copy(tiny_run: Path, tmp_path: Path) -> Run:
    """A copy of the tiny run to be changed."""
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "report").mkdir()
    return Run.open(tmp_path / "run")


def read(run: Run) -> tuple[str, str, dict[str, Any]]:
    html, markdown, data = (run.path("report", f"report.{kind}").read_text() for kind in ("html", "md", "json"))
    return html, markdown, json.loads(data)


def table(run: Run) -> list[dict[str, str]]:
    with open(run.path("report", "report.csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_html_needs_no_other_file(reported: Path) -> None:
    html = (reported / "report" / "report.html").read_text()
    assert "<script" not in html
    assert "@import" not in html
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html) + re.findall(r"url\(([^)]*)\)", html)
    assert len(sources) == len(FIGURES)
    for source in sources:
        kind, data = source.split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        image = base64.b64decode(data, validate=True).decode()
        assert "<svg" in image
        assert not re.findall(r"""(?:href|src)=["'](?!#|data:)""", image)


def test_figures_are_files_too(reported: Path) -> None:
    folder = reported / "report" / "figures"
    assert {path.name for path in folder.iterdir()} == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert all(path.stat().st_size > 2000 for path in folder.iterdir())
    linked = re.findall(r"\]\((figures/[^)]+)\)", (reported / "report" / "report.md").read_text())
    assert linked
    assert all((reported / "report" / name).is_file() for name in linked)


def test_tiny_run_is_not_certified_and_prints_no_gain(reported: Path) -> None:
    html, markdown, data = read(Run.open(reported))
    assert data["verdict"]["gate_passed"] is False
    assert data["verdict"]["certified"] is False
    assert data["verdict"]["reasons"]
    assert data["break_even"] == {"available": False, "reason": "the quality gate did not pass"}
    assert "corrected samples" not in data["effective_samples"]
    for page in (re.sub(r'src="data:[^"]*"', "", html), markdown):
        assert "Not certified" in page
        assert not [word for word in GAINS if word in page.lower()]
    assert not (reported / "report" / "figures" / "break-even.png").exists()


def test_json_has_what_others_read(reported: Path) -> None:
    data = read(Run.open(reported))[2]
    assert {"verdict", "weights", "delta_f", "divergences", "negative_controls", "structures", "farm", "costs"} <= data.keys()
    assert {"break_even", "provenance", "config", "baseline_md", "energies"} <= data.keys()
    for name in ("reference", "raw", "corrected"):
        assert {"value", "low", "high"} <= data["delta_f"][name].keys()
    assert isinstance(data["delta_f"]["consistent"], bool)
    assert isinstance(data["delta_f"]["inside_reference_interval"], bool)
    assert all(row["floor"] > 0 and row["distance"] == pytest.approx(row["value"] ** 0.5) for row in data["divergences"])
    assert {row["label"] for row in data["negative_controls"]} >= {"uniform torsions", "corrected, weights shuffled"}
    assert data["structures"]["max_deviation_deg"] < 0.1
    assert data["farm"]["plain_md"]["passages"] == 0
    assert data["farm"]["plain_md"]["cpu_s_per_passage"] is None
    assert "NaN" not in (reported / "report" / "report.json").read_text()


def test_the_table_holds_the_same_figures(reported: Path) -> None:
    run = Run.open(reported)
    data, rows = read(run)[2], table(run)
    assert list(rows[0]) == ["section", "quantity", "set", "value", "low", "high", "unit"]
    found = {(row["section"], row["quantity"], row["set"]): row for row in rows}
    corrected = found["delta_f", "delta_f", "corrected samples"]
    assert float(corrected["value"]) == data["delta_f"]["corrected"]["value"] and corrected["unit"] == "kT"
    assert float(corrected["low"]) == data["delta_f"]["corrected"]["low"]
    assert float(found["weights", "k_hat", ""]["value"]) == data["weights"]["k_hat"]
    spent = {stage["stage"]: stage["cpu_s"] for stage in data["costs"]["stages"]}
    for stage, cpu_s in spent.items():
        assert float(found["costs", "cpu_s", stage]["value"]) == cpu_s
        assert float(found["costs", "core_h", stage]["value"]) == pytest.approx(cpu_s / 3600)
    assert not {"break_even", "accuracy"} & {row["section"] for row in rows}  # the gate did not pass
    assert not [row for row in rows if row["section"] == "effective_samples" and row["set"] == "corrected samples"]


def test_what_was_left_out_is_told_from_the_run(reported: Path, copy: Run) -> None:
    html, markdown, data = read(Run.open(reported))
    rows = {row["what"]: row for row in data["left_out"]}
    assert rows["certified observables"]["amount"] == "none" and "comparison of costs" in rows
    assert rows["equilibration of the reference"]["amount"] == "1 ps of each of 4 walkers"
    assert "replicas of the farm" not in rows and "attempts of replicas" not in rows and "results of other settings" not in rows
    path = copy.path("farm", "manifest.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0] |= {"state": "failed", "error": "the energy is not finite"}
    records[1] |= {"attempts": 3}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    copy.path("sample.old-0123").mkdir()
    report_module.write_report(copy)
    html, markdown, data = read(copy)
    rows = {row["what"]: row for row in data["left_out"]}
    assert rows["replicas of the farm"] == {
        "what": "replicas of the farm", "amount": "1 in quarantine", "why": "the energy is not finite"
    }  # fmt: skip
    assert rows["attempts of replicas"]["amount"] == f"1 of {len(records)} replicas"
    assert rows["results of other settings"]["amount"] == "1 of sample"
    for page in (html, markdown):
        assert "What was left out, and why" in page and "1 in quarantine" in page


def test_every_table_names_the_target_of_the_weights(reported: Path) -> None:
    html, markdown, data = read(Run.open(reported))
    n_tables = html.count('<p class="note">')
    assert n_tables >= 10
    assert html.count(f"Target of the weights: {data['weights']['target']}.") == n_tables + 1  # and under the verdict
    assert markdown.count("Target of the weights") == n_tables + 1


def test_no_host_name_and_no_folder(reported: Path) -> None:
    html, markdown, _ = read(Run.open(reported))
    for page in (re.sub(r'src="data:[^"]*"', "", html), markdown):
        assert str(reported) not in page
        assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr)/", page)


def test_command_ends_with_the_code_of_the_gate(reported: Path, command: CommandLine) -> None:
    done = command("report", str(reported))
    assert done.returncode == EXIT_GATE_FAILED, done.stderr
    assert "Not certified" in done.stdout
    assert "report.html" in done.stdout


def test_prices_add_money(copy: Run, command: CommandLine) -> None:
    done = command("report", str(copy.directory), "--cost-per-core-hour", "36", "--cost-per-gpu-hour", "2")
    assert done.returncode == EXIT_GATE_FAILED, done.stderr
    _, markdown, data = read(copy)
    cpu_s = sum(stage["cpu_s"] for stage in data["costs"]["stages"])
    assert data["costs"]["money"]["total"] == pytest.approx(0.01 * cpu_s) and data["config"]["report"]["cost_per_gpu_hour"] == 2
    assert "| money |" in markdown and "Money: 36 a core hour, 2 a GPU hour" in markdown
    command("report", str(copy.directory))
    _, markdown, data = read(copy)
    assert data["costs"]["money"] is None and "money" not in markdown


def test_certified_run_prints_costs(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate is opened by hand: no run of seconds would pass it."""
    monkeypatch.setattr(report_module, "gate", lambda *_: (Check("by hand", True, "opened by the test"),))
    details = report_module.write_report(copy)
    html, markdown, data = read(copy)
    assert details["gate_passed"]
    assert data["break_even"]["slowest"]["n_star"]["energies alone"]["words"] == "not available in this run"
    assert set(data["break_even"]) == {"slowest", "dF", "Kish"}
    assert data["break_even"]["dF"]["winner"] in ("MD", "surrogate", "undecided")
    assert copy.path("report", "figures", "break-even.svg").is_file()
    for page in (html, markdown):
        assert "n₀" in page
        assert "everything paid" in page


def test_certified_run_shows_cost_against_accuracy_from_zero(copy: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "gate", lambda *_: (Check("by hand", True, "opened by the test"),))
    report_module.write_report(copy)
    html, markdown, data = read(copy)
    assert copy.path("report", "figures", "accuracy.png").stat().st_size > 10_000
    assert 'alt="accuracy"' in html and "](figures/accuracy.png)" in markdown
    found, costs = data["accuracy"], data["costs"]
    assert found["share"] == data["effective_samples"]["all MD"]["dF"]["share"]
    curves = {curve["name"]: curve for curve in found["curves"]}
    paid = curves["surrogate, everything paid"]
    assert paid["fixed_cpu_s"] == pytest.approx(sum(costs[name] for name in ("data", "training", "validation", "checks")))
    n = 1.96**2 / (0.1**2 * found["share"] * (1 - found["share"]))  # of them give 0.1 kT
    for curve, price in (
        (paid, data["break_even"]["dF"]["surrogate_cpu_s_per_effective_sample"]),
        (curves["best MD"], data["break_even"]["dF"]["md_cpu_s_per_effective_sample"][data["break_even"]["dF"]["best_md"]]),
    ):
        assert curve["cpu_s_to_target"]["value"] == pytest.approx(curve["fixed_cpu_s"] + n * price["value"])
        assert curve["cpu_s_to_target"]["low"] == pytest.approx(curve["fixed_cpu_s"] + n * price["low"])
    rows = {(row["section"], row["quantity"], row["set"]): row for row in table(copy)}
    drawn = rows["accuracy", "curves / cpu_s_to_target", "best MD"]
    assert float(drawn["value"]) == curves["best MD"]["cpu_s_to_target"]["value"] and drawn["unit"] == "CPU s"
    star = data["break_even"]["slowest"]["n_star"]["data paid"]
    assert float(rows["break_even", "slowest / n_star", "data paid"]["value"]) == (
        float("inf") if star["value"] is None else star["value"]
    )
    left_out = {row["what"]: row["why"] for row in data["left_out"]}
    assert left_out["break-even, energies alone"] == "training saw frames of the reference"
    assert "spread over trainings" in left_out and "comparison of costs" not in left_out
    names = [name for name in data["basins"]["held-out MD"] if f"share of {name}" not in left_out]
    for name in names:  # what is not told to be left out agrees with MD
        ours, theirs = data["basins"]["corrected samples"][name], data["basins"]["held-out MD"][name]
        error = (ours["standard_error"] ** 2 + theirs["standard_error"] ** 2) ** 0.5
        assert abs(ours["value"] - theirs["value"]) <= 1.96 * error


def test_without_weights_every_table_says_so(copy: Run) -> None:
    path = copy.path("correct", "diagnostics.json")
    diagnostics = json.loads(path.read_text())
    for key in ("n", "ess", "ess_fraction", "ess_clipped_fraction", "largest_share", "k_hat", "certified"):
        del diagnostics[key]
    path.write_text(json.dumps(diagnostics | {"weighted": False}))
    report_module.write_report(copy)
    html, _, data = read(copy)
    assert not data["verdict"]["gate_passed"]
    assert data["delta_f"]["corrected"] is None
    assert html.count("No importance weights exist in this run") == html.count('<p class="note">') + 1
    assert not copy.path("report", "figures", "weights.svg").exists()
    assert not copy.path("report", "figures", "coverage.svg").exists()
    assert "Basins by MD and by the surrogate" in html and "Bennett" not in html


def test_the_report_says_whether_the_surrogate_covers_the_ensemble(reported: Path) -> None:
    html, markdown, data = read(Run.open(reported))
    found = data["coverage"]
    density, log_q = found["density"], found["log_q"]
    assert found["n_frames"] == 1000 and found["n_units"] == 2 and found["cpu_s"] > 0
    assert data["costs"]["checks"] == found["cpu_s"]
    assert abs(log_q["median"]) < 0.01 and log_q["spread"] < 0.05 and log_q["n"] > 150  # ln q there and back
    log_weight = read_ensemble(reported / "correct" / "weighted.h5", Run.open(reported).system).log_weight
    assert density["reverse_ess"]["value"] == pytest.approx(kish_ess(log_weight) / len(log_weight), rel=1e-6)
    assert 0 <= density["forward_ess"]["value"] < 0.5
    assert {row["name"] for row in found["basins"]} == {"C5", "C7eq", "alphaR", "alphaL", "C7ax", "other"}
    for page in (html, markdown):
        assert "Does the surrogate cover the ensemble?" in page
        for words in ("reverse ESS", "forward ESS", "Bennett acceptance ratio of both", "overlap", "Basins by MD and by the"):
            assert words in page
    passed = {check["name"]: check["passed"] for check in data["verdict"]["checks"]}
    assert passed["no missing mode"] == (not found["missing"])


def test_a_missing_mode_is_a_reason_not_to_certify(copy: Run) -> None:
    """A surrogate whose samples never leave phi < 0, although MD does: said in the verdict, the gate and the tables."""
    path = copy.path("correct", "diagnostics.json")
    diagnostics = json.loads(path.read_text())
    reason = "basin alphaL holds 8.00% of held-out MD [5.00%, 11.00%] and 0.00% of the corrected samples"
    diagnostics["coverage"]["missing"] = [reason]
    diagnostics["coverage"]["basins"][3] |= {"finding": "missing"}
    path.write_text(json.dumps(diagnostics))
    report_module.write_report(copy)
    html, markdown, data = read(copy)
    assert reason in data["verdict"]["reasons"] and reason in data["verdict"]["sentence"]
    assert not data["verdict"]["gate_passed"]
    for page in (html, markdown):
        assert "missing mode" in page and reason in page


def test_runs_of_earlier_versions_have_a_report(copy: Run) -> None:
    path = copy.path("correct", "diagnostics.json")
    diagnostics = json.loads(path.read_text())
    del diagnostics["coverage"]
    path.write_text(json.dumps(diagnostics))
    report_module.write_report(copy)
    html, _, data = read(copy)
    assert "Not checked" in html and data["coverage"] is None
    assert "no missing mode" not in {check["name"] for check in data["verdict"]["checks"]}


def test_without_a_farm(copy: Run) -> None:
    shutil.rmtree(copy.path("farm"))
    report_module.write_report(copy)
    html, _, data = read(copy)
    assert data["farm"] is None
    assert "The farm has not run" in html


@pytest.mark.parametrize("cv", ["psi", "4-6-8-14", "chi1"])
def test_other_torsions(copy: Run, cv: str) -> None:
    values = copy.config.model_dump()
    values["report"]["cv"] = cv
    copy.config = RunConfig.model_validate(values)
    report_module.write_report(copy)
    html, _, data = read(copy)
    assert len(data["torsions"]["names"]) == 2
    assert not data["basins"]
    assert ("has no torsion" in html) == (cv == "chi1")


def keep_one(found: evidence_module.Torsions) -> evidence_module.Torsions:
    return evidence_module.Torsions(found.names[:1], found.quads[:1], found.quads[:1], False, ("one torsion",))


def keep_none(_: evidence_module.Torsions) -> evidence_module.Torsions:
    return evidence_module.Torsions((), (), (), False, ("no torsion at all",))


@pytest.mark.parametrize(("keep", "missing"), [(keep_one, {"maps"}), (keep_none, {"maps", "profile", "tica"})])
def test_molecules_with_fewer_torsions(
    copy: Run,
    monkeypatch: pytest.MonkeyPatch,
    keep: Callable[[evidence_module.Torsions], evidence_module.Torsions],
    missing: set[str],
) -> None:
    found = evidence_module.choose_torsions(copy.system, "phi")
    monkeypatch.setattr(evidence_module, "choose_torsions", lambda *_: keep(found))
    report_module.write_report(copy)
    drawn = {path.stem for path in copy.path("report", "figures").glob("*.svg")}
    assert drawn == set(FIGURES) - missing
    assert keep(found).notes[0] in read(copy)[0]


def test_unfinished_run_is_one_clear_error(copy: Run) -> None:
    shutil.rmtree(copy.path("correct"))
    with pytest.raises(InputError, match=r"weighted\.h5"):
        report_module.write_report(copy)
