"""Runs of many molecules: how their configurations are made, what makes their stages out of date, and what is told of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc_molgen import failures, molecules
from hpc_molgen.config import RunConfig, load_config
from hpc_molgen.efficiency import molecules_report
from hpc_molgen.efficiency.molecules_findings import Findings, Molecule, decide
from hpc_molgen.efficiency.molecules_report import write_report
from hpc_molgen.errors import InputError, Interrupted
from hpc_molgen.files import write_json
from hpc_molgen.launch.follow import as_text, follow
from hpc_molgen.launch.plan import plan_jobs
from hpc_molgen.launch.site import SiteConfig
from hpc_molgen.molecules import member_configs, members, run_molecules
from hpc_molgen.provenance import provenance
from hpc_molgen.run import STAGES, Run
from hpc_molgen.training import shared
from hpc_molgen.workers import Stopwatch, Workers
from tests.conftest import CommandLine

BASE: dict[str, Any] = {
    "name": "many",
    "system": {"name": "peptide", "temperature_kelvin": 310},
    "molecules": ["ALA", {"name": "P", "system": {"sequence": "PRO"}, "report": {"cv": "psi1"}}, "GLY"],
    "unseen": ["GLY"],
    "representation": {"name": "relaxed"},
    "surrogate": {"name": "transferable"},
}


def config(**other: Any) -> RunConfig:
    return RunConfig.model_validate(BASE | other)


def whole(folder: Path, workers: Workers | None = None, **other: Any) -> Run:
    return Run(folder, config(**other), workers or Workers())


def finish(run: Run, *stages: str, **details: Any) -> None:
    for stage in stages:
        record = {"fingerprint": run.fingerprint(stage), "details": details, "provenance": provenance()}
        write_json(run.path(stage, "done.json"), record)
        write_json(run.path(stage, "inputs.json"), {"fingerprint": record["fingerprint"]})


def created(folder: Path, *stages: str, **other: Any) -> Run:
    """A run of which the whole and all molecules have done these stages."""
    run = Run.create(folder, config(**other), Workers())
    for one in (run, *(Run.create(one.directory, one.config, one.workers) for one in members(run))):
        finish(one, *stages)
    return run


def done(run: Run) -> list[str]:
    return [stage for stage in STAGES if run.is_done(stage)]


def test_each_molecule_is_the_whole_with_what_its_entry_says(tmp_path: Path) -> None:
    ala, pro, gly = (one.config for one in members(whole(tmp_path)))
    assert [one.name for one in (ala, pro, gly)] == ["ALA", "P", "GLY"]
    assert [one.system.sequence for one in (ala, pro, gly)] == ["ALA", "PRO", "GLY"]
    assert ala.system.temperature_kelvin == pro.system.temperature_kelvin == 310
    assert (ala.report.cv, pro.report.cv) == ("phi", "psi1") and not ala.molecules and not ala.unseen
    trained = {one.surrogate.trained for one in (ala, pro, gly)}  # type: ignore[union-attr]
    assert trained == {str(tmp_path / "train" / "surrogate.safetensors")}
    assert [one.directory.name for one in members(whole(tmp_path))] == ["ALA", "P", "GLY"]
    assert members(Run(tmp_path, RunConfig(), Workers())) == []
    spaced = config(molecules=["ALA", "GLY, SER VAL"], unseen=[])
    assert member_configs(spaced)[1].name == "GLY-SER-VAL"


def test_another_kind_of_surrogate_or_system_brings_its_own_defaults(tmp_path: Path) -> None:
    own = [
        "ALA",
        {"name": "flow", "system": {"sequence": "GLY"}, "surrogate": {"name": "flow", "layers": 4}},
        {"name": "tuned", "system": {"sequence": "SER"}, "surrogate": {"trained": "/given", "tune_steps": 7}, "seed": 5},
    ]
    run = whole(tmp_path, molecules=own, unseen=[])
    ala, flow, tuned = (one.config for one in members(run))
    assert flow.surrogate.name == "flow" and flow.surrogate.layers == 4
    assert tuned.surrogate.trained == "/given" and tuned.surrogate.tune_steps == 7  # type: ignore[union-attr]
    assert (ala.seed, tuned.seed) == (1, 5)
    assert [one.config.name for one in molecules.learners(run, members(run))] == ["ALA"]
    kinds = [{"name": "a", "system": {"name": "peptide", "sequence": "ALA"}}, {"name": "b"}]
    plain = RunConfig(molecules=tuple(kinds), system={"temperature_kelvin": 280})  # type: ignore[arg-type]
    peptide, other = member_configs(plain)
    assert peptide.system.force_field == ("amber99sbildn.xml", "amber99_obc.xml") and peptide.system.temperature_kelvin == 280
    assert other.system == plain.system
    chosen = plain.model_copy(update={"system": plain.system.model_copy(update={"force_field": ("mine.xml",)})})
    assert member_configs(chosen)[0].system.force_field == ("mine.xml",)
    assert not molecules.shares_surrogate(plain) and not molecules.learners(Run(tmp_path, plain, Workers()), [])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"molecules": ["ALA", "ALA"], "unseen": []}, "must differ"),
        ({"molecules": ["../up"], "unseen": []}, "consist of letters"),
        ({"molecules": [{"system": {"sequence": "ALA"}}], "unseen": []}, "consist of letters"),
        ({"unseen": ["ALA", "P", "GLY"]}, "needs one to learn from"),
        ({"system": {"name": "alanine-dipeptide"}}, "a sequence is for system.name peptide"),
        ({"representation": {"name": "internal"}}, "needs representation.name relaxed"),
    ],
)
def test_wrong_lists_of_molecules(other: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**other)


def test_every_error_of_all_molecules_comes_at_once(command: CommandLine, tmp_path: Path) -> None:
    wrong = [
        "ALA",
        {"name": "one", "sytem": {}},
        {"name": "two", "train": {"n_steps": -3}, "surrogate": {"name": "flow", "hiden": 3}},
        {"name": "three", "molecules": ["SER"]},
    ]
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(BASE | {"molecules": wrong, "unseen": []}))
    for arguments in (["check", str(path)], ["run", str(path), "--out", str(tmp_path / "out")]):
        ended = command(*arguments)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr and not ended.stdout
        for said in (
            "one: 1 error",
            "did you mean 'system'",
            "two: 2 error",
            "surrogate.hiden",
            "train.n_steps",
            "three: a mol",
        ):
            assert said in ended.stderr
        assert "ALA" not in ended.stderr
    assert not (tmp_path / "out").exists()
    path.write_text(yaml.safe_dump(BASE))
    right = command("check", str(path))
    assert right.returncode == 0 and yaml.safe_load(right.stdout)["molecules"] == BASE["molecules"]


def test_files_of_entries_are_found_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pdb").touch()
    entries = [{"name": "a", "system": {"name": "pdb", "pdb": "a.pdb", "force_field": ["a.pdb", "amber14/x.xml"]}}]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"molecules": [*entries, {"name": "a.pdb", "farm": {"minutes": 3}}]}))
    monkeypatch.chdir(tmp_path)
    found = load_config("c.yaml").molecules
    here = str(tmp_path / "a.pdb")
    assert found[0] == {"name": "a", "system": {"name": "pdb", "pdb": here, "force_field": [here, "amber14/x.xml"]}}
    assert found[1] == {"name": "a.pdb", "farm": {"minutes": 3}}


def test_what_makes_the_stages_of_the_whole_out_of_date(tmp_path: Path) -> None:
    finish(whole(tmp_path), *STAGES)
    stages = list(STAGES)
    assert done(whole(tmp_path)) == stages
    assert done(whole(tmp_path, molecules=[*BASE["molecules"], "SER"])) == []
    assert done(whole(tmp_path, molecules=[BASE["molecules"][0], BASE["molecules"][2]])) == []
    assert done(whole(tmp_path, unseen=["SER", "GLY"])) == stages  # of the list are those alone that are there
    assert done(whole(tmp_path, unseen=[])) == ["reference", "featurize"]  # what is learnt from, and all that comes after
    pro = BASE["molecules"][1]

    def with_pro(**other: Any) -> list[str]:
        return done(whole(tmp_path, molecules=[BASE["molecules"][0], pro | other, BASE["molecules"][2]]))

    assert with_pro(report={"cv": "phi1"}) == stages[:-1]
    assert with_pro(train={"n_steps": 5}) == ["reference", "featurize"]
    assert with_pro(reference={"n_walkers": 4}) == [] and with_pro(seed=3) == []
    assert with_pro(farm={"minutes": 3}) == stages  # how, not what


def test_the_content_of_the_shared_surrogate_counts_and_not_its_place(tmp_path: Path) -> None:
    def surrogate(name: str, content: bytes) -> Run:
        run = whole(tmp_path / name)
        run.path("train").mkdir(parents=True)
        run.path("train", "surrogate.safetensors").write_bytes(content)
        return members(run)[0]

    first, same, other = surrogate("first", b"1"), surrogate("same", b"1"), surrogate("other", b"2")
    prints = [{stage: one.fingerprint(stage) for stage in STAGES} for one in (first, same, other)]
    assert prints[0] == prints[1]
    assert [stage for stage in STAGES if prints[0][stage] == prints[2][stage]] == ["reference", "featurize"]
    finish(whole(tmp_path / "first"), "train")
    finish(first, "train")
    assert not molecules.is_done(whole(tmp_path / "first"), "train")  # two molecules are not there
    for one in members(whole(tmp_path / "first")):
        finish(one, "train")
    assert molecules.is_done(whole(tmp_path / "first"), "train")


def test_given_starts_of_every_molecule_need_no_correction(tmp_path: Path) -> None:
    starts = [{"name": name, "farm": {"starts": str(tmp_path)}} for name in "ab"]
    plain = RunConfig(molecules=tuple(starts))
    assert Run(tmp_path, plain, Workers()).inputs("farm") == (("system", "farm"), ())
    partly = plain.model_copy(update={"molecules": (starts[0], {"name": "b"})})
    assert Run(tmp_path, partly, Workers()).inputs("farm")[1] == ("correct",)


def test_jobs_of_an_array_take_turns(tmp_path: Path) -> None:
    one, two, three = members(whole(tmp_path, Workers(share=(2, 3))))
    assert [run.workers.share for run in (one, two, three)] == [(2, 3), (0, 3), (1, 3)]
    for number in range(3):  # for every molecule, all numbers are there
        assert {members(whole(tmp_path, Workers(share=(k, 3))))[number].workers.share[0] for k in range(3)} == {0, 1, 2}
    assert [run.workers.share for run in members(whole(tmp_path))] == [(0, 1)] * 3


def test_arrays_have_no_more_jobs_than_work(tmp_path: Path) -> None:
    run = whole(tmp_path, reference={"n_walkers": 2}, sample={"n_samples": 100}, farm={"n_replicas": 9})
    site = SiteConfig.model_validate({"stages": {name: {"array": 6} for name in ("reference", "sample", "farm")}})
    planned = {job.name: job.array for job in plan_jobs(run, site, list(STAGES))}
    assert planned == {"reference": 4, "train": 1, "sample": 3, "correct": 1, "farm": 6, "report": 1}
    finish(run, "reference")
    assert plan_jobs(run, site, ["reference"])  # the whole's marker alone is not enough
    for one in members(run):
        finish(one, "reference")
    assert plan_jobs(run, site, ["reference"]) == []


def test_status_has_a_line_for_each_molecule(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config(), Workers())
    ala, pro, gly = (Run.create(one.directory, one.config, one.workers) for one in members(run))
    for one in (run, ala, pro, gly):
        finish(one, "reference")
    for one in (run, ala, pro, gly):
        write_json(one.path("featurize", "inputs.json"), {"fingerprint": one.fingerprint("featurize")})
    finish(ala, "featurize")
    write_json(pro.path("featurize", "progress.json"), {"progress": 0.5, "eta_s": 3.0, "rate": "1 it/s"})
    failures.note(gly.path("featurize"), InputError("no minimum"), gly.workers)
    with pro.lock():
        rows = follow(run.directory)
    stages, own = rows[:7], rows[7:]
    assert [row["stage"] for row in stages] == list(STAGES) and not any("molecule" in row for row in stages)
    assert [(row["molecule"], row["stage"], row["state"], row["unseen"]) for row in own] == [
        ("ALA", "featurize", "done", False), ("P", "featurize", "running", False), ("GLY", "featurize", "failed", True)
    ]  # fmt: skip
    assert own[1]["progress"] == 0.5 and own[2]["error"] == "no minimum"
    assert stages[0]["state"] == "done" and stages[1]["state"] == "interrupted"
    assert stages[1]["progress"] == pytest.approx(0.5) and stages[1]["rate"] == "1 of 3 molecules"
    text = list(as_text(rows))
    assert text[-2].split() == ["GLY", "(unseen)", "featurize", "failed"] and text[-1].strip() == "no minimum"
    assert text[-3].split() == ["P", "featurize", "running", "50", "%"]
    json.dumps(rows)
    (gly.path("reference") / "done.json").unlink()
    again = follow(run.directory)
    assert again[0]["state"] == "out of date" and "job" in again[0]


def test_status_of_what_has_not_begun(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", config(), Workers())
    assert [(row["stage"], row["state"]) for row in follow(run.directory)[7:]] == [("reference", "waiting")] * 3


def stage_by_hand(run: Run, stages: Any, *, again: bool = False) -> None:
    """What a stage of one molecule does, without its work."""
    for stage in stages:
        with run.stage(stage) as details:
            details |= {"n_replicas": 3, "n_failed": 1, "simulated_ns": 2.0, "cpu_s": 4.0, "platform": run.config.name[0]}


def test_a_finished_shared_training_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it ended while molecules were still tuned, nor for further unseen molecules; for others to learn from it is."""
    calls: list[list[str]] = []

    def training(run: Run, seen: list[Run]) -> dict[str, Any]:
        calls.append([one.config.name for one in seen])
        run.path("train", "surrogate.safetensors").write_bytes(f"trained {len(calls)}".encode())
        run.path("train", "metrics.jsonl").write_text("{}")
        return {"molecules": calls[-1], "train_cpu_s": 1.0}

    def failing(run: Run, stages: Any, *, again: bool = False) -> None:
        if run.config.name == "GLY":
            raise InputError("the disk is on fire")
        stage_by_hand(run, stages)

    monkeypatch.setattr(shared, "train_shared", training)
    run = created(tmp_path, "reference", "featurize")
    with pytest.raises(InputError, match="GLY: the disk is on fire"):
        run_molecules(run, ["train"], failing)
    assert not run.is_done("train") and "GLY: the disk" in failures.first([run.path("train")])["error"]  # type: ignore[index]
    run_molecules(run, ["train"], stage_by_hand)
    assert molecules.is_done(run, "train") and calls == [["ALA", "P"]]
    run_details = run.details("train")
    assert run_details == {"molecules": ["ALA", "P"], "train_cpu_s": 1.0}
    members(run)[0].path("train", "done.json").unlink()
    run_molecules(run, ["train"], stage_by_hand)
    assert molecules.is_done(run, "train") and len(calls) == 1
    other = created(tmp_path, "reference", "featurize", unseen=[])
    run_molecules(other, ["train"], stage_by_hand)
    assert calls[1:] == [["ALA", "P", "GLY"]]
    further = created(tmp_path, "reference", "featurize", molecules=["SER", *BASE["molecules"]], unseen=["SER", "GLY"])
    run_molecules(further, ["train"], stage_by_hand)
    assert molecules.is_done(further, "train") and len(calls) == 2 and further.details("train") == run_details
    assert further.path("train", "surrogate.safetensors").read_bytes() == b"trained 1"
    smaller = {"name": "transferable", "layers": 2}
    changed: tuple[dict[str, Any], ...] = ({"train": {"n_steps": 7}}, {"seed": 4}, {"surrogate": smaller})
    for number, setting in enumerate(changed, 3):
        run_molecules(created(tmp_path, "reference", "featurize", **setting), ["train"], stage_by_hand)
        assert len(calls) == number and calls[-1] == ["ALA", "P"]
    another = [BASE["molecules"][0] + "-SER", *BASE["molecules"][1:]]
    run_molecules(created(tmp_path, "reference", "featurize", molecules=another), ["train"], stage_by_hand)
    assert calls[5:] == [["ALA-SER", "P"]]


def test_whose_frames_and_which_settings_the_shared_training_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def training(run: Run, seen: list[Run]) -> dict[str, Any]:
        calls.append(len(seen))
        for name in ("surrogate.safetensors", "metrics.jsonl"):
            run.path("train", name).write_text(str(len(calls)))
        return {"molecules": [one.config.name for one in seen], "train_cpu_s": 1.0}

    def n_trainings(**other: Any) -> int:
        run_molecules(created(tmp_path, "reference", "featurize", **other), ["train"], stage_by_hand)
        assert run_costs(tmp_path) == len(calls)
        return len(calls)

    def with_own(name: str, **own: Any) -> list[Any]:
        entry = {"name": name, "system": {"sequence": name}, **own}
        return [entry if one == name else one for one in BASE["molecules"]]

    def run_costs(folder: Path) -> int:
        return len((folder / "costs" / "shared.jsonl").read_text().splitlines())

    monkeypatch.setattr(shared, "train_shared", training)
    assert n_trainings() == 1
    assert n_trainings(molecules=with_own("GLY", seed=5)) == n_trainings(refine={"rounds": 1}) == 1
    assert n_trainings(surrogate={"name": "transferable", "tune_steps": 9, "tune_rehearsal": 0.2}) == 1
    assert n_trainings(molecules=with_own("ALA", seed=5)) == 2
    assert n_trainings(molecules=with_own("ALA", reference={"n_walkers": 6})) == 3
    assert n_trainings(molecules=with_own("GLY", reference={"n_walkers": 6})) == n_trainings() == 3
    assert n_trainings(unseen=["GLY", "P"]) == 4
    for folder in tmp_path.glob("train.old-*"):
        (folder / "surrogate.safetensors").unlink()
    assert n_trainings() == 5  # what is incomplete is not taken over


def test_a_changed_file_of_an_entry_makes_all_out_of_date(tmp_path: Path) -> None:
    path = tmp_path / "own.xtc"
    entry = {"name": "own", "system": {"sequence": "SER"}, "reference": {"trajectories": [str(path)]}}

    def prints() -> list[str]:
        return [whole(tmp_path, molecules=["ALA", entry], unseen=[]).fingerprint(stage) for stage in STAGES]

    path.write_bytes(b"frames")
    before = prints()
    path.write_bytes(b"more frames")
    assert not set(before) & set(prints())
    path.write_bytes(b"frames")
    assert prints() == before


def test_a_share_leaves_the_whole_undone(tmp_path: Path) -> None:
    def none_is_done(run: Run, stages: Any, *, again: bool = False) -> None:
        run.directory.joinpath("seen").write_text(str(run.workers.share))

    run = whole(tmp_path, Workers(share=(0, 2)))
    finish(run, "correct")
    run_molecules(run, ["farm"], none_is_done)
    assert [one.path("seen").read_text() for one in members(run)] == ["(0, 2)", "(1, 2)", "(0, 2)"]
    assert not run.path("farm", "done.json").exists() and not failures.first([run.path("farm")])
    alone = whole(tmp_path)
    with pytest.raises(InputError, match="'farm' of ALA, P, GLY was made from has changed"):
        run_molecules(alone, ["farm"], none_is_done)
    for one in members(alone):
        finish(one, *list(STAGES)[:5])
    run_molecules(alone, ["farm"], stage_by_hand)
    figures = alone.details("farm")
    assert (figures["n_replicas"], figures["n_failed"], figures["simulated_ns"]) == (9, 3, 6.0)
    assert figures["platform"] == "A, G, P" and figures["ns_per_day_per_core"] == pytest.approx(6 / 12 * 86400)


def test_the_minutes_of_a_farm_are_for_all_molecules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = [0.0]
    monkeypatch.setattr(Stopwatch, "wall_s", property(lambda _: passed[0]))
    given: list[float | None] = []

    def slow(run: Run, stages: Any, *, again: bool = False) -> None:
        given.append(run.config.farm.minutes)
        passed[0] += 90
        stage_by_hand(run, stages)

    run = created(tmp_path, *list(STAGES)[:5], farm={"minutes": 2})
    with pytest.raises(Interrupted, match="before GLY"):
        run_molecules(run, ["farm"], slow)
    assert given == [2, 0.5]


def test_reports_are_written_again_with_prices_that_no_configuration_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = created(tmp_path, *STAGES)
    before = {one.config.name: one.path("config.yaml").read_text() for one in (run, *members(run))}
    prices: dict[str, float | None] = {}

    def priced(run: Run, stages: Any, *, again: bool = False) -> None:
        prices[run.config.name] = run.config.report.cost_per_core_hour
        assert again
        stage_by_hand(run, stages)

    def whole_report(run: Run, runs: list[Run]) -> dict[str, Any]:
        prices[run.config.name] = run.config.report.cost_per_core_hour
        return {}

    monkeypatch.setattr(molecules_report, "write_report", whole_report)
    run.config = run.config.model_copy(update={"report": run.config.report.model_copy(update={"cost_per_core_hour": 2.0})})
    run_molecules(run, ["report"], priced, again=True)
    assert prices == {"ALA": 2.0, "P": 2.0, "GLY": 2.0, "many": 2.0}
    assert {one.config.name: one.path("config.yaml").read_text() for one in (run, *members(run))} == before


def molecule(name: str, role: str, **own: Any) -> Molecule:
    values: dict[str, Any] = {
        "n_atoms": 20, "n_torsions": 4, "ess_fraction": 0.2, "k_hat": 0.3, "annealed": "", "annealed_ess_fraction": None,
        "observable": "(phi, psi), 60 x 60", "ratio": {"raw": 2.0, "corrected": 1.1}, "cv": "phi", "target": "everything",
        "delta_f": {"corrected": None, "held_out": None}, "certified": True, "reason": "", "reference_cpu_s": 1.0,
        "own_cpu_s": 2.0, "farm_cpu_s": 3.0, "training_part_cpu_s": 4.0,
    }  # fmt: skip
    return Molecule(name=name, role=role, **(values | own))


def test_the_verdict_on_all() -> None:
    bad = {"certified": False, "reason": "no mode was found"}
    rows = [molecule("A", "seen"), molecule("B", "seen", **bad), molecule("C", "unseen"), molecule("D", "unseen")]
    medians: dict[str, float | None] = {"ess_fraction": 0.123, "ratio": None}
    verdict = decide(Findings(rows, None, medians, {}))
    assert not verdict.gate_passed and verdict.headline == "3 of 4 molecules certified"
    assert verdict.sentence == (
        "Certified: 1 of 2 molecules that the surrogate learnt from (not B), and 2 of 2 molecules that the surrogate has not "
        "seen. Medians over the unseen ones: ESS 12.30 %."
    )
    assert verdict.reasons == ["no mode was found"]
    good = decide(Findings([molecule("A", "-"), molecule("B", "-")], None, {"ess_fraction": None, "ratio": None}, {}))
    assert good.gate_passed and good.headline == "All 2 molecules certified" and "2 of 2" in good.sentence
    assert not decide(Findings([molecule("A", "-", **bad)], None, {"ess_fraction": None, "ratio": None}, {})).gate_passed


Make = Callable[..., tuple[Run, list[Run]]]


@pytest.fixture
def reported(tmp_path: Path) -> Make:
    """A run whose molecules have these reports, and stages that cost something; nothing else of it is there."""

    def make(reports: dict[str, dict[str, Any]], **other: Any) -> tuple[Run, list[Run]]:
        run = Run(tmp_path, config(**other), Workers())
        runs = members(run)
        for one in runs:
            finish(one, "featurize", n_torus=3)
            write_json(one.path("report", "report.json"), reports[one.config.name])
            one.__dict__["system"] = type("System", (), {"n_atoms": 12})
            for number, stage in enumerate(STAGES):
                one.path("costs").mkdir(exist_ok=True)
                line = {"rank": 0, "cpu_s": 10.0**number, "wall_s": 1.0, "joules": None, "finished": True}
                one.path("costs", f"{stage}.jsonl").write_text(json.dumps(line) + "\n")
        run.path("costs").mkdir()
        lines = [{"rank": 0, "cpu_s": cpu_s, "wall_s": 1.0, "joules": None, "finished": True} for cpu_s in (70.0, 20.0)]
        run.path("costs", "shared.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        figures = {"molecules": ["ALA", "P"], "n_items": 7, "n_parameters": 9, "train_cpu_s": 50.0}
        finish(run, "train", **(figures if molecules.shares_surrogate(run.config) else {}))
        return run, runs

    return make


def report(passed: bool, **own: Any) -> dict[str, Any]:
    reasons = [] if passed else ["first reason", "second reason"]
    return {"verdict": {"sentence": "", "headline": "", "gate_passed": passed, "reasons": reasons}} | own


ESTIMATE = {"value": 1.0, "low": None, "high": 2.0, "standard_error": 0.1}
WEIGHTED = report(
    True, weights={"weighted": True, "target": "all", "ess_fraction": 0.25, "k_hat": 0.4}, torsions={"names": ["phi1", "psi1"]},
    delta_f={"corrected": ESTIMATE, "reference": ESTIMATE},
    divergences=[
        {"observable": "phi1, 100 bins", "label": "corrected samples", "ratio": 9.0},
        {"observable": "(phi1, psi1), 60 x 60", "label": "raw samples", "ratio": 3.0},
        {"observable": "(phi1, psi1), 60 x 60", "label": "corrected samples", "ratio": 1.5},
    ],
)  # fmt: skip
MOVED = report(
    False, torsions={"names": ["torsion1"]},
    weights={
        "weighted": True, "target": "all", "ess_fraction": 0.9, "k_hat": None, "annealed": {"kind": "chains"},
        "importance": {"ess_fraction": 0.01, "k_hat": 0.8},
    },
)  # fmt: skip
SERIES = report(False, findings={})  # of trajectories: no weights, no torsions


def test_a_report_of_molecules_of_all_kinds(reported: Make) -> None:
    run, runs = reported({"ALA": WEIGHTED, "P": MOVED, "GLY": SERIES})
    figures = write_report(run, runs)
    found = json.loads(run.path("report", "report.json").read_text())
    assert figures["gate_passed"] is found["verdict"]["gate_passed"] is found["verdict"]["certified"] is False
    assert found["verdict"]["reasons"] == ["P: first reason", "GLY (unseen): first reason"]
    ala, pro, gly = found["molecules"]
    assert (ala["ess_fraction"], ala["k_hat"], ala["ratio"]) == (0.25, 0.4, {"raw": 3.0, "corrected": 1.5})
    assert (pro["ess_fraction"], pro["k_hat"], pro["annealed"], pro["annealed_ess_fraction"]) == (0.01, 0.8, "chains", 0.9)
    assert pro["cv"] == "torsion1" and pro["ratio"] == {"raw": None, "corrected": None} and pro["delta_f"]["corrected"] is None
    assert gly["ess_fraction"] is None and [one["role"] for one in (ala, pro, gly)] == ["seen", "seen", "unseen"]
    assert found["unseen_medians"] == {"ess_fraction": None, "ratio": None}
    assert found["surrogate"]["cpu_s"] == 70 + 20  # of both attempts
    assert ala["training_part_cpu_s"] == pytest.approx(90 / 3) and ala["reference_cpu_s"] == 1 and ala["farm_cpu_s"] == 1e5
    assert ala["own_cpu_s"] == 10 + 100 + 1000 + 10000 and found["totals"]["reference_of_seen_cpu_s"] == 2
    html, text = (run.path("report", f"report.{kind}").read_text() for kind in ("html", "md"))
    for name in ("ALA", "P", "GLY"):
        assert f'<a href="../molecules/{name}/report/report.html">{name}</a>' in html
        assert f"[{name}](../molecules/{name}/report/report.md)" in text
    assert "| [GLY](../molecules/GLY/report/report.md) | unseen | 12 | 3 | - | - | - | - | - |" in text
    assert "ESS after annealing" in text and "No importance weights: GLY." in text
    assert "phi1:\u00a01.00\u00a0(no\u00a0interval" in text  # null in report.json is not finite
    rows = run.path("report", "report.csv").read_text().splitlines()
    assert "molecules,ess_fraction,ALA,0.25,,,1" in rows and "molecules,training_part_cpu_s,GLY,30.0,,,CPU s" in rows
    for name in ("quality", "costs"):
        assert run.path("report", "figures", f"{name}.svg").stat().st_size > 2000


def test_a_report_of_molecules_without_a_shared_surrogate(reported: Make) -> None:
    run, runs = reported({"ALA": WEIGHTED, "P": WEIGHTED}, molecules=["ALA", "P"], unseen=[], surrogate={"name": "flow"})
    assert write_report(run, runs)["gate_passed"]
    found = json.loads(run.path("report", "report.json").read_text())
    assert found["surrogate"] is None and [one["role"] for one in found["molecules"]] == ["-", "-"]
    assert "2 of 2 molecules with a surrogate of their own" in found["verdict"]["sentence"]
    text = run.path("report", "report.md").read_text()
    assert "shared training" not in text and "annealing" not in text.split("## Costs")[0].split("**Every molecule**")[1]


def test_a_report_of_molecules_with_a_surrogate_from_elsewhere(reported: Make) -> None:
    given = {"name": "transferable", "trained": "/elsewhere/surrogate.safetensors"}
    config(molecules=["GLY"], surrogate=given)  # which may have seen none of them
    run, runs = reported({"ALA": WEIGHTED, "GLY": WEIGHTED}, molecules=["ALA", "GLY"], surrogate=given)
    write_report(run, runs)
    found = json.loads(run.path("report", "report.json").read_text())
    assert [one["role"] for one in found["molecules"]] == ["given", "unseen"] and found["surrogate"] is None
    assert found["unseen_medians"] == {"ess_fraction": 0.25, "ratio": 1.5}
    assert {"what": "training of the surrogate", "amount": "of ALA"}.items() <= found["left_out"][1].items()
