"""Which jobs make a run: the stages of each, the resources it asks for, and whether it is an array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_molgen import molecules
from hpc_molgen.config import RunConfig
from hpc_molgen.launch.site import ARRAYS, JobConfig, SiteConfig
from hpc_molgen.run import Run

_BEFORE = {"train": ("featurize",)}  # stages that another one's job runs first
_ONE_TASK = ("featurize", "report")
_ALONE = {"nodes": 1, "tasks_per_node": 1}


@dataclass(frozen=True)
class Job:
    """A Slurm job of a run.

    Attributes
    ----------
    name : str
        The last of its stages.
    stages : tuple of str
        All stages that it runs, in order.
    asks : JobConfig
        Resources, with those that do not fit the stage taken away.
    array : int
        Number of jobs that share the stage; 1 is no array.
    """

    name: str
    stages: tuple[str, ...]
    asks: JobConfig
    array: int = 1

    @property
    def trains(self) -> bool:
        """True for the job whose ranks are torch's."""
        return "train" in self.stages


def plan_jobs(run: Run, site: SiteConfig, asked: Sequence[str]) -> list[Job]:
    """Return the jobs of the stages asked for that are not done, each to start when the one before it has ended well."""
    todo = [stage for stage in asked if not molecules.is_done(run, stage)]
    arrays = {stage: _array(run, site, stage) for stage in ARRAYS if stage in todo}
    arrays = {stage: n for stage, n in arrays.items() if n > 1}
    jobs: list[Job] = []
    parts: tuple[str, ...] = ()  # the stage before, if it was an array: the next job merges what its jobs have done
    for name in todo:
        if name == "featurize" and "train" in todo:
            continue  # the training job does it first
        if parts and name in arrays:
            jobs.append(_merge(site, parts))
            parts = ()
        stages = [stage for stage in _BEFORE.get(name, ()) if stage in todo]
        jobs.append(_job(site, name, (*parts, *stages, name), arrays.get(name, 1)))
        parts = (name,) if name in arrays else ()
    return [*jobs, _merge(site, parts)] if parts else jobs


def _array(run: Run, site: SiteConfig, stage: str) -> int:
    """Return how many jobs share a stage: as many as the site says, and no more than there is work for.

    Of many molecules each begins with the next job, see `molecules.members`.
    """
    configs = [one.config for one in molecules.members(run)] or [run.config]
    return min(site.job(stage).array, max(_n_items(config, stage) for config in configs) + len(configs) - 1)


def _n_items(config: RunConfig, stage: str) -> int:
    shards = math.ceil(config.sample.n_samples / config.sample.shard_size)
    items = {"reference": len(config.reference.trajectories) or config.reference.n_walkers, "sample": shards}
    items["farm"] = config.farm.n_replicas
    return items[stage]


def _job(site: SiteConfig, name: str, stages: tuple[str, ...], array: int) -> Job:
    asks = site.job(name)
    if array > 1:
        asks = asks.model_copy(update={"nodes": 1})
    if name in _ONE_TASK:
        asks = asks.model_copy(update=_ALONE)
    if name == "featurize":
        asks = asks.model_copy(update={"gpus_per_node": 0})
    return Job(name, stages, asks, array)


def _merge(site: SiteConfig, stages: tuple[str, ...]) -> Job:
    return Job(f"{stages[0]}-merge", stages, site.job(stages[0]).model_copy(update=_ALONE))
