"""Physical constants in the units of this package: nm, ps, kelvin, kJ/mol."""

import math

BOLTZMANN_KJ_MOL_KELVIN = 0.008314462618  # CODATA 2018: R in kJ/(mol K)
AVOGADRO_PER_MOL = 6.02214076e23
# e^2 N_A / (4 pi epsilon_0) in kJ nm / mol, from the CODATA 2018 constants that OpenMM uses
COULOMB_KJ_NM_MOL = 1.602176634e-19**2 * AVOGADRO_PER_MOL / (4 * math.pi * 8.8541878128e-12 * 1e-6)


def kt_kj_mol(temperature_kelvin: float) -> float:
    """Thermal energy kT in kJ/mol at `temperature_kelvin`."""
    return BOLTZMANN_KJ_MOL_KELVIN * temperature_kelvin
