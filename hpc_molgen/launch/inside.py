"""What is tried inside an image, for launch/container.py and its own test: `python3 -m hpc_molgen.launch.inside WHAT`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from hpc_molgen import mpi_ranks
from hpc_molgen.containers import run_group
from hpc_molgen.errors import EnvironmentProblem, HpcMolgenError
from hpc_molgen.provenance import provenance

_MESSAGE_FLOATS = 2**20  # 8 MiB: beyond what MPICH sends through its buffers, and where it hangs if ranks may not share
# everything once: two ranks, a picosecond of molecular dynamics, one step of training
_SMOKE = (
    "reference.production_ps=1", "reference.equilibration_ps=0.1", "reference.starts=given", "reference.bias_torsion=null",
    "train.n_steps=1", "train.validate_every=1", "train.log_every=1",
)  # fmt: skip
_PATIENCE_S = 300


def probe() -> dict[str, Any]:
    """Say what this environment has: versions, MPI, GPUs, compiler, and the folders that can be written."""
    found = provenance()
    return {
        **{name: found[name] for name in ("hpc_molgen", "git_commit", "python", "packages", "container", "cores")},
        "mpi": _mpi(),
        "cuda": _cuda(),
        "compiler": shutil.which("c++") or "",
        "folders": _folders(),
    }


def _mpi() -> str:
    """First line of what the MPI library says of itself."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI

        return " ".join(str(MPI.Get_library_version()).strip("\0\n ").splitlines()[0].split())
    except (ImportError, RuntimeError) as error:
        return f"none ({error})"


def _cuda() -> dict[str, Any]:
    import torch

    from hpc_molgen.dynamics.engine import available_platforms

    return {
        "torch": torch.version.cuda or "",
        "devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "plugin": any(found.metadata["Name"].startswith("OpenMM-CUDA") for found in metadata.distributions()),
        "openmm": "CUDA" in available_platforms(),
    }


def _folders() -> dict[str, float | None]:
    """GiB free in the folders that runs use, None where nothing can be written."""
    names = [os.environ.get(name, "") for name in ("HOME", "TMPDIR", "SCRATCH", "WORK")]
    free: dict[str, float | None] = {}
    for folder in dict.fromkeys([str(Path.cwd()), *filter(None, names), "/tmp"]):
        try:
            with tempfile.TemporaryFile(dir=folder):
                free[folder] = round(shutil.disk_usage(folder).free / 2**30, 1)
        except OSError:
            free[folder] = None
    return free


def ranks(expected: int) -> str:
    """Let `expected` ranks exchange messages; return a line for the root to print.

    Raises
    ------
    EnvironmentProblem
        When there are not that many in one world, or a message arrives changed.
    """
    import numpy as np

    comm = mpi_ranks.world(expected)
    rank, size = comm.Get_rank(), comm.Get_size()
    mine, theirs = np.full(_MESSAGE_FLOATS, float(rank)), np.empty(_MESSAGE_FLOATS)
    comm.Sendrecv(mine, (rank + 1) % size, 0, theirs, (rank - 1) % size, 0)
    if not (theirs == (rank - 1) % size).all():
        raise EnvironmentProblem(f"rank {rank}: a message from rank {(rank - 1) % size} arrived changed")
    hosts = comm.allgather(os.uname().nodename)
    return f"{size} ranks on {len(set(hosts))} host(s) exchanged {mine.nbytes / 2**20:.0f} MiB each" if rank == 0 else ""


def smoke() -> None:
    """Run the real thing small: two MPI ranks of molecular dynamics, a step of training, a file written and read again.

    Raises
    ------
    EnvironmentProblem
        When any of it fails.
    """
    python = [sys.executable, "-m"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = [word for setting in _SMOKE for word in ("--set", setting)]
        run = [*python, "hpc_molgen", "run", "tiny", "--out", str(out), *settings]
        for name, command in {
            "two ranks of MPI": [*mpi_ranks.mpiexec(2), *python, "hpc_molgen.launch.inside", "ranks", "2"],
            "molecular dynamics on two ranks": [*mpi_ranks.mpiexec(2), *run, "--to", "featurize"],
            "a step of training": [*run, "--only", "train"],
        }.items():
            _call(name, command)
        _round_trip(out)
    print("ok: a file of frames read, written and read again", flush=True)


def _call(name: str, command: list[str]) -> None:
    # Open MPI's launcher wants to be told that root, which a build is, and more ranks than cores are meant
    more = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    more |= {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMP_NUM_THREADS": "1"}
    ended = run_group(command, os.environ | more, _PATIENCE_S)
    if ended.returncode:
        raise EnvironmentProblem(f"{name} failed ({ended.returncode}):\n{ended.stdout}\n{ended.stderr}")
    print(f"ok: {name}", flush=True)


def _round_trip(out: Path) -> None:
    """Read the walkers with mdtraj and with our own reader, write them, and compare all three."""
    import mdtraj
    import numpy as np

    from hpc_molgen.ensemble import read_ensemble, write_ensemble
    from hpc_molgen.run import Run

    run = Run.open(out)
    walker = sorted(run.path("reference").glob("*.h5"))[0]
    frames, copy = read_ensemble(walker, run.system), out / "copy.h5"
    write_ensemble(copy, frames, run.system, seed=run.config.seed)
    again = read_ensemble(copy, run.system)
    pairs = (frames.positions_nm, again.positions_nm), (frames.reduced_energy, again.reduced_energy)
    if not all(np.array_equal(*pair, equal_nan=True) for pair in pairs) or not np.allclose(
        mdtraj.load(str(copy)).xyz, frames.positions_nm, atol=1e-6
    ):
        raise EnvironmentProblem(f"{walker.name}: written and read again it has changed")


def main(arguments: list[str]) -> None:
    """Do what the command line asks for."""
    try:
        match arguments:
            case ["probe"]:
                print(json.dumps(probe()))
            case ["ranks", number]:
                print(ranks(int(number)), end="\n" if os.environ.get("PMI_RANK", "0") == "0" else "", flush=True)
            case ["smoke"]:
                smoke()
            case _:
                sys.exit("usage: python3 -m hpc_molgen.launch.inside probe | ranks N | smoke")
    except HpcMolgenError as error:
        print(f"hpc-molgen: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1:])
