"""A guard against losing speed: ratios of records against floors that are kept in the repository.

Ratios are of two methods in the same round of one run, so a slow or busy machine moves them little; seconds are not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.config import read_yaml
from hpc_molgen.efficiency.suites.compare import repeated
from hpc_molgen.efficiency.suites.schema import read_record
from hpc_molgen.errors import InputError


def guard_files(files: Sequence[Path]) -> tuple[str, bool]:
    """Hold records against a file of floors; return a table, and whether every ratio is above its floor.

    The first file is YAML: suite -> place in the results -> floor. The median of a ratio's values is judged. A place that a
    record does not hold (a level of instructions that the processor lacks) is told, and is no failure; a suite of which
    nothing at all was found is one.

    Raises
    ------
    InputError
        When there is no record, a file is none, or the floors are not numbers.
    """
    if len(files) < 2:
        raise InputError("guard takes floors and records: hpc-molgen benchmark guard FLOORS.yaml RECORD.json ...")
    floors = read_floors(files[0])
    lines, passed = ["| suite | ratio | median | floor | |", "|---|---|---|---|---|"], True
    for file in files[1:]:
        record = read_record(file)
        wanted, found = floors.get(record["suite"], {}), dict(repeated(record.get("results")))
        if not set(wanted) & set(found):
            raise InputError(f"{file}: {files[0]} has no floor for anything that the suite '{record['suite']}' measured here")
        for name, floor in wanted.items():
            if name not in found:
                lines.append(f"| {record['suite']} | {name} | - | {floor:g} | not measured here |")
                continue
            median = float(np.median(found[name]))
            passed &= median >= floor
            lines.append(f"| {record['suite']} | {name} | {median:.3g} | {floor:g} | {'ok' if median >= floor else 'BELOW'} |")
    return "\n".join(lines) + "\n", passed


def read_floors(path: Path) -> dict[str, dict[str, float]]:
    """Read floors: suite -> place in the results -> number.

    Raises
    ------
    InputError
        When they are something else.
    """
    content: dict[str, Any] = read_yaml(path)
    for suite, wanted in content.items():
        if not isinstance(wanted, dict) or not all(isinstance(floor, int | float) for floor in wanted.values()):
            raise InputError(f"{path}: {suite}: write places in the results with a number each")
    return content
