"""The training loop of every surrogate."""

from __future__ import annotations

import copy
import json
import logging
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpc_molgen.config import TrainConfig
from hpc_molgen.errors import HpcMolgenError, Interrupted
from hpc_molgen.seeding import torch_generator
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.training.checkpoint import load_checkpoint, save_checkpoint
from hpc_molgen.training.distributed import ProcessGroup

log = logging.getLogger(__name__)
VALIDATION_SIZE = 8192


class _Loss(nn.Module):
    """Adapter: DDP synchronises gradients of what passes through a module's forward."""

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.surrogate = surrogate

    def forward(self, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        return self.surrogate.losses(batch, noise)


class Trainer:
    """Trains a surrogate; everything it draws at a step depends on the seed and the step alone.

    So N ranks with the same global batch train as one does, and a run that was killed and resumed ends with the weights of
    one that was not.

    Parameters
    ----------
    surrogate : Surrogate
    config : TrainConfig
    features, weights : torch.Tensor, shape=(n, n_features), (n,)
        Training data and their (unnormalised) statistical weights: an item is drawn in proportion to its weight.
    held_out, held_out_weights : torch.Tensor
        The same of the trajectories that training never sees.
    directory : Path
        Where checkpoints and metrics.jsonl go.
    group : ProcessGroup
    """

    def __init__(
        self,
        surrogate: Surrogate,
        config: TrainConfig,
        features: torch.Tensor,
        weights: torch.Tensor,
        held_out: torch.Tensor,
        held_out_weights: torch.Tensor,
        directory: Path,
        group: ProcessGroup,
        seed: int,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.config, self.group, self.seed, self.directory, self.on_step = config, group, seed, directory, on_step
        self.surrogate = surrogate.to(group.device)
        dtype = next(surrogate.parameters()).dtype
        self.features = features.to(group.device, dtype)
        self.cumulative = torch.cumsum(weights.double() / weights.double().sum(), dim=0)
        generator = torch_generator(seed, "validation items")
        chosen = torch.multinomial(held_out_weights.double(), VALIDATION_SIZE, replacement=True, generator=generator)
        self.held_out = held_out[chosen].to(group.device, dtype)
        self.ema = copy.deepcopy(self.surrogate).requires_grad_(False)
        self.optimisers = {
            name: torch.optim.AdamW(
                part.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
            )
            for name, part in self.surrogate.parts().items()
        }
        self.loss: nn.Module = _Loss(self.surrogate)
        if group.size > 1:
            self.loss = nn.parallel.DistributedDataParallel(
                self.loss, device_ids=[group.device.index] if group.device.type == "cuda" else None
            )
        self.step = 0
        self._stop = False

    def run(self) -> Surrogate:
        """Train to the end, resuming from a checkpoint if there is one; return the averaged (EMA) surrogate.

        Raises
        ------
        Interrupted
            After SIGTERM or Ctrl-C, at a step boundary that all ranks agree on and with a checkpoint written.
        HpcMolgenError
            When the loss is not finite any more.
        """
        self._resume()
        handlers = {number: signal.signal(number, self._request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._loop()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self.ema.eval()

    def _request_stop(self, *_: object) -> None:
        self._stop = True

    def _loop(self) -> None:
        config, last_saved, last_logged, started = self.config, time.monotonic(), self.step, time.perf_counter()
        while self.step < config.n_steps:
            loss = self._train_step()
            self.step += 1
            if self.step % config.log_every == 0 or self.step == config.n_steps:
                rate = (self.step - last_logged) * config.batch_size / (time.perf_counter() - started)
                record = {"loss": float(self.group.sum(loss.clone())), "samples_per_s": rate}
                if not math.isfinite(record["loss"]):
                    raise HpcMolgenError(
                        f"the training loss is {record['loss']} at step {self.step}: lower train.learning_rate and run again"
                    )
                self._write_metrics(record)
                last_logged, started = self.step, time.perf_counter()
            if self.step % config.validate_every == 0 or self.step == config.n_steps:
                self._write_metrics({"held_out_loss": self.validate()})
            if self.on_step is not None:
                self.on_step(self.step)
            due = time.monotonic() - last_saved > config.checkpoint_every_s
            if self.step % 10 == 0 or self.group.size == 1:  # how soon ranks notice what one of them wants
                stop, due = self.group.any_of(self._stop), self.group.any_of(due)
                if due or stop:
                    self._save()
                    last_saved = time.monotonic()
                if stop:
                    raise Interrupted(f"training stopped at step {self.step} of {config.n_steps}; the next run goes on there")

    def _train_step(self) -> torch.Tensor:
        """One step of every part; returns this rank's share of the mean loss."""
        config, group = self.config, self.group
        rate = self._learning_rate()
        generator = torch_generator(self.seed, "train", self.step)
        uniform = torch.rand(config.batch_size, generator=generator, dtype=torch.float64)
        items = torch.searchsorted(self.cumulative, uniform).clamp(max=len(self.cumulative) - 1)
        noise = self.surrogate.draw_noise(config.batch_size, generator)
        mine = group.share(config.batch_size)
        batch = self.features[items[mine].to(group.device)]
        losses = self.loss(batch, tuple(part[mine].to(batch) for part in noise))
        total = torch.zeros((), device=group.device)
        for name, part in self.surrogate.parts().items():
            mean = losses[name].sum() / config.batch_size
            optimiser = self.optimisers[name]
            optimiser.zero_grad(set_to_none=True)
            (mean * group.size).backward()  # DDP averages over ranks
            nn.utils.clip_grad_norm_(part.parameters(), config.gradient_clip)
            for settings in optimiser.param_groups:
                settings["lr"] = rate
            optimiser.step()
            total = total + mean.detach()
        self._average()
        return total

    def _learning_rate(self) -> float:
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / config.n_steps))

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        averages = [parameter.data for parameter in self.ema.parameters()]
        values = [parameter.data for parameter in self.surrogate.parameters()]
        torch._foreach_lerp_(averages, values, 1 - decay)

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of the averaged surrogate on held-out items, with the same noise at every call."""
        noise = self.surrogate.draw_noise(VALIDATION_SIZE, torch_generator(self.seed, "validation noise"))
        mine = self.group.share(VALIDATION_SIZE)
        losses = self.ema.losses(self.held_out[mine], tuple(part[mine].to(self.held_out) for part in noise))
        total = torch.stack([loss.sum() for loss in losses.values()]).sum() / VALIDATION_SIZE
        return float(self.group.sum(total))

    def _write_metrics(self, record: dict[str, Any]) -> None:
        if self.group.is_root:
            with open(self.directory / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": self.step, **record}) + "\n")

    def _save(self) -> None:
        if self.group.is_root:
            state = {
                "step": self.step,
                "surrogate": self.surrogate.state_dict(),
                "ema": self.ema.state_dict(),
                "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            }
            save_checkpoint(self.directory, self.step, state)

    def _resume(self) -> None:
        state = load_checkpoint(self.directory)
        if state is None:
            (self.directory / "metrics.jsonl").unlink(missing_ok=True) if self.group.is_root else None
            return
        self.surrogate.load_state_dict(state["surrogate"])
        self.ema.load_state_dict(state["ema"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])
        self.step = int(state["step"])
        if self.group.is_root:
            _truncate_metrics(self.directory / "metrics.jsonl", self.step)
            log.info("training resumes at step %d of %d", self.step, self.config.n_steps)


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
