"""The suites of the batched engine at their smallest size: complete records. Of speeds, ratios alone are judged, by floors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hpc_molgen.dynamics.kernel import built_variants
from hpc_molgen.efficiency.suites.tempering import free_energy
from hpc_molgen.errors import InputError
from hpc_molgen.workers import available_cores
from tests.conftest import CommandLine, needs_gromacs

RATES = (("per_cpu_s", "ratio_cpu"), ("per_wall_s", "ratio_wall"))
FLOORS = Path(__file__).resolve().parents[2] / "benchmarks" / "floors.yaml"
NS_A_DAY = (("ns_per_day_core", "ratio_cpu"), ("ns_per_day_wall", "ratio_wall"))


def run_smoke(command: CommandLine, suite: str, out: Path) -> tuple[dict[str, Any], str]:
    shown = command("benchmark", suite, "--size", "smoke", "--out", str(out))
    assert shown.returncode == 0, shown.stderr
    record = json.loads((out / f"{suite}-smoke.json").read_text())
    assert record["command"].startswith(f"hpc-molgen benchmark {suite} --size smoke")
    assert record["question"] and record["answer"] and record["costs"] and record["provenance"]["packages"]["openmm"]
    for row in record["targets"]:
        assert {"name", "target", "measured", "reached"} <= row.keys()
    assert any("GPU" in text for text in [*record["notes"], *(table["caption"] for table in record["tables"])])
    if suite in yaml.safe_load(FLOORS.read_text()) and built_variants():
        guard = command("benchmark", "guard", str(FLOORS), str(out / f"{suite}-smoke.json"))
        print(guard.stdout)
        assert guard.returncode == 0, guard.stdout + guard.stderr
    return record, (out / f"{suite}-smoke.md").read_text()


def check_speeds(speeds: dict[str, Any], names: tuple[tuple[str, str], ...], n_rounds: int) -> None:
    for row in speeds.values():
        for rate, ratio in names:
            own, base = row[rate]["values"], speeds[row["yardstick"]][rate]["values"]
            assert len(own) == n_rounds and all(value > 0 and math.isfinite(value) for value in own)
            np.testing.assert_allclose(row[ratio]["values"], np.array(own) / base)
            np.testing.assert_allclose(row[ratio]["mean"], np.mean(row[ratio]["values"]))


def test_energies(command: CommandLine, tmp_path: Path) -> None:
    record, text = run_smoke(command, "energies", tmp_path)
    speeds, agreement = record["results"]["speeds"], record["results"]["agreement"]
    evaluators = {f"torch eager {dtype}" for dtype in ("float32", "float64")}
    evaluators |= {f"kernel {variant} {dtype}" for variant in built_variants() for dtype in ("float32", "float64")}
    assert agreement.keys() == evaluators
    if built_variants() and available_cores() > 1:
        evaluators |= {f"kernel {built_variants()[0]} {dtype} all cores" for dtype in ("float32", "float64")}
    assert speeds.keys() == {f"{name} {kind}" for name in {*evaluators, "openmm"} for kind in ("energies", "forces")}
    check_speeds(speeds, RATES, n_rounds=3)
    energy, force = {"float64": 1e-9, "float32": 1e-3}, {"float64": 1e-12, "float32": 1e-4}
    for row in agreement.values():
        for kelvin in ("300", "600"):
            assert 0 < row[kelvin]["energy_kj_mol"] <= energy[row["dtype"]]
            assert 0 < row[kelvin]["force_relative_rms"] <= force[row["dtype"]]
    many = record["results"]["many"]
    assert many["wall_s"]["mean"] > 0 and many["openmm_loop_wall_s_scaled"]["mean"] > 0 and "scaled from" in text
    assert len(record["targets"]) == 8 and "OpenMM Reference, loop" in text


def test_md(command: CommandLine, tmp_path: Path) -> None:
    record, text = run_smoke(command, "md", tmp_path)
    results = record["results"]
    engines = ("reference", "cpu", "batched float32", "batched float64")
    expected = {f"{s} {p} {e}" for s in ("implicit", "vacuum") for p in ("1fs", "2fs", "3fs") for e in engines}
    assert results["speeds"].keys() - {"vacuum 1fs gromacs"} == expected
    check_speeds(results["speeds"], NS_A_DAY, n_rounds=3)
    for label, row in results["speeds"].items():
        assert 100 < row["temperature"]["kelvin"] < 600, label  # some hundred steps: nothing exploded or froze
    assert {row["n_copies"] for row in results["batches"].values()} == {1, 4, 16, 64, 256}
    check_speeds(results["batches"], RATES, n_rounds=2)
    if available_cores() > 1:
        ratio = results["processes"]["ratio_wall"]
        together, alone = (np.array(results["processes"][name]["values"]) for name in ("together", "alone"))
        assert ratio["n"] == 3
        np.testing.assert_allclose(ratio["values"], together / alone)
    assert len(record["targets"]) == 5 - (available_cores() == 1) and "OpenMM CPU, 1 thread, pinned" in text


@needs_gromacs
def test_gromacs_has_the_same_energy(tmp_path: Path) -> None:
    from hpc_molgen.config import SystemConfig
    from hpc_molgen.efficiency.suites.gromacs import AGREEMENT_KJ_MOL, Gromacs
    from hpc_molgen.systems.registry import load_system

    system = load_system(SystemConfig(name="alanine-dipeptide-vacuum"))
    noise = np.random.default_rng(3).standard_normal(system.positions_nm.shape)
    gromacs = Gromacs("gmx", system, system.positions_nm + 0.003 * noise, tmp_path, n_steps=200, seed=5)
    assert gromacs.error_kj_mol <= AGREEMENT_KJ_MOL
    with pytest.raises(InputError, match="GBSAOBCForce"):
        implicit = load_system(SystemConfig())
        Gromacs("gmx", implicit, implicit.positions_nm, tmp_path, n_steps=200, seed=5)


def test_tempering(command: CommandLine, tmp_path: Path) -> None:
    shown = command("benchmark", "tempering", "--size", "smoke", "--out", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    record = json.loads((tmp_path / "tempering-smoke.json").read_text())
    for result in record["results"].values():
        kelvin, energy = result["temperatures_kelvin"], [row["value"] for row in result["mean_potential_kj_mol"]]
        assert kelvin[0] == 300 and kelvin == sorted(kelvin) and energy == sorted(energy)
        assert all(0 < share < 1 for share in result["acceptance"])
        for row in result["dF_kt"]:
            assert None in row.values() or row["low"] < row["value"] < row["high"]
        assert result["ns_aggregate"] == pytest.approx(4 * 4 * 0.002)
    assert record["results"]["main"]["protocol"]["biased"] and not record["results"]["check"]["protocol"]["biased"]
    assert "full passages" in (tmp_path / "tempering-smoke.md").read_text()


def test_free_energy_of_known_shares() -> None:
    inside, total = np.array([0.1, 0.2, 0.3]), np.ones(3)
    found = free_energy(inside, total)
    assert found["value"] == pytest.approx(np.log(4))
    # jackknife: without one ladder p is 0.25, 0.2 or 0.15; interval by Student's 97.5 % quantile of 2 degrees of freedom
    left_out = np.log([3, 4, 17 / 3])
    error = np.sqrt(2 / 3 * ((left_out - left_out.mean()) ** 2).sum())
    assert found["half_width"] == pytest.approx(4.302653 * error, rel=1e-6)
    assert free_energy(5 * inside, 5 * total) == pytest.approx(found)  # weights have no scale
    assert free_energy(np.zeros(3), total)["value"] is None
