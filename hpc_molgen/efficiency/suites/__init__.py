"""Benchmark suites: one runnable answer per question. A new one is one file beside this and one line here."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpc_molgen.errors import EnvironmentProblem, InputError

SUITES = {
    "ramachandran": "hpc_molgen.efficiency.suites.ramachandran:ramachandran",
    "density": "hpc_molgen.efficiency.suites.density:density",
    "energies": "hpc_molgen.efficiency.suites.energies:energies",
    "md": "hpc_molgen.efficiency.suites.md:md",
    "tempering": "hpc_molgen.efficiency.suites.tempering:tempering",
    "training": "hpc_molgen.efficiency.suites.training:training",
    "farm": "hpc_molgen.efficiency.suites.farm:farm",
    "farm-faults": "hpc_molgen.efficiency.suites.farm_faults:farm_faults",
    "scaling": "hpc_molgen.efficiency.suites.scaling:scaling",
    "container": "hpc_molgen.efficiency.suites.container:container",
    "flow": "hpc_molgen.efficiency.suites.flow:flow",
    "sampling": "hpc_molgen.efficiency.suites.sampling:sampling",
    "correction": "hpc_molgen.efficiency.suites.correction:correction",
    "trajectories": "hpc_molgen.efficiency.suites.trajectories:trajectories",
    "peers": "hpc_molgen.efficiency.suites.peers:peers",
    "generalisation": "hpc_molgen.efficiency.suites.generalisation:generalisation",
    "fragments": "hpc_molgen.efficiency.suites.fragments:fragments",
    "verdict": "hpc_molgen.efficiency.suites.verdict:verdict",
}
TOOLS = {  # what is done with records: (files) -> (text, passed)
    "compare": "hpc_molgen.efficiency.suites.compare:compare_files",
    "guard": "hpc_molgen.efficiency.suites.guard:guard_files",
    "schema": "hpc_molgen.efficiency.suites.schema:schema_files",
    "report": "hpc_molgen.efficiency.suites.campaign:report_files",
}
SIZES = ("smoke", "laptop", "cluster")  # seconds on any machine; minutes on two cores; hours of a whole node, with its GPUs

Suite = Callable[..., dict[str, Any] | None]


def suite_function(name: str) -> Suite:
    """Return the function ``(size, out, seed) -> record`` registered under `name`; `scaling` takes the options of a plan."""
    if name not in SUITES:
        raise InputError(f"there is no benchmark suite '{name}'; there are: {', '.join(SUITES)}")
    found: Suite = _load(SUITES[name])
    return found


def use_records(tool: str, files: Sequence[Path], **options: Any) -> tuple[str, bool]:
    """Compare records, hold them against floors, report on them, or print their schema; return a text, and if all is well."""
    text, passed = _load(TOOLS[tool])(files, **options)
    return str(text), bool(passed)


def _load(place: str) -> Any:
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)


def run_suite(
    name: str, size: str, out_directory: Path, seed: int, *, plan: bool = False, assignments: Sequence[str] | None = None
) -> Path | None:
    """Run a suite; write NAME-SIZE.json and NAME-SIZE.md into `out_directory`; return the path of the JSON file.

    A suite may name its `file` otherwise, and returns no record on ranks that write none.

    Raises
    ------
    InputError
        For an unknown suite or size; the message lists the valid ones.
    EnvironmentProblem
        When the folder or the files cannot be written.
    """
    from hpc_molgen.efficiency.suites import schema
    from hpc_molgen.efficiency.suites.load import LoadWatch
    from hpc_molgen.efficiency.suites.record import complete_record, render_markdown

    function = suite_function(name)
    if size not in SIZES:
        raise InputError(f"benchmark size '{size}' does not exist; the sizes are: {', '.join(SIZES)}")
    if (plan or assignments) and name != "scaling":
        raise InputError(f"--plan and --set are for the suite 'scaling'; '{name}' has nothing to plan or to set")
    options = {"plan": plan, "assignments": assignments} if name == "scaling" else {}
    try:
        out_directory.mkdir(parents=True, exist_ok=True)
        with LoadWatch() as watch:
            own = function(size, out_directory, seed, **options)
        if own is None:
            return None
        path = out_directory / f"{own.pop('file', f'{name}-{size}')}.json"
        record = complete_record(own, name, size, seed, watch.seen)
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        path.with_suffix(".md").write_text(render_markdown(record))
        schema.check(record)  # last, so that a long measurement is not lost with a suite's fault
    except OSError as error:
        raise EnvironmentProblem(f"{out_directory}: cannot be written ({error}); make space or choose another --out") from error
    return path
