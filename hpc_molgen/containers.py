"""Images of apptainer: the engine that starts them here, which image this process runs in, and its SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.files import read_json

ENGINES = ("apptainer", "singularity")
IMAGE_SUM = "HPC_MOLGEN_IMAGE_SHA256"  # what launch/job.sh exports: a line of sha256sum, the sum and the path of the image
_WRITTEN = Path("/usr/share/hpc-molgen/image.json")  # containers/install.sh writes it into our images
_INSIDE = Path("/.singularity.d")  # every image of either engine has it
_RESOURCE = 24  # the number of CAP_SYS_RESOURCE, which the engine hands on to root's containers


def engine() -> str:
    """Path of the engine.

    Raises
    ------
    EnvironmentProblem
        When there is none.
    """
    found = next(filter(None, map(shutil.which, ENGINES)), None)
    if found is None:
        raise EnvironmentProblem(f"neither {' nor '.join(ENGINES)} is on PATH: load its module, or see containers/README.md")
    return found


def engine_environment() -> dict[str, str]:
    """Environment in which the engine starts containers, also for a root who lacks a right (in a virtual machine, say)."""
    environment = dict(os.environ)
    if os.geteuid() == 0:
        status = Path("/proc/self/status").read_text()
        effective = next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1]
        if not int(effective, 16) >> _RESOURCE & 1:
            environment = {"APPTAINER_DROP_CAPS": "CAP_SYS_RESOURCE", "SINGULARITY_DROP_CAPS": "CAP_SYS_RESOURCE"} | environment
    return environment


def run_group(command: Sequence[str], environment: Mapping[str, str], patience_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command; where it hangs, end it with all that it has started (ranks, and what mounts images), as failed."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, error = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {patience_s:g} s")
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def own_image() -> str:
    """Path of the image that this process runs in, as its host names it; empty outside of one."""
    if not _INSIDE.is_dir():  # the variable alone may have come from a container in which a job was submitted
        return ""
    return os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER") or ""


def own_container() -> dict[str, Any]:
    """Say which image this process runs in: path, SHA-256, and what its build has left in it; empty outside of one."""
    image = own_image()
    if not image:
        return {}
    written = read_json(_WRITTEN) if _WRITTEN.is_file() else {}
    return {"image": image, "sha256": image_sum(Path(image)), **written}


def image_sum(image: Path) -> str:
    """SHA-256 of an image: as the job's script knows it, as the file beside it says, or of its bytes; empty if unseen.

    A process in a container sees its own image only where the folder of it is bound; the job's script, outside, always does.
    """
    told, _, path = os.environ.get(IMAGE_SUM, "").partition("  ")
    if path == str(image):
        return told
    beside = image.with_name(f"{image.name}.sha256")
    with contextlib.suppress(OSError):
        if beside.stat().st_mtime >= image.stat().st_mtime:
            return beside.read_text().split()[0]
    try:
        with open(image, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def in_words(container: dict[str, Any]) -> str:
    """Return the image of a record (`own_container`) in words, or an empty string."""
    if not container:
        return ""
    known = f"SHA-256 {container['sha256']}" if container["sha256"] else "whose SHA-256 could not be read inside"
    build = f"; build {container['build']}, which its lock file names" if container.get("build") else ""
    return f"in the image {Path(container['image']).name} ({known}{build})"
