"""The training loop of every surrogate."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hpc_molgen import interrupts
from hpc_molgen.config import TrainConfig
from hpc_molgen.errors import HpcMolgenError, InputError, Interrupted
from hpc_molgen.seeding import derive_seed, torch_generator
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.training.batches import Batches, Drawn, TrainingSet, blocks
from hpc_molgen.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from hpc_molgen.training.distributed import ProcessGroup
from hpc_molgen.training.parts import TrainedPart
from hpc_molgen.training.speed import Speedometer, count_flops, matmul_flops_per_s

log = logging.getLogger(__name__)
VALIDATION_SIZE, VALIDATION_CHUNK = 8192, 1024
ADAPTATION_SIZE = 4096
DIVERGED = 1e8  # a loss as large is as good as infinite
MAX_ROLLBACKS = 3
AGREE_EVERY_S = 1.0  # how soon ranks learn what one of them wants


class Trainer:
    """Trains a surrogate; everything that a step draws depends on the seed and the step alone (see `Batches`).

    So N ranks with the same global batch train as one does, and a run that was killed and resumed ends with the weights of
    one that was not: bit by bit on CPUs with the same number of ranks, to rounding with another.

    Parameters
    ----------
    surrogate : Surrogate
    config : TrainConfig
    train, held_out : TrainingSet
        What is trained on, and the items of trajectories that training never sees.
    directory : Path
        Where checkpoints and metrics.jsonl go.
    group : ProcessGroup
    seed : int
    on_step : callable, optional
        Called with the number of finished steps, at the start too.
    """

    def __init__(
        self,
        surrogate: Surrogate,
        config: TrainConfig,
        train: TrainingSet,
        held_out: TrainingSet,
        directory: Path,
        group: ProcessGroup,
        seed: int,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        if config.batch_size < group.size * config.accumulate:
            raise InputError(
                f"train.batch_size {config.batch_size} is too small for {group.size} ranks with train.accumulate "
                f"{config.accumulate}: every micro-batch needs an item"
            )
        self.config, self.group, self.seed, self.directory, self.on_step = config, group, seed, directory, on_step
        dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.surrogate = surrogate.to(group.device, dtype)
        data = train.to(group.device, dtype)
        self.surrogate.adapt(data.items(train.choose(min(ADAPTATION_SIZE, len(train)), torch_generator(seed, "adapt"))))
        self.ema = copy.deepcopy(self.surrogate).requires_grad_(False)
        self.parts = {name: TrainedPart(self.surrogate, name, config, group) for name in self.surrogate.parts()}
        share = group.share(config.batch_size)
        self.batches = Batches(data, self.surrogate, config.batch_size, share, seed, group.device)
        self.held_out = held_out.to(group.device, dtype)
        self.n_validation = min(VALIDATION_SIZE, max(VALIDATION_CHUNK, 8 * len(held_out)))
        self.step = self.rollbacks = 0
        self._start: dict[str, Any] = {}
        self._best: dict[str, Any] = {"value": math.inf, "step": 0, "ema": {}}

    def run(self) -> Surrogate:
        """Train to the end, resuming from a checkpoint if there is one; return the averaged (EMA) surrogate.

        Raises
        ------
        Interrupted
            After SIGTERM, Ctrl-C or Slurm's warning, at a step boundary that all ranks agree on and with a checkpoint written.
        HpcMolgenError
            When the loss diverges again and again.
        """
        torch.manual_seed(derive_seed(self.seed, "rank", self.group.rank))
        self._start = copy.deepcopy(self._state())
        self._resume()
        if self.on_step is not None:
            self.on_step(self.step)
        speed = Speedometer(self.group.device, self.config.batch_size, self._flops_per_step(), self._peak)
        self.batches.start(self.step)
        try:
            with interrupts.deferred():
                self._loop(speed)
        finally:
            self.batches.close()
        if self._best["ema"]:
            self.ema.load_state_dict(self._best["ema"])
        return self.ema.eval()

    @property
    def kept_step(self) -> int:
        """The step that the returned surrogate is of."""
        return int(self._best["step"]) if self._best["ema"] else self.step

    def _loop(self, speed: Speedometer) -> None:
        config, first, saved = self.config, self.step, time.monotonic()
        agreed, agree_at = (time.monotonic(), first), first + 1
        speed.restart(self.step, self.batches.wait_s)
        while self.step < config.n_steps:
            self.train_step()
            self.step += 1
            at_end = self.step == config.n_steps
            if self.step % config.log_every == 0 or at_end:
                self._log(speed)
            if self.step % config.validate_every == 0 or at_end:
                self._write_metrics(self._judge())
                speed.restart(self.step, self.batches.wait_s)
                if self._patience_is_over():
                    log.info(
                        "training: no better held-out metric since step %d, stopped at step %d", self._best["step"], self.step
                    )
                    break
            if self.step == first + 1:
                speed.restart(self.step, self.batches.wait_s)  # the first step compiles, and warms caches
            if self.on_step is not None:
                self.on_step(self.step)
            if self.step >= agree_at:
                due = time.monotonic() - saved > config.checkpoint_every_s
                step_s = (time.monotonic() - agreed[0]) / (self.step - agreed[1])
                stop, due_anywhere, slowest = self.group.largest(float(interrupts.came()), float(due), step_s)
                if (due_anywhere or stop) and not at_end:
                    self._save()
                    saved = time.monotonic()
                if stop and not at_end:
                    raise Interrupted(f"training stopped at step {self.step} of {config.n_steps}; the next run goes on there")
                agreed = time.monotonic(), self.step
                agree_at = self.step + max(1, min(100, int(min(AGREE_EVERY_S, config.checkpoint_every_s) / max(slowest, 1e-6))))

    def train_step(self) -> None:
        """Update every part as often as the surrogate asks for, then the averages."""
        rate = self._learning_rate()
        for name in self.surrogate.updates():
            self.parts[name].update(self.batches.next(), rate)
        self._average()

    def _learning_rate(self) -> float:
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        decay = 0.5 * (1 + math.cos(math.pi * self.step / config.n_steps)) if config.schedule == "cosine" else 1.0
        return config.learning_rate * warm * decay * 0.5**self.rollbacks

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averages; of a part that is not averaged, keep the last state."""
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for name, part in self.ema.parts().items():
            averages = [parameter.data for parameter in part.parameters()]
            values = [parameter.data for parameter in self.parts[name].parameters]
            torch._foreach_lerp_(averages, values, 1 - decay if name in self.surrogate.averaged() else 1.0)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean held-out loss of the averaged surrogate, on the same items with the same noise at every call."""
        part = next(iter(self.ema.parts()))
        total = torch.zeros((), dtype=torch.float64)
        share = self.group.share(self.n_validation)
        for start in range(share.start, share.stop, VALIDATION_CHUNK):
            piece = slice(start, min(start + VALIDATION_CHUNK, share.stop))
            for generator, n, wanted in blocks(piece, self.n_validation, self.seed, "validation"):
                batch = self.held_out.items(self.held_out.choose(n, generator)[wanted])
                noise = tuple(values[wanted].to(batch) for values in self.ema.draw_noise(part, n, generator))
                total += self.ema.held_out_loss(batch, noise).double().sum().cpu()
        return float(self.group.sum(total) / self.n_validation)

    def _judge(self) -> dict[str, float]:
        """Return the held-out metrics, and remember the state if it is the best one and the best one is asked for."""
        metrics = {"held_out_loss": self.validate()}
        if (distance := self._distance()) is not None:
            metrics["held_out_distance"] = distance
        value = metrics.get("held_out_distance", metrics["held_out_loss"])
        if self.config.patience is not None and not value >= self._best["value"]:
            self._best = {"value": value, "step": self.step, "ema": copy.deepcopy(self.ema.state_dict())}
        return metrics

    def _distance(self) -> float | None:
        """The surrogate's distance from the same held-out items at every call, computed by the root."""
        items = self.held_out.items(self.held_out.choose(VALIDATION_CHUNK, torch_generator(self.seed, "distance")))
        own = self.ema.held_out_distance(items, self.seed) if self.group.is_root else None
        known, value = self.group.largest(float(own is not None), -math.inf if own is None else own)
        return value if known else None

    def _patience_is_over(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.step - self._best["step"] >= patience * self.config.validate_every

    def _log(self, speed: Speedometer) -> None:
        """Write a line of metrics: losses of the last update of each part, norms of gradients before clipping, rates."""
        rates = speed.read(self.step, self.batches.wait_s)
        losses = self.group.sum(torch.stack([part.loss.double() for part in self.parts.values()]))
        record: dict[str, Any] = {"loss": float(losses.sum()), "learning_rate": self._learning_rate()}
        for (name, part), loss in zip(self.parts.items(), losses, strict=True):
            record |= {f"loss_{name}": float(loss), f"gradient_norm_{name}": float(part.gradient_norm)}
        if self._diverged():
            self._roll_back(record["loss"])
        else:
            self._write_metrics(record | rates)
        speed.restart(self.step, self.batches.wait_s)

    def _diverged(self) -> bool:
        """Whether a loss or a gradient is not finite, or a loss beyond all bounds, on any rank."""
        losses = [float(part.loss) for part in self.parts.values()]
        norms = [float(part.gradient_norm) for part in self.parts.values()]
        sound = all(math.isfinite(norm) for norm in norms) and all(abs(loss) < DIVERGED for loss in losses)
        return self.group.largest(float(not sound))[0] > 0

    def _roll_back(self, loss: float) -> None:
        """Go back to the newest checkpoint, or to the start, and on from there at half the learning rate.

        Raises
        ------
        HpcMolgenError
            When that was done `MAX_ROLLBACKS` times before.
        """
        at, done = self.step, self.rollbacks
        if done == MAX_ROLLBACKS:
            raise HpcMolgenError(
                f"the training diverged (loss {loss}) at step {at}, {done} times rolled back: lower train.learning_rate and "
                "run again"
            )
        if not self._resume():
            self._restore(self._start)
        self.rollbacks = done + 1
        self.batches.close()
        self.batches.start(self.step)
        log.warning(
            "training diverged (loss %g) at step %d: rolled back to step %d, at %g times the learning rate from there",
            loss, at, self.step, 0.5**self.rollbacks,
        )  # fmt: skip
        self._write_metrics({"diverged_at": at, "rollbacks": self.rollbacks})

    def _write_metrics(self, record: dict[str, Any]) -> None:
        if self.group.is_root:
            with open(self.directory / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": self.step, **record}) + "\n")

    def _flops_per_step(self) -> float:
        """Count the operations of this rank's share of a step, once, on batches that are thrown away."""
        total = 0.0
        for number, name in enumerate(self.surrogate.updates()):
            if name in self.surrogate.updates()[:number]:
                continue
            chosen, noise = self.batches.draw(0, number, name)
            batch = self.batches.data.items(chosen)
            drawn = Drawn(batch, tuple(values.to(batch) for values in noise))
            part = self.parts[name]
            total += self.surrogate.updates().count(name) * count_flops(lambda p=part, d=drawn: p.backward(p.plain, d))  # type: ignore[misc]
            part.optimiser.zero_grad(set_to_none=True)
        return total

    def _peak(self) -> float:
        dtype = {"bf16": torch.bfloat16, "float64": torch.float64}.get(self.config.precision, torch.float32)
        return matmul_flops_per_s(self.group.device, dtype)

    def _save(self) -> None:
        if self._diverged():  # the next line of metrics rolls back to a sound one
            return
        states = self.group.gather(torch.get_rng_state())
        if self.group.is_root:
            save_checkpoint(self.directory, self.step, self._state() | {"random_states": states})

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,  # of it follow the learning rate and what is drawn next
            "seed": self.seed,
            "n_items": len(self.batches.data),
            "rollbacks": self.rollbacks,
            "best": self._best,
            "surrogate": self.surrogate.state_dict(),
            "ema": self.ema.state_dict(),
            "optimisers": {name: part.optimiser.state_dict() for name, part in self.parts.items()},
        }

    def _resume(self) -> bool:
        """Go on from the newest checkpoint; return whether there was one."""
        metrics = self.directory / "metrics.jsonl"
        newest = newest_checkpoint(self.directory) if self.group.is_root else None
        step = self.group.from_root(-1 if newest is None else newest)
        if step < 0:
            if self.group.is_root:
                metrics.unlink(missing_ok=True)
            return False
        state = load_checkpoint(self.directory, step)
        if (state["seed"], state["n_items"]) != (self.seed, len(self.batches.data)):
            raise InputError(f"{self.directory}: its checkpoint is of other data or another seed; move the folder away")
        self._restore(state)
        if len(state["random_states"]) == self.group.size:
            torch.set_rng_state(state["random_states"][self.group.rank])
        if self.group.is_root:
            _truncate_metrics(metrics, self.step)
            log.info("training resumes at step %d of %d", self.step, self.config.n_steps)
        return True

    def _restore(self, state: dict[str, Any]) -> None:
        self.surrogate.load_state_dict(state["surrogate"])
        self.ema.load_state_dict(state["ema"])
        for name, part in self.parts.items():
            part.optimiser.load_state_dict(copy.deepcopy(state["optimisers"][name]))
        self.step, self.rollbacks, self._best = int(state["step"]), int(state["rollbacks"]), state["best"]


def _truncate_metrics(path: Path, step: int) -> None:
    """Drop lines that a killed run wrote after its last checkpoint."""
    if path.is_file():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except json.JSONDecodeError:
                break
        path.write_text("".join(line + "\n" for line in kept))
