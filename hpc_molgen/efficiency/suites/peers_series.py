"""Trajectories in the suite `peers`: the published GAN beside this package's, on the same walkers, with a seed each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_molgen.config import load_config
from hpc_molgen.efficiency.costs import collect_costs
from hpc_molgen.efficiency.series_findings import analyse_series
from hpc_molgen.efficiency.suites import trajectories
from hpc_molgen.efficiency.suites.record import Costs, spread
from hpc_molgen.run import Run
from hpc_molgen.workers import Workers

PUBLISHED = "published trajectory GAN"
# facts/peers.md, section C: perceptrons of whole windows, five updates of the critic for one of the generator, penalty 10, Adam
# 1e-4, batches of 32; 2000 epochs of 50 files are 4000 batches, so 800 updates of the generator. A sixteenth of its width.
NETWORK = (
    "surrogate={name: gan, architecture: perceptron, n_frames: 2000, windows: chunks, hidden: 128, latent: 128, tuples: 1}",
    "train.n_steps=800", "train.batch_size=32", "train.learning_rate=1.0e-4", "train.schedule=constant",
    "train.warmup_steps=0", "train.ema_decay=0", "sample.n_samples=100", "sample.n_frames=2000",
)  # fmt: skip


@dataclass(frozen=True)
class SeriesSettings:
    """The runs of this package's GAN, which the suite `trajectories` shares, and what the published one has otherwise."""

    ours: trajectories.Settings
    published: tuple[str, ...] = ()


def compare_series(settings: SeriesSettings, out: Path, size: str, seed: int, costs: Costs) -> dict[str, Any]:
    """Train both on the same walkers, score both and the baselines against the same held-out ones; return it over the seeds."""
    folder, base = out / f"series-{size}" / "runs", settings.ours
    ours = trajectories.series_runs(base, out, size, seed)
    configs = {
        f"published-{run.config.seed}": load_config(
            base.preset, [f"seed={run.config.seed}", *base.assignments, *NETWORK, *settings.published]
        )
        for run in ours
    }
    published = trajectories.run_at_once(configs, folder)
    findings = []
    for mine, theirs in zip(ours, published, strict=True):
        report = mine.config.report.model_copy(update={"others": {PUBLISHED: str(theirs.directory)}})
        findings.append(analyse_series(Run(mine.directory, mine.config.model_copy(update={"report": report}), Workers())))
        for name, run in (("our GAN", mine), (PUBLISHED, theirs)):
            for cost in collect_costs(run).stages:
                if cost.wall_s > 0 and (cost.stage != "reference" or run is mine):
                    costs.add_stage(f"{name}, seed {run.config.seed}: {cost.stage}", cost)
    return {
        "quality": trajectories.quality(findings),
        "training_cpu_s": {"generated": _training(ours), PUBLISHED: _training(published)},
        "n_parameters": {name: int(runs[0].details("train")["n_parameters"]) for name, runs in
                         (("generated", ours), (PUBLISHED, published))},
        "memorisation": spread(found.memorisation.ratio for found in findings),
    }  # fmt: skip


def published_sizes(settings: SeriesSettings) -> dict[str, int]:
    """Updates of the published GAN's generator, frames of its windows, and width of its first layer, as a size has them."""
    config = load_config(settings.ours.preset, [*settings.ours.assignments, *NETWORK, *settings.published])
    sizes = config.surrogate.model_dump()
    return {"updates": config.train.n_steps, "frames": sizes["n_frames"], "hidden": sizes["hidden"]}


def _training(runs: list[Run]) -> dict[str, Any]:
    return spread(collect_costs(run).training for run in runs)
