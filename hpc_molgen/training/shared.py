"""One surrogate that is trained on the torsions of many molecules' frames."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from typing import Any

import torch

from hpc_molgen import datasets
from hpc_molgen.config import RefineConfig, TransferableConfig
from hpc_molgen.errors import InputError
from hpc_molgen.files import appearing_whole, read_json, write_json
from hpc_molgen.representations.base import Representation, load_representation
from hpc_molgen.run import Run
from hpc_molgen.seeding import derive_seed
from hpc_molgen.surrogates.diffusion.transferable import EVERYWHERE, TransferableDiffusion, constant_features
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.stage import ABOUT_TUNING, train_on
from hpc_molgen.workers import Stopwatch

log = logging.getLogger(__name__)
_FIGURES = "shared.json"
_MADE = "surrogate.safetensors", "metrics.jsonl", _FIGURES  # the figures last: they say that the others are there


def shared_surrogate(run: Run, seen: Sequence[Run]) -> dict[str, Any]:
    """Return the figures of the shared training, which is done unless it was done before with the same inputs.

    That was by an attempt before this one, or for another list of molecules that are `unseen`, or to be tuned otherwise: these
    change nothing of it, so a surrogate is trained once and asked for as many molecules as there are, whenever they come.

    Parameters
    ----------
    run : Run
        Of the whole, in its stage `train`.
    seen : sequence of Run
        Of the molecules that it learns from; those have done their stage `featurize`.

    Raises
    ------
    InputError
        When there is none to learn from.
    """
    if not seen:
        raise InputError("molecules: all have surrogates of their own or are unseen; the shared one has nothing to learn from")
    kept, inputs = run.path("train", _FIGURES), shared_inputs(run, seen)
    if not run.workers.from_root(lambda: kept.is_file() or _taken_over(run, inputs)) and run.workers.trains:
        with run.counted("shared"):
            made = train_shared(run, seen)
        if run.workers.is_root:
            write_json(kept, {"inputs": inputs, "figures": made})
    figures: dict[str, Any] = run.workers.from_root(lambda: read_json(kept)["figures"])
    return figures


def shared_inputs(run: Run, seen: Sequence[Run]) -> str:
    """Return a hash of all that the shared training depends on: its settings, the frames of `seen` and how they are told."""
    surrogate = run.config.surrogate
    untuned = surrogate.model_copy(update={name: type(surrogate).model_fields[name].default for name in ABOUT_TUNING})
    alone = {"molecules": (), "unseen": (), "surrogate": untuned, "refine": RefineConfig()}
    own = Run(run.directory, run.config.model_copy(update=alone), run.workers).fingerprint("train")
    text = json.dumps([own, [[one.config.name, one.fingerprint("featurize")] for one in seen]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _taken_over(run: Run, inputs: str) -> bool:
    """Copy what a training with these inputs has left, if there is one, and say whether there is."""
    for folder in sorted(run.directory.glob("train.old-*"), reverse=True):
        if all((folder / name).is_file() for name in _MADE) and read_json(folder / _FIGURES).get("inputs") == inputs:
            log.info("the shared surrogate has learnt from the same molecules before: it is that of %s", folder)
            for name in _MADE:
                with appearing_whole(run.path("train", name)) as partial:
                    shutil.copy2(folder / name, partial)
            return True
    return False


def train_shared(run: Run, seen: Sequence[Run]) -> dict[str, Any]:
    """Train the shared surrogate on the frames of `seen`; write train/surrogate.safetensors, return the figures on the root."""
    config = run.config.surrogate
    assert isinstance(config, TransferableConfig)
    watch = Stopwatch()
    torch.set_num_threads(run.config.train.threads)
    files = [one.path("featurize", "representation.safetensors") for one in seen]
    representations = [load_representation(path, one.system) for path, one in zip(files, seen, strict=True)]
    graphs = [representation.graph() for representation in representations]
    residues = sorted({kind for graph in graphs for kind in graph.residue_types()})
    sizes = config.model_dump(exclude={"name", *ABOUT_TUNING})
    torch.manual_seed(derive_seed(run.config.seed, "surrogate"))
    constant = constant_features(graphs)
    surrogate = TransferableDiffusion([graph.as_dict() for graph in graphs], 0, residues, constant, **sizes)
    train, held_out = (_joined(seen, representations, surrogate.n_torus, side) for side in (0, 1))
    figures = train_on(run, surrogate, run.config.train, train, held_out, EVERYWHERE)
    return figures | {"molecules": [one.config.name for one in seen], "train_cpu_s": watch.cpu_s} if figures else {}


def _joined(seen: Sequence[Run], representations: Sequence[Representation], n_torus: int, side: int) -> TrainingSet:
    """Torsions of all molecules' training (0) or held-out (1) frames, then the molecule's number; each counts the same."""
    features: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    for number, (one, representation) in enumerate(zip(seen, representations, strict=True)):
        frames = datasets.load_split(one)[side]
        angles = representation.encode_torus(torch.as_tensor(frames.positions_nm, dtype=torch.float64))
        rows = angles.new_zeros((len(angles), n_torus + 1))
        rows[:, : angles.shape[1]], rows[:, -1] = angles, float(number)
        features.append(rows)
        weights.append(torch.as_tensor(datasets.boltzmann_weights(frames, datasets.training_log_temperature(one) * (1 - side))))
    return TrainingSet(torch.cat(features), torch.cat(weights))
