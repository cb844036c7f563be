"""Disordered proteins as chains of one bead for each residue: the CALVADOS 2 model, for alpha-synuclein or any sequence.

Tesei, Schulze, Crehuet and Lindorff-Larsen 2021, PNAS 118, e2111696118 (the model); Tesei and Lindorff-Larsen 2023, Open
Research Europe 2, 94 (these parameters, and the cut-off of 2 nm): springs between neighbours, an Ashbaugh-Hatch potential whose
attraction is scaled by the stickiness of the two residues, and screened charges in implicit salt water.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import openmm

from hpc_molgen.errors import InputError
from hpc_molgen.seeding import numpy_generator
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.structure_based import chain_topology
from hpc_molgen.units import AVOGADRO_PER_MOL, COULOMB_KJ_NM_MOL, kt_kj_mol

if TYPE_CHECKING:
    from hpc_molgen.config import SystemConfig

BOND_NM, BOND_KJ_MOL_NM2 = 0.38, 8033.0  # of k in k / 2 (r - r0)^2
EPSILON_KJ_MOL = 0.8368  # 0.2 kcal/mol
STICKY_CUTOFF_NM, CHARGE_CUTOFF_NM = 2.0, 4.0
FIRST_MASS_AMU, LAST_MASS_AMU = 2.0, 16.0  # what the ends of a chain are heavier than the residues in it
HISTIDINE_PK = 6.0
START_APART_NM = 0.5  # beads of the first structure, at least, unless neighbours


@dataclass(frozen=True)
class Residue:
    """Parameters of one kind of bead: mass in u, diameter sigma in nm, stickiness lambda, charge in e."""

    name: str
    mass_amu: float
    sigma_nm: float
    stickiness: float
    charge: float = 0.0


# the published table, residues_CALVADOS2.csv of KULL-Centre/CALVADOS (examples/single_IDR/input); histidine: `residue_charges`
RESIDUES = {
    "R": Residue("ARG", 156.19, 0.656, 0.730762476752, 1.0),
    "D": Residue("ASP", 115.09, 0.558, 0.041604048061, -1.0),
    "N": Residue("ASN", 114.10, 0.568, 0.425585900979),
    "E": Residue("GLU", 129.11, 0.592, 0.000693546096, -1.0),
    "K": Residue("LYS", 128.17, 0.636, 0.179021173899, 1.0),
    "H": Residue("HIS", 137.14, 0.608, 0.466366729056),
    "Q": Residue("GLN", 128.13, 0.602, 0.393431855106),
    "S": Residue("SER", 87.08, 0.518, 0.462541681161),
    "C": Residue("CYS", 103.14, 0.548, 0.561543509914),
    "G": Residue("GLY", 57.05, 0.450, 0.705884373367),
    "T": Residue("THR", 101.11, 0.562, 0.371316297627),
    "A": Residue("ALA", 71.07, 0.504, 0.274329796904),
    "M": Residue("MET", 131.20, 0.618, 0.530848113434),
    "Y": Residue("TYR", 163.18, 0.646, 0.977461144934),
    "V": Residue("VAL", 99.13, 0.586, 0.208376960817),
    "W": Residue("TRP", 186.22, 0.678, 0.989376474037),
    "L": Residue("LEU", 113.16, 0.618, 0.644000500778),
    "I": Residue("ILE", 113.16, 0.618, 0.542362361067),
    "P": Residue("PRO", 97.12, 0.556, 0.359312657636),
    "F": Residue("PHE", 147.18, 0.636, 0.867235898206),
}
# human alpha-synuclein, UniProt P37840, isoform 1
ALPHA_SYNUCLEIN = (
    "MDVFMKGLSKAKEGVVAAAEKTKQGVAEAAGKTKEGVLYVGSKTKEGVVHGVATVAEKTKEQVTNVGGAV"
    "VTGVTAVAQKTVEGAGSIAAATGFVKKDQLGKNEEGAPQEGILEDMPVDPDNEAYEMPSEEGYQDYEPEA"
)


def alpha_synuclein(config: SystemConfig) -> MolecularSystem:
    """Return human alpha-synuclein, 140 residues.

    Raises
    ------
    InputError
        When the configuration gives another sequence.
    """
    if config.sequence not in (None, ALPHA_SYNUCLEIN):
        raise InputError("system.sequence: 'alpha-synuclein' has its own; name the system 'calvados' for another")
    return _build("alpha-synuclein", ALPHA_SYNUCLEIN, config)


def calvados(config: SystemConfig) -> MolecularSystem:
    """Return a chain of the sequence of the configuration.

    Raises
    ------
    InputError
        When it gives none, or one with letters that are no amino acid.
    """
    sequence = (config.sequence or "").upper()
    unknown = sorted(set(sequence) - set(RESIDUES))
    if len(sequence) < 2 or unknown:
        problem = f"there are no residues {', '.join(unknown)}" if unknown else "two residues at least are needed"
        raise InputError(f"system.sequence: {problem}; write one letter for each residue, of {' '.join(sorted(RESIDUES))}")
    return _build(f"chain of {len(sequence)} residues", sequence, config)


def _build(name: str, sequence: str, config: SystemConfig) -> MolecularSystem:
    kelvin, molar = config.temperature_kelvin, config.ionic_strength_molar
    charges = residue_charges(sequence, config.ph)
    return MolecularSystem(
        name=name,
        topology=chain_topology([RESIDUES[letter].name for letter in sequence]),
        system_xml=openmm.XmlSerializer.serialize(build_model(sequence, charges, kelvin, molar)),
        positions_nm=self_avoiding_chain(len(sequence)),
        temperature_kelvin=kelvin,
        description=f"CALVADOS 2, one bead per residue, pH {config.ph:g}, {molar:g} M salt: "
        f"Debye length {debye_length_nm(kelvin, molar):.3f} nm, net charge {charges.sum():.2f} e",
    )


def water_permittivity(temperature_kelvin: float) -> float:
    """Relative permittivity of water between 273 and 643 K (Akerlof and Oshry 1950, J. Am. Chem. Soc. 72, 2844)."""
    t = temperature_kelvin
    return 5321 / t + 233.76 - 0.9297 * t + 1.417e-3 * t**2 - 8.292e-7 * t**3


def debye_length_nm(temperature_kelvin: float, ionic_strength_molar: float) -> float:
    """Screening length of salt water, (8 pi l_B N_A I)^(-1/2) with Bjerrum's length l_B = e^2 / (4 pi eps0 eps_r kT).

    Debye and Hueckel 1923, Phys. Z. 24, 185. Infinite without salt.
    """
    bjerrum_nm = COULOMB_KJ_NM_MOL / (water_permittivity(temperature_kelvin) * kt_kj_mol(temperature_kelvin))
    ions_per_nm3 = ionic_strength_molar * AVOGADRO_PER_MOL * 1e-24
    return 1 / math.sqrt(8 * math.pi * bjerrum_nm * ions_per_nm3) if ions_per_nm3 else math.inf


def residue_charges(sequence: str, ph: float) -> np.ndarray:
    """Return charges (n_residues,) in e: ends charged, histidine by Henderson and Hasselbalch's equation."""
    charges = np.array([RESIDUES[letter].charge for letter in sequence])
    charges[[letter == "H" for letter in sequence]] = 1 / (1 + 10 ** (ph - HISTIDINE_PK))
    charges[0] += 1
    charges[-1] -= 1
    return charges


def build_model(sequence: str, charges: np.ndarray, temperature_kelvin: float, ionic_strength_molar: float) -> openmm.System:
    """Return the energy function of a chain; neighbours feel their spring alone.

    Parameters
    ----------
    charges : np.ndarray, shape=(n_residues,)
    """
    residues, last = [RESIDUES[letter] for letter in sequence], len(sequence) - 1
    system = openmm.System()
    for index, residue in enumerate(residues):
        system.addParticle(residue.mass_amu + FIRST_MASS_AMU * (index == 0) + LAST_MASS_AMU * (index == last))
    bonds = openmm.HarmonicBondForce()
    for index in range(last):
        bonds.addBond(index, index + 1, BOND_NM, BOND_KJ_MOL_NM2)
    sticky = _ashbaugh_hatch(residues)
    for index in range(last):
        sticky.addExclusion(index, index + 1)
    for force in (bonds, sticky, _debye_hueckel(charges, temperature_kelvin, ionic_strength_molar)):
        system.addForce(force)
    return system


def _ashbaugh_hatch(residues: list[Residue]) -> openmm.CustomNonbondedForce:
    """Ashbaugh and Hatch 2008, J. Am. Chem. Soc. 130, 9536: Lennard-Jones with its attraction scaled, zero at the cut-off."""
    force = openmm.CustomNonbondedForce(
        f"select(far, stick, 1) * 4 * {EPSILON_KJ_MOL} * (near6^2 - near6) + select(far, 0, {EPSILON_KJ_MOL} * (1 - stick))"
        f" - stick * 4 * {EPSILON_KJ_MOL} * (cut6^2 - cut6);"
        f"far = step(r - {2 ** (1 / 6)!r} * sigma); near6 = (sigma / r)^6; cut6 = (sigma / {STICKY_CUTOFF_NM})^6;"
        "sigma = (sigma1 + sigma2) / 2; stick = (stick1 + stick2) / 2"
    )
    for name in ("sigma", "stick"):
        force.addPerParticleParameter(name)
    for residue in residues:
        force.addParticle([residue.sigma_nm, residue.stickiness])
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)
    force.setCutoffDistance(STICKY_CUTOFF_NM)
    return force


def _debye_hueckel(charges: np.ndarray, temperature_kelvin: float, ionic_strength_molar: float) -> openmm.CustomBondForce:
    """Screened Coulomb, zero at the cut-off, between the pairs of charged beads.

    Most beads have no charge: as bonds between the others it takes 0.6 times as long as by a second CustomNonbondedForce.
    """
    kappa = 1 / debye_length_nm(temperature_kelvin, ionic_strength_molar)
    at_cutoff = math.exp(-kappa * CHARGE_CUTOFF_NM) / CHARGE_CUTOFF_NM
    force = openmm.CustomBondForce(f"step({CHARGE_CUTOFF_NM} - r) * product * (exp(-{kappa!r} * r) / r - {at_cutoff!r})")
    force.addPerBondParameter("product")
    strength = COULOMB_KJ_NM_MOL / water_permittivity(temperature_kelvin)
    for i, j in itertools.combinations(np.flatnonzero(charges).tolist(), 2):
        if j - i > 1:
            force.addBond(i, j, [strength * float(charges[i] * charges[j])])
    return force


def self_avoiding_chain(n: int) -> np.ndarray:
    """Return positions (n, 3), in nm, of a random chain whose beads keep `START_APART_NM`; the same for the same length."""
    generator = numpy_generator(n, "self-avoiding chain")
    chain = [np.zeros(3)]
    while len(chain) < n:
        for _ in range(50):
            step = generator.normal(size=3)
            new = chain[-1] + BOND_NM * step / np.linalg.norm(step)
            if len(chain) < 2 or np.linalg.norm(np.array(chain[:-1]) - new, axis=1).min() > START_APART_NM:
                chain.append(new)
                break
        else:  # a dead end: go back and try another way
            del chain[max(1, len(chain) - 10) :]
    positions = np.array(chain)
    return np.asarray(positions - positions.mean(axis=0))
