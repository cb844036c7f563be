"""MPI's ranks: the world that a launcher made, ready for jobs that are killed and start again."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_molgen.containers import own_image
from hpc_molgen.errors import EnvironmentProblem

_ONE_FAMILY = (
    "and the launcher of the host must be of one family (MPICH: mpiexec of MPICH or Intel MPI, srun --mpi=pmi2; Open MPI: its "
    "mpirun, srun --mpi=pmix), and --cleanenv, --containall or --pid keep them apart; see containers/README.md"
)
_LAUNCHERS = ("hydra_pmi_proxy", "prted", "prterun", "orted", "mpirun", "mpiexec", "slurmstepd")


def refuse_to_be_alone(start: int | None = None) -> None:
    """Refuse to start where a launcher has started several containers, and nothing of it is known inside.

    Each of the ranks would take itself for the only one and do the whole work.

    Parameters
    ----------
    start : int, optional
        Process whose ancestors are looked at; by default this one.

    Raises
    ------
    EnvironmentProblem
        When a launcher is among the ancestors and has started more than one process. (It cannot be seen from a namespace of
        processes of our own, --pid or --containall; there the lock of the run directory stops all but one.)
    """
    if not own_image():
        return
    processes = _processes()
    process = os.getpid() if start is None else start
    while process in processes:
        process = processes[process][0]
        name = processes.get(process, (0, ""))[1]
        n_started = sum(parent == process for parent, _ in processes.values())
        if name in _LAUNCHERS and n_started > 1:
            raise EnvironmentProblem(
                f"a launcher ({name}) started {n_started} processes on this machine, but this one, in a container, knows "
                f"nothing of the others: the image's MPI {_ONE_FAMILY}. (If it is meant to be alone: --env HPC_MOLGEN_RANKS=1)"
            )


def _processes() -> dict[int, tuple[int, str]]:
    """Parent and name of every process that can be seen."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            name, _, rest = (path / "stat").read_text().partition("(")[2].rpartition(")")
            found[int(path.name)] = int(rest.split()[1]), name
    return found


def world(size: int) -> Any:
    """Return MPI's communicator of the `size` ranks that a launcher started.

    Raises
    ------
    EnvironmentProblem
        When MPI is missing, does not speak the launcher's language, or every rank sees a world of its own.
    """
    _choose_transport()
    if _has_mpich() and "PMIX_NAMESPACE" in os.environ and "PMI_RANK" not in os.environ:  # MPI_Init would end the process
        where = "of this image" if own_image() else "that this Python has"
        raise EnvironmentProblem(
            f"the launcher speaks PMIx, as Open MPI's does, which MPICH does not: MPICH {where} {_ONE_FAMILY}"
        )
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"a launcher started {size} ranks, but MPI cannot be used here ({error}). "
            "Install it with: pip install 'hpc-molgen[mpi]'"
        ) from error
    if size != MPI.COMM_WORLD.Get_size():
        problem = f"the launcher started {size} ranks, but MPI sees {MPI.COMM_WORLD.Get_size()}: "
        if own_image():
            library = "Open MPI" if MPI.Get_library_version().startswith("Open MPI") else MPI.Get_library_version().split()[0]
            raise EnvironmentProblem(problem + f"{library} of this image {_ONE_FAMILY}")
        raise EnvironmentProblem(
            problem + "the launcher and mpi4py use different MPI libraries. Use the mpiexec of this environment, or srun with "
            "the matching --mpi type."
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
    if "SLURM_JOB_ID" in os.environ and _has_mpich():
        os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")


def _has_mpich() -> bool:
    """True where MPICH comes from PyPI and no other library was named to mpi4py."""
    if "MPI4PY_LIBMPI" in os.environ:
        return False
    try:
        metadata.distribution("mpich")
    except metadata.PackageNotFoundError:
        return False
    return True


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
