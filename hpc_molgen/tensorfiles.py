"""Tensors with a description of what they are, in safetensors files: no pickle is read or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hpc_molgen.errors import InputError
from hpc_molgen.files import write_atomically


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write tensors and a JSON-able description, atomically; equal input gives equal bytes."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(kept, metadata={"hpc_molgen": json.dumps(about)}))


def load_tensors(path: Path, kind: str, system_key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`; return its tensors and its description.

    Raises
    ------
    InputError
        When it is not a readable file of that `kind` ("surrogate", say), or belongs to another system.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["hpc_molgen"])
            # copies, which begin where memory is aligned: elsewhere vectors are cut otherwise, and sums have other bits
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable {kind} ({error}); delete it and the done.json beside it, and run again"
        ) from error
    if about.get("system_key") != system_key:
        raise InputError(f"{path}: this {kind} belongs to system key {about.get('system_key')}, this run has {system_key}")
    return tensors, about
