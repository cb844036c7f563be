"""Targets, sentences and tables of the suite `farm`, from what it measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpc_molgen.efficiency.suites.farm_scaling import Rounds, scaling_sentence, scaling_table
from hpc_molgen.efficiency.suites.record import in_words, spread
from hpc_molgen.efficiency.suites.rounds import target, target_sentence

QUESTION = (
    "What do the farm's scheduling and writing cost, what do further ranks bring, what can its queue take, how does it stand "
    "beside GROMACS?"
)
NOTES = [
    "Loops alone are timed: imports, process start and the plan are outside in all of them. Farms write trajectories with "
    "observables, states and the ledger; bare loops compute the same frames and write nothing. ± is the standard deviation "
    "over rounds, in which farms and bare loops run one after the other.",
    "One rank gets half of the replicas of two. The machine's clock and neighbours change within a round: the ratios in CPU "
    "seconds see less of that.",
    "Efficiency: ns a wall second of all ranks, over their number and over what one rank makes in the same round. In strong "
    "scaling the last replica counts: where each rank has few, some ranks have nothing left while others work.",
    "Nothing ran on a GPU.",
]


def results_of(
    rounds: Rounds, pairs: dict[str, dict[str, float]], simulated: dict[str, Any], engines: dict[str, Any] | None,
    scaling: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Put together what was measured, with overheads and ratios inside a round or a pair.

    Parameters
    ----------
    rounds : sequence of dict
        By farm ("two", "one", ...) or "bare": wall_s, cpu_s, ns.
    pairs : dict
        By "farm" and "bare", then by wall_s and cpu_s: lists, in the order of the pairs.
    """
    over: dict[str, Any] = {}
    ratios: dict[str, dict[str, Any]] = {"bare loop over worker": {}, "bare loops over two ranks": {}}
    for kind, name in (("wall_s", "ratio_wall"), ("cpu_s", "ratio_cpu")):
        farm, bare = (np.array(pairs[who][kind]) for who in ("farm", "bare"))
        percent = 100 * (farm / bare - 1)
        over[kind] = spread(percent) | {"median": float(np.median(percent))}
        ratios["bare loop over worker"][name] = spread(bare / farm)
        ratios["bare loops over two ranks"][name] = spread(r["bare"][kind] / r["two"][kind] for r in rounds)
    return {
        "rounds": list(rounds),
        "overhead_percent": {
            kind: spread(100 * (r["two"][kind] / r["bare"][kind] - 1) for r in rounds) for kind in ("wall_s", "cpu_s")
        },
        "pairs_percent": over,
        "ratios": ratios,
        "gain": spread(r["two"]["ns"] / r["two"]["wall_s"] / (r["one"]["ns"] / r["one"]["wall_s"]) for r in rounds),
        "scaling": scaling,
        "queue": simulated,
        "engines": engines,
    }


def record_of(results: dict[str, Any], n_replicas: int, size: str) -> dict[str, Any]:
    """Return the record but for its costs; `n_replicas` are those of the farm on two ranks."""
    listed = targets(results)
    return {
        "question": QUESTION,
        "answer": [target_sentence(listed, size), *_answer(results, n_replicas)],
        "targets": listed,
        "tables": [_round_table(results["rounds"]), scaling_table(results["scaling"]), *_engine_table(results["engines"])],
        "results": results,
        "notes": NOTES,
    }


def targets(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the figures with what they have to reach."""
    overhead, pairs, gain, simulated = (results[name] for name in ("overhead_percent", "pairs_percent", "gain", "queue"))
    listed = [
        target(
            "overhead over bare loops on two cores, wall (%)", "<= 3", in_words(overhead["wall_s"]), overhead["wall_s"]["mean"]
        ),
        target(
            "overhead over bare loops on two cores, CPU (%)", "<= 3", in_words(overhead["cpu_s"]), overhead["cpu_s"]["mean"]
        ),
        target(
            "the worker over a bare loop, replica by replica, CPU (median, %)",
            "<= 3", _median(pairs["cpu_s"]), pairs["cpu_s"]["median"],
        ),
        target("two ranks over one, ns per wall second", ">= 1.9", in_words(gain), gain["mean"]),
        target("simulated replicas a second through the ledger", ">= 2000", f"{simulated['per_s']:,.0f}", simulated["per_s"]),
        target("memory of rank 0 (GiB)", "<= 1", f"{simulated['root_gib']:.2f}", simulated["root_gib"]),
    ]  # fmt: skip
    if results["engines"]:
        ahead = results["engines"]["vacuum_farm_over_gromacs"]
        listed.append(target("farm over GROMACS, alanine dipeptide in vacuum, ns/day", ">= 1", in_words(ahead), ahead["mean"]))
    return listed


def _answer(results: dict[str, Any], n_replicas: int) -> list[str]:
    overhead, pairs, simulated = (results[name] for name in ("overhead_percent", "pairs_percent", "queue"))
    once = "once" if simulated["distinct"] == simulated["records"] == simulated["n"] else "NOT ONCE"
    length_s = float(np.mean([one_round["two"]["wall_s"] for one_round in results["rounds"]]))
    return [
        f"A farm of {n_replicas} replicas on two ranks, {length_s:.0f} s long, takes {in_words(overhead['wall_s'])} % more "
        f"wall time and {in_words(overhead['cpu_s'])} % more CPU time than the same dynamics in bare loops of OpenMM on two "
        f"cores. Two ranks make {in_words(results['gain'])} times what one makes.",
        scaling_sentence(results["scaling"]),
        f"Replica by replica, in turn on one core: {_median(pairs['wall_s'])} % more wall time, {_median(pairs['cpu_s'])} % "
        f"more CPU time (median of {pairs['cpu_s']['n']} pairs ± its standard error).",
        f"{simulated['n']:,} replicas that do nothing pass the queue and the ledger of {simulated['ranks']} ranks on "
        f"{simulated['cores']} cores at {simulated['per_s']:,.0f} a second; each is in the ledger {once}.",
        _beside_gromacs(results["engines"]),
        "Ranks ask once in some seconds, so one dispatcher serves thousands of them: no hierarchy of dispatchers is built.",
    ]


def _round_table(rounds: Rounds) -> dict[str, Any]:
    names = {"two": "farm, two MPI ranks", "one": "farm, one rank", "bare": "bare OpenMM loops, two processes"}
    rows = [
        [
            name,
            in_words(spread(r[what]["wall_s"] for r in rounds)),
            in_words(spread(r[what]["cpu_s"] for r in rounds)),
            in_words(spread(r[what]["ns"] / r[what]["wall_s"] * 86_400 for r in rounds)),
        ]
        for what, name in names.items()
    ]
    columns = ["what", "loop (s)", "CPU of the loop (s)", "ns/day, all"]
    return {"caption": "Alanine dipeptide, OpenMM Reference", "columns": columns, "rows": rows}


def _beside_gromacs(engines: dict[str, Any] | None) -> str:
    if engines is None:
        return "GROMACS was not found (no executable gmx), so nothing was compared with it."
    vacuum, water = engines["vacuum_farm_over_gromacs"], engines["water_gromacs_over_openmm"]
    return (
        f"Beside {engines['gromacs']} on the same {engines['cores']} cores: in vacuum the farm makes {in_words(vacuum)} times "
        f"the ns a day of GROMACS; in TIP3P the farm with engine gromacs makes {in_words(water)} times those of OpenMM's CPU "
        "platform."
    )


def _engine_table(engines: dict[str, Any] | None) -> list[dict[str, Any]]:
    names = {
        "vacuum farm": "vacuum, 1 fs, flexible: the farm, 64 replicas in the batched engine",
        "vacuum gromacs": "vacuum, 1 fs, flexible: GROMACS alone, one process on each core",
        "water openmm": "TIP3P, 3 nm, 2 fs: the farm, OpenMM's CPU platform",
        "water gromacs": "TIP3P, 3 nm, 2 fs: the farm, engine gromacs",
    }
    if engines is None:
        return []
    rows = [[names[name], in_words(values)] for name, values in engines["ns_per_day"].items()]
    caption = f"Alanine dipeptide on {engines['cores']} cores, all replicas together, minimisation and start-up included"
    return [{"caption": caption, "columns": ["what", "ns/day, all"], "rows": rows}]


def _median(values: dict[str, Any]) -> str:
    error = 1.25 * values["sd"] / values["n"] ** 0.5  # of the median of normal values
    return f"{values['median']:.2g} ± {error:.2g}"
