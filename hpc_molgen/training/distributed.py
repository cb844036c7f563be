"""The process group of a training run: torchrun's ranks, or a single process."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hpc_molgen.errors import EnvironmentProblem


@dataclass(frozen=True)
class ProcessGroup:
    """Rank, number of ranks and device of this process.

    What ranks tell each other in between (who wants to stop, which checkpoint) goes by gloo as CPU tensors, so that no GPU
    waits for it; only gradients go by NCCL.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_root(self) -> bool:
        """True on the rank that writes."""
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's contiguous part of `n` items."""
        return slice(self.rank * n // self.size, (self.rank + 1) * n // self.size)

    def largest(self, *values: float) -> list[float]:
        """Return the largest of each value over the ranks (a collective); flags are zeros and ones."""
        if self.size == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return [float(value) for value in largest]

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum of `value` over the ranks, in float64 on the CPU (a collective)."""
        value = value.detach().double().cpu()
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def from_root(self, value: int) -> int:
        """Return the root's integer on every rank (a collective)."""
        box = torch.tensor([value])
        if self.size > 1:
            dist.broadcast(box, 0)
        return int(box)

    def gather(self, value: torch.Tensor) -> list[torch.Tensor]:
        """Return the CPU tensors of all ranks, of one shape, on every rank (a collective)."""
        if self.size == 1:
            return [value]
        values = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(values, value)
        return values


def choose_device(name: str, local_rank: int) -> torch.device:
    """Return the device: the `local_rank`-th *visible* GPU, or the CPU; the scheduler's mask is left alone.

    Raises
    ------
    EnvironmentProblem
        When CUDA is asked for and there is no GPU.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EnvironmentProblem("train.device is 'cuda' but torch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def process_group(device: str = "auto") -> ProcessGroup:
    """Return the group that torchrun's ranks have formed (`workers.TorchComm`), else a group of one.

    NCCL carries tensors on GPUs, gloo those on CPUs.
    """
    if not dist.is_initialized():
        return ProcessGroup(0, 1, choose_device(device, 0))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), chosen)
