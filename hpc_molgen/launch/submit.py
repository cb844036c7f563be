"""Stages as Slurm jobs, each starting when the one before it has ended well."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_molgen import molecules, preflight
from hpc_molgen.config import RunConfig
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.launch import local, submissions
from hpc_molgen.launch.plan import Job, plan_jobs
from hpc_molgen.launch.script import script_text, slurm_executor
from hpc_molgen.launch.site import SiteConfig, load_site
from hpc_molgen.launch.submissions import SubmittedJob
from hpc_molgen.launch.tasks import run_stage
from hpc_molgen.run import Run
from hpc_molgen.workers import Workers

if TYPE_CHECKING:
    from submitit import SlurmExecutor

_OF_ONE_MACHINE = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs"}
_HINTS = {
    "accounting/QOS policy": "a limit of your account or QOS is reached: wait for jobs to end, or ask for another qos",
    "Invalid account": "name an account of yours in the site file (sacctmgr show associations user=$USER)",
    "invalid partition": "name a partition in the site file (sinfo shows them)",
    "node configuration is not available": "no node of the partition has what the site file asks for (sinfo --Node --long)",
    "time limit is invalid": "give fewer 'minutes' in the site file, or another partition",
    "generic resource": "'gpus_per_node' of the site file names GPUs that are not here (sinfo --Format=Gres)",
    "contact slurm controller": "Slurm's controller does not answer: try again later",
}


def submit_stages(config: RunConfig, site: str, out: Path, stages: Sequence[str], *, dry_run: bool) -> Iterator[str]:
    """Submit those of `stages` that are not done as a chain of jobs; yield lines that say what was done.

    Parameters
    ----------
    config : RunConfig
    site : str
        A site's name or file; "local" runs the stages here, one after the other.
    out : Path
        Run directory, on a file system that the nodes share.
    stages : sequence of str
        In order.
    dry_run : bool
        Yield the text of the sbatch scripts; write and submit nothing.

    Raises
    ------
    InputError
        When the site or the run directory cannot be used.
    EnvironmentProblem
        When there is no Slurm, it refuses a job (nothing stays submitted then), or jobs of this run are not over.
    HpcMolgenError
        When a stage fails under "local".
    """
    out = out.absolute()
    if "%" in str(out):
        raise InputError(f"{out}: Slurm gives '%' in a path a meaning of its own; choose another --out")
    settings = SiteConfig() if site == "local" else load_site(site)
    if site != "local" and not dry_run and not (shutil.which("sbatch") and shutil.which("srun")):
        raise EnvironmentProblem(
            "sbatch and srun are not on PATH: this is no login node of a Slurm cluster (or its module is not loaded). "
            "See the scripts with --dry-run, or run here with --site local or 'hpc-molgen run'"
        )
    if not dry_run and site != "local":
        submissions.refuse_while_active(out, submissions.read(out))
    stages = preflight.check_stages(config, stages)
    run = Run(out, config, Workers()) if dry_run else Run.create(out, config, Workers())
    yield from (f"{stage:10s} done before with the same inputs" for stage in stages if molecules.is_done(run, stage))
    jobs = plan_jobs(run, settings, stages)
    folder = Path(settings.folder).expanduser().absolute() if settings.folder else out / "submitit"
    # a new folder each time: job ids may start again on a cluster, and submitit would take old results for new ones
    folder /= f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    if not dry_run and jobs:
        _make_private(folder)
    if site == "local":
        yield from local.run_here(run, folder, [stage for job in jobs for stage in job.stages], dry_run=dry_run)
    elif dry_run:
        yield from _scripts(run, settings, folder, jobs)
    elif jobs:
        yield from _submit_chain(run, settings, site, folder, jobs)


def _make_private(folder: Path) -> None:
    """Make the folder of submitit's pickles the user's alone: who can write there can run code as the user."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise EnvironmentProblem(f"{folder}: cannot be made ({error}); choose another --out or 'folder' of the site") from error


def _scripts(run: Run, site: SiteConfig, folder: Path, jobs: list[Job]) -> Iterator[str]:
    """Yield the text of each job's script."""
    after = ""
    for job in jobs:
        executor = slurm_executor(site, job, run, folder, _name(run, job), after)
        yield f"# ---- {', '.join(job.stages)}\n{script_text(executor, job)}"
        after = f"JOB_ID_OF_{job.name.upper()}"


def _submit_chain(run: Run, site: SiteConfig, source: str, folder: Path, jobs: list[Job]) -> Iterator[str]:
    """Submit `jobs` so that each waits for the one before it; keep a record in the run directory."""
    kind = _local_file_system(run.directory)
    if kind:
        yield f"note:      {run.directory} lies on {kind}, a file system of this machine: compute nodes may not see it"
    earlier = submissions.read(run.directory)
    record: dict[str, Any] = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), "site": source, "folder": str(folder), "jobs": []}
    submitted: list[SubmittedJob] = record["jobs"]
    for job in jobs:
        name = _name(run, job)
        executor = slurm_executor(site, job, run, folder, name, submitted[-1].job if submitted else "")
        number = _submit(executor, job, run.directory, submitted)
        submitted.append(SubmittedJob(name, number, job.stages, job.array, str(folder)))
        submissions.write(run.directory, [*earlier, record])  # now: what is in the queue must be found whatever comes next
        array = f" [0-{job.array - 1}]" if job.array > 1 else ""
        yield f"{job.name:10s} job {number}{array}   stages {', '.join(job.stages)}   log {submitted[-1].log()}"
    numbers = [one.job for one in submitted]
    yield f"follow:    hpc-molgen status {shlex.quote(str(run.directory))}"
    yield f"           squeue --jobs={','.join(numbers)}"
    yield f"stop:      scancel {' '.join(numbers)}"


def _name(run: Run, job: Job) -> str:
    return f"{run.config.name}-{job.name}"


def _submit(executor: SlurmExecutor, job: Job, run: Path, submitted: list[SubmittedJob]) -> str:
    """Submit one job and return its number; when Slurm refuses, take back those `submitted` before it."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    arguments = ",".join(job.stages), str(run)
    try:
        with contextlib.redirect_stderr(io.StringIO()), _outside_of_jobs():  # submitit prints what it raises as well
            if job.array == 1:
                return str(executor.submit(run_stage, *arguments).job_id)
            elements = executor.map_array(run_stage, *([argument] * job.array for argument in arguments))
            return str(elements[0].job_id).partition("_")[0]
    except (FailedJobError, FailedSubmissionError) as error:
        said = str(error).strip()
        hints = [hint for part, hint in _HINTS.items() if part.lower() in said.lower()]
        message = f"Slurm refused the job of stage '{job.name}': {'; '.join([said, *hints])}"
        if submitted:
            jobs = [one.job for one in submitted]
            subprocess.run(["scancel", *jobs], check=False, capture_output=True, timeout=60)
            message += f"; the jobs submitted before it ({', '.join(jobs)}) were cancelled"
        raise EnvironmentProblem(message) from error


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide variables of a job in which we may run: sbatch would hand its memory, its tasks, its place in an array on."""
    inherited = {name: value for name, value in os.environ.items() if name.startswith("SLURM_") and name != "SLURM_CONF"}
    for name in inherited:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(inherited)


def _local_file_system(path: Path) -> str:
    """Return the type of the file system under `path` if it looks like one that no other machine sees."""
    try:
        lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    path = path.resolve()
    under = [(len(where), kind) for _, where, kind, *_ in lines if path.is_relative_to(where)]
    kind = max(under, default=(0, ""), key=lambda mount: mount[0])[1]
    return kind if kind in _OF_ONE_MACHINE else ""
