"""The ledger: one line for everything that happened to a replica, appended and synced; the manifest is made from it."""

from __future__ import annotations

import heapq
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.files import plain_values, write_atomically

log = logging.getLogger(__name__)
SYNC_EVERY_S = 0.05
FINAL = ("done", "failed")


class Ledger:
    """The ledger of one farm job: nobody else writes this file, everybody may read it.

    Lines reach the file at once, so that a killed process loses none; the disk is asked to keep them at most once every
    `SYNC_EVERY_S`, all that came in between together.

    Parameters
    ----------
    path : Path
        An earlier attempt's file goes on; half a line at its end, left by a crash of the machine, is cut off.

    Raises
    ------
    EnvironmentProblem
        When it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._synced, self._dirty = time.monotonic(), False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            size = os.fstat(self._descriptor).st_size
            tail = os.pread(self._descriptor, 2**20, max(0, size - 2**20))
            os.ftruncate(self._descriptor, size - len(tail) + tail.rfind(b"\n") + 1)
        except OSError as error:
            raise self._problem(error) from error

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add records, and the time."""
        if not records:
            return
        now = time.time()
        lines = "".join(json.dumps(plain_values(record) | {"time": round(now, 3)}) + "\n" for record in records).encode()
        try:
            size = os.fstat(self._descriptor).st_size
            if os.write(self._descriptor, lines) < len(lines):
                os.ftruncate(self._descriptor, size)
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise self._problem(error) from error
        self._dirty = True
        if time.monotonic() - self._synced > SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Have the disk keep what was added."""
        if self._dirty:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise self._problem(error) from error
            self._synced, self._dirty = time.monotonic(), False

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _problem(self, error: OSError) -> EnvironmentProblem:
        return EnvironmentProblem(f"{self.path}: cannot be written ({error}). Make space; the same command then goes on.")


@dataclass
class Standing:
    """Where every replica stands, by all ledgers of a farm.

    Attributes
    ----------
    final : dict of int to bytes
        The last record, as JSON, of each replica that is done or has failed for good.
    n_failed : int
    attempts : dict of int to int
        The attempt that a replica is at, where it is not the first.
    share : dict of int to float
        How much of it a replica has done, by its last chunk.
    """

    final: dict[int, bytes] = field(default_factory=dict)
    n_failed: int = 0
    attempts: dict[int, int] = field(default_factory=dict)
    share: dict[int, float] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Count one record; a second end of the same replica changes nothing."""
        event = record.get("event")
        if event == "chunk":
            self.share |= dict.fromkeys(record["replicas"], record["share"])
        elif event == "again":
            self.attempts[record["replica"]] = record["attempt"]
            self.share.pop(record["replica"], None)
        elif event in FINAL and record["replica"] not in self.final:
            self.final[record["replica"]] = json.dumps(plain_values(record)).encode()
            self.n_failed += event == "failed"
            self.share.pop(record["replica"], None)
            self.attempts.pop(record["replica"], None)
        elif event == "reopened":
            self.final.pop(record["replica"], None)


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield all records of a farm's ledgers in the order of time; lines that are not whole are left out."""
    files = [_lines(path) for path in sorted(folder.glob("ledger-*.jsonl"))]
    yield from heapq.merge(*files, key=lambda record: float(record["time"]))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
            except ValueError:
                if line.endswith(b"\n"):  # else it is being written
                    log.warning("%s: line %d is damaged and left out", path, number)
                continue
            yield record


def standing(folder: Path) -> Standing:
    """Return where every replica stands."""
    found = Standing()
    for record in read(folder):
        found.add(record)
    return found


def lost_files(found: Standing, path_of: Callable[[int], Path]) -> list[dict[str, Any]]:
    """Return a record for each finished replica whose file has not the size that it had: it is to be run again."""
    records = []
    for replica, line in found.final.items():
        record = json.loads(line)
        if record["state"] != "done":
            continue
        path = path_of(replica)
        size = path.stat().st_size if path.is_file() else 0
        if size != record["bytes"]:
            text = f"{path}: has {size} bytes, not {record['bytes']} as when it was finished"
            log.warning("%s; the replica is looked at again", text)
            records.append({"event": "reopened", "replica": replica, "error": text})
    return records


def write_manifest(path: Path, found: Standing) -> list[dict[str, Any]]:
    """Write the final record of every replica, in the order of replicas, as a file that appears whole; return them."""
    lines = [found.final[replica] for replica in sorted(found.final)]
    write_atomically(path, b"".join(line + b"\n" for line in lines))
    return [json.loads(line) for line in lines]
