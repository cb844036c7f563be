"""The C++ kernel of the batched engine, one conformation per SIMD lane: loading it and calling it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen import native
from hpc_molgen.dynamics.born import OFFSET_NM, PROBE_NM
from hpc_molgen.dynamics.terms import Terms
from hpc_molgen.errors import EnvironmentProblem

_DOUBLES, _INTEGERS = ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_int32)


class _TermArrays(ctypes.Structure):
    """`TermArrays` of energy.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ["n_atoms", "n_bonds", "n_angles", "n_torsions", "n_max", "has_pairs", "has_born"]
        ),
        *((name, _INTEGERS) for name in ("bonds", "angles", "torsions")),
        *((name, _DOUBLES) for name in ("bond_parameters", "angle_parameters", "torsion_cos", "torsion_sin")),
        *((name, _DOUBLES) for name in ("coulomb", "c12", "c6", "born_charge", "born_radius", "born_scale")),
        *((name, ctypes.c_double) for name in ("born_prefactor", "born_surface", "born_offset", "born_probe")),
        *((name, ctypes.c_double) for name in ("born_alpha", "born_beta", "born_gamma", "born_engulfed")),
    ]


class _DynamicsArrays(ctypes.Structure):
    """`DynamicsArrays` of dynamics.h."""

    _fields_ = [
        ("masses_amu", _DOUBLES), ("constraints", _INTEGERS), ("constraint_lengths", _DOUBLES),
        ("n_constraints", ctypes.c_int64), ("timestep_ps", ctypes.c_double), ("friction_per_ps", ctypes.c_double),
        ("tolerance", ctypes.c_double), ("recentre", ctypes.c_int64),
    ]  # fmt: skip


_LAYOUT = 1000 * ctypes.sizeof(_TermArrays) + ctypes.sizeof(_DynamicsArrays)
_DIRECTORY = Path(__file__).parent


def built_variants() -> list[str]:
    """Return the variants of the kernel that were built and that this processor can run (see `native`), best first."""
    return native.built_variants(_DIRECTORY, _LAYOUT)


def load_library(variant: str | None = None) -> ctypes.CDLL:
    """Load a variant of the kernel, the best that runs here by default.

    Raises
    ------
    EnvironmentProblem
        When none was built (the package was installed where there is no C++ compiler).
    """
    variants = [variant] if variant else built_variants()
    library = native.open_variant(_DIRECTORY, _LAYOUT, variants[0]) if variants else None
    if library is None:
        raise EnvironmentProblem(
            "the C++ kernel of the batched engine is not built: install a C++ compiler and then this package again"
        )
    for suffix in ("f32", "f64"):
        getattr(library, f"hm_create_{suffix}").restype = ctypes.c_void_p
        getattr(library, f"hm_destroy_{suffix}").restype = None
        getattr(library, f"hm_lanes_{suffix}").restype = ctypes.c_int64
        getattr(library, f"hm_energies_{suffix}").restype = None
        getattr(library, f"hm_run_{suffix}").restype = None
    return library


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class NativeMolecule:
    """The built-in terms of one molecule in the kernel, in one precision; calls release Python's lock.

    Parameters
    ----------
    terms : Terms
        Without custom terms.
    dtype : np.dtype
        float32 or float64.
    """

    def __init__(self, terms: Terms, dtype: np.dtype[Any], variant: str | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.variant = variant or next(iter(built_variants()), "")
        self.n_atoms = terms.n_atoms
        self._library = load_library(self.variant or None)
        self._suffix = "f32" if self.dtype == np.float32 else "f64"
        self.lanes = int(self._function("lanes")())
        keep: list[np.ndarray] = []
        arrays = _TermArrays(
            n_atoms=terms.n_atoms, n_bonds=len(terms.bonds), n_angles=len(terms.angles), n_torsions=len(terms.torsions),
            n_max=terms.torsion_cos.shape[1] - 1, has_pairs=bool(terms.coulomb.any() or terms.c12.any() or terms.c6.any()),
            has_born=terms.born is not None, born_offset=OFFSET_NM, born_probe=PROBE_NM,
        )  # fmt: skip
        for name in ("bonds", "angles", "torsions", "bond_parameters", "angle_parameters", "torsion_cos", "torsion_sin"):
            setattr(arrays, name, _pointer(getattr(terms, name), keep))
        for name in ("coulomb", "c12", "c6"):
            setattr(arrays, name, _pointer(getattr(terms, name), keep))
        if terms.born is not None:
            arrays.born_charge = _pointer(terms.born.charge, keep)
            arrays.born_radius = _pointer(terms.born.radius_nm, keep)
            arrays.born_scale = _pointer(terms.born.scale, keep)
            arrays.born_prefactor = terms.born.prefactor
            arrays.born_surface = terms.born.surface_kj_mol_nm2
            arrays.born_alpha, arrays.born_beta, arrays.born_gamma = terms.born.rescaling
            arrays.born_engulfed = float(terms.born.engulfed)
        self._handle = ctypes.c_void_p(self._function("create")(ctypes.byref(arrays)))  # copies what it needs

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"hm_{name}_{self._suffix}")

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._function("destroy")(self._handle)

    def energies(self, positions_nm: np.ndarray, forces: np.ndarray | None = None) -> np.ndarray:
        """Return energies (n,) in kJ/mol of positions (n, n_atoms, 3); fill `forces`, same shape and `dtype`, if given."""
        positions = np.ascontiguousarray(positions_nm, dtype=None if positions_nm.dtype == np.float32 else np.float64)
        n = len(positions)
        energies = np.empty(n)
        if n:
            self._function("energies")(
                self._handle, _address(positions), ctypes.c_int64(positions.dtype == np.float64), ctypes.c_int64(n),
                _address(energies), None if forces is None else _address(forces),
            )  # fmt: skip
        return energies


class NativeIntegrator:
    """Langevin-middle steps of many copies in the kernel (see dynamics.h)."""

    def __init__(
        self,
        molecule: NativeMolecule,
        masses_amu: np.ndarray,
        constraints: np.ndarray,
        lengths_nm: np.ndarray,
        timestep_ps: float,
        friction_per_ps: float,
        tolerance: float,
        recentre: int,
    ) -> None:
        self._molecule = molecule
        self._keep: list[np.ndarray] = []
        self._arrays = _DynamicsArrays(
            masses_amu=_pointer(np.asarray(masses_amu, dtype=np.float64), self._keep),
            constraints=_pointer(np.asarray(constraints, dtype=np.int32), self._keep),
            constraint_lengths=_pointer(np.asarray(lengths_nm, dtype=np.float64), self._keep),
            n_constraints=len(lengths_nm), timestep_ps=timestep_ps, friction_per_ps=friction_per_ps,
            tolerance=tolerance, recentre=recentre,
        )  # fmt: skip

    def run(
        self, positions: np.ndarray, velocities: np.ndarray, kt: np.ndarray, seeds: np.ndarray, first_step: int, n_steps: int
    ) -> None:
        """Advance positions and velocities (n, n_atoms, 3), both of the molecule's dtype and contiguous, in place.

        Parameters
        ----------
        kt : np.ndarray, shape=(n,)
            Thermal energy of each copy, kJ/mol, float64.
        seeds : np.ndarray, shape=(n, 2), uint32
            Key of each copy's random stream.
        first_step : int
            Number of the first step: the counter of the random stream.
        """
        n = len(positions)
        if n and n_steps:
            self._molecule._function("run")(
                self._molecule._handle, ctypes.byref(self._arrays), _address(positions), _address(velocities), _address(kt),
                _address(seeds), ctypes.c_int64(n), ctypes.c_uint64(first_step), ctypes.c_int64(n_steps),
            )  # fmt: skip


def _pointer(array: np.ndarray, keep: list[np.ndarray]) -> Any:
    kind = _INTEGERS if array.dtype == np.int32 else _DOUBLES
    array = np.ascontiguousarray(array)
    keep.append(array)
    return array.ctypes.data_as(kind)
