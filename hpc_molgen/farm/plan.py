"""Which replicas a farm runs, by what, and how many at once; kept, so that whoever goes on runs the same."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from hpc_molgen.errors import InputError
from hpc_molgen.files import read_json, write_json
from hpc_molgen.structures import read_manifest, read_pdb_positions
from hpc_molgen.systems.base import MolecularSystem

if TYPE_CHECKING:
    from hpc_molgen.farm.ledger import Standing
    from hpc_molgen.run import Run


_FRAME = re.compile(r"(replica-\d+\.h5) frame (\d+)")


@dataclass(frozen=True)
class Task:
    """Replicas that one worker runs at once.

    Attributes
    ----------
    pack : int
        Number of the pack that they belong to in the plan.
    replicas : tuple of int
    names : tuple of str
        Each one's start: a file of the starts' folder, or a row of the ensemble.
    log_weights : tuple of float
    attempt : int
        1, and more for those that got new seeds.
    """

    pack: int
    replicas: tuple[int, ...]
    names: tuple[str, ...]
    log_weights: tuple[float, ...]
    attempt: int = 1

    def only(self, replicas: Sequence[int], attempt: int) -> Task:
        """Return the task of some of the replicas."""
        chosen = set(replicas)
        rows = [row for row, replica in enumerate(self.replicas) if replica in chosen]
        names, weights = tuple(self.names[row] for row in rows), tuple(self.log_weights[row] for row in rows)
        return Task(self.pack, tuple(self.replicas[row] for row in rows), names, weights, attempt)


@dataclass(frozen=True)
class Plan:
    """All replicas of a farm.

    Attributes
    ----------
    platform : str
        "batched", "gromacs" or a platform of OpenMM's.
    pack_size : int
        Replicas that one worker runs at once.
    starts : Path
        A folder of PDB files, or the file of an ensemble.
    names : list of str
    log_weights : list of float
        One for each replica.
    """

    platform: str
    pack_size: int
    starts: Path
    names: list[str]
    log_weights: list[float]

    @property
    def n_packs(self) -> int:
        """Packs that the replicas make."""
        return -(-len(self.names) // self.pack_size)

    def tasks(self, found: Standing, packs: Sequence[int] | None = None) -> list[Task]:
        """Return what is not finished yet, of all packs or of some."""
        tasks = []
        for pack in range(self.n_packs) if packs is None else packs:
            rows = slice(pack * self.pack_size, min((pack + 1) * self.pack_size, len(self.names)))
            replicas = tuple(range(rows.start, rows.stop))
            whole = Task(pack, replicas, tuple(self.names[rows]), tuple(self.log_weights[rows]))
            missing = [replica for replica in replicas if replica not in found.final]
            for attempt in sorted({found.attempts.get(replica, 1) for replica in missing}):
                tasks.append(whole.only([r for r in missing if found.attempts.get(r, 1) == attempt], attempt))
        return tasks


def make_plan(run: Run, n_rounds: int = 1) -> Plan:
    """Return the plan of a farm's first rounds: the one that an earlier attempt kept, or a new one.

    `farm.n_replicas` starts are spread evenly over those that there are; those of further rounds are chosen when the rounds
    before have ended. The plan does not depend on the number of workers.

    Raises
    ------
    InputError
        When there is nothing to start from.
    """
    config, path = run.config.farm, run.path("farm", "plan.json")
    starts, names, log_weights = _starts(run)
    n = min(config.n_replicas, len(names))
    chosen = [index * len(names) // n for index in range(n)]
    if path.is_file():
        kept = read_json(path)
        platform, size = str(kept["platform"]), int(kept["pack_size"])
    else:
        platform, size = _engine(run, n)
        write_json(path, {"platform": platform, "pack_size": size, "n_replicas": n, "starts": str(starts)})
    names, log_weights = [names[index] for index in chosen], [log_weights[index] for index in chosen]
    for number in range(2, n_rounds + 1):
        further = _further(run, number, log_weights, n)
        names, log_weights = names + further["names"], log_weights + further["log_weights"]
    return Plan(platform, size, starts, names, log_weights)


def processes_per_gpu(run: Run, plan: Plan) -> int:
    """Return how many processes share a GPU: as configured, else as measured once with the first start and kept."""
    from hpc_molgen.farm.boxes import boxed
    from hpc_molgen.farm.sharing import measured_per_gpu

    config, path = run.config.farm, run.path("farm", "plan.json")
    if config.per_gpu is not None:
        return config.per_gpu
    kept = read_json(path)
    if "per_gpu" not in kept:
        system = run.system
        if config.solvent != "same":
            start = read_start(plan.starts, plan.names[0], system, path.parent)
            system = boxed(system, start, config, path.parent / "boxes")
        kept["per_gpu"] = measured_per_gpu(system, config, plan.platform, sorted(os.sched_getaffinity(0)))
        write_json(path, kept)
    return int(kept["per_gpu"])


def _further(run: Run, number: int, log_weights: list[float], n: int) -> dict[str, Any]:
    """Return the starts of round `number`, chosen once and kept."""
    from hpc_molgen.farm import adaptive, ledger

    path = run.path("farm", f"round-{number}.json")
    if not path.is_file():
        found = ledger.standing(path.parent)
        done = {replica for replica, line in found.final.items() if json.loads(line)["state"] == "done"}
        rounds = [
            {replica: log_weights[replica] for replica in range(start, start + n) if replica in done}
            for start in range(0, len(log_weights), n)
        ]
        write_json(path, adaptive.next_starts(run.system, path.parent, rounds, n, run.config.seed))
    kept: dict[str, Any] = read_json(path)
    return kept


def _engine(run: Run, n: int) -> tuple[str, int]:
    """Return who runs the replicas, and how many of them at once."""
    from hpc_molgen.dynamics.choice import BATCHED, choose_dynamics, copies_per_batch
    from hpc_molgen.dynamics.engine import fastest_platform, platform_of_boxes
    from hpc_molgen.dynamics.gromacs import GROMACS, gromacs_path

    config = run.config.farm
    if config.engine == GROMACS:
        if gromacs_path() is None:
            raise InputError("farm.engine gromacs: there is no executable gmx on this machine; load its module, or use openmm")
        return GROMACS, 1
    if config.platform == "auto" and config.solvent != "same":  # its boxes are not made yet
        return platform_of_boxes(), 1
    if config.platform == "auto" and config.restraint_kj_mol_nm2:  # which the batched engine does not know
        return fastest_platform(run.system), 1
    platform = choose_dynamics(run.system, config.platform, n)
    return platform, copies_per_batch(run.system) if platform == BATCHED else 1


def starts_folder(run: Run) -> Path:
    """Where the starts of a run's farm lie: a folder of PDB files, or the file of an ensemble."""
    return run.path("correct", "pdb") if run.config.farm.starts is None else Path(run.config.farm.starts)


def _starts(run: Run) -> tuple[Path, list[str], list[float]]:
    """Return where the starts lie, their names, and their log-weights."""
    place = starts_folder(run)
    if run.config.farm.starts is None:
        rows = read_manifest(place, run.system)
        found = place, [str(row["file"]) for row in rows], [float(np.log(float(str(row["weight"])))) for row in rows]
    else:
        found = _folder(place) if place.is_dir() else _ensemble(place, run.system)
    if not found[1]:
        raise InputError(f"{found[0]}: there is no structure to start from")
    return found


def _folder(folder: Path) -> tuple[Path, list[str], list[float]]:
    """Return the PDB files of a folder, by name; weights.csv (lines `file,weight`) gives those that it names theirs."""
    names = sorted(path.name for path in folder.glob("*.pdb"))
    weights = dict.fromkeys(names, 1.0)
    table = folder / "weights.csv"
    if table.is_file():
        for number, line in enumerate(table.read_text().splitlines(), 1):
            name, _, text = (part.strip() for part in line.partition(","))
            try:
                if name in weights:
                    weights[name] = float(text)
                elif number > 1 and name:  # the first line may be a heading
                    raise ValueError(f"there is no file {name}")
                if name in weights and not 0 < weights[name] < float("inf"):
                    raise ValueError(f"a weight must be positive, not {text}")
            except ValueError as error:
                raise InputError(f"{table}, line {number}: {error}; a line is file,weight") from error
    return folder, names, [float(np.log(weights[name])) for name in names]


def _ensemble(path: Path, system: MolecularSystem) -> tuple[Path, list[str], list[float]]:
    from hpc_molgen.ensemble import read_ensemble

    log_weights = read_ensemble(path, system).log_weight
    return path, [f"frame {row}" for row in range(len(log_weights))], log_weights.tolist()


def read_start(starts: Path, name: str, system: MolecularSystem, folder: Path) -> np.ndarray:
    """Return positions_nm (n_atoms, 3) of one start; those of further rounds are frames of replicas in the farm's `folder`.

    Raises
    ------
    InputError
        When it cannot be read or is not of this molecule.
    """
    further = _FRAME.fullmatch(name)
    if further is None and starts.is_dir():
        return read_pdb_positions(starts / name, system)
    path, row = (folder / further[1], further[2]) if further else (starts, name.removeprefix("frame "))
    try:
        with h5py.File(path, "r") as file:
            positions: np.ndarray = file["coordinates"][int(row)].astype(np.float64)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}, {name}: cannot be read ({error})") from error
    return positions
