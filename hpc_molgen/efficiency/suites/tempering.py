"""Suite `tempering`: the converged free energy of phi > 0 of alanine dipeptide by batched parallel tempering.

Its result is the reference truth that other benchmarks compare with. Two runs that differ in all that could be wrong (the bias
that makes phi cross, time step, masses) have to agree. Ladders are independent, so errors come from them alone and need no
autocorrelation time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from hpc_molgen import interrupts
from hpc_molgen.analysis import kinetics
from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.bias import flattening_bias, spread_structures
from hpc_molgen.dynamics.langevin import minimise
from hpc_molgen.dynamics.modified import modified_system
from hpc_molgen.dynamics.tempering import ParallelTempering, geometric_ladder
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import torsion_angles, torsion_by_name
from hpc_molgen.units import BOLTZMANN_KJ_MOL_KELVIN
from hpc_molgen.workers import available_cores


@dataclass(frozen=True)
class Settings:
    """Lengths and protocol of one size.

    Attributes
    ----------
    ns_per_ladder, check_ns_per_ladder : float
        Of each temperature, of the protocols MAIN and CHECK.
    discarded : float
        Share at the beginning that is not counted.
    """

    n_ladders: int
    n_temperatures: int
    highest_kelvin: float
    ns_per_ladder: float
    check_ns_per_ladder: float
    swap_every_ps: float = 0.1
    discarded: float = 0.1


SIZES = {
    "smoke": Settings(4, 4, 600.0, 0.002, 0.002),
    "laptop": Settings(32, 5, 600.0, 1.8, 4.5),
    "cluster": Settings(256, 5, 600.0, 5.0, 10.0),
}


@dataclass(frozen=True)
class Protocol:
    """What differs between the two runs; masses and bias do not enter the result, the time step does, a little."""

    name: str
    timestep_fs: float
    hydrogen_mass_amu: float | None
    biased: bool


CONVERGED_KT = (3.855, 0.036)  # dF(phi > 0) of the default system and half of its 95 % interval, by the size laptop
MAIN = Protocol("flexible, 1 fs, true masses, a bias that flattens phi, reweighted", 1.0, None, True)
CHECK = Protocol("flexible, 2 fs, hydrogens of 3.024 u, no bias", 2.0, 3.024, False)


def tempering(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite; return its part of the record."""
    del out
    settings, costs, system = SIZES[size], Costs(), load_system(SystemConfig())
    results = {}
    for name, protocol, length_ns in (
        ("main", MAIN, settings.ns_per_ladder),
        ("check", CHECK, settings.check_ns_per_ladder),
    ):
        with costs.stage(f"tempering, {protocol.name}") as cost:
            results[name] = run_ladders(system, settings, protocol, length_ns, derive_seed(seed, name))
        results[name] |= {"cpu_s": cost["cpu_s"], "wall_s": cost["wall_s"], "protocol": asdict(protocol)}
    return _record(settings, results, costs)


def run_ladders(system: MolecularSystem, settings: Settings, protocol: Protocol, length_ns: float, seed: int) -> dict[str, Any]:
    """Run the ladders of one protocol and return dF, populations, mean energies, crossings and acceptance."""
    quad = torsion_by_name(system.topology, "phi")
    bias = flattening_bias(system, quad, derive_seed(seed, "bias")) if protocol.biased else None
    batched = BatchedSystem(modified_system(system, hydrogen_mass_amu=protocol.hydrogen_mass_amu, bias=bias), "float32")
    n = settings.n_ladders * settings.n_temperatures
    starts, _ = minimise(batched, spread_structures(system, n, seed), max_iterations=300)
    ladders = ParallelTempering(
        batched,
        starts.reshape(settings.n_ladders, settings.n_temperatures, system.n_atoms, 3),
        geometric_ladder(system.temperature_kelvin, settings.highest_kelvin, settings.n_temperatures),
        seed,
        steps_per_swap=round(settings.swap_every_ps * 1e3 / protocol.timestep_fs),
        timestep_fs=protocol.timestep_fs,
    )
    phi, energy, copies = [], [], []
    n_swaps = round(length_ns * 1e3 / settings.swap_every_ps)
    for block in ladders.simulate(n_swaps, observables={"phi": lambda x: torsion_angles(x, quad)}):
        interrupts.check()
        phi.append(block.observables["phi"])
        energy.append(block.potential_kj_mol)
        copies.append(block.copy)
    first = int(settings.discarded * n_swaps)
    angles, energies = np.concatenate(phi)[first:], np.concatenate(energy)[first:]
    followed = np.empty_like(angles)  # by copy, so that a swap is no passage
    np.put_along_axis(followed, np.concatenate(copies)[first:], angles, axis=2)
    weights = np.ones_like(angles)
    if bias is not None:
        energies = energies - bias.energy_kj_mol(angles) - np.hypot(bias.cos_kj_mol, bias.sin_kj_mol).sum()
        weights = np.exp(bias.energy_kj_mol(angles) / (BOLTZMANN_KJ_MOL_KELVIN * ladders.temperatures_kelvin))
    total = weights.sum(axis=0)  # (n_ladders, n_temperatures)
    inside, energy_sum = (weights * (angles > 0)).sum(axis=0), (weights * energies).sum(axis=0)
    levels = range(settings.n_temperatures)
    return {
        "engine": batched.description,
        "threads": batched.threads,
        "temperatures_kelvin": ladders.temperatures_kelvin.tolist(),
        "share_phi_positive": [estimate(inside[:, k], total[:, k]) for k in levels],
        "dF_kt": [free_energy(inside[:, k], total[:, k]) for k in levels],
        "mean_potential_kj_mol": [estimate(energy_sum[:, k], total[:, k]) for k in levels],
        "passages": kinetics.core_passages(followed.reshape(-1, n).T.ravel(), np.repeat(np.arange(n), len(followed))),
        "acceptance": ladders.acceptance.tolist(),
        "ns_per_temperature": settings.n_ladders * length_ns,
        "ns_aggregate": n * length_ns,
    }


def estimate(
    numerator: np.ndarray, denominator: np.ndarray, function: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> dict[str, float]:
    """Return a function of a ratio of sums over ladders with its jackknife error over ladders and 95 % interval (Student's t).

    Parameters
    ----------
    numerator, denominator : np.ndarray, shape=(n_ladders,)
    """
    n = len(numerator)
    value = float(function(numerator.sum() / denominator.sum()))
    left_out = function((numerator.sum() - numerator) / (denominator.sum() - denominator))
    error = float(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2)))
    half = float(student.ppf(0.975, n - 1)) * error
    return {"value": value, "standard_error": error, "low": value - half, "high": value + half, "half_width": half}


def free_energy(inside: np.ndarray, total: np.ndarray) -> dict[str, float | None]:
    """Free energy dF = -ln[p / (1 - p)] of the weights inside a state over the total, both of shape (n_ladders,)."""
    share = inside.sum() / total.sum()
    if not 0 < share < 1:
        return dict.fromkeys(("value", "standard_error", "low", "high", "half_width"))
    with np.errstate(divide="ignore"):
        found = estimate(inside, total, lambda p: -np.log(p / (1 - p)))
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def _record(settings: Settings, results: dict[str, dict[str, Any]], costs: Costs) -> dict[str, Any]:
    main, check = results["main"], results["check"]
    found, again = main["dF_kt"][0], check["dF_kt"][0]
    half = found["half_width"]
    energy, energy_again = main["mean_potential_kj_mol"][0], check["mean_potential_kj_mol"][0]
    apart = None
    if None not in (found["standard_error"], again["standard_error"]):
        apart = abs(found["value"] - again["value"]) / float(np.hypot(found["standard_error"], again["standard_error"]))
    difference = abs(energy["value"] - energy_again["value"]) / float(
        np.hypot(energy["standard_error"], energy_again["standard_error"])
    )
    wall = main["wall_s"]
    targets = [
        {
            "name": "half width of the 95 % interval of dF(phi > 0) at 300 K / kT",
            "target": "<= 0.1",
            "measured": half,
            "reached": half is not None and half <= 0.1,
        },
        {
            "name": f"wall time on {main['threads']} core(s) / s",
            "target": "<= 1200 (on two)",
            "measured": wall,
            "reached": wall <= 1200 and available_cores() >= 2,
        },
        {
            "name": "dF of the two protocols apart / standard errors",
            "target": "<= 3",
            "measured": apart,
            "reached": apart is not None and apart <= 3,
        },
    ]
    answer = [
        f"dF(phi > 0) at 300 K is {_words(found)} kT from {main['ns_per_temperature']:.3g} ns of each temperature "
        f"with {main['passages']} full passages of all copies.",
        f"The check ({CHECK.name}, {check['ns_per_temperature']:.3g} ns of each temperature, {check['passages']} passages) "
        f"gives {_words(again)} kT; mean potential energies at 300 K differ by {difference:.1f} standard errors.",
    ]
    columns = [
        "temperature / K", "share of phi > 0 / %", "standard error / %", "dF(phi > 0) / kT", "low", "high",
        "mean U / (kJ/mol)", "standard error",
    ]  # fmt: skip
    return {
        "question": "What is the free energy of phi > 0 of alanine dipeptide (amber99sbildn + OBC2, 300 K), converged?",
        "answer": answer,
        "targets": targets,
        "tables": [
            {"caption": f"{name}: {value['protocol']['name']}", "columns": columns, "rows": _rows(value)}
            for name, value in results.items()
        ],
        "notes": [
            f"{settings.n_ladders} independent ladders from spread structures, the first {100 * settings.discarded:g} % "
            f"discarded; swaps every {settings.swap_every_ps:g} ps, accepted: "
            + ", ".join(f"{share:.2f}" for share in main["acceptance"]) + ".",
            "Errors are jackknife errors over ladders (intervals by Student's t); dF = -kT ln[p(phi > 0) / p(phi <= 0)], in "
            "kT of the row's own temperature.",
            f"{main['engine']}, {main['threads']} thread(s); {main['ns_aggregate']:.4g} ns in all.",
        ],
        "costs": costs.stages,
        "results": results,
        "config": asdict(settings),
    }  # fmt: skip


def _words(found: dict[str, Any]) -> str:
    return "not known" if None in found.values() else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _rows(result: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for level, kelvin in enumerate(result["temperatures_kelvin"]):
        share, energy, found = (result[key][level] for key in ("share_phi_positive", "mean_potential_kj_mol", "dF_kt"))
        rows.append([
            float(kelvin), 100 * share["value"], 100 * share["standard_error"], found["value"], found["low"], found["high"],
            energy["value"], energy["standard_error"],
        ])  # fmt: skip
    return rows
