"""Fixtures that several folders share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from hpc_molgen.config import RunConfig, SystemConfig, load_config
from hpc_molgen.run import STAGES, Run
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.workers import Workers

needs_gromacs = pytest.mark.skipif(shutil.which("gmx") is None, reason="needs GROMACS (gmx), which is not installed")

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def alanine() -> MolecularSystem:
    """Alanine dipeptide in implicit water."""
    return load_system(SystemConfig())


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    """The preset `tiny`."""
    return load_config("tiny")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: RunConfig) -> Path:
    """A run directory of the preset `tiny` with all stages but the report finished; copy it before changing it."""
    from hpc_molgen.pipeline import STAGE_FUNCTIONS

    run = Run.create(tmp_path_factory.mktemp("tiny"), tiny_config, Workers(n_processes=1))
    for stage in list(STAGES)[:-1]:
        STAGE_FUNCTIONS[stage](run)
    return run.directory


@pytest.fixture(scope="session")
def command() -> CommandLine:
    """Run `hpc-molgen` as a user does, in a process of its own."""

    def call(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "hpc_molgen", *arguments]
        settings: dict[str, object] = {"capture_output": True, "text": True, "timeout": 240}
        return subprocess.run(line, check=False, **(settings | options))  # type: ignore[call-overload, no-any-return]

    return call
