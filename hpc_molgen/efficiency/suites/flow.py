"""Suite `flow`: how near a flow comes to the records of Boltzmann generators, with several seeds and a million samples each.

Its runs go through the pipeline as a user's do, and stay in the suite's folder: finished stages are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen import reweighting
from hpc_molgen.angles import wrap
from hpc_molgen.config import load_config
from hpc_molgen.efficiency.suites import flow_tables as tables
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.runs import finish_run, run_bill
from hpc_molgen.efficiency.suites.tempering import CONVERGED_KT
from hpc_molgen.efficiency.suites.verdict_methods import phi_psi
from hpc_molgen.efficiency.suites.verdict_scores import total_variation, weighted_free_energy
from hpc_molgen.efficiency.suites.verdict_sums import sum_frames
from hpc_molgen.efficiency.suites.verdict_truth import TruthSettings, find_truth
from hpc_molgen.ensemble import Ensemble, read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.files import read_json
from hpc_molgen.run import Run


@dataclass(frozen=True)
class Molecule:
    """A system of the suite.

    Attributes
    ----------
    system : str
        Name of a registered system.
    name : str
        In tables.
    free_energy_kt : (float, float), optional
        dF(phi > 0) and half of its 95 % interval by long MD, as another suite found it; None: found here.
    holds_records : bool
        Whether the published records are of this energy function.
    """

    system: str
    name: str
    free_energy_kt: tuple[float, float] | None = None
    holds_records: bool = False


ALANINE = Molecule("alanine-dipeptide", "amber99sbildn + amber99_obc (OBC2)", CONVERGED_KT)
RECORDS = Molecule("alanine-dipeptide-ff96", "ff96 + OBC1, the system of the published records", holds_records=True)


@dataclass(frozen=True)
class Settings:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    preset : str
    assignments : tuple of str
        After the preset's.
    molecules : tuple of (Molecule, int)
        With the number of seeds of each.
    truth : TruthSettings
        Of molecules whose free energy is not known.
    """

    preset: str
    molecules: tuple[tuple[Molecule, int], ...]
    assignments: tuple[str, ...] = ("correct.n_structures=10",)
    truth: TruthSettings = field(default_factory=lambda: TruthSettings(ns_per_ladder=1.25))


SIZES = {
    "smoke": Settings(
        "tiny",
        ((ALANINE, 2),),
        (
            "surrogate={name: flow, hidden: 16, layers: 4}", "train.n_steps=40", "sample.n_samples=1000",
            "correct.n_structures=1", "correct.check_frames=200", "correct.method=weights",
        ),
    ),
    "laptop": Settings("alanine-dipeptide-flow", ((ALANINE, 3), (RECORDS, 1))),
    "cluster": Settings("alanine-dipeptide-flow", ((ALANINE, 8), (RECORDS, 4)), truth=TruthSettings(ns_per_ladder=5.0)),
}  # fmt: skip


def flow(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record.

    Raises
    ------
    InputError
        When there is no such size.
    """
    if size not in SIZES:
        raise InputError(f"the suite 'flow' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs, folder = SIZES[size], Costs(), out / f"flow-{size}"
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    results = []
    for molecule, n_seeds in settings.molecules:
        runs = [_finished(settings, molecule, seed + number, folder / "runs") for number in range(n_seeds)]
        truth = molecule.free_energy_kt
        if truth is None:
            found = find_truth(runs[0].system, settings.truth, folder, seed, costs)
            truth = found.free_energy_kt, found.half_width_kt
        rows = judge(runs)
        results.append({"molecule": asdict(molecule), "free_energy_kt": list(truth), "seeds": rows})
        for row in rows:
            costs.add(f"{molecule.name}, seed {row['seed']}", row["cpu_s"], row["wall_s"])
    return {**tables.record_of(results, size), "costs": costs.stages, "results": results, "config": asdict(settings)}


def _finished(settings: Settings, molecule: Molecule, seed: int, folder: Path) -> Run:
    own = [f"seed={seed}", f"system.name={molecule.system}", *settings.assignments]
    return finish_run(folder, f"{molecule.system}-{seed}", load_config(settings.preset, own), "correct")


def judge(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the figures of each of several runs of one molecule, which are independent of each other.

    The total variation of the raw samples from the Boltzmann distribution is taken against their own weighted selves, whose
    noise is the same, and against the weighted samples of the other runs, whose noise is another (and told). That of the
    corrected samples is what they differ by from those of the other runs, less what these contribute as independent samples.
    """
    rows, histograms = [], []
    for run in runs:
        weighted = read_ensemble(run.path("correct", "weighted.h5"), run.system)
        row, histogram = _figures(run, weighted)
        rows.append(row)
        histograms.append(histogram)
    for number, row in enumerate(rows):
        raw, own = histograms[number]
        row["raw_variation"] = total_variation(raw, own)
        others = [corrected / corrected.sum() for k, (_, corrected) in enumerate(histograms) if k != number]
        if others:
            n_others = sum(other["ess"] for k, other in enumerate(rows) if k != number)
            pool = np.mean(others, axis=0)
            row["raw_variation_from_others"] = total_variation(raw, pool)
            row["variation_from_others"] = total_variation(own, pool)
            row["expected_noise"] = expected_variation(pool, row["ess"], n_others)
            own_share = n_others / (row["ess"] + n_others)  # of the variance of the difference
            row["corrected_variation"] = row["variation_from_others"] * float(np.sqrt(own_share))
    return rows


def expected_variation(p: np.ndarray, n: float, m: float) -> float:
    """Return the total variation that is expected between histograms of `n` and `m` independent samples of shares `p`."""
    spread = np.sqrt(p * (1 - p) * (1 / n + 1 / m))
    return float(0.5 * np.sqrt(2 / np.pi) * spread.sum())


def _figures(run: Run, weighted: Ensemble) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    details, bill = run.details("correct"), run_bill(run, len(weighted))
    weights = reweighting.normalised_weights(weighted.log_weight)
    angles = phi_psi(run.system, weighted.positions_nm)
    value, half_width = weighted_free_energy(wrap(angles[:, 0]) > 0, weighted.log_weight)
    corrected = sum_frames(angles[:, None], weights[:, None]).histogram.sum(axis=0)
    raw = sum_frames(angles[:, None], np.ones((len(weights), 1))).histogram.sum(axis=0)
    checked = (details.get("coverage") or {}).get("density")
    trained = run.details("train")
    names = ("n", "ess", "ess_fraction", "ess_clipped_fraction", "k_hat", "largest_share")
    return {
        "seed": run.config.seed, **{name: details[name] for name in names},
        "free_energy_kt": value, "half_width_kt": half_width,
        "forward_ess": checked and checked["forward_ess"],
        **{name: checked and checked[name] for name in ("log_z_samples", "log_z_frames", "log_z_bar")},
        "rounds": [round_["ess_fraction"] for round_ in trained.get("rounds", [])],
        "n_energies": trained.get("n_energies", 0) + len(weighted), "samples_per_cpu_s": 1 / bill.sample_s[0],
        "cpu_s": bill.fixed_s[0] + bill.sample_s[0] * len(weighted),
        "wall_s": bill.fixed_s[1] + bill.sample_s[1] * len(weighted),
        "parts": bill.parts, "commit": read_json(run.path("train", "done.json"))["provenance"]["git_commit"],
    }, (raw, corrected)  # fmt: skip
