"""Torch's ranks: how they meet, and the few collectives that `Workers` needs of them."""

from __future__ import annotations

import atexit
import os
import socket
from datetime import timedelta
from typing import Any

from hpc_molgen.errors import EnvironmentProblem

MEET_WITHIN = timedelta(minutes=5)
# the others wait while one fits a representation or merges the parts of an array; when it dies the launcher ends them
COLLECTIVE_WITHIN = timedelta(hours=3)


class TorchComm:
    """The few collectives that `Workers` needs, with mpi4py's names, on the ranks of torchrun or of a Slurm job.

    Raises
    ------
    EnvironmentProblem
        When the ranks do not find each other.
    """

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        where = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT')}"
        _look_up(os.environ["MASTER_ADDR"])
        try:
            store, rank, size = next(iter(rendezvous("env://", timeout=MEET_WITHIN)))
        except (RuntimeError, ValueError) as error:
            raise EnvironmentProblem(
                f"the {os.environ['WORLD_SIZE']} ranks did not meet at {where}: {error}. Do all ranks start, and does "
                "the network between the nodes let them reach that port?"
            ) from error
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_WITHIN)
        atexit.register(dist.destroy_process_group)  # gloo threads still running at exit would abort the process
        self._dist = dist

    def Get_rank(self) -> int:
        """Rank of this process."""
        return int(self._dist.get_rank())

    def Get_size(self) -> int:
        """Number of ranks."""
        return int(self._dist.get_world_size())

    def bcast(self, value: Any) -> Any:
        """Value of rank 0, on all ranks."""
        box = [value]
        self._dist.broadcast_object_list(box)
        return box[0]

    def allgather(self, value: Any) -> list[Any]:
        """Values of all ranks, on all ranks."""
        values = [None] * self.Get_size()
        self._dist.all_gather_object(values, value)
        return values


def _look_up(address: str) -> None:
    """Refuse an address that has no number: torch would try again until the time limit of the job."""
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise EnvironmentProblem(
            f"{socket.gethostname()} cannot look up '{address}', where the ranks meet ({error}): set MASTER_ADDR to an "
            "address of the first node that the others can reach"
        ) from error
