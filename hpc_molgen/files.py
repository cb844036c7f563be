"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.errors import EnvironmentProblem, InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name, sync, rename; a failure leaves what was there before.

    Raises
    ------
    EnvironmentProblem
        When the file cannot be written (a full disk, a folder without permission); the message names it.
    """
    with appearing_whole(path) as partial, open(partial, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def appearing_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name; what was written there is synced and gets the name `path` when the block ends without error.

    Raises
    ------
    EnvironmentProblem
        As `write_atomically`.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:  # an interruption leaves nothing either
        with contextlib.suppress(OSError):
            partial.unlink()
        if not isinstance(error, OSError):
            raise
        raise EnvironmentProblem(
            f"{path}: cannot be written ({error}). Make space or choose another --out; the same command then goes on."
        ) from error


def is_partial(path: Path) -> bool:
    """Whether a file is what a killed process has left of `appearing_whole`."""
    return path.name.startswith(".") and ".partial-" in path.name


def cache_folder(name: str) -> Path:
    """Folder for what is kept from run to run: in HPC_MOLGEN_CACHE, or the user's cache folder."""
    base = os.environ.get("HPC_MOLGEN_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hpc_molgen" / name


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, by the letter of the standard (see `plain_values`)."""
    write_atomically(path, (json.dumps(plain_values(value), indent=2, allow_nan=False) + "\n").encode())


def plain_values(value: Any) -> Any:
    """Make JSON of dataclasses and arrays; numbers that JSON has no word for (nan, infinite) become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain_values(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain_values(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def read_json(path: Path) -> Any:
    """Read JSON; a file that is missing or damaged is an `InputError` that names it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error}); run the stage that writes it again") from error
