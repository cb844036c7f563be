"""Energies and forces of many copies of one molecule at once: the C++ kernel on CPUs, torch on GPUs and for other forces."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm

from hpc_molgen.dynamics.kernel import NativeMolecule, built_variants
from hpc_molgen.dynamics.terms import Terms, read_terms
from hpc_molgen.errors import InputError, UnsupportedForce
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.workers import available_cores

if TYPE_CHECKING:
    from hpc_molgen.dynamics.torch_energies import TorchEnergies

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
        Every core of this process by default. Torch, which has one setting for the process, is given it only when named.
    memory_mib : int
        Budget of one chunk in torch.
    compiled : bool, optional
        torch.compile; by default where it pays (for 200,000 conformations and more) and a compiler is there.

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
            from hpc_molgen.dynamics.torch_energies import TorchEnergies

            self._torch = TorchEnergies(self.terms, self.dtype, self.device, memory_mib, compiled, threads)

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

    def prepare(self, n: int) -> None:
        """Say that `n` conformations are to come, so that torch compiles where that pays."""
        if self._torch is not None:
            self._torch.prepare(n)

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


def try_batched(system: MolecularSystem, dtype: str = "float64", **options: Any) -> BatchedSystem | None:
    """Return the batched system, or None with a message in the log where a force is not known."""
    try:
        return BatchedSystem(system, dtype, **options)
    except InputError as problem:  # a force that is not known, or a formula that only OpenMM can read
        log.warning("%s: the batched engine cannot be used (%s); OpenMM computes instead", system.name, problem)
        return None
