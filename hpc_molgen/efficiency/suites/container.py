"""Suite `container`: the same dynamics inside an image and outside, in turn on one core, and how fast an image starts.

A process waits inside the image and one outside; one computes, the other sleeps. Both serve `python3 -m` of this file. Where a
process finds its memory makes it faster or slower by several per cent for as long as it lives, so there are many pairs of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from hpc_molgen.config import SystemConfig
from hpc_molgen.containers import engine, engine_environment, image_sum
from hpc_molgen.efficiency.suites.record import Costs, spread
from hpc_molgen.efficiency.suites.rounds import Method, interleaved, target, target_sentence
from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.systems.registry import load_system
from hpc_molgen.workers import Stopwatch

IMAGE = "HPC_MOLGEN_CONTAINER"  # as for the scripts of slurm/
_ENGINES = {"kernel": "batched kernel, 64 copies, float32", "reference": "OpenMM Reference, one copy"}
_PLACES = ("outside", "inside")


@dataclass(frozen=True)
class Settings:
    """What one size of the suite fixes: pairs of processes, rounds of each, wall seconds of each measurement, starts."""

    n_pairs: int
    n_rounds: int
    measure_s: float
    n_starts: int


SIZES = {
    "laptop": Settings(60, 4, 0.5, 10),
    "smoke": Settings(2, 2, 0.2, 2),
    "cluster": Settings(300, 4, 1.0, 50),
}


def container(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Measure the image that the variable HPC_MOLGEN_CONTAINER names.

    Raises
    ------
    InputError
        When it names none.
    EnvironmentProblem
        When there is no engine, or the image does not start.
    """
    del out, seed
    image = Path(os.environ.get(IMAGE) or "none").resolve()
    if not image.exists():
        raise InputError(f"set {IMAGE} to the path of an image (containers/build.sh makes one)")
    settings, costs, program = SIZES[size], Costs(), engine()
    core = sorted(os.sched_getaffinity(0))[0]
    watch = Stopwatch(children=True)
    starts = _starts([program, "run", str(image), "--help"], settings.n_starts)
    costs.add("start", watch.cpu_s, watch.wall_s)
    served = [sys.executable, "-m", __name__], [program, "exec", str(image), "python3", "-m", __name__]
    watch = Stopwatch(children=True)
    pairs = [_pair([[*command, str(core)] for command in served], settings) for _ in range(settings.n_pairs)]
    costs.add("molecular dynamics", watch.cpu_s, watch.wall_s)
    return _record(settings, size, image, starts, pairs, costs)


def _pair(commands: Sequence[list[str]], settings: Settings) -> dict[str, Any]:
    """Measure one process outside and one inside, in turn."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_served(command)) for command in commands]
        methods = [
            Method(
                f"{name} {place}", f"{words}, {place}", server.run(name), server.n_steps[name], f"{name} outside",
                cpu_clock=lambda server=server: server.cpu_s,  # type: ignore[misc]
            )
            for name, words in _ENGINES.items()
            for place, server in zip(_PLACES, servers, strict=True)
        ]  # fmt: skip
        return interleaved(methods, settings.n_rounds, settings.measure_s)


class _Server:
    """A process that takes steps when it is told to."""

    def __init__(self, pipe: IO[str], answers: IO[str]) -> None:
        self._pipe, self._answers, self.cpu_s = pipe, answers, 0.0
        self.n_steps: dict[str, int] = self._answer()

    def run(self, name: str) -> Callable[[], None]:
        """Return a call that takes the steps of one engine."""
        return partial(self._run, name)

    def _run(self, name: str) -> None:
        print(name, file=self._pipe, flush=True)
        self.cpu_s += self._answer()["cpu_s"]

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise EnvironmentProblem("the process that was to be measured has ended; its error is above")
        return json.loads(line)


@contextlib.contextmanager
def _served(command: list[str]) -> Iterator[_Server]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=engine_environment() | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield _Server(process.stdin, process.stdout)
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _starts(command: list[str], n: int) -> list[float]:
    seconds = []
    for _ in range(n + 1):
        begun = time.perf_counter()
        ended = subprocess.run(command, env=engine_environment(), capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - begun)
        if ended.returncode:
            raise EnvironmentProblem(f"{' '.join(command)}: {ended.stderr.strip()}")
    return seconds[1:]  # the first reads the image from the disk


def _record(
    settings: Settings, size: str, image: Path, starts: list[float], pairs: list[dict[str, Any]], costs: Costs
) -> dict[str, Any]:
    megabytes = image.stat().st_size / 1e6
    targets, rows = [], []
    for name, words in _ENGINES.items():
        ratios = np.array([pair[f"{name} inside"]["ratio_cpu"]["mean"] for pair in pairs])
        overhead = spread(100 * (1 / ratios - 1))
        error = overhead["sd"] / np.sqrt(overhead["n"])
        bound = float(overhead["mean"] + 2 * error)
        targets.append(target(f"{words}: more CPU time inside, with two standard errors / %", "<= 2", bound, bound))
        speeds = [float(np.mean([pair[f"{name} {place}"]["per_cpu_s"]["mean"] for pair in pairs])) for place in _PLACES]
        rows.append([words, *speeds, f"{overhead['mean']:.2f} +- {error:.2f}"])
    targets.append(target("start of `run --help` from the page cache / s", "<= 2", spread(starts), float(np.mean(starts))))
    answer = [
        f"Inside {image.name} ({megabytes:.0f} MB): {row[0]} takes {row[3]} % more CPU time (mean, standard error)."
        for row in rows
    ]
    answer.append(f"The image answers `--help` after {np.mean(starts):.2f} s ({min(starts):.2f} to {max(starts):.2f}).")
    return {
        "question": "What does it cost to run molecular dynamics inside the image?",
        "answer": [*answer, target_sentence(targets, size)],
        "targets": targets,
        "tables": [
            {
                "caption": "Alanine dipeptide, steps a CPU second on one core",
                "columns": ["engine", "outside", "inside", "more CPU time inside / %"],
                "rows": rows,
            }
        ],
        "notes": [
            f"{settings.n_pairs} pairs of processes, {settings.n_rounds} rounds of each, {settings.measure_s:g} s inside and "
            "outside in turn, on the same core; errors are over the pairs.",
            f"Image: SHA-256 {image_sum(image)}.",
        ],
        "costs": costs.stages,
        "results": pairs,
        "config": asdict(settings),
    }


def _serve(core: int) -> None:
    """Take steps for each line that comes in, with the engine that it names, and answer with their CPU time."""
    from hpc_molgen.dynamics.batched import BatchedSystem
    from hpc_molgen.dynamics.engine import Engine
    from hpc_molgen.dynamics.langevin import BatchedDynamics

    os.sched_setaffinity(0, {core})
    system = load_system(SystemConfig())
    copies = BatchedDynamics(
        BatchedSystem(system, "float32", threads=1), np.repeat(system.positions_nm[None], 64, 0), list(range(64)),
        temperature_kelvin=system.temperature_kelvin,
    )  # fmt: skip
    single = Engine(system, "Reference", seed=1)
    calls = {"kernel": (copies.step, 500, 64), "reference": (single.step, 500, 1)}
    for step, n_steps, _ in calls.values():
        step(n_steps)
    print(json.dumps({name: n_steps * n_copies for name, (_, n_steps, n_copies) in calls.items()}), flush=True)
    for line in sys.stdin:
        step, n_steps, _ = calls[line.strip()]
        begun = time.process_time()
        step(n_steps)
        print(json.dumps({"cpu_s": time.process_time() - begun}), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
