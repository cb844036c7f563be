"""How fast training is, and what it is worth: samples a second, waiting, and the share of what the processor can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up torch's own formulas. Its `FlopCounterMode` also follows modules, which forbids gradients inside a loss."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def count_flops(work: Callable[[], object]) -> float:
    """Floating-point operations of matrix products and convolutions in `work`, forwards and backwards."""
    with _FlopCounter() as counter:
        work()
    return float(counter.total)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, at_least_s: float = 0.05) -> float:
    """Speed of a large matrix product: what "all of the processor" means in `flop_utilisation`.

    Measured rather than taken from a data sheet, so it holds for CPUs, for a part of a GPU and under a power limit.
    """
    n = 8192 if device.type == "cuda" else 768
    a = torch.ones((n, n), dtype=dtype, device=device)
    _wait(device, a @ a)
    best, spent = 0.0, 0.0
    while spent < at_least_s:
        started = time.perf_counter()
        _wait(device, a @ a)
        elapsed = time.perf_counter() - started
        best, spent = max(best, 2 * n**3 / elapsed), spent + elapsed
    return best


def _wait(device: torch.device, _: object) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Speedometer:
    """Rates since the last reading, first steps (compilation, warm-up) left out.

    Parameters
    ----------
    batch_size : int
        Items of a step, over all ranks.
    flops_per_step : float
        Of this rank.
    peak : callable
        Returns the flops a second of this rank's processor; called once.
    """

    def __init__(self, device: torch.device, batch_size: int, flops_per_step: float, peak: Callable[[], float]) -> None:
        self.device, self.batch_size, self.flops_per_step, self._peak = device, batch_size, flops_per_step, peak
        self._peak_flops: float | None = None
        self._step, self._started, self._waited = 0, time.perf_counter(), 0.0

    def restart(self, step: int, wait_s: float) -> None:
        """Begin to measure at `step`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._step, self._started, self._waited = step, time.perf_counter(), wait_s

    def read(self, step: int, wait_s: float) -> dict[str, float]:
        """Return samples a second, the share of time spent waiting for data, and the share of the processor's speed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        n_steps, waited = step - self._step, wait_s - self._waited
        if n_steps == 0:
            return {}
        if self._peak_flops is None:
            self._peak_flops = self._peak()
        return {
            "samples_per_s": n_steps * self.batch_size / elapsed,
            "step_s": elapsed / n_steps,
            "data_wait_share": waited / elapsed,
            "flop_utilisation": n_steps * self.flops_per_step / elapsed / self._peak_flops,
        }
