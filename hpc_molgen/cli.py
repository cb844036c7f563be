"""The command line. Imports that take time happen inside the commands: `--help` answers at once."""

from __future__ import annotations

import json
import logging
import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hpc_molgen import __version__, interrupts
from hpc_molgen.errors import EXIT_BUG, EXIT_GATE_FAILED, EXIT_INTERRUPTED, EnvironmentProblem, HpcMolgenError, InputError

if TYPE_CHECKING:
    from hpc_molgen.config import RunConfig
    from hpc_molgen.workers import Workers

app = typer.Typer(
    name="hpc-molgen",
    help="Is a generative surrogate cheaper than molecular dynamics for my molecule, and can I trust it?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
container = typer.Typer(help="Images of apptainer.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(container, name="container")
Config = Annotated[str, typer.Argument(metavar="PRESET|CONFIG.yaml", help="a preset's name or a configuration file")]
Assignments = Annotated[list[str] | None, typer.Option("--set", metavar="key=value", help="change one setting; repeatable")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="a run directory")]
_INTERRUPTED = "hpc-molgen: interrupted; what was finished is kept, the same command goes on"
_STAGES = ("reference", "featurize", "train", "sample", "correct", "farm", "report")
_SHARED = ("reference", "sample", "farm")


def _stage(value: str | None) -> str | None:
    if value is not None and value not in _STAGES:
        raise typer.BadParameter(f"there is no stage '{value}'; the stages are: {', '.join(_STAGES)}")
    return value


def _stages(only: str | None, start: str | None, end: str | None) -> tuple[str, ...]:
    if only and (start or end):
        raise InputError("--only excludes --from and --to")
    first, last = only or start or _STAGES[0], only or end or _STAGES[-1]
    if _STAGES.index(first) > _STAGES.index(last):
        raise InputError(f"--from {first} --to {last}: there is nothing in between; the order is {', '.join(_STAGES)}")
    return _STAGES[_STAGES.index(first) : _STAGES.index(last) + 1]


def _share(value: str) -> str:
    number, slash, of = value.partition("/")
    if not (slash and number.isdigit() and of.isdigit() and int(number) < int(of)):
        raise typer.BadParameter(f"'{value}': write K/N with K from 0 to N-1, for example 0/8")
    return value


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        typer.echo(f"hpc-molgen {__version__}")
        raise typer.Exit


@app.command()
def run(
    config: Config,
    out: Annotated[Path | None, typer.Option(help="run directory; runs/NAME by default")] = None,
    assignments: Assignments = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", callback=_stage, help="run this stage alone")] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", callback=_stage, help="run from this stage on")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="STAGE", callback=_stage, help="run up to this stage")] = None,
    share: Annotated[
        str, typer.Option(metavar="K/N", callback=_share, help="of a stage's items do those of job K (0 to N-1) of N jobs")
    ] = "0/1",
) -> None:
    """Run the pipeline here: in this process, under mpiexec, or under torchrun. Finished stages are skipped."""
    from hpc_molgen.molecules import is_done
    from hpc_molgen.pipeline import run_stages
    from hpc_molgen.run import Run
    from hpc_molgen.workers import Workers

    stages = _stages(only, start, end)
    number, of = (int(part) for part in share.split("/"))
    if of > 1 and only not in _SHARED:
        raise InputError(f"--share divides one stage: give --only {' or --only '.join(_SHARED)} too")
    resolved = _resolved(config, assignments)
    workers = Workers.detect((number, of))
    _log_to_stderr(quiet=not workers.is_root)
    _guard_ranks(workers)
    opened = Run.create(out or Path("runs") / resolved.name, resolved, workers)
    run_stages(opened, stages)
    if workers.is_root and is_done(opened, "report"):
        _finish(opened.directory)


def _resolved(config: str, assignments: list[str] | None) -> RunConfig:
    """Return the configuration, after those of all its molecules were looked at, where there are many."""
    from hpc_molgen.config import load_config

    resolved = load_config(config, assignments)
    if resolved.molecules:
        from hpc_molgen.molecules import member_configs

        member_configs(resolved)
    return resolved


def _finish(directory: Path) -> None:
    """Say where the report is, and end with the code of the quality gate."""
    from hpc_molgen.files import read_json

    verdict = read_json(directory / "report" / "report.json")["verdict"]
    typer.echo(f"{verdict['sentence']}\nreport: {directory / 'report' / 'report.html'}")
    if not verdict["gate_passed"]:
        raise typer.Exit(EXIT_GATE_FAILED)


@app.command()
def farm(
    config: Annotated[str, typer.Argument(metavar="DIR|PRESET|CONFIG.yaml", help="a run directory, or what makes one")],
    starts: Annotated[
        Path | None, typer.Option(help="a folder of PDB files (weights.csv: lines file,weight) or an ensemble .h5")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="run directory; runs/NAME by default")] = None,
    assignments: Assignments = None,
    resume: Annotated[bool, typer.Option("--resume", help="only go on: refuse to begin a farm")] = False,
    share: Annotated[str, typer.Option(metavar="K/N", callback=_share, help="be job K (0 to N-1) of N that share it")] = "0/1",
) -> None:
    """Run molecular dynamics from many structures: here, under mpiexec or srun, or as jobs that share the farm."""
    from hpc_molgen.molecules import is_done
    from hpc_molgen.pipeline import run_stages
    from hpc_molgen.run import Run
    from hpc_molgen.workers import Workers

    number, of = (int(part) for part in share.split("/"))
    workers = Workers.detect((number, of))
    _log_to_stderr(quiet=not workers.is_root)
    _guard_ranks(workers)
    if Path(config).is_dir():
        if starts or assignments or out:
            raise InputError(
                f"{config} is a run directory, its config.yaml says what is run: leave out --starts, --set and --out"
            )
        opened = Run.open(Path(config), workers)
    else:
        given = [*(assignments or []), *([f"farm.starts={json.dumps(str(starts))}"] if starts else [])]
        resolved = _resolved(config, given)
        opened = Run.create(out or Path("runs") / resolved.name, resolved, workers)
    folders = opened.directory.glob("molecules/*") if opened.config.molecules else [opened.directory]
    if resume and not any((folder / "farm" / "plan.json").is_file() for folder in folders):
        raise InputError(f"{opened.directory}: there is no farm that could go on; leave out --resume to begin one")
    run_stages(opened, ["farm"])
    if workers.is_root and is_done(opened, "farm"):
        found = opened.details("farm")
        done, n_molecules = found["n_replicas"] - found["n_failed"], len(opened.config.molecules)
        of_many = f" of {n_molecules} molecules" if n_molecules else ""
        manifest = opened.path(*(("molecules", "*") if n_molecules else ()), "farm", "manifest.jsonl")
        typer.echo(
            f"{done} of {found['n_replicas']} replicas{of_many} done, {found['simulated_ns']:.4g} ns, "
            f"{found['ns_per_day_per_core']:.4g} ns/day/core on {found['platform']}: {manifest}"
        )


@app.command()
def check(config: Config, assignments: Assignments = None) -> None:
    """Print the resolved configuration, or every error in it at once."""
    from hpc_molgen.config import dump_config

    typer.echo(dump_config(_resolved(config, assignments)), nl=False)


@app.command()
def presets(name: Annotated[str | None, typer.Argument(help="print this preset")] = None) -> None:
    """List the presets, or print one."""
    from hpc_molgen.config import PRESETS, preset_names

    if name is None:
        for preset in preset_names():
            first = (PRESETS / f"{preset}.yaml").read_text().splitlines()[0]
            typer.echo(f"{preset:32s} {first.lstrip('# ')}")
        return
    if name not in preset_names():
        raise InputError(f"there is no preset '{name}'; the presets are: {', '.join(preset_names())}")
    typer.echo((PRESETS / f"{name}.yaml").read_text(), nl=False)


@app.command()
def status(directory: Directory, as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False) -> None:
    """Show what each stage of a run is doing: state, progress, time left, its Slurm job, last error."""
    from hpc_molgen.launch.follow import as_text, follow

    rows = follow(directory)
    for line in [json.dumps(rows, indent=2)] if as_json else as_text(rows):
        typer.echo(line)


@app.command()
def report(
    directory: Directory,
    show: Annotated[bool, typer.Option("--open", help="open it in a browser")] = False,
    cost_per_core_hour: Annotated[float | None, typer.Option(min=0, help="adds money, in any currency")] = None,
    cost_per_gpu_hour: Annotated[float | None, typer.Option(min=0, help="in the same one")] = None,
) -> None:
    """Write the efficiency report of a run again, or a picture of how its training stands if it is not that far."""
    from hpc_molgen.molecules import is_done
    from hpc_molgen.pipeline import run_stages
    from hpc_molgen.run import Run

    _log_to_stderr(quiet=False)
    opened = Run.open(directory)
    if not is_done(opened, "train"):
        from hpc_molgen.efficiency.training_report import write_training_report

        typer.echo(f"training: {write_training_report(opened)}")
        return
    given = {"cost_per_core_hour": cost_per_core_hour, "cost_per_gpu_hour": cost_per_gpu_hour}
    given = {name: price for name, price in given.items() if price is not None}
    prices = opened.config.report.model_copy(update=given)
    opened.config = opened.config.model_copy(update={"report": prices})
    run_stages(opened, ["report"], again=True)
    if show:
        webbrowser.open((directory / "report" / "report.html").resolve().as_uri())
    _finish(directory)


@app.command()
def benchmark(
    suite: Annotated[str, typer.Argument(help="a suite; or list, compare, guard, report, schema")],
    records: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE ...]", help="compare: BEFORE.json AFTER.json; guard: FLOORS.yaml RECORD.json ...; report: FOLDER"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="where results go")] = Path("benchmark-results"),
    size: Annotated[str, typer.Option(help="smoke (seconds), laptop (minutes) or cluster (hours of a node)")] = "laptop",
    seed: Annotated[int, typer.Option(help="base seed")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="scaling: print what to expect on a cluster")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="key=value", help="scaling: one setting; repeatable")
    ] = None,
    cost_per_core_hour: Annotated[float | None, typer.Option(min=0, help="report: adds money, in any currency")] = None,
    cost_per_gpu_hour: Annotated[float | None, typer.Option(min=0, help="report: in the same one")] = None,
) -> None:
    """Run a benchmark suite and write its record and its table, compare two records, or report on a folder of them."""
    from hpc_molgen.efficiency.suites import SUITES, TOOLS, run_suite, use_records
    from hpc_molgen.workers import Workers

    if suite == "list":
        for name in SUITES:
            typer.echo(name)
        return
    given = {"cost_per_core_hour": cost_per_core_hour, "cost_per_gpu_hour": cost_per_gpu_hour}
    prices = {name: price for name, price in given.items() if price is not None}
    if prices and suite != "report":
        raise InputError(f"prices are for 'benchmark report FOLDER'; '{suite}' counts no money")
    if suite in TOOLS:
        text, passed = use_records(suite, records or [], **prices)
        typer.echo(text, nl=False)
        raise typer.Exit(0 if passed else EXIT_GATE_FAILED)
    if records:
        raise InputError(f"'{suite}' takes no files; {', '.join(TOOLS)} do")
    workers = Workers.detect() if suite == "scaling" else Workers()
    _log_to_stderr(quiet=not workers.is_root)
    _guard_ranks(workers)
    path = run_suite(suite, size, out, seed, plan=plan, assignments=assignments)
    if plan and path is not None:
        typer.echo(path.with_suffix(".md").read_text())
    if path is not None:
        typer.echo(str(path))


@app.command()
def submit(
    config: Config,
    site: Annotated[str, typer.Option(help="a site's name in slurm/sites or a site file")],
    out: Annotated[Path | None, typer.Option(help="run directory; runs/NAME by default")] = None,
    assignments: Assignments = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", callback=_stage, help="submit this stage alone")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="STAGE", callback=_stage, help="submit up to this stage")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the sbatch scripts and submit nothing")] = False,
) -> None:
    """Submit the stages as dependent Slurm jobs through submitit."""
    from hpc_molgen.launch.submit import submit_stages

    resolved = _resolved(config, assignments)
    stages = _stages(only, None, end)
    for line in submit_stages(resolved, site, out or Path("runs") / resolved.name, stages, dry_run=dry_run):
        typer.echo(line)


@container.command("check")
def check_container(image: Annotated[Path, typer.Argument(metavar="IMAGE", help="an image from containers/")]) -> None:
    """Try an image on this machine: start, versions, MPI with the mpiexec here, CUDA, folders that can be written."""
    from hpc_molgen.launch.container import check as checks

    failed = []
    for found in checks(image):
        typer.echo(found.line())
        failed += [found.name] if found.ok is False else []
    if failed:
        raise EnvironmentProblem(f"{image}: not in order here: {', '.join(failed)}")


def _log_to_stderr(*, quiet: bool) -> None:
    level = logging.WARNING if quiet else os.environ.get("HPC_MOLGEN_LOG", "INFO").upper()
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for name in ("submitit", "matplotlib", "numexpr", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _guard_ranks(workers: Workers) -> None:
    """Under MPI an error on one rank ends all of them, with its message, instead of leaving the others waiting."""
    if workers.comm is None:
        return

    def hook(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        sys.__excepthook__(kind, value, trace)
        workers.abort(EXIT_BUG)

    sys.excepthook = hook
    _state["workers"] = workers


_state: dict[str, Any] = {}


def _end(message: str, exit_code: int) -> NoReturn:
    interrupts.leave_word()
    interrupts.keep_exit_code()
    workers = _state.get("workers")
    if workers is not None and workers.size > 1:
        interrupts.ignore()
    print(message, file=sys.stderr, flush=True)
    if workers is not None and exit_code != EXIT_GATE_FAILED:
        workers.abort(exit_code)
    sys.exit(exit_code)


def main() -> None:
    """Run the command line; turn errors into one message and an exit code."""
    interrupts.install()
    try:
        exit_code = app(standalone_mode=False)  # typer returns the code of typer.Exit, and 130 for Ctrl-C
        if exit_code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt
        workers = _state.get("workers")
        if workers is not None:
            workers.leave_at_exit(exit_code or 0)
        sys.exit(exit_code or 0)
    except HpcMolgenError as error:
        if interrupts.came() and error.exit_code != EXIT_INTERRUPTED:
            _end(_INTERRUPTED, EXIT_INTERRUPTED)
        _end(f"hpc-molgen: {error}", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _end(_INTERRUPTED, EXIT_INTERRUPTED)
    except Exception as error:
        if interrupts.came():
            _end(_INTERRUPTED, EXIT_INTERRUPTED)
        # click is typer's own dependency: usage errors carry their exit code and print themselves
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            sys.exit(error.exit_code)
        if isinstance(error, OSError) and error.errno == 28:
            _end(f"hpc-molgen: the disk is full ({error}); make space and give the same command again, it goes on", 2)
        raise
