"""Targets, sentences and tables of the `energies` suite, from what it measured."""

from __future__ import annotations

from typing import Any

from hpc_molgen.efficiency.suites.rounds import target

QUESTION = (
    "How many energies and forces of alanine dipeptide in implicit water does this machine compute a second, with which "
    "method, and how exact are they against OpenMM?"
)
NOTES = [
    "Speeds are conformations per CPU second of the process; a ratio is to the loop over OpenMM's Reference platform of the "
    "same round (energies to its energies, energies with forces to its energies with forces). "
    "± is the standard deviation over rounds.",
    "Methods of several threads are judged by wall seconds, all others by CPU seconds, which other load disturbs less.",
    "Agreement is with OpenMM's Reference platform (double precision) on the same float64 positions; the worse of the energies "
    "computed alone and with forces. It is the worst conformation, so it has no spread.",
    "Compilation started from an empty cache. It is in the costs, not in the speeds; later runs find it in the user's cache.",
    "Forces of torch are by automatic differentiation.",
]
_COLUMNS = [
    "method", "conformations a call", "per CPU s", "over OpenMM (CPU s)", "per wall s", "over OpenMM (wall)",
    "largest energy error at 600 K (kJ/mol)",
]  # fmt: skip


def targets(results: dict[str, Any], n_judged: int) -> list[dict[str, Any]]:
    """Compare the figures with what they have to reach."""
    listed = []
    for dtype, limit in (("float64", "<= 1e-9"), ("float32", "<= 1e-3")):
        key, worst = _worst(results, dtype, "energy_kj_mol")
        name = f"largest {dtype} energy error on {n_judged:,} frames at 600 K (kJ/mol); worst backend: {key}"
        listed.append(target(name, limit, worst, worst))
    key, worst = _worst(results, "float64", "force_relative_rms")
    listed.append(target(f"relative rms float64 force error at 600 K; worst backend: {key}", "<= 1e-6", worst, worst))
    for kind, dtype, limit in (
        ("energies", "float32", ">= 20"),
        ("energies", "float64", ">= 11"),
        ("forces", "float32", ">= 10"),
        ("forces", "float64", ">= 5"),
    ):
        best = _best(results, kind, dtype)
        what = "energies" if kind == "energies" else "energies with forces"
        name = f"{dtype} {what}, one thread, over OpenMM's loop; by {best['method']}"
        listed.append(target(name, limit, best["ratio_cpu"], best["ratio_cpu"]["mean"]))
    many = results["many"]
    name = f"wall s of {many['n']:,} float64 energies on {many['cores']} core(s); by {many['method']}"
    listed.append(target(name, "<= 6 s", many["wall_s"], many["wall_s"]["mean"]))
    return listed


def _worst(results: dict[str, Any], dtype: str, figure: str) -> tuple[str, float]:
    found = {key: row["600"][figure] for key, row in results["agreement"].items() if row["dtype"] == dtype}
    key = max(found, key=lambda name: found[name])
    return key, found[key]


def _best(results: dict[str, Any], kind: str, dtype: str) -> dict[str, Any]:
    """Return the fastest of one thread."""
    rows = [
        row
        for row in results["speeds"].values()
        if (row["kind"], row["dtype"], row["threads"]) == (kind, dtype, 1) and row["backend"] != "openmm"
    ]
    best: dict[str, Any] = max(rows, key=lambda row: row["ratio_cpu"]["mean"])
    return best


def answer(results: dict[str, Any]) -> list[str]:
    """Sentences that answer the question."""
    loop = results["speeds"]["openmm energies"]["per_cpu_s"]["mean"]
    sentences = [f"A loop over OpenMM computes {loop:,.0f} energies per CPU second."]
    for kind, what in (("energies", "energies"), ("forces", "energies with forces")):
        for dtype in ("float32", "float64"):
            best = _best(results, kind, dtype)
            _, error = _worst(results, dtype, "energy_kj_mol")
            sentences.append(
                f"{dtype} {what}: {best['per_cpu_s']['mean']:,.0f} per CPU second on one thread, "
                f"{best['ratio_cpu']['mean']:.1f} times the loop ({best['method']}); error at most {error:.1e} kJ/mol."
            )
    many = results["many"]
    sentences.append(
        f"{many['n']:,} float64 energies take {many['wall_s']['mean']:.3g} s on {many['cores']} core(s); OpenMM's loop would "
        f"take {many['openmm_loop_wall_s_scaled']['mean']:.3g} s (scaled from {many['openmm_loop_measured_on']:,})."
    )
    return sentences


def tables(results: dict[str, Any], n_judged: int) -> list[dict[str, Any]]:
    """Every table of the record."""
    listed = [
        _speeds(results, "energies", "Energies alone"),
        _speeds(results, "forces", "Energies with forces"),
        _agreement(results["agreement"], n_judged),
        _many(results["many"]),
    ]
    if results["gpu"]:
        columns = [
            "method",
            "what",
            "copies",
            "per wall s",
            "over OpenMM (wall)",
            "bytes a copy",
            "largest energy error at 600 K",
        ]
        keys = ("method", "kind", "n", "per_wall_s", "ratio_wall", "bytes_per_copy", "energy_error_kj_mol")
        rows = [[row[key] for key in keys] for row in results["gpu"]]
        listed.append({"caption": "On a GPU, against the number of copies", "columns": columns, "rows": rows})
    return listed


def _speeds(results: dict[str, Any], kind: str, caption: str) -> dict[str, Any]:
    rows = []
    for row in results["speeds"].values():
        if row["kind"] != kind:
            continue
        key = row.get("evaluator", "").removesuffix(" all cores")
        error = results["agreement"][key]["600"]["energy_kj_mol"] if key else "yardstick"
        figures = [row[name] for name in ("per_cpu_s", "ratio_cpu", "per_wall_s", "ratio_wall")]
        rows.append([row["method"], f"{row['n_per_call']:,}", *figures, error])
    return {"caption": f"{caption} (mean ± sd over rounds)", "columns": _COLUMNS, "rows": rows}


def _agreement(errors: dict[str, Any], n_judged: int) -> dict[str, Any]:
    columns = ["method", "energy error, 300 K (kJ/mol)", "600 K", "relative rms force error, 300 K", "600 K"]
    figures = [("300", "energy_kj_mol"), ("600", "energy_kj_mol"), ("300", "force_relative_rms"), ("600", "force_relative_rms")]
    rows = [[row["method"], *(row[kelvin][figure] for kelvin, figure in figures)] for row in errors.values()]
    caption = f"Agreement with OpenMM Reference on {n_judged:,} conformations of each temperature (largest energy error)"
    return {"caption": caption, "columns": columns, "rows": rows}


def _many(many: dict[str, Any]) -> dict[str, Any]:
    rows = [
        [f"{many['method']}, {many['cores']} core(s)", many["wall_s"], "measured"],
        [
            "OpenMM Reference, loop, 1 thread",
            many["openmm_loop_wall_s_scaled"],
            f"scaled from {many['openmm_loop_measured_on']:,}",
        ],
    ]
    caption = f"{many['n']:,} float64 energies ({many['n_distinct']:,} distinct conformations, repeated)"
    return {"caption": caption, "columns": ["method", "wall s", "how"], "rows": rows}
