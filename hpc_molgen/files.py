"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from hpc_molgen.errors import EnvironmentProblem, InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name, sync, rename; a failure leaves what was there before.

    Raises
    ------
    EnvironmentProblem
        When the file cannot be written (a full disk, a folder without permission); the message names it.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise EnvironmentProblem(
            f"{path}: cannot be written ({error}). Make space or choose another --out; the same command then goes on."
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON; a file that is missing or damaged is an `InputError` that names it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); run the stage that writes it again") from error
