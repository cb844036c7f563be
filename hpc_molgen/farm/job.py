"""What every worker of a farm knows, and how a finished replica tells of itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_molgen.config import FarmConfig
from hpc_molgen.ensemble import read_attributes
from hpc_molgen.errors import InputError
from hpc_molgen.farm import trajectory
from hpc_molgen.farm.leases import Lease
from hpc_molgen.systems.base import MolecularSystem

log = logging.getLogger(__name__)
_RECORDED = ("attempts", "frames", "minimised_kj_mol", "simulated_ns", "cpu_s", "wall_s", "platform")


@dataclass(frozen=True)
class Job:
    """What every worker of a farm knows; it pickles.

    Attributes
    ----------
    system : MolecularSystem
    config : FarmConfig
    seed : int
    platform : str
        "batched", "gromacs" or a platform of OpenMM's.
    starts, folder : Path
        Where the starts lie, and where results go.
    lease : Lease or None
        Where other jobs share the farm.
    """

    system: MolecularSystem
    config: FarmConfig
    seed: int
    platform: str
    starts: Path
    folder: Path
    lease: Lease | None = None

    def path(self, replica: int) -> Path:
        """File of a replica's trajectory."""
        return replica_path(self.folder, replica)


def replica_path(folder: Path, replica: int) -> Path:
    """File of a replica's trajectory."""
    return folder / f"replica-{replica:05d}.h5"


def finished(job: Job, replica: int, name: str, log_weight: float) -> dict[str, Any] | None:
    """Return the record of a replica whose file is whole."""
    path = job.path(replica)
    if not path.is_file():
        return None
    trajectory.repair(path)
    try:
        values = read_attributes(path)
    except InputError as problem:
        log.warning("%s; the replica starts again", problem)
        path.unlink()
        return None
    if not values.get("finished", False):
        return None
    size = path.stat().st_size
    return {"event": "done", "state": "done", "replica": replica, "pdb": name, "log_weight": log_weight, "bytes": size} | {
        name: values[name].item() if isinstance(values[name], np.generic) else values[name] for name in _RECORDED
    }
