"""The suites `sampling` and `correction`: real runs at their smallest size in one folder; what they say of known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_molgen.analysis.free_energy import Estimate
from hpc_molgen.basins import Basin
from hpc_molgen.efficiency.suites.compare import compare_records
from hpc_molgen.efficiency.suites.correction import correction
from hpc_molgen.efficiency.suites.correction_outcome import Outcome, effective, independent_samples, of_units
from hpc_molgen.efficiency.suites.correction_tables import MANY, MD, SURROGATE, record_of, summary
from hpc_molgen.efficiency.suites.correction_ways import missed
from hpc_molgen.efficiency.suites.sampling import sampling
from hpc_molgen.efficiency.suites.sampling_judge import Family, effective_rates
from hpc_molgen.efficiency.suites.sampling_tables import knee
from hpc_molgen.efficiency.suites.surrogate_pair import Maps, configuration, why_not_certified
from hpc_molgen.errors import InputError
from hpc_molgen.reweighting import WeightDiagnostics, diagnose
from hpc_molgen.run import Run
from tests.conftest import CommandLine

EVALUATIONS = {
    "rk4-2": 8, "rk4-4": 16, "rk4-8": 32, "euler-4": 4, "heun-4": 8, "adams-7": 8, "dopri5-2": 12, "rk4-4-raw": 16, "path-8": 8,
    "path-16": 16, "ancestral-10": 10, "flow": 1,
}  # fmt: skip
WAYS = {
    "diffusion-ode", "diffusion-path", "diffusion-chains", "flow", "flow-annealed", "prior", "smc", "md-bias", "md-reference"
}  # fmt: skip
TRUTH = (3.855, 0.036)


@pytest.fixture(scope="module")
def smoke(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("surrogates")
    for suite in ("sampling", "correction"):
        ended = command("benchmark", suite, "--size", "smoke", "--out", str(out))
        assert ended.returncode == 0, ended.stderr
    return out


def read(out: Path, suite: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((out / f"{suite}-smoke.json").read_text())
    return record


def trainings(out: Path) -> dict[str, str]:
    folder = out / "surrogates-smoke" / "runs"
    return {run.name: (run / "costs" / "train.jsonl").read_text() for run in sorted(folder.iterdir())}


def test_every_sampler_has_figures(smoke: Path) -> None:
    record, text = read(smoke, "sampling"), (smoke / "sampling-smoke.md").read_text()
    methods = record["results"]["methods"]
    assert methods.keys() == EVALUATIONS.keys() | {"adaptive-0.1"}
    speeds, quality = record["tables"]
    assert [row[0] for row in speeds["rows"]] == [row["method"] for row in methods.values()]
    assert len(quality["rows"]) == len(methods) + len(record["results"]["controls"])
    for row in methods.values():
        assert row["per_cpu_s"]["n"] == 3 and min(row["per_cpu_s"]["values"]) > 0 and row["per_wall_s"]["mean"] > 0
        assert row["jsd_nats"]["n"] == 3 and 0 < row["jsd_nats"]["mean"] <= np.log(2) and row["jsd_over_floor"]["mean"] > 0
        assert 0 <= row["failed_share"]["mean"] <= 1
        weighs = row["family"] not in (Family.RAW.value, Family.ANCESTRAL.value)
        assert ("ess_fraction" in row) == weighs == row["log_density"]
        if weighs:
            assert row["ess_fraction"]["n"] == 3 and 0 < row["pooled"]["ess_fraction"] <= 1 and row["pooled"]["n"] == 600
    assert "![" in text and "(sampling-smoke.png)" in text and (smoke / "sampling-smoke.png").stat().st_size > 10_000


def test_evaluations_are_those_of_the_integrator(smoke: Path) -> None:
    methods = read(smoke, "sampling")["results"]["methods"]
    assert {key: methods[key]["n_evaluations"]["values"] for key in EVALUATIONS} == {
        key: [float(n)] * 3 for key, n in EVALUATIONS.items()
    }
    assert methods["adaptive-0.1"]["n_evaluations"]["mean"] >= 7


def test_more_evaluations_give_a_better_log_density(smoke: Path) -> None:
    methods = read(smoke, "sampling")["results"]["methods"]
    errors = [methods[f"rk4-{steps}"]["round_trip_rms"]["mean"] for steps in (2, 4, 8)]
    assert errors[0] > errors[1] > errors[2] > 0 and methods["euler-4"]["round_trip_rms"]["mean"] > errors[0]
    assert methods["flow"]["round_trip_rms"] is None and methods["path-8"]["round_trip_rms"] is None
    # the divergence costs more than the velocity, with as many evaluations
    assert methods["rk4-4-raw"]["per_cpu_s"]["mean"] > methods["rk4-4"]["per_cpu_s"]["mean"]


def test_no_speed_without_weights_that_can_be_trusted(smoke: Path) -> None:
    record = read(smoke, "sampling")
    shown = {row[0]: row[-1] for row in record["tables"][0]["rows"]}
    for row in record["results"]["methods"].values():
        trip = (row.get("round_trip_rms") or {"mean": 0.0})["mean"]
        pooled = row.get("pooled")
        sound = pooled is not None and (pooled["k_hat"] or 9) <= 0.7 and pooled["largest_share"] <= 0.1 and trip <= 0.1
        assert row["certified"] == sound
        if sound:
            energy_s = record["results"]["energy_cpu_s"]
            rates = [pooled["ess_fraction"] / (1 / speed + energy_s) for speed in row["per_cpu_s"]["values"]]
            assert shown[row["method"]]["values"] == pytest.approx(rates)
        else:
            assert row["effective_per_cpu_s"] is None and isinstance(shown[row["method"]], str)
    assert not record["results"]["methods"]["rk4-8"]["certified"]  # sixty steps teach no diffusion
    assert sum(isinstance(value, str) for value in shown.values()) >= 10


def test_effective_rates_count_all_rounds_and_energies() -> None:
    """Half of 1,000 and 500 samples a second count, an energy takes 1 ms: 0.5 / (1 ms + 1 ms) and 0.5 / (2 ms + 1 ms)."""
    speed = {"values": [1000.0, 500.0]}
    row = {"certified": True, "pooled": {"ess_fraction": 0.5}, "per_cpu_s": speed, "per_wall_s": speed}
    assert effective_rates(row, 1e-3)["effective_per_cpu_s"]["values"] == pytest.approx([250.0, 500 / 3])
    assert effective_rates(row | {"certified": False}, 1e-3) == {}


def test_every_way_has_figures_and_pays_for_everything(smoke: Path) -> None:
    record = read(smoke, "correction")
    results, (training, *_) = record["results"], (smoke / "surrogates-smoke" / "runs").iterdir()
    assert results.keys() == WAYS and training.is_dir()
    lines = {
        kind: [
            json.loads(line)["cpu_s"]
            for stage in ("reference", "featurize", "train")
            for line in (smoke / "surrogates-smoke" / "runs" / f"{kind}-1" / "costs" / f"{stage}.jsonl")
            .read_text()
            .splitlines()
        ]
        for kind in ("diffusion", "flow")
    }
    for key, row in results.items():
        assert len(row["outcomes"]) == (1 if key == "md-reference" else 3)
        assert len({one["cpu_s"] for one in row["outcomes"]}) == len(row["outcomes"])
        for one in row["outcomes"]:
            assert sum(one["parts"].values()) == pytest.approx(one["cpu_s"]) and one["n"] > 0
            if row["kind"] == SURROGATE:
                assert one["fixed_cpu_s"] >= sum(lines[key.split("-")[0]])
        if not row["certified"]:
            assert row["reasons"] and row["effective_per_cpu_s"] is None and row[f"to_{MANY}_effective_cpu_s"] is None
    assert results["flow"]["forward_ess"]["n"] == 3 and results["diffusion-path"]["forward_ess"] is None
    assert results["flow"]["samples_per_cpu_s"]["mean"] > results["diffusion-ode"]["samples_per_cpu_s"]["mean"]


def test_certified_ways_are_right_and_others_have_no_speed(smoke: Path) -> None:
    record = read(smoke, "correction")
    results, (rates, zero, *_) = record["results"], record["tables"]
    prior = results["prior"]
    assert prior["certified"]
    for one in prior["free_energy"]:  # four standard errors, and the truth's own
        assert abs(one["value_kt"] - TRUTH[0]) < 2.1 * one["half_width_kt"] + TRUTH[1]
    kish = [one["weights"]["ess"] / one["cpu_s"] for one in prior["outcomes"]]
    assert prior["effective_per_cpu_s"]["values"] == pytest.approx(kish)
    paid = [one["fixed_cpu_s"] + MANY / rate for one, rate in zip(prior["outcomes"], kish, strict=True)]
    assert prior[f"to_{MANY}_effective_cpu_s"]["values"] == pytest.approx(paid)
    for table in (rates, zero):
        assert [row[0] for row in table["rows"]] == [row["name"] for row in results.values()]
    words = {row[0]: row[-2:] for row in rates["rows"]}
    for row in results.values():
        assert (words[row["name"]] == ["not certified"] * 2) == (not row["certified"])
    assert not results["diffusion-ode"]["certified"] and "k-hat above 0.7" in results["diffusion-ode"]["reasons"]


def test_a_second_start_trains_nothing(command: CommandLine, smoke: Path) -> None:
    before = trainings(smoke)
    assert before.keys() == {"diffusion-1", "flow-1"} and all(len(lines.splitlines()) == 1 for lines in before.values())
    own, taken = (
        smoke / "surrogates-smoke" / "runs" / f"{kind}-1" / "costs" / "reference.jsonl" for kind in ("diffusion", "flow")
    )
    assert own.read_text() == taken.read_text()
    first = read(smoke, "sampling")["results"]["methods"]
    assert command("benchmark", "sampling", "--size", "smoke", "--out", str(smoke)).returncode == 0
    again = read(smoke, "sampling")["results"]["methods"]
    assert trainings(smoke) == before
    for key, row in first.items():  # the same samples, drawn again
        assert again[key]["jsd_nats"] == row["jsd_nats"] and again[key].get("pooled") == row.get("pooled")


def test_records_compare_in_the_right_direction(smoke: Path) -> None:
    record = read(smoke, "sampling")
    changes = {change.name: change.direction for change in compare_records(record, record)}
    own = {name.rpartition(" / ")[2]: sign for name, sign in changes.items()}
    wanted = {"per_cpu_s": 1, "per_wall_s": 1, "ess_fraction": 1, "k_hat": -1, "jsd_over_floor": -1}
    assert {name: own[name] for name in wanted} == wanted


def test_sizes(tmp_path: Path) -> None:
    for suite in (sampling, correction):
        with pytest.raises(InputError, match="smoke, laptop, cluster"):
            suite("huge", tmp_path, 1)
    for size in ("smoke", "laptop", "cluster"):
        for kind in ("diffusion", "flow"):
            config = configuration(size, kind, 7)
            assert config.surrogate.name == kind and config.seed == 7 and config.representation.name == "internal"


def test_training_md_is_at_the_floor_and_wrong_sets_are_not(tiny_run: Path) -> None:
    maps = Maps(Run.open(tiny_run), 3)
    assert maps.divergence(maps.training_rad, maps.training_weights, "itself")[1] == 1.0
    uniform = np.random.default_rng(1).uniform(-np.pi, np.pi, (5000, 2))
    even = np.full(5000, 1 / 5000)
    wrong = maps.divergence(uniform, even, "uniform")
    assert wrong[1] > 1 and wrong[0] > maps.divergence(maps.training_rad, maps.training_weights, "itself")[0]
    uniform[:2500] = np.nan
    assert maps.divergence(uniform, even, "half of it broken")[1] > 1
    assert np.isnan(maps.divergence(np.full((5, 2), np.nan), np.full(5, 0.2), "broken")[1])


def test_one_heavy_sample_takes_the_certificate() -> None:
    generator = np.random.default_rng(4)
    log_weight = 0.3 * generator.standard_normal(3000)
    assert why_not_certified(diagnose(log_weight)) == [] and why_not_certified(diagnose(log_weight), 0.05) == []
    assert why_not_certified(diagnose(log_weight), 0.2) == ["ln q is off by more than 0.1"]
    log_weight[7] = 8.0  # as heavy as all others together: no tail that k-hat sees
    found = diagnose(log_weight)
    assert found.certified and found.ess_fraction < 0.01
    assert why_not_certified(found) == ["one sample has more than 10 % of the weight"]


def row_of(name: str, evaluations: float, ess: float, error: float, *, certified: bool = True) -> dict[str, Any]:
    return {
        "method": name, "family": Family.ODE.value, "certified": certified, "n_evaluations": {"mean": evaluations},
        "per_cpu_s": {"mean": 1000.0 / evaluations}, "pooled": {"ess_fraction": ess, "ess_fraction_error": error},
    }  # fmt: skip


def test_the_knee_is_within_two_errors_of_the_best() -> None:
    rows = [
        row_of("few", 8, 0.54, 0.01, certified=False), row_of("poor", 12, 0.515, 0.01), row_of("near", 16, 0.525, 0.01),
        row_of("good", 24, 0.53, 0.01), row_of("best", 96, 0.54, 0.01),
    ]  # fmt: skip
    assert (knee({row["method"]: row for row in rows}) or {})["method"] == "near"
    rows[-1]["pooled"]["ess_fraction_error"] = 0.02
    assert (knee({row["method"]: row for row in rows}) or {})["method"] == "poor"
    assert knee({"few": rows[0]}) is None


def outcome(n: int, cpu_s: float, fixed_cpu_s: float, error_kt: float, *reasons: str, **facts: Any) -> Outcome:
    weights = WeightDiagnostics(n, 0.5 * n, 0.5, 0.5, 0.001, 0.3, True)
    told = None if facts.get("moved") else weights
    return Outcome(n, cpu_s, cpu_s, fixed_cpu_s, 3.9, error_kt, 1.96 * error_kt, told, reasons, {"draw": cpu_s}, facts)


def test_effective_samples_of_known_outcomes() -> None:
    share, error = 0.02, 0.1
    n = independent_samples(error, share)
    assert n == pytest.approx(1 / (0.01 * 0.02 * 0.98))
    assert effective(outcome(1000, 2.0, 5.0, error), share) == {"kish": 500.0, "phi": pytest.approx(n), "counted": 500.0}
    assert effective(outcome(1000, 2.0, 5.0, error, moved=True), share)["counted"] == pytest.approx(n)
    # frequencies of a binomial with parts of equal size: the jackknife gives its error
    generator = np.random.default_rng(6)
    inside, units = generator.random(200_000) < 0.2, np.repeat(np.arange(200), 1000)
    value, found, _ = of_units(inside, np.ones(len(inside)), units)
    assert value == pytest.approx(np.log(4), abs=4 * (found or 0.0))
    assert independent_samples(found or 1.0, 0.2) == pytest.approx(len(inside), rel=4 * np.sqrt(2 / 200))


def test_the_table_of_known_ways() -> None:
    def ways(*reasons: str) -> dict[str, Any]:
        learned = [outcome(10_000, 1.0, 100.0, 0.05, *reasons) for _ in range(3)]
        md = [outcome(100, 10.0, 1.0, 0.1, moved=True) for _ in range(3)]
        found = {"flow": summary("the flow", SURROGATE, learned, TRUTH), "md-bias": summary("the MD", MD, md, TRUTH)}
        others = ("flow-annealed", "diffusion-ode", "diffusion-chains")
        return found | {key: summary(key, SURROGATE, [outcome(9, 1.0, 1.0, 9.0, "bad")] * 3, TRUTH) for key in others}

    found = ways()
    record = record_of(found, "laptop", TRUTH, "cpu")
    assert found["flow"]["effective_per_cpu_s"]["mean"] == 5000 and found["flow"]["to_1000_effective_cpu_s"]["mean"] == 100.2
    rate = independent_samples(0.1, 1 / (1 + np.exp(TRUTH[0]))) / 10
    assert found["md-bias"]["effective_per_cpu_s"]["mean"] == pytest.approx(rate)
    measured = {row["name"]: row["measured"] for row in record["targets"]}
    assert measured["best surrogate: effective samples per CPU second over those of biased MD"] == pytest.approx(5000 / rate)
    pays = record["tables"][1]["rows"][0][4]
    assert float(pays.replace(",", "")) == pytest.approx(99 / (1 / rate - 1 / 5000), rel=1e-3)
    assert all(one["holds"] for one in found["flow"]["free_energy"])
    refused = ways("k-hat above 0.7")
    assert refused["flow"]["effective_per_cpu_s"] is None and refused["flow"]["phi_effective_per_cpu_s"] is None
    assert "No surrogate is certified." in record_of(refused, "laptop", TRUTH, "cpu")["answer"]


def test_a_basin_too_small_to_be_seen_is_not_missed() -> None:
    none = Estimate(0.0, 0.0, 0.0)
    basin = Basin("C7ax", Estimate(0.0015, 0.001, 0.002), none, none, float("nan"), "missing")
    check = {"basins": [basin], "density": None, "log_q": None}
    assert missed(check, 1000.0, True) == [] and len(missed(check, 10_000.0, True)) == 1
