"""Stages as Slurm jobs, each starting when the one before it has ended well."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_molgen.config import RunConfig
from hpc_molgen.errors import EnvironmentProblem, HpcMolgenError, InputError
from hpc_molgen.files import read_json
from hpc_molgen.launch.site import SiteConfig, load_site
from hpc_molgen.launch.tasks import GPU_MASK, run_stage
from hpc_molgen.run import STAGES, Run
from hpc_molgen.workers import Workers

if TYPE_CHECKING:
    from submitit import SlurmExecutor

_ONE_TASK = ("featurize", "report")
_NO_GPU = ("featurize",)
_LOCAL_MINUTES = 30 * 24 * 60  # submitit's own default would end a stage after 2 minutes


def submit_stages(config: RunConfig, site: str, out: Path, *, only: str | None, dry_run: bool) -> Iterator[str]:
    """Submit the stages that are not done yet as a chain of jobs; yield lines that say what was done.

    Parameters
    ----------
    config : RunConfig
    site : str
        A site's name or file; "local" runs the stages here, one after the other.
    out : Path
        Run directory, on a file system that the nodes share.
    only : str, optional
        Submit this stage alone.
    dry_run : bool
        Yield the text of the sbatch scripts; write and submit nothing.

    Raises
    ------
    InputError
        When the site or the run directory cannot be used.
    EnvironmentProblem
        When there is no Slurm or it refuses a job; nothing stays submitted then.
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
    run = Run(out, config, Workers()) if dry_run else Run.create(out, config, Workers())
    todo = []
    for stage in [only] if only else STAGES:
        if run.is_done(stage):
            yield f"{stage:10s} done before with the same inputs"
        else:
            todo.append(stage)
    folder = Path(settings.folder).expanduser().absolute() if settings.folder else out / "submitit"
    # a new folder each time: job ids may start again on a cluster, and submitit would take old results for new ones
    folder /= f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    if not dry_run and todo:
        _make_private(folder)
    act = _run_here if site == "local" else _submit_chain
    yield from act(run, settings, folder, todo, dry_run)


def _make_private(folder: Path) -> None:
    """Make the folder of submitit's pickles the user's alone: who can write there can run code as the user."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise EnvironmentProblem(f"{folder}: cannot be made ({error}); choose another --out or 'folder' of the site") from error


def _submit_chain(run: Run, site: SiteConfig, folder: Path, stages: list[str], dry_run: bool) -> Iterator[str]:
    """Submit `stages` so that each waits for the one before it."""
    jobs: list[str] = []
    previous = ""
    for stage in stages:
        executor = slurm_executor(site, folder, f"{run.config.name}-{stage}", stage, previous)
        if dry_run:
            yield f"# ---- {stage}\n{executor._make_submission_file_text(executor._submitit_command_str, '')}"
            previous = f"JOB_ID_OF_{stage.upper()}"
            continue
        previous = _submit(executor, stage, run.directory, jobs)
        jobs.append(previous)
        yield f"{stage:10s} job {previous}   log {folder / f'{previous}_0_log.out'}"
    if jobs:
        yield f"follow:    hpc-molgen status {shlex.quote(str(run.directory))}"
        yield f"           squeue --jobs={','.join(jobs)}"


def slurm_executor(site: SiteConfig, folder: Path, name: str, stage: str, after: str) -> SlurmExecutor:
    """Return submitit's executor for one stage, which starts when the job `after` has ended well."""
    try:
        from submitit import SlurmExecutor
    except ImportError as error:
        raise EnvironmentProblem(f"submitit cannot be used ({error}): pip install 'hpc-molgen[slurm]'") from error

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # submitit asks for srun even to write the text of a script; we have looked for it where it matters

    executor = Executor(folder, python=shlex.quote(str(Path(site.python).expanduser())))
    one_task = stage in _ONE_TASK
    limits = {str(name): minutes for name, minutes in site.stage_minutes.items()}
    extra = {"kill-on-invalid-dep": "yes"}  # else the jobs after a failed one stay in the queue for ever
    if after:
        extra["dependency"] = f"afterok:{after}"
    if site.mail:
        extra |= {"mail-user": site.mail, "mail-type": "END,FAIL"}
    executor.update_parameters(
        job_name=name,
        partition=site.partition,
        account=site.account,
        qos=site.qos,
        constraint=site.constraint,
        nodes=1 if one_task else site.nodes,
        ntasks_per_node=1 if one_task else site.tasks_per_node,
        cpus_per_task=site.cpus_per_task,
        gpus_per_node=site.gpus_per_node if site.gpus_per_node and stage not in _NO_GPU else None,
        mem=site.memory,
        time=limits.get(stage, site.minutes),
        setup=list(site.setup) or None,
        additional_parameters=extra,
        stderr_to_stdout=True,
        wckey=None,  # submitit's own default key is refused by clusters that keep books of them
        # srun does not take --cpus-per-task from sbatch since Slurm 22.05, and lets the others wait for a rank that died
        srun_args=[f"--mpi={site.mpi}", "--kill-on-bad-exit=1", f"--cpus-per-task={site.cpus_per_task}"],
    )
    return executor


def _submit(executor: SlurmExecutor, stage: str, out: Path, jobs: list[str]) -> str:
    """Submit one stage and return its job id; when Slurm refuses, take back the `jobs` before it."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises as well
            return str(executor.submit(run_stage, stage, str(out)).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        taken_back = ""
        if jobs:
            subprocess.run(["scancel", *jobs], check=False, capture_output=True, timeout=60)
            taken_back = f"; the jobs submitted before it ({', '.join(jobs)}) were cancelled"
        raise EnvironmentProblem(f"Slurm refused the job of stage '{stage}': {str(error).strip()}{taken_back}") from error


def _run_here(run: Run, _: SiteConfig, folder: Path, stages: list[str], dry_run: bool) -> Iterator[str]:
    """Run `stages` one after the other through submitit's local executor, each on all cores of this machine."""
    if dry_run:
        yield from (f"{stage:10s} would run on this machine" for stage in stages)
        return
    try:
        from submitit import LocalExecutor
    except ImportError as error:
        raise EnvironmentProblem(f"submitit cannot be used ({error}): pip install 'hpc-molgen[slurm]'") from error

    if "CUDA_VISIBLE_DEVICES" in os.environ:
        os.environ[GPU_MASK] = os.environ["CUDA_VISIBLE_DEVICES"]
    executor = LocalExecutor(folder)
    executor.update_parameters(timeout_min=_LOCAL_MINUTES, stderr_to_stdout=True)
    for stage in stages:
        job: Any = executor.submit(run_stage, stage, str(run.directory))
        log = folder / f"{job.job_id}_0_log.out"
        yield f"{stage:10s} runs here   log {log}"
        try:
            job.wait()
        except BaseException:
            os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller hands it on to the stage
            job.wait()
            raise
        if not run.is_done(stage):
            failed = run.path(stage, "failed.json")
            reason = read_json(failed)["error"] if failed.is_file() else "it ended without an error of its own"
            raise HpcMolgenError(f"stage '{stage}' failed: {reason}\nlog: {log}")
    yield f"done:      hpc-molgen status {shlex.quote(str(run.directory))}"
