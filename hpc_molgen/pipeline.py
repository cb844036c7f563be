"""The whole method on one page: seven stages, each a function of the run directory alone.

A stage reads files of earlier stages and writes its own. It does not know who started it: a laptop, mpiexec, torchrun, a
container or Slurm. `run_stages` skips what is finished with the same inputs; a half-finished stage goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from hpc_molgen import molecules, preflight
from hpc_molgen.run import STAGES, Run

log = logging.getLogger(__name__)


def reference(run: Run) -> None:
    """Molecular dynamics of independent walkers (or the user's trajectories) -> reference/walker-*.h5."""
    from hpc_molgen.dynamics import walkers

    with run.stage("reference") as details:
        plan = run.system, run.config.reference, run.config.seed, run.path("reference")
        tasks = run.workers.from_root(lambda: walkers.plan_reference(*plan))
        with run.progress("reference", walkers.n_trajectories(tasks), "walkers") as progress:
            written = run.workers.map(walkers.run_reference, tasks, lambda done: progress.advance(len(done) * run.workers.size))
        details["walkers"] = walkers.walker_costs([path for part in written for path in part])


def featurize(run: Run) -> None:
    """Reference frames of the training walkers -> featurize/representation.safetensors (and time series, for a GAN)."""
    from hpc_molgen import datasets

    with run.stage("featurize") as details:
        if run.workers.is_root:
            representation = datasets.fit_representation(run)
            representation.save(run.path("featurize", "representation.safetensors"), run.system)
            details |= datasets.describe(run, representation)


def train(run: Run) -> None:
    """Training frames, then own samples -> train/surrogate.safetensors, metrics.jsonl; data-parallel under torchrun."""
    from hpc_molgen import pools, refinement
    from hpc_molgen.training.stage import train_surrogate

    with run.stage("train") as details:
        if run.workers.trains:
            details |= train_surrogate(run, pools.starting_items(run))
            details |= refinement.refine_surrogate(run)


def sample(run: Run) -> None:
    """Surrogate -> sample/proposals.h5: conformations with ln q, in shards that do not depend on the number of workers."""
    from hpc_molgen import sampling

    with run.stage("sample") as details:
        shards = sampling.plan_shards(run)
        with run.progress("sample", len(shards), "shards") as progress:
            costs = run.workers.map(sampling.sample_shard, shards, lambda _: progress.advance(run.workers.size))
        if run.workers.is_root:
            details |= sampling.merge_shards(run, shards, costs)


def correct(run: Run) -> None:
    """Proposals -> correct/weighted.h5 with Boltzmann weights, diagnostics.json, and PDB files drawn by those weights."""
    from hpc_molgen import annealing, correction, temperatures

    with run.stage("correct") as details:
        chunks = correction.plan_chunks(run)
        with run.progress("correct", len(chunks), "chunks") as progress:
            energies = run.workers.map(correction.chunk_energies, chunks, lambda _: progress.advance(run.workers.size))
        islands = annealing.plan_islands(run, energies)  # none where the weights are good enough
        with run.progress("correct", len(islands), "islands") as progress:
            moved = run.workers.map(annealing.move_island, islands, lambda _: progress.advance(run.workers.size))
        others = run.workers.map(temperatures.weigh, temperatures.plan(run))
        if run.workers.is_root:
            details |= correction.write_weighted(run, energies, islands, moved, others)


def farm(run: Run) -> None:
    """PDB files with their weights -> farm/replica-*.h5 and manifest.jsonl: molecular dynamics from every structure."""
    from hpc_molgen.farm.stage import run_replicas

    with run.stage("farm") as details:
        details |= run_replicas(run)


def report(run: Run) -> None:
    """All of it -> report/report.{html,md,json} and figures."""
    from hpc_molgen.efficiency.report import write_report

    with run.stage("report") as details:
        if run.workers.is_root:
            details |= write_report(run)


STAGE_FUNCTIONS = {function.__name__: function for function in (reference, featurize, train, sample, correct, farm, report)}


def run_stages(run: Run, stages: Sequence[str] = tuple(STAGES), *, again: bool = False) -> None:
    """Run `stages` in order; those that are finished with the same inputs are skipped unless asked for `again`."""
    stages = preflight.check_stages(run.config, stages)
    if run.config.molecules:
        molecules.run_molecules(run, stages, run_stages, again=again)
        return
    with run.lock():
        if "farm" in stages:
            preflight.check_time_steps(run.config, run.system)
        first = run.workers.share[0] == 0  # one job of an array checks for all
        if first and "reference" in stages and not run.workers.from_root(lambda: run.is_done("reference")):
            run.workers.from_root(lambda: preflight.check(run.config, run.system))
        for name in stages:
            if not again and run.workers.from_root(lambda name=name: run.is_done(name)):  # type: ignore[misc]
                log.info("%s: done before with the same inputs, skipped", name)
                continue
            log.info("%s: starts", name)
            STAGE_FUNCTIONS[name](run)
