"""What a benchmark's record holds: checked when it is written, published as benchmarks/record.schema.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpc_molgen.errors import HpcMolgenError, InputError
from hpc_molgen.files import read_json


class Part(BaseModel):
    """What parts of a record share: a key that is not described is an error."""

    model_config = ConfigDict(extra="forbid")


class Spread(Part):
    """A measurement that was repeated."""

    mean: float
    sd: float = Field(ge=0, description="sample standard deviation; 0 where there is one value")
    n: int = Field(ge=1)
    values: list[float] = Field([], description="in tables they may be left out")


Measured = Spread | list[Any] | float | str | None


class Target(Part):
    """A figure that was asked for."""

    name: str
    target: str = Field(description="what was asked: '<= 2', '>= 10 (on two cores)'")
    measured: Measured
    reached: bool


class Table(Part):
    """A table for people; numbers in it are in `results` too."""

    caption: str
    columns: list[str]
    rows: list[list[Measured | bool]]


class Cost(Part):
    """What a stage of the benchmark took."""

    stage: str
    cpu_s: float = Field(ge=0, description="CPU seconds, all threads; the stage says whose where they are not of one process")
    wall_s: float = Field(ge=0)
    core_h: float | None = Field(None, ge=0, description="cpu_s in hours; records of old versions lack it")
    gpu_h: float | None = Field(None, ge=0, description="wall time in hours, times the GPUs that the stage kept")
    load_average_1min: float = Field(ge=0, description="of the machine at the stage's end")
    joules: float | None = Field(None, description="of the whole machine, by RAPL and NVML; null where neither can be read")


class Figure(Part):
    """A picture beside the record."""

    file: str
    caption: str


class Provenance(Part):
    """Software, hardware and load."""

    hpc_molgen: str
    git_commit: str
    python: str
    packages: dict[str, str]
    cpu: str
    cores: int = Field(ge=1)
    memory_gib: float
    gpus: list[str]
    load_average: list[float] = Field(min_length=3, max_length=3, description="at the end: 1, 5 and 15 minutes")
    container: dict[str, str] | str = Field(
        description="image, its sha256, kind, device, commit and build; empty outside of one"
    )
    slurm_job: str


class Seen(Part):
    """Of what was looked at again and again during the run."""

    mean: float = Field(ge=0)
    max: float = Field(ge=0)


class Load(Part):
    """What else ran on the machine during the run."""

    n: int = Field(ge=1, description="looks, one a second")
    load_average_1min: Seen
    others_busy_cores: Seen | None = Field(
        description="CPU seconds a second of all programs but the suite's own; null where the run was shorter than a look"
    )


class BenchmarkRecord(BaseModel):
    """One run of one suite. Suites may add keys of their own."""

    model_config = ConfigDict(extra="allow", title="hpc_molgen benchmark record")

    schema_version: int = Field(ge=1, le=1)
    suite: str
    size: str
    seed: int
    date_utc: str = Field(pattern=r"^\d{4}-\d\d-\d\d \d\d:\d\d$")
    command: str = Field(description="what makes it again")
    provenance: Provenance
    load: Load | None = Field(None, description="null in records of old versions")
    question: str
    answer: list[str] = Field(description="sentences")
    targets: list[Target]
    tables: list[Table]
    costs: list[Cost]
    notes: list[str]
    figures: list[Figure] = []
    results: Any = Field(None, description="every measurement by name; repeated ones as mean, sd, n, values")
    config: dict[str, Any] | None = Field(None, description="all settings of the size")


def _places(record: dict[str, Any], *, unknown: bool) -> list[str]:
    """Return where a record differs from the schema; `unknown`: keys that it does not know are differences."""
    try:
        BenchmarkRecord.model_validate(record)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        kept = [one for one in found if unknown or one["type"] != "extra_forbidden"]
        return [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in kept]
    return []


def check(record: dict[str, Any]) -> None:
    """Say where a record is not what the schema promises.

    Raises
    ------
    HpcMolgenError
        With every place where it differs; the suite has a fault.
    """
    if places := _places(record, unknown=True):
        raise HpcMolgenError(f"the record of '{record.get('suite')}' does not follow its schema:\n  " + "\n  ".join(places))


def no_record(content: Any) -> str:
    """Return why this is no record; "" where it is one. Keys that this version does not know are no reason."""
    if not isinstance(content, dict) or "suite" not in content:
        return "no record of a benchmark: it names no suite"
    places = _places(content, unknown=False)
    return f"it does not follow the schema ({'; '.join(places[:3])}{'; ...' if len(places) > 3 else ''})" if places else ""


def read_record(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises
    ------
    InputError
        When the file cannot be read or holds something else.
    """
    content: Any = read_json(path)
    if reason := no_record(content):
        raise InputError(f"{path}: {reason}")
    found: dict[str, Any] = content
    return found


def schema_files(files: Sequence[Path]) -> tuple[str, bool]:
    """Return the schema, or, for records that are given, whether they follow it.

    Raises
    ------
    HpcMolgenError
        For the first that does not.
    InputError
        For a file that is no record at all.
    """
    for file in files:
        record = read_json(file)
        if not isinstance(record, dict):
            raise InputError(f"{file}: {no_record(record)}")
        check(record)
    return ("".join(f"{file}: follows the schema\n" for file in files) or schema_text()), True


def schema_text() -> str:
    """JSON Schema (draft 2020-12) of a record."""
    return json.dumps(BenchmarkRecord.model_json_schema(), indent=1) + "\n"
