"""Blocks of a farm that several jobs share: who works on which, in files that go stale when a job dies."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hpc_molgen.farm.plan import Plan, Task
from hpc_molgen.files import read_json, write_json

RENEW_S = 10.0
STALE_S = 120.0
BLOCKS_OF_A_JOB = 8


class Leases:
    """The blocks that one job of several has taken.

    A block is a range of packs. Its file names the job that works on it, and is touched every `RENEW_S`; when that has not
    happened for `STALE_S` the job is dead, and another one takes the block. Ages are differences between times of files, so
    the clocks of the nodes do not matter. Who was only asleep looks at the file before it writes (`Lease.holds`).

    Parameters
    ----------
    folder : Path
        Of the farm.
    share : (int, int)
        Number of this job, and of how many; a restarted job has its number again, and takes its own blocks at once.
    """

    def __init__(self, folder: Path, plan: Plan, share: tuple[int, int]) -> None:
        self._folder, self._plan = folder / "leases", plan
        self._number, of = share
        self._folder.mkdir(exist_ok=True)
        self.owner = f"{self._number} {socket.gethostname()} {os.getpid()} {time.time():.3f}"
        self._mine: set[int] = set()
        self._renewed = time.monotonic()
        with self._alone():
            kept = self._folder / "blocks.json"
            if not kept.is_file():
                write_json(kept, {"packs": max(1, plan.n_packs // (BLOCKS_OF_A_JOB * of))})
            self.block_packs = int(read_json(kept)["packs"])
        self._n_blocks = -(-plan.n_packs // self.block_packs)

    def packs(self, block: int) -> range:
        """Packs of a block."""
        return range(block * self.block_packs, min((block + 1) * self.block_packs, self._plan.n_packs))

    def take(self) -> int | None:
        """Take a block that nobody works on; None when there is none."""
        with self._alone():
            now = self._now()
            first = self._number * BLOCKS_OF_A_JOB  # apart from the others
            for block in ((first + i) % self._n_blocks for i in range(self._n_blocks)):
                path = lease_path(self._folder, block)
                if block in self._mine or path.with_suffix(".done").is_file():
                    continue
                try:
                    holder, age = path.read_text(), now - path.stat().st_mtime
                except FileNotFoundError:
                    holder, age = "", 0.0
                if not holder or age > STALE_S or holder.split()[0] == str(self._number):
                    path.write_text(self.owner)
                    self._mine.add(block)
                    return block
        return None

    def renew(self) -> None:
        """Show that this job is alive."""
        if time.monotonic() - self._renewed < RENEW_S:
            return
        self._renewed = time.monotonic()
        for block in list(self._mine):
            path = lease_path(self._folder, block)
            if _holds(path, self.owner):
                os.utime(path)
            else:
                self._mine.discard(block)

    def settle(self, is_finished: Callable[[Sequence[int]], bool], *, release: bool = False) -> None:
        """Mark blocks whose packs are finished as done; `release` the others."""
        for block in list(self._mine):
            path, done = lease_path(self._folder, block), is_finished(self.packs(block))
            if not done and not release:
                continue
            with self._alone():
                if _holds(path, self.owner):
                    path.rename(path.with_suffix(".done")) if done else path.unlink()
            self._mine.discard(block)

    def _now(self) -> float:
        """Time by the clock of the file system."""
        clock = self._folder / f"clock-{self._number}"
        clock.touch()
        return clock.stat().st_mtime

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self._folder / "lock", "a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def lease_path(folder: Path, block: int) -> Path:
    """File of a block's lease."""
    return folder / f"block-{block:05d}"


class Lease:
    """What a worker of a shared farm looks at before it writes; it pickles."""

    def __init__(self, folder: Path, owner: str, block_packs: int) -> None:
        self._folder, self._owner, self._block_packs = folder / "leases", owner, block_packs

    def holds(self, task: Task) -> bool:
        """Return whether the task's block is still this job's."""
        return _holds(lease_path(self._folder, task.pack // self._block_packs), self._owner)


def _holds(path: Path, owner: str) -> bool:
    try:
        return path.read_text() == owner
    except OSError:
        return False
