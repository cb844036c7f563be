"""The sample stage: shards of samples, each drawn from its own seed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen import temperatures
from hpc_molgen.config import ANCESTRAL_STEPS, ODE_STEPS, PATH_STEPS, SampleConfig, dump_config
from hpc_molgen.datasets import load_channels
from hpc_molgen.ensemble import Ensemble, read_attributes, read_ensemble, write_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.trajectories import TrajectorySet, read_trajectories
from hpc_molgen.workers import Stopwatch, local_rank

if TYPE_CHECKING:
    import torch

    from hpc_molgen.representations.base import Representation
    from hpc_molgen.representations.cvs import CollectiveVariables
    from hpc_molgen.run import Run
    from hpc_molgen.surrogates.base import Surrogate

log = logging.getLogger(__name__)
N_ROUND_TRIPS = 256
ROUND_TRIP_LIMIT = 0.1  # of ln q: far below the spread of any log weight


@dataclass(frozen=True)
class Shard:
    """A range of samples that one worker draws."""

    index: int
    start: int
    n: int
    system: MolecularSystem
    config: SampleConfig
    seed: int
    surrogate: Path
    representation: Path
    path: Path
    dt_ps: float
    kelvin: float | None = None  # the system's


def n_steps(config: SampleConfig) -> int:
    """Steps of the sampler: as asked for, else what the sampler needs (0: chosen by the tolerance)."""
    needed = {"ode": ODE_STEPS[config.integrator], "path": PATH_STEPS, "ancestral": ANCESTRAL_STEPS}
    return config.n_steps or needed[config.sampler]


def plan_shards(run: Run) -> list[Shard]:
    """Cut the samples of every temperature into shards by index; the cut does not depend on the number of workers."""
    config, shards = run.config.sample, []
    others = config.temperatures_kelvin if temperatures.are_drawn(run.config) else ()
    files = (run.path("train", "surrogate.safetensors"), run.path("featurize", "representation.safetensors"))
    for kelvin in (None, *others):
        for index, start in enumerate(range(0, config.n_samples, config.shard_size)):
            n, stem = min(config.shard_size, config.n_samples - start), f"shard-{index:05d}"
            path = run.path("sample", f"{stem}.h5" if kelvin is None else temperatures.file_name(stem, kelvin))
            own = (run.system, config, run.config.seed, *files, path, run.config.reference.save_every_ps, kelvin)
            shards.append(Shard(index, start, n, *own))
    return shards


def sample_shard(shard: Shard) -> dict[str, float]:
    """Draw one shard and write it; return its cost. A finished shard is kept."""
    if not shard.path.exists():
        _draw(shard)
    attributes = read_attributes(shard.path)
    return {"cpu_s": float(attributes["cpu_s"]), "wall_s": float(attributes["wall_s"])}


def _draw(shard: Shard) -> None:
    import torch  # here, so that merging the shards of an array starts without it

    from hpc_molgen.representations.base import load_representation
    from hpc_molgen.surrogates.base import load_surrogate

    torch.set_num_threads(1)  # shards are the parallelism: one core each
    watch = Stopwatch()
    surrogate = load_surrogate(shard.surrogate, shard.system.key)
    if torch.cuda.is_available():
        surrogate = surrogate.to(f"cuda:{local_rank() % torch.cuda.device_count()}")
    representation = load_representation(shard.representation, shard.system)
    if surrogate.of == "trajectories":
        _draw_series(shard, surrogate, representation, watch)
        return
    system, seed, level = shard.system, derive_seed(shard.seed, "sample", shard.index), None
    if shard.kelvin is not None:
        system, seed = system.at(shard.kelvin), derive_seed(shard.seed, "sample", f"{shard.kelvin:g} K", shard.index)
        level = float(np.log(shard.kelvin / shard.system.temperature_kelvin))
    _, positions, log_density = draw_structures(surrogate, representation, shard.config, shard.n, seed, level)
    parent = np.arange(shard.start, shard.start + shard.n)
    ensemble = Ensemble.create(system, positions, log_density=log_density, parent=parent)
    attributes = {"cpu_s": watch.cpu_s, "wall_s": watch.wall_s}
    write_ensemble(shard.path, ensemble, system, seed=shard.seed, attributes=attributes)


def draw_structures(
    surrogate: Surrogate,
    representation: Representation,
    config: SampleConfig,
    n: int,
    seed: int,
    log_temperature: float | None = None,
) -> tuple[torch.Tensor, np.ndarray, np.ndarray | None]:
    """Draw features (n, n_features), their positions (n, n_atoms, 3), and ln q (n,) of these, as the configuration asks.

    Of the sampler 'path', what stands for ln q in a weight on paths (`surrogates/diffusion/path.py`), with the same Jacobian.
    A representation without a density of positions needs none of features. `log_temperature` is ln(T / T0), for surrogates of
    one pass.

    Raises
    ------
    InputError
        If ln q is asked for and the surrogate knows none.
    """
    wanted = config.log_density and config.sampler != "ancestral" and representation.density != "none"
    if wanted and not surrogate.has_log_density:
        raise InputError("sample.log_density: this surrogate knows no ln q; set it and correct.weights to false")
    how = {"integrator": config.integrator, "tolerance": config.tolerance, "compile": config.compile}
    options: dict[str, Any] = {"sampler": config.sampler, "n_steps": n_steps(config), "log_density": wanted, **how}
    if log_temperature is not None:
        options["log_temperature"] = log_temperature
    features, log_q = surrogate.sample(n, seed, **options)
    positions, log_abs_det = representation.decode(features.cpu())
    return features.cpu(), positions.numpy(), None if log_q is None else (log_q.cpu() - log_abs_det).numpy()


def _draw_series(shard: Shard, surrogate: Surrogate, variables: Representation, watch: Stopwatch) -> None:
    """Draw whole trajectories of collective variables."""
    from hpc_molgen.representations.cvs import CollectiveVariables

    if not isinstance(variables, CollectiveVariables):
        raise InputError(
            "sampling trajectories needs representation.name cvs or latent: other features have no name to be read by"
        )
    numbers, labels = np.arange(shard.start, shard.start + shard.n), variables.labels
    seed, config = derive_seed(shard.seed, "sample", shard.index), shard.config
    channels = sample_channels(
        surrogate, variables, shard.representation.parent, numbers, seed, config.n_frames, config.segment_frames
    )
    made = TrajectorySet(
        tuple(variables.features(channels)), variables.names, variables.units, shard.dt_ps,
        tuple(f"generated {number}" for number in numbers), (), labels.names,
        tuple(map(tuple, labels.values[numbers % len(labels.values)].tolist())),
    )  # fmt: skip
    made.write(shard.path, {"cpu_s": watch.cpu_s, "wall_s": watch.wall_s})


def sample_channels(
    surrogate: Surrogate,
    variables: CollectiveVariables,
    featurize: Path,
    numbers: np.ndarray,
    seed: int,
    n_frames: int | None,
    segment: int | None = None,
) -> np.ndarray:
    """Draw series of channels (n, n_frames, n_channels), whose labels come in turn by their `numbers` (n,).

    Parameters
    ----------
    featurize : Path
        Directory of that stage: surrogates that continue a frame are given training frames of the nearest label.
    segment : int, optional
        Frames of the segments that are joined.
    """
    import torch

    conditions = variables.labels.values[numbers % len(variables.labels.values)]
    options: dict[str, Any] = {"n_frames": n_frames, "segment": segment}
    if variables.labels.names:
        options["conditions"] = torch.as_tensor(variables.labels.scaled(conditions))
    if surrogate.hyperparameters["start_frame"]:
        options["start"] = torch.as_tensor(_first_frames(featurize, conditions, seed))
    channels, _ = surrogate.sample(len(numbers), seed, **options)
    return np.asarray(channels.cpu().numpy())


def _first_frames(featurize: Path, conditions: np.ndarray, seed: int) -> np.ndarray:
    """Draw a training frame of the nearest label for each row of conditions: shape (n, n_channels)."""
    train, generator = load_channels(featurize, "train"), numpy_generator(seed, "start")
    ends, lengths, frames = train.ends, np.array(train.n_frames), []
    for row in conditions:
        distance = np.abs(train.conditions - row).sum(axis=1)
        own = np.flatnonzero(distance == distance.min())
        series = generator.choice(own, p=lengths[own] / lengths[own].sum())
        frames.append(train.values[ends[series] - 1 - generator.integers(lengths[series])])
    return np.array(frames)


def merge_shards(run: Run, shards: list[Shard], costs: list[dict[str, float]]) -> dict[str, Any]:
    """Join the shards into proposals.h5, or trajectories.h5, and return the figures of the stage."""
    if run.config.makes_trajectories:
        return _merge_series(run, shards, costs)
    paid = dict(zip([shard.path for shard in shards], costs, strict=True))
    ensemble = _join(run, [shard for shard in shards if shard.kelvin is None])
    others = sorted({shard.kelvin for shard in shards if shard.kelvin is not None})
    for kelvin in others:
        _join(run, [shard for shard in shards if shard.kelvin == kelvin])
    for shard in shards:
        shard.path.unlink()
    cpu_s = sum(paid[shard.path]["cpu_s"] for shard in shards if shard.kelvin is None)
    figures = {"n": len(ensemble), "cpu_s": cpu_s, "samples_per_cpu_s": len(ensemble) / cpu_s}
    figures["other_temperatures_cpu_s"] = sum(paid[shard.path]["cpu_s"] for shard in shards if shard.kelvin is not None)
    return figures | _density_figures(run, ensemble)


def _join(run: Run, shards: list[Shard]) -> Ensemble:
    """Write the proposals of one temperature."""
    kelvin = shards[0].kelvin
    system = run.system if kelvin is None else run.system.at(kelvin)
    path = run.path("sample", "proposals.h5" if kelvin is None else temperatures.file_name("proposals", kelvin))
    ensemble = Ensemble.concatenate([read_ensemble(shard.path, system) for shard in shards])
    write_ensemble(path, ensemble, system, seed=run.config.seed, config_yaml=dump_config(run.config))
    return ensemble


def _density_figures(run: Run, ensemble: Ensemble) -> dict[str, Any]:
    """What ln q the samples have ("exact", "path" or "none"), its network evaluations, and how exact the integrator is."""
    config = run.config.sample
    if run.details("featurize").get("density") == "none":
        return {"density": "none"}  # ln q of features is neither asked for nor of any use
    if run.config.surrogate.name == "flow":
        return {"density": "exact" if config.log_density else "none", "network_evaluations": 1}
    if config.sampler != "ode":
        density = "path" if config.sampler == "path" and config.log_density else "none"
        return {"density": density, "network_evaluations": n_steps(config)}
    import torch

    from hpc_molgen.representations.base import load_representation
    from hpc_molgen.surrogates.base import load_surrogate
    from hpc_molgen.surrogates.diffusion.round_trip import round_trip

    torch.set_num_threads(1)
    surrogate = load_surrogate(run.path("train", "surrogate.safetensors"), run.system.key)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    some = representation.encode(torch.as_tensor(ensemble.positions_nm[:N_ROUND_TRIPS]))
    found = round_trip(surrogate, some, config.integrator, n_steps(config), config.tolerance)
    figures, remedy = found.figures(), "lower sample.tolerance" if config.integrator == "adaptive" else "raise sample.n_steps"
    if config.log_density and figures["log_density_rms"] > ROUND_TRIP_LIMIT:
        away = figures["log_density_rms"]
        log.warning("sample: ln q is off by %.2g (root mean square) after a way to the prior and back; %s", away, remedy)
    density = "exact" if config.log_density else "none"
    return {"density": density, "network_evaluations": found.n_evaluations, "round_trip": figures}


def _merge_series(run: Run, shards: list[Shard], costs: list[dict[str, float]]) -> dict[str, Any]:
    made = TrajectorySet.concatenate([read_trajectories(shard.path) for shard in shards])
    made.write(run.path("sample", "trajectories.h5"))
    for shard in shards:
        shard.path.unlink()
    cpu_s, n_frames = sum(cost["cpu_s"] for cost in costs), sum(made.n_frames)
    return {"n": len(made), "n_frames": n_frames, "cpu_s": cpu_s, "frames_per_cpu_s": n_frames / cpu_s}
