"""Suite `verdict`: which method gives the converged ensemble of alanine dipeptide first, from zero, with all costs.

Molecular dynamics of several kinds, surrogates through the whole pipeline, and samplers beside it, each with several seeds and
in turn, so that the machine's drift hits all alike. A finished curve is kept in a file, and so is the truth: the same command
goes on where it was, and with a new method runs that alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_molgen import __version__
from hpc_molgen.config import SystemConfig
from hpc_molgen.efficiency.suites import verdict_samplers as samplers
from hpc_molgen.efficiency.suites import verdict_tables as tables
from hpc_molgen.efficiency.suites.published_ddpm import PublishedSettings
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.tempering import CONVERGED_KT
from hpc_molgen.efficiency.suites.verdict_figure import draw
from hpc_molgen.efficiency.suites.verdict_methods import MD_METHODS, MdSettings, md_series
from hpc_molgen.efficiency.suites.verdict_openmm import openmm_series
from hpc_molgen.efficiency.suites.verdict_samplers import DdpmSettings, ParticleSettings
from hpc_molgen.efficiency.suites.verdict_scores import Checkpoint, Series, Truth
from hpc_molgen.efficiency.suites.verdict_surrogates import (
    SURROGATES,
    SurrogateSettings,
    identity,
    resolve,
    surrogate_series,
)
from hpc_molgen.efficiency.suites.verdict_tables import Entry
from hpc_molgen.efficiency.suites.verdict_truth import TruthSettings, find_truth
from hpc_molgen.errors import InputError
from hpc_molgen.files import plain_values, write_json
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system

log = logging.getLogger(__name__)
TRUTH_TARGET_KT = 0.05


@dataclass(frozen=True)
class Settings:
    """Everything that one size fixes.

    Attributes
    ----------
    md_cpu_s : mapping
        Methods of `MD_METHODS` with the CPU seconds that each seed gets.
    surrogates : tuple of str
        Methods of `SURROGATES`; None: all of them.
    ddpm : DdpmSettings or None
        None leaves the published DDPM out.
    system : SystemConfig
        Flexible, small enough for the batched engine, with torsions phi and psi.
    """

    md_cpu_s: Mapping[str, float]
    md: MdSettings
    truth: TruthSettings
    surrogate: SurrogateSettings
    ddpm: DdpmSettings | None
    particles: ParticleSettings = field(default_factory=ParticleSettings)
    surrogates: tuple[str, ...] | None = None
    n_repeats: int = 3
    system: SystemConfig = field(default_factory=SystemConfig)


SIZES = {
    "laptop": Settings(
        md_cpu_s={"openmm": 20.0, "md-2fs": 30.0, "md-4fs": 50.0, "tempering": 100.0, "bias": 70.0},
        md=MdSettings(),
        truth=TruthSettings(),
        surrogate=SurrogateSettings("alanine-dipeptide"),
        ddpm=DdpmSettings(),
    ),
    "smoke": Settings(
        md_cpu_s={"openmm": 0.3, "md-4fs": 0.3, "tempering": 0.5, "bias": 3.0},
        md=MdSettings(n_copies=16, n_ladders=8, block_ps=0.5, observe_ps=0.1),
        truth=TruthSettings(n_ladders=8, n_temperatures=2, hottest_kelvin=350.0, ns_per_ladder=0.01),
        surrogate=SurrogateSettings(
            "tiny",
            (
                "surrogate.hidden=16",
                "surrogate.layers=4",
                "train.n_steps=20",
                "sample.n_samples=400",
                "correct.n_structures=1",
                "correct.check_frames=200",
            ),
        ),
        ddpm=DdpmSettings(PublishedSettings(epochs=10, n_levels=100), n_frames=500, n_samples=200),
        particles=ParticleSettings(60, 5),
        surrogates=("flow",),
        n_repeats=1,
    ),
}
SIZES["cluster"] = dataclasses.replace(
    SIZES["laptop"], md_cpu_s={method: 5 * s for method, s in SIZES["laptop"].md_cpu_s.items()}, n_repeats=6
)


def verdict(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record."""
    if size not in SIZES:
        raise InputError(f"the suite 'verdict' has no size '{size}'; it has: {', '.join(SIZES)}")
    return run_verdict(SIZES[size], f"verdict-{size}", out, seed)


@dataclass(frozen=True)
class Plan:
    """One method and how to run it: a function of the number of the seed, and what its curve depends on beside that."""

    key: str
    name: str
    short: str
    kind: str
    knows_cv: bool
    run: Callable[[int], Series]
    identity: Any


def run_verdict(settings: Settings, name: str, out: Path, seed: int) -> dict[str, Any]:
    """Make the truth and every curve that is not there yet, in OUT/NAME; draw OUT/NAME.png; return the record."""
    folder, costs, system = out / name, Costs(), load_system(settings.system)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    truth = find_truth(system, settings.truth, folder, seed, costs)
    plans, skipped = make_plans(settings, system, truth, folder, seed)
    curves: dict[str, dict[int, Series]] = {plan.key: {} for plan in plans}
    n_read = 0
    for repeat in range(settings.n_repeats):
        for plan in plans if repeat % 2 == 0 else plans[::-1]:
            path = _curve_file(folder, plan, repeat, [system.key, seed, truth.free_energy_kt])
            n_read += path.is_file()
            curves[plan.key][repeat] = _make_or_read(path, plan, repeat)
    entries = [
        Entry(
            plan.key, plan.name, plan.short, plan.kind, plan.knows_cv, [curves[plan.key][k] for k in sorted(curves[plan.key])]
        )
        for plan in plans
    ]
    for entry in entries:
        ends = [one.checkpoints[-1] for one in entry.series if one.checkpoints]
        costs.add(f"{entry.name}, {len(ends)} seeds", sum(end.cpu_s for end in ends), sum(end.wall_s for end in ends))
    return _record(settings, entries, truth, skipped, n_read, costs, (out, name))


def make_plans(
    settings: Settings, system: MolecularSystem, truth: Truth, folder: Path, seed: int
) -> tuple[list[Plan], list[str]]:
    """Return the methods of a size, and a sentence for each that this version of the package refuses."""
    plans, skipped, runs = [], [], folder / "runs"

    def md(key: str) -> Plan:
        method, budget = MD_METHODS[key], settings.md_cpu_s[key]
        function = openmm_series if method.engine == "openmm" else md_series

        def run(repeat: int) -> Series:
            return function(key, system, settings.md, truth, budget, derive_seed(seed, "md", key, repeat), repeat)

        return Plan(key, method.name, method.short, tables.MD, method.biased, run, [method, settings.md, budget])

    def surrogate(key: str) -> Plan:
        method, own, molecule = SURROGATES[key], settings.surrogate, settings.system
        depends_on = identity(key, own, molecule, _run_seed(seed, 0))
        knows = depends_on["reference"]["bias_torsion"] is not None

        def run(repeat: int) -> Series:
            return surrogate_series(key, own, molecule, _run_seed(seed, repeat), truth, runs, repeat)

        return Plan(key, method.name, method.short, tables.SURROGATE, knows, run, depends_on)

    def particles(key: str) -> Plan:
        method, own = samplers.PARTICLES[key], settings.particles

        def run(repeat: int) -> Series:
            own_seed = derive_seed(seed, "particles", key, repeat)
            return samplers.particle_series(key, method, system, own, truth, own_seed, repeat)

        return Plan(key, method.name, method.short, tables.PARTICLES, False, run, [method.name, method.size, own])

    plans += [md(key) for key in settings.md_cpu_s] + [particles(key) for key in samplers.PARTICLES]
    for key in SURROGATES if settings.surrogates is None else settings.surrogates:
        try:
            plans.append(surrogate(key))
        except InputError as problem:
            log.warning("%s: left out (%s)", key, problem)
            skipped.append(f"Left out, as this version refuses its configuration: {SURROGATES[key].name}.")
    if settings.ddpm is not None:
        plans.append(_ddpm(settings, settings.ddpm, truth, runs, seed))
    return plans, skipped


def _run_seed(seed: int, repeat: int) -> int:
    return derive_seed(seed, "surrogate", repeat)


def _ddpm(settings: Settings, own: DdpmSettings, truth: Truth, runs: Path, seed: int) -> Plan:
    base = next(iter(settings.surrogates or SURROGATES))  # the reference is the same for all of them

    def run(repeat: int) -> Series:
        config = resolve(base, settings.surrogate, settings.system, _run_seed(seed, repeat))
        return samplers.ddpm_series(own, config, truth, runs, repeat)

    depends_on = [own, resolve(base, settings.surrogate, settings.system, seed).reference.model_dump(mode="json")]
    return Plan(samplers.DDPM, samplers.DDPM_NAME, samplers.DDPM_SHORT, tables.BIASED, True, run, depends_on)


def _curve_file(folder: Path, plan: Plan, repeat: int, common: list[Any]) -> Path:
    text = json.dumps(plain_values([__version__, plan.key, plan.identity, repeat, *common]), sort_keys=True)
    return folder / f"curve-{plan.key}-{repeat}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"


def _make_or_read(path: Path, plan: Plan, repeat: int) -> Series:
    if not path.is_file():
        log.info("%s, seed %d: starts", plan.key, repeat)
        write_json(path, plan.run(repeat))
    return read_series(path)


def read_series(path: Path) -> Series:
    """Read a curve.

    Raises
    ------
    InputError
        When the file is damaged.
    """
    try:
        values = json.loads(path.read_text())
        points = [Checkpoint(**point) for point in values.pop("checkpoints")]
        return Series(checkpoints=points, **values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a readable curve ({error}); delete it and run again") from error


def _record(
    settings: Settings, entries: list[Entry], truth: Truth, skipped: list[str], n_read: int, costs: Costs,
    place: tuple[Path, str],
) -> dict[str, Any]:  # fmt: skip
    out, name = place
    found = tables.results(entries, truth)
    picture = draw(
        out, name, {entry.key: entry.series for entry in entries}, {entry.key: _label(entry) for entry in entries},
        {entry.key for entry in entries if entry.kind == tables.BIASED}, truth,
    )  # fmt: skip
    n_total = settings.n_repeats * len(entries)
    notes = [
        *tables.NOTES,
        f"{n_read} of {n_total} curves, each of a method and a seed, were kept from earlier starts of the suite.",
    ]
    record: dict[str, Any] = {
        "question": tables.QUESTION,
        "answer": tables.answer(entries, found, truth, skipped),
        "targets": _targets(settings, entries, truth),
        "tables": tables.tables(entries, found, truth),
        "notes": notes,
        "costs": costs.stages,
        "truth": {"free_energy_kt": truth.free_energy_kt, "half_width_kt": truth.half_width_kt, **truth.facts},
        "results": found,
        "config": {**dataclasses.asdict(settings), "system": settings.system.model_dump(mode="json")},
    }
    if picture is not None:
        record["figures"] = [{"file": picture, "caption": "precision of dF(phi > 0) against core-seconds from zero"}]
    return record


def _label(entry: Entry) -> str:
    return entry.short if entry.certified or entry.kind == tables.BIASED else f"{entry.short} (not certified)"


def _targets(settings: Settings, entries: list[Entry], truth: Truth) -> list[dict[str, Any]]:
    half = truth.half_width_kt
    targets = [
        {"name": "half-width of the truth / kT", "target": f"<= {TRUTH_TARGET_KT:g}", "measured": half,
         "reached": half <= TRUTH_TARGET_KT},
    ]  # fmt: skip
    if settings.system == SystemConfig():
        value, width = CONVERGED_KT
        apart = abs(truth.free_energy_kt - value) / ((half**2 + width**2) ** 0.5 / 1.96)
        name = f"truth and {value} kT of the suite `tempering` apart / standard errors"
        targets.append({"name": name, "target": "<= 3", "measured": apart, "reached": apart <= 3})
    inside, of = (sum(column) for column in zip(*(e.covered(truth) for e in entries if e.kind != tables.BIASED), strict=True))
    name = "last intervals of all methods that hold the truth (95 % expected)"
    reached = of > 0 and inside / of >= 0.8
    targets.append({"name": name, "target": ">= 80 %", "measured": f"{inside} of {of}", "reached": reached})
    return targets
