"""Targets, sentences and tables of the `md` suite, from what it measured."""

from __future__ import annotations

from typing import Any, TypeVar

from hpc_molgen.efficiency.suites.rounds import target

QUESTION = (
    "How many ns a day of molecular dynamics of alanine dipeptide does this machine make, in implicit water and in vacuum, "
    "with which engine?"
)
NOTES = [
    "ns a day are summed over copies, per core: simulated time per CPU second of the process. A ratio is to OpenMM's Reference "
    "platform with the same system, step and constraints in the same round. ± is the standard deviation over rounds.",
    "Langevin-middle dynamics at 300 K, friction 1/ps, without recording; constraints to a relative 1e-8 (float32: 2e-6).",
    "The temperature is that of the kinetic energy between the timed calls, ± its standard error; constrained degrees of "
    "freedom are left out. Long steps bias it by their discretisation, and it says nothing of the conformations.",
    "OpenMM's CPU platform ran on one thread, pinned to a core: without that it is slower.",
    "Processes side by side against one: each is pinned to its core; ratios are of the sum of all to the mean of one alone.",
]
Rows = TypeVar("Rows", dict[str, Any], list[dict[str, Any]])


def in_ns_a_day(rows: Rows) -> Rows:
    """Name what was measured in units of ns a day; changes and returns `rows`."""
    for row in rows.values() if isinstance(rows, dict) else rows:
        row["ns_per_day_core"] = row.pop("per_cpu_s")
        row["ns_per_day_wall"] = row.pop("per_wall_s")
        del row["n_per_call"]
    return rows


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the figures with what they have to reach."""
    listed = []
    for system in ("implicit", "vacuum"):
        for protocol, words in (("1fs", "1 fs flexible"), ("2fs", "2 fs constrained")):
            row = results["speeds"][f"{system} {protocol} batched float32"]
            name = f"float32 ns/day/core over OpenMM Reference, {system}, {words}; by {row['method']}"
            listed.append(target(name, ">= 10", row["ratio_cpu"], row["ratio_cpu"]["mean"]))
    processes = results["processes"]
    if processes:
        name, limit = f"{_count(processes['n'])} processes over one, float32, 1 fs (wall)", f">= {0.9 * processes['n']:g}"
        listed.append(target(name, limit, processes["ratio_wall"], processes["ratio_wall"]["mean"]))
    return listed


def answer(results: dict[str, Any]) -> list[str]:
    """Sentences that answer the question."""
    sentences = []
    for system, words in (("implicit", "In implicit water"), ("vacuum", "In vacuum")):
        rows = [row for row in results["speeds"].values() if row["system"] == system]
        best = max(rows, key=lambda row: row["ns_per_day_core"]["mean"])
        flexible = max((row for row in rows if row["protocol"] == "1fs"), key=lambda row: row["ns_per_day_core"]["mean"])
        sentences.append(
            f"{words} one core makes {flexible['ns_per_day_core']['mean']:,.0f} ns a day of flexible dynamics with 1 fs "
            f"({flexible['method']}; {flexible['ratio_cpu']['mean']:.1f} times OpenMM Reference), and at most "
            f"{best['ns_per_day_core']['mean']:,.0f} with {best['protocol'].removesuffix('fs')} fs."
        )
    if results["processes"]:
        ratio, n = results["processes"]["ratio_wall"], _count(results["processes"]["n"])
        text = f"{n.capitalize()} processes on {n} cores make {ratio['mean']:.2f} ± {ratio['sd']:.2f} times the steps of one."
        sentences.append(text)
    gromacs = results["speeds"].get("vacuum 1fs gromacs")
    if gromacs:
        ratio = gromacs["ratio_cpu"]
        sentences.append(
            f"GROMACS makes {ratio['mean']:.2f} ± {ratio['sd']:.2f} times the dynamics of OpenMM Reference in vacuum."
        )
    return sentences


def tables(results: dict[str, Any], protocols: dict[str, str]) -> list[dict[str, Any]]:
    """Every table of the record; `protocols` gives words for their keys."""
    listed = [
        _speeds(results["speeds"], system, protocol, f"{words}, {name}")
        for system, words in (("implicit", "Implicit water"), ("vacuum", "Vacuum"))
        for protocol, name in protocols.items()
    ]
    columns = ["copies", "method", "steps of all copies per CPU s", "over the largest number of copies"]
    rows = [[row["n_copies"], row["method"], row["per_cpu_s"], row["ratio_cpu"]] for row in results["batches"].values()]
    listed.append({"caption": "Number of copies, implicit water, 1 fs, one thread", "columns": columns, "rows": rows})
    if results["processes"]:
        row, n = results["processes"], _count(results["processes"]["n"])
        columns = ["", "one process", f"{n} processes", "ratio"]
        figures = [
            ["steps of all copies per wall s", row["alone"], row["together"], row["ratio_wall"]],
            ["steps per CPU s, times processes", None, None, row["ratio_cpu"]],
        ]
        listed.append(
            {
                "caption": f"{n.capitalize()} processes against one, implicit water, float32, 1 fs",
                "columns": columns,
                "rows": figures,
            }
        )
    if results["gpu"]:
        columns = ["copies", "method", "ns/day (wall)", "over OpenMM Reference (wall)", "temperature (K)", "bytes a copy"]
        figures = [
            [row["n"], row["method"], row["ns_per_day_wall"], row["ratio_wall"], _kelvin(row), row["bytes_per_copy"]]
            for row in results["gpu"]
        ]
        listed.append({"caption": "On a GPU, implicit water, 1 fs", "columns": columns, "rows": figures})
    return listed


def _speeds(speeds: dict[str, Any], system: str, protocol: str, caption: str) -> dict[str, Any]:
    columns = ["method", "ns/day per core", "over OpenMM Reference (CPU s)", "ns/day (wall)", "temperature (K)"]
    rows = [
        [row["method"], row["ns_per_day_core"], row["ratio_cpu"], row["ns_per_day_wall"], _kelvin(row)]
        for row in speeds.values()
        if (row["system"], row["protocol"]) == (system, protocol)
    ]
    return {"caption": caption, "columns": columns, "rows": rows}


def _count(n: int) -> str:
    return "two" if n == 2 else str(n)


def _kelvin(row: dict[str, Any]) -> str:
    temperature = row["temperature"]
    error = temperature["standard_error"]
    return f"{temperature['kelvin']:.1f}" + (f" ± {error:.1f}" if error is not None else "")
