"""The sample stage: shards of samples, each drawn from its own seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.config import SampleConfig, dump_config
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


def n_steps(config: SampleConfig) -> int:
    """Steps of the sampler: as asked for, else what the sampler needs."""
    return config.n_steps or (8 if config.sampler == "ode" else 1000)


def plan_shards(run: Run) -> list[Shard]:
    """Cut the samples into shards by index; the cut does not depend on the number of workers."""
    config = run.config.sample
    shards = []
    for index, start in enumerate(range(0, config.n_samples, config.shard_size)):
        n = min(config.shard_size, config.n_samples - start)
        files = (run.path("train", "surrogate.safetensors"), run.path("featurize", "representation.safetensors"))
        path = run.path("sample", f"shard-{index:05d}.h5")
        shards.append(
            Shard(index, start, n, run.system, config, run.config.seed, *files, path, run.config.reference.save_every_ps)
        )
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
    seed = derive_seed(shard.seed, "sample", shard.index)
    _, positions, log_density = draw_structures(surrogate, representation, shard.config, shard.n, seed)
    parent = np.arange(shard.start, shard.start + shard.n)
    ensemble = Ensemble.create(shard.system, positions, log_density=log_density, parent=parent)
    attributes = {"cpu_s": watch.cpu_s, "wall_s": watch.wall_s}
    write_ensemble(shard.path, ensemble, shard.system, seed=shard.seed, attributes=attributes)


def draw_structures(
    surrogate: Surrogate, representation: Representation, config: SampleConfig, n: int, seed: int
) -> tuple[torch.Tensor, np.ndarray, np.ndarray | None]:
    """Draw features (n, n_features), their positions (n, n_atoms, 3), and ln q (n,) of these, as the configuration asks.

    Raises
    ------
    InputError
        If ln q is asked for and the surrogate knows none.
    """
    wanted = config.log_density and config.sampler == "ode"
    if wanted and not surrogate.has_log_density:
        raise InputError("sample.log_density: this surrogate knows no ln q; set it and correct.weights to false")
    features, log_q = surrogate.sample(n, seed, sampler=config.sampler, n_steps=n_steps(config), log_density=wanted)
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
    ensemble = Ensemble.concatenate([read_ensemble(shard.path, run.system) for shard in shards])
    write_ensemble(
        run.path("sample", "proposals.h5"), ensemble, run.system, seed=run.config.seed, config_yaml=dump_config(run.config)
    )
    for shard in shards:
        shard.path.unlink()
    config = run.config.sample
    cpu_s = sum(cost["cpu_s"] for cost in costs)
    one_pass = run.config.surrogate.name == "flow"
    evaluations = 1 if one_pass else n_steps(config) * (4 if config.sampler == "ode" else 1)
    return {"n": len(ensemble), "cpu_s": cpu_s, "samples_per_cpu_s": len(ensemble) / cpu_s, "network_evaluations": evaluations}


def _merge_series(run: Run, shards: list[Shard], costs: list[dict[str, float]]) -> dict[str, Any]:
    made = TrajectorySet.concatenate([read_trajectories(shard.path) for shard in shards])
    made.write(run.path("sample", "trajectories.h5"))
    for shard in shards:
        shard.path.unlink()
    cpu_s, n_frames = sum(cost["cpu_s"] for cost in costs), sum(made.n_frames)
    return {"n": len(made), "n_frames": n_frames, "cpu_s": cpu_s, "frames_per_cpu_s": n_frames / cpu_s}
