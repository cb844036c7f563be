"""The batch script of a job, written by submitit from what the site says and what job.sh offers."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.launch.plan import Job
from hpc_molgen.launch.site import JobConfig, SiteConfig
from hpc_molgen.run import Run

if TYPE_CHECKING:
    from submitit import SlurmExecutor

_FUNCTIONS = Path(__file__).with_name("job.sh")


def slurm_executor(site: SiteConfig, job: Job, run: Run, folder: Path, name: str, after: str) -> SlurmExecutor:
    """Return submitit's executor for one job, which starts when the job `after` has ended well."""
    try:
        from submitit import SlurmExecutor
    except ImportError as error:
        raise EnvironmentProblem(f"submitit cannot be used ({error}): pip install 'hpc-molgen[slurm]'") from error

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # submitit asks for srun even to write the text of a script; we have looked for it where it matters

    asks = job.asks
    # the parts of the command are those of molgen_ranks in job.sh
    executor = Executor(
        folder, python=f'bash -c "$molgen_rank" submitit "${{molgen_prefix[@]}}" {shlex.quote(asks.python_command)}'
    )
    executor.update_parameters(
        job_name=name,
        partition=asks.partition,
        account=asks.account,
        qos=asks.qos,
        constraint=asks.constraint,
        nodes=asks.nodes,
        ntasks_per_node=asks.tasks_per_node,
        cpus_per_task=asks.cpus_per_task,
        gpus_per_node=asks.gpus_per_node if asks.n_gpus else None,
        mem=asks.memory,
        time=asks.minutes,
        array_parallelism=asks.array_at_once or job.array,
        setup=_setup(asks, run, folder),
        additional_parameters=_options(site, asks, after),
        stderr_to_stdout=True,
        wckey=None,  # submitit's own default key is refused by clusters that keep books of them
        # srun does not take --cpus-per-task from sbatch since Slurm 22.05, and lets the others wait for a rank that died
        srun_args=[
            f"--mpi={'none' if job.trains else asks.mpi}", "--kill-on-bad-exit=1", f"--cpus-per-task={asks.cpus_per_task}"
        ],
    )  # fmt: skip
    return executor


def script_text(executor: SlurmExecutor, job: Job) -> str:
    """Return the script that would be submitted."""
    if job.array > 1:
        executor.parameters["map_count"] = job.array
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def _options(site: SiteConfig, asks: JobConfig, after: str) -> dict[str, object]:
    options: dict[str, object] = {
        "signal": f"USR2@{asks.warn_seconds}",  # to the ranks, whatever signal submitit itself would listen to
        "requeue": True,  # after a node failure too, even where the cluster's default is not to
        "kill-on-invalid-dep": "yes",  # else the jobs after a failed one stay in the queue for ever
    }
    if after:
        options["dependency"] = f"afterok:{after}"
    if site.mail:
        options |= {"mail-user": site.mail, "mail-type": "END,FAIL"}
    return options


def _setup(asks: JobConfig, run: Run, folder: Path) -> list[str]:
    """Shell lines before the ranks start: the site's, then our own, so that the script needs no other file."""
    lines = []
    for module in asks.modules:
        name = shlex.quote(module)
        lines.append(f"module load {name} || {{ echo hpc-molgen: module load {name} failed: modules of the site; exit 2; }}")
    lines += asks.setup
    lines.append("unset ${!HPC_MOLGEN_CONTAINER*}")  # the submitting shell's are not this site's
    if asks.container:
        read = _folders_read(run)
        for path in (*read, str(run.directory), str(folder)):
            if set(path) & {",", ":"}:
                raise InputError(f"{path}: with a comma or a colon in its name an image cannot be given it; rename it")
        binds = [*asks.container_binds, *read]
        values = {"": asks.container, "_BINDS": ",".join(binds), "_OPTIONS": " ".join(asks.container_options)}
        lines += [f"HPC_MOLGEN_CONTAINER{name}={shlex.quote(value)}" for name, value in values.items()]
    folders = dict.fromkeys([run.directory, run.directory if folder.is_relative_to(run.directory) else folder])
    # submitit's own answer to a signal would end a long job; the ranks' answer is that of `interrupts`
    return [
        *lines,
        _FUNCTIONS.read_text().rstrip(),
        "export SUBMITIT_PREEMPT_SIGNAL=URG",
        f"molgen_begin {shlex.join(map(str, folders))}",
    ]


def _folders_read(run: Run) -> list[str]:
    """Folders of the files that the configuration names (structures, trajectories, other runs): an image must see them."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for inner in value.values():
                yield from texts(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from texts(inner)

    named = [Path(text) for text in texts(run.config.model_dump()) if text.startswith("/")]
    # a file's folder, for a thousand trajectories are one bind; not one that would hide a folder of the image itself
    seen = {path if path.is_dir() or len(path.parts) < 4 else path.parent for path in named if path.exists()}
    return sorted(str(path) for path in seen if not path.is_relative_to(run.directory))
