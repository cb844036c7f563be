"""Words, targets and tables of the suite `density`."""

from __future__ import annotations

from typing import Any

from hpc_molgen.efficiency.suites.rounds import target, target_sentence

QUESTION = "Which ln q costs what, how exact is it, and which weights give more effective samples a second?"
EVALUATIONS_ALLOWED = 50
ERROR_ALLOWED = 0.05


def record_of(results: dict[str, Any], size: str) -> dict[str, Any]:
    """Return question, answer, targets, tables and notes of the record."""
    cheapest, targets = _cheapest(results["errors"]), _targets(results)
    speeds, weights = results["speeds"], results["weights"]
    best = {
        kind: max((w for w in weights if w["kind"] == kind), key=lambda w: w["effective_per_cpu_s"]) for kind in ("ode", "path")
    }
    answer = [target_sentence(targets, size)]
    if cheapest is not None:
        answer.append(
            f"{_name(cheapest)} is the cheapest with errors of ln q below {ERROR_ALLOWED:g}: {cheapest['n_evaluations']} "
            f"evaluations, {cheapest['rms']:.2g} (root mean square)."
        )
    us = {label: 1e6 / value["per_cpu_s"]["mean"] for label, value in speeds.items()}
    answer.append(
        f"An evaluation costs {us['velocity']:.1f} us of CPU a sample without its divergence, {us['batched']:.1f} with it; "
        f"{us['loop']:.0f} with angles one after the other, {us['full']:.0f} as one product for each of the "
        f"{results['n_features']} features."
    )
    answer.append(
        f"Weights along the ODE: at best {best['ode']['effective_per_cpu_s']:.0f} effective samples a CPU second "
        f"({best['ode']['n_steps']} steps, ESS {100 * best['ode']['ess_fraction']:.1f} %); path weights: "
        f"{best['path']['effective_per_cpu_s']:.0f} ({best['path']['n_steps']} steps, "
        f"{100 * best['path']['ess_fraction']:.1f} %)."
    )
    return {
        "question": QUESTION,
        "answer": answer,
        "targets": targets,
        "tables": [_error_table(results["errors"]), _speed_table(speeds), _weight_table(weights)],
        "notes": [
            "One evaluation of the network counts as one, with or without its divergence. Errors are those of ln q of the "
            "samples that the integrator made, against the adaptive integrator in float64 from these same samples.",
            "Path weights are weights of whole paths: what stands in the place of ln q is no density of the sample, and their "
            "ESS holds for averages over x_0 as that of other weights does. ln Z is of the same integral in all rows.",
            "CPU seconds of one thread, energies included. The ESS of a few thousand samples carries some per cent of noise, "
            "more where k-hat is large.",
        ],
    }  # fmt: skip


def _name(row: dict[str, Any]) -> str:
    return (
        f"adaptive at {row['tolerance']:g}"
        if row["integrator"] == "adaptive"
        else f"{row['integrator']}, {row['n_steps']} steps"
    )


def _cheapest(errors: list[dict[str, Any]]) -> dict[str, Any] | None:
    good = [row for row in errors if max(row["rms"], row["p95"]) < ERROR_ALLOWED]
    return min(good, key=lambda row: (row["n_evaluations"], row["rms"])) if good else None


def _targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    cheapest, weights = _cheapest(results["errors"]), results["weights"]
    evaluations = None if cheapest is None else float(cheapest["n_evaluations"])
    rows = [
        target(
            f"evaluations at which errors of ln q (root mean square, and 95th percentile) are below {ERROR_ALLOWED:g}",
            f"<= {EVALUATIONS_ALLOWED}", evaluations, evaluations,
        )
    ]  # fmt: skip
    for kind, words in (("ode", "weights along the ODE"), ("path", "path weights")):
        own = [row for row in weights if row["kind"] == kind]
        ess = 100 * max(row["ess_fraction"] for row in own)
        enough = [row["samples_per_cpu_s"] for row in own if row["ess_fraction"] >= 0.3]
        fastest = max(enough, default=0.0)
        rows.append(target(f"{words}: unclipped ESS, the best of the table / %", ">= 30", ess, ess))
        name = f"{words}: weighted samples a CPU second on one core (half of what two cores have to make), at that ESS"
        rows.append(target(name, ">= 100", fastest, fastest))
    return rows


def _error_table(errors: list[dict[str, Any]]) -> dict[str, Any]:
    columns = [
        "integrator",
        "evaluations",
        "rms",
        "95th percentile",
        "largest",
        "round trip rms",
        "largest",
        "of features, largest",
    ]
    rows = []
    for row in sorted(errors, key=lambda one: one["n_evaluations"]):
        trip = row["round_trip"]
        rows.append([
            _name(row), row["n_evaluations"], row["rms"], row["p95"], row["max"],
            trip["log_density_rms"], trip["log_density_max"], trip["features_max"],
        ])  # fmt: skip
    return {"caption": "Error of ln q by integrator, and what a round trip shows of it", "columns": columns, "rows": rows}


def _speed_table(speeds: dict[str, Any]) -> dict[str, Any]:
    columns = ["one evaluation", "CPU us / sample", "samples / CPU s", "speed over that of the velocity"]
    rows = [
        [value["method"], 1e6 / value["per_cpu_s"]["mean"], value["per_cpu_s"], value["ratio_cpu"]] for value in speeds.values()
    ]
    return {"caption": "One evaluation of the network", "columns": columns, "rows": rows}


def _weight_table(weights: list[dict[str, Any]]) -> dict[str, Any]:
    columns = [
        "weights", "steps", "variances", "ESS / %", "clipped / %", "k-hat", "sd of ln w", "ln Z", "CPU ms / sample",
        "samples / CPU s", "effective / CPU s",
    ]  # fmt: skip
    words = {"ode": "along the ODE (rk4)", "path": "path weights"}
    rows = []
    for row in weights:
        k_hat = row["k_hat"] if abs(row["k_hat"]) < float("inf") else None
        rows.append([
            words[row["kind"]], row["n_steps"], row["variance"], 100 * row["ess_fraction"], 100 * row["ess_clipped_fraction"],
            k_hat, row["log_weight_sd"], f"{row['log_z']:.3f}", 1e3 / row["samples_per_cpu_s"], row["samples_per_cpu_s"],
            row["effective_per_cpu_s"],
        ])  # fmt: skip
    return {"caption": "Weights, energies included", "columns": columns, "rows": rows}
