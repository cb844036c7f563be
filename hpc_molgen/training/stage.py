"""The train stage: data, surrogate and loop put together."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hpc_molgen import datasets
from hpc_molgen.config import GanConfig, TransferableConfig
from hpc_molgen.ensemble import Ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import Representation, load_representation
from hpc_molgen.representations.cvs import CollectiveVariables, Labels
from hpc_molgen.run import trained_file
from hpc_molgen.seeding import derive_seed
from hpc_molgen.surrogates.base import Surrogate, surrogate_class
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import process_group
from hpc_molgen.training.loop import Trainer

if TYPE_CHECKING:
    from hpc_molgen.config import SurrogateConfig, TrainConfig
    from hpc_molgen.run import Run

MAX_WINDOWS = 2_000_000
ABOUT_ITEMS = ("windows", "time_bins", "scores")  # of the data, not of the network
ABOUT_TUNING = ("trained", "tune_steps", "tune_learning_rate", "tune_rehearsal")
REHEARSED, TOGETHER = 5000, 1000  # own samples of a surrogate that is tuned, and how many of them are drawn at once


def build_surrogate(
    config: SurrogateConfig, representation: Representation, seed: int, log_temperature: float = 0.0
) -> Surrogate:
    """Make an untrained surrogate for a representation, its weights drawn from the seed.

    `log_temperature` is ln(T' / T0) of the frames, at T', that the representation was fitted to.
    """
    kind = surrogate_class(config.name)
    torch.manual_seed(derive_seed(seed, "surrogate"))
    if isinstance(config, TransferableConfig):
        return _of_graph(config, representation)
    sizes: dict[str, Any] = {"n_torus": representation.n_torus, "n_euclidean": representation.n_euclidean}
    if kind.one_pass:
        sizes["prior_log_temperature"] = -log_temperature
    if kind.of == "trajectories":
        sizes = {"n_channels": 2 * representation.n_torus + representation.n_euclidean}
        if isinstance(representation, CollectiveVariables):
            sizes["n_conditions"] = len(representation.labels.names)
    return kind(**sizes, **config.model_dump(exclude={"name", *ABOUT_ITEMS}))


def _of_graph(config: TransferableConfig, representation: Representation) -> Surrogate:
    """Return a surrogate that is bound to one molecule, trained before on others or not at all."""
    from hpc_molgen.surrogates.diffusion.transferable import TransferableDiffusion

    graph = representation.graph()
    if config.trained is not None:
        return TransferableDiffusion.for_molecule(trained_file(Path(config.trained)), graph, representation.n_euclidean)
    sizes = config.model_dump(exclude={"name", *ABOUT_TUNING})
    return TransferableDiffusion([graph.as_dict()], representation.n_euclidean, graph.residue_types(), **sizes)


def structures(
    ensemble: Ensemble,
    representation: Representation,
    log_temperature: float = 0.0,
    *,
    told: bool = False,
    angles_alone: bool = False,
) -> TrainingSet:
    """Frames as items, drawn by their Boltzmann weights at a temperature, given as ln(T / T0).

    If `told`, that number comes as a last feature.
    """
    encode = representation.encode_torus if angles_alone else representation.encode
    features = encode(torch.as_tensor(ensemble.positions_nm, dtype=torch.float64))
    if told:
        features = torch.cat([features, features.new_full((len(features), 1), log_temperature)], dim=1)
    return TrainingSet(features, torch.as_tensor(datasets.boltzmann_weights(ensemble, log_temperature)))


def windows(ensemble: Ensemble, representation: Representation, length: int) -> TrainingSet:
    """Windows of `length` consecutive frames as items, half overlapping; angles as (cos, sin).

    Raises
    ------
    InputError
        When no trajectory is that long.
    """
    features = representation.encode(torch.as_tensor(ensemble.positions_nm, dtype=torch.float64))
    angles = features[:, : representation.n_torus]
    channels = torch.cat([torch.cos(angles), torch.sin(angles), features[:, representation.n_torus :]], dim=1)
    trajectory = torch.tensor(ensemble.trajectory)
    ends = torch.nonzero(trajectory[1:] != trajectory[:-1]).flatten() + 1
    edges = [0, *ends.tolist(), len(trajectory)]
    stride = max(1, length // 2)
    starts = [start for a, b in itertools.pairwise(edges) for start in range(a, b - length + 1, stride)]
    if not starts:
        longest = max(b - a for a, b in itertools.pairwise(edges))
        raise InputError(f"surrogate.n_frames {length}: the longest reference trajectory has {longest} frames")
    return TrainingSet(channels, torch.ones(len(starts)), torch.tensor(starts), length)


def training_sets(run: Run, representation: Representation) -> tuple[TrainingSet, TrainingSet]:
    """Return what the run's surrogate trains on and what it never sees, split by trajectory.

    Raises
    ------
    InputError
        When trajectories are asked for and the reference is biased or tempered: weights give back its averages, not its
        kinetics.
    """
    config, reference = run.config.surrogate, run.config.reference
    if not isinstance(config, GanConfig):
        train, held_out = datasets.load_split(run)
        hotter = datasets.training_log_temperature(run)
        told = hotter > 0 and surrogate_class(config.name).one_pass
        alone = isinstance(config, TransferableConfig)
        held = structures(held_out, representation, angles_alone=alone)
        return structures(train, representation, hotter, told=told, angles_alone=alone), held
    if not reference.trajectories and (reference.bias_torsion or reference.tempering_kelvin):
        raise InputError(
            "a surrogate of trajectories learns the kinetics of plain MD: set reference.bias_torsion to null and "
            "reference.tempering_kelvin to []"
        )
    length = config.n_frames + config.start_frame
    if isinstance(representation, CollectiveVariables):
        labels = representation.labels
        return _windows_on_disk(run, "train", config, length, labels), _windows_on_disk(run, "held_out", config, length, labels)
    train, held_out = datasets.load_split(run)
    return windows(train, representation, length), windows(held_out, representation, length)


def held_out_set(run: Run, representation: Representation) -> TrainingSet:
    """Return held-out frames as items, for surrogates of structures."""
    alone = isinstance(run.config.surrogate, TransferableConfig)
    return structures(datasets.load_split(run)[1], representation, angles_alone=alone)


def _windows_on_disk(run: Run, side: str, config: GanConfig, length: int, labels: Labels) -> TrainingSet:
    """Windows of the channels that `featurize` wrote; pages are read when a batch wants them."""
    channels = datasets.load_channels(run.path("featurize"), side)
    starts = window_starts(channels.n_frames, length, config.windows, config.time_bins)
    own = None
    if labels.names:
        scaled = labels.scaled(channels.conditions)[np.searchsorted(channels.ends, starts, side="right")]
        own = torch.as_tensor(scaled, dtype=torch.float32)
    with warnings.catch_warnings():  # that the map cannot be written
        warnings.simplefilter("ignore", UserWarning)
        features = torch.from_numpy(channels.values)
    return TrainingSet(features, torch.ones(len(starts)), torch.as_tensor(starts), length, own)


def window_starts(lengths: Sequence[int], length: int, how: str, time_bins: int) -> np.ndarray:
    """Return the first frames of windows of `length` frames in series that follow each other.

    Parameters
    ----------
    how : str
        "random": every window (of long data every n-th, so that there are at most two million); "chunks": one after the
        other; "bins": the first window of each of `time_bins` equal parts of every series; "whole": series of just this
        length.

    Raises
    ------
    InputError
        When there is no such window.
    """
    edges = np.concatenate([[0], np.cumsum(lengths)])
    total = sum(max(0, n - length + 1) for n in lengths)
    starts = []
    for first, n in zip(edges, lengths, strict=False):
        last = n - length
        if last < 0 or (how == "whole" and last):
            continue
        if how == "bins":
            own = np.arange(time_bins) * n // time_bins
            own = own[own <= last]
        else:
            own = np.arange(0, last + 1, length if how in ("chunks", "whole") else max(1, total // MAX_WINDOWS))
        starts.append(first + own)
    if not starts:
        what = f"series of exactly {length} frames" if how == "whole" else f"series of at least {length} frames"
        raise InputError(f"surrogate.n_frames {length} with surrogate.windows '{how}' needs {what}; lengths are {lengths[:5]}")
    return np.concatenate(starts)


def train_surrogate(run: Run, items: TrainingSet | None = None) -> dict[str, Any]:
    """Train on reference frames, or on other `items`, write train/surrogate.safetensors, and return the figures of it."""
    config, kind = run.config.train, run.config.surrogate
    torch.set_num_threads(config.threads)
    representation = load_representation(run.path("featurize", "representation.safetensors"), run.system)
    surrogate = build_surrogate(kind, representation, run.config.seed, datasets.training_log_temperature(run))
    rehearsal = 0.0
    if isinstance(kind, TransferableConfig) and kind.trained is not None:
        if not kind.tune_steps:
            return _as_it_is(run, surrogate)
        warmup = min(config.warmup_steps, kind.tune_steps // 4)
        tuned = {"n_steps": kind.tune_steps, "learning_rate": kind.tune_learning_rate, "warmup_steps": warmup}
        config = config.model_copy(update=tuned)
        rehearsal = kind.tune_rehearsal if items is None else 0.0
    train, held_out = training_sets(run, representation) if items is None else (items, held_out_set(run, representation))
    if not rehearsal:
        return train_on(run, surrogate, config, train, held_out, run.system.key)
    both = with_rehearsal(train, surrogate, rehearsal, run.config.seed)
    figures = train_on(run, surrogate, config, both, held_out, run.system.key)
    return figures | {"n_rehearsed": REHEARSED} if figures else {}


def with_rehearsal(frames: TrainingSet, surrogate: Surrogate, share: float, seed: int) -> TrainingSet:
    """Return frames with samples that the surrogate draws before it is tuned on them, which get `share` of all weight.

    A network that learns anew loses what it is not shown, for which its own output of before can stand: Robins (1995,
    Connection Science 7, 123). Frames of short MD show few basins, samples of a surrogate of other molecules all of them.
    """
    seeds = [derive_seed(seed, "rehearsal", number) for number in range(REHEARSED // TOGETHER)]
    own = torch.cat([surrogate.eval().sample(TOGETHER, one, log_density=False)[0] for one in seeds])
    surrogate.train()
    features = torch.cat([frames.features, own[:, : frames.features.shape[1]].to(frames.features)])
    told = frames.weights.double() * (1 - share) / frames.weights.double().sum()
    return TrainingSet(features, torch.cat([told, told.new_full((len(own),), share / len(own))]))


def _as_it_is(run: Run, surrogate: Surrogate) -> dict[str, Any]:
    """Keep a surrogate that was trained on other molecules: no frame of this one is looked at."""
    group = process_group(run.config.train.device)
    if not group.is_root:
        return {}
    surrogate.save(run.path("train", "surrogate.safetensors"), run.config.surrogate.name, run.system.key)
    (run.path("train") / "metrics.jsonl").touch()
    n_parameters = sum(p.numel() for p in surrogate.parameters())
    return {
        "n_parameters": n_parameters,
        "n_items": 0,
        "steps": 0,
        "kept_step": 0,
        "device": str(group.device),
        "ranks": group.size,
    }


def train_on(
    run: Run, surrogate: Surrogate, config: TrainConfig, train: TrainingSet, held_out: TrainingSet, system_key: str
) -> dict[str, Any]:
    """Train a surrogate on items, write it and its metrics to train/, and return the figures of it."""
    directory, group = run.path("train"), process_group(config.device)
    with run.progress("train", config.n_steps, "steps") as progress:
        trainer = Trainer(surrogate, config, train, held_out, directory, group, run.config.seed, progress.set)
        averaged = trainer.run()
    if not group.is_root:
        return {}
    averaged.save(directory / "surrogate.safetensors", run.config.surrogate.name, system_key)
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    last = {name: value for record in records for name, value in record.items()}
    kept = ("loss", "held_out_loss", "held_out_distance", "samples_per_s", "data_wait_share", "flop_utilisation")
    return {
        "n_parameters": sum(p.numel() for p in surrogate.parameters()),
        "n_items": len(train),
        "device": str(group.device),
        "precision": config.precision,
        "ranks": group.size,
        "steps": trainer.step,
        "kept_step": trainer.kept_step,
        **{name: last[name] for name in kept if name in last},
    }
