"""Farms as users start them: the same replicas however they are launched, and none lost or changed whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mdtraj
import numpy as np
import pytest

from hpc_molgen.config import RunConfig
from hpc_molgen.efficiency.suites.farm_scaling import plan_scaling, scaling_results
from hpc_molgen.ensemble import Ensemble, read_ensemble, write_ensemble
from hpc_molgen.farm import ledger
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import set_torsion, torsion_by_name
from hpc_molgen.workers import available_cores
from tests.conftest import CommandLine

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
needs_mpi = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec here: pip install 'hpc-molgen[mpi]'")
FLOORS = Path(__file__).resolve().parents[2] / "benchmarks" / "floors.yaml"
N = 6


@pytest.fixture(scope="module")
def starts(alanine: MolecularSystem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starts")
    psi = torsion_by_name(alanine.topology, "psi")
    for index in range(N):
        positions = set_torsion(alanine.topology, alanine.positions_nm, psi, index)
        (folder / f"{index}.pdb").write_text(pdb_text(alanine.topology, positions, []))
    (folder / "weights.csv").write_text("file,weight\n2.pdb,3\n")
    return folder


def settings(**values: object) -> list[str]:
    given = {"platform": "Reference", "n_replicas": N, "production_ps": 4, "minimise_iterations": 20} | values
    return [part for key, value in given.items() for part in ("--set", f"farm.{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def undisturbed(command: CommandLine, starts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    ended = command("farm", "tiny", "--starts", str(starts), "--out", str(out), *settings())
    assert ended.returncode == 0, ended.stderr
    assert "6 of 6 replicas done, 0.0252 ns, " in ended.stdout and str(out / "farm" / "manifest.jsonl") in ended.stdout
    return out


def assert_same(first: Path, second: Path, system: MolecularSystem) -> None:
    manifests = [[json.loads(line) for line in (run / "farm" / "manifest.jsonl").open()] for run in (first, second)]
    names = ("replica", "pdb", "state", "attempts", "frames", "minimised_kj_mol", "log_weight", "platform")
    assert [[row[name] for name in names] for row in manifests[0]] == [[row[name] for name in names] for row in manifests[1]]
    assert len(manifests[0]) == N
    for index in range(N):
        one, other = (read_ensemble(run / "farm" / f"replica-{index:05d}.h5", system) for run in (first, second))
        assert np.array_equal(one.positions_nm, other.positions_nm) and np.array_equal(one.reduced_energy, other.reduced_energy)


@needs_mpi
@pytest.mark.parametrize("n_ranks", [1, 3])
def test_ranks(
    alanine: MolecularSystem, command: CommandLine, starts: Path, undisturbed: Path, tmp_path: Path, n_ranks: int
) -> None:
    out = tmp_path / "run"
    line = [str(MPIEXEC), "-n", str(n_ranks), sys.executable, "-m", "hpc_molgen", "farm", "tiny"]
    line += ["--starts", str(starts), "--out", str(out), *settings()]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    assert_same(undisturbed, out, alanine)
    n_workers = min(available_cores(), N) if n_ranks == 1 else n_ranks  # a single rank has the machine's cores
    shown = command("status", str(out))
    assert "6 of 6 replicas done, 0 failed" in shown.stdout and f"by {n_workers} workers, busy" in shown.stdout
    shown = command("status", str(out), "--json")
    (row,) = (row for row in json.loads(shown.stdout) if row["stage"] == "farm")
    assert row["state"] == "done" and row["farm"]["done"] == N and row["farm"]["ns_per_day"] > 0


def test_jobs_that_share_a_farm(
    alanine: MolecularSystem, command: CommandLine, starts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Two jobs of an array; the start after them merges."""
    out = tmp_path / "run"
    line = [sys.executable, "-m", "hpc_molgen", "farm", "tiny", "--starts", str(starts), "--out", str(out), *settings()]
    jobs = [subprocess.Popen([*line, "--share", f"{number}/2"], stderr=subprocess.PIPE, text=True) for number in range(2)]
    for job in jobs:
        _, text = job.communicate(timeout=240)
        assert job.returncode == 0, text
    ledgers = {path.name for path in (out / "farm").glob("ledger-*.jsonl")}  # of both, whoever was first and took most
    assert ledgers == {"ledger-00000.jsonl", "ledger-00001.jsonl"}
    assert not (out / "farm" / "manifest.jsonl").exists()
    assert len(list((out / "farm" / "leases").glob("*.done"))) == len(list((out / "farm" / "leases").glob("block-*"))) == N
    merged = command("farm", str(out))
    assert merged.returncode == 0, merged.stderr
    assert_same(undisturbed, out, alanine)


def test_a_farm_that_has_no_time_stops_and_goes_on(
    alanine: MolecularSystem, command: CommandLine, starts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, word = tmp_path / "run", tmp_path / "word"
    env = os.environ | {"HPC_MOLGEN_REQUEUE": str(word)}
    arguments = ["farm", "tiny", "--starts", str(starts), "--out", str(out)]
    stopped = command(*arguments, *settings(minutes=0.1), env=env)  # less than the ten seconds that it wants to have left
    assert stopped.returncode == 130, stopped.stderr
    assert "of the time limit, and a chunk takes" in stopped.stderr and "goes on where it was" in stopped.stderr
    assert word.read_text() == "SIGUSR2\n", "its job goes back into the queue"
    assert "stopped: " in command("status", str(out)).stdout
    assert command(*arguments, "--resume", *settings(), env=env).returncode == 0
    assert_same(undisturbed, out, alanine)


def test_messages(command: CommandLine, starts: Path, undisturbed: Path, tmp_path: Path) -> None:
    none = command("farm", "tiny", "--starts", str(starts), "--out", str(tmp_path / "run"), "--resume", *settings())
    assert none.returncode == 2 and "there is no farm that could go on" in none.stderr
    empty = command("farm", "tiny", "--starts", str(tmp_path), "--out", str(tmp_path / "run"), *settings())
    assert empty.returncode == 2 and "there is no structure to start from" in empty.stderr and "Traceback" not in empty.stderr
    wrong = command("farm", "tiny", "--starts", str(starts), "--out", str(tmp_path / "other"), *settings(observables=["chi1"]))
    assert wrong.returncode == 2 and "other names are: rmsd, rg, q" in wrong.stderr and "Traceback" not in wrong.stderr
    assert "leave out --starts" in command("farm", str(undisturbed), "--starts", str(starts)).stderr
    again = command("farm", str(undisturbed))
    assert again.returncode == 0 and "skipped" in again.stderr and "6 of 6 replicas done" in again.stdout


def test_an_ensemble_with_weights(alanine: MolecularSystem, command: CommandLine, tmp_path: Path) -> None:
    positions = np.repeat(alanine.positions_nm[None], 5, axis=0)
    ensemble = Ensemble.create(alanine, positions, log_weight=np.arange(5.0))
    write_ensemble(tmp_path / "given.h5", ensemble, alanine, seed=1)
    out = tmp_path / "run"
    values = settings(platform="batched", n_replicas=5, observables=["phi", "rg"])
    ended = command("farm", "tiny", "--starts", str(tmp_path / "given.h5"), "--out", str(out), *values)
    assert ended.returncode == 0, ended.stderr
    found = read_ensemble(out / "farm" / "replica-00003.h5", alanine)
    assert (found.log_weight == 3.0).all() and len(mdtraj.load(str(out / "farm" / "replica-00003.h5"))) == len(found)
    assert sorted(ledger.standing(out / "farm").final) == list(range(5))


def test_further_rounds(alanine: MolecularSystem, command: CommandLine, starts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["farm", "tiny", "--starts", str(starts), "--out", str(out)]
    refused = command(*arguments, "--share", "0/2", *settings(rounds=3))
    assert refused.returncode == 2 and "cannot run several rounds" in refused.stderr
    ended = command(*arguments, *settings(rounds=3, platform="batched", production_ps=8))
    assert ended.returncode == 0, ended.stderr
    assert "18 of 18 replicas done" in ended.stdout and "farm: round 3 starts 6 replicas from" in ended.stderr
    records = [json.loads(line) for line in (out / "farm" / "manifest.jsonl").open()]
    assert [record["replica"] for record in records] == list(range(18))
    for record in records[6:]:
        name, row = record["pdb"].split(" frame ")
        assert int(name[8:13]) < record["replica"] // 6 * 6, "a frame of an earlier round"
        start = read_ensemble(out / "farm" / name, alanine).positions_nm[int(row)]
        first = read_ensemble(out / "farm" / f"replica-{record['replica']:05d}.h5", alanine)
        moved = mdtraj.rmsd(
            mdtraj.Trajectory(first.positions_nm[:1], alanine.topology), mdtraj.Trajectory(start[None], alanine.topology)
        )
        assert moved[0] < 0.2
    for first in (6, 12):
        assert sum(np.exp(record["log_weight"]) for record in records[first : first + 6]) == pytest.approx(1.0)
    again = command("farm", str(out))
    assert again.returncode == 0 and "18 of 18 replicas done" in again.stdout


def test_replicas_that_all_fail_are_one_message(command: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "starts"
    folder.mkdir()
    (folder / "bad.pdb").write_text("ATOM      1  C   UNK A   1       0.000   0.000   0.000  1.00  0.00           C\nEND\n")
    ended = command("farm", "tiny", "--starts", str(folder), "--out", str(tmp_path / "run"), *settings())
    assert ended.returncode == 2 and "all 1 replicas failed" in ended.stderr and "do not match the 22" in ended.stderr


@needs_mpi
@pytest.mark.slow
def test_farms_survive_random_faults(command: CommandLine, tmp_path: Path) -> None:
    ended = command("benchmark", "farm-faults", "--size", "smoke", "--out", str(tmp_path), timeout=290)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "farm-faults-smoke.json").read_text())
    assert record["results"]["problems"] == [] and sum(record["results"]["faults"].values()) >= 5


def test_long_steps_are_refused_before_they_cost_anything(command: CommandLine, starts: Path, tmp_path: Path) -> None:
    ended = command("farm", "tiny", "--starts", str(starts), "--out", str(tmp_path / "run"), "--set", "farm.timestep_fs=20")
    assert ended.returncode == 2 and "has hydrogen atoms, for which at most 5 fs" in ended.stderr, ended.stderr


@needs_mpi
def test_benchmark_farm(command: CommandLine, tmp_path: Path) -> None:
    ended = command("benchmark", "farm", "--size", "smoke", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "farm-smoke.json").read_text())["results"]
    assert (results["engines"] is None) == (shutil.which("gmx") is None)
    if results["engines"]:
        assert all(speed["mean"] > 0 for speed in results["engines"]["ns_per_day"].values())
    assert results["queue"]["distinct"] == results["queue"]["records"] == 2000 and results["pairs_percent"]["cpu_s"]["n"] == 6
    assert all(part["ns"] > 0 and part["cpu_s"] > 0 for part in results["rounds"][0].values())
    for kind, replicas in (("strong", [2, 2]), ("weak", [2, 4])):
        part, n = results["scaling"][kind], min(2, available_cores())
        assert part["ranks"] == [1, 2][:n] and part["replicas"] == replicas[:n] and part["efficiency"][0]["values"] == [1.0]
        assert all(value["mean"] > 0 for value in part["efficiency"]) and len(part["ns_per_day"]) == n
    assert "2,000 replicas that do nothing pass the queue" in (tmp_path / "farm-smoke.md").read_text()
    guard = command("benchmark", "guard", str(FLOORS), str(tmp_path / "farm-smoke.json"))
    assert guard.returncode == 0, guard.stdout + guard.stderr


def test_farms_of_strong_and_weak_scaling() -> None:
    two, many = plan_scaling(2, 12), plan_scaling(24, 12)
    assert [(case.key, case.n_ranks, case.n_replicas) for case in two.cases.values()] == [
        ("one", 1, 12), ("two", 2, 24), ("strong 2", 2, 12)
    ]  # fmt: skip
    assert two.strong[0] is two.weak[0], "what runs on one rank serves both"
    assert [(case.n_ranks, case.n_replicas) for case in many.strong] == [(n, 96) for n in (1, 2, 4, 8, 16, 24)]
    assert [(case.n_ranks, case.n_replicas) for case in many.weak] == [(n, 12 * n) for n in (1, 2, 4, 8, 16, 24)]
    assert many.n_replicas == 288 and plan_scaling(1, 12).cases.keys() == {"one"}
    assert [case.n_ranks for case in plan_scaling(1024, 12).strong][-1] == 256
    seconds = {"one": 10.0, "two": 12.5, "strong 2": 8.0}
    rounds = [
        {key: {"wall_s": s * slow, "ns": two.cases[key].n_replicas * 0.1} for key, s in seconds.items()} for slow in (1, 3)
    ]
    found = scaling_results(rounds, two)
    assert found["strong"]["efficiency"][1]["values"] == pytest.approx([10 / 8 / 2] * 2)
    assert found["weak"]["efficiency"][1]["values"] == pytest.approx([10 / 12.5] * 2)
    assert found["weak"]["ns_per_day"][0]["values"] == pytest.approx([1.2 / 10 * 86_400, 1.2 / 30 * 86_400])


def test_the_defaults_fit_together() -> None:
    RunConfig.model_validate({"farm": {"hydrogen_mass_amu": 3, "timestep_fs": 4}})
    for farm, message in (
        ({"platform": "batched", "restraint_kj_mol_nm2": 100}, "knows no restraints"),
        ({"restraint_kj_mol_nm2": 100, "equilibration_ps": 0}, "which have no length"),
        ({"pressure_bar": 1}, "needs explicit solvent"),
    ):
        with pytest.raises(ValueError, match=message):
            RunConfig.model_validate({"farm": farm})
