"""Software, hardware and commit that produced a result."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hpc_molgen import __version__
from hpc_molgen.containers import own_container
from hpc_molgen.workers import available_cores


@functools.cache
def provenance() -> dict[str, Any]:
    """Software, hardware and commit that produced a result."""
    from importlib import metadata

    packages = ("torch", "openmm", "mdtraj", "numpy", "scipy", "h5py", "deeptime", "mpi4py")
    versions = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    model = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    container = own_container()
    return {
        "hpc_molgen": __version__,
        "git_commit": container.get("commit") or _git_commit(),
        "python": platform.python_version(),
        "packages": versions,
        "cpu": model,
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "load_average": list(os.getloadavg()),
        "container": container,
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
    }


def _git_commit() -> str:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split("\n")[:-1] if found.returncode == 0 else []
