"""What a Slurm site wants to hear (partition, account, nodes, modules): facts that the method never sees."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, ValidationError

from hpc_molgen.config import Model, explain, read_yaml
from hpc_molgen.errors import InputError

# in a checkout only: an installed package has no sites, and its users give the path of their own file
SITES = Path(__file__).resolve().parents[2] / "slurm" / "sites"
Stage = Literal["reference", "featurize", "train", "sample", "correct", "farm", "report"]


class SiteConfig(Model):
    """One site. Keys that are not given are not passed to Slurm, which then uses its own defaults."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(1, ge=1, description="nodes of every stage but featurize and report, which are one task")
    tasks_per_node: int = Field(1, ge=1, description="ranks: one per GPU, or one per core")
    cpus_per_task: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    memory: str | None = Field(None, description="per node, as Slurm writes it: 16G")
    minutes: int = Field(60, ge=1, description="time limit of a stage")
    stage_minutes: dict[Stage, PositiveInt] = Field({}, description="time limits of single stages, for example {farm: 600}")
    setup: tuple[str, ...] = Field((), description="shell lines before the stage: module load, export")
    mpi: str = Field("pmi2", description="type for srun --mpi: pmi2 for MPICH, pmix for Open MPI")
    mail: str | None = Field(None, description="address for a message when a stage ends or fails")
    python: str = Field(default_factory=lambda: sys.executable, description="Python on the nodes")
    folder: str | None = Field(None, description="job files and logs, on a shared file system; RUN/submitit by default")


def load_site(source: str) -> SiteConfig:
    """Read a site by the path of its file or by its name in slurm/sites.

    Raises
    ------
    InputError
        With the places that were tried, or with every error of the file in one message.
    """
    tried = [Path(source), SITES / f"{source}.yaml"]
    path = next((candidate for candidate in tried if candidate.is_file()), None)
    if path is None:
        names = ", ".join(sorted(site.stem for site in SITES.glob("*.yaml"))) or "none (this is not a checkout)"
        places = " and ".join(str(candidate) for candidate in tried)
        raise InputError(f"there is no site '{source}' (tried {places}); sites here: {names}; 'local' needs no Slurm")
    try:
        return SiteConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise InputError(explain(error, SiteConfig, str(path))) from error
