"""Benchmark suites: one runnable answer per question. A new one is one file beside this and one line here."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_molgen.errors import EnvironmentProblem, InputError

SUITES = {
    "ramachandran": "hpc_molgen.efficiency.suites.ramachandran:ramachandran",
    "energies": "hpc_molgen.efficiency.suites.energies:energies",
    "md": "hpc_molgen.efficiency.suites.md:md",
    "tempering": "hpc_molgen.efficiency.suites.tempering:tempering",
}
SIZES = ("smoke", "laptop")

Suite = Callable[[str, Path, int], dict[str, Any]]


def suite_function(name: str) -> Suite:
    """Return the function ``(size, out, seed) -> record`` registered under `name`."""
    if name not in SUITES:
        raise InputError(f"there is no benchmark suite '{name}'; there are: {', '.join(SUITES)}")
    module, function = SUITES[name].split(":")
    found: Suite = getattr(importlib.import_module(module), function)
    return found


def run_suite(name: str, size: str, out_directory: Path, seed: int) -> Path:
    """Run a suite; write NAME-SIZE.json and NAME-SIZE.md into `out_directory`; return the path of the JSON file.

    Raises
    ------
    InputError
        For an unknown suite or size; the message lists the valid ones.
    EnvironmentProblem
        When the folder or the files cannot be written.
    """
    from hpc_molgen.efficiency.suites.record import complete_record, render_markdown

    function = suite_function(name)
    if size not in SIZES:
        raise InputError(f"benchmark size '{size}' does not exist; the sizes are: {', '.join(SIZES)}")
    try:
        out_directory.mkdir(parents=True, exist_ok=True)
        path = out_directory / f"{name}-{size}.json"
        record = complete_record(function(size, out_directory, seed), name, size, seed)
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        path.with_suffix(".md").write_text(render_markdown(record))
    except OSError as error:
        raise EnvironmentProblem(f"{out_directory}: cannot be written ({error}); make space or choose another --out") from error
    return path
