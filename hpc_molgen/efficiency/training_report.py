"""How a training that is not over stands: losses, held-out metrics and, of trajectories, what its newest checkpoint makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_molgen.analysis.series import Bins
from hpc_molgen.efficiency import figures
from hpc_molgen.efficiency.series_figures import draw_courses, draw_surfaces
from hpc_molgen.efficiency.series_findings import GENERATED, HELD_OUT
from hpc_molgen.errors import InputError

if TYPE_CHECKING:
    from hpc_molgen.representations.cvs import CollectiveVariables
    from hpc_molgen.run import Run

N_SERIES, LONGEST = 16, 2000
METRICS = (
    ("held_out_distance", figures.BLUE, "held-out distance (EMA)"),
    ("held_out_loss", figures.BLUE, "held-out loss (EMA)"),
)


def write_training_report(run: Run) -> Path:
    """Draw train/pictures/step-STEP.{png,svg} and return the first one; the training may go on meanwhile.

    Raises
    ------
    InputError
        When no training has begun.
    """
    log = run.path("train") / "metrics.jsonl"
    if not log.is_file() and run.config.molecules:
        raise InputError(
            f"{run.directory}: no surrogate is being trained for all molecules together; of one that trains for itself: "
            f"hpc-molgen report {run.path('molecules', 'NAME')}"
        )
    if not log.is_file():
        raise InputError(f"{run.directory}: no stage but those before 'train' has begun, so there is nothing to report on")
    records = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    made = _newest_samples(run)
    step = made[0] if made else max((record["step"] for record in records), default=0)
    directory, name = run.path("train") / "pictures", f"step-{step:08d}"
    with figures.canvas(directory, name, 5 if made else 2, 2.4) as (figure, axes):
        points = [(record["step"], record["loss"]) for record in records if "loss" in record]
        _curve(axes[0], points, "loss on training batches", figures.GREY)
        key, colour, label = next((m for m in METRICS if any(m[0] in record for record in records)), METRICS[-1])
        _curve(axes[1], [(record["step"], record[key]) for record in records if key in record], label, colour)
        if made:
            _, held_out, generated, variables = made
            bins = Bins(held_out, tuple(range(min(2, len(variables.names)))))
            shown = {HELD_OUT: held_out, GENERATED: generated}
            draw_surfaces(figure, axes[2:4], shown, bins, variables.names)
            draw_courses(axes[4], shown, variables.names[0])
    return directory / f"{name}.png"


def _curve(axis: Any, points: list[tuple[int, float]], label: str, colour: str) -> None:
    if points:
        axis.plot(*np.array(points).T, color=colour, lw=1)
    axis.set_xlabel("training step")
    axis.set_title(label)


def _newest_samples(run: Run) -> tuple[int, list[np.ndarray], list[np.ndarray], CollectiveVariables] | None:
    """Return the step of the newest checkpoint, held-out series and what its average makes; None where that is not possible."""
    from hpc_molgen.datasets import load_channels
    from hpc_molgen.representations.base import load_representation
    from hpc_molgen.representations.cvs import CollectiveVariables
    from hpc_molgen.sampling import sample_channels
    from hpc_molgen.training.checkpoint import load_checkpoint, newest_checkpoint
    from hpc_molgen.training.stage import build_surrogate

    step = newest_checkpoint(run.path("train")) if run.config.makes_trajectories else None
    path = run.path("featurize") / "representation.safetensors"
    if step is None or not path.is_file():
        return None
    variables = load_representation(path, run.system)
    if not isinstance(variables, CollectiveVariables):
        return None
    surrogate = build_surrogate(run.config.surrogate, variables, run.config.seed)
    surrogate.load_state_dict(load_checkpoint(run.path("train"), step)["ema"])
    held_out = load_channels(run.path("featurize"), "held_out")
    series = [variables.features(part[:LONGEST]) for part in np.split(held_out.values, held_out.ends[:-1])[:N_SERIES]]
    n_frames = min(map(len, series)) if run.config.surrogate.architecture == "convolutional" else None  # type: ignore[union-attr]
    channels = sample_channels(surrogate, variables, run.path("featurize"), np.arange(N_SERIES), run.config.seed, n_frames)
    return step, series, list(variables.features(channels)), variables
