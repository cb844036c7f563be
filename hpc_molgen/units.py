"""Physical constants in the units of this package: nm, ps, kelvin, kJ/mol."""

BOLTZMANN_KJ_MOL_KELVIN = 0.008314462618  # CODATA 2018: R in kJ/(mol K)


def kt_kj_mol(temperature_kelvin: float) -> float:
    """Thermal energy kT in kJ/mol at `temperature_kelvin`."""
    return BOLTZMANN_KJ_MOL_KELVIN * temperature_kelvin
