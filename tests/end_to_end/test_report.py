"""The report of a real, tiny run: self-contained, complete, and silent about gains that the gate does not allow."""

from __future__ import annotations

import base64
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
from hpc_molgen.errors import EXIT_GATE_FAILED, InputError
from hpc_molgen.pipeline import run_stages
from hpc_molgen.run import Run
from tests.conftest import CommandLine

FIGURES = ("maps", "profile", "energies", "weights", "training", "farm", "tica")
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
