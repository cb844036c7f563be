"""The energy terms of an openmm.System as plain arrays: what the batched engine evaluates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import openmm
from openmm import unit

from hpc_molgen.dynamics import born
from hpc_molgen.errors import UnsupportedForce
from hpc_molgen.units import COULOMB_KJ_NM_MOL

if TYPE_CHECKING:
    from hpc_molgen.dynamics.custom.terms import CustomTerm

MAX_ATOMS = 3000
_SILENT = ("CMMotionRemover", "MonteCarloBarostat", "AndersenThermostat")


@dataclass(frozen=True)
class Terms:
    """Energy terms of a molecule without cut-off and without periodic box; units nm, kJ/mol, u, radians.

    Attributes
    ----------
    masses_amu : np.ndarray, shape=(n_atoms,)
    bonds, bond_parameters : np.ndarray, shape=(n_bonds, 2)
        Atoms; equilibrium length and force constant of k/2 (r - r0)^2.
    angles, angle_parameters : np.ndarray, shape=(n_angles, 3), (n_angles, 2)
        Atoms; equilibrium angle and force constant of k/2 (theta - theta0)^2.
    torsions : np.ndarray, shape=(n_torsions, 4)
        Each set of four atoms once.
    torsion_cos, torsion_sin : np.ndarray, shape=(n_torsions, n_max + 1)
        Fourier coefficients: E = sum_n c_n cos(n phi) + s_n sin(n phi).
    coulomb, c12, c6 : np.ndarray, shape=(n_atoms, n_atoms)
        Symmetric: E = coulomb/r + c12/r^12 - c6/r^6; zero where excluded and on the diagonal.
    born : GeneralisedBorn or None
    custom : tuple of CustomTerm
        Terms that only the torch backend evaluates.
    constraints, constraint_lengths_nm : np.ndarray, shape=(n_constraints, 2), (n_constraints,)
        No part of the energy; dynamics keeps them.
    """

    masses_amu: np.ndarray
    bonds: np.ndarray
    bond_parameters: np.ndarray
    angles: np.ndarray
    angle_parameters: np.ndarray
    torsions: np.ndarray
    torsion_cos: np.ndarray
    torsion_sin: np.ndarray
    coulomb: np.ndarray
    c12: np.ndarray
    c6: np.ndarray
    born: born.GeneralisedBorn | None
    constraints: np.ndarray
    constraint_lengths_nm: np.ndarray
    custom: tuple[CustomTerm, ...] = field(default=())

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.masses_amu)

    @property
    def translation_invariant(self) -> bool:
        """True when no term depends on where in space the molecule is."""
        return all(term.translation_invariant for term in self.custom)


class _Collector:
    """Sums of what several forces of one kind contribute."""

    def __init__(self, system: openmm.System) -> None:
        self.system = system
        n_atoms = system.getNumParticles()
        self.bonds: list[tuple[int, int, float, float]] = []
        self.angles: list[tuple[int, int, int, float, float]] = []
        self.fourier: dict[tuple[int, int, int, int], dict[int, complex]] = {}
        self.coulomb, self.c12, self.c6 = (np.zeros((n_atoms, n_atoms)) for _ in range(3))
        self.born: born.GeneralisedBorn | None = None
        self.custom: list[CustomTerm] = []

    def add_born(self, found: born.GeneralisedBorn) -> None:
        """Set the one implicit solvent."""
        if self.born is not None:
            raise UnsupportedForce("two GBSAOBCForces, or forces like it, in one System")
        self.born = found

    def add_torsion(self, atoms: tuple[int, int, int, int], n: int, coefficient: complex) -> None:
        """Add Re(coefficient exp(-i n phi)), that is Re(c) cos(n phi) + Im(c) sin(n phi)."""
        series = self.fourier.setdefault(atoms, {})
        series[n] = series.get(n, 0j) + coefficient


def _require_no_box(force: Any) -> None:
    if force.usesPeriodicBoundaryConditions():
        raise UnsupportedForce(f"{force.getName()} ({type(force).__name__}) uses periodic boundary conditions")


def _bonds(force: openmm.HarmonicBondForce, found: _Collector) -> None:
    for index in range(force.getNumBonds()):
        i, j, length, k = force.getBondParameters(index)
        if k._value:
            found.bonds.append((i, j, length.value_in_unit(unit.nanometer), k.value_in_unit_system(unit.md_unit_system)))


def _angles(force: openmm.HarmonicAngleForce, found: _Collector) -> None:
    for index in range(force.getNumAngles()):
        i, j, k, angle, strength = force.getAngleParameters(index)
        if strength._value:
            found.angles.append((i, j, k, angle.value_in_unit(unit.radian), strength.value_in_unit_system(unit.md_unit_system)))


def _torsions(force: openmm.PeriodicTorsionForce, found: _Collector) -> None:
    for index in range(force.getNumTorsions()):
        i, j, k, m, n, phase, strength = force.getTorsionParameters(index)
        height = strength.value_in_unit(unit.kilojoule_per_mole)
        if height:  # k (1 + cos(n phi - phase))
            found.add_torsion((i, j, k, m), 0, height)
            found.add_torsion((i, j, k, m), n, height * np.exp(1j * phase.value_in_unit(unit.radian)))


def _ryckaert_bellemans(force: openmm.RBTorsionForce, found: _Collector) -> None:
    for index in range(force.getNumTorsions()):
        i, j, k, m, *values = force.getTorsionParameters(index)
        powers = np.array([value.value_in_unit(unit.kilojoule_per_mole) for value in values])
        powers *= (-1.0) ** np.arange(6)  # sum_n C_n cos(phi - pi)^n
        for n, coefficient in enumerate(np.polynomial.chebyshev.poly2cheb(powers)):
            found.add_torsion((i, j, k, m), n, complex(coefficient))


def _nonbonded(force: openmm.NonbondedForce, found: _Collector) -> None:
    if force.getNonbondedMethod() != openmm.NonbondedForce.NoCutoff:
        raise UnsupportedForce(f"{force.getName()} (NonbondedForce) has a cut-off; the batched engine knows NoCutoff")
    if force.getNumParticleParameterOffsets() or force.getNumExceptionParameterOffsets():
        raise UnsupportedForce(f"{force.getName()} (NonbondedForce) has parameter offsets")
    particles = [force.getParticleParameters(index) for index in range(force.getNumParticles())]
    charge = np.array([q._value for q, _, _ in particles])
    sigma = np.array([s._value for _, s, _ in particles])
    epsilon = np.array([e._value for _, _, e in particles])
    product = np.outer(charge, charge)
    size = (sigma[:, None] + sigma) / 2
    depth = np.sqrt(np.outer(epsilon, epsilon))
    for index in range(force.getNumExceptions()):
        i, j, q, s, e = force.getExceptionParameters(index)
        for a, b in ((i, j), (j, i)):
            product[a, b], size[a, b], depth[a, b] = q._value, s._value, e._value
    for matrix in (product, depth):
        np.fill_diagonal(matrix, 0.0)
    found.coulomb += COULOMB_KJ_NM_MOL * product
    found.c12 += 4 * depth * size**12
    found.c6 += 4 * depth * size**6


def _generalised_born(force: openmm.GBSAOBCForce, found: _Collector) -> None:
    found.add_born(born.read_native(force))


def _custom_born(force: openmm.CustomGBForce, found: _Collector) -> None:
    known = born.recognise(force)
    if known is None:
        _custom(force, found)
    else:
        found.add_born(known)


def _custom(force: Any, found: _Collector) -> None:
    from hpc_molgen.dynamics.custom.terms import read_custom

    found.custom.append(read_custom(force, found.system))


_READERS: dict[str, Callable[[Any, _Collector], None]] = {
    "HarmonicBondForce": _bonds,
    "HarmonicAngleForce": _angles,
    "PeriodicTorsionForce": _torsions,
    "RBTorsionForce": _ryckaert_bellemans,
    "NonbondedForce": _nonbonded,
    "GBSAOBCForce": _generalised_born,
    "CustomGBForce": _custom_born,
}


def read_terms(system: openmm.System) -> Terms:
    """Return the energy terms of an openmm.System.

    Raises
    ------
    UnsupportedForce
        For a force, an option of one (cut-off, periodic box, parameter offsets) or a virtual site that the batched engine
        does not know; the message names it.
    """
    n_atoms = system.getNumParticles()
    for force in system.getForces():
        if type(force).__name__ not in _SILENT:
            _require_no_box(force)
    if n_atoms > MAX_ATOMS:
        raise UnsupportedForce(f"the System has {n_atoms} atoms; the batched engine, which treats all pairs, takes {MAX_ATOMS}")
    if any(system.isVirtualSite(index) for index in range(n_atoms)):
        raise UnsupportedForce("the System has virtual sites")
    found = _Collector(system)
    for force in system.getForces():
        kind = type(force).__name__
        if kind in _SILENT:  # no energy of their own
            continue
        _READERS.get(kind, _custom)(force, found)
    constraints = [system.getConstraintParameters(index) for index in range(system.getNumConstraints())]
    quads = list(found.fourier)
    n_max = max((n for series in found.fourier.values() for n in series), default=0)
    coefficients = np.zeros((len(quads), n_max + 1), dtype=complex)
    for row, quad in enumerate(quads):
        for n, value in found.fourier[quad].items():
            coefficients[row, n] = value
    return Terms(
        masses_amu=np.array([system.getParticleMass(index)._value for index in range(n_atoms)]),
        bonds=_integers([b[:2] for b in found.bonds], 2),
        bond_parameters=_reals([b[2:] for b in found.bonds], 2),
        angles=_integers([a[:3] for a in found.angles], 3),
        angle_parameters=_reals([a[3:] for a in found.angles], 2),
        torsions=_integers(quads, 4),
        torsion_cos=np.ascontiguousarray(coefficients.real),
        torsion_sin=np.ascontiguousarray(coefficients.imag),
        coulomb=found.coulomb,
        c12=found.c12,
        c6=found.c6,
        born=found.born,
        constraints=_integers([(i, j) for i, j, _ in constraints], 2),
        constraint_lengths_nm=np.array([d._value for _, _, d in constraints], dtype=np.float64),
        custom=tuple(found.custom),
    )


def _integers(rows: list[Any], columns: int) -> np.ndarray:
    return np.array(rows, dtype=np.int32).reshape(-1, columns)


def _reals(rows: list[Any], columns: int) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, columns)
