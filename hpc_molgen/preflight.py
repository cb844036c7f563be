"""What would stop a later stage, found before the first one has cost anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hpc_molgen.errors import InputError, UnsupportedForce
from hpc_molgen.systems.registry import WITHOUT_STRUCTURES
from hpc_molgen.systems.residues import residue_torsions
from hpc_molgen.systems.torsions import torsion_by_name

if TYPE_CHECKING:
    from hpc_molgen.config import RunConfig
    from hpc_molgen.systems.base import MolecularSystem


MAX_TIMESTEP_FS = 5.0


def check_stages(config: RunConfig, stages: Sequence[str]) -> tuple[str, ...]:
    """Return the stages that the surrogate can serve, of those that are asked for.

    A surrogate of trajectories knows no ln q: `correct` gives its frames structures and no importance weights, and where there
    are no structures at all, `correct` and `farm` are left out.

    Raises
    ------
    InputError
        When nothing is left, or its features have no names to be sampled by.
    """
    if not config.makes_trajectories:
        return tuple(stages)
    if not config.representation.is_series and any(stage not in ("reference", "featurize", "train") for stage in stages):
        raise InputError(
            "surrogate.name 'gan' samples collective variables by name: set representation.name to cvs or latent and "
            "representation.cvs, or run it with --to train"
        )
    if config.system.name not in WITHOUT_STRUCTURES:
        return tuple(stages)
    kept = tuple(stage for stage in stages if stage not in ("correct", "farm"))
    if stages and not kept:
        raise InputError(
            f"the stage '{stages[0]}' works on structures, and {config.system.name} has none; there are no importance weights "
            "of generated trajectories either, for the surrogate knows no ln q: 'report' compares them with held-out MD"
        )
    return kept


def check(config: RunConfig, system: MolecularSystem) -> None:
    """Check names and torsions of all sections against the registries and the molecule.

    Raises
    ------
    InputError
        With every problem in one message.
    """
    from hpc_molgen.representations.base import representation_class

    topology = system.topology
    checks: list[Callable[[], object]] = [
        lambda: representation_class(config.representation.name),
        lambda: _coordinates(config, system),
        lambda: _flexible(config, system),
        lambda: check_time_steps(config, system),
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


def _coordinates(config: RunConfig, system: MolecularSystem) -> None:
    from hpc_molgen.representations.zmatrix import ZMatrix
    from hpc_molgen.systems.observables import make_observables

    if config.representation.name == "latent":
        from hpc_molgen.representations.latent import distance_pairs

        distance_pairs(system)
    if config.representation.name == "distance":
        from hpc_molgen.representations.distance import bead_bonds

        bead_bonds(system)
    elif not config.representation.is_series:
        ZMatrix(system.topology)
        if config.representation.name == "cartesian":
            from hpc_molgen.representations.cartesian import body_frame

            body_frame(system)
        elif config.representation.name == "residue":
            residue_torsions(system.topology, omega=config.representation.omega)
    elif system.n_atoms:
        make_observables(config.representation.cvs, system, system.positions_nm)


def check_time_steps(config: RunConfig, system: MolecularSystem) -> None:
    """Check that molecules with hydrogen atoms take short steps.

    Raises
    ------
    InputError
        For steps of the reference or the farm that no all-atom model survives.
    """
    if not any(atom.element is not None and atom.element.symbol == "H" for atom in system.topology.atoms):
        return
    for name, value in (("reference", config.reference.timestep_fs), ("farm", config.farm.timestep_fs)):
        if value > MAX_TIMESTEP_FS:
            raise InputError(
                f"{name}.timestep_fs {value:g}: {system.name} has hydrogen atoms, for which at most {MAX_TIMESTEP_FS:g} fs are "
                "stable"
            )


def _batched(config: RunConfig, system: MolecularSystem) -> None:
    asked = [f"{name}.platform: batched" for name in ("reference", "farm") if getattr(config, name).platform == "batched"]
    asked += ["reference.tempering_kelvin"] if config.reference.tempering_kelvin else []
    asked += ["representation.name: relaxed"] if config.representation.name == "relaxed" else []
    if asked:
        from hpc_molgen.dynamics.batched import BatchedSystem

        try:
            BatchedSystem(system, "float32")
        except UnsupportedForce as problem:
            raise InputError(f"{' and '.join(asked)}: {system.name} cannot run in the batched engine: {problem}") from problem


def _flexible(config: RunConfig, system: MolecularSystem) -> None:
    if config.correct.weights and config.representation.is_whole and "<Constraint " in system.system_xml:
        raise InputError(
            f"{system.name}: its System has constraints, so exact weights of all 3N - 6 coordinates do not exist; "
            "give a flexible System, or set correct.weights false"
        )
