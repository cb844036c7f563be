"""A peptide sampled in pieces: fragments are joined on the torsions that they share, and exact moves correct the whole.

Each fragment has a library of its own conformations (`libraries.py`, or any ensemble with weights). Joined from left to
right they give a population that knows nothing beyond the windows (`join`); Metropolis-Hastings moves that exchange a window's
coordinates for others of its fragment leave the Boltzmann distribution of the whole molecule as it is (`run_joined`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from hpc_molgen import interrupts, reweighting
from hpc_molgen.angles import wrap
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.blocks import Block
from hpc_molgen.montecarlo.hamiltonian import HamiltonianMoves
from hpc_molgen.montecarlo.windows import Turn, backbone_columns, internal_coordinates
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.seeding import numpy_generator
from hpc_molgen.systems.base import MolecularSystem

TUNING = 0.25  # share of the sweeps that tune and forget the starts, and are not kept
FAR_DEG = 60.0
Parts = Literal["windows", "residues", "both", "all"]


class Whole:
    """The Boltzmann distribution of a molecule in its internal coordinates, exp(-u) times their volume element.

    Parameters
    ----------
    system : MolecularSystem
        A capped peptide whose forces the batched engine knows.
    reduced_energy : callable, optional
        From positions (n, n_atoms, 3) to u (n,) in place of the molecule's.

    Attributes
    ----------
    n_energies : int
        Computed so far.
    has_forces : bool
        False with another `reduced_energy`.
    """

    def __init__(self, system: MolecularSystem, reduced_energy: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self.system, self.zmatrix = system, ZMatrix(system.topology)
        self.batched = BatchedSystem(system, "float64", threads=1)
        self.has_forces = reduced_energy is None
        self._reduced_energy = reduced_energy or (lambda x: self.batched.energies(x) / system.kt_kj_mol)
        self._backbone = backbone_columns(self.zmatrix, system.topology)
        self.n_energies = 0

    def coordinates(self, positions_nm: np.ndarray) -> torch.Tensor:
        """Internal coordinates (n, 3N - 6) of positions (n, N, 3)."""
        return internal_coordinates(self.zmatrix, torch.from_numpy(np.asarray(positions_nm, dtype=np.float64)))

    def positions_nm(self, coordinates: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
        """Positions (n, N, 3) and ln of the volume element (n,), -inf outside of the domain."""
        n = self.zmatrix.n_atoms
        bonds, angles, torsions = torch.split(coordinates, [n - 1, n - 2, n - 3], dim=1)
        inside = (bonds > 0).all(1) & (angles > 0).all(1) & (angles < torch.pi).all(1)
        positions, volume = self.zmatrix.to_positions(bonds.clamp(min=1e-3), angles.clamp(1e-6, torch.pi - 1e-6), torsions)
        return positions.numpy(), torch.where(inside, volume, torch.full_like(volume, -torch.inf))

    def log_target(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Unnormalised ln of the density (n,) of coordinates (n, 3N - 6); -inf where there is none."""
        positions, volume = self.positions_nm(coordinates)
        self.n_energies += len(positions)
        value = volume - torch.from_numpy(self._reduced_energy(positions))
        return torch.where(torch.isfinite(value), value, torch.full_like(value, -torch.inf))

    def backbone_rad(self, coordinates: torch.Tensor) -> np.ndarray:
        """Phi and psi of each residue, shape=(n, n_residues, 2)."""
        found: np.ndarray = coordinates[:, self._backbone.ravel()].numpy().reshape(len(coordinates), -1, 2)
        return found

    def went_far(self, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
        """Whether phi or psi of a residue differ by more than `FAR_DEG`, shape=(n,)."""
        turned = np.abs(wrap(self.backbone_rad(after) - self.backbone_rad(before)))
        found: np.ndarray = (turned > np.radians(FAR_DEG)).any(axis=(1, 2))
        return found


def join(whole: Whole, blocks: Sequence[Block], n: int, generator: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """Grow `n` molecules from left to right: a window adds its last residues, given those that it shares with the one before.

    What no window knows (methyl groups, rings, the caps' ends) stays as in the system's own structure.

    Parameters
    ----------
    whole : Whole
    blocks : sequence of Block
        By window, and together of every residue.
    n : int
    generator : np.random.Generator

    Returns
    -------
    coordinates : torch.Tensor, shape=(n, 3N - 6)
        Independent of each other.
    log_weight : np.ndarray, shape=(n,)
        Ln of the target over the density that they were drawn from, with what stays fixed.

    Raises
    ------
    InputError
        When a residue is in no window.
    """
    coordinates = whole.coordinates(whole.system.positions_nm[None]).repeat(n, 1)
    log_density, placed = torch.zeros(n, dtype=torch.float64), set[int]()
    for block in blocks:
        new = set(block.window.residues) - placed
        coordinates, added = block.extend(coordinates, new, generator)
        log_density, placed = log_density + added, placed | new
    missing = set(range(1, whole.system.topology.n_residues - 1)) - placed
    if missing:
        raise InputError(f"no window holds the residues {sorted(missing)}: all must be sampled")
    return coordinates, (whole.log_target(coordinates) - log_density).numpy()


@dataclass(frozen=True)
class Moves:
    """What a sweep does.

    Attributes
    ----------
    parts : str
        "windows": all residues of a window turn at once; "residues": one of them, given the others; "both"; "all": and the
        backbone and the side chain of each of them by themselves, too.
    refresh : float
        Of the stiff coordinates of a window, see `Block.propose`.
    verlet_steps : int
        Of the Hamiltonian move of the whole molecule that ends a sweep; 0: none, and what no window knows stays as it is.
    """

    parts: Parts = "both"
    refresh: float = 0.0
    verlet_steps: int = 10


@dataclass
class Tally:
    """Proposals by what turned: how many there were, were accepted, and were accepted and went far.

    Attributes
    ----------
    counts : dict
        `Turn.name` -> np.ndarray of these three.
    """

    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def enter(self, turn: Turn, accepted: np.ndarray, far: np.ndarray) -> None:
        """Count one proposal of every chain (n,)."""
        added = np.array([len(accepted), accepted.sum(), (accepted & far).sum()], dtype=np.float64)
        self.counts[turn.name] = self.counts.get(turn.name, np.zeros(3)) + added

    def share(self, column: int) -> dict[str, float]:
        """Share of the proposals that were accepted (1), or accepted and went far (2)."""
        return {name: float(found[column] / found[0]) for name, found in self.counts.items()}


@dataclass(frozen=True)
class Joined:
    """What parallel chains visited after their tuning.

    Attributes
    ----------
    angles_rad : np.ndarray, shape=(n_sweeps, n_chains, n_residues, 2)
        Phi and psi after each sweep.
    log_target : np.ndarray, shape=(n_sweeps, n_chains)
    coordinates : torch.Tensor, shape=(n_chains, 3N - 6)
        At the end.
    acceptance, far : dict
        Shares of the proposals by `Turn.name`, over all windows that have it; `far`: accepted, and phi or psi of a residue
        changed by more than `FAR_DEG`.
    verlet_acceptance : float or None
    n_energies : int
        With those of Hamiltonian moves.
    """

    angles_rad: np.ndarray
    log_target: np.ndarray
    coordinates: torch.Tensor
    acceptance: dict[str, float]
    far: dict[str, float]
    verlet_acceptance: float | None
    n_energies: int


def run_joined(
    whole: Whole, blocks: Sequence[Block], coordinates: torch.Tensor, n_sweeps: int, seed: int, moves: Moves
) -> Joined:
    """Run one chain from each start; all of them have the Boltzmann distribution of the whole as their stationary one.

    A window's proposal is accepted with min(1, exp(-u' + u) V' q / (V q')), V the volume element and q the density of the
    exchanged coordinates in the fragment (Hastings 1970, Biometrika 57, 97): exact, however poor the library. The first quarter
    of the sweeps tunes the time step of the Hamiltonian moves, and is left out.

    Parameters
    ----------
    whole : Whole
    blocks : sequence of Block
    coordinates : torch.Tensor, shape=(n_chains, 3N - 6)
        Of starts with a finite energy.
    n_sweeps, seed : int
    moves : Moves

    Raises
    ------
    InputError
        When a start has no finite energy, or when Hamiltonian moves are asked for in another energy than the molecule's.
    """
    if moves.verlet_steps and not whole.has_forces:
        raise InputError("Hamiltonian moves follow the molecule's own energy: set verlet_steps to 0 with another one")
    generator, before = numpy_generator(seed, "fragments"), whole.n_energies
    value = whole.log_target(coordinates)
    if not torch.isfinite(value).all():
        raise InputError("a start of the joined molecule has no finite energy: minimise it first")
    hamiltonian = HamiltonianMoves(whole.batched, whole.system.kt_kj_mol, moves.verlet_steps)
    n_tuning, tally = max(1, int(TUNING * n_sweeps)), Tally()
    kept, values, verlet = [], [], list[float]()
    for sweep in range(n_sweeps):
        interrupts.check()
        counted = sweep >= n_tuning
        for block in blocks:
            for turn in turns_of(block, moves.parts):
                proposal, log_ratio = block.propose(coordinates, turn, moves.refresh, generator)
                proposed = whole.log_target(proposal)
                log_uniform = torch.from_numpy(np.log1p(-generator.random(len(value))))
                accepted = log_uniform < torch.nan_to_num(proposed - value + log_ratio, nan=-torch.inf)
                if counted:
                    tally.enter(turn, accepted.numpy(), whole.went_far(coordinates, proposal))
                coordinates = torch.where(accepted[:, None], proposal, coordinates)
                value = torch.where(accepted, proposed, value)
        if moves.verlet_steps:
            positions, _, moved = hamiltonian.move(whole.positions_nm(coordinates)[0], generator)
            coordinates = whole.coordinates(positions)
            value = whole.log_target(coordinates)
            whole.n_energies += (moves.verlet_steps + 1) * len(value)
            if not counted:
                hamiltonian.tune(float(moved.mean()))
            verlet += [float(moved.mean())] if counted else []
        if counted:
            kept.append(whole.backbone_rad(coordinates))
            values.append(value.numpy())
    share, n_energies = float(np.mean(verlet)) if verlet else None, whole.n_energies - before
    return Joined(np.array(kept), np.array(values), coordinates, tally.share(1), tally.share(2), share, n_energies)


def turns_of(block: Block, parts: Parts) -> list[Turn]:
    """Return what turns at once, one proposal after another."""
    own = tuple(block.window.residues)
    asked = [] if parts == "residues" else [Turn(own)]
    asked += [] if parts == "windows" else [Turn((residue,)) for residue in own]
    if parts == "all":
        asked += [Turn((residue,), part) for residue in own for part in ("backbone", "side chain")]
    different: dict[tuple[int, ...], Turn] = {}
    for turn in asked:  # what turns the same torsions, as of glycine, is proposed once
        different.setdefault(tuple(block.columns.turned(turn)), turn)
    return [turn for places, turn in different.items() if places]


def resampled(coordinates: torch.Tensor, log_weight: np.ndarray, n: int, generator: np.random.Generator) -> torch.Tensor:
    """Draw `n` of joined molecules as starts, by their weights to the power at which `n` of them count, of at most one.

    Where few of them carry all the weight, chains that begin in these few would have seen nothing else.
    """
    if np.count_nonzero(np.isfinite(log_weight)) < n:
        raise InputError(f"fewer than {n} joined molecules have a finite energy: join more of them")
    low, high = 0.0, 1.0
    if reweighting.kish_ess(log_weight) < n:
        for _ in range(50):
            middle = 0.5 * (low + high)
            enough = reweighting.kish_ess(_powered(log_weight, middle)) >= n
            low, high = (middle, high) if enough else (low, middle)
    else:
        low = 1.0
    rows = reweighting.systematic_resample(_powered(log_weight, low), n, generator)
    return coordinates[torch.from_numpy(rows)]


def _powered(log_weight: np.ndarray, power: float) -> np.ndarray:
    """Ln of weights to a power; those of zero stay zero."""
    return np.where(np.isfinite(log_weight), power * np.nan_to_num(log_weight, neginf=0.0), -np.inf)
