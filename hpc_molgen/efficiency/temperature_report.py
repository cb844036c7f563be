"""The section of the report on other temperatures: what weights give there, and whether they agree with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpc_molgen import temperatures
from hpc_molgen.analysis.free_energy import free_energy_difference
from hpc_molgen.efficiency.tables import Table, number, share, unbroken
from hpc_molgen.efficiency.verdict import interval_text
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.reweighting import normalised_weights
from hpc_molgen.seeding import numpy_generator
from hpc_molgen.systems.torsions import torsion_angles

if TYPE_CHECKING:
    from hpc_molgen.efficiency.evidence import Torsions
    from hpc_molgen.run import Run

TITLE = "Other temperatures"


def collect(run: Run, torsions: Torsions, diagnostics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of each temperature (`temperatures.add_bar`), with dF of the CV (an Estimate, in kT there) or None."""
    rows = []
    for row in diagnostics.get("temperatures", []):
        delta_f = None
        if torsions.quads:
            system = run.system.at(row["kelvin"])
            found = read_ensemble(run.path("correct", temperatures.file_name("weighted", row["kelvin"])), system)
            angles, weights = torsion_angles(found.positions_nm, torsions.quads[0]), normalised_weights(found.log_weight)
            generator = numpy_generator(run.config.seed, "report", f"{row['kelvin']:g} K")
            delta_f = free_energy_difference(angles, weights, None, run.config.report.bootstrap_samples, generator)
        rows.append(row | {"delta_f": delta_f})
    return rows


def text(rows: list[dict[str, Any]], n_samples: int) -> list[str]:
    """What the table is about."""
    if rows[0]["drawn"]:
        return [
            f"The surrogate was asked for {n_samples:,} samples at each of these temperatures, which have weights of their own."
        ]
    return ["The samples of this run, weighed to other temperatures as they are: the surrogate can be asked for one alone."]


def table(rows: list[dict[str, Any]], cv: str, certified_k_hat: float) -> Table:
    """One row for each temperature."""
    shown = []
    for row in rows:
        by_weights, by_bar = (
            unbroken(f"{number(value, 5)} ± {number(error, 2)}") for value, error in (row["log_z_difference"], row["log_z_bar"])
        )
        shown.append([
            f"{row['kelvin']:g}", share(row["ess_fraction"]), number(row["k_hat"], 2),
            "yes" if row.get("certified", row["k_hat"] <= certified_k_hat) else "no",
            "-" if row["delta_f"] is None else unbroken(interval_text(row["delta_f"])),
            number(row["mean_energy_kj_mol"], 4), by_weights, by_bar,
        ])  # fmt: skip
    of_cv = f"dF({cv} > 0) / kT" if cv else "dF / kT"
    columns = ("T / K", "ESS", "k-hat", "certified", of_cv, "mean energy / (kJ/mol)", "ln Z by weights", "ln Z by BAR")
    note = (
        "kT is that of the row. ln Z is the difference from the run's own temperature: by the mean weights, which hold the "
        "normalisation of ln q, and by the Bennett acceptance ratio between the two weighted ensembles, which knows nothing of "
        "it; ± is one standard error. Nothing here is compared with MD, which ran at the run's own temperature. A row with a "
        f"k-hat above {certified_k_hat:g} is not certified."
    )
    return Table("The ensemble at other temperatures", columns, shown, note)
