"""Images: what one is, whether it works on this machine, and whether the MPI launcher here matches its library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_molgen import mpi_ranks
from hpc_molgen.containers import engine, engine_environment, image_sum, run_group
from hpc_molgen.errors import EnvironmentProblem, InputError

_PATIENCE_S = 180  # without squashfuse an engine unpacks the image at every start
_START_S = 2.0


@dataclass(frozen=True)
class Check:
    """One finding: `ok` is None where there was nothing to try."""

    name: str
    ok: bool | None
    text: str

    def line(self) -> str:
        """Return it as a line to print."""
        return f"{ {True: 'ok', False: 'NO', None: '-'}[self.ok]:3s} {self.name:12s} {self.text}"


def check(image: Path) -> Iterator[Check]:
    """Try an image on this machine; yield what is found, the first failure that makes the rest pointless last.

    Raises
    ------
    EnvironmentProblem
        When there is no engine.
    InputError
        When there is no such image.
    """
    program = engine()
    if not image.exists():
        raise InputError(f"there is no image {image}; containers/build.sh makes one")
    image = image.resolve()
    version = _call([program, "--version"]).stdout.strip()
    size = f", {image.stat().st_size / 1e6:.0f} MB" if image.is_file() else ""
    yield Check("engine", True, version)
    yield Check("image", True, f"{image.name}{size}, SHA-256 {image_sum(image) or 'none: it is a folder'}")

    started = _call([program, "run", str(image), "--help"])
    if started.returncode:
        yield Check("start", False, _reason(started))
        return
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        _call([program, "run", str(image), "--help"])
        seconds.append(time.perf_counter() - begun)
    text = f"--help answers after {min(seconds):.2f} s (the best of three)"
    slow = "; without squashfuse and a /dev/fuse that you may open the engine unpacks the image at every start"
    yield Check("start", min(seconds) <= _START_S, text + (slow if min(seconds) > _START_S else ""))

    gpus = ["--nv"] if shutil.which("nvidia-smi") else []
    inside = [program, "exec", *gpus, str(image), "python3", "-m", "hpc_molgen.launch.inside"]
    probed = _call([*inside, "probe"])
    if probed.returncode:
        yield Check("contents", False, _reason(probed))
        return
    yield from _contents(json.loads(probed.stdout.splitlines()[-1]), has_gpus=bool(gpus))
    yield from _launchers(inside)


def _contents(found: dict[str, Any], *, has_gpus: bool) -> Iterator[Check]:
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    commit = found["git_commit"] or "unknown"
    yield Check("versions", True, f"hpc_molgen {found['hpc_molgen']}, commit {commit}; Python {found['python']}; {packages}")
    kind = found["container"].get("kind", "not an image of containers/")
    yield Check("kind", True, f"{kind} {found['container'].get('device', '')}".rstrip())
    yield Check("MPI", not found["mpi"].startswith("none"), found["mpi"])
    compiler = found["compiler"]
    yield Check("compiler", True if compiler else None, compiler or "none: train.compile wants the image train")
    cuda = found["cuda"]
    built = f"torch for {'CUDA ' + cuda['torch'] if cuda['torch'] else 'processors'}"
    built += f", OpenMM with{'' if cuda['plugin'] else 'out'} its CUDA plugin"
    if not (cuda["torch"] or cuda["plugin"]):
        yield Check("CUDA", None, f"{built}: an image for processors")
    elif not has_gpus:
        yield Check("CUDA", None, f"{built}; no NVIDIA GPU on this machine")
    else:
        sees = bool(cuda["devices"]) or cuda["openmm"]
        works = "works" if cuda["openmm"] else "does not load (was --nv's driver found?)"
        yield Check(
            "CUDA", sees, f"{built}; torch sees {', '.join(cuda['devices']) or 'no GPU'}, OpenMM's CUDA platform {works}"
        )
    for folder, free in found["folders"].items():
        text = "cannot be written inside; bind it (--bind) where runs go there" if free is None else f"{free} GiB free"
        yield Check("folder", None if free is None else True, f"{folder}: {text}")


def _launchers(inside: list[str]) -> Iterator[Check]:
    """Let the launcher of this machine start two ranks in the image."""
    try:
        launcher = [shutil.which("mpiexec") or mpi_ranks.mpiexec(2)[0], "-n", "2"]
    except EnvironmentProblem:
        yield Check("mpiexec", None, "there is none here")
        return
    said = _call([launcher[0], "--version"]).stdout
    family = "Open MPI" if "Open MPI" in said or "OpenRTE" in said or "prte" in said.lower() else "MPICH"
    # as root, and on one core, Open MPI's wants to be asked twice
    options = ["--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])] if family == "Open MPI" else []
    ended = _call([*launcher, *options, *inside, "ranks", "2"])
    line = next((line for line in ended.stdout.splitlines() if line.startswith("2 ranks on")), "")
    if ended.returncode == 0 and line:
        yield Check("mpiexec", True, f"{launcher[0]} ({family}): {line}")
    else:
        mismatch = f"{launcher[0]} ({family}) does not fit the image's MPI library: {_reason(ended)}"
        yield Check("mpiexec", False, f"{mismatch}; containers/README.md says what must match")


def _call(command: list[str]) -> subprocess.CompletedProcess[str]:
    return run_group(command, engine_environment(), _PATIENCE_S)


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("hpc-molgen:", "FATAL"))] or lines[-3:]
    return " ".join(dict.fromkeys(told)) or f"it ended with {ended.returncode}"
