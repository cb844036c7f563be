"""Joules of this machine: the processors' counters (RAPL, by Linux's powercap) and the GPUs' (NVML), where they can be read.

Both count all that runs on the machine, so a measurement is of an otherwise idle one or an upper bound. Reading RAPL takes
rights that most users lack since CVE-2020-8694; nothing is estimated in its place.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class _Counter:
    """A counter of joules that may begin again at zero after `wraps_at`."""

    name: str
    read: Callable[[], float]
    wraps_at: float = float("inf")


class EnergyMeter:
    """Joules since it was made.

    Parameters
    ----------
    powercap : Path
        Where Linux shows RAPL's domains.

    Attributes
    ----------
    sources : tuple of str
        Names of the counters that can be read; without one, `joules` is None.

    Notes
    -----
    A counter of RAPL wraps after some hours at full power; one wrap between two readings is seen, a second is not.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._start: list[tuple[_Counter, float]] = []
        for counter in [*_rapl(powercap), *_nvml()]:
            with contextlib.suppress(OSError, ValueError):
                self._start.append((counter, counter.read()))
        self.sources = tuple(counter.name for counter, _ in self._start)

    @property
    def joules(self) -> float | None:
        """Joules of all counters together since the meter was made, or None where there is none."""
        if not self._start:
            return None
        total = 0.0
        try:
            for counter, before in self._start:
                spent = counter.read() - before
                total += spent if spent >= 0 else spent + counter.wraps_at
        except (OSError, ValueError):
            return None
        return total


def _rapl(powercap: Path) -> list[_Counter]:
    """Packages and the memory outside of them; cores and graphics are parts of a package, and `psys` holds all."""
    found = []
    for folder in sorted(powercap.glob("intel-rapl:*")):  # AMD's processors have the same name there
        with contextlib.suppress(OSError, ValueError):
            name = (folder / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                wraps_at = float((folder / "max_energy_range_uj").read_text()) * 1e-6
                file = folder / "energy_uj"
                found.append(_Counter(name, lambda file=file: float(file.read_text()) * 1e-6, wraps_at))  # type: ignore[misc]
    return found


def _nvml() -> list[_Counter]:
    """Every visible GPU that counts its energy (Volta and later)."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    n = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(n)):
        return []

    def counter(index: int) -> _Counter:
        handle = ctypes.c_void_p()
        failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle))

        def read() -> float:
            millijoules = ctypes.c_ulonglong()
            if failed or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
                raise OSError(f"GPU {index} does not count its energy")
            return millijoules.value * 1e-3

        return _Counter(f"GPU {index}", read)

    return [counter(index) for index in range(n.value)]
