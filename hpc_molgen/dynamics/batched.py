"""Energies and forces of many copies of one molecule at once: the C++ kernel on CPUs, torch on GPUs and for other forces."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm

from hpc_molgen.dynamics.kernel import NativeMolecule, built_variants
from hpc_molgen.dynamics.terms import Terms, read_terms
from hpc_molgen.errors import InputError, UnsupportedForce
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import available_cores

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
MAX_HARMONIC = 6  # the kernel's recurrence loses a digit for each few harmonics; force fields stop at 6
MEMORY_MIB = 512


class BatchedSystem:
    """Energies and forces of many conformations of one molecule, without cut-off and without periodic box.

    Parameters
    ----------
    system : openmm.System or MolecularSystem
        Forces known: HarmonicBond, HarmonicAngle, PeriodicTorsion, RBTorsion, Nonbonded without cut-off, GBSAOBC; and in torch
        CMAPTorsion, CustomBond, CustomAngle, CustomTorsion, CustomNonbonded, CustomExternal, CustomGB.
    dtype : str, np.dtype or torch.dtype
        float64 (for weights) or float32.
    device : str or torch.device
        "cpu", or a GPU of torch's.
    backend : str
        "auto": "kernel" where it is built, knows the forces and runs on this device, else "torch".
    threads : int, optional
        Of the kernel; every core of this process by default. torch keeps its own setting.
    memory_mib : int
        Budget of one chunk in torch.
    compiled : bool, optional
        torch.compile; by default where it pays (more than `COMPILE_FROM` conformations) and a compiler is there.

    Attributes
    ----------
    terms : Terms
    backend : str
        "kernel" or "torch".

    Raises
    ------
    UnsupportedForce
        For a force, or an option of one, that is not known; the message names it.
    """

    def __init__(
        self,
        system: openmm.System | MolecularSystem | Terms,
        dtype: Any = "float64",
        device: Any = "cpu",
        *,
        backend: str = "auto",
        threads: int | None = None,
        memory_mib: int = MEMORY_MIB,
        compiled: bool | None = None,
    ) -> None:
        if isinstance(system, MolecularSystem):
            system = openmm.XmlSerializer.deserialize(system.system_xml)
        self.terms = system if isinstance(system, Terms) else read_terms(system)
        name = dtype.__name__ if isinstance(dtype, type) else str(dtype).removeprefix("torch.")
        if name not in ("float32", "float64"):
            raise InputError(f"dtype {dtype}: the batched engine computes in float32 or float64")
        self.dtype = np.dtype(name)
        self.device = str(device)
        self.threads = threads or available_cores()
        problem = self._kernel_problem()
        if backend == "kernel" and problem:
            raise UnsupportedForce(f"the C++ kernel cannot be used: {problem}")
        if backend not in ("auto", "kernel", "torch"):
            raise InputError(f"backend '{backend}' does not exist; the backends are: auto, kernel, torch")
        self.backend = "torch" if backend == "torch" or problem else "kernel"
        self.native: NativeMolecule | None = None
        self._torch: TorchEnergies | None = None
        if self.backend == "kernel":
            self.native = NativeMolecule(self.terms, self.dtype)
        else:
            self._torch = TorchEnergies(self.terms, self.dtype, self.device, memory_mib, compiled)

    def _kernel_problem(self) -> str:
        if self.device != "cpu":
            return f"it runs on CPUs, not on {self.device}"
        if self.terms.custom:
            return f"it does not know {', '.join(sorted({term.name for term in self.terms.custom}))}"
        if self.terms.torsion_cos.shape[1] - 1 > MAX_HARMONIC:
            return f"a torsion has a multiplicity above {MAX_HARMONIC}"
        return "" if built_variants() else "it is not built (no C++ compiler when the package was installed)"

    @property
    def n_atoms(self) -> int:
        """Number of atoms of a copy."""
        return self.terms.n_atoms

    @property
    def description(self) -> str:
        """What computes, in words for tables."""
        if self.native is not None:
            return f"C++ kernel ({self.native.variant}, {self.dtype.name}, {self.native.lanes} copies per vector)"
        assert self._torch is not None
        how = "compiled" if self._torch.compiled else "eager"
        return f"torch ({how}, {self.dtype.name}, {self.device})"

    def energies(self, positions_nm: Any) -> Any:
        """Return potential energies; +inf where they are not finite.

        Parameters
        ----------
        positions_nm : np.ndarray or torch.Tensor, shape=(n, n_atoms, 3)

        Returns
        -------
        np.ndarray or torch.Tensor (as the input), shape=(n,), float64, kJ/mol
        """
        return self._evaluate(positions_nm, forces=False)[0]

    def energies_and_forces(self, positions_nm: Any) -> tuple[Any, Any]:
        """Return energies (n,) in kJ/mol, float64, and forces (n, n_atoms, 3) in kJ/mol/nm, in the system's dtype."""
        return self._evaluate(positions_nm, forces=True)

    def _evaluate(self, positions_nm: Any, *, forces: bool) -> tuple[Any, Any]:
        if tuple(positions_nm.shape[1:]) != (self.n_atoms, 3):
            raise InputError(f"positions of shape {tuple(positions_nm.shape)} do not fit {self.n_atoms} atoms")
        is_tensor = not isinstance(positions_nm, np.ndarray)
        if self._torch is not None:
            return self._torch.evaluate(positions_nm, forces=forces)
        positions = positions_nm.detach().cpu().numpy() if is_tensor else positions_nm
        energies, found = self._run_kernel(positions, forces=forces)
        if not is_tensor:
            return energies, found
        import torch

        device = positions_nm.device
        return torch.from_numpy(energies).to(device), None if found is None else torch.from_numpy(found).to(device)

    def _run_kernel(self, positions_nm: np.ndarray, *, forces: bool) -> tuple[np.ndarray, np.ndarray | None]:
        assert self.native is not None
        native, n = self.native, len(positions_nm)
        energies = np.empty(n)
        found = np.empty(positions_nm.shape, dtype=self.dtype) if forces else None

        def part(rows: slice) -> None:
            energies[rows] = native.energies(positions_nm[rows], None if found is None else found[rows])

        in_threads(part, split_copies(n, native.lanes, self.threads))
        finite = np.isfinite(positions_nm.sum((1, 2))) & np.isfinite(energies)
        return np.where(finite, energies, np.inf), found


def split_copies(n: int, lanes: int, n_parts: int) -> list[slice]:
    """Cut `n` copies into at most `n_parts` ranges, at multiples of the vector length."""
    groups = -(-n // lanes)
    edges = [min(n, lanes * (groups * part // n_parts)) for part in range(n_parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges) if b > a]


_pool: concurrent.futures.ThreadPoolExecutor | None = None


def in_threads(function: Callable[[slice], None], parts: list[slice]) -> None:
    """Call `function` with each part, at once; the kernel releases Python's lock."""
    global _pool  # noqa: PLW0603 (threads are kept: starting them costs more than a short call)
    if len(parts) <= 1:
        for part in parts:
            function(part)
        return
    if _pool is None:
        _pool = concurrent.futures.ThreadPoolExecutor(available_cores(), thread_name_prefix="hpc-molgen")
    for future in [_pool.submit(function, part) for part in parts]:
        future.result()


def reset_threads() -> None:
    """Forget the threads of a parent process after a fork."""
    global _pool  # noqa: PLW0603
    _pool = None


os.register_at_fork(after_in_child=reset_threads)


def compile_cache() -> Path:
    """Folder in which compiled code is kept from run to run: HPC_MOLGEN_CACHE, or the user's cache folder."""
    base = os.environ.get("HPC_MOLGEN_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "hpc_molgen" / "torchinductor"


def has_compiler(device: str) -> bool:
    """Return whether torch.compile can work: a C++ compiler for CPUs, Triton for GPUs."""
    if device.startswith("cpu"):
        return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    import importlib.util

    return importlib.util.find_spec("triton") is not None


class TorchEnergies:
    """Energies and forces in torch, in chunks of one shape; compiled once per system and shape, kept between runs."""

    COMPILE_FROM = 200_000  # conformations: below, compiling (15 to 40 s when not cached) costs more than it saves

    def __init__(self, terms: Terms, dtype: np.dtype[Any], device: str, memory_mib: int, compiled: bool | None) -> None:
        import torch

        from hpc_molgen.dynamics.torch_terms import largest_intermediate, torch_energy

        self.dtype = torch.float32 if dtype == np.float32 else torch.float64
        self.device = torch.device(device)
        self.n_atoms, self._asked, self.compiled = terms.n_atoms, compiled, False
        self._invariant = terms.translation_invariant
        self._energy = torch_energy(terms, self.dtype, self.device)
        # a dozen intermediates live at once; on CPUs chunks that stay in the second-level cache are fastest
        budget = memory_mib * 2**20 // (12 * dtype.itemsize * largest_intermediate(terms))
        cached = 2**20 // (dtype.itemsize * 3 * max(terms.n_atoms, 8)) if self.device.type == "cpu" else 2**16
        self.chunk = int(max(16, min(budget, cached)) // 16 * 16)
        self._function = self._energy

    def prepare(self, n: int) -> None:
        """Compile now if that was asked for, or pays for `n` conformations; falls back to eager with a message."""
        wanted = self._asked if self._asked is not None else n >= self.COMPILE_FROM
        if not wanted or self.compiled or self._asked is False:
            return
        import torch

        if not has_compiler(str(self.device)):
            log.warning("torch energies run uncompiled and several times slower: no compiler was found")
            self._asked = False
            return
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(compile_cache()))
        log.info("compiling the energy function (kept in %s for later runs)", os.environ["TORCHINDUCTOR_CACHE_DIR"])
        start = time.perf_counter()
        try:
            # the limit counts over all systems of a process, which share the code of one function
            limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
            setattr(torch._dynamo.config, limit, 1024)
            function = torch.compile(self._energy, dynamic=False, fullgraph=True)
            x = torch.randn((3, self.n_atoms, self.chunk), dtype=self.dtype, device=self.device)
            with torch.no_grad():
                function(x)
        except Exception as error:  # whatever a compiler or a read-only cache raises: eager gives the same numbers
            log.warning("torch energies run uncompiled and several times slower: %s", str(error).splitlines()[0])
            self._asked = False
            return
        log.info("compiled in %.1f s", time.perf_counter() - start)
        self._function, self.compiled = function, True

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
        import torch

        if not forces:
            with torch.no_grad():
                return self._function(x), None
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energies = self._function(x)
            (gradient,) = torch.autograd.grad(energies.sum(), x)
        return energies.detach(), -gradient


def try_batched(system: MolecularSystem, dtype: str = "float64", **options: Any) -> BatchedSystem | None:
    """Return the batched system, or None with a message in the log where a force is not known."""
    try:
        return BatchedSystem(system, dtype, **options)
    except UnsupportedForce as problem:
        log.warning("%s: the batched engine cannot be used (%s); OpenMM computes instead", system.name, problem)
        return None
