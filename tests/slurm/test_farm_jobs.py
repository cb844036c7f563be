"""The farm on a real Slurm cluster: ranks on two nodes that are told to leave, and an array of jobs that share one farm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cluster import Cluster, wait_for
from jobs import logs, small_config, status, submit, write_site

from hpc_molgen.config import SystemConfig
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import set_torsion, torsion_by_name

Command = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slurm
N = 6


def write_starts(folder: Path) -> Path:
    folder.mkdir()
    system = load_system(SystemConfig())
    psi = torsion_by_name(system.topology, "psi")
    for index in range(N):
        positions = set_torsion(system.topology, system.positions_nm, psi, index)
        (folder / f"{index}.pdb").write_text(pdb_text(system.topology, positions, []))
    return folder


def events(out: Path, name: str) -> list[dict[str, object]]:
    records = [json.loads(line) for path in sorted(out.glob("farm/ledger-*.jsonl")) for line in path.read_text().splitlines()]
    return [record for record in records if record["event"] == name]


def test_ranks_on_two_nodes_and_an_array_make_the_same_replicas(cluster: Cluster, command: Command, tmp_path: Path) -> None:
    starts = json.dumps(str(write_starts(tmp_path / "starts")))
    config = small_config(
        tmp_path, f"farm.starts={starts}", f"farm.n_replicas={N}", "farm.production_ps=80", "farm.chunk_s=0.1"
    )
    by_ranks, by_jobs = tmp_path / "by ranks", tmp_path / "by jobs"

    job = submit(command, cluster, config, write_site(tmp_path, nodes=2), by_ranks, "--only", "farm")["farm"]
    wait_for(lambda: events(by_ranks, "chunk"), f"the first chunk:\n{logs(by_ranks)}")
    cluster.control("scancel", "--signal=USR2", job)
    wait_for(lambda: cluster.restarts(job) == 1, f"a requeue:\n{logs(by_ranks)}")
    shares = write_site(tmp_path, stages={"farm": {"array": 2}})
    jobs = submit(command, cluster, config, shares, by_jobs, "--only", "farm")  # meanwhile
    assert list(jobs) == ["farm", "farm-merge"]

    assert cluster.wait(job) == "COMPLETED", logs(by_ranks)
    for number in jobs.values():
        assert cluster.wait(number) == "COMPLETED", logs(by_jobs)
    for out in (by_ranks, by_jobs):
        rows, text = status(cluster, command, out)
        assert rows["farm"]["state"] == "done" and f"{N} of {N} replicas done, 0 failed" in text
        assert sorted(str(record["replica"]) for record in events(out, "done")) == [str(index) for index in range(N)]
    system = load_system(SystemConfig())
    for index in range(N):
        one, other = (read_ensemble(out / "farm" / f"replica-{index:05d}.h5", system) for out in (by_ranks, by_jobs))
        assert np.array_equal(one.positions_nm, other.positions_nm)
    # both jobs of the array took part, and the ranks of both nodes went on where they were
    assert len(list((by_jobs / "farm" / "leases").glob("*.done"))) == N and len(list(by_jobs.glob("farm/ledger-*.jsonl"))) == 2
    gained = sum(float(str(record["gained"])) for record in events(by_ranks, "chunk"))
    assert gained < N * 1.01, "no chunk was made twice"
