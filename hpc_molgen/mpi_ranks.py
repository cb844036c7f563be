"""MPI's ranks: the world that a launcher made, ready for jobs that are killed and start again."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_molgen.errors import EnvironmentProblem


def world(size: int) -> Any:
    """Return MPI's communicator of the `size` ranks that a launcher started.

    Raises
    ------
    EnvironmentProblem
        When MPI is missing or every rank sees a world of its own.
    """
    _choose_transport()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"a launcher started {size} ranks, but MPI cannot be used here ({error}). "
            "Install it with: pip install 'hpc-molgen[mpi]'"
        ) from error
    if size != MPI.COMM_WORLD.Get_size():
        raise EnvironmentProblem(
            f"the launcher started {size} ranks, but MPI sees {MPI.COMM_WORLD.Get_size()}: the launcher and mpi4py use "
            "different MPI libraries. Use the mpiexec of this environment, or srun with the matching --mpi type."
        )
    MPI.COMM_WORLD.Barrier()
    _unlink_shared_memory()
    return MPI.COMM_WORLD


def mpiexec(n: int) -> list[str]:
    """Return the words that start a command as `n` ranks: the mpiexec of this environment, else the one on PATH.

    Raises
    ------
    EnvironmentProblem
        When there is none.
    """
    path = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        raise EnvironmentProblem("there is no mpiexec here: pip install 'hpc-molgen[mpi]'")
    return [path, "-n", str(n)]


def _choose_transport() -> None:
    """Let the MPICH that comes from PyPI use libfabric inside Slurm jobs.

    It prefers UCX, whose addresses can be longer than Slurm's PMI2 takes (where a node has many network devices; compare
    pmodels/mpich issue 6924): MPI_Init then fails or hangs. Our messages are few and small. Another MPI is left alone.
    """
    if "SLURM_JOB_ID" in os.environ:
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.distribution("mpich")
            os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")


def _unlink_shared_memory() -> None:
    """Remove the name of the memory that MPICH's ranks of a node share, now that all of them have it.

    The name comes from Slurm's numbers of job and step. Killed ranks leave the file, and when the job is requeued, with the
    same numbers, MPI_Init would find it and wait for ever.
    """
    with contextlib.suppress(OSError):
        mapped = {
            line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "mpich_shm_" in line
        }
        for name in mapped:
            Path(name).unlink(missing_ok=True)
