"""What a Slurm site wants to hear (partition, account, nodes, modules): facts that the method never sees."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from hpc_molgen.config import Model, explain, read_yaml
from hpc_molgen.errors import InputError

# in a checkout only: an installed package has no sites, and its users give the path of their own file
SITES = Path(__file__).resolve().parents[2] / "slurm" / "sites"
FILL_IN = "FILL-IN"  # what the sites of this package leave to the user
Stage = Literal["reference", "featurize", "train", "sample", "correct", "farm", "report"]
ARRAYS = ("reference", "sample", "farm")


class JobConfig(Model):
    """What a job asks for. Keys that are not given are not passed to Slurm, which then uses its own defaults."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(1, ge=1, description="nodes of a job; jobs of an array and the report have one")
    tasks_per_node: int = Field(1, ge=1, description="ranks: one per GPU, or one per core")
    cpus_per_task: int = Field(1, ge=1)
    gpus_per_node: int | str = Field(0, description="a number, or type:number as in a100:4")
    memory: str | None = Field(None, description="per node, as Slurm writes it: 16G")
    minutes: int = Field(60, ge=1, description="time limit; a job that needs longer goes back into the queue and goes on")
    warn_seconds: int = Field(120, ge=1, description="how long before the limit a job is told to save and leave")
    array: int = Field(1, ge=1, description="number of jobs that share reference or sample; under stages also the farm")
    array_at_once: int | None = Field(None, ge=1, description="how many of them may run at a time")
    modules: tuple[str, ...] = Field((), description="environment modules to load")
    setup: tuple[str, ...] = Field((), description="shell lines before the stage")
    mpi: str = Field("pmi2", description="type for srun --mpi: pmi2 for MPICH, pmix for Open MPI")
    container: str | None = Field(None, description="image that the stages run in, with apptainer or singularity")
    container_binds: tuple[str, ...] = Field((), description="folders it sees besides, as FROM or FROM:TO: scratch, libraries")
    container_options: tuple[str, ...] = Field((), description="more of its options, for example --sharens")
    python: str | None = Field(None, description="Python on the nodes; by default this one, or python3 of the container")

    @property
    def n_gpus(self) -> int:
        """GPUs of a node."""
        return int(str(self.gpus_per_node).rpartition(":")[2])

    @property
    def python_command(self) -> str:
        """Python that runs the stages."""
        return str(Path(self.python).expanduser()) if self.python else "python3" if self.container else sys.executable

    @field_validator("gpus_per_node")
    @classmethod
    def _number_of_gpus(cls, value: int | str) -> int | str:
        if not re.fullmatch(r"([A-Za-z][\w.-]*:)?\d+", str(value)):
            raise ValueError("write a number of GPUs, or type:number as in a100:4")
        return value

    @field_validator("container_options")
    @classmethod
    def _single_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(len(option.split()) != 1 for option in value):
            raise ValueError("each option is one word without spaces: --bind=/scratch")
        return value

    @field_validator("container_binds")
    @classmethod
    def _absolute(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not part.startswith("/") or "," in part for bind in value for part in bind.split(":")[:2]):
            raise ValueError("each is FROM or FROM:TO, absolute paths without commas: /scratch, or /opt/site/lib:/opt/lib")
        return value

    @field_validator("container")
    @classmethod
    def _image(cls, value: str | None) -> str | None:
        if value is None or "://" in value or FILL_IN in value:
            return value
        path = Path(value).expanduser().absolute()
        if path.parent.is_dir() and not path.exists():  # a folder that only the nodes have cannot be looked into
            raise ValueError(f"there is no image {path}; build it first (containers/), or give its path")
        return str(path)

    @model_validator(mode="after")
    def _possible(self) -> JobConfig:
        open_ones = [name for name, value in self if FILL_IN in str(value)]
        if open_ones:
            raise ValueError(f"still to be filled in for your site: {', '.join(open_ones)}")
        if self.warn_seconds >= 60 * self.minutes:
            raise ValueError(
                f"warn_seconds {self.warn_seconds} is not shorter than the time limit of {self.minutes} minute(s): "
                "the job would be told to leave before it has begun"
            )
        return self


class SiteConfig(JobConfig):
    """One site: what all jobs ask for, and what single stages ask for instead."""

    stages: dict[Stage, dict[str, Any]] = Field({}, description="other values for the job of one stage: {train: {nodes: 4}}")
    mail: str | None = Field(None, description="address for a message when a job ends or fails")
    folder: str | None = Field(None, description="job files and logs, on a shared file system; RUN/submitit by default")

    def job(self, stage: str) -> JobConfig:
        """What the job of `stage` asks for."""
        of_site = {name: value for name, value in self if name in JobConfig.model_fields}
        if stage == "farm":  # one MPI job does it better, unless somebody asks for several by name
            of_site["array"] = 1
        overrides = {str(name): values for name, values in self.stages.items()}
        return JobConfig.model_validate(of_site | overrides.get(stage, {}))

    @model_validator(mode="after")
    def _stages_possible(self) -> SiteConfig:
        for stage, values in self.stages.items():
            try:
                self.job(stage)
            except ValidationError as error:
                problems = explain(error, JobConfig, "").splitlines()[1:]
                raise ValueError("\n  ".join(f"stages.{stage}: {problem.strip()}" for problem in problems)) from error
            if values.get("array", 1) > 1 and stage not in ARRAYS:
                raise ValueError(f"stages.{stage}.array: only {', '.join(ARRAYS)} can be arrays of jobs")
        train = self.job("train")
        if 0 < train.n_gpus < train.tasks_per_node:
            raise ValueError(
                f"train would run {train.tasks_per_node} ranks on {train.n_gpus} GPU(s) of a node: one rank uses one GPU; set "
                "tasks_per_node to the number of GPUs (stages: {train: {tasks_per_node: ...}} for training alone)"
            )
        return self


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
