"""Suite `peers`: what the published pipelines and the common tools reach, by the same code, on the same machine.

Structures: the published DDPM of (phi, psi) with its weights, this package's diffusion, a Markov state model, plain MD.
Dynamics: replica exchange by openmmtools and by this package, MD by GROMACS and by the batched engine. Trajectories: the
published GAN, this package's, and a Markov state model. Several seeds of each, in turn.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.config import DiffusionConfig, SystemConfig, TrainConfig
from hpc_molgen.efficiency.suites import peers_tables as tables
from hpc_molgen.efficiency.suites import trajectories
from hpc_molgen.efficiency.suites.peers_dynamics import (
    Exchange,
    Group,
    Trajectories,
    Walkers,
    openmmtools_exchange,
    openmmtools_version,
    own_exchange,
    plain_md,
)
from hpc_molgen.efficiency.suites.peers_gromacs import VacuumSettings, vacuum_side_by_side
from hpc_molgen.efficiency.suites.peers_series import SeriesSettings, compare_series
from hpc_molgen.efficiency.suites.peers_structures import (
    Drawn,
    Judge,
    Learning,
    Lesson,
    effective_samples,
    exact_map,
    group_floor,
    learn,
    markov_draw,
)
from hpc_molgen.efficiency.suites.published_ddpm import PublishedSettings
from hpc_molgen.efficiency.suites.record import Costs, spread
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.workers import Workers, available_cores

log = logging.getLogger(__name__)
OPENMMTOOLS, OWN_EXCHANGE = "openmmtools", "own exchange"


@dataclass(frozen=True)
class Settings:
    """Everything that one size of the suite fixes; a repeat of a network has a group of walkers and a training of its own."""

    learning: Learning
    series: SeriesSettings
    walkers: Walkers = field(default_factory=Walkers)
    exchange: Exchange = field(default_factory=Exchange)
    vacuum: VacuumSettings = field(default_factory=VacuumSettings)
    n_exchanges: int = 3


_TRAIN = TrainConfig(
    n_steps=8000, batch_size=256, learning_rate=2e-3, validate_every=8000, checkpoint_every_s=1e9, device="cpu"
)
_LEARNING = Learning(PublishedSettings(), DiffusionConfig(hidden=128, depth=2, harmonics=3), _TRAIN)
SIZES = {
    "smoke": Settings(
        Learning(
            PublishedSettings(epochs=3, n_levels=50),
            DiffusionConfig(hidden=32, depth=1, harmonics=3),
            _TRAIN.model_copy(update={"n_steps": 60, "warmup_steps": 10, "ema_decay": 0.9, "validate_every": 60}),
            n_samples=300, density_steps=8,
        ),
        SeriesSettings(
            trajectories.SIZES["smoke"],
            ("surrogate.n_frames=100", "surrogate.hidden=8", "surrogate.latent=8", "train.n_steps=5", "train.batch_size=4",
             "sample.n_samples=6", "sample.n_frames=100"),
        ),
        Walkers(n_groups=3, per_group=4, production_ps=10.0, equilibration_ps=0.5, save_every_ps=0.05),
        Exchange(n_temperatures=2, hottest_kelvin=350.0, swap_every_ps=0.02, n_swaps=12, n_ladders=4),
        VacuumSettings(n_steps=40_000, save_every=1_000, n_rounds=3, n_copies=16),
        n_exchanges=2,
    ),
    "laptop": Settings(_LEARNING, SeriesSettings(trajectories.SIZES["laptop"])),
    "cluster": Settings(
        _LEARNING,
        SeriesSettings(trajectories.SIZES["cluster"]),
        Walkers(n_groups=8),
        Exchange(n_swaps=20_000, n_ladders=16),
        VacuumSettings(n_steps=20_000_000, n_rounds=5),
        n_exchanges=5,
    ),
}  # fmt: skip


def peers(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record.

    Raises
    ------
    InputError
        When there is no such size.
    """
    if size not in SIZES:
        raise InputError(f"the suite 'peers' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs, system, skipped = SIZES[size], Costs(), load_system(SystemConfig()), list[str]()
    with tempfile.TemporaryDirectory(dir=out) as name:
        folder = Path(name)
        groups = [Group(system, settings.walkers, derive_seed(seed, "group", k)) for k in range(settings.walkers.n_groups)]
        data = Workers(n_processes=available_cores()).map(plain_md, groups)
        for number, group in enumerate(data):
            costs.add(f"plain MD in the batched engine, group {number}", group.cpu_s, group.wall_s)
        structures, judge = compare_structures(system, settings, data, seed, folder, costs)
        exchanges = {"md": _spreads([_dynamics_row(group, judge) for group in data[1:]])}
        exchanges |= compare_exchanges(system, settings, judge, seed, folder, costs, skipped)
        with costs.stage("GROMACS and the batched engine in vacuum, in turn"):
            vacuum = vacuum_side_by_side(settings.vacuum, folder, seed)
    if vacuum is None:
        skipped.append("GROMACS was not found (no executable gmx), so it was left out.")
    series = compare_series(settings.series, out, size, seed, costs)
    results = {"structures": structures, "dynamics": exchanges, "vacuum": vacuum, "series": series}
    config, learning = dataclasses.asdict(settings), settings.learning
    config["learning"] |= {"surrogate": learning.surrogate.model_dump(), "train": learning.train.model_dump()}
    record = tables.record_of(results, settings, skipped, size)
    return {**record, "costs": costs.stages, "results": results, "config": config}


def compare_structures(
    system: MolecularSystem, settings: Settings, data: list[Trajectories], seed: int, folder: Path, costs: Costs
) -> tuple[dict[str, Any], Judge]:
    """Train on every group but the first, which judges; return scores and costs of each method, and the judge."""
    groups = [group.angles_rad for group in data]
    held_out, n = groups[0].reshape(-1, 2), settings.learning.n_samples
    floors = group_floor(groups[1:], held_out, n, seed)
    with costs.stage("the rigid molecule's exact map"):
        judge = Judge(held_out, float(np.mean(floors)), exact_map(system))
    rows: dict[str, list[dict[str, Any]]] = {"md": [], "floor": [], "markov": [], "published": [], "published weighted": [],
                                             "ours": [], "ours weighted": []}  # fmt: skip
    lessons = [
        Lesson(method, system, settings.learning, group.reshape(-1, 2), derive_seed(seed, method, number), folder)
        for number, group in enumerate(groups[1:])
        for method in ("published", "ours")
    ]
    for drawn in Workers(n_processes=available_cores()).map(learn, lessons):
        _take(drawn, judge, rows, costs)
    for number, group in enumerate(groups[1:]):
        rows["md"].append({"scores": judge.score(group.reshape(-1, 2)), "training_cpu_s": 0.0,
                           "sampling_cpu_s": data[number + 1].cpu_s})  # fmt: skip
        rows["floor"].append({"scores": {"jsd_60": floors[number], "jsd_60_over_floor": floors[number] / judge.floor}})
        with costs.stage(f"Markov state model, group {number + 1}"):
            angles, facts = markov_draw(group, n, derive_seed(seed, "markov", number))
        rows["markov"].append({"scores": judge.score(angles), **facts})
    found = {method: _spreads(own) for method, own in rows.items()}
    found["data_cpu_s"] = spread(group.cpu_s for group in data)
    return found, judge


def _take(drawn: Drawn, judge: Judge, rows: dict[str, list[dict[str, Any]]], costs: Costs) -> None:
    """Score what a network drew, as it is and weighted."""
    name = "published DDPM" if drawn.method == "published" else "our diffusion of (phi, psi)"
    for what, spent in (("training", drawn.training), ("sampling", drawn.sampling), ("weights", drawn.weighing)):
        costs.add(f"{name}: {what}", *spent)
    paid = {"training_cpu_s": drawn.training[0], "n_parameters": drawn.n_weights}
    raw = {"sampling_cpu_s": drawn.sampling[0], "samples_per_cpu_s": len(drawn.angles_rad) / max(drawn.sampling[0], 1e-9)}
    rows[drawn.method].append({"scores": judge.score(drawn.angles_rad), **paid, **raw})
    weighed = {"sampling_cpu_s": drawn.weighing[0] + (drawn.sampling[0] if drawn.method == "published" else 0.0)}
    rows[f"{drawn.method} weighted"].append({"scores": judge.score(drawn.angles_rad, drawn.log_weight), **paid, **weighed})


def _spreads(rows: list[dict[str, Any]]) -> dict[str, Any]:
    scores = {key: spread(row["scores"][key] for row in rows) for key in rows[0]["scores"]}
    return scores | {key: spread(row[key] for row in rows) for key in rows[0] if key != "scores"}


def compare_exchanges(
    system: MolecularSystem, settings: Settings, judge: Judge, seed: int, folder: Path, costs: Costs, skipped: list[str]
) -> dict[str, Any]:
    """Run ladders by openmmtools, where it is installed, and by this package, in turn; return what they reach."""
    methods = [OWN_EXCHANGE]
    if openmmtools_version() is None:
        skipped.append("openmmtools is not installed (pip install openmmtools), so its replica exchange was left out.")
    else:
        methods.insert(0, OPENMMTOOLS)
    tasks = [
        (method, system, settings.exchange, derive_seed(seed, method, number), folder)
        for number in range(settings.n_exchanges)
        for method in methods
    ]
    runs: dict[str, list[Trajectories]] = {method: [] for method in methods}
    for task, run in zip(tasks, Workers(n_processes=available_cores()).map(_exchange, tasks), strict=True):
        runs[task[0]].append(run)
        costs.add(f"replica exchange by {tables.DYNAMICS[task[0]]}", run.cpu_s, run.wall_s)
    return {method: _spreads([_dynamics_row(run, judge) for run in found]) for method, found in runs.items()}


def _exchange(task: tuple[str, MolecularSystem, Exchange, int, Path]) -> Trajectories:
    method, system, settings, seed, folder = task
    if method == OPENMMTOOLS:
        return openmmtools_exchange(system, settings, seed, folder)
    return own_exchange(system, settings, seed)


def _dynamics_row(run: Trajectories, judge: Judge) -> dict[str, Any]:
    """Nanoseconds a day of all copies per busy core, effective samples of alphaR's share, agreement with held-out walkers."""
    n_effective = effective_samples(run.angles_rad)
    facts = {key: value for key, value in run.facts.items() if isinstance(value, float)}
    return {
        "scores": {key: value for key, value in judge.score(run.angles_rad.reshape(-1, 2)).items() if key != "seam_over_md"},
        "cpu_s": run.cpu_s,
        "ns_per_core_day": run.ns / run.cpu_s * 86_400,
        "n_effective": n_effective,
        "effective_per_cpu_s": n_effective / run.cpu_s,
        **facts,
    }
