"""One report over a folder of records: what it says first, what it counts, and what it does with files that are no records."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from hpc_molgen.efficiency import accuracy, sheet
from hpc_molgen.efficiency.suites import SUITES
from hpc_molgen.efficiency.suites.campaign import report_files
from hpc_molgen.efficiency.suites.record import complete_record, spread
from hpc_molgen.errors import InputError
from tests.conftest import CommandLine

KEPT = Path(__file__).resolve().parents[2] / "benchmarks" / "reports"
FAILED = "Left out: a record lacks what it needs"  # what a section says that could not be made at all
SECTIONS = (
    "Cost against accuracy, from zero", "Break-even", "Costs", "Scaling", "Conformations and free energies",
    "Effective samples", "Targets missed", "What was left out, and why", "How it was made",
)  # fmt: skip


def put(folder: Path, suite: str, **own: Any) -> Path:
    """Write a record of a suite that has these parts."""
    empty = {"question": "", "answer": [], "targets": [], "tables": [], "costs": [], "notes": [], "results": None}
    path = folder / f"{suite}-laptop.json"
    path.write_text(json.dumps(complete_record(empty | own, suite, "laptop", 1)))
    return path


def method(kind: str, seconds: list[float], **own: Any) -> dict[str, Any]:
    """A method of the suite `verdict` that comes to the target after these times."""
    series = [
        {
            "key": kind, "repeat": number, "fixed_cpu_s": time / 4, "facts": {"k_hat": 0.2, "ess_fraction": 0.5},
            "checkpoints": [
                {"cpu_s": time * share, "wall_s": time, "free_energy_kt": 3.8, "half_width_kt": 0.1 / math.sqrt(share),
                 "total_variation": 0.1, "divergence": 0.01, "energy_w1_kt": None, "n_frames": 10}
                for share in (0.5, 1.0)
            ],
        }
        for number, time in enumerate(seconds)
    ]  # fmt: skip
    return {
        "name": f"a {kind}", "kind": kind, "knows_cv": False, "certified": True, "median_s": sorted(seconds)[len(seconds) // 2],
        "outcomes": [{"kind": "reached", "cpu_s": time} for time in seconds], "inside": len(seconds), "intervals": len(seconds),
        "fixed_cpu_s": spread(time / 4 for time in seconds), "ratios": {}, "series": series,
    } | own  # fmt: skip


def put_verdict(folder: Path, md: list[float], surrogate: list[float], **own: Any) -> None:
    results = {"md": method("MD", md), "flow": method("surrogate", surrogate)}
    put(folder, "verdict", results=results, truth={"free_energy_kt": 3.8, "half_width_kt": 0.05}, **own)


def written(folder: Path, **prices: float) -> tuple[str, str, list[dict[str, str]]]:
    """Make the report; return its HTML without pictures, its Markdown and its table."""
    report_files([folder], **prices)
    html, markdown, table = ((folder / f"report.{kind}").read_text() for kind in ("html", "md", "csv"))
    return re.sub(r'src="data:[^"]*"', "", html), markdown, list(csv.DictReader(io.StringIO(table)))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the records that are kept in the repository, with a report."""
    folder = tmp_path_factory.mktemp("campaign") / "reports"
    shutil.copytree(KEPT, folder)
    for name in ("report.html", "report.md", "report.csv"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "figures", ignore_errors=True)
    report_files([folder])
    return folder


def test_the_verdict_comes_first_with_its_interval_and_then_all_sections_in_order(kept: Path) -> None:
    for page in ((kept / "report.html").read_text(), (kept / "report.md").read_text()):
        first = page.index("the time of the best MD")
        assert re.search(r"is [\d.,]+ \[[\d.,]+, [\d.,]+\] \(95 %, Student.{1,5}s t", page[first : first + 900])
        places = [page.index(f"<h2>{title}" if "<html" in page else f"## {title}") for title in SECTIONS]
        assert first < places[0] and places == sorted(places)


def test_the_page_needs_no_other_file_and_links_lead_somewhere(kept: Path) -> None:
    html, markdown = (kept / "report.html").read_text(), (kept / "report.md").read_text()
    assert "<script" not in html and "url(" not in html
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert sources and all(source.startswith(("data:image/svg+xml;base64,", "data:image/png;base64,")) for source in sources)
    links = re.findall(r"\]\(([^)]+)\)", markdown)
    assert {"figures/verdict-curves.png", "figures/scaling.png", "alanine-dipeptide/figures/maps.png"} <= set(links)
    assert all((kept / link).is_file() for link in links)
    assert "@media print" in html and "break-inside" in html


def test_it_holds_what_the_records_hold(kept: Path) -> None:
    markdown = (kept / "report.md").read_text()
    rows = list(csv.DictReader(io.StringIO((kept / "report.csv").read_text())))
    records = {path.stem: json.loads(path.read_text()) for path in kept.glob("*.json")}
    targets = [target for record in records.values() for target in record["targets"]]
    missed = [target for target in targets if not target["reached"]]
    assert missed and f"{len(targets) - len(missed)} of {len(targets)} targets of" in markdown
    section = markdown[markdown.index("## Targets missed") : markdown.index("## What was left out")]
    assert all(target["name"] in section for target in missed) and section.count("\n| ") == len(missed) + 1
    spent = sum(cost["cpu_s"] for record in records.values() for cost in record["costs"])
    counted = sum(float(row["value"]) for row in rows if row["quantity"] == "cpu_s" and row["record"] in records)
    assert counted == pytest.approx(spent)
    run = json.loads((kept / "alanine-dipeptide" / "report.json").read_text())
    star = run["break_even"]["slowest"]["n_star"]["data paid"]
    assert f"{star['words']}\u00a0[{star['low']:,.0f},\u00a0{star['high']:,.0f}]" in markdown
    never = [row for row in rows if row["quantity"] == "dF / n_star" and row["set"] == "data paid"]
    assert [float(row["value"]) for row in never] == [math.inf]
    absent = [suite for suite in SUITES if not any(record["suite"] == suite for record in records.values())]
    assert (f"| this folder | suites {', '.join(absent)} | there is no record of them |" in markdown) == bool(absent)


def test_no_section_over_the_kept_records_fails_and_all_of_them_occur(kept: Path) -> None:
    markdown = (kept / "report.md").read_text()
    assert FAILED not in markdown and "not what was expected" not in markdown
    assert all(path.stem in markdown for path in kept.glob("*.json"))
    section = markdown[markdown.index("## Effective samples") : markdown.index("## Targets missed")]
    record = json.loads((kept / "correction-laptop.json").read_text())
    for name, method in record["results"].items():
        if isinstance(method, dict) and "ess_fraction" in method:
            assert (f"| correction-laptop | {name} |" in section) == (method["ess_fraction"] is not None)


def test_weights_are_shown_seed_by_seed_or_as_mean_and_deviation(tmp_path: Path) -> None:
    good = {"certified": True, "ess_fraction": spread([0.4, 0.5, 0.6]), "k_hat": spread([0.1, 0.2, 0.3]), "forward_ess": None}
    bad = good | {"k_hat": spread([0.1, 0.2, 0.9])}  # 0.4 on average
    single = {"ess_fraction": 0.5, "k_hat": 0.0, "n": 100}
    nothing = {"certified": True, "ess_fraction": None, "k_hat": None}
    results = {"good": good, "bad": bad, "single": single, "nothing": nothing, "of several": [single, single | {"k_hat": 0.8}]}
    put(tmp_path, "correction", results=results)
    put(tmp_path, "flow", results={"good": good, "words": {"ess_fraction": "much", "k_hat": 0.1}})
    _, markdown, rows = written(tmp_path)
    shown = markdown.replace("\u00a0", " ")
    assert "| correction-laptop | good | 3 | - | 50.00 ± 10.00 % | - | 0.2 ± 0.1 | - | yes |" in shown
    assert "| correction-laptop | bad | 3 | - | 50.00 ± 10.00 % | - | 0.4 ± 0.44 | - | no |" in shown
    assert "| correction-laptop | single | 1 | 100 | 50.00 % | - | 0 | - | yes |" in shown
    assert "| correction-laptop | of several | 2 | 100 | 50.00 % | - | 0 to 0.8 | - | 1 of 2 |" in shown
    assert "| nothing |" not in shown and FAILED not in shown and "| flow-laptop | its weights | left out" in shown
    found = [(row["quantity"], float(row["value"])) for row in rows if row["section"] == "weights" and row["set"] == "bad"]
    assert ("k_hat, seed 2", 0.9) in found and ("ess_fraction, seed 0", 0.4) in found and len(found) == 6


def test_what_two_records_share_is_counted_once(tmp_path: Path) -> None:
    shared = {"stage": "training", "cpu_s": 3600.0, "wall_s": 9.0, "core_h": 1.0, "load_average_1min": 0.5}
    other = shared | {"wall_s": 8.0}
    put(tmp_path, "sampling", costs=[shared, other])
    _, markdown, _ = written(tmp_path)
    assert "| of all records and runs | 2 core hours |" in markdown and "counts once" not in markdown
    assert "of this process" not in markdown
    put(tmp_path, "correction", costs=[shared, shared | {"stage": "another"}])
    _, markdown, _ = written(tmp_path)
    assert (
        "| of all records and runs, what they share once | 3 core hours |" in markdown
        and "| all | 10,800 | 3 | 26 |" in markdown
    )
    assert "| sampling-laptop | 7,200 | 2 | 17 |" in markdown and "counts once what two records share: 1 stage has" in markdown
    put(tmp_path, "trajectories", costs=[shared | {"stage": "seed 1: train", "wall_s": 7.0}])
    put(tmp_path, "peers", costs=[shared | {"stage": "our GAN, seed 1: train", "wall_s": 7.0}])
    assert "| of all records and runs, what they share once | 4 core hours |" in written(tmp_path)[1]
    put(tmp_path, "md", costs=[{key: value for key, value in shared.items() if key != "core_h"}])
    assert "of a stage 'of this process' those of programs" in written(tmp_path)[1]


def test_prices_add_money(kept: Path, tmp_path: Path) -> None:
    assert "money" not in (kept / "report.md").read_text()
    put(tmp_path, "md", costs=[{"stage": "a", "cpu_s": 7200.0, "wall_s": 10.0, "gpu_h": 3.0, "load_average_1min": 0.5}])
    _, markdown, rows = written(tmp_path, cost_per_core_hour=2.0, cost_per_gpu_hour=5.0)
    assert [float(row["value"]) for row in rows if row["quantity"] == "money"] == [2 * 2.0 + 3 * 5.0]
    assert "| all | 7,200 | 2 | 10 | 3 | 19 |" in markdown and "Money: 2 a core hour, 5 a GPU hour" in markdown


def test_joules_have_a_column_where_there_are_any(tmp_path: Path) -> None:
    cost = {"stage": "a", "cpu_s": 1.0, "wall_s": 1.0, "load_average_1min": 0.5}
    put(tmp_path, "md", costs=[cost])
    assert "joules |" not in written(tmp_path)[1] and "Joules: no counter could be read" in written(tmp_path)[1]
    put(tmp_path, "md", costs=[cost | {"joules": 123.0}, cost])
    assert "| joules |" in written(tmp_path)[1] and "| 123 |" in written(tmp_path)[1]


@pytest.mark.parametrize(
    ("md", "surrogate", "headline", "ratio"),
    [
        ([30.0, 33.0, 31.0], [10.0, 11.0, 10.5], "The surrogate wins", 30 * 33 * 31 / (10 * 11 * 10.5)),
        ([10.0, 11.0, 10.5], [30.0, 33.0, 31.0], "MD wins", 10 * 11 * 10.5 / (30 * 33 * 31)),
        ([10.0, 20.0, 15.0], [20.0, 10.0, 15.0], "Neither wins within the error bars", 1.0),
    ],
)
def test_who_wins_is_by_the_interval_of_the_ratio(
    tmp_path: Path, md: list[float], surrogate: list[float], headline: str, ratio: float
) -> None:
    put_verdict(tmp_path, md, surrogate)
    html, markdown, rows = written(tmp_path)
    assert f"**{headline}.**" in markdown and f"<h2>{headline}</h2>" in html
    found = [row for row in rows if row["quantity"] == "time of the best MD over its own"]
    logs = [math.log(a / b) for a, b in zip(md, surrogate, strict=True)]
    mean = sum(logs) / 3
    half = 4.302653 * math.sqrt(sum((value - mean) ** 2 for value in logs) / 2 / 3)  # Student's t, two degrees of freedom
    for key, truth in (("value", mean), ("low", mean - half), ("high", mean + half)):
        assert float(found[0][key]) == pytest.approx(math.exp(truth), rel=1e-5)
    assert float(found[0]["value"]) == pytest.approx(ratio ** (1 / 3))


def test_methods_that_are_not_certified_do_not_win_and_are_told(tmp_path: Path) -> None:
    fast = method("surrogate", [1.0, 1.0, 1.0], name="quick but wrong", certified=False)
    fast["series"][1]["facts"] |= {"k_hat": 0.9, "missing": ["no alphaL"]}
    late = method("surrogate", [60.0, 61.0, 62.0])
    unsure = method("surrogate", [2.0, 2.0, 2.0], name="beside the truth", inside=1)
    results = {"md": method("MD", [30.0, 33.0, 31.0]), "fast": fast, "late": late, "unsure": unsure}
    put(tmp_path, "verdict", results=results, truth={"free_energy_kt": 3.8, "half_width_kt": 0.05})
    _, markdown, _ = written(tmp_path)
    assert "**MD wins.**" in markdown
    left_out = markdown[markdown.index("## What was left out") :]
    assert "not certified: seed 1: no alphaL; seed 1: k-hat 0.9" in left_out
    assert "| beside the truth | only 1 of 3 intervals hold the truth |" in left_out


def test_one_seed_has_no_interval_and_nobody_wins_by_it(tmp_path: Path) -> None:
    put_verdict(tmp_path, [30.0], [10.0])
    _, markdown, _ = written(tmp_path)
    assert "is 3 with one seed, so without an interval" in markdown and "**Neither wins within the error bars.**" in markdown


def test_without_a_surrogate_that_gets_there_nobody_wins(tmp_path: Path) -> None:
    put(tmp_path, "verdict", results={"md": method("MD", [3.0, 3.1])}, truth={"free_energy_kt": 3.8, "half_width_kt": 0.05})
    _, markdown, _ = written(tmp_path)
    assert "**No winner.**" in markdown and "there is no best surrogate" in markdown and "a MD: 3.1 core-seconds" in markdown


def test_curves_are_drawn_again_or_the_kept_picture_is_taken(tmp_path: Path) -> None:
    put_verdict(tmp_path, [30.0, 31.0], [10.0, 11.0])
    written(tmp_path)
    assert (tmp_path / "figures" / "verdict-curves.png").stat().st_size > 10_000
    shutil.rmtree(tmp_path / "figures")
    results = {"md": method("MD", [30.0, 31.0], series=[]), "flow": method("surrogate", [10.0, 11.0], series=[])}
    shutil.copy(KEPT / "verdict-laptop.png", tmp_path / "mine.png")
    put(tmp_path, "verdict", results=results, figures=[{"file": "mine.png", "caption": ""}])
    _, markdown, _ = written(tmp_path)
    assert "](mine.png)" in markdown and not (tmp_path / "figures" / "verdict-curves.png").exists()


def test_without_a_verdict_record_the_best_run_speaks(kept: Path, tmp_path: Path) -> None:
    for name in ("alanine-dipeptide", "triple-well"):
        shutil.copytree(KEPT / name, tmp_path / name)
    _, markdown, _ = written(tmp_path)
    verdict = json.loads((KEPT / "alanine-dipeptide" / "report.json").read_text())["verdict"]
    assert verdict["sentence"] in markdown.split("##")[0] and "one seed; there is no record" in markdown
    shutil.rmtree(tmp_path / "alanine-dipeptide")
    _, markdown, _ = written(tmp_path)
    assert "**No verdict.** There is no verdict: the folder holds neither" in markdown
    assert "No run in this folder has passed its quality gate" in markdown and "No record in this folder measures" in markdown


def test_scaling_of_the_farm_is_shown_with_its_ranks(tmp_path: Path) -> None:
    part = {"ranks": [1, 2, 4], "ns_per_day": [spread([1.0, 1.1])] * 3}
    efficiency = [spread([1.0, 1.0]), spread([0.97, 0.99]), spread([0.71, 0.73])]
    put(tmp_path, "farm", results={"scaling": {"strong": part | {"efficiency": efficiency}}, "gain": spread([1.9, 1.9])})
    _, markdown, rows = written(tmp_path)
    assert "| farm, measured | farm | strong | 1 / 2 / 4 | 100 / 98 / 72 |" in markdown
    found = {row["quantity"]: float(row["value"]) for row in rows if row["section"] == "scaling"}
    assert found["efficiency on 4 ranks, strong"] == pytest.approx(0.72)
    assert "modelled" not in markdown  # nothing modelled is in this folder


def scaling_run(folder: Path, name: str, ranks: int, seconds: float, size: str = "laptop", **own: Any) -> None:
    points = {
        "surrogate": "diffusion", "precision": "float32", "compile": False, "device_name": "a CPU", "batch_size": 64,
        "items_per_rank": 8, "ranks": ranks, "strong_s": [seconds, seconds], "weak_s": [],
    } | own  # fmt: skip
    put(folder, "scaling", results={"points": points}, size=size).rename(folder / f"{name}.json")


def test_only_scaling_runs_of_one_kind_are_compared(tmp_path: Path) -> None:
    scaling_run(tmp_path, "scaling-1", 1, 8.0, weak_s=[1.0])
    scaling_run(tmp_path, "scaling-2", 2, 5.0, weak_s=[1.25])
    gpu = {"device_name": "a GPU", "weak_s": [0.5]}
    scaling_run(tmp_path, "scaling-4", 4, 0.1, **gpu)
    scaling_run(tmp_path, "scaling-8", 8, 0.0625, **gpu | {"items_per_rank": 16})
    alone: list[dict[str, Any]] = [{"surrogate": "gan"}, {"precision": "bf16"}, {"compile": True}, {"batch_size": 128}]
    for number, own in enumerate(alone):
        scaling_run(tmp_path, f"scaling-16-{number}", 16, 1.0, **own)
    scaling_run(tmp_path, "scaling-32", 32, 1.0, "cluster")
    scaling_run(tmp_path, "scaling-64", 64, 0.0)
    _, markdown, rows = written(tmp_path)
    of = "diffusion float32, a {}, {}, size laptop"
    assert {(row["set"], row["quantity"], float(row["value"])) for row in rows if row["section"] == "scaling"} == {
        (of.format("CPU", "batch of 64"), "efficiency on 1 ranks, strong", 1.0),
        (of.format("CPU", "batch of 64"), "efficiency on 2 ranks, strong", 0.8),
        (of.format("CPU", "8 items a rank"), "efficiency on 1 ranks, weak", 1.0),
        (of.format("CPU", "8 items a rank"), "efficiency on 2 ranks, weak", 0.8),
        (of.format("GPU", "batch of 64"), "efficiency on 4 ranks, strong", 1.0),
        (of.format("GPU", "batch of 64"), "efficiency on 8 ranks, strong", 0.8),
    }
    assert "| scaling-64 | its scaling | left out" in markdown and (tmp_path / "figures" / "scaling.png").exists()


def test_smoke_records_do_not_speak(tmp_path: Path) -> None:
    put_verdict(tmp_path, [30.0, 33.0, 31.0], [10.0, 11.0, 10.5], size="smoke")
    efficiency = [spread([1.0, 1.0]), spread([0.9, 0.9])]
    put(tmp_path, "farm", size="smoke", results={"scaling": {"strong": {"ranks": [1, 2], "efficiency": efficiency}}})
    put(tmp_path, "training", size="smoke", results={"processes": {"gan": {"words": "a GAN", "ratio": spread([1.8, 1.9])}}})
    for ranks in (1, 2):
        scaling_run(tmp_path, f"scaling-{ranks}", ranks, 1.0, "smoke")
    html, markdown, rows = written(tmp_path)
    assert "**No verdict.**" in markdown and "wins" not in html and "core-seconds" not in markdown
    assert "No record in this folder measures or models scaling." in markdown
    assert not [row for row in rows if row["section"] in ("verdict", "scaling")]
    assert "| verdict-laptop | its speeds | size smoke" in markdown


def test_a_method_whose_time_is_zero_is_not_ranked(tmp_path: Path) -> None:
    results = {
        "md": method("MD", [30.0, 33.0, 31.0]), "flow": method("surrogate", [10.0, 11.0, 10.5]),
        "timeless": method("surrogate", [0.0, 1.0, 1.0], series=[]), "odd": method("MD", [1.0, 0.0, 1.0], series=[]),
    }  # fmt: skip
    put(tmp_path, "verdict", results=results, truth={"free_energy_kt": 3.8, "half_width_kt": 0.05})
    _, markdown, _ = written(tmp_path)
    assert "**The surrogate wins.**" in markdown and FAILED not in markdown
    assert markdown.count("one of its times is not above 0") == 2


def test_a_verdict_record_that_cannot_be_judged_by_gives_way(tmp_path: Path) -> None:
    put(tmp_path, "verdict", results={"md": {"kind": "MD"}}, size="cluster").rename(tmp_path / "verdict-cluster.json")
    put_verdict(tmp_path, [30.0, 33.0, 31.0], [10.0, 11.0, 10.5])
    _, markdown, rows = written(tmp_path)
    assert "**The surrogate wins.**" in markdown and "| verdict-cluster | its verdict | left out" in markdown
    assert {row["record"] for row in rows if row["section"] == "verdict"} == {"verdict-laptop"}


STAGE = {"stage": "train", "cpu_s": 1.0, "wall_s": 1.0, "gpu_h": 0.0}


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"verdict": "text"}, "broken/report.json | the file | no report of a run"),
        ({"costs": {"stages": [{"stage": "train", "cpu_s": 1.0, "wall_s": 1.0}]}}, ""),
        ({"costs": [1]}, "broken | its costs | left out"),
        ({"costs": {"stages": [{"stage": "train"}]}}, "broken | its costs | left out"),
        ({"costs": {"stages": [STAGE]}, "provenance": {"stages": {"train": {"load_average": []}}}}, ""),
        ({"provenance": {"stages": {"train": {"cpu": "one", "load_average": []}}}}, ""),
        ({"provenance": [1]}, "broken | where it comes from | left out"),
        ({"provenance": {"stages": {"train": {"cpu": "one of no cores"}}}}, ""),
        ({"break_even": {"dF": {"n_star": []}}}, "broken | its break-even points | left out"),
        ({"weights": {"weighted": True, "ess_fraction": "all", "k_hat": 1}}, "broken | its weights | left out"),
        ({"weights": [1]}, "broken | its weights | left out"),
        ({"accuracy": {"curves": 1}, "divergences": {"a": 1}, "delta_f": [{"label": {}, "low": 1}]}, ""),
        ({"verdict": {"sentence": "It is good.", "checks": 3}}, "broken | its checks | left out"),
        ({"left_out": 3}, "broken | what it leaves out itself | not known"),
    ],
)
def test_a_broken_run_costs_itself_alone(tmp_path: Path, broken: dict[str, Any], sentence: str) -> None:
    good = {
        "verdict": {"sentence": "MD is enough.", "headline": "MD wins", "checks": [{"passed": True}], "gate_passed": True},
        "costs": {"stages": [STAGE | {"cpu_s": 7200.0}]},
        "provenance": {"stages": {"train": {"cpu": "x86", "cores": 2, "load_average": [0.5], "git_commit": "abc"}}},
    }
    verdict = {"sentence": "It is good.", "headline": "It wins"}
    for name, content in (("broken", {"verdict": verdict} | broken), ("good", good)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(content))
    _, markdown, _ = written(tmp_path)
    assert "**MD wins.** MD is enough." in markdown and FAILED not in markdown and f"| {sentence}" in markdown
    assert "| good | MD wins | 1 of 1 |" in markdown and "| good | 7,200 | 2 |" in markdown
    assert "| good | - | x86, 2 cores | 0.5 | abc |" in markdown


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_deep_nesting_is_no_traceback(tmp_path: Path, depth: int) -> None:
    put(tmp_path, "md")
    record = put(tmp_path, "energies").read_text()
    deep = '{"a": ' * depth + "1" + "}" * depth
    (tmp_path / "energies-laptop.json").write_text(record.replace('"results": null', f'"results": {deep}'))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text(f'{{"verdict": {{"sentence": "a", "headline": "b"}}, "weights": {deep}}}')
    _, markdown, _ = written(tmp_path)
    assert FAILED not in markdown and "| md-laptop |" in markdown
    assert ("nested too deeply" in markdown) == (depth > 10_000)


def test_the_table_says_which_run_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sheet.rows_of

    def some(record: dict[str, Any]) -> Any:
        yield from whole(record)
        if "trp" in str(record["name"]):
            raise KeyError("a part of another version")

    monkeypatch.setattr(sheet, "rows_of", some)
    for name in ("trp-cage", "triple-well", "alanine-dipeptide"):
        shutil.copytree(KEPT / name, tmp_path / name)
    _, markdown, rows = written(tmp_path)
    assert "| trp-cage | its figures in report.csv | left out" in markdown
    assert {row["record"] for row in rows if row["section"] != "costs"} == {
        "alanine-dipeptide"
    }  # the other has no such figures


@pytest.mark.parametrize("content", [{}, {"nothing.json": "{}"}, {"broken.json": '{"suite": "md", '}])
def test_a_folder_without_records_is_one_clear_error(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=r"(?s)holds neither a record.*" + next(iter(content), "")):
        report_files([tmp_path])
    with pytest.raises(InputError, match="no such folder"):
        report_files([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="report takes one folder"):
        report_files([])


def test_what_cannot_be_read_is_left_out_and_said(tmp_path: Path) -> None:
    put(tmp_path, "md", notes=["GROMACS was left out <b>here</b>. It is fine."], extra_of_a_newer_version={"a": 1})
    (tmp_path / "broken.json").write_text('{"suite": "md", ')
    other = json.loads(put(tmp_path, "energies").read_text())
    (tmp_path / "energies-laptop.json").write_text(json.dumps(other | {"date_utc": "yesterday"}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("[1, 2]")
    text, passed = report_files([tmp_path])
    assert passed and "left out: broken.json, energies-laptop.json, run/report.json" in text
    html, markdown, _ = written(tmp_path)
    assert re.search(r"\| broken.json \| the file \| Expecting", markdown)
    assert "does not follow the schema (date_utc: " in markdown and "no report of a run: it has no verdict" in markdown
    assert re.search(r"\| this folder \| suites ramachandran, .*verdict \| there is no record of them \|", markdown)
    assert "| md-laptop | by its notes | GROMACS was left out <b>here</b>. |" in markdown and "It is fine" not in markdown
    assert "&lt;b&gt;here" in html


def test_keys_of_a_newer_version_are_no_reason_to_leave_a_record_out(tmp_path: Path) -> None:
    cost = {"stage": "a", "cpu_s": 5.0, "wall_s": 1.0, "load_average_1min": 0.5, "litres": 3}
    put(tmp_path, "md", costs=[cost], targets=[{"name": "t", "target": "<= 1", "measured": 2.0, "reached": False, "why": "x"}])
    _, markdown, _ = written(tmp_path)
    assert "| md-laptop | md | t | <= 1 | 2 |" in markdown


def test_a_record_that_lacks_what_a_section_needs_is_left_out_of_that_section_alone(tmp_path: Path) -> None:
    put(tmp_path, "verdict", results={"md": {"kind": "MD"}})
    put(tmp_path, "farm", results={"scaling": {"strong": {"ranks": [1, 2]}}})
    put(tmp_path, "md", targets=[{"name": "t", "target": "<= 1", "measured": 2.0, "reached": False}])
    _, markdown, _ = written(tmp_path)
    assert "**No verdict.**" in markdown and FAILED not in markdown and "| md-laptop | md | t |" in markdown
    for name, what in (("verdict", "its verdict"), ("verdict", "its times and curves"), ("farm", "its scaling")):
        assert f"| {name}-laptop | {what} | left out, as it is not what was expected (KeyError" in markdown


def test_a_smoke_record_does_not_stand_for_a_longer_one(tmp_path: Path) -> None:
    put_verdict(tmp_path, [30.0, 33.0, 31.0], [10.0, 11.0, 10.5])
    record = json.loads((tmp_path / "verdict-laptop.json").read_text())
    results = {"md": method("MD", [1.0, 1.1]), "flow": method("surrogate", [50.0, 51.0])}
    (tmp_path / "verdict-smoke.json").write_text(
        json.dumps(record | {"size": "smoke", "date_utc": "2099-01-01 00:00", "results": results})
    )
    _, markdown, _ = written(tmp_path)
    assert "**The surrogate wins.**" in markdown and "| verdict-smoke | the verdict | verdict-laptop is of a larger" in markdown


def test_the_command(command: CommandLine, tmp_path: Path) -> None:
    put_verdict(tmp_path, [30.0, 33.0, 31.0], [10.0, 11.0, 10.5])
    done = command("benchmark", "report", str(tmp_path), "--cost-per-core-hour", "2")
    assert done.returncode == 0, done.stderr
    assert "the surrogate wins" in done.stdout and str(tmp_path / "report.html") in done.stdout
    for arguments in (("benchmark", "report"), ("benchmark", "md", "--cost-per-gpu-hour", "1"), ("benchmark", "report", "no")):
        ended = command(*arguments)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr


def test_curves_from_zero_are_those_of_the_break_even() -> None:
    """n effective samples give a half-width of 1.96 / sqrt(n p (1 - p)), and cost F + n c."""
    record = json.loads((KEPT / "alanine-dipeptide" / "report.json").read_text())
    found = accuracy.of_record(record)
    assert found is not None
    curves = {curve.name: curve for curve in found.curves}
    contest, costs = record["break_even"]["dF"], record["costs"]
    paid = curves[accuracy.PAID]
    assert paid.fixed_cpu_s == pytest.approx(sum(costs[name] for name in ("data", "training", "validation", "checks")))
    assert curves[accuracy.THERE].fixed_cpu_s == costs["training"] and accuracy.ALONE not in curves
    value, low, high = found.seconds_to(paid, 0.25)
    n = (value - paid.fixed_cpu_s) / contest["surrogate_cpu_s_per_effective_sample"]["value"]
    assert 1.96 / math.sqrt(n * found.share * (1 - found.share)) == pytest.approx(0.25)
    assert paid.fixed_cpu_s < low < value < high
    fixed = contest["n_star"]["data paid"]["fixed_cpu_s"]  # what n* pays back: both sides' fixed costs, one less the other
    assert paid.fixed_cpu_s - curves[accuracy.BEST_MD].fixed_cpu_s == pytest.approx(fixed)
    assert accuracy.of_record(record | {"break_even": {"available": False, "reason": ""}}) is None
    record["costs"]["frames_trained_on"] = False
    alone = accuracy.of_record(record)
    assert alone is not None and accuracy.ALONE in {curve.name for curve in alone.curves}


def numbers(value: Any) -> set[float]:
    if isinstance(value, dict):
        return set().union(*map(numbers, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(numbers, value)) if value else set()
    return {float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


@pytest.mark.parametrize("name", ["alanine-dipeptide", "triple-well", "trp-cage", "p450", "alpha-synuclein"])
def test_the_table_of_a_run_holds_every_number_of_its_json(name: str) -> None:
    record = json.loads((KEPT / name / "report.json").read_text())
    rows = list(csv.DictReader(io.StringIO(sheet.as_csv(sheet.rows_of(record)))))
    held = {float(row[key]) for row in rows for key in ("value", "low", "high") if row[key]}
    wanted = numbers({key: part for key, part in record.items() if key not in ("config", "provenance", "schema_version")})
    wanted -= {angle for curve in record.get("profiles", {}).values() for angle in curve["centres_rad"]}
    wanted -= {curve["kt_kj_mol"] for curve in record.get("profiles", {}).values()}
    assert wanted <= held
    assert len({(row["section"], row["quantity"], row["set"]) for row in rows}) == len(rows)


def test_the_table_of_a_run_is_tidy() -> None:
    record = json.loads((KEPT / "alanine-dipeptide" / "report.json").read_text())
    rows = {(row.section, row.quantity, row.set): row for row in sheet.rows_of(record)}
    delta = record["delta_f"]["corrected"]
    found = rows["delta_f", "delta_f", "corrected samples"]
    assert found[3:] == (delta["value"], delta["low"], delta["high"], "kT")
    star = rows["break_even", "slowest / n_star", "data paid"]
    assert star[3:] == (
        *(record["break_even"]["slowest"]["n_star"]["data paid"][key] for key in ("value", "low", "high")),
        "samples",
    )
    assert rows["break_even", "dF / n_star", "data paid"][3:6] == (math.inf, math.inf, math.inf)
    assert not any(row.set == "energies alone" for row in rows.values())  # not available there
    assert rows["costs", "core_h", "train"].value == pytest.approx(record["costs"]["stages"][2]["cpu_s"] / 3600)
    assert rows["basins", "alphaL", "held-out MD"].unit == "1" and rows["costs", "shared_start", ""].unit == "CPU s"
    gone = sheet.rows_of(record | {"break_even": {"available": False, "reason": "the quality gate did not pass"}})
    assert not any(row.section == "break_even" for row in gone)
