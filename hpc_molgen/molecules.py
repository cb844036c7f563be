"""Many molecules under one configuration: a run for each in molecules/NAME, and one surrogate that learns from all of them.

A stage of the whole is that stage of every molecule; in between, `train` makes the shared surrogate, which each molecule's own
`train` then takes as it is or tunes. Molecules that are `unseen` give nothing to it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpc_molgen import preflight
from hpc_molgen.config import RunConfig, SystemConfig, TransferableConfig, explain, molecule_name
from hpc_molgen.errors import EnvironmentProblem, InputError, Interrupted
from hpc_molgen.run import Run
from hpc_molgen.workers import ShareDone, Stopwatch

log = logging.getLogger(__name__)
FOLDER = "molecules"
SURROGATE = "train", "surrogate.safetensors"
Stages = Callable[..., None]
"""`pipeline.run_stages`: (run, stages, again=...)."""


def shares_surrogate(config: RunConfig) -> bool:
    """Whether the run trains one surrogate for its molecules, rather than one for each, or none at all."""
    return bool(config.molecules) and isinstance(config.surrogate, TransferableConfig) and config.surrogate.trained is None


def members(run: Run) -> list[Run]:
    """Return the runs of the molecules of a run of many, in their order; none of a run of one.

    Jobs of an array take turns: who does the first items of one molecule does the second ones of the next, so that molecules
    with fewer items than there are jobs do not all fall to the first jobs.

    Raises
    ------
    InputError
        With every error of all molecules' configurations in one message.
    """
    configs = member_configs(run.config, run.path(*SURROGATE).absolute())
    return [
        Run(run.path(FOLDER, config.name), config, run.workers.turned(number)) for number, config in enumerate(configs)
    ]  # fmt: skip


def is_done(run: Run, stage: str) -> bool:
    """Whether a stage is done with the present inputs, of the whole and of all its molecules where there are many."""
    return run.is_done(stage) and _all_done(members(run), stage)


def member_configs(config: RunConfig, trained: Path = Path(*SURROGATE)) -> list[RunConfig]:
    """Return the configuration of each molecule: the whole's, with what its entry says, and with the shared surrogate.

    Parameters
    ----------
    config : RunConfig
    trained : Path
        Where the shared surrogate is, or will be.

    Raises
    ------
    InputError
        With every error of all of them in one message.
    """
    configs, problems = [], []
    for entry in config.molecules:
        try:
            configs.append(_member_config(config, entry, trained))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return configs


def _member_config(config: RunConfig, entry: str | dict[str, Any], trained: Path) -> RunConfig:
    name = molecule_name(entry)
    values = config.model_dump(mode="json", exclude={"molecules", "unseen"})
    differs = {"system": {"sequence": entry}} if isinstance(entry, str) else {k: v for k, v in entry.items() if k != "name"}
    if nested := sorted({"molecules", "unseen"} & differs.keys()):
        raise InputError(f"molecules: {name}: a molecule has no '{nested[0]}' of its own; list it beside the others")
    for section, own in differs.items():
        base = values.get(section)
        values[section] = _inherited(section, base, own) | own if isinstance(own, dict) and isinstance(base, dict) else own
    values["name"] = name
    surrogate = values["surrogate"]
    is_shared = shares_surrogate(config) and isinstance(surrogate, dict) and surrogate.get("name") == "transferable"
    if is_shared and surrogate.get("trained") is None:
        surrogate["trained"] = str(trained)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(explain(error, RunConfig, f"molecules: {name}")) from error


def _inherited(section: str, base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return what a molecule's section takes from the whole's: all, but nothing of another kind where its `name` differs."""
    if own.get("name", base.get("name")) == base.get("name"):
        return base
    if section == "surrogate":
        return {}
    unsaid = SystemConfig.model_fields["force_field"].default  # kinds of systems have defaults of their own
    return {key: value for key, value in base.items() if key != "force_field" or tuple(value) != unsaid}


def learners(run: Run, runs: Sequence[Run]) -> list[Run]:
    """Return those molecules whose frames the shared surrogate learns from."""
    if not shares_surrogate(run.config):
        return []
    path = str(run.path(*SURROGATE).absolute())
    return [
        one for one in runs if one.config.name not in run.config.unseen and getattr(one.config.surrogate, "trained", "") == path
    ]  # fmt: skip


def run_molecules(run: Run, stages: Sequence[str], run_stages: Stages, *, again: bool = False) -> None:
    """Run `stages` of all molecules, stage after stage, and what the whole does in them; finished parts are skipped."""
    runs = members(run)
    with run.lock():
        if not again:  # what is only written again may have other prices, which are nobody's configuration
            runs = [Run.create(one.directory, one.config, one.workers) for one in runs]
        if shares_surrogate(run.config):
            taught = [one.config.name for one in learners(run, runs)]
            unseen = [one.config.name for one in runs if one.config.name not in taught]
            log.info("the shared surrogate learns from %s; unseen: %s", ", ".join(taught), ", ".join(unseen) or "none")
        if "reference" in stages:
            _check_all(run, runs)
        for name in stages:
            if not again and run.workers.from_root(lambda name=name: run.is_done(name) and _all_done(runs, name)):  # type: ignore[misc]
                log.info("%s of all molecules: done before with the same inputs, skipped", name)
                continue
            with run.stage(name) as details:
                if name == "train" and shares_surrogate(run.config):
                    from hpc_molgen.training.shared import shared_surrogate

                    details |= shared_surrogate(run, learners(run, runs))
                _run_members(run, runs, name, run_stages, again=again)
                details |= run.workers.from_root(lambda name=name: _figures(run, runs, name))  # type: ignore[misc]


def _check_all(run: Run, runs: Sequence[Run]) -> None:
    """Look for what would stop a later stage of any molecule, before the first one has cost anything."""

    def problems() -> list[str]:
        found = []
        for one in runs if run.workers.share[0] == 0 else ():  # one job of an array checks for all
            try:
                if not one.is_done("reference"):
                    preflight.check(one.config, one.system)
            except InputError as problem:
                found.append(f"{one.config.name}: {problem}")
        return found

    if found := run.workers.from_root(problems):
        raise InputError("\n".join(found))


def _run_members(run: Run, runs: Sequence[Run], stage: str, run_stages: Stages, *, again: bool) -> None:
    """Run a stage of every molecule.

    Raises
    ------
    ShareDone
        In a job of an array: the others do the rest, and what comes after all jobs finds every part there.
    InputError
        When something has changed meanwhile that a finished part depended on.
    """
    watch = Stopwatch()
    for one in runs:
        log.info("%s: %s", one.config.name, stage)
        if stage == "farm":
            _shorten(one, run.config.farm.minutes, watch)
        with _named(one):
            run_stages(one, [stage], again=again)
    if run.workers.from_root(lambda: _all_done(runs, stage)):
        return
    if run.workers.share[1] > 1:
        raise ShareDone
    changed = ", ".join(one.config.name for one in runs if not one.is_done(stage))
    raise InputError(f"{run.directory}: what '{stage}' of {changed} was made from has changed meanwhile: run it again")


def _shorten(one: Run, minutes: float | None, watch: Stopwatch) -> None:
    """Leave to a molecule's farm of the `minutes` for all what the molecules before it have not taken."""
    if minutes is None:
        return
    left = minutes - watch.wall_s / 60
    if left <= 0:
        raise Interrupted(f"the farm stopped before {one.config.name} (farm.minutes are over); the same command goes on")
    own = one.config.farm.minutes
    farm = one.config.farm.model_copy(update={"minutes": left if own is None else min(left, own)})
    one.config = one.config.model_copy(update={"farm": farm})


@contextlib.contextmanager
def _named(one: Run) -> Iterator[None]:
    """Put the molecule's name before an error."""
    try:
        yield
    except (InputError, EnvironmentProblem) as error:
        raise type(error)(f"{one.config.name}: {error}") from error


def _all_done(runs: Sequence[Run], stage: str) -> bool:
    return all(one.is_done(stage) for one in runs)


def _figures(run: Run, runs: Sequence[Run], stage: str) -> dict[str, Any]:
    """Figures of a stage of the whole, where it has any beside those of its molecules; called on the root."""
    if stage == "farm":
        found = [one.details("farm") for one in runs]
        sums = {name: sum(own[name] for own in found) for name in ("n_replicas", "n_failed", "simulated_ns", "cpu_s")}
        platforms = ", ".join(sorted({own["platform"] for own in found}))
        return sums | {"ns_per_day_per_core": sums["simulated_ns"] / sums["cpu_s"] * 86400, "platform": platforms}
    if stage == "report":
        from hpc_molgen.efficiency.molecules_report import write_report

        return write_report(run, runs)
    return {}
