"""For a run without weights: what its representation loses, and observables of the raw samples beside those of held-out MD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen import datasets
from hpc_molgen.analysis.free_energy import Estimate, Shares, multiplicities
from hpc_molgen.efficiency.tables import Table, number, unbroken
from hpc_molgen.ensemble import read_ensemble
from hpc_molgen.seeding import numpy_generator
from hpc_molgen.systems.observables import make_observables

if TYPE_CHECKING:
    from hpc_molgen.ensemble import Ensemble
    from hpc_molgen.run import Run

TITLE = "Raw samples beside held-out MD"
SETS = ("held-out MD", "training MD", "raw samples")


@dataclass(frozen=True)
class ObservableRow:
    """One observable of the three `SETS`.

    Attributes
    ----------
    name, unit : str
    means : dict of Estimate
    spreads : dict of float
        Standard deviations.
    distance, floor : float
        Wasserstein-1 distance from held-out MD over its standard deviation, of raw samples and of training MD.
    """

    name: str
    unit: str
    means: dict[str, Estimate]
    spreads: dict[str, float]
    distance: float
    floor: float


def collect(run: Run, diagnostics: dict[str, Any]) -> list[ObservableRow]:
    """Compare the observables that the farm measures, torsions left out, where the run has no weights; else nothing."""
    if diagnostics["weighted"]:
        return []
    train, held_out = datasets.load_split(run)
    sets = dict(zip(SETS, (held_out, train, read_ensemble(run.path("correct", "weighted.h5"), run.system)), strict=True))
    measured = make_observables(run.config.farm.observables, run.system, run.system.positions_nm)
    return [
        _row(run, name, unit, {label: (part, measure(part.positions_nm)) for label, part in sets.items()})
        for name, (measure, unit) in measured.items()
        if unit != "radians"  # which have no mean, and sections of their own
    ]


def _row(run: Run, name: str, unit: str, sets: dict[str, tuple[Ensemble, np.ndarray]]) -> ObservableRow:
    from scipy.stats import wasserstein_distance

    means, spreads, weights = {}, {}, {}
    for label, (part, values) in sets.items():
        weights[label] = datasets.boltzmann_weights(part)  # of biased MD, say; all equal for samples
        units = np.arange(len(part)) if label == "raw samples" else part.trajectory
        generator = numpy_generator(run.config.seed, "observable", name, label)
        means[label] = _mean(values, weights[label], units, run.config.report.bootstrap_samples, generator)
        spreads[label] = float(np.sqrt(np.average((values - means[label].value) ** 2, weights=weights[label])))
    reference = sets[SETS[0]][1]
    floor, distance = (
        float(wasserstein_distance(sets[label][1], reference, weights[label], weights[SETS[0]]) / spreads[SETS[0]])
        for label in SETS[1:]
    )
    return ObservableRow(name, unit, means, spreads, distance, floor)


def _mean(
    values: np.ndarray, weights: np.ndarray, units: np.ndarray, n_replicates: int, generator: np.random.Generator
) -> Estimate:
    """Weighted mean of values (n,), its interval by bootstrap over units (n,)."""
    _, rows = np.unique(units, return_inverse=True)
    parts = np.stack([np.bincount(rows, weights * values), np.bincount(rows, weights)])
    drawn = np.zeros((2, n_replicates))
    for block, counts in multiplicities(parts.shape[1], n_replicates, generator):
        drawn += parts[:, block] @ counts
    value, replicates = parts[0].sum() / parts[1].sum(), drawn[0] / drawn[1]
    return Shares(np.array([value]), replicates[:, None], parts.shape[1]).interval(float(value), replicates)


def key_figures(rows: list[ObservableRow]) -> list[tuple[str, str]]:
    """Return the observable of the raw samples that is furthest from held-out MD."""
    if not rows:
        return []
    row = max(rows, key=lambda row: row.distance)
    words = f"distance of {row.name} from held-out MD, raw samples (noise floor {number(row.floor, 2)})"
    return [(f"{number(row.distance, 2)} standard deviations", words)]


def text(run: Run) -> list[str]:
    """Return what the features keep of a conformation, where the representation has measured it."""
    details = run.details("featurize")
    found = details.get("round_trip") or {}
    lines = ["Without weights, nothing makes up for what the surrogate does wrong: samples are as good as they agree with MD."]
    if "positions_rms_nm" in found:
        lines.append(
            f"The representation '{run.config.representation.name}' has {details['n_torus'] + details['n_euclidean']} "
            f"features. {found['n_frames']:,} frames of held-out MD that go through them and back are off by "
            f"{found['positions_rms_nm']:.4f} nm in positions (root mean square, superposed), "
            f"{found['distances_rms_nm']:.4f} nm in distances and {found['bonds_rms_nm']:.4f} nm in bonds; "
            f"{found['right_handed']:.1%} come back as themselves and not as their mirror image."
        )
    if "saturated" in found:
        lines.append(f"Contacts of {found['saturated']:.1%} of all pairs only bound the distance, as they are near 0 or 1.")
    return lines


def table(rows: list[ObservableRow]) -> Table:
    """One row for each observable."""
    cells = []
    for row in rows:
        means = [_interval(row.means[label]) for label in SETS]
        spreads = " / ".join(number(row.spreads[label]) for label in SETS)
        name = row.name if row.unit == "dimensionless" else f"{row.name} / {row.unit.replace('nanometers', 'nm')}"
        cells.append([name, *means, spreads, number(row.distance), number(row.floor)])
    columns = ("observable", *SETS, "standard deviations of the three", "distance of raw samples", "noise floor")
    note = (
        "Means with 95 % intervals (bootstrap over trajectories for MD, over samples for the others). Distance: Wasserstein-1 "
        "from held-out MD, over its standard deviation; noise floor: the same of training MD."
    )
    return Table("Observables of the raw samples", columns, cells, note)


def _interval(found: Estimate) -> str:
    return unbroken(f"{number(found.value)} [{number(found.low)}, {number(found.high)}]")
