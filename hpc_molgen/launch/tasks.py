"""The task that a job runs on every rank. It is made of two strings, so what submitit pickles is tiny and never out of date."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hpc_molgen import failures, interrupts
from hpc_molgen.errors import EXIT_BUG, EXIT_INTERRUPTED, HpcMolgenError
from hpc_molgen.pipeline import run_stages
from hpc_molgen.run import Run
from hpc_molgen.workers import Workers

if TYPE_CHECKING:
    from submitit import JobEnvironment

# where `submit --site local` keeps the mask of GPUs that submitit's local executor overwrites with an empty one
GPU_MASK = "HPC_MOLGEN_CUDA_VISIBLE_DEVICES"


def run_stage(stages: str, directory: str) -> None:
    """Run stages (names with commas between) of a run directory as one rank of a submitit job.

    A job that trains has torch's ranks (DDP), every other one MPI's, and a job of one task the cores it has. A job of an
    array does its share of its one stage.
    """
    from submitit import JobEnvironment

    environment = JobEnvironment()
    names, run, workers = stages.split(","), None, Workers()
    interrupts.install()  # in place of submitit's handlers, which would requeue the job by a count of their own
    try:
        _prepare(environment, names)
        workers = Workers.detect(_share(environment))
        logging.basicConfig(
            level=logging.INFO if workers.is_root else logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
        )
        logging.getLogger("submitit").propagate = False  # it has a handler of its own
        run = Run.open(Path(directory), workers)
        run_stages(run, names)
        workers.leave_at_exit(0)
    except BaseException as error:
        _fail(error, workers, run, names)


def _prepare(environment: JobEnvironment, stages: list[str]) -> None:
    """Set the variables that `Workers.detect` reads, whatever the submitting shell left in them."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    if environment.cluster == "local":
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if GPU_MASK in os.environ:
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[GPU_MASK]
    elif "train" in stages and environment.num_tasks > 1:  # the batch script has set MASTER_ADDR and MASTER_PORT
        os.environ |= {
            "RANK": str(environment.global_rank),
            "WORLD_SIZE": str(environment.num_tasks),
            "LOCAL_RANK": str(environment.local_rank),
        }


def _share(environment: JobEnvironment) -> tuple[int, int]:
    if environment.array_task_id is None:
        return 0, 1
    return int(environment.array_task_id), int(os.environ["SLURM_ARRAY_TASK_COUNT"])


def _fail(error: BaseException, workers: Workers, run: Run | None, stages: list[str]) -> NoReturn:
    """End all ranks of the job: one that is left would wait for this one until the time limit."""
    interrupts.ignore()
    interrupts.leave_word()
    if isinstance(error, KeyboardInterrupt | SystemExit) or interrupts.came():
        message, code = "interrupted; what was finished is kept", EXIT_INTERRUPTED
    elif isinstance(error, HpcMolgenError):
        message, code = str(error), error.exit_code
    else:
        message, code = traceback.format_exc(), EXIT_BUG
        first = failures.first(map(run.path, stages)) if run is not None and workers.share == (0, 1) else None
        if first is not None and first["rank"] != workers.rank:
            message = f"this rank ends because rank {first['rank']} on {first['host']} failed: {first['error']}"
        elif first is not None and interrupts.REQUEUE in os.environ:
            message = f"{first['error']} (the traceback, if there is one, is at the end of the job's log)"
    print(f"hpc-molgen: {message}", file=sys.stderr, flush=True)
    workers.abort(code)
    sys.exit(code)
