"""Suite `fragments`: a larger molecule sampled in pieces, against parallel tempering of the whole.

Fragments with overlapping torsions are sampled by themselves, joined, and moved by exact Metropolis-Hastings moves of the
whole molecule; the same CPU time goes to parallel tempering. Both are compared with another, longer tempering. For a compact
molecule (`fragments_cage.py`) the same moves are held against molecular dynamics from the same structures.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_molgen.config import SystemConfig
from hpc_molgen.efficiency.suites import fragments_tables as tables
from hpc_molgen.efficiency.suites.fragments_cage import TRP_CAGE, CageSettings, Fold, compare_cage
from hpc_molgen.efficiency.suites.fragments_scores import Found, Judge, backbone_of
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.blocks import Block
from hpc_molgen.montecarlo.fragments import Moves, Whole, join, resampled, run_joined
from hpc_molgen.montecarlo.libraries import Tempering, fragment_of, tempered_library
from hpc_molgen.montecarlo.windows import windows_of
from hpc_molgen.reweighting import kish_ess
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.peptides import parse_sequence
from hpc_molgen.systems.registry import load_system
from hpc_molgen.workers import Stopwatch, one_thread


@dataclass(frozen=True)
class Way:
    """One way of joining: residues of a window, and what a sweep does."""

    name: str
    window: int
    moves: Moves


MAIN = Way("windows of 2, whole and by residue", 2, Moves())
WAYS = (
    Way("windows of 1", 1, Moves()),
    Way("windows of 2, whole", 2, Moves("windows")),
    Way("windows of 2, by residue", 2, Moves("residues")),
    MAIN,
    Way("windows of 2, stiff coordinates drawn anew", 2, Moves(refresh=1.0)),
    Way("windows of 2, no Hamiltonian moves", 2, Moves(verlet_steps=0)),
    Way("windows of 2, long Hamiltonian moves", 2, Moves(verlet_steps=30)),
    Way("windows of 3", 3, Moves()),
)


@dataclass(frozen=True)
class Settings:
    """Everything that one size fixes.

    Attributes
    ----------
    sequence : str
    ways : tuple of Way
        Of which `MAIN` is repeated with `n_seeds` seeds, the others once with `way_sweeps`.
    library, reference : Tempering
        Of each fragment; of the whole molecule.
    ladders : (int, int)
        Ladders and temperatures of the tempering that has the CPU time of the fragments.
    n_joined, n_chains, n_sweeps, way_sweeps : int
    cage : CageSettings
    """

    sequence: str
    n_seeds: int
    ways: tuple[Way, ...]
    library: Tempering
    reference: Tempering
    ladders: tuple[int, int]
    n_joined: int
    n_chains: int
    n_sweeps: int
    way_sweeps: int
    cage: CageSettings


SIZES = {
    "smoke": Settings(
        "A-A-A", 2, (MAIN,), Tempering(4, 4, 3.0), Tempering(8, 4, 6.0, "given", discarded=0.25), (4, 4), 500, 16, 20, 10,
        CageSettings(Fold("GPSS", "G-P-S-S", (-80.0,) * 4, (140.0,) * 4), Tempering(4, 4, 1.0), 8, 3, 32, 0.2),
    ),
    "laptop": Settings(
        "A-A-A-A", 3, WAYS, Tempering(8, 4, 100.0), Tempering(16, 5, 800.0, "given", discarded=0.25), (16, 5), 20_000, 128, 300,
        120, CageSettings(TRP_CAGE, Tempering(4, 4, 20.0), 32, 6, 256, 1.0),
    ),
    "cluster": Settings(
        "A-A-A-A", 5, WAYS, Tempering(32, 4, 400.0), Tempering(32, 5, 20_000.0, "given", discarded=0.25), (16, 5), 50_000, 512,
        1000, 400, CageSettings(TRP_CAGE, Tempering(16, 4, 200.0), 128, 200, 4096, 20.0),
    ),
}  # fmt: skip


def fragments(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record.

    Raises
    ------
    InputError
        When there is no such size.
    """
    del out
    if size not in SIZES:
        raise InputError(f"the suite 'fragments' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs = SIZES[size], Costs()
    system = load_system(SystemConfig(name="peptide", sequence=settings.sequence))
    with one_thread():
        with costs.stage(f"parallel tempering of {system.name}, the reference"):
            reference = tempered_library(system, settings.reference, derive_seed(seed, "reference"))
        judge = Judge(backbone_of(system, reference))
        runs = [_compare(system, settings, MAIN, derive_seed(seed, "run", number), costs) for number in range(settings.n_seeds)]
        ways = [
            _joined(system, settings, way, settings.way_sweeps, derive_seed(seed, "way", way.name), costs)[1]
            for way in settings.ways
        ]
        cage = compare_cage(settings.cage, derive_seed(seed, "cage"), costs)
    results = {
        "peptide": system.name,
        "reference": judge.facts(),
        "methods": judge.methods(runs),
        "ways": {found.name: judge.row(found) for found in ways},
        "cage": cage,
    }
    record = tables.record_of(results, size)
    return {**record, "costs": costs.stages, "results": results, "config": asdict(settings)}


def _compare(system: MolecularSystem, settings: Settings, way: Way, seed: int, costs: Costs) -> list[Found]:
    """Join, move, and temper the whole for as long: what each of the three has found."""
    raw, joined = _joined(system, settings, way, settings.n_sweeps, seed, costs)
    n_ladders, n_temperatures = settings.ladders
    with costs.stage("parallel tempering of the whole, for as long"):
        watch = Stopwatch()
        endless = Tempering(n_ladders, n_temperatures, 1e9, settings.reference.starts, discarded=settings.reference.discarded)
        frames = tempered_library(system, endless, derive_seed(seed, "equal"), lambda: watch.cpu_s < joined.cpu_s)
        found = Found(tables.TEMPERING, backbone_of(system, frames), watch.cpu_s, watch.cpu_s)
    return [raw, joined, found]


def _joined(
    system: MolecularSystem, settings: Settings, way: Way, n_sweeps: int, seed: int, costs: Costs
) -> tuple[Found, Found]:
    """Sample the fragments, join them, and move the whole: the joined population as it is, and what the chains visited."""
    residues, whole = parse_sequence(settings.sequence), Whole(system)
    generator, watch = numpy_generator(seed, "joined"), Stopwatch()
    with costs.stage(f"libraries and densities, {way.name}"):
        blocks, libraries = list[Block](), dict[str, Any]()
        for window in windows_of(len(residues), way.window):
            fragment = fragment_of(system, residues, window)
            if fragment.key not in libraries:  # one library serves all windows of the same residues
                libraries[fragment.key] = tempered_library(fragment, settings.library, derive_seed(seed, fragment.name))
            blocks.append(Block.fit(system, whole.zmatrix, window, fragment, libraries[fragment.key], seed))
    with costs.stage(f"joining, {way.name}"):
        coordinates, log_weight = join(whole, blocks, settings.n_joined, generator)
        starts = resampled(coordinates, log_weight, settings.n_chains, generator)
    before = watch.cpu_s
    raw_facts = {"ess_fraction": kish_ess(log_weight) / settings.n_joined}
    raw = Found(tables.RAW, whole.backbone_rad(coordinates)[None], before, before, raw_facts)
    with costs.stage(f"moves of the whole, {way.name}"):
        chains = run_joined(whole, blocks, starts, n_sweeps, derive_seed(seed, "chains"), way.moves)
    facts = {
        "acceptance": chains.acceptance,
        "far": chains.far,
        "verlet_acceptance": chains.verlet_acceptance,
        "energies_per_cpu_s": chains.n_energies / (watch.cpu_s - before),
    }
    return raw, Found(way.name, chains.angles_rad, watch.cpu_s, watch.cpu_s - before, facts, chains.log_target)
