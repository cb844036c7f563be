"""The figures of README.md are those of the kept records."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_molgen.efficiency.suites import campaign_verdict

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "readme.py"


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, Path]:
    """README.md and the reports, to be changed."""
    shutil.copytree(ROOT / "benchmarks" / "reports", tmp_path / "reports", ignore=shutil.ignore_patterns("*.png", "*.html"))
    return Path(shutil.copy(ROOT / "README.md", tmp_path)), tmp_path / "reports"


def test_the_readme_is_written_from_the_kept_records() -> None:
    done = call("--check")
    assert done.returncode == 0, f"run python benchmarks/readme.py\n{done.stdout}{done.stderr}"
    text = (ROOT / "README.md").read_text()
    run = json.loads((ROOT / "benchmarks" / "reports" / "alanine-dipeptide" / "report.json").read_text())
    assert f"| {100 * run['weights']['ess_fraction']:.1f} % of {run['weights']['n']:,}, Pareto k-hat" in text
    assert "(benchmarks/reports/report.md)" in text and run["verdict"]["headline"] in text


@pytest.mark.parametrize("of", ["run", "verdict", "tempering", "flow"])
def test_a_changed_number_in_a_record_is_noticed(copies: tuple[Path, Path], of: str) -> None:
    readme, reports = copies
    arguments = ("--readme", str(readme), "--reports", str(reports))
    assert call("--check", *arguments).returncode == 0
    path = reports / ("alanine-dipeptide/report.json" if of == "run" else f"{of}-laptop.json")
    record = json.loads(path.read_text())
    if of == "run":
        record["weights"]["ess_fraction"], shown = 0.123, "12.3 % of "
    elif of == "verdict":
        record["results"]["prior"]["outcomes"][0]["cpu_s"], shown = 4.56, "4.56 to "
    elif of == "tempering":
        record["results"]["main"]["dF_kt"][0]["value"], shown = 3.999, "3.999 ["
    else:
        record["results"][0]["seeds"][0]["ess_fraction"], shown = 0.111, "11.1 to "
    path.write_text(json.dumps(record))
    before = readme.read_text()
    done = call("--check", *arguments)
    assert done.returncode == 1 and any(line.startswith("+") and shown in line for line in done.stdout.splitlines())
    assert readme.read_text() == before  # a check changes nothing
    assert call(*arguments).returncode == 0 and shown in readme.read_text()
    assert call("--check", *arguments).returncode == 0
    assert readme.read_text().replace(shown, "").split("## Commands")[1] == before.split("## Commands")[1]


def test_who_wins_is_the_rule_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import readme

    monkeypatch.setattr(campaign_verdict, "who_wins", lambda low, high: f"it is {low < high} that nobody wins")
    reports = ROOT / "benchmarks" / "reports"
    record, flow = (json.loads((reports / f"{name}-laptop.json").read_text()) for name in ("verdict", "flow"))
    assert "it is True that nobody wins" in " ".join(readme._verdict(record, flow).split())
    assert "it is True that nobody wins" in campaign_verdict.of_record("verdict", record).sentence


def test_a_number_that_somebody_typed_is_noticed(copies: tuple[Path, Path]) -> None:
    readme, reports = copies
    readme.write_text(readme.read_text().replace("Pareto k-hat 0.", "Pareto k-hat 1."))
    done = call("--check", "--readme", str(readme), "--reports", str(reports))
    assert done.returncode == 1 and "-| effective sample size" in done.stdout


def test_without_marks_or_records_it_says_what_is_missing(copies: tuple[Path, Path], tmp_path: Path) -> None:
    readme, reports = copies
    (tmp_path / "other.md").write_text("nothing")
    done = call("--readme", str(tmp_path / "other.md"), "--reports", str(reports))
    assert done.returncode == 2 and "needs the line" in done.stderr and (tmp_path / "other.md").read_text() == "nothing"
    (reports / "verdict-laptop.json").unlink()
    done = call("--readme", str(readme), "--reports", str(reports))
    assert done.returncode == 2 and "verdict-laptop.json" in done.stderr and "Traceback" not in done.stderr
