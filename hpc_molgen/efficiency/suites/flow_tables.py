"""What the suite `flow` says: sentences, targets and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hpc_molgen.efficiency.suites.rounds import target, target_sentence

RECORD_CLIPPED, RECORD_VARIATION = 97.69, 9.43e-3  # facts/peers.md, D: the best published ones on ff96 with OBC1
QUESTION = (
    "A flow of all 60 internal coordinates, trained by forces and by its own weighted samples: how many of its samples count, "
    "do they cover the ensemble, and what does it cost?"
)
NOTES = [
    "ESS is Kish's, of unclipped weights; clipped: with the largest 1e-4 of the weights set to the largest that remains (the "
    "convention of the published records). Forward ESS: on frames of held-out MD. Of several seeds the worst is judged.",
    "dF is -ln[p(phi > 0) / p(phi <= 0)]; ± is half of its 95 % interval by the delta method. The reference is parallel "
    "tempering with a bias on phi, or for the first molecule the suite `tempering`.",
    "Total variation of (phi, psi) on 60 x 60 bins. 'Raw samples': the flow's own histogram against that of the same samples "
    "weighted, which is the Boltzmann distribution's; against the weighted samples of the other seeds sampling noise is added, "
    "as much as corrected samples are expected to differ by if all is right. Last column: without the noise of those others.",
    "Weighted samples per CPU second: sampling, ln q and energies, on one core. CPU seconds hold reference MD (held-out half "
    "included), training, rounds, samples, energies and the comparison with MD. Energies: of scores, trials, rounds and the "
    "samples drawn at the end.",
]


def record_of(results: Sequence[dict[str, Any]], size: str) -> dict[str, Any]:
    """Return the sentences, targets, tables and notes of the record."""
    targets = [row for result in results for row in _targets(result)]
    return {
        "question": QUESTION,
        "answer": [target_sentence(targets, size), *(_sentence(result) for result in results)],
        "targets": targets,
        "tables": [table for result in results for table in _tables(result)],
        "notes": NOTES,
    }


def _sentence(result: dict[str, Any]) -> str:
    rows, truth = result["seeds"], result["free_energy_kt"]
    worst = min(rows, key=lambda row: row["ess_fraction"])
    apart = max(abs((row["free_energy_kt"] or float("nan")) - truth[0]) for row in rows)
    return (
        f"{result['molecule']['name']}: at least {100 * worst['ess_fraction']:.1f} % of {worst['n']:,} samples are effective "
        f"({len(rows)} seed(s)), after {max(row['cpu_s'] for row in rows):,.0f} CPU s at most; dF(phi > 0) is within "
        f"{apart:.3f} kT of MD's {truth[0]:.3f} ± {truth[1]:.3f} kT."
    )


def _worst(rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None], sign: str) -> float | None:
    """The value of the worst seed; None where a seed has none."""
    found = [value(row) for row in rows]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    return max(known) if sign == "<=" else min(known)


def _targets(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows, truth, molecule = result["seeds"], result["free_energy_kt"][0], result["molecule"]
    figures: list[tuple[str, str, Callable[[dict[str, Any]], float | None]]] = [
        ("ESS / %", ">= 90", lambda row: 100 * row["ess_fraction"]),
        ("ESS, largest 1e-4 of the weights clipped / %", ">= 95", lambda row: 100 * row["ess_clipped_fraction"]),
        ("Pareto k-hat", "<= 0.5", lambda row: row["k_hat"]),
        ("forward ESS on held-out MD / %", ">= 80", lambda row: row["forward_ess"] and 100 * row["forward_ess"]["value"]),
        ("dF(phi > 0) from that of MD / kT", "<= 0.1",
         lambda row: None if row["free_energy_kt"] is None else abs(row["free_energy_kt"] - truth)),
        ("total variation of (phi, psi), raw samples", "<= 0.012", lambda row: row["raw_variation"]),
        ("total variation of (phi, psi), corrected samples", "<= 0.012", lambda row: row.get("corrected_variation")),
        ("weighted samples per CPU second (half of what two cores have to make)", ">= 10000",
         lambda row: row["samples_per_cpu_s"]),
    ]  # fmt: skip
    if molecule["holds_records"]:
        figures += [
            ("the published record: clipped ESS / %", f">= {RECORD_CLIPPED}", lambda row: 100 * row["ess_clipped_fraction"]),
            ("the published record: total variation, raw samples", f"<= {RECORD_VARIATION}", lambda row: row["raw_variation"]),
        ]
    found = [(name, limit, _worst(rows, value, limit.split()[0])) for name, limit, value in figures]
    return [target(f"{molecule['name']}: {name}", limit, worst, worst) for name, limit, worst in found]


def _tables(result: dict[str, Any]) -> list[dict[str, Any]]:
    name, rows = result["molecule"]["name"], result["seeds"]
    quality = [
        [
            row["seed"], row["n"], 100 * row["ess_fraction"], 100 * row["ess_clipped_fraction"], row["k_hat"], _forward(row),
            f"{row['free_energy_kt']:.3f} ± {row['half_width_kt']:.3f}" if row["free_energy_kt"] is not None else "-",
            *(_log_z(row[key]) for key in ("log_z_samples", "log_z_frames", "log_z_bar")),
        ]
        for row in rows
    ]  # fmt: skip
    maps = [
        [row["seed"], *(_small(row.get(key)) for key in
                        ("raw_variation", "raw_variation_from_others", "variation_from_others", "expected_noise",
                         "corrected_variation"))]
        for row in rows
    ]  # fmt: skip
    costs = [
        [
            row["seed"], row["parts"]["reference_cpu_s"], row["parts"]["train_cpu_s"], row["cpu_s"], f"{row['n_energies']:,}",
            " / ".join(f"{100 * share:.1f}" for share in row["rounds"]) or "-", row["samples_per_cpu_s"],
            row["samples_per_cpu_s"] * row["ess_fraction"], row["commit"] or "none",
        ]
        for row in rows
    ]  # fmt: skip
    return [
        {
            "caption": f"{name}: weights",
            "columns": ["seed", "samples", "ESS / %", "clipped / %", "k-hat", "forward ESS / %", "dF(phi > 0) / kT",
                        "ln Z by samples", "by MD", "by BAR"],
            "rows": quality,
        },
        {
            "caption": f"{name}: total variation of (phi, psi)",
            "columns": ["seed", "raw from own weighted ones", "raw from other seeds", "corrected from other seeds",
                        "expected, if all is right", "corrected from the Boltzmann distribution"],
            "rows": maps,
        },
        {
            "caption": f"{name}: costs",
            "columns": ["seed", "reference MD / CPU s", "training / CPU s", "all / CPU s", "energies",
                        "ESS before each round / %", "weighted samples / CPU s", "effective / CPU s", "trained by commit"],
            "rows": costs,
        },
    ]  # fmt: skip


def _forward(row: dict[str, Any]) -> str:
    found = row["forward_ess"]
    return "-" if not found else f"{100 * found['value']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _log_z(found: dict[str, Any] | None) -> str:
    return "-" if not found else f"{found['value']:.4f} ± {found['standard_error']:.4f}"


def _small(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
