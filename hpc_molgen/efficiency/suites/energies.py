"""Suite `energies`: energies and forces of alanine dipeptide a second, and how far they are from OpenMM's.

One round measures every method once; speeds are divided by that of a loop over OpenMM's Reference platform in the same round.
The conformations are frames of the molecule's own dynamics at 300 K and 600 K.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.compilers import has_compiler
from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.kernel import NativeMolecule, built_variants
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.efficiency.suites import energies_tables as tables
from hpc_molgen.efficiency.suites.gpu import GpuSettings, energies_on_gpu, gpu_present
from hpc_molgen.efficiency.suites.openmm_loop import OpenMMLoop
from hpc_molgen.efficiency.suites.record import Costs, spread
from hpc_molgen.efficiency.suites.rounds import Method, interleaved, target_sentence
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.workers import Stopwatch, available_cores, cpu_seconds, one_thread

TEMPERATURES_KELVIN = (300.0, 600.0)
KINDS = ("energies", "forces")


@dataclass(frozen=True)
class Size:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    n_frames : int
        Distinct conformations, in equal parts of each temperature.
    n_judged : int
        Conformations of each temperature on which methods are compared with OpenMM.
    n_openmm, n_torch : int
        Conformations of one call of OpenMM's loop and of torch; the kernel takes all.
    n_many : int
        Energies of the long calculation that is timed as a whole.
    n_copies, equilibration_ps, spacing_ps
        Of the dynamics that makes the conformations.
    compiled : bool
        Whether compiled torch takes part.
    """

    n_frames: int = 20_000
    n_judged: int = 2000
    n_openmm: int = 2000
    n_torch: int = 4000
    n_many: int = 1_000_000
    n_rounds: int = 5
    measure_s: float = 0.5
    n_copies: int = 200
    equilibration_ps: float = 2.0
    spacing_ps: float = 0.05
    compiled: bool = True
    gpu: GpuSettings = field(default_factory=GpuSettings)


SIZES = {
    "laptop": Size(),
    "smoke": Size(
        n_frames=800,
        n_judged=200,
        n_openmm=100,
        n_torch=200,
        n_many=8000,
        n_rounds=3,
        measure_s=0.02,
        n_copies=100,
        equilibration_ps=0.1,
        spacing_ps=0.03,
        compiled=False,
        gpu=GpuSettings(batches=(1000, 10_000), compiled=False, measure_s=0.05),
    ),
    "cluster": Size(
        n_frames=100_000,
        n_judged=10_000,
        n_openmm=5000,
        n_torch=16_000,
        n_many=10_000_000,
        n_rounds=20,
        measure_s=3.0,
        n_copies=1000,
        gpu=GpuSettings(batches=(1000, 10_000, 100_000, 1_000_000, 4_000_000), n_rounds=10, measure_s=1.0),
    ),
}


def energies(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record."""
    if size not in SIZES:
        raise InputError(f"the suite 'energies' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs = SIZES[size], Costs()
    system = load_system(SystemConfig())
    with one_thread(), _own_compile_cache(out):
        frames = {kelvin: own_frames(system, kelvin, settings, seed, costs) for kelvin in TEMPERATURES_KELVIN}
        mixed = np.concatenate(list(frames.values()))
        loop = OpenMMLoop(system)
        evaluators, notes = make_evaluators(system, settings)
        evaluators = warm_up(evaluators, mixed, costs, notes)
        with costs.stage(f"{settings.n_rounds} rounds of every method"):
            speeds = interleaved(make_methods(loop, evaluators, mixed, settings), settings.n_rounds, settings.measure_s)
        judged = {kelvin: part[: settings.n_judged] for kelvin, part in frames.items()}
        with costs.stage("agreement with OpenMM"):
            errors = agreement(loop, evaluators, judged)
        many = many_energies(system, mixed, settings, speeds, costs)
        scan = []
        if gpu_present():
            scan = energies_on_gpu(system, mixed, settings.gpu, loop, judged[600.0], costs)
        else:
            notes.append("There was no GPU: torch on a GPU was not measured.")
    results = {"speeds": speeds, "agreement": errors, "many": many, "gpu": scan}
    targets = tables.targets(results, settings.n_judged)
    return {
        "question": tables.QUESTION,
        "answer": [target_sentence(targets, size), *tables.answer(results)],
        "targets": targets,
        "tables": tables.tables(results, settings.n_judged),
        "costs": costs.stages,
        "notes": [*tables.NOTES, *notes],
        "results": results,
        "config": {**dataclasses.asdict(settings), "system": SystemConfig().model_dump()},
    }


@contextlib.contextmanager
def _own_compile_cache(out: Path) -> Iterator[None]:
    """Keep compiled code in a folder that goes away, so that compilation costs what it costs the first time."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        os.environ[name] = str(Path(folder).resolve())
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before


def own_frames(system: MolecularSystem, kelvin: float, settings: Size, seed: int, costs: Costs) -> np.ndarray:
    """Conformations (n_frames / 2, n_atoms, 3) of dynamics at one temperature, from the minimised structure, float64."""
    with costs.stage(f"dynamics at {kelvin:g} K for conformations"):
        batched = BatchedSystem(system, "float64", compiled=False)
        start, _ = minimise(batched, system.positions_nm[None])
        seeds = [derive_seed(seed, "conformations", int(kelvin), copy) for copy in range(settings.n_copies)]
        dynamics = BatchedDynamics(batched, np.repeat(start, len(seeds), axis=0), seeds, temperature_kelvin=kelvin)
        dynamics.step(round(settings.equilibration_ps * 1e3))
        n = settings.n_frames // len(TEMPERATURES_KELVIN)
        blocks = []
        for _ in range(-(-n // settings.n_copies)):
            dynamics.step(round(settings.spacing_ps * 1e3))
            blocks.append(dynamics.positions_nm)
        return np.concatenate(blocks)[:n]


@dataclass(frozen=True)
class Evaluator:
    """One way to compute: its key, its system, conformations of a call, and what it is."""

    key: str
    system: BatchedSystem
    n: int
    facts: dict[str, Any]

    def name(self) -> str:
        """Words for tables."""
        threads = self.facts["threads"]
        return f"{self.system.description}, {threads} thread{'s' if threads > 1 else ''}"


def make_evaluators(system: MolecularSystem, settings: Size) -> tuple[list[Evaluator], list[str]]:
    """Every way to compute that this machine has, and notes on what is missing."""
    found, notes, cores, variants = [], [], available_cores(), built_variants()
    for dtype in ("float32", "float64"):
        for variant in variants:
            for threads in (1, cores) if variant == variants[0] and cores > 1 else (1,):
                batched = BatchedSystem(system, dtype, backend="kernel", threads=threads)
                batched.native = NativeMolecule(batched.terms, batched.dtype, variant)
                key = f"kernel {variant} {dtype}" + (" all cores" if threads > 1 else "")
                facts = {"backend": "kernel", "variant": variant, "dtype": dtype, "threads": threads}
                found.append(Evaluator(key, batched, settings.n_frames, facts))
        for compiled in (False, True) if settings.compiled and has_compiler("cpu") else (False,):
            batched = BatchedSystem(system, dtype, backend="torch", compiled=compiled)
            facts = {"backend": "torch", "compiled": compiled, "dtype": dtype, "threads": 1}
            chunk = batched._torch.chunk if batched._torch is not None else 1  # whole chunks: no padded last one
            n = min(settings.n_frames, chunk * max(1, settings.n_torch // chunk)) if compiled else settings.n_torch
            found.append(Evaluator(f"torch {'compiled' if compiled else 'eager'} {dtype}", batched, n, facts))
    if not variants:
        notes.append("The C++ kernel is not built here or does not run on this processor: torch alone was measured.")
    if not settings.compiled or not has_compiler("cpu"):
        notes.append("Compiled torch was not measured: " + ("no C++ compiler." if settings.compiled else "not in this size."))
    return found, notes


def warm_up(evaluators: list[Evaluator], frames: np.ndarray, costs: Costs, notes: list[str]) -> list[Evaluator]:
    """Call each evaluator once with what it will be given; compilation happens here. Leaves out what did not compile."""
    kept: list[Evaluator] = []
    first = np.zeros(2)
    for evaluator in evaluators:
        compiled, watch, cpu = evaluator.facts.get("compiled", False), Stopwatch(), cpu_seconds()
        evaluator.system.energies(frames[: evaluator.n])
        if compiled and "compiled" not in evaluator.system.description:
            notes.append(f"{evaluator.key}: torch.compile failed here (the log says why), so it was not measured.")
            continue
        evaluator.system.energies_and_forces(frames[: evaluator.n])
        kept.append(evaluator)
        if compiled:
            costs.add(f"compiling energies and forces, {evaluator.key}", cpu_seconds() - cpu, watch.wall_s)
        else:
            first += watch.cpu_s, watch.wall_s
    costs.add("first calls of all other methods", float(first[0]), float(first[1]))
    return kept


def make_methods(loop: OpenMMLoop, evaluators: list[Evaluator], frames: np.ndarray, settings: Size) -> list[Method]:
    """Return two methods of each evaluator, energies alone and energies with forces, each with its own loop as yardstick."""
    part, stride = frames[:: max(1, len(frames) // settings.n_openmm)][: settings.n_openmm], len(frames)
    facts = {"backend": "openmm", "dtype": "float64", "threads": 1}
    methods = []
    for kind in KINDS:
        yardstick = f"openmm {kind}"
        function = loop.energies if kind == "energies" else loop.energies_and_forces
        work = _bind(function, part)
        methods.append(
            Method(yardstick, "OpenMM Reference, loop, 1 thread", work, len(part), yardstick, {**facts, "kind": kind})
        )
        for evaluator in evaluators:
            batched = evaluator.system
            function = batched.energies if kind == "energies" else batched.energies_and_forces
            given = np.ascontiguousarray(frames[:: max(1, stride // evaluator.n)][: evaluator.n])
            more = {**evaluator.facts, "kind": kind, "evaluator": evaluator.key}
            label = f"{evaluator.key} {kind}"
            methods.append(Method(label, evaluator.name(), _bind(function, given), len(given), yardstick, more))
    return methods


def _bind(function: Any, positions_nm: np.ndarray) -> Any:
    return lambda: function(positions_nm)


def agreement(loop: OpenMMLoop, evaluators: list[Evaluator], judged: dict[float, np.ndarray]) -> dict[str, Any]:
    """Largest energy error and relative root-mean-square force error of each evaluator at each temperature."""
    errors: dict[str, Any] = {}
    for kelvin, frames in judged.items():
        expected, forces = loop.energies_and_forces(frames)
        for evaluator in evaluators:
            if evaluator.facts["threads"] > 1:
                continue  # the same code
            energies, found = evaluator.system.energies_and_forces(frames)
            alone = evaluator.system.energies(frames)
            worst = max(np.abs(energies - expected).max(), np.abs(alone - expected).max())
            errors.setdefault(evaluator.key, {"method": evaluator.name(), "dtype": evaluator.facts["dtype"]})
            errors[evaluator.key][f"{kelvin:g}"] = {
                "energy_kj_mol": float(worst),
                "force_relative_rms": float(np.sqrt(((found - forces) ** 2).sum() / (forces**2).sum())),
            }
    return errors


def many_energies(
    system: MolecularSystem, frames: np.ndarray, settings: Size, speeds: dict[str, Any], costs: Costs
) -> dict[str, Any]:
    """Wall seconds of `n_many` float64 energies on every core, and of OpenMM's loop, scaled from its speed."""
    batched = BatchedSystem(system, "float64", compiled=settings.compiled)
    many = np.tile(frames, (-(-settings.n_many // len(frames)), 1, 1))[: settings.n_many]
    walls = []
    with costs.stage(f"{settings.n_many:,} energies, {settings.n_rounds} times"):
        batched.energies(many[: len(frames)])
        for _ in range(settings.n_rounds):
            watch = Stopwatch()
            batched.energies(many)
            walls.append(watch.wall_s)
    loop = [settings.n_many / speed for speed in speeds["openmm energies"]["per_wall_s"]["values"]]
    return {
        "method": batched.description,
        "cores": available_cores() if batched.backend == "kernel" else 1,
        "n": settings.n_many,
        "n_distinct": len(frames),
        "wall_s": spread(walls),
        "openmm_loop_wall_s_scaled": spread(loop),
        "openmm_loop_measured_on": settings.n_openmm,
    }
