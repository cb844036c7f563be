"""Progress of long work: a bar with an ETA on a terminal, plain log lines elsewhere, a small file for `status`."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

log = logging.getLogger(__name__)
LOG_EVERY_S = 10.0
WRITE_EVERY_S = 1.0


class Progress:
    """Counts done work; use it as a context manager.

    Parameters
    ----------
    label : str
        Stage.
    total : float
        Amount of work, in `unit`.
    unit : str
        For example "walkers" or "steps".
    path : Path, optional
        Where `status` finds it; None on ranks that show nothing.
    of : int
        Number of jobs that each count such a part.
    """

    def __init__(self, label: str, total: float, unit: str, path: Path | None, of: int = 1) -> None:
        self.label, self.total, self.unit, self.path, self.of = label, total, unit, path, of
        self.done, self.note = 0.0, ""  # the note is shown behind the numbers
        self._before: float | None = None
        self._started = time.monotonic()
        self._last_log = self._last_write = self._started
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.path is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            )
            note = TextColumn("{task.fields[note]}")
            self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), note, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self.label, total=self.total, unit=self.unit, note="")
        return self

    def advance(self, amount: float = 1.0) -> None:
        """Count `amount` more."""
        self.done += amount
        self._show()

    def set(self, done: float) -> None:
        """Set the amount done; the first value is what an earlier attempt left, and tells nothing of the speed."""
        if self._before is None:
            self._before = done
        self.done = done
        self._show()

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the speed so far."""
        elapsed, mine = time.monotonic() - self._started, self.done - (self._before or 0.0)
        return elapsed / mine * (self.total - self.done) if mine > 0 else None

    def _show(self) -> None:
        if self.path is None:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self.note)
        elif now - self._last_log > LOG_EVERY_S:
            eta = f", {self.eta_s:.0f} s left" if self.eta_s is not None else ""
            note = f"; {self.note}" if self.note else ""
            log.info("%s: %.0f of %.0f %s%s%s", self.label, self.done, self.total, self.unit, eta, note)
            self._last_log = now
        if now - self._last_write > WRITE_EVERY_S:
            self._write()
            self._last_write = now

    def _write(self) -> None:
        assert self.path is not None
        record = {
            "progress": self.done / self.total if self.total else 1.0,
            "eta_s": self.eta_s,
            "rate": f"{self.done:.0f} of {self.total:.0f} {self.unit}",
            "of": self.of,
        }
        partial = self.path.with_suffix(f".partial-{os.getpid()}")
        try:
            partial.write_text(json.dumps(record))
            os.replace(partial, self.path)
        except OSError:
            partial.unlink(missing_ok=True)  # progress is a courtesy: the work itself reports a full disk

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
