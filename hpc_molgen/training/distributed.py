"""The process group of a training run: torchrun's ranks, or a single process."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from hpc_molgen.errors import EnvironmentProblem


@dataclass(frozen=True)
class ProcessGroup:
    """Rank, number of ranks and device of this process."""

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

    def any_of(self, flag: bool) -> bool:
        """Return True on all ranks when `flag` is true on one of them (a collective)."""
        if self.size == 1:
            return flag
        value = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item() > 0)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Sum of `value` over the ranks (a collective)."""
        if self.size > 1:
            dist.all_reduce(value)
        return value


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
