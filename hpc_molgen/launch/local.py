"""Stages one after the other on this machine, through submitit's local executor: what `submit` does without Slurm."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc_molgen import failures, molecules
from hpc_molgen.errors import EnvironmentProblem, HpcMolgenError
from hpc_molgen.launch.tasks import GPU_MASK, run_stage
from hpc_molgen.run import Run

_MINUTES = 30 * 24 * 60  # submitit's own default would end a stage after 2 minutes


def run_here(run: Run, folder: Path, stages: list[str], *, dry_run: bool) -> Iterator[str]:
    """Run `stages`, each on all cores of this machine; yield where the logs are.

    Raises
    ------
    HpcMolgenError
        When a stage fails; the message has its error.
    """
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
    executor.update_parameters(timeout_min=_MINUTES, stderr_to_stdout=True)
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
        if not molecules.is_done(run, stage):
            failed = failures.first([run.path(stage)])
            reason = failed["error"] if failed else "it ended without an error of its own"
            raise HpcMolgenError(f"stage '{stage}' failed: {reason}\nlog: {log}")
    yield f"done:      hpc-molgen status {shlex.quote(str(run.directory))}"
