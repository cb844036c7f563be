"""What would stop a later stage, found before the first one has cost anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hpc_molgen.config import GanConfig
from hpc_molgen.errors import InputError, UnsupportedForce
from hpc_molgen.systems.torsions import torsion_by_name

if TYPE_CHECKING:
    from hpc_molgen.config import RunConfig
    from hpc_molgen.systems.base import MolecularSystem


def check_stages(config: RunConfig, stages: Sequence[str]) -> None:
    """Check that the surrogate can serve the stages that are asked for.

    Raises
    ------
    InputError
        For stages that work on structures when the surrogate makes trajectories of collective variables.
    """
    beyond = [stage for stage in stages if stage not in ("reference", "featurize", "train")]
    if isinstance(config.surrogate, GanConfig) and beyond:
        raise InputError(
            f"surrogate.name 'gan' makes trajectories, and the stages {', '.join(beyond)} work on structures: run or submit it "
            "with --to train"
        )


def check(config: RunConfig, system: MolecularSystem) -> None:
    """Check names and torsions of all sections against the registries and the molecule.

    Raises
    ------
    InputError
        With every problem in one message.
    """
    from hpc_molgen.representations.base import representation_class
    from hpc_molgen.representations.zmatrix import ZMatrix

    topology = system.topology
    checks: list[Callable[[], object]] = [
        lambda: representation_class(config.representation.name),
        lambda: ZMatrix(topology),
        lambda: _flexible(config, system),
        lambda: _batched(config, system),
    ]
    torsions = [] if config.representation.torsions == "all" else list(config.representation.torsions)
    torsions = torsions if config.representation.name == "torsion" else []
    torsions += [config.reference.bias_torsion] if config.reference.bias_torsion else []
    checks += [lambda name=name: torsion_by_name(topology, name) for name in dict.fromkeys(torsions)]  # type: ignore[misc]
    problems = []
    for examine in checks:
        try:
            examine()
        except InputError as error:
            problems.append(str(error))
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"{len(problems)} problem(s) that a later stage would meet:\n  {listed}")


def _batched(config: RunConfig, system: MolecularSystem) -> None:
    asked = [f"{name}.platform: batched" for name in ("reference", "farm") if getattr(config, name).platform == "batched"]
    asked += ["reference.tempering_kelvin"] if config.reference.tempering_kelvin else []
    if asked:
        from hpc_molgen.dynamics.batched import BatchedSystem

        try:
            BatchedSystem(system, "float32")
        except UnsupportedForce as problem:
            raise InputError(f"{' and '.join(asked)}: {system.name} cannot run in the batched engine: {problem}") from problem


def _flexible(config: RunConfig, system: MolecularSystem) -> None:
    if config.correct.weights and config.representation.name == "internal" and "<Constraint " in system.system_xml:
        raise InputError(
            f"{system.name}: its System has constraints, so exact weights of all internal coordinates do not exist; "
            "give a flexible System, or set correct.weights false"
        )
