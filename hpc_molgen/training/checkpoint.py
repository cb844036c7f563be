"""Atomic checkpoints in two generations."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from hpc_molgen.files import write_atomically

log = logging.getLogger(__name__)
GENERATIONS = 2


def save_checkpoint(directory: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` as checkpoint-STEP.pt with its SHA-256 beside it; keep the newest two.

    A kill at any moment leaves an older one intact.
    """
    path = directory / f"checkpoint-{step:08d}.pt"
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    write_atomically(path.with_suffix(".sha256"), hashlib.sha256(data).hexdigest().encode())
    write_atomically(path, data)
    for old in sorted(directory.glob("checkpoint-*.pt"))[:-GENERATIONS]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)


def newest_checkpoint(directory: Path) -> int | None:
    """Return the step of the newest checkpoint that is whole, or None; a damaged one is skipped with a warning."""
    for path in sorted(directory.glob("checkpoint-*.pt"), reverse=True):
        digest = path.with_suffix(".sha256")
        if digest.is_file() and digest.read_text() == hashlib.sha256(path.read_bytes()).hexdigest():
            return int(path.stem.removeprefix("checkpoint-"))
        log.warning("%s is damaged (its SHA-256 differs): falling back to the one before", path)
    return None


def load_checkpoint(directory: Path, step: int) -> dict[str, Any]:
    """Read the checkpoint of a step that `newest_checkpoint` found; nothing in it can run code."""
    state: dict[str, Any] = torch.load(directory / f"checkpoint-{step:08d}.pt", map_location="cpu", weights_only=True)
    return state
