"""The quality gate, and the one sentence that answers the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.reweighting import K_HAT_LIMIT

if TYPE_CHECKING:
    from hpc_molgen.analysis.free_energy import Estimate
    from hpc_molgen.efficiency.costs import Scenario
    from hpc_molgen.efficiency.economics import Contest

MIN_PASSAGES = 20  # fewer full passages: the reference's own free energy is not converged
MIN_PARTS = 8
MAX_ERROR_KT = 0.5  # wider: the comparison would call almost anything consistent
Z_LIMIT = 1.96


@dataclass(frozen=True)
class Check:
    """One condition of the quality gate."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Verdict:
    """The answer of the report.

    Attributes
    ----------
    sentence : str
        One sentence, with its intervals.
    headline : str
        Three or four words.
    checks : tuple of Check
    """

    sentence: str
    headline: str
    checks: tuple[Check, ...]

    @property
    def gate_passed(self) -> bool:
        """True when every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Why the gate failed."""
        return [check.detail for check in self.checks if not check.passed]


def doubt_of(diagnostics: dict[str, Any]) -> str:
    """Return by its diagnostics why a run has no weights, or why its weights are estimates alone; "" where they are exact."""
    if not diagnostics["weighted"]:
        return str(diagnostics.get("reason") or "correct.weights is false")
    if diagnostics.get("density") != "estimated":
        return ""
    return str(diagnostics.get("density_note") or "the density of its representation is an estimate")


def gate(
    cv: str,
    weighted: bool,
    k_hat: float | None,
    passages: int,
    reference: Estimate | None,
    corrected: Estimate | None,
    missing: list[str] | None = None,
    annealed: dict[str, Any] | None = None,
    doubt: str = "",
) -> tuple[Check, ...]:
    """Return the conditions under which a speed-up may be printed.

    Parameters
    ----------
    cv : str
        Name of the torsion; empty when the molecule has none.
    weighted : bool
        Whether the run has importance weights at all.
    k_hat : float or None
    passages : int
        Full passages of held-out MD between the two sides of the CV.
    reference, corrected : Estimate or None
        dF(cv > 0) of held-out MD and of the corrected samples, in kT.
    missing : list of str, optional
        Reasons why the surrogate misses part of the ensemble (empty: none was found); None where that was not checked.
    annealed : dict, optional
        How the samples were moved, where their weights were worth too little; `k_hat` is then that of the moved ones.
    doubt : str
        Why there are no weights, or why those that exist are estimates and never certified; empty where they are exact.
    """
    because = doubt or "correct.weights is off, or the surrogate has no ln q"
    no_weights = f"no importance weights exist in this run, as {because}"
    checks = [Check("importance weights", weighted, "importance weights exist" if weighted else no_weights)]
    if weighted and doubt:
        checks.append(Check("exact weights", False, f"the weights are estimates: {doubt}"))
    if annealed is not None:
        parts = int(annealed["independent_parts"])
        text = f"samples were moved by {annealed['kind']} in {parts} independent parts"
        text += "" if parts >= MIN_PARTS else f", fewer than {MIN_PARTS}: their spread says little about the error"
        failures = annealed.get("failures", [])
        if failures:
            text += f"; {len(failures)} other islands did not come to the Boltzmann distribution ({failures[0]})"
        checks.append(Check("annealed samples", parts >= MIN_PARTS and not failures, text))
    if weighted and (annealed is None or k_hat is not None):  # equal weights have no tail
        known = k_hat is not None and np.isfinite(k_hat)
        good = k_hat is not None and k_hat <= K_HAT_LIMIT
        shown = f"Pareto k-hat is {k_hat:.2f}" if known else f"Pareto k-hat is {k_hat}"
        limit = (
            f"at most {K_HAT_LIMIT}" if good else f"above {K_HAT_LIMIT}: the variance of weighted averages cannot be trusted"
        )
        checks.append(Check("tail of the weights", good, f"{shown}, {limit}"))
    if missing is not None:
        text = "; ".join(missing) or "held-out MD shows no mode that the samples lack"
        checks.append(Check("no missing mode", not missing, text))
    if not cv:
        return (*checks, Check("free-energy difference", False, "the molecule has no torsion to compare a free energy along"))
    enough = passages >= MIN_PASSAGES
    counted = f"held-out MD makes {passages} full passages between {cv} < 0 and {cv} > 0"
    unconverged = f" (fewer than {MIN_PASSAGES}): the reference itself has no converged dF"
    checks.append(Check("reference crosses", enough, counted if enough else counted + unconverged))
    if weighted and reference is not None and corrected is not None:
        checks += _agreement(cv, reference, corrected)
    return tuple(checks)


def _agreement(cv: str, reference: Estimate, corrected: Estimate) -> list[Check]:
    error = float(np.hypot(reference.standard_error, corrected.standard_error))
    difference = corrected.value - reference.value
    if not np.isfinite(difference):
        return [Check("free energies agree", False, f"dF({cv} > 0) is not finite on one side: a state was never sampled")]
    if not np.isfinite(error):
        text = f"dF({cv} > 0) has no error bar on one side: a state was seen too rarely"
        return [Check("free energies agree", False, text)]
    agrees = abs(difference) <= Z_LIMIT * error
    text = f"dF({cv} > 0) of the corrected samples differs from held-out MD by {difference:+.2f} kT, "
    text += f"{abs(difference) / error:.1f} standard errors"
    resolved = error <= MAX_ERROR_KT
    width = f"the standard error of that difference is {error:.2f} kT"
    too_wide = f", more than {MAX_ERROR_KT} kT: agreement would mean nothing"
    return [
        Check("free energies agree", agrees, text),
        Check("error bars are narrow enough", resolved, width if resolved else width + too_wide),
    ]


def interval_text(estimate: Estimate, digits: int = 2) -> str:
    """Write value and 95 % interval; a state never visited has neither."""
    if not np.isfinite(estimate.value):
        return "no estimate (one side was never sampled)"
    if not (np.isfinite(estimate.low) and np.isfinite(estimate.high)):
        return f"{estimate.value:.{digits}f} (no interval: one trajectory, or a state seen in one alone)"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def decide(
    cv: str,
    checks: tuple[Check, ...],
    reference: Estimate | None,
    raw: Estimate | None,
    corrected: Estimate | None,
    contests: list[Contest],
) -> Verdict:
    """Put the verdict into words; without a passed gate it names no speed-up and no break-even."""
    shown = ""
    if reference is not None and raw is not None:
        ours, name = (corrected, "corrected samples") if corrected is not None else (raw, "raw samples")
        shown = f"dF({cv} > 0) is {interval_text(ours)} kT from the {name} and {interval_text(reference)} kT from held-out MD"
    if not all(check.passed for check in checks):
        reasons = "; ".join(check.detail for check in checks if not check.passed)
        because = f"Not certified, so no cost comparison is made: {reasons}"
        return Verdict(f"{because} ({shown})." if shown else f"{because}.", "Not certified", checks)
    headline, sentence = _economic_words(cv, shown, contests)
    return Verdict(sentence, headline, checks)


def _economic_words(cv: str, shown: str, contests: list[Contest]) -> tuple[str, str]:
    """Headline and sentence of a certified run."""
    main, by_df = contests[0], next(contest for contest in contests if contest.name == "dF")
    words = {"surrogate": "the surrogate wins here", "MD": "MD wins here", "undecided": "undecided within the error bars"}
    headline = words[main.winner]
    if main.winner != by_df.winner:
        headline = f"{words[by_df.winner]} for dF({cv} > 0), {words[main.winner].removesuffix(' here')} for the whole ensemble"
    headline = headline[0].upper() + headline[1:]
    slowest = f"dF({cv} > 0)" if main.md_by == "dF" else f"the share of {main.md_by}"
    text = f"Certified: {shown}; everything paid, the surrogate {_even_words(main.scenarios[0])} where all observables have to "
    text += f"converge (MD's slowest is {slowest}; this run drew {main.n_drawn:,.0f})"
    if main.md_by != "dF":
        text += f", and {_even_words(by_df.scenarios[0])} for dF({cv} > 0) alone"
    return headline, text + "."


def _even_words(star: Scenario) -> str:
    if not np.isfinite(star.n_star):
        return "never breaks even with the best MD"
    high = f"{star.high:,.0f}" if np.isfinite(star.high) else "never"
    return f"breaks even with the best MD at {star.n_star:,.0f} effective samples (95 % {star.low:,.0f} to {high})"
