"""What a run of many molecules found: a row for each from its own report and costs, their sums, and one verdict on all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.analysis.free_energy import Estimate
from hpc_molgen.config import TransferableConfig
from hpc_molgen.efficiency.tables import number, share
from hpc_molgen.efficiency.verdict import Check, Verdict
from hpc_molgen.files import read_json
from hpc_molgen.run import stage_costs

if TYPE_CHECKING:
    from hpc_molgen.run import Run

SEEN, UNSEEN, GIVEN, ALONE = "seen", "unseen", "given", "-"
OWN_STAGES = ("featurize", "train", "sample", "correct")


@dataclass(frozen=True)
class Molecule:
    """One molecule of the run.

    Attributes
    ----------
    name : str
    role : str
        Whether the shared surrogate has learnt from it, `SEEN` or `UNSEEN`; `GIVEN` is a surrogate from elsewhere, `ALONE` one
        of its own.
    n_atoms : int
    n_torsions : int or None
        Free torsions of its representation.
    ess_fraction, k_hat : float or None
        Of the importance weights as they are; None where there are none.
    annealed : str
        How the samples were moved because those weights are worth too little; "" where they were not.
    annealed_ess_fraction : float or None
        ESS of the weights after that.
    observable : str
        The first plane of torsions that is compared, "" where there is none.
    ratio : dict
        Divergence in that plane from held-out MD over its noise floor, of the samples "raw" and "corrected"; None: not there.
    cv : str
    delta_f : dict
        dF(cv > 0) in kT of "corrected" samples and of "held_out" MD; None: not there.
    target : str
        What its weights are exact for.
    certified : bool
    reason : str
        The first one why it is not.
    reference_cpu_s, own_cpu_s, farm_cpu_s : float
        Reference MD; its `OWN_STAGES`; its farm. All attempts.
    training_part_cpu_s : float
        Its part of the shared training, which is divided evenly among all molecules that use it.
    """

    name: str
    role: str
    n_atoms: int
    n_torsions: int | None
    ess_fraction: float | None
    k_hat: float | None
    annealed: str
    annealed_ess_fraction: float | None
    observable: str
    ratio: dict[str, float | None]
    cv: str
    delta_f: dict[str, Estimate | None]
    target: str
    certified: bool
    reason: str
    reference_cpu_s: float
    own_cpu_s: float
    farm_cpu_s: float
    training_part_cpu_s: float

    @property
    def label(self) -> str:
        """Its name, and whether the surrogate has not seen it."""
        return f"{self.name} ({UNSEEN})" if self.role == UNSEEN else self.name


@dataclass(frozen=True)
class Findings:
    """All that the report of many molecules is written from.

    Attributes
    ----------
    molecules : list of Molecule
    training : dict or None
        Of the shared surrogate: `n_parameters`, `molecules` (names of those it has learnt from), `n_items`, `cpu_s` of all
        attempts; None where none was trained here.
    medians : dict
        Over the unseen molecules, of what they have: `ess_fraction` and `ratio`, of corrected samples; None where none has it.
    totals : dict
        CPU seconds by what they were for.
    """

    molecules: list[Molecule]
    training: dict[str, Any] | None
    medians: dict[str, float | None]
    totals: dict[str, float]

    def of_role(self, role: str) -> list[Molecule]:
        """Return the molecules of a role, in order."""
        return [molecule for molecule in self.molecules if molecule.role == role]


def collect(run: Run, runs: Sequence[Run]) -> Findings:
    """Read what the molecules' reports say, and what their stages cost."""
    training = _training(run)
    roles = [_role(run, one) for one in runs]
    part = training["cpu_s"] / sum(role in (SEEN, UNSEEN) for role in roles) if training else 0.0
    molecules = [_molecule(one, role, part if role in (SEEN, UNSEEN) else 0.0) for one, role in zip(runs, roles, strict=True)]
    unseen = [molecule for molecule in molecules if molecule.role == UNSEEN]
    medians = {
        "ess_fraction": _median(molecule.ess_fraction for molecule in unseen),
        "ratio": _median(molecule.ratio["corrected"] for molecule in unseen),
    }
    totals = {
        "reference_cpu_s": sum(molecule.reference_cpu_s for molecule in molecules),
        "reference_of_seen_cpu_s": sum(molecule.reference_cpu_s for molecule in molecules if molecule.role == SEEN),
        "training_cpu_s": training["cpu_s"] if training else 0.0,
        "own_cpu_s": sum(molecule.own_cpu_s for molecule in molecules),
        "farm_cpu_s": sum(molecule.farm_cpu_s for molecule in molecules),
    }
    return Findings(molecules, training, medians, totals)


def _training(run: Run) -> dict[str, Any] | None:
    """Return the figures of the shared training, with its cost over all attempts."""
    details = run.details("train")
    if "molecules" not in details:
        return None
    kept = {name: details.get(name) for name in ("n_parameters", "molecules", "n_items", "steps", "loss", "held_out_loss")}
    return kept | {"cpu_s": max(stage_costs(run, "shared")["cpu_s"], float(details["train_cpu_s"]))}


def _molecule(one: Run, role: str, training_part_cpu_s: float) -> Molecule:
    record = read_json(one.path("report", "report.json"))
    weights, verdict = record.get("weights") or {}, record["verdict"]
    importance = weights.get("importance", weights)
    planes = [row for row in record.get("divergences", []) if " x " in row["observable"]]
    plane = planes[0]["observable"] if planes else ""
    ratios = {row["label"]: row["ratio"] for row in planes if row["observable"] == plane}
    delta_f = record.get("delta_f") or {}
    torsions = (record.get("torsions") or {}).get("names") or [""]
    spent = {stage: stage_costs(one, stage)["cpu_s"] for stage in ("reference", *OWN_STAGES, "farm")}
    moved = (weights.get("annealed") or {}).get("kind", "")
    return Molecule(
        name=one.config.name,
        role=role,
        n_atoms=one.system.n_atoms,
        n_torsions=one.details("featurize").get("n_torus"),
        ess_fraction=importance.get("ess_fraction"),
        k_hat=importance.get("k_hat"),
        annealed=moved,
        annealed_ess_fraction=weights.get("ess_fraction") if moved else None,
        observable=plane,
        ratio={"raw": ratios.get("raw samples"), "corrected": ratios.get("corrected samples")},
        cv=torsions[0],
        delta_f={"corrected": _estimate(delta_f.get("corrected")), "held_out": _estimate(delta_f.get("reference"))},
        target=str(weights.get("target", "")) if weights.get("weighted") else "",
        certified=bool(verdict["gate_passed"]),
        reason=next(iter(verdict.get("reasons", [])), ""),
        reference_cpu_s=spent["reference"],
        own_cpu_s=sum(spent[stage] for stage in OWN_STAGES),
        farm_cpu_s=spent["farm"],
        training_part_cpu_s=training_part_cpu_s,
    )


def _role(run: Run, one: Run) -> str:
    """Return what a molecule is to its surrogate; of one from elsewhere the user says what is unseen."""
    if not isinstance(one.config.surrogate, TransferableConfig) or one.config.surrogate.trained is None:
        return ALONE
    if one.config.name in run.config.unseen:
        return UNSEEN
    return SEEN if one.config.name in run.details("train").get("molecules", ()) else GIVEN


def _estimate(value: dict[str, Any] | None) -> Estimate | None:
    """Return an estimate of a report.json, in which null stands for what is not finite."""
    if value is None:
        return None
    names = ("value", "low", "high", "standard_error")
    return Estimate(*(float("nan") if value[name] is None else float(value[name]) for name in names))


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def decide(findings: Findings) -> Verdict:
    """Return the verdict on all molecules: the gate passes where that of each does."""
    checks = tuple(
        Check(molecule.label, molecule.certified, "certified" if molecule.certified else molecule.reason)
        for molecule in findings.molecules
    )
    n, n_certified = len(checks), sum(check.passed for check in checks)
    headline = f"{n_certified} of {n} molecules certified" if n_certified else f"Not certified: none of {n} molecules"
    groups = [
        _counted(findings.of_role(SEEN), "molecules that the surrogate learnt from"),
        _counted(findings.of_role(UNSEEN), "molecules that the surrogate has not seen"),
        _counted(findings.of_role(GIVEN), "molecules with a surrogate from elsewhere"),
        _counted(findings.of_role(ALONE), "molecules with a surrogate of their own"),
    ]
    sentence = f"Certified: {', and '.join(group for group in groups if group)}.{_of_unseen(findings)}"
    return Verdict(sentence, f"All {n} molecules certified" if n_certified == n else headline, checks)


def _counted(molecules: Sequence[Molecule], what: str) -> str:
    """Say how many of some molecules are certified, and which are not; "" of none."""
    if not molecules:
        return ""
    others = [molecule.name for molecule in molecules if not molecule.certified]
    text = f"{len(molecules) - len(others)} of {len(molecules)} {what}"
    return text + (f" (not {', '.join(others)})" if others else "")


def _of_unseen(findings: Findings) -> str:
    """Say the medians over the unseen molecules."""
    ess, ratio = findings.medians["ess_fraction"], findings.medians["ratio"]
    parts = [f"ESS {share(ess)}"] if ess is not None else []
    parts += [f"divergence after correction {number(ratio)} times the noise floor"] if ratio is not None else []
    return f" Medians over the unseen ones: {', '.join(parts)}." if parts else ""
