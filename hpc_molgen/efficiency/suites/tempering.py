"""Suite `tempering`: the converged free energy of phi > 0 of alanine dipeptide by batched parallel tempering.

Its result is the reference truth that other benchmarks compare with. Ladders are independent, so the error comes from them
alone and needs no autocorrelation time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from hpc_molgen import interrupts
from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.bias import spread_structures
from hpc_molgen.dynamics.langevin import minimise
from hpc_molgen.dynamics.modified import modified_system
from hpc_molgen.dynamics.tempering import ParallelTempering, geometric_ladder
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import torsion_angles, torsion_by_name
from hpc_molgen.workers import available_cores

CORE_DEG = 30.0  # a crossing counts when phi goes from below -30 (and above -130) to 30..130 degrees, or back


@dataclass(frozen=True)
class Settings:
    """Lengths and protocol of one size.

    Attributes
    ----------
    ns_per_ladder : float
        Of each temperature, of the main protocol: flexible, hydrogens of 3 u, 2 fs.
    check_ns_per_ladder : float
        Of the check: true masses, 1 fs. Masses do not enter the distribution; the time step does, a little.
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
    "laptop": Settings(32, 5, 600.0, 7.0, 1.4),
}


@dataclass(frozen=True)
class Protocol:
    """Time step and hydrogen mass of one run."""

    name: str
    timestep_fs: float
    hydrogen_mass_amu: float | None


MAIN = Protocol("flexible, 2 fs, hydrogens of 3.024 u", 2.0, 3.024)
CHECK = Protocol("flexible, 1 fs, true masses", 1.0, None)


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
    batched = BatchedSystem(modified_system(system, hydrogen_mass_amu=protocol.hydrogen_mass_amu), "float32")
    n = settings.n_ladders * settings.n_temperatures
    starts, _ = minimise(batched, spread_structures(system, n, seed), max_iterations=300)
    quad = torsion_by_name(system.topology, "phi")
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
    share = (angles > 0).mean(axis=0)  # (n_ladders, n_temperatures)
    mean_energy = energies.mean(axis=0)
    return {
        "engine": batched.description,
        "threads": batched.threads,
        "temperatures_kelvin": ladders.temperatures_kelvin.tolist(),
        "share_phi_positive": [_interval(column) for column in share.T],
        "dF_kt": [free_energy(column) for column in share.T],
        "mean_potential_kj_mol": [_interval(column) for column in mean_energy.T],
        "passages": core_passages(followed.reshape(len(followed), -1)),
        "acceptance": ladders.acceptance.tolist(),
        "ns_per_temperature": settings.n_ladders * length_ns,
        "ns_aggregate": n * length_ns,
    }


def _interval(values: np.ndarray) -> dict[str, float]:
    """Mean over ladders with its standard error and 95 % interval by Student's t."""
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(student.ppf(0.975, len(values) - 1)) * error
    mean = float(values.mean())
    return {"value": mean, "standard_error": error, "low": mean - half, "high": mean + half}


def free_energy(share: np.ndarray) -> dict[str, float | None]:
    """Free energy dF = -ln[p / (1 - p)] of the mean share over ladders, with its 95 % interval (delta method, Student's t)."""
    p = float(share.mean())
    if not 0 < p < 1:
        return {"value": None, "low": None, "high": None, "half_width": None}
    error = float(share.std(ddof=1) / np.sqrt(len(share))) / (p * (1 - p))
    half = float(student.ppf(0.975, len(share) - 1)) * error
    value = float(-np.log(p / (1 - p)))
    return {"value": value, "low": value - half, "high": value + half, "half_width": half}


def core_passages(phi_rad: np.ndarray) -> int:
    """Full passages between the cores -130..-30 and 30..130 degrees along (n_frames, n_copies), either way round."""
    degrees = np.degrees(phi_rad)
    core = np.where((degrees > CORE_DEG) & (degrees < 130), 1, np.where((degrees < -CORE_DEG) & (degrees > -130), -1, 0))
    total = 0
    for column in core.T:
        visited = column[column != 0]
        total += int(np.count_nonzero(visited[1:] != visited[:-1]))
    return total


def _record(settings: Settings, results: dict[str, dict[str, Any]], costs: Costs) -> dict[str, Any]:
    main, check = results["main"], results["check"]
    found, again = main["dF_kt"][0], check["dF_kt"][0]
    half = found["half_width"]
    energy, energy_again = main["mean_potential_kj_mol"][0], check["mean_potential_kj_mol"][0]
    difference = (energy["value"] - energy_again["value"]) / float(
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
    ]
    answer = [
        f"dF(phi > 0) at 300 K is {_words(found)} kT from {main['ns_per_temperature']:.3g} ns of each temperature "
        f"with {main['passages']} full passages of all copies.",
        f"The check with {CHECK.name} gives {_words(again)} kT; its mean potential energy differs by {difference:.1f} standard "
        "errors.",
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
            "Errors are from the spread between ladders (Student's t); dF = -kT ln[p(phi > 0) / p(phi <= 0)], in kT of the "
            "row's own temperature.",
            f"{main['engine']}, {main['threads']} thread(s); {main['ns_aggregate']:.4g} ns in all.",
        ],
        "costs": costs.stages,
        "results": results,
        "config": asdict(settings),
    }  # fmt: skip


def _words(found: dict[str, Any]) -> str:
    return "not known" if found["value"] is None else f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _rows(result: dict[str, Any]) -> list[list[Any]]:
    rows = []
    for level, kelvin in enumerate(result["temperatures_kelvin"]):
        share, energy, found = (result[key][level] for key in ("share_phi_positive", "mean_potential_kj_mol", "dF_kt"))
        rows.append([
            float(kelvin), 100 * share["value"], 100 * share["standard_error"], found["value"], found["low"], found["high"],
            energy["value"], energy["standard_error"],
        ])  # fmt: skip
    return rows
