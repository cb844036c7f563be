"""Suite `md`: how many ns a day of molecular dynamics this machine makes of alanine dipeptide, with which engine.

One round measures every engine once; speeds are divided by OpenMM's Reference platform with the same system, step and
constraints in the same round. Engines run on one core; processes side by side are two, in the size cluster one for every core.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.gromacs import GromacsProblem, gromacs_path
from hpc_molgen.dynamics.kernel import built_variants
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.efficiency.suites import md_tables as tables
from hpc_molgen.efficiency.suites.gpu import GpuSettings, dynamics_on_gpu, gpu_present
from hpc_molgen.efficiency.suites.gromacs import Gromacs
from hpc_molgen.efficiency.suites.md_engines import PROTOCOLS, EngineSettings, make_runs, openmm_run, start_dynamics
from hpc_molgen.efficiency.suites.md_processes import side_by_side
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.rounds import Method, interleaved, kinetic_temperature, target_sentence
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.workers import available_cores, one_thread

SYSTEMS = {"implicit": "alanine-dipeptide", "vacuum": "alanine-dipeptide-vacuum"}


@dataclass(frozen=True)
class Size:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    engines : EngineSettings
    equilibration_ps : float
        From the minimised structure at 300 K, once for each system; every engine starts there.
    batches : tuple of int
        Numbers of copies of the scan.
    n_processes : int, optional
        Processes that are compared with one, where there are as many cores; None: one for every core.
    gromacs_steps : int
        Of one run of GROMACS.
    """

    engines: EngineSettings = field(default_factory=EngineSettings)
    equilibration_ps: float = 5.0
    n_rounds: int = 5
    measure_s: float = 0.6
    batches: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    scan_rounds: int = 3
    scan_measure_s: float = 0.4
    n_processes: int | None = 2
    process_repeats: int = 3
    process_s: float = 3.0
    gromacs_steps: int = 200_000
    gpu: GpuSettings = field(default_factory=lambda: GpuSettings(batches=(64, 1024, 16_384, 65_536)))


SIZES = {
    "laptop": Size(),
    "smoke": Size(
        engines=EngineSettings(n_copies=16, n_steps=20, warm_steps=20),
        equilibration_ps=1.0,
        n_rounds=3,
        measure_s=0.01,
        batches=(1, 4, 16, 64, 256),
        scan_rounds=2,
        scan_measure_s=0.01,
        process_repeats=3,
        process_s=0.05,
        gromacs_steps=10_000,
        gpu=GpuSettings(batches=(64, 1024), compiled=False, n_rounds=2, measure_s=0.05, n_steps=10),
    ),
    "cluster": Size(
        engines=EngineSettings(n_steps=200, warm_steps=5000),
        equilibration_ps=20.0,
        n_rounds=20,
        measure_s=3.0,
        batches=(1, 4, 16, 64, 256, 1024, 4096),
        scan_rounds=10,
        scan_measure_s=3.0,
        n_processes=None,
        process_repeats=10,
        process_s=10.0,
        gromacs_steps=1_000_000,
        gpu=GpuSettings(batches=(64, 1024, 16_384, 65_536, 262_144), n_rounds=10, measure_s=2.0),
    ),
}


def md(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record."""
    if size not in SIZES:
        raise InputError(f"the suite 'md' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs, notes = SIZES[size], Costs(), list[str]()
    systems = {key: load_system(SystemConfig(name=name)) for key, name in SYSTEMS.items()}
    with one_thread(), tempfile.TemporaryDirectory(dir=out) as folder:
        starts = {key: start_positions(system, settings, seed, costs) for key, system in systems.items()}
        speeds = engine_speeds(systems, starts, Path(folder), settings, seed, costs, notes)
        system, start = systems["implicit"], starts["implicit"]
        scan = batch_scan(system, start, settings, seed, costs)
        processes = compare_processes(system, start, settings, seed, costs, notes)
        gpu = []
        if gpu_present():
            yardstick = openmm_run("implicit", system, "1fs", "Reference", start, settings.engines, seed)
            gpu = dynamics_on_gpu(system, start, settings.gpu, seed, costs, yardstick.method)
        else:
            notes.append("There was no GPU: torch on a GPU was not measured.")
    if not built_variants():
        notes.append("The C++ kernel is not built here or does not run on this processor: torch took its place.")
    results = {"speeds": tables.in_ns_a_day(speeds), "batches": scan, "processes": processes, "gpu": tables.in_ns_a_day(gpu)}
    targets = tables.targets(results)
    return {
        "question": tables.QUESTION,
        "answer": [target_sentence(targets, size), *tables.answer(results)],
        "targets": targets,
        "tables": tables.tables(results, {key: protocol.name for key, protocol in PROTOCOLS.items()}),
        "costs": costs.stages,
        "notes": [*tables.NOTES, *notes],
        "results": results,
        "config": {**dataclasses.asdict(settings), "systems": SYSTEMS},
    }


def engine_speeds(
    systems: dict[str, MolecularSystem],
    starts: dict[str, np.ndarray],
    folder: Path,
    settings: Size,
    seed: int,
    costs: Costs,
    notes: list[str],
) -> dict[str, Any]:
    """Rounds of every engine on every system with every protocol: speeds in ns a day, temperatures."""
    with costs.stage("first steps of every engine"):
        runs = [
            run
            for key, system in systems.items()
            for protocol in PROTOCOLS
            for run in make_runs(key, system, protocol, starts[key], settings.engines, seed)
        ]
    methods = [run.method for run in runs]
    gromacs = prepare_gromacs(systems["vacuum"], starts["vacuum"], folder, settings, seed, costs, notes)
    if gromacs:
        facts = {"system": "vacuum", "protocol": "1fs", "dtype": "mixed", "engine": "gromacs"}
        methods.append(gromacs.method("vacuum 1fs gromacs", "vacuum 1fs reference", facts))
    with costs.stage(f"{settings.n_rounds} rounds of every engine"):
        speeds = interleaved(methods, settings.n_rounds, settings.measure_s)
    for run in runs:
        speeds[run.method.label]["temperature"] = kinetic_temperature(np.array(run.kinetic_kj_mol), run.n_freedoms)
    if gromacs:
        speeds["vacuum 1fs gromacs"]["temperature"] = gromacs.temperature()
    return speeds


def start_positions(system: MolecularSystem, settings: Size, seed: int, costs: Costs) -> np.ndarray:
    """Positions (n_copies, n_atoms, 3) after a short equilibration from the minimised structure."""
    with costs.stage(f"equilibration, {system.name}"):
        batched = BatchedSystem(system, "float32", threads=1)
        start, _ = minimise(batched, system.positions_nm[None])
        return start_dynamics(
            batched, start, settings.engines.n_copies, 1.0, seed, round(settings.equilibration_ps * 1e3)
        ).positions_nm


def prepare_gromacs(
    system: MolecularSystem, starts_nm: np.ndarray, folder: Path, settings: Size, seed: int, costs: Costs, notes: list[str]
) -> Gromacs | None:
    """Set up GROMACS where it is found and gives OpenMM's energy; otherwise say why not."""
    executable = gromacs_path()
    if executable is None:
        notes.append("GROMACS was not found (no executable gmx), so it was not measured.")
        return None
    try:
        with costs.stage("GROMACS: topology, check of the energy, start-up"):
            start = starts_nm[0].astype(np.float64)
            gromacs = Gromacs(executable, system, start, folder, settings.gromacs_steps, derive_seed(seed, "gromacs"))
    except GromacsProblem as problem:
        notes.append(f"GROMACS was found but not measured: {problem}")
        return None
    notes.append(
        f"GROMACS's energy of one conformation differs from OpenMM's by {gromacs.error_kj_mol:.2g} kJ/mol (mixed precision). "
        "Its speed is of runs in processes of its own, their start-up (a run of 0 steps) taken off. It has no generalised Born."
    )
    return gromacs


def batch_scan(system: MolecularSystem, starts_nm: np.ndarray, settings: Size, seed: int, costs: Costs) -> dict[str, Any]:
    """Steps of all copies per CPU second against the number of copies, both precisions, 1 fs."""
    methods = []
    with costs.stage("scan of the number of copies"):
        for dtype in ("float32", "float64"):
            batched = BatchedSystem(system, dtype, threads=1, compiled=False)
            for n in settings.batches:
                work = _work(
                    start_dynamics(batched, starts_nm, n, 1.0, seed, settings.engines.n_steps), settings.engines.n_steps
                )
                facts = {"dtype": dtype, "n_copies": n}
                label, yardstick = (f"{dtype} {copies}" for copies in (n, settings.batches[-1]))
                methods.append(Method(label, batched.description, work, n * settings.engines.n_steps, yardstick, facts))
        return interleaved(methods, settings.scan_rounds, settings.scan_measure_s)


def _work(dynamics: BatchedDynamics, n_steps: int) -> Callable[[], None]:
    return lambda: dynamics.step(n_steps)


def compare_processes(
    system: MolecularSystem, starts_nm: np.ndarray, settings: Size, seed: int, costs: Costs, notes: list[str]
) -> dict[str, Any] | None:
    """Processes side by side against one, where there is more than one core."""
    n = min(settings.n_processes or available_cores(), available_cores())
    if n < 2:
        notes.append("This process may use one core only, so several processes were not compared with one.")
        return None
    terms = BatchedSystem(system, "float32").terms
    with costs.stage(f"{n} processes against one"):
        repeats = settings.process_repeats, settings.process_s, settings.engines.n_steps
        return side_by_side(terms, starts_nm, 300.0, seed, n, *repeats)
