"""Suite `generalisation`: one surrogate of many peptides asked for residues that it has never seen, and what that costs.

All residues get reference MD; the surrogate learns from some of them. For each of the others it is asked as it is (zero-shot),
after a little MD (few-shot), and after learning from its own weighted samples; beside them stand a surrogate of that residue
alone and MD. Runs go through the pipeline as a user's do, and stay in the suite's folder: finished stages are
not repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_molgen.config import RunConfig, load_config
from hpc_molgen.efficiency.costs import collect_costs
from hpc_molgen.efficiency.suites import generalisation_tables as tables
from hpc_molgen.efficiency.suites.generalisation_scores import Residue, score_md, score_run
from hpc_molgen.efficiency.suites.generalisation_tables import ENERGIES, FEW, SCRATCH, ZERO
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.rounds import Method, interleaved
from hpc_molgen.efficiency.suites.runs import finish_run
from hpc_molgen.errors import InputError
from hpc_molgen.run import Run, stage_costs
from hpc_molgen.workers import one_thread

SEEN = ("ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "HIE", "ILE", "LEU", "MET", "THR", "TRP", "TYR")
UNSEEN = ("GLY", "PRO", "PHE", "LYS", "VAL", "SER")  # no side chain, a ring, aromatic, charged, branched, polar
ONE_CALL_S = 1e-9  # of measuring: each round is one call of each method


@dataclass(frozen=True)
class Settings:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    seen, unseen : tuple of str
        Residues that the surrogate learns from, and those that it is asked for.
    assignments : tuple of str
        After the preset `peptides`.
    few_ps : float
        MD of a residue for few-shot, over two walkers.
    tune_steps : int
        Steps of training on it.
    energies : tuple of (samples, steps)
        Of the round of training on its own weighted samples.
    scratch : tuple of str
        Of the surrogate of one residue alone, after the preset.
    n_draws, n_rounds : int
        For the speed of sampling.
    n_effective : int
        Effective samples at which costs are compared: those that give dF of a state of 2 % to 0.1 kT, (1 - p) / (p 0.1^2).
    """

    seen: tuple[str, ...] = SEEN
    unseen: tuple[str, ...] = UNSEEN
    assignments: tuple[str, ...] = ()
    few_ps: float = 100.0
    tune_steps: int = 300
    energies: tuple[int, int] = (20_000, 400)
    scratch: tuple[str, ...] = ("surrogate={name: diffusion, hidden: 128, depth: 2, harmonics: 3}", "train.n_steps=3000")
    n_draws: int = 2000
    n_rounds: int = 3
    n_effective: int = 4900


SIZES = {
    "smoke": Settings(
        ("ALA", "SER"), ("GLY", "VAL"),
        (
            "reference.n_walkers=4", "reference.production_ps=20", "reference.equilibration_ps=1", "train.n_steps=40",
            "train.batch_size=128", "surrogate.hidden=32", "surrogate.width=16", "surrogate.layers=2", "sample.n_samples=1000",
            "correct.n_structures=2", "correct.check_frames=100", "correct.method=weights",
        ),
        few_ps=4.0, tune_steps=5, energies=(1000, 5),
        scratch=("surrogate={name: diffusion, hidden: 16, depth: 1, harmonics: 2}", "train.n_steps=40"), n_draws=200,
    ),
    "laptop": Settings(assignments=("correct.n_structures=10", "correct.method=weights")),
    "cluster": Settings(
        assignments=(
            "correct.n_structures=10", "correct.method=weights", "reference.n_walkers=96", "reference.production_ps=1000",
            "train.n_steps=20000", "train.batch_size=2048", "surrogate.hidden=192", "surrogate.width=128",
            "sample.n_samples=200000",
        ),
        energies=(200_000, 2000), n_rounds=6, n_draws=10_000,
        scratch=("surrogate={name: diffusion, hidden: 256, depth: 3}", "train.n_steps=20000"),
    ),
}  # fmt: skip


def generalisation(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; return its part of the record.

    Raises
    ------
    InputError
        When there is no such size.
    """
    if size not in SIZES:
        raise InputError(f"the suite 'generalisation' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs = SIZES[size], Costs()
    folder = out / f"generalisation-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    shared = finish_run(folder, "shared", shared_config(settings, seed), "correct")
    for stage in ("reference", "featurize", "train", "sample", "correct"):
        spent = stage_costs(shared, stage)
        costs.add(f"{stage} of all residues", spent["cpu_s"], spent["wall_s"])
    rows = []
    for name in settings.unseen:
        runs = {ZERO: Run.open(shared.path("molecules", name))}
        for kind in (FEW, ENERGIES, SCRATCH):
            runs[kind] = finish_run(
                shared.path("molecules"), f"{name}-{_folder(kind)}", _config(kind, settings, shared, name, seed), "correct"
            )
            parts = [stage_costs(runs[kind], stage) for stage in _paid(kind)]
            costs.add(f"{name}, {kind}", sum(part["cpu_s"] for part in parts), sum(part["wall_s"] for part in parts))
        with costs.stage(f"{name}: scores"):
            rows.append(_row(name, runs, seed))
        with costs.stage(f"{name}: speed of sampling"), one_thread():
            rows[-1]["speed"] = _speeds(runs, settings, seed)
    seen = [_seen_row(Run.open(shared.path("molecules", name)), name, seed) for name in settings.seen]
    results = {"unseen": rows, "seen": seen, "shared": _shared_costs(shared), "n_effective": settings.n_effective}
    return {**tables.record_of(results, size), "costs": costs.stages, "results": results, "config": asdict(settings)}


def shared_config(settings: Settings, seed: int) -> RunConfig:
    """Configuration of the run of all residues."""
    names = [*settings.seen, *settings.unseen]
    lists = [f"molecules={json.dumps(names)}", f"unseen={json.dumps(list(settings.unseen))}"]
    return load_config("peptides", [f"seed={seed}", *lists, *settings.assignments])


def _folder(kind: str) -> str:
    return kind.replace(" ", "-")


def _config(kind: str, settings: Settings, shared: Run, name: str, seed: int) -> RunConfig:
    """Configuration of one residue alone."""
    alone = [f"seed={seed}", f"name={name}-{_folder(kind)}", "molecules=[]", "unseen=[]", f"system.sequence={name}"]
    trained = f"surrogate.trained={json.dumps(str(shared.directory.absolute()))}"
    own = {
        FEW: [
            "reference.tempering_kelvin=[]", "reference.n_walkers=4", "reference.equilibration_ps=5",
            f"reference.training_ps={settings.few_ps / 2}", f"reference.production_ps={max(2.0, settings.few_ps / 10)}",
            trained, f"surrogate.tune_steps={settings.tune_steps}",
        ],
        ENERGIES: [
            trained, "refine.rounds=1", f"refine.n_samples={settings.energies[0]}", f"refine.n_steps={settings.energies[1]}",
        ],
        SCRATCH: ["representation.name=internal", *settings.scratch],
    }[kind]  # fmt: skip
    return load_config("peptides", [*alone, *settings.assignments, *own])


def _paid(kind: str) -> tuple[str, ...]:
    """Stages that a way of asking for a residue pays for itself; others were run for the residue already."""
    own = ("featurize", "train", "sample", "correct")
    return ("reference", *own) if kind == FEW else own


def _row(name: str, runs: dict[str, Run], seed: int) -> dict[str, Any]:
    """Scores of all ways of asking for one residue, and of its MD."""
    residue = Residue.of(runs[ZERO])
    methods = {kind: score_run(residue, run, seed) | _costs(kind, run) for kind, run in runs.items()}
    return {
        "name": name, "n_atoms": runs[ZERO].system.n_atoms, "n_torsions": runs[ZERO].details("featurize")["n_torus"],
        "methods": methods, "md": score_md(residue, runs[ZERO], seed),
    }  # fmt: skip


def _seen_row(run: Run, name: str, seed: int) -> dict[str, Any]:
    residue = Residue.of(run)
    return {"name": name, **score_run(residue, run, seed), **_costs(ZERO, run), "md": score_md(residue, run, seed)}


def _costs(kind: str, run: Run) -> dict[str, float]:
    """CPU seconds before the first sample, and of each sample (with ln q and its energy)."""
    book = collect_costs(run)
    own = {cost.stage: cost for cost in book.stages}
    before = own["featurize"].cpu_s + own["train"].cpu_s + max(0.0, own["sample"].cpu_s - book.sampling)
    data = {FEW: own["reference"].cpu_s, SCRATCH: book.data}.get(kind, 0.0)  # half of the walkers train, the others judge
    n = int(run.details("sample")["n"]) if "n" in run.details("sample") else run.config.sample.n_samples
    return {"setup_cpu_s": before, "data_cpu_s": data, "sample_cpu_s": (book.sampling + book.energies) / n, "n": n}


def _shared_costs(shared: Run) -> dict[str, Any]:
    figures = shared.details("train")
    return {"train_cpu_s": figures["train_cpu_s"], "n_parameters": figures["n_parameters"], "molecules": figures["molecules"]}


def _speeds(runs: dict[str, Run], settings: Settings, seed: int) -> dict[str, Any]:
    """Samples per CPU second, with ln q and positions, of the shared surrogate and of that of the residue alone."""
    methods = [
        Method(kind, kind, _drawer(runs[kind], settings.n_draws, seed), settings.n_draws, SCRATCH) for kind in (ZERO, SCRATCH)
    ]
    for method in methods:
        method.work()  # a first call counts for nothing
    return interleaved(methods, settings.n_rounds, ONE_CALL_S)


def _drawer(run: Run, n: int, seed: int) -> Callable[[], object]:
    from hpc_molgen.representations.base import load_representation
    from hpc_molgen.sampling import draw_structures
    from hpc_molgen.surrogates.base import load_surrogate

    surrogate = load_surrogate(run.path("train", "surrogate.safetensors"), run.system.key)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    return lambda: draw_structures(surrogate, representation, run.config.sample, n, seed)
