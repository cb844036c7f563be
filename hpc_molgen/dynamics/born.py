"""Generalised Born solvents that the batched engine has in its own code: OBC1 and OBC2, with or without a surface term."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import openmm
from openmm import unit

from hpc_molgen.errors import UnsupportedForce
from hpc_molgen.units import COULOMB_KJ_NM_MOL

OFFSET_NM = 0.009  # dielectric offset of the OBC model (Onufriev, Bashford, Case 2004, Proteins 55, 383)
PROBE_NM = 0.14  # radius of the solvent probe in the ACE surface term (Schaefer, Bartels, Karplus 1998, J. Mol. Biol. 284, 835)
OBC1, OBC2 = (0.8, 0.0, 2.909125), (1.0, 0.8, 4.85)  # alpha, beta, gamma of that paper


@dataclass(frozen=True)
class GeneralisedBorn:
    """An OBC model with the ACE surface term.

    Attributes
    ----------
    charge : np.ndarray, shape=(n_atoms,)
        In units of e, times the square root of the Coulomb prefactor: products are in kJ nm / mol.
    radius_nm, scale : np.ndarray, shape=(n_atoms,)
    prefactor : float
        -(1 / solute - 1 / solvent dielectric constant).
    surface_kj_mol_nm2 : float
        Energy of the surface term per area, times 4 pi.
    rescaling : tuple of 3 floats
        alpha, beta and gamma of the tanh.
    engulfed : bool
        Whether an atom within another's sphere is descreened by all of it: so in GBSAOBCForce, not in the expressions of
        OpenMM's CustomGBForces.
    """

    charge: np.ndarray
    radius_nm: np.ndarray
    scale: np.ndarray
    prefactor: float
    surface_kj_mol_nm2: float
    rescaling: tuple[float, float, float] = OBC2
    engulfed: bool = True


def read_native(force: openmm.GBSAOBCForce) -> GeneralisedBorn:
    """Return what a GBSAOBCForce says.

    Raises
    ------
    UnsupportedForce
        When it has a cut-off.
    """
    if force.getNonbondedMethod() != openmm.GBSAOBCForce.NoCutoff:
        raise UnsupportedForce(f"{force.getName()} (GBSAOBCForce) has a cut-off; the batched engine knows NoCutoff")
    particles = [force.getParticleParameters(index) for index in range(force.getNumParticles())]
    return GeneralisedBorn(
        charge=np.array([q._value for q, _, _ in particles]) * np.sqrt(COULOMB_KJ_NM_MOL),
        radius_nm=np.array([r._value for _, r, _ in particles]),
        scale=np.array([float(s) for _, _, s in particles]),
        prefactor=-(1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric()),
        surface_kj_mol_nm2=4 * np.pi * force.getSurfaceAreaEnergy().value_in_unit_system(unit.md_unit_system),
    )


# what OpenMM's force field files and its readers of Amber files write (openmm.app.internal.customgbforces), without blanks
_DESCREENING = (
    "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0);"
    + "U=r+sr2;L=max(or1,D);D=abs(r-sr2)"
)
_RADIUS = "1/(1/or-tanh({})/radius);psi=I*or;radius=or+offset;offset=0.009"
_RADII = {
    _RADIUS.format("0.8*psi+2.909125*psi^3"): OBC1,
    _RADIUS.format("psi-0.8*psi^2+4.85*psi^3"): OBC2,
}
_COULOMB = 138.935485  # as these expressions have it
_DIELECTRIC = f"{_COULOMB}*(1/soluteDielectric-1/solventDielectric)"
_SELF = f"-0.5*{_DIELECTRIC}*charge^2/B"
_PAIR = f"-{_DIELECTRIC}*charge1*charge2/f;f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"
_SURFACE = "28.3919551*(radius+0.14)^2*(radius/B)^6;radius=or+offset"
_TAIL = re.compile(r";solventDielectric=([^;]+);soluteDielectric=([^;]+);kappa=0;offset=([^;]+)$")
_SINGLE, _EVERY_PAIR = openmm.CustomGBForce.SingleParticle, openmm.CustomGBForce.ParticlePairNoExclusions


def recognise(force: openmm.CustomGBForce) -> GeneralisedBorn | None:
    """Return a CustomGBForce as one of the models above; None where it is not, to the letter, what OpenMM writes for them.

    Salt, cut-offs, other radii (GBn) and surface terms of another kind make it another force.
    """
    names = [force.getPerParticleParameterName(index) for index in range(force.getNumPerParticleParameters())]
    plain = force.getNonbondedMethod() == openmm.CustomGBForce.NoCutoff and not force.getNumTabulatedFunctions()
    if not plain or names != ["charge", "or", "sr"] or force.getNumGlobalParameters():
        return None
    computed = [_squeezed(force.getComputedValueParameters(index)) for index in range(force.getNumComputedValues())]
    if len(computed) != 2 or computed[0] != ("I", _DESCREENING, _EVERY_PAIR):
        return None
    name, text, kind = computed[1]
    rescaling = _RADII.get(text)
    if (name, kind) != ("B", _SINGLE) or rescaling is None:
        return None
    terms = [_squeezed(force.getEnergyTermParameters(index)) for index in range(force.getNumEnergyTerms())]
    ends = {end.groups() if (end := _TAIL.search(text)) else None for text, _ in terms}
    found = sorted((_TAIL.sub("", text), kind) for text, kind in terms)
    has_surface = (_SURFACE, _SINGLE) in found
    wanted = [(_SELF, _SINGLE), (_PAIR, _EVERY_PAIR), *[(_SURFACE, _SINGLE)] * has_surface]
    constants = ends.pop() if len(ends) == 1 else None
    if found != sorted(wanted) or constants is None:
        return None
    solvent, solute, offset = map(float, constants)
    if abs(offset - OFFSET_NM) > 1e-9:
        return None
    particles = np.array([force.getParticleParameters(index) for index in range(force.getNumParticles())]).reshape(-1, 3)
    charge, inner, scaled = particles.T
    return GeneralisedBorn(
        charge=charge * np.sqrt(_COULOMB),
        radius_nm=inner + OFFSET_NM,
        scale=scaled / inner,
        prefactor=-(1 / solute - 1 / solvent),
        surface_kj_mol_nm2=28.3919551 if has_surface else 0.0,
        rescaling=rescaling,
        engulfed=False,
    )


def _squeezed(values: Any) -> tuple[Any, ...]:
    return tuple(value.replace(" ", "") if isinstance(value, str) else value for value in values)
