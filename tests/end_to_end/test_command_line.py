"""The commands as a user types them: exit codes, messages, skipping, bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mdtraj
import numpy as np
import openmm
import pytest

from hpc_molgen.run import STAGES
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.base import MolecularSystem
from tests.conftest import CommandLine, needs_gromacs


def test_help_is_fast_and_lists_every_command(command: CommandLine) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        shown = command("--help")
        times.append(time.perf_counter() - start)
    assert all(name in shown.stdout for name in ("run", "submit", "status", "check", "benchmark", "report", "presets"))
    modules = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "hpc_molgen", "--help"], capture_output=True, text=True, check=True
    ).stderr
    assert not any(f" {heavy}\n" in modules for heavy in ("torch", "openmm", "mdtraj", "numpy", "pydantic"))
    print(f"--help: best {min(times):.2f} s of {[round(t, 2) for t in times]}")


def test_check_prints_the_resolved_configuration(command: CommandLine) -> None:
    shown = command("check", "tiny", "--set", "train.n_steps=12")
    assert shown.returncode == 0 and "n_steps: 12" in shown.stdout and "friction_per_ps: 1.0" in shown.stdout


def test_check_prints_every_error(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: x\nfarm: {pressure_bar: 1.0}\ntrain: {epochs: 3}\n")
    shown = command("check", str(tmp_path / "c.yaml"))
    assert shown.returncode == 2 and "3 error(s)" in shown.stderr and "Traceback" not in shown.stderr
    assert "tip3p" in shown.stderr and "n_steps" in shown.stderr and "seed" in shown.stderr


def test_problems_of_later_stages_are_found_first(command: CommandLine, tmp_path: Path) -> None:
    settings = ["representation.name=cartoon", "representation.torsions=[phi]", "reference.bias_torsion=chi1"]
    shown = command("run", "tiny", "--out", str(tmp_path / "run"), *[p for s in settings for p in ("--set", s)])
    assert shown.returncode == 2 and "2 problem(s)" in shown.stderr and "Traceback" not in shown.stderr
    assert all(word in shown.stderr for word in ("cartoon", "chi1"))
    assert not (tmp_path / "run" / "reference").exists()


def test_ancestral_samples_without_weights(command: CommandLine, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    values = ["sample.sampler=ancestral", "sample.n_steps=50", "correct.weights=false"]
    settings = [part for value in values for part in ("--set", value)]
    for stage in ("sample", "correct"):
        shown = command("run", "tiny", "--out", str(out), "--only", stage, *settings)
        assert shown.returncode == 0, shown.stderr
    diagnostics = json.loads((out / "correct" / "diagnostics.json").read_text())
    assert diagnostics["weighted"] is False and "ess" not in diagnostics


def test_presets(command: CommandLine) -> None:
    assert "alanine-dipeptide" in command("presets").stdout
    assert "bias_torsion: phi" in command("presets", "alanine-dipeptide").stdout
    assert command("presets", "nothing").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "tiny", "--only", "cook"], "no stage 'cook'"),
        (["run", "tiny", "--only", "train", "--from", "train"], "exclude"),
        (["status", "nowhere"], "not a run directory"),
        (["run", "nothing"], "presets are"),
        (["fly"], "fly"),
        (["benchmark", "nothing"], "nothing"),
    ],
)
def test_wrong_usage_is_exit_code_2(command: CommandLine, tmp_path: Path, arguments: list[str], word: str) -> None:
    shown = command(*arguments, cwd=tmp_path)
    assert shown.returncode == 2 and word in shown.stderr and "Traceback" not in shown.stderr


def test_finished_stages_are_skipped_and_status_tells(command: CommandLine, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")}
    shown = command("run", "tiny", "--out", str(out), "--only", "farm")
    assert shown.returncode == 0 and "skipped" in shown.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*.h5")}
    rows = {row["stage"]: row["state"] for row in json.loads(command("status", str(out), "--json").stdout)}
    assert rows == dict.fromkeys(STAGES, "done") | {"report": "waiting"}
    changed = command("run", "tiny", "--out", str(out), "--only", "farm", "--set", "farm.production_ps=1")
    assert changed.returncode == 0 and "inputs have changed" in changed.stderr
    assert "done" in command("status", str(out)).stdout


def test_a_stage_without_its_inputs_says_so(command: CommandLine, tmp_path: Path) -> None:
    shown = command("run", "tiny", "--out", str(tmp_path / "run"), "--only", "train")
    assert (
        shown.returncode == 2
        and "needs the stage 'featurize', which is not finished" in shown.stderr
        and "Traceback" not in shown.stderr
    )


def test_a_truncated_file_of_an_earlier_stage_is_named(command: CommandLine, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    proposals = out / "sample" / "proposals.h5"
    proposals.write_bytes(proposals.read_bytes()[:2000])
    (out / "correct" / "done.json").unlink()
    shown = command("run", "tiny", "--out", str(out), "--only", "correct")
    assert shown.returncode == 2 and "proposals.h5" in shown.stderr and "Traceback" not in shown.stderr
    shown = command("status", str(out))
    assert "failed" in shown.stdout and "proposals.h5" in shown.stdout


def test_a_bad_structure_is_a_record_and_not_a_crash(command: CommandLine, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    shutil.rmtree(out / "farm")
    pdb = out / "correct" / "pdb" / "structure-00000.pdb"
    pdb.write_text("\n".join(line for line in pdb.read_text().splitlines() if " HB2 " not in line))
    shown = command("run", "tiny", "--out", str(out), "--only", "farm")
    assert shown.returncode == 0, shown.stderr
    records = [json.loads(line) for line in (out / "farm" / "manifest.jsonl").read_text().splitlines()]
    assert [record["state"] for record in records] == ["failed", "done", "done", "done"] and "HB2" in records[0]["error"]


def test_a_folder_that_cannot_be_written(command: CommandLine, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")  # root may write everywhere, but not below a file
    shown = command("run", "tiny", "--out", str(blocked / "run"))
    assert shown.returncode == 2 and "cannot be written" in shown.stderr and "Traceback" not in shown.stderr


def test_two_programs_on_one_run(command: CommandLine, tiny_run: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    with open(out / "lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        shown = command("run", "tiny", "--out", str(out))
    assert shown.returncode == 2 and "another hpc-molgen" in shown.stderr


def test_user_trajectories_replace_simulation(
    command: CommandLine, alanine: MolecularSystem, tiny_run: Path, tmp_path: Path
) -> None:
    """As the mdshare alanine files come: .xtc and .dcd beside a PDB."""
    walkers = [mdtraj.load(str(path)) for path in sorted((tiny_run / "reference").glob("walker-*.h5"))[:3]]
    walkers[0].save_xtc(str(tmp_path / "a.xtc"))
    walkers[1].save_dcd(str(tmp_path / "b.dcd"))
    walkers[2].save_hdf5(str(tmp_path / "c.h5"))
    walkers[0][0].save_pdb(str(tmp_path / "top.pdb"))
    names = ",".join(str(tmp_path / name) for name in ("a.xtc", "b.dcd", "c.h5"))
    settings = ["--set", f"reference.trajectories=[{names}]", "--set", f"reference.trajectory_topology={tmp_path / 'top.pdb'}"]
    out = tmp_path / "run"
    shown = command("run", "tiny", "--out", str(out), "--only", "reference", *settings)
    assert shown.returncode == 0, shown.stderr
    for number in range(3):
        found = mdtraj.load(str(out / "reference" / f"walker-{number:04d}.h5"))
        assert np.abs(found.xyz - walkers[number].xyz).max() < 1.1e-3  # the precision of .xtc
    assert command("run", "tiny", "--out", str(out), "--only", "featurize", *settings).returncode == 0


def test_trajectory_of_another_molecule_is_refused(command: CommandLine, alanine: MolecularSystem, tmp_path: Path) -> None:
    short = mdtraj.Trajectory(np.zeros((200, 10, 3)), alanine.topology.subset(range(10)))
    short.save_hdf5(str(tmp_path / "short.h5"))
    shown = command(
        "run",
        "tiny",
        "--out",
        str(tmp_path / "run"),
        "--only",
        "reference",
        "--set",
        f"reference.trajectories=[{tmp_path / 'short.h5'}]",
    )
    assert shown.returncode == 2 and "has 10 atoms" in shown.stderr and "22" in shown.stderr and "Traceback" not in shown.stderr


@pytest.mark.parametrize("engine", ["openmm", pytest.param("gromacs", marks=needs_gromacs)])
def test_farm_in_explicit_water(command: CommandLine, tiny_run: Path, tmp_path: Path, engine: str) -> None:
    """The published protocol (TIP3P, NPT at 298 K and 1 bar) at a length that a test can afford."""
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    values = {"solvent": "tip3p", "box_nm": 2.4, "pressure_bar": 1.0, "temperature_kelvin": 298.0, "n_replicas": 2}
    values |= {"engine": engine, "minimise_iterations": 20, "equilibration_ps": 0.1}
    values |= {"production_ps": 0.1, "save_every_ps": 0.02}
    settings = [part for key, value in values.items() for part in ("--set", f"farm.{key}={value}")]
    shown = command("run", "tiny", "--out", str(out), "--only", "farm", *settings)
    assert shown.returncode == 0, shown.stderr
    found = mdtraj.load(str(out / "farm" / "replica-00000.h5"))
    assert found.n_atoms == 22 and len(found) == 5 and np.isfinite(found.xyz).all()
    assert np.ptp(found.xyz, axis=1).max() < 2  # whole, wherever the walls of the box are
    record = next(json.loads(line) for line in (out / "farm" / "ledger-00000.jsonl").open() if '"done"' in line)
    assert record["platform"].startswith("GROMACS 2") if engine == "gromacs" else record["platform"] == "CPU"
    if engine == "gromacs":
        env = os.environ | {"PATH": str(Path(sys.executable).parent)}
        shutil.rmtree(out / "farm")
        shown = command("run", "tiny", "--out", str(out), "--only", "farm", *settings, env=env)
        assert shown.returncode == 2 and "there is no executable gmx" in shown.stderr, shown.stderr


def test_mpi_launcher_without_mpi_is_explained(command: CommandLine, tmp_path: Path) -> None:
    blocker = tmp_path / "mpi4py"
    blocker.mkdir()
    (blocker / "__init__.py").write_text("raise ImportError('blocked for this test')\n")
    environment = os.environ | {"PMI_SIZE": "2", "PYTHONPATH": str(tmp_path)}
    shown = command("run", "tiny", "--out", str(tmp_path / "run"), env=environment)
    assert shown.returncode == 2 and "hpc-molgen[mpi]" in shown.stderr and "Traceback" not in shown.stderr


def test_a_force_unknown_to_the_batched_engine_is_named_and_openmm_runs(
    command: CommandLine, alanine: MolecularSystem, tmp_path: Path
) -> None:
    system = openmm.XmlSerializer.deserialize(alanine.system_xml)
    force = openmm.CustomCentroidBondForce(2, "0.1*distance(g1,g2)")
    for group in ([0, 1], [20, 21]):
        force.addGroup(group)
    force.addBond([0, 1], [])
    system.addForce(force)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    (tmp_path / "a.pdb").write_text(pdb_text(alanine.topology, alanine.positions_nm, []))
    values = [f"system.{key}={tmp_path / name}" for key, name in (("pdb", "a.pdb"), ("system_xml", "system.xml"))]
    values += ["system.name=pdb-xml", "reference.bias_torsion=null", "reference.production_ps=0.2"]
    line = ["run", "tiny", "--out", str(tmp_path / "run"), "--only", "reference"]
    line += [part for value in values for part in ("--set", value)]
    shown = command(*line)
    assert shown.returncode == 0, shown.stderr
    assert "CustomCentroidBondForce" in shown.stderr and "OpenMM computes instead" in shown.stderr
    asked = command(*line, "--set", "reference.platform=batched")
    assert asked.returncode == 2 and "cannot run in the batched engine" in asked.stderr
    assert "CustomCentroidBondForce" in asked.stderr and "Traceback" not in asked.stderr
