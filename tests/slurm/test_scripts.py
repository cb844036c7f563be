"""The plain scripts of slurm/ on a real Slurm cluster: with and without a container, requeued, as an array."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, wait_for
from jobs import Command, logs, sbatch, script_env, small_config, status, undone, wait_for_step

from hpc_molgen.efficiency.suites import SUITES
from hpc_molgen.launch.site import SITES
from hpc_molgen.run import Run

SCRIPTS = SITES.parent
FUNCTIONS = SCRIPTS.parent / "hpc_molgen" / "launch" / "job.sh"
pytestmark = pytest.mark.slurm

# It runs the command that follows the image, and leaves word of how it was called. A real image comes with the tests of
# the containers; what is tried here is that every script starts its ranks through it.
_APPTAINER = """\
#!/bin/bash
printf '%s\\n' "$*" >>"{calls}"
while [ "$1" != "{image}" ]; do shift; done
shift
exec "$@"
"""


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """Variables that put a stand-in for apptainer on the path, and name an image."""
    stand_in = tmp_path / "bin" / "apptainer"
    stand_in.parent.mkdir()
    stand_in.write_text(_APPTAINER.format(calls=tmp_path / "calls", image=tmp_path / "image.sif"))
    stand_in.chmod(0o755)
    (tmp_path / "image.sif").touch()
    return {
        "HPC_MOLGEN_CONTAINER": str(tmp_path / "image.sif"),
        "HPC_MOLGEN_CONTAINER_OPTIONS": "--bind=/scratch --cleanenv=no",
    }


def test_the_scripts_run_the_pipeline_as_dependent_jobs(
    cluster: Cluster, command: Command, tmp_path: Path, container: dict[str, str]
) -> None:
    config, out = small_config(tmp_path, "train.n_steps=1500"), tmp_path / "a run"
    env = script_env(cluster, **container, REFERENCE="--array=0-1", TRAIN="--nodes=2", SAMPLE="--array=3-4", FARM="--ntasks=2")
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    line = [str(SCRIPTS / "pipeline.sh"), str(config), str(out), "--set", "train.n_steps=900"]
    ended = subprocess.run(line, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    jobs = dict(re.findall(r"^(\w+): job (\d+)", ended.stdout, re.MULTILINE))
    assert list(jobs) == ["reference", "train", "sample", "farm", "report"]

    wait_for_step(out, 0)
    rows, text = status(cluster, command, out)
    assert (rows["train"]["state"], rows["farm"]["state"]) == ("running", "queued") and rows["reference"]["state"] == "done"
    assert f"job {jobs['train']}: running on 127.0.0.[2-3]" in text and "train: starts" in text
    cluster.control("scancel", "--signal=USR2", jobs["train"])
    assert cluster.wait(jobs["sample"]) == "COMPLETED", logs(out)
    assert cluster.restarts(jobs["train"]) == 1 and cluster.state(jobs["train"]) == "COMPLETED"
    assert cluster.wait(jobs["farm"]) == "COMPLETED", logs(out)
    cluster.control("scancel", jobs["report"])  # the pipeline of `submit` has one
    assert undone(out) == ["report"], logs(out)
    run = Run.open(out)
    assert run.config.train.n_steps == 900 and run.details("train")["ranks"] == 2
    calls = (tmp_path / "calls").read_text()
    prefix = f"exec --bind={out} --bind=/scratch --cleanenv=no {tmp_path}/image.sif hpc-molgen run {config} --out {out}"
    for options, ranks in (("--only reference --share 0/2", 1), ("--only reference --share 1/2", 1), ("--to train", 4)):
        assert calls.count(f"{prefix} {options} --set train.n_steps=900\n") == ranks, calls
    assert calls.count(f"{prefix} --only sample --share 1/2 ") == 1 and calls.count(f"{prefix} --from sample --to farm ") == 2


def test_benchmark_sbatch_runs_a_suite(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = sbatch(cluster, f"--output={log}", str(SCRIPTS / "benchmark.sbatch"), "energies", str(tmp_path), "--size", "smoke")
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    assert (tmp_path / "energies-smoke.json").is_file()


def test_an_array_runs_one_suite_a_job(cluster: Cluster, tmp_path: Path) -> None:
    """Two cheap ones, of which one is warned and goes on, with ranks that they do not use; and a number without a suite."""
    names = list(SUITES)
    chosen = {name: names.index(name) for name in ("energies", "ramachandran")}
    array = f"--array={','.join(map(str, chosen.values()))},{len(names)}"
    options = [array, "--ntasks-per-node=2", f"--output={tmp_path}/log-%a"]
    job = sbatch(cluster, *options, str(SCRIPTS / "benchmark.sbatch"), str(tmp_path / "results"), "--size", "smoke")
    logs_of = {name: tmp_path / f"log-{number}" for name, number in chosen.items()}
    warned, number = logs_of["ramachandran"], chosen["ramachandran"]
    wait_for(lambda: warned.is_file() and "reference MD" in warned.read_text(), "the first stage")
    cluster.control("scancel", "--signal=USR2", f"{job}_{number}")
    assert cluster.wait(job) == "COMPLETED FAILED", [log.read_text() for log in logs_of.values()]
    assert cluster.restarts(f"{job}_{number}") == 1 and "goes back into the queue" in warned.read_text()
    for name, number in chosen.items():
        assert cluster.state(f"{job}_{number}") == "COMPLETED", logs_of[name].read_text()
        assert (tmp_path / "results" / f"{name}-smoke.json").is_file()
        text = logs_of[name].read_text()
        assert f"suite {number} is {name}" in text and text.count(f"/{name}-smoke.json\n") == 1, text
    beyond = (tmp_path / f"log-{len(names)}").read_text()
    assert f"there is no suite {len(names)}, only 0 to {len(names) - 1}: {' '.join(names)}" in beyond
    assert cluster.exit_code(f"{job}_{len(names)}") == 2


def test_ranks_of_a_suite_reach_all_nodes_of_its_job(cluster: Cluster, tmp_path: Path) -> None:
    """As `benchmark.sbatch` starts a suite: one task on one node, of a job that has two."""
    script, log = tmp_path / "job.sh", tmp_path / "log"
    scaling = "from hpc_molgen.efficiency.suites.farm_scaling import mpiexec, reachable_cores, run_command"
    here = "run_command([*mpiexec(2), 'bash', '-c', 'echo here:$SLURMD_NODENAME,$PMI_SIZE'])"
    line = f'python -c "{scaling}; print(reachable_cores()); print({here})"'
    script.write_text(f"#!/bin/bash\nsrun --nodes=1 --ntasks=1 --cpus-per-task=4 {line}\n".replace("$", "\\$"))
    job = sbatch(cluster, f"--output={log}", "--nodes=2", "--ntasks-per-node=4", str(script))
    assert cluster.wait(job) == "COMPLETED", log.read_text()
    assert "(8, '')" in log.read_text() and log.read_text().count(f"here:{cluster.nodes[0]},2") == 2, log.read_text()


def test_a_script_without_its_arguments_says_how_it_is_used(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert cluster.wait(sbatch(cluster, f"--output={log}", str(SCRIPTS / "train.sbatch"), "tiny")) == "FAILED"
    assert "usage: sbatch [options] train.sbatch PRESET|CONFIG.yaml DIR" in log.read_text()


def test_pipeline_takes_back_what_it_submitted_when_slurm_refuses(cluster: Cluster, tmp_path: Path) -> None:
    env = script_env(cluster, REFERENCE="--hold", FARM="--account=full")
    line = [str(SCRIPTS / "pipeline.sh"), "tiny", str(tmp_path / "run")]
    ended = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "refused the job 'farm'" in ended.stderr and "accounting/QOS policy" in ended.stderr
    jobs = re.findall(r"job (\d+)", ended.stdout)
    assert [cluster.wait(job) for job in jobs] == ["CANCELLED"] * 3


def test_the_port_where_ranks_meet_is_one_that_nobody_listens_on(cluster: Cluster, tmp_path: Path) -> None:
    listen = (
        "import os, socket, time; one = socket.create_server(('', 15000 + (int(os.environ['SLURM_JOB_ID']) + 1) % 17000));"
        "print(*map(os.environ.get, ('MASTER_ADDR', 'MASTER_PORT', 'SLURM_JOB_ID')), flush=True); time.sleep(100)"
    )
    script = tmp_path / "port.sh"
    script.write_text(f'#!/bin/bash\n. {FUNCTIONS}\nmolgen_meet\nexec python3 -c "{listen}"\n')
    jobs, found = [], []
    for name in ("first", "second"):  # the first listens where the second would begin to look
        log = tmp_path / name
        jobs.append(sbatch(cluster, f"--output={log}", "--nodelist", cluster.nodes[0], str(script)))
        wait_for(lambda log=log: log.is_file() and log.read_text().endswith("\n"), "a port")  # type: ignore[misc]
        found.append(log.read_text().split())
    cluster.control("scancel", *jobs)
    assert int(jobs[1]) == int(jobs[0]) + 1
    assert found[0] == [cluster.nodes[0], str(15000 + int(jobs[0]) % 17000), jobs[0]]
    assert int(found[1][1]) != 15000 + int(jobs[1]) % 17000 and 15000 <= int(found[1][1]) < 32000


def start_rank(cluster: Cluster, tmp_path: Path, rank: str) -> tuple[str, Path]:
    """Submit a job with one rank that runs a line of bash, and wait until it says that it has begun."""
    script, log = tmp_path / "job.sh", tmp_path / "log"
    script.write_text(f"#!/bin/bash\n. {FUNCTIONS}\nmolgen_begin {tmp_path}\nmolgen_ranks mpi bash -c '{rank}'\n")
    job = sbatch(cluster, f"--output={log}", "--open-mode=append", str(script))
    wait_for(lambda: log.is_file() and "begun" in log.read_text(), "the rank")
    return job, log


def test_a_warning_before_python_handles_it_ends_nothing(cluster: Cluster, tmp_path: Path) -> None:
    job, log = start_rank(cluster, tmp_path, "echo begun; sleep 3; echo over")
    cluster.control("scancel", "--signal=USR2", job)
    assert cluster.wait(job) == "COMPLETED" and "over" in log.read_text(), log.read_text()


def test_a_job_that_is_cancelled_while_it_saves_stays_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    rank = 'echo SIGUSR2 >$HPC_MOLGEN_REQUEUE; trap "exit 130" TERM; echo begun; sleep 60 & wait'
    job, log = start_rank(cluster, tmp_path, rank)
    cluster.control("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    assert cluster.restarts(job) == 0 and "back into the queue" not in log.read_text()


def test_every_script_passes_shellcheck_and_names_no_site() -> None:
    scripts = [*SCRIPTS.glob("*.sbatch"), *SCRIPTS.glob("*.sh"), FUNCTIONS]
    assert len(scripts) >= 8
    shellcheck = [str(Path(sys.executable).with_name("shellcheck")), "-x"]
    ended = subprocess.run([*shellcheck, *map(str, scripts)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    for script in scripts:
        text = script.read_text()
        assert len(text.splitlines()) < 100
        asked = re.findall(r"^#SBATCH --([\w-]+)", text, re.MULTILINE)
        assert set(asked) <= {"job-name", "open-mode", "requeue", "signal"}, script
