"""Langevin dynamics of many copies of one molecule at once, and their minimisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from hpc_molgen import interrupts
from hpc_molgen.dynamics.batched import BatchedSystem, in_threads, split_copies
from hpc_molgen.dynamics.kernel import NativeIntegrator
from hpc_molgen.dynamics.terms import Terms
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import numpy_generator
from hpc_molgen.units import BOLTZMANN_KJ_MOL_KELVIN

Observable = Callable[[np.ndarray], np.ndarray]
BLOCK_STEPS = 200  # of one call of the kernel
RECENTRE_STEPS = 100  # float32 positions keep their digits near the origin
TOLERANCE = {"float32": 2e-6, "float64": 1e-8}  # of constrained lengths, relative
_STIFF_KJ_MOL_NM2 = 4e5  # constraints become bonds this stiff while minimising


@dataclass(frozen=True)
class BatchFrames:
    """Consecutive frames of many copies.

    Attributes
    ----------
    positions_nm : np.ndarray, shape=(n_kept, n_copies, n_atoms, 3), float32
        Of every `coordinates_every`-th frame.
    potential_kj_mol, kinetic_kj_mol : np.ndarray, shape=(n_frames, n_copies)
    time_ps : np.ndarray, shape=(n_frames,)
        Since the dynamics began.
    observables : dict of np.ndarray, each of shape=(n_frames, n_copies)
    """

    positions_nm: np.ndarray
    potential_kj_mol: np.ndarray
    kinetic_kj_mol: np.ndarray
    time_ps: np.ndarray
    observables: dict[str, np.ndarray] = field(default_factory=dict)


class BatchedDynamics:
    """Langevin-middle dynamics (Zhang et al. 2019, J. Phys. Chem. A 123, 6056) of many copies, each with its own stream.

    A copy's random numbers depend on its seed and the number of the step alone, and no operation looks at two copies: in the
    kernel its trajectory is the same bit for bit whatever other copies run beside it, on any number of threads. (Torch may
    round otherwise for another number of copies, and trajectories then part after some picoseconds.)

    Parameters
    ----------
    batched : BatchedSystem
        Energy function; its System's constraints are kept and its masses are used.
    positions_nm : np.ndarray, shape=(n, n_atoms, 3)
    seeds : sequence of int, length n
        One for each copy (from `derive_seed`).
    temperature_kelvin : float or np.ndarray, shape=(n,)
    timestep_fs, friction_per_ps : float
    unbiased : BatchedSystem, optional
        Energy function of the recorded potential energies, where `batched` holds a bias.
    """

    def __init__(
        self,
        batched: BatchedSystem,
        positions_nm: np.ndarray,
        seeds: list[int],
        *,
        temperature_kelvin: float | np.ndarray,
        timestep_fs: float = 1.0,
        friction_per_ps: float = 1.0,
        unbiased: BatchedSystem | None = None,
    ) -> None:
        n, terms = len(positions_nm), batched.terms
        if len(seeds) != n:
            raise InputError(f"{n} copies need as many seeds, not {len(seeds)}")
        self.batched, self._energies = batched, unbiased or batched
        self.timestep_fs, self.n_steps = timestep_fs, 0
        self._masses = terms.masses_amu[:, None]
        self._seeds = np.array([[seed & 0xFFFFFFFF, seed >> 32] for seed in seeds], dtype=np.uint32)
        self._kt = np.empty(n)
        self.set_temperature(temperature_kelvin)
        positions = apply_constraints(np.asarray(positions_nm, dtype=np.float64), terms)
        centred = terms.translation_invariant and bool((terms.masses_amu > 0).all())  # atoms without mass stay in place
        if centred:
            positions -= positions.mean(axis=1, keepdims=True)
        self._x = np.ascontiguousarray(positions, dtype=batched.dtype)
        self._v = self._draw_velocities(seeds)
        settings = (timestep_fs * 1e-3, friction_per_ps, TOLERANCE[batched.dtype.name])
        recentre = RECENTRE_STEPS if centred else 0
        if batched.native is not None:
            constraints = terms.constraints, terms.constraint_lengths_nm
            self._advance = NativeIntegrator(batched.native, terms.masses_amu, *constraints, *settings, recentre).run
            self._lanes = batched.native.lanes
        else:
            from hpc_molgen.dynamics.torch_langevin import TorchIntegrator

            self._advance = TorchIntegrator(batched, *settings, recentre).run
            self._lanes = max(n, 1)  # torch takes all copies in one call

    def _draw_velocities(self, seeds: list[int]) -> np.ndarray:
        """Maxwell-Boltzmann velocities, each copy's from its own seed."""
        noise = np.array([numpy_generator(seed, "velocities").standard_normal((self.batched.n_atoms, 3)) for seed in seeds])
        with np.errstate(divide="ignore"):
            spread = np.where(self._masses > 0, 1 / np.sqrt(self._masses), 0.0)
        velocities = noise.reshape(self._x.shape) * spread * np.sqrt(self._kt)[:, None, None]
        return np.ascontiguousarray(velocities, dtype=self._x.dtype)

    def __len__(self) -> int:
        return len(self._x)

    @property
    def positions_nm(self) -> np.ndarray:
        """Current positions, a copy, shape=(n, n_atoms, 3)."""
        return self._x.copy()

    @property
    def kinetic_kj_mol(self) -> np.ndarray:
        """Kinetic energy of each copy, shape=(n,)."""
        energy: np.ndarray = 0.5 * (self._masses * self._v.astype(np.float64) ** 2).sum((1, 2))
        return energy

    @property
    def potential_kj_mol(self) -> np.ndarray:
        """Potential energy of each copy, without a bias, shape=(n,)."""
        energy: np.ndarray = self._energies.energies(self._x)
        return energy

    @property
    def temperature_kelvin(self) -> np.ndarray:
        """Temperature of each copy's thermostat, shape=(n,)."""
        return self._kt / BOLTZMANN_KJ_MOL_KELVIN

    def set_temperature(self, temperature_kelvin: float | np.ndarray, *, rescale: bool = False) -> None:
        """Set the thermostats; `rescale` scales velocities by the square root of the ratio, as a swap of tempering asks."""
        kt = np.broadcast_to(np.asarray(temperature_kelvin, dtype=np.float64) * BOLTZMANN_KJ_MOL_KELVIN, self._kt.shape)
        if rescale:
            self._v *= np.sqrt(kt / self._kt).astype(self._v.dtype)[:, None, None]
        self._kt = np.array(kt)

    def state(self) -> dict[str, np.ndarray]:
        """Return all that the future depends on, for `restore`."""
        return {
            "positions": self._x,
            "velocities": self._v,
            "kt": self._kt,
            "seeds": self._seeds,
            "n_steps": np.array(self.n_steps),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Go on from a `state` that holds these copies, known by their seeds, among others perhaps.

        Returns
        -------
        np.ndarray, shape=(n,), or None
            Their rows in the state; None, and nothing changed, if one is not in it.
        """
        numbers = {tuple(seed): number for number, seed in enumerate(state["seeds"].tolist())}
        found = [numbers[key] for seed in self._seeds.tolist() if (key := tuple(seed)) in numbers]
        if len(found) < len(self) or state["positions"].dtype != self._x.dtype:
            return None
        rows = np.array(found, dtype=np.int64)
        self._x, self._v, self._kt = (state[name][rows] for name in ("positions", "velocities", "kt"))
        self.n_steps = int(state["n_steps"])
        return rows

    def step(self, n_steps: int) -> None:
        """Advance all copies by `n_steps`; Ctrl-C and signals are heard every `BLOCK_STEPS`."""
        parts = split_copies(len(self), self._lanes, self.batched.threads)
        for start in range(0, n_steps, BLOCK_STEPS):
            interrupts.check()
            size = min(BLOCK_STEPS, n_steps - start)

            def part(rows: slice, size: int = size) -> None:
                self._advance(self._x[rows], self._v[rows], self._kt[rows], self._seeds[rows], self.n_steps, size)

            in_threads(part, parts)
            self.n_steps += size

    def simulate(
        self,
        n_frames: int,
        steps_per_frame: int,
        *,
        observables: Mapping[str, Observable] | None = None,
        coordinates_every: int = 1,
        block: int = 1000,
    ) -> Iterator[BatchFrames]:
        """Run and yield `n_frames` frames in blocks.

        Parameters
        ----------
        observables : dict of functions
            Each from positions (n, n_atoms, 3) to values (n,), evaluated at every frame.
        coordinates_every : int
            Keep positions of every so many frames (0: none).
        """
        functions = dict(observables or {})
        for start in range(0, n_frames, block):
            numbers = range(start, min(start + block, n_frames))
            kept, rows = [], []
            values: dict[str, list[np.ndarray]] = {name: [] for name in functions}
            for number in numbers:
                self.step(steps_per_frame)
                rows.append((self.potential_kj_mol, self.kinetic_kj_mol, self.n_steps * self.timestep_fs * 1e-3))
                if coordinates_every and (number + 1) % coordinates_every == 0:
                    kept.append(self._x.astype(np.float32))
                for name, function in functions.items():
                    values[name].append(function(self._x))
            yield BatchFrames(
                np.array(kept, dtype=np.float32).reshape(len(kept), *self._x.shape),
                np.array([row[0] for row in rows]),
                np.array([row[1] for row in rows]),
                np.array([row[2] for row in rows]),
                {name: np.array(series) for name, series in values.items()},
            )


def apply_constraints(positions_nm: np.ndarray, terms: Terms, tolerance: float = 1e-9) -> np.ndarray:
    """Move atoms along their constrained bonds until each has its length (SHAKE); positions (n, n_atoms, 3), a new array."""
    x = np.array(positions_nm, dtype=np.float64)
    with np.errstate(divide="ignore"):
        inverse = np.where(terms.masses_amu > 0, 1 / terms.masses_amu, 0.0)
    for _ in range(500):
        worst = 0.0
        for (i, j), length in zip(terms.constraints, terms.constraint_lengths_nm, strict=True):
            d = x[:, i] - x[:, j]
            r = np.linalg.norm(d, axis=1, keepdims=True)
            off = np.abs(r / length - 1) >= tolerance  # a copy that is right stays as it is, whatever the others need
            move = np.where(off, (length - r) / (r * (inverse[i] + inverse[j])), 0.0) * d
            x[:, i] += inverse[i] * move
            x[:, j] -= inverse[j] * move
            worst = max(worst, float(np.nanmax(np.abs(r / length - 1), initial=0.0)))
        if worst < tolerance:
            break
    return x


def without_constraints(terms: Terms) -> Terms:
    """Return terms in which stiff bonds stand for the constraints, as minimisation needs."""
    if not len(terms.constraints):
        return terms
    stiff = np.full(len(terms.constraints), _STIFF_KJ_MOL_NM2)
    return replace(
        terms,
        bonds=np.concatenate([terms.bonds, terms.constraints]).astype(np.int32),
        bond_parameters=np.concatenate([terms.bond_parameters, np.stack([terms.constraint_lengths_nm, stiff], axis=1)]),
        constraints=np.empty((0, 2), dtype=np.int32),
        constraint_lengths_nm=np.empty(0),
    )


def minimise(
    batched: BatchedSystem, positions_nm: np.ndarray, *, max_iterations: int = 1000, tolerance_kj_mol_nm: float = 10.0
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise every copy by L-BFGS (Nocedal 1980, Math. Comput. 35, 773; memory of 6), all at once.

    A copy ends when the root mean square of its forces falls below `tolerance_kj_mol_nm` (OpenMM's criterion and default). A
    step never moves an atom by more than 0.02 nm and is halved until the energy falls; where it cannot fall any more within
    the precision, the copy ends. Constraints count as stiff bonds.

    Parameters
    ----------
    positions_nm : np.ndarray, shape=(n, n_atoms, 3)

    Returns
    -------
    positions_nm : np.ndarray, shape=(n, n_atoms, 3), float64
    energies : np.ndarray, shape=(n,), kJ/mol
    """
    terms = without_constraints(batched.terms)
    system = batched
    if terms is not batched.terms:
        threads = None if batched.native is None else batched.threads  # torch keeps the number it has
        system = BatchedSystem(terms, batched.dtype, batched.device, backend=batched.backend, threads=threads, compiled=False)
    if len(positions_nm) == 0:
        return np.array(positions_nm, dtype=np.float64), np.empty(0)
    x = np.array(positions_nm, dtype=np.float64).reshape(len(positions_nm), -1)
    movable = np.repeat(terms.masses_amu > 0, 3)

    def evaluate(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        energy, force = system.energies_and_forces(at.reshape(len(at), -1, 3))
        return energy, np.where(movable, -force.reshape(len(at), -1).astype(np.float64), 0.0)

    energy, gradient = evaluate(x)
    gradient = np.nan_to_num(gradient, nan=0.0, posinf=1e12, neginf=-1e12)
    memory: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    scale = np.ones(len(x))
    active = np.ones(len(x), dtype=bool)
    for _ in range(max_iterations):
        active &= np.sqrt((gradient**2).mean(1)) > tolerance_kj_mol_nm
        if not active.any():
            break
        direction = _search_direction(gradient, memory)
        longest = np.sqrt((direction.reshape(len(x), -1, 3) ** 2).sum(2).max(1))
        step = direction * (np.minimum(1.0, 0.02 / np.maximum(longest, 1e-12)) * scale * active)[:, None]
        trial_energy, trial_gradient = evaluate(x + step)
        better = active & (trial_energy < energy)
        moved = np.where(better[:, None], step, 0.0)
        change = np.where(better[:, None], np.nan_to_num(trial_gradient) - gradient, 0.0)
        curvature = (moved * change).sum(1)
        useful = better & (curvature > 1e-10 * (moved**2).sum(1))
        memory = [*memory[-5:], (moved, change, np.where(useful, 1 / np.where(useful, curvature, 1.0), 0.0))]
        x = x + moved
        energy = np.where(better, trial_energy, energy)
        gradient = np.where(better[:, None], np.nan_to_num(trial_gradient), gradient)
        scale = np.where(better, np.minimum(1.0, 2 * scale), scale / 2)
        active &= scale > 1e-6
    return x.reshape(len(x), -1, 3), energy


def _search_direction(gradient: np.ndarray, memory: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Two-loop recursion for every copy; pairs with weight 0 (rejected steps) drop out of it."""
    q, shares = gradient.copy(), []
    for moved, change, weight in reversed(memory):
        share = weight * (moved * q).sum(1)
        q -= share[:, None] * change
        shares.append(share)
    first = np.full(len(q), 1e-6)  # nm^2 mol/kJ: a gradient of 1e4 kJ/mol/nm moves by 0.01 nm
    for _, change, weight in memory:
        squared = (change**2).sum(1)
        found = (weight > 0) & (squared > 0)
        first = np.where(found, 1 / np.where(found, weight * squared, 1.0), first)
    q *= first[:, None]
    for (moved, change, weight), share in zip(memory, reversed(shares), strict=True):
        q += moved * (share - weight * (change * q).sum(1))[:, None]
    return -q
