"""How long this job may still run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable

_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)$")  # [days-][hours:]minutes:seconds


def time_left(minutes: float | None) -> Callable[[], float]:
    """Return a function that gives the seconds until the first of `minutes` from now and the end of the Slurm job.

    Slurm says the latter in SLURM_JOB_END_TIME, or where it is too old for that by squeue; without limit it is infinite.
    """
    now = time.time()
    ends = [now + minutes * 60] if minutes is not None else []
    ends += [end for end in [_end_of_job(now)] if end is not None]
    return lambda: min(ends, default=float("inf")) - time.time()


def _end_of_job(now: float) -> float | None:
    said = os.environ.get("SLURM_JOB_END_TIME", "")
    if said.isdigit():
        return float(said)
    job = os.environ.get("SLURM_JOB_ID")
    if not job or not shutil.which("squeue"):
        return None
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--jobs", job, "--format", "%L"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return None if (left := seconds_of(answer.stdout.strip())) is None else now + left


def seconds_of(text: str) -> float | None:
    """Return the seconds of Slurm's [days-][hours:]minutes:seconds; None for UNLIMITED and the like."""
    found = _LEFT.match(text)
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
