"""The task that a job runs on every rank. It is made of two strings, so what submitit pickles is tiny and never out of date."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hpc_molgen.errors import EXIT_BUG, EXIT_INTERRUPTED, HpcMolgenError
from hpc_molgen.pipeline import run_stages
from hpc_molgen.run import Run
from hpc_molgen.workers import Workers

if TYPE_CHECKING:
    from submitit import JobEnvironment

# where `submit --site local` keeps the mask of GPUs that submitit's local executor overwrites with an empty one
GPU_MASK = "HPC_MOLGEN_CUDA_VISIBLE_DEVICES"
# below the range from which Linux takes ports of outgoing connections; consecutive jobs get different ports
_FIRST_PORT, _N_PORTS = 15_000, 17_000


def run_stage(stage: str, directory: str) -> None:
    """Run one stage of a run directory as one rank of a submitit job.

    `train` runs on torch's ranks (DDP), every other stage on MPI's ranks, and a job of one task on the cores it has.
    """
    from submitit import JobEnvironment

    environment = JobEnvironment()
    workers = Workers()
    try:
        _prepare(environment, stage)
        workers = Workers.detect()
        logging.basicConfig(
            level=logging.INFO if workers.is_root else logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
        )
        logging.getLogger("submitit").propagate = False  # it has a handler of its own
        run_stages(Run.open(Path(directory), workers), only=stage)
        workers.leave_at_exit(0)
    except BaseException as error:
        _fail(error, workers)


def _prepare(environment: JobEnvironment, stage: str) -> None:
    """Set the variables that `Workers.detect` reads, whatever the submitting shell left in them."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    if environment.cluster == "local":
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # submitit ignores it; here it is how the user stops
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if GPU_MASK in os.environ:
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[GPU_MASK]
    if stage == "train" and environment.num_tasks > 1:
        number = int("".join(filter(str.isdigit, environment.job_id)))
        os.environ |= {
            "RANK": str(environment.global_rank),
            "WORLD_SIZE": str(environment.num_tasks),
            "LOCAL_RANK": str(environment.local_rank),
            "MASTER_ADDR": environment.hostnames[0],
            "MASTER_PORT": str(_FIRST_PORT + number % _N_PORTS),
        }


def _fail(error: BaseException, workers: Workers) -> NoReturn:
    """End all ranks of the job: one that is left would wait for this one until the time limit."""
    if isinstance(error, HpcMolgenError):
        message, code = str(error), error.exit_code
    elif isinstance(error, KeyboardInterrupt | SystemExit):
        message, code = "interrupted; what was finished is kept", EXIT_INTERRUPTED
    else:
        message, code = traceback.format_exc(), EXIT_BUG
    print(f"hpc-molgen: {message}", file=sys.stderr, flush=True)
    workers.abort(code)
    sys.exit(code)
