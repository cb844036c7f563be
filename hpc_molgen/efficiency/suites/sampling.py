"""Suite `sampling`: samples a second of trained surrogates, against network evaluations and the quality of what is drawn.

A diffusion and a flow of alanine dipeptide are trained by the pipeline; then every way of drawing structures takes its turn in
every round, on one thread (or the GPU), and its own samples of that round are judged outside of the measured time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpc_molgen import interrupts
from hpc_molgen.config import Integrator, SampleConfig
from hpc_molgen.dynamics.choice import choose_energies, energy_function
from hpc_molgen.efficiency.suites import sampling_tables as tables
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.efficiency.suites.rounds import Method, interleaved
from hpc_molgen.efficiency.suites.sampling_judge import Drawer, Family, Sampler, controls, effective_rates, judge
from hpc_molgen.efficiency.suites.surrogate_pair import DIFFUSION, FLOW, Maps, Trained, device, trained_runs
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.structures import StructureChecker
from hpc_molgen.workers import one_thread

ONE_CALL_S = 1e-9  # of measuring: each round is one call of each method
YARDSTICK = "rk4-8"


@dataclass(frozen=True)
class Settings:
    """Everything that one size of the suite fixes.

    Attributes
    ----------
    n_samples, n_rounds : int
        Samples of each method in each round.
    n_trips : int
        Of them, how many go to the prior and back.
    ode : tuple of (integrator, steps)
        Drawn with exact ln q.
    tolerances : tuple of float
        Of the adaptive integrator, with exact ln q.
    raw : tuple of int
        Steps of rk4 without ln q.
    path, ancestral : tuple of int
        Noise levels.
    n_replicates : int
        Of the bootstrap.
    """

    n_samples: int
    n_rounds: int
    n_trips: int
    ode: tuple[tuple[Integrator, int], ...]
    tolerances: tuple[float, ...]
    raw: tuple[int, ...]
    path: tuple[int, ...]
    ancestral: tuple[int, ...]
    n_replicates: int = 200


MANY: tuple[tuple[Integrator, int], ...] = (
    ("rk4", 2), ("rk4", 3), ("rk4", 4), ("rk4", 6), ("rk4", 8), ("rk4", 12), ("rk4", 16), ("rk4", 24), ("euler", 16),
    ("euler", 48), ("heun", 4), ("heun", 8), ("heun", 12), ("adams", 7), ("adams", 13), ("adams", 19), ("dopri5", 3),
    ("dopri5", 5),
)  # fmt: skip
SIZES = {
    "smoke": Settings(
        200, 3, 32, (("rk4", 2), ("rk4", 4), ("rk4", 8), ("euler", 4), ("heun", 4), ("adams", 7), ("dopri5", 2)), (1e-1,), (4,),
        (8, 16), (10,), 50,
    ),
    "laptop": Settings(2000, 3, 100, MANY, (1e-2, 1e-3), (4, 8), (8, 15, 25, 50, 100), (50, 200)),
    "cluster": Settings(20_000, 6, 500, MANY, (1e-2, 1e-3, 1e-4), (2, 4, 8, 16), (8, 15, 25, 50, 100, 200), (50, 200, 1000)),
}  # fmt: skip


def sampling(size: str, out: Path, seed: int) -> dict[str, Any]:
    """Run the suite in a size of `SIZES`; draw OUT/sampling-SIZE.png; return its part of the record.

    Raises
    ------
    InputError
        When there is no such size.
    """
    if size not in SIZES:
        raise InputError(f"the suite 'sampling' has no size '{size}'; it has: {', '.join(SIZES)}")
    settings, costs, name = SIZES[size], Costs(), f"sampling-{size}"
    runs = trained_runs(size, out, [seed], costs)
    gpus = int(device() == "cuda")
    with one_thread():
        with costs.stage("reading frames and surrogates, first calls", gpus):
            trained = {kind: Trained.load(own[0]) for kind, own in runs.items()}
            maps = Maps(runs[DIFFUSION][0], derive_seed(seed, "thinnings"))
            drawers = make_drawers(settings, trained, maps, seed)
        with costs.stage(f"{settings.n_rounds} rounds of every method, each judged after its call", gpus):
            speeds = interleaved([_method(drawer, settings) for drawer in drawers], settings.n_rounds, ONE_CALL_S)
        with costs.stage("divergences and intervals"):
            methods = {
                drawer.sampler.key: speeds[drawer.sampler.key] | judge(drawer, maps, settings.n_replicates)
                for drawer in drawers
            }
            energy_s = _energy_s(drawers)
            methods = {key: row | effective_rates(row, energy_s) for key, row in methods.items()}
            bad = controls(maps, settings.n_samples, seed)
    results = {"methods": methods, "controls": bad, "device": device(), "energy_cpu_s": energy_s}
    record = tables.record_of(results, size, settings.n_rounds)
    record["figures"] = [{"file": tables.draw(out, name, methods), "caption": tables.CAPTION}]
    return {**record, "costs": costs.stages, "results": results, "config": asdict(settings)}


def make_samplers(settings: Settings) -> list[Sampler]:
    """Return all ways of drawing structures of a size."""
    made = []
    for integrator, steps in settings.ode:
        config = SampleConfig(sampler="ode", integrator=integrator, n_steps=steps)
        made.append(Sampler(f"{integrator}-{steps}", f"ODE, {integrator}, {steps} steps", Family.ODE, DIFFUSION, config))
    for tolerance in settings.tolerances:
        config = SampleConfig(sampler="ode", integrator="adaptive", tolerance=tolerance)
        made.append(Sampler(f"adaptive-{tolerance:g}", f"ODE, adaptive at {tolerance:g}", Family.ODE, DIFFUSION, config))
    for steps in settings.raw:
        config = SampleConfig(sampler="ode", n_steps=steps, log_density=False)
        made.append(Sampler(f"rk4-{steps}-raw", f"ODE, rk4, {steps} steps, no ln q", Family.RAW, DIFFUSION, config))
    for levels in settings.path:
        config = SampleConfig(sampler="path", n_steps=levels)
        made.append(Sampler(f"path-{levels}", f"weighted paths, {levels} levels", Family.PATH, DIFFUSION, config))
    for levels in settings.ancestral:
        config = SampleConfig(sampler="ancestral", n_steps=levels, log_density=False)
        made.append(Sampler(f"ancestral-{levels}", f"ancestral, {levels} levels", Family.ANCESTRAL, DIFFUSION, config))
    return [*made, Sampler("flow", "flow, one pass", Family.FLOW, FLOW, SampleConfig())]


def make_drawers(settings: Settings, trained: dict[str, Trained], maps: Maps, seed: int) -> list[Drawer]:
    """Return what draws and judges by each way, after a first call that counts for nothing."""
    system = trained[DIFFUSION].run.system
    energies = energy_function(system, choose_energies(system), settings.n_samples)
    checker = StructureChecker(system, maps.highest_energy)
    drawers = []
    for sampler in make_samplers(settings):
        interrupts.check()
        drawer = Drawer(sampler, trained[sampler.surrogate], energies, checker, settings.n_samples, settings.n_trips, seed)
        drawer.warm_up()
        drawers.append(drawer)
    return drawers


def _method(drawer: Drawer, settings: Settings) -> Method:
    sampler = drawer.sampler
    facts = {"family": sampler.family.value, "surrogate": sampler.surrogate, "log_density": sampler.config.log_density}
    return Method(sampler.key, sampler.name, drawer.draw, settings.n_samples, YARDSTICK, facts, drawer.keep)


def _energy_s(drawers: list[Drawer]) -> float:
    """CPU seconds of an energy."""
    return sum(drawer.energy_s for drawer in drawers) / sum(drawer.n * len(drawer.rounds) for drawer in drawers)
