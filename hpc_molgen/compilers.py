"""What torch.compile needs on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil


def has_compiler(device: str) -> bool:
    """Return whether torch.compile can work: a C++ compiler for CPUs, Triton for GPUs."""
    if device.startswith("cpu"):
        return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    return importlib.util.find_spec("triton") is not None
