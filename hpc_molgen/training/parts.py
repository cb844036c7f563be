"""One part of a surrogate under training: its loss, its DDP wrapper, its optimiser, its updates."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable

import torch
from torch import nn

from hpc_molgen.compilers import has_compiler
from hpc_molgen.config import TrainConfig
from hpc_molgen.errors import EnvironmentProblem
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.training.batches import Drawn, Noise
from hpc_molgen.training.distributed import ProcessGroup

log = logging.getLogger(__name__)


class PartLoss(nn.Module):
    """Summed loss of one part as a module that owns this part's parameters alone.

    DDP waits for the gradient of every parameter that it knows: with one wrapper for each part, the update of a critic does
    not wait for its generator. Gradients with respect to inputs inside a loss (a gradient penalty) are no obstacle: DDP
    acts when the gradients of parameters are complete, and those of first and second order arrive together.
    """

    def __init__(self, surrogate: Surrogate, part: str, *, mixed: bool) -> None:
        super().__init__()
        self.module = surrogate.parts()[part]
        self.part, self.mixed = part, mixed
        self.loss_of = surrogate.loss  # a bound method is not registered: the surrogate's other parts are not ours

    def forward(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """Sum over items; in bf16 where `mixed`, while weights and optimisers stay in float32."""
        with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            total: torch.Tensor = self.loss_of(self.part, batch, noise).sum()
        return total


class TrainedPart:
    """A part with its optimiser; `update` is one step of it on one global batch.

    Parameters
    ----------
    surrogate : Surrogate
        On the group's device.
    part : str
    config : TrainConfig
    group : ProcessGroup
    """

    def __init__(self, surrogate: Surrogate, part: str, config: TrainConfig, group: ProcessGroup) -> None:
        self.name, self.config, self.group = part, config, group
        self.parameters = list(surrogate.parts()[part].parameters())
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=surrogate.adam_betas, weight_decay=config.weight_decay,
            fused=True,
        )  # fmt: skip
        loss = PartLoss(surrogate, part, mixed=config.precision == "bf16" and has_bf16(group.device))
        self.plain = loss
        self._synchronised: nn.parallel.DistributedDataParallel | None = None
        self._loss: Callable[..., torch.Tensor] = loss
        if group.size > 1:
            devices = [group.device.index] if group.device.type == "cuda" else None
            with warnings.catch_warnings():  # torch 2.13 renames this argument, and 2.4 does not know the new name
                warnings.simplefilter("ignore", FutureWarning)
                self._synchronised = nn.parallel.DistributedDataParallel(loss, devices, broadcast_buffers=False)
            self._loss = self._synchronised
        if config.compile and part not in surrogate.twice_differentiated:
            if not has_compiler(str(group.device)):
                raise EnvironmentProblem(
                    "train.compile needs a C++ compiler on PATH for CPUs (g++ or clang++) and Triton for GPUs; set it to false"
                )
            self._loss = torch.compile(self._loss)  # around DDP, so that it keeps sending gradients while others are computed
        elif config.compile:
            log.info("the part '%s' is not compiled: torch.compile cannot differentiate twice", part)
        self.loss = torch.zeros((), dtype=torch.float64, device=group.device)
        self.gradient_norm = torch.zeros((), device=group.device)

    def update(self, drawn: Drawn, learning_rate: float) -> None:
        """Accumulate the gradient of the global batch's mean loss, clip it, step. `loss` is this rank's share of that mean."""
        self.optimiser.zero_grad(set_to_none=True)
        self.backward(self._loss, drawn)
        self.gradient_norm = nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip)
        for settings in self.optimiser.param_groups:
            settings["lr"] = learning_rate
        self.optimiser.step()

    def backward(self, loss: Callable[..., torch.Tensor], drawn: Drawn) -> None:
        """Backward passes over the micro-batches of a batch; ranks exchange gradients after the last one alone."""
        n = self.config.accumulate
        pieces = zip(drawn.batch.chunk(n), *(values.chunk(n) for values in drawn.noise), strict=True)
        total = torch.zeros_like(self.loss)
        for number, (batch, *noise) in enumerate(pieces):
            last = number == n - 1
            waiting = self._synchronised is not None and not last
            with self._synchronised.no_sync() if waiting else contextlib.nullcontext():  # type: ignore[union-attr]
                mean = loss(batch, tuple(noise)) / self.config.batch_size
                (mean * self.group.size).backward()  # type: ignore[no-untyped-call]  # DDP averages over ranks
            total = total + mean.detach()
        self.loss = total


def has_bf16(device: torch.device) -> bool:
    """Return whether the device computes in bf16; a GPU that does not trains in float32, and says so."""
    if device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False):
        return True
    log.warning("train.precision: this GPU has no bf16, training goes on in float32")
    return False
