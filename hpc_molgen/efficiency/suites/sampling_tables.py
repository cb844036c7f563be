"""What the suite `sampling` says: sentences, targets, tables and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_molgen.efficiency.figures import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION, canvas
from hpc_molgen.efficiency.suites.record import finite
from hpc_molgen.efficiency.suites.rounds import target, target_sentence
from hpc_molgen.efficiency.suites.sampling_judge import Family

QUESTION = (
    "How many samples a second does a trained surrogate draw, against the number of network evaluations and the quality of "
    "what is drawn?"
)
CAPTION = "samples per CPU second, and divergence of raw (phi, psi) over the noise floor, against network evaluations"
EVALUATIONS, ESS, FLOOR, FLOW_AHEAD = 16, 0.4, 2.0, 5
WITHIN = 2  # standard errors of the best ESS that the knee may be below it
NOTES = (
    "Samples per second: from noise to positions, with ln q and its Jacobian unless the line says otherwise, on one thread or "
    "a GPU. ± is the standard deviation over rounds: in each every method draws once, forwards and backwards in turn, after a "
    "first call that counts for nothing.",
    "Network evaluations of a sample are counted where they happen, at the network's first layer. One with its divergence "
    "counts as one, but costs more. Methods of the ODE begin at the same points of the prior.",
    "ESS is Kish's, unclipped, of weights exp(-u)/q (of whole paths for 'weighted paths'). Its error is the larger of the "
    "bootstrap's over the samples of all rounds and of what rounds differ by; k-hat is that of all rounds' samples together.",
    "Effective samples per second: the ESS of all rounds together over the time of a sample and of its energy; ± is of the "
    "speed, the ESS has its own. They are printed where k-hat <= 0.7, no sample has more than a tenth of the weight and, for "
    "the ODE, ln q comes back from the prior within 0.1 (root mean square): a cautious error, up to twelve times that of the "
    "samples themselves (suite `density`). The knee: the fewest evaluations of the ODE, certified, whose ESS is within two "
    "standard errors of the best.",
    "Divergence: Jensen-Shannon, (phi, psi) on 60 x 60 bins, from held-out MD with its bias weighed out, over that of training "
    "MD at equal Kish size (the floor; frames of MD resemble each other, so independent samples can be below it). Weighted: at "
    "the size of their ESS. It hardly sees that phi > 0, 2 % of the ensemble, is missing: dF in the suite `correction` does.",
    "Structures fail for a bond off by 20 %, a clash, a D C-alpha, a cis amide, or an energy above the 99.9th percentile of "
    "MD, of which 0.1 % do.",
    "One training of each surrogate: what another one would change is not in the spreads.",
)
STYLES = {
    Family.ODE: (BLUE, "o"), Family.RAW: (GREY, "s"), Family.PATH: (GREEN, "^"), Family.ANCESTRAL: (ORANGE, "v"),
    Family.FLOW: (BLACK, "*"),
}  # fmt: skip


def record_of(results: Mapping[str, Any], size: str, n_rounds: int) -> dict[str, Any]:
    """Return question, answer, targets, tables and notes of the record."""
    methods = results["methods"]
    targets = _targets(methods)
    where = "a GPU" if results["device"] == "cuda" else "one core"
    return {
        "question": QUESTION,
        "answer": [target_sentence(targets, size), *_answer(methods, where)],
        "targets": targets,
        "tables": [_speed_table(methods, where), _quality_table(methods, results["controls"])],
        "notes": [*NOTES, f"{n_rounds} rounds; an energy takes {1e6 * results['energy_cpu_s']:.2g} us of CPU."],
    }


def knee(methods: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the certified ODE of fewest evaluations whose ESS is within two standard errors of the best."""
    sound = [row for row in methods.values() if row["family"] == Family.ODE.value and row["certified"]]
    if not sound:
        return None
    best = max(sound, key=lambda row: row["pooled"]["ess_fraction"])["pooled"]
    enough = best["ess_fraction"] - WITHIN * best["ess_fraction_error"]
    near = [row for row in sound if row["pooled"]["ess_fraction"] >= enough]
    found: dict[str, Any] = min(near, key=lambda row: (row["n_evaluations"]["mean"], -row["per_cpu_s"]["mean"]))
    return found


def fastest(methods: Mapping[str, Any], family: Family) -> dict[str, Any] | None:
    """Return the certified method of a family that gives most effective samples per CPU second."""
    sound = [row for row in methods.values() if row["family"] == family.value and row["certified"]]
    return max(sound, key=lambda row: row["effective_per_cpu_s"]["mean"], default=None)


def _answer(methods: Mapping[str, Any], where: str) -> list[str]:
    flow, found = methods["flow"], knee(methods)
    sentences = [
        f"The flow draws {_number(flow['per_cpu_s'])} samples per CPU second of {where}, in one evaluation; its ESS is "
        f"{_share(flow)} (k-hat {flow['pooled']['k_hat']:.2f})."
    ]
    if found is None:
        sentences.append("No setting of the diffusion's ODE has weights that can be trusted.")
    else:
        sentences.append(
            f"The knee of the diffusion's ODE is {found['method'].removeprefix('ODE, ')}: "
            f"{found['n_evaluations']['mean']:.3g} evaluations, "
            f"{_number(found['per_cpu_s'])} samples per CPU second with exact ln q, ESS {_share(found)}, divergence "
            f"{found['jsd_over_floor']['mean']:.2f} times the floor."
        )
    for family in (Family.FLOW, Family.ODE, Family.PATH):
        best = fastest(methods, family)
        words = "not certified" if best is None else f"{_number(best['effective_per_cpu_s'])} ({best['method']})"
        sentences.append(f"Effective samples per CPU second, {family.value}: {words}.")
    return sentences


def _number(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:,.0f} ± {found['sd']:,.0f}"


def _share(row: Mapping[str, Any]) -> str:
    return f"{100 * row['pooled']['ess_fraction']:.1f} ± {100 * row['pooled']['ess_fraction_error']:.1f} %"


def _targets(methods: Mapping[str, Any]) -> list[dict[str, Any]]:
    flow, found = methods["flow"], knee(methods)
    ode = [row for row in methods.values() if row["family"] == Family.ODE.value]
    evaluations = min((row["n_evaluations"]["mean"] for row in ode if row["certified"]), default=None)
    ahead = None if found is None or not flow["certified"] else flow["per_cpu_s"]["mean"] / found["per_cpu_s"]["mean"]
    ess = None if found is None else 100 * found["pooled"]["ess_fraction"]
    over_floor = None if found is None else found["jsd_over_floor"]["mean"]
    of_flow = 100 * flow["pooled"]["ess_fraction"] if flow["certified"] else None
    figures: list[tuple[str, str, float | None]] = [
        ("diffusion, ODE: fewest network evaluations that are certified", f"<= {EVALUATIONS}", evaluations),
        ("diffusion, ODE: ESS at the knee / %", f">= {100 * ESS:g}", ess),
        ("diffusion, ODE: divergence of raw samples over the floor at the knee", f"<= {FLOOR:g}", over_floor),
        ("flow: ESS / % (where certified)", f">= {100 * ESS:g}", of_flow),
        ("flow: divergence of raw samples over the floor", f"<= {FLOOR:g}", flow["jsd_over_floor"]["mean"]),
        ("flow: samples per CPU second over the ODE's at its knee", f">= {FLOW_AHEAD}", ahead),
    ]  # fmt: skip
    return [target(name, limit, value, value) for name, limit, value in figures]


def _speed_table(methods: Mapping[str, Any], where: str) -> dict[str, Any]:
    columns = [
        "method", "evaluations", "samples / CPU s", "samples / wall s", "ESS / %", "k-hat", "ln q, there and back",
        "effective / CPU s",
    ]  # fmt: skip
    rows = []
    for row in methods.values():
        weighed = "pooled" in row
        effective = (
            row["effective_per_cpu_s"] if row["certified"] else f"not certified: {row['why_not']}" if weighed else "no ln q"
        )
        rows.append([
            row["method"], row["n_evaluations"]["mean"], row["per_cpu_s"], row["per_wall_s"],
            _share(row).removesuffix(" %") if weighed else None, row["pooled"]["k_hat"] if weighed else None,
            row.get("round_trip_rms") and row["round_trip_rms"]["mean"], effective,
        ])  # fmt: skip
    return {"caption": f"Cost of a sample, on {where}", "columns": columns, "rows": rows}


def _quality_table(methods: Mapping[str, Any], controls: Mapping[str, float]) -> dict[str, Any]:
    columns = ["method", "evaluations", "raw: divergence / nats", "raw: over the floor", "weighted: over the floor", "fail / %"]
    rows: list[list[Any]] = [
        [
            row["method"], row["n_evaluations"]["mean"], row["jsd_nats"], row["jsd_over_floor"],
            row.get("weighted_jsd_over_floor"), 100 * row["failed_share"]["mean"],
        ]
        for row in methods.values()
    ]  # fmt: skip
    rows += [[f"wrong on purpose: {name}", None, None, value, None, None] for name, value in controls.items()]
    return {"caption": "Quality of what is drawn, and of sets that are wrong on purpose", "columns": columns, "rows": rows}


def draw(folder: Path, name: str, methods: Mapping[str, Any]) -> str:
    """Write FOLDER/NAME.png (and .svg): speed and divergence against evaluations; hollow where weights are not certified."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    with canvas(folder, name, 2, 3.4) as (figure, (left, right)):
        for family, (colour, marker) in STYLES.items():
            own = sorted((row for row in methods.values() if row["family"] == family.value), key=_evaluations)
            for axis, quantity in ((left, "per_cpu_s"), (right, "jsd_over_floor")):
                for row in own:
                    if finite(row[quantity]) is None or row[quantity]["mean"] <= 0:
                        continue
                    style = {"color": colour, "mfc": colour if row["certified"] else "white", "ms": 8 if marker == "*" else 4.5}
                    axis.errorbar(_evaluations(row), row[quantity]["mean"], yerr=row[quantity]["sd"], fmt=marker, **style)
                line = [row for row in own if row["method"].startswith(("ODE, rk4", "weighted", "ancestral"))]
                axis.plot([_evaluations(row) for row in line], [row[quantity]["mean"] for row in line], color=colour, lw=0.9)
            left.plot([], [], marker, color=colour, label=family.value)
        left.plot([], [], "D", color=VERMILLION, mfc="white", ms=4, label="hollow: no weights, or not certified")
        left.set_ylabel("samples per CPU second")
        left.set_yscale("log")
        right.axhline(1, color=GREY, lw=0.8, ls=":")
        right.set_ylabel("divergence of (φ, ψ) over the floor")
        right.set_yscale("log")
        for axis in (left, right):
            axis.set_xscale("log")
            axis.set_xlabel("network evaluations of a sample")
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_locator(LogLocator(subs=(1.0, 2.0, 4.0) if axis is right and side is axis.yaxis else (1.0, 3.0)))
                side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
                side.set_minor_formatter(NullFormatter())
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return f"{name}.png"


def _evaluations(row: Mapping[str, Any]) -> float:
    return float(row["n_evaluations"]["mean"])
