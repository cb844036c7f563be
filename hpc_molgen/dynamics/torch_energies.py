"""Energies and forces of many copies in torch: chunks, compilation, the way back to eager."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.compilers import has_compiler
from hpc_molgen.dynamics.terms import Terms
from hpc_molgen.files import cache_folder

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
COMPILE_FROM = 200_000  # conformations: below, compiling (15 to 40 s when not cached) costs more than it saves


def compile_cache() -> Path:
    """Folder in which compiled code is kept from run to run."""
    return cache_folder("torchinductor")


class TorchEnergies:
    """Energies and forces in torch, in chunks of one shape; compiled once per system and shape, kept between runs."""

    def __init__(
        self, terms: Terms, dtype: np.dtype[Any], device: str, memory_mib: int, compiled: bool | None, threads: int | None
    ) -> None:
        import torch

        from hpc_molgen.dynamics.torch_terms import largest_intermediate, torch_energy

        if threads is not None:
            torch.set_num_threads(threads)
        self.dtype = torch.float32 if dtype == np.float32 else torch.float64
        self.device = torch.device(device)
        self.n_atoms, self._asked, self.compiled = terms.n_atoms, compiled, False
        self._invariant = terms.translation_invariant
        self._energy = torch_energy(terms, self.dtype, self.device)
        # a dozen intermediates live at once; on CPUs chunks that stay in the second-level cache are fastest
        budget = memory_mib * 2**20 // (12 * dtype.itemsize * largest_intermediate(terms))
        cached = 2**20 // (dtype.itemsize * 3 * max(terms.n_atoms, 8)) if self.device.type == "cpu" else 2**16
        self.chunk = int(max(16, min(budget, cached)) // 16 * 16)
        self._function, self._compiled_for = self._energy, set[tuple[int, bool]]()

    def prepare(self, n: int) -> None:
        """Compile from now on, if that was asked for or pays for `n` conformations; says so where it cannot."""
        wanted = self._asked if self._asked is not None else n >= COMPILE_FROM
        if not wanted or self.compiled or self._asked is False:
            return
        if not has_compiler(str(self.device)):
            self._stay_eager("no compiler was found")
            return
        import torch

        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compile_cache()))
        # the limit counts over all systems of a process, which share the code of one function
        limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
        setattr(torch._dynamo.config, limit, 1024)
        self._function, self.compiled = torch.compile(self._energy, dynamic=False, fullgraph=True), True

    def _stay_eager(self, reason: str) -> None:
        log.warning("torch energies run uncompiled and several times slower: %s", reason)
        self._function, self.compiled, self._asked = self._energy, False, False

    def evaluate(self, positions_nm: Any, *, forces: bool) -> tuple[Any, Any]:
        """See `BatchedSystem.energies_and_forces`."""
        import torch

        is_tensor = isinstance(positions_nm, torch.Tensor)
        positions = positions_nm if is_tensor else torch.from_numpy(np.ascontiguousarray(positions_nm))
        n = len(positions)
        self.prepare(n)
        energies = torch.empty(n, dtype=torch.float64, device=self.device)
        found = torch.empty(positions.shape, dtype=self.dtype, device=self.device) if forces else None
        for start in range(0, n, self.chunk):
            block = positions[start : start + self.chunk]
            x = self._batch_last(block)
            value, force = self.batch(x, forces=forces)
            energies[start : start + len(block)] = value[: len(block)].double()
            if found is not None and force is not None:
                found[start : start + len(block)] = force[:, :, : len(block)].permute(2, 1, 0)
        energies = torch.where(torch.isfinite(energies), energies, torch.inf)
        if is_tensor:
            device = positions.device
            return energies.to(device), None if found is None else found.to(device)
        return energies.cpu().numpy(), None if found is None else found.cpu().numpy()

    def _batch_last(self, block: torch.Tensor) -> torch.Tensor:
        import torch

        block = block.to(self.device, torch.promote_types(block.dtype, self.dtype))
        if self._invariant:  # small numbers keep their digits in float32
            block = block - block.mean(dim=1, keepdim=True, dtype=torch.float64).to(block.dtype)
        x = block.to(self.dtype).permute(2, 1, 0)
        if self.compiled and x.shape[2] < self.chunk:  # one shape, compiled once
            x = torch.cat([x, x[:, :, -1:].expand(-1, -1, self.chunk - x.shape[2])], dim=2)
        return x.contiguous()

    def batch(self, x: torch.Tensor, *, forces: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Energies (n,) and forces (3, n_atoms, n) of positions (3, n_atoms, n)."""
        shape = (x.shape[2], forces)
        if not self.compiled or shape in self._compiled_for:
            return self._call(x, forces=forces)
        cache, start = os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""), time.perf_counter()
        log.info("compiling the energy function for %d copies (kept in %s for later runs)", x.shape[2], cache)
        try:
            result = self._call(x, forces=forces)
        except Exception as error:  # whatever a compiler or a read-only cache raises: eager gives the same numbers
            self._stay_eager((str(error).splitlines() or [type(error).__name__])[0])
            return self._call(x, forces=forces)
        self._compiled_for.add(shape)
        log.info("compiled in %.1f s", time.perf_counter() - start)
        return result

    def _call(self, x: torch.Tensor, *, forces: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        if not forces:
            with torch.no_grad():
                return self._function(x), None
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energies = self._function(x)
            (gradient,) = torch.autograd.grad(energies.sum(), x)
        return energies.detach(), -gradient
