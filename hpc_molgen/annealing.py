"""What the correct stage does where weights alone are worth too little: it moves the samples until they are.

Islands of proposals are independent items of work. A surrogate that gives ln q in one pass is annealed to the Boltzmann
distribution by sequential Monte Carlo; one whose ln q takes an integration makes proposals of exact chains.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import logsumexp

from hpc_molgen import datasets, reweighting
from hpc_molgen.ensemble import Ensemble, read_ensemble
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.tensorfiles import load_tensors, save_tensors
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    import torch

    from hpc_molgen.config import CorrectConfig, SampleConfig
    from hpc_molgen.run import Run

log = logging.getLogger(__name__)
POOR_ESS = 0.1  # of the samples: below, `correct.method: auto` anneals
FEWEST = 20  # samples that a chain needs
SWEEPS = 40  # independence steps of a chain, whose number follows


@dataclass(frozen=True)
class Island:
    """Proposals that are moved together, from number `start` on; what becomes of them is kept in `path`."""

    start: int
    path: Path
    system: MolecularSystem
    config: CorrectConfig
    sample: SampleConfig
    surrogate: Path
    representation: Path
    positions_nm: np.ndarray
    log_density: np.ndarray
    seed: int


@dataclass(frozen=True)
class Moved:
    """What became of an island.

    Attributes
    ----------
    positions_nm : np.ndarray, shape=(n, n_atoms, 3)
    reduced_energy, log_weight : np.ndarray, shape=(n,)
    unit : np.ndarray, shape=(n,), int
        What is independent: the island (0) of annealed particles, or the chain.
    parent : np.ndarray, shape=(n,), int
        Proposal of the island that each conformation descends from; -1 in chains.
    about : dict
        Figures of the island; `failed` says why there are no conformations.
    """

    positions_nm: np.ndarray
    reduced_energy: np.ndarray
    log_weight: np.ndarray
    unit: np.ndarray
    parent: np.ndarray
    about: dict[str, Any]

    def write(self, path: Path, system_key: str) -> None:
        """Write a safetensors file."""
        import torch

        tensors = {name: torch.as_tensor(getattr(self, name)) for name in _ARRAYS}
        save_tensors(path, tensors, {"name": "island", "system_key": system_key, "figures": self.about})

    @classmethod
    def read(cls, path: Path, system_key: str) -> Moved:
        """Read a file of `write`."""
        tensors, about = load_tensors(path, "island", system_key)
        arrays: dict[str, Any] = {name: tensors[name].numpy() for name in _ARRAYS}
        return cls(**arrays, about=about["figures"])


_ARRAYS = tuple(field.name for field in fields(Moved) if field.name != "about")


def choose_method(config: CorrectConfig, log_weight: np.ndarray) -> Literal["weights", "anneal"]:
    """Return what the configuration asks for; by default annealing where the effective size is below a tenth."""
    if config.method != "auto":
        return config.method
    return "weights" if reweighting.kish_ess(log_weight) >= POOR_ESS * len(log_weight) else "anneal"


def plan_islands(run: Run, energies: list[tuple[np.ndarray, float]]) -> list[Island]:
    """Cut the proposals into islands where they have to be moved; none where their weights are good enough, or there are none.

    Where the batched engine does not know the forces nothing can be moved, which the log says.
    """
    if run.config.makes_trajectories or datasets.why_unweighted(run):
        return []
    config, system = run.config.correct, run.system
    proposals = read_ensemble(run.path("sample", "proposals.h5"), system)

    def wanted() -> bool:
        log_weight = reweighting.importance_log_weights(np.concatenate([part for part, _ in energies]), proposals.log_density)
        return choose_method(config, log_weight) == "anneal" and _can_be_moved(run, len(proposals))

    if not run.workers.from_root(wanted):
        return []
    files = run.path("train", "surrogate.safetensors"), run.path("featurize", "representation.safetensors")
    directory = run.path("correct", "islands")
    directory.mkdir(exist_ok=True)
    n_islands = max(1, len(proposals) // config.island_size)  # of nearly equal sizes, so that no proposal is left over
    edges = [len(proposals) * number // n_islands for number in range(n_islands + 1)]
    return [
        Island(
            start, directory / f"island-{index:05d}.safetensors", system, config, run.config.sample, *files,
            proposals.positions_nm[start:end], proposals.log_density[start:end], derive_seed(run.config.seed, "anneal", index),
        )
        for index, (start, end) in enumerate(itertools.pairwise(edges))
    ]  # fmt: skip


def _can_be_moved(run: Run, n_samples: int) -> bool:
    from hpc_molgen.dynamics.batched import try_batched

    if not run.config.representation.is_whole:
        log.warning(
            "weights of the representation '%s' are poor; only 'internal', 'relaxed' and 'cartesian' can be annealed",
            run.config.representation.name,
        )
        return False
    if n_samples < FEWEST:
        log.warning("weights are poor, and %d samples are too few to be moved", n_samples)
        return False
    if run.config.sample.sampler == "path":
        log.warning("weights are poor, and sample.sampler path gives no ln q by which samples could be annealed")
        return False
    return try_batched(run.system) is not None  # which says in the log why not


def move_island(island: Island) -> Moved:
    """Carry one island to the Boltzmann distribution, by annealing or by chains as its surrogate allows.

    One that a killed run has finished is read from its file.
    """
    if not island.path.exists():
        _move(island).write(island.path, island.system.key)
    return Moved.read(island.path, island.system.key)


def _move(island: Island) -> Moved:
    import torch

    from hpc_molgen.montecarlo.chains import run_chains
    from hpc_molgen.montecarlo.densities import BoltzmannDensity
    from hpc_molgen.montecarlo.smc import anneal
    from hpc_molgen.representations.base import load_representation
    from hpc_molgen.surrogates.base import load_surrogate

    torch.set_num_threads(1)  # islands are the parallelism: one core each
    watch, system, config = Stopwatch(), island.system, island.config
    surrogate = load_surrogate(island.surrogate, system.key)
    representation = load_representation(island.representation, system)
    target, n_torus = BoltzmannDensity(system, representation), representation.n_torus
    features = representation.encode(torch.as_tensor(island.positions_nm, dtype=torch.float64))
    about: dict[str, Any]
    if surrogate.one_pass:
        start = surrogate.log_density_and_gradient
        # encoding has relabelled proposals outside of the domain: no samples of the surrogate any more, and of weight zero
        inside = np.flatnonzero(np.isfinite(island.log_density))
        try:
            if not len(inside):
                raise InputError("every sample of the surrogate lies outside of the representation's domain: train longer")
            particles = anneal(
                start, target, features[inside], n_torus, island.seed, n_moves=config.moves,
                conditional_ess=config.conditional_ess,
            )  # fmt: skip
        except InputError as problem:
            return _failed(island, problem)
        moved, log_target = particles.features, particles.log_target
        log_weight = particles.log_weight + np.log(len(inside) / len(features))
        unit, parent = np.zeros(len(moved), dtype=int), inside[particles.ancestor]
        about = {"levels": len(particles.levels), "acceptance": float(np.mean(particles.acceptance))}
        about["log_z"] = float(logsumexp(log_weight) - np.log(len(log_weight)))
    else:
        _, log_abs_det = representation.decode(features)
        log_q = torch.as_tensor(island.log_density) + log_abs_det
        n_chains = max(1, len(features) // SWEEPS)
        log_start, seed = _density_of(surrogate, island.sample), island.seed
        try:
            chains = run_chains(log_start, target, features, log_q, n_torus, n_chains, seed, n_moves=config.moves)
        except InputError as problem:
            return _failed(island, problem)
        moved = chains.features.transpose(0, 1).reshape(-1, features.shape[1])
        log_target = chains.log_target.T.reshape(-1)
        log_weight, parent = np.zeros(len(moved)), np.full(len(moved), -1)
        unit = np.repeat(np.arange(n_chains), len(chains.features))
        about = {"independence_acceptance": chains.independence_acceptance, "acceptance": chains.langevin_acceptance}
    positions, log_abs_det = representation.decode(moved)
    energy = log_abs_det.numpy() - log_target
    about |= {"n_energies": target.n_evaluations, "cpu_s": watch.cpu_s}
    return Moved(positions.numpy(), energy, log_weight, unit, parent, about)


def _failed(island: Island, problem: InputError) -> Moved:
    """One bad island is a record; a file that cannot be read is none, and is not kept as one."""
    none, index = np.empty(0), np.empty(0, dtype=int)
    return Moved(np.empty((0, island.system.n_atoms, 3)), none, none, index, index, {"failed": str(problem)})


def _density_of(surrogate: Any, config: SampleConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """Ln q (n,) of features (n, n_features), as the samples have it."""
    from hpc_molgen.surrogates.base import density_options

    return functools.partial(surrogate.log_density, **density_options(surrogate, config))


def join_islands(run: Run, islands: Sequence[Island], moved: Sequence[Moved]) -> tuple[Ensemble, dict[str, Any]]:
    """Join what became of the islands: an ensemble, whose trajectories are what is independent, and how it was made.

    Raises
    ------
    InputError
        When no island came to the Boltzmann distribution.
    """
    failures = [part.about["failed"] for part in moved if "failed" in part.about]
    if len(failures) == len(moved):
        raise InputError(
            f"correct: none of the {len(moved)} islands of samples came to the Boltzmann distribution: {failures[0]}"
        )
    pairs = [(island, part) for island, part in zip(islands, moved, strict=True) if "failed" not in part.about]
    islands, moved = [island for island, _ in pairs], [part for _, part in pairs]
    per_island = [int(part.unit.max()) + 1 for part in moved]
    first = np.concatenate([[0], np.cumsum(per_island)])
    ensemble = Ensemble.create(
        run.system,
        np.concatenate([part.positions_nm for part in moved]),
        reduced_energy=np.concatenate([part.reduced_energy for part in moved]),
        log_weight=np.concatenate([part.log_weight for part in moved]),
        parent=np.concatenate(
            [np.where(part.parent < 0, -1, part.parent + island.start) for island, part in zip(islands, moved, strict=True)]
        ),
        trajectory=np.concatenate([part.unit + start for part, start in zip(moved, first, strict=False)]),
    )
    names = sorted({name for part in moved for name in part.about} - {"n_energies", "cpu_s", "log_z"})
    about: dict[str, Any] = {name: float(np.mean([part.about[name] for part in moved])) for name in names}
    about["kind"] = "sequential Monte Carlo" if "levels" in about else "chains"
    about |= {"islands": len(moved), "independent_parts": int(first[-1]), "failures": failures}
    about |= {name: sum(part.about[name] for part in moved) for name in ("n_energies", "cpu_s")}
    if "levels" in about:
        log_z = np.array([part.about["log_z"] for part in moved])
        about["log_z_sd"] = float(log_z.std(ddof=1)) if len(log_z) > 1 else None
        about["ancestors"] = len(np.unique(ensemble.parent))
    return ensemble, about
