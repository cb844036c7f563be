"""What the tests of this folder share: a run small enough for a busy machine, its site files, its jobs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import Cluster, wait_for

from hpc_molgen.config import dump_config, load_config
from hpc_molgen.run import STAGES, Run

Command = Callable[..., subprocess.CompletedProcess[str]]
# enough for a surrogate that runs, not for one that is right
SMALL = [
    "reference.platform=Reference", "reference.starts=given", "reference.bias_torsion=null", "reference.production_ps=1",
    "reference.equilibration_ps=0.1", "train.n_steps=20", "train.log_every=5", "train.validate_every=1000",
    "sample.n_samples=100", "sample.shard_size=50", "sample.n_steps=2", "correct.n_structures=4", "farm.n_replicas=4",
    "farm.production_ps=0.5", "farm.minimise_iterations=20", "farm.platform=Reference",
]  # fmt: skip


def small_config(folder: Path, *assignments: str) -> Path:
    """Write the configuration of a small run."""
    path = folder / "small.yaml"
    path.write_text(dump_config(load_config("tiny", [*SMALL, *assignments])))
    return path


def write_site(where: Path, **values: object) -> Path:
    """Write a site file; jobs of the tests end within ten minutes and use one thread."""
    path = where / f"site-{len(list(where.glob('site-*')))}.yaml"
    setup = ["export OMP_NUM_THREADS=1", *values.pop("setup", [])]  # type: ignore[misc]
    path.write_text(json.dumps({"minutes": 10, "setup": setup} | values))
    return path


def submit(command: Command, cluster: Cluster, config: Path, site: Path, out: Path, *options: str) -> dict[str, str]:
    """Submit a run; return the number of each job by its name."""
    ended = command("submit", str(config), "--site", str(site), "--out", str(out), *options, env=cluster.env)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return dict(re.findall(r"^([\w-]+) +job (\d+)", ended.stdout, re.MULTILINE))


def sbatch(cluster: Cluster, *arguments: str) -> str:
    """Submit a script with plain sbatch, with this Python's hpc-molgen on the path; return the job's number."""
    ended = subprocess.run(
        ["sbatch", "--parsable", *arguments], env=script_env(cluster), capture_output=True, text=True, check=True
    )
    return ended.stdout.strip()


def script_env(cluster: Cluster, **more: str) -> dict[str, str]:
    """Environment from which plain scripts are submitted."""
    path = f"{Path(sys.executable).parent}:{cluster.env['PATH']}"
    return {name: value for name, value in cluster.env.items() if name != "MASTER_PORT"} | {
        "PATH": path, "OMP_NUM_THREADS": "1"
    } | more  # fmt: skip


def status(cluster: Cluster, command: Command, out: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the rows of `hpc-molgen status` by stage, and what it prints."""
    rows = json.loads(command("status", str(out), "--json", env=cluster.env).stdout)
    return {row["stage"]: row for row in rows}, command("status", str(out), env=cluster.env).stdout


def step(out: Path) -> int:
    """Return the last step that training has logged; 0 before the first."""
    path = out / "train" / "metrics.jsonl"
    steps = re.findall(r'"step": (\d+)', path.read_text()) if path.is_file() else []
    return int(steps[-1]) if steps else 0


def wait_for_step(out: Path, beyond: int) -> None:
    """Wait until training has come further."""
    wait_for(lambda: step(out) > beyond, f"training beyond step {beyond}:\n{logs(out)}", 180)


def logs(out: Path) -> str:
    """Return the ends of all logs of a run."""
    paths = [*sorted(out.glob("submitit/*/*_log.out")), *sorted(out.glob("logs/*"))]
    return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in paths)


def undone(out: Path) -> list[str]:
    """Return the stages that are not done."""
    run = Run.open(out)
    return [stage for stage in STAGES if not run.is_done(stage)]


def processes_of(job: str, rank: int) -> list[int]:
    """Return the processes of a job's rank."""
    marks = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode(), b"SUBMITIT_EXECUTOR=slurm"}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            if marks <= set((process / "environ").read_bytes().split(b"\0")) and b"submitit.core._submit" in command:
                found.append(int(process.name))
        except OSError:
            continue
    return [number for number in found if number != os.getpid()]
