"""Libraries in C++ that are built with the package, once for each level of processor: which are there, and opening one."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

log = logging.getLogger(__name__)
# best first; the flags of /proc/cpuinfo that a processor needs to run it (the compiler's x86-64-v4 and x86-64-v3)
_VARIANTS = {
    "avx512": {"avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512cd", "avx2", "fma", "bmi2"},
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"},
    "generic": set[str](),
}


@functools.cache
def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def built_variants(directory: Path, layout: int, prefix: str = "") -> list[str]:
    """Return the variants of a library that were built and that this processor can run, best first.

    ``HPC_MOLGEN_KERNEL=avx2`` (or ``generic``) leaves out better ones; ``HPC_MOLGEN_KERNEL=none`` leaves out all.

    Parameters
    ----------
    directory : Path
        Where the library is, beside the Python code that calls it.
    layout : int
        What its ``hm_layout`` returns if it was built from the sources that this code knows.
    prefix : str
        Of its file's name, which goes on with the variant.
    """
    limit = os.environ.get("HPC_MOLGEN_KERNEL", "avx512")
    names = list(_VARIANTS)
    if limit not in names:
        return []
    flags = _processor_flags() if platform.machine() in ("x86_64", "AMD64") else set()
    usable = [name for name in names[names.index(limit) :] if _VARIANTS[name] <= flags]
    return [name for name in usable if open_variant(directory, layout, name, prefix) is not None]


def _library_path(directory: Path, name: str) -> Path | None:
    candidates = (directory / f"_{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def open_variant(directory: Path, layout: int, variant: str, prefix: str = "") -> ctypes.CDLL | None:
    """Open a variant; None, with a warning, where it is damaged, of another machine or of other sources than its caller."""
    path = _library_path(directory, prefix + variant)
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.hm_layout.restype = ctypes.c_int64
        matches = library.hm_layout() == layout
    except (OSError, AttributeError) as error:
        log.warning("%s cannot be used (%s): install this package again where it runs", path, error)
        return None
    if not matches:
        log.warning("%s was built from other sources: install this package again", path)
    return library if matches else None
