"""What a folder of a campaign holds: records of benchmarks, reports of runs, and files that are neither."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hpc_molgen.efficiency.suites.schema import no_record
from hpc_molgen.errors import InputError
from hpc_molgen.files import read_json

# of a record that lacks what a part needs
FAULTS = (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RecursionError)
_SIZES = ("smoke", "plan", "laptop", "cluster")  # the later says more
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class RunReport:
    """The report of a run.

    Attributes
    ----------
    name : str
        Of the folder.
    place : Path
        Where report.json lies, from the campaign's folder.
    data : dict
        report.json.
    """

    name: str
    place: Path
    data: dict[str, Any]

    @property
    def of_structures(self) -> bool:
        """Whether it is of one molecule, and the surrogate makes structures, which have weights and break-even points."""
        return not {"findings", "molecules"} & self.data.keys()


@dataclass(frozen=True)
class Campaign:
    """A folder that was read.

    Attributes
    ----------
    folder : Path
    records : dict
        File without its ending -> record.
    runs : tuple of RunReport
    unread : list of (str, str)
        Files that were left out, and why.
    faults : list of (str, str, str)
        Records and runs, which part of them was left out, and why.
    """

    folder: Path
    records: dict[str, dict[str, Any]]
    runs: tuple[RunReport, ...]
    unread: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, str, str]] = field(default_factory=list)

    def guarded(self, name: str, what: str, make: Callable[..., Iterable[_Made]], *given: Any) -> list[_Made]:
        """Return all that `make` makes of one record or run, or nothing where that lacks what it needs, which is noted."""
        try:
            return list(make(*given))
        except FAULTS as fault:
            found = (name, what, f"left out, as it is not what was expected ({type(fault).__name__}: {fault})")
            if found not in self.faults:
                self.faults.append(found)
            return []

    def measured(self, suite: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the records of a suite, as `of_suite` does, but for those of size smoke, whose clock is too coarse."""
        yield from ((name, record) for name, record in self.of_suite(suite) if record["size"] != "smoke")

    def of_suite(self, suite: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the records of a suite with their names, the one that says most first: the largest size, then the newest."""
        found = [(name, record) for name, record in self.records.items() if record["suite"] == suite]

        def order(pair: tuple[str, dict[str, Any]]) -> tuple[int, str]:
            size = pair[1]["size"]
            return _SIZES.index(size) if size in _SIZES else -1, str(pair[1]["date_utc"])

        yield from sorted(found, key=order, reverse=True)


def read_campaign(folder: Path) -> Campaign:
    """Read FOLDER/*.json, and report.json of its subfolders or of run directories in it.

    Raises
    ------
    InputError
        When it is no folder, or holds neither a record nor a run's report that can be read.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; benchmark report takes the folder that records were written to")
    records, runs, unread = {}, [], list[tuple[str, str]]()
    for path in sorted(folder.glob("*.json")):
        content = _read(path, folder, unread)
        if content is not None and (reason := no_record(content)):
            unread.append((path.name, reason))
        elif content is not None:
            records[path.stem] = content
    for path in sorted([*folder.glob("*/report.json"), *folder.glob("*/report/report.json")]):
        content = _read(path, folder, unread)
        place = path.parent.relative_to(folder)
        verdict = content.get("verdict") if isinstance(content, dict) else None
        if isinstance(verdict, dict) and isinstance(verdict.get("sentence"), str):
            runs.append(RunReport(place.parts[0], place, content))
        elif content is not None:
            unread.append((str(place / path.name), "no report of a run: it has no verdict"))
    if not records and not runs:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in unread)
        raise InputError(
            f"{folder}: holds neither a record of a benchmark (SUITE-SIZE.json) nor a report of a run (NAME/report.json)"
            f"{reasons}"
        )
    return Campaign(folder, records, tuple(runs), unread)


def _read(path: Path, folder: Path, unread: list[tuple[str, str]]) -> Any:
    """Return the content of a file, or None where it cannot be read, which is then noted."""
    try:
        return read_json(path)
    except InputError as error:
        unread.append((str(path.relative_to(folder)), str(error.__cause__ or "not readable")))
    except RecursionError:
        unread.append((str(path.relative_to(folder)), "its brackets are nested too deeply"))
    return None
