"""Atomic checkpoints in two generations."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch

from hpc_molgen.errors import EnvironmentProblem

log = logging.getLogger(__name__)
GENERATIONS = 2


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_checkpoint(directory: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` as checkpoint-STEP.pt with its SHA-256 beside it; keep the newest two.

    The file is written under a temporary name, synced and renamed, so that a kill at any moment leaves an older one intact.
    """
    path = directory / f"checkpoint-{step:08d}.pt"
    partial = path.with_suffix(".partial")
    try:
        with open(partial, "wb") as handle:
            torch.save(state, handle)
            handle.flush()
            os.fsync(handle.fileno())
        path.with_suffix(".sha256").write_text(_digest(partial))
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EnvironmentProblem(f"{path}: cannot be written ({error}); make space and run again, training goes on") from error
    for old in sorted(directory.glob("checkpoint-*.pt"))[:-GENERATIONS]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)


def load_checkpoint(directory: Path) -> dict[str, Any] | None:
    """Return the newest checkpoint that is whole, or None; a damaged one is skipped with a warning."""
    for path in sorted(directory.glob("checkpoint-*.pt"), reverse=True):
        digest = path.with_suffix(".sha256")
        if not digest.is_file() or digest.read_text() != _digest(path):
            log.warning("%s is damaged (its SHA-256 differs): falling back to the one before", path)
            continue
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    return None
