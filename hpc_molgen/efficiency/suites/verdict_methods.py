"""Molecular dynamics of the `verdict` suite: each protocol from zero, in blocks, until its budget of CPU seconds is spent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpc_molgen import interrupts
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.bias import flattening_bias, spread_structures
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.dynamics.modified import TorsionBias, modified_system
from hpc_molgen.dynamics.tempering import ParallelTempering, geometric_ladder
from hpc_molgen.efficiency.suites.verdict_scores import STEP, Checkpoint, Series, Truth, checkpoint, group_free_energy
from hpc_molgen.efficiency.suites.verdict_sums import Sums, Window, join, sum_frames
from hpc_molgen.seeding import derive_seed
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.torsions import Quad, torsion_angles, torsion_by_name
from hpc_molgen.workers import Stopwatch

if TYPE_CHECKING:
    import mdtraj

CV = "phi"


@dataclass(frozen=True)
class MdMethod:
    """A protocol of molecular dynamics.

    Attributes
    ----------
    name, short : str
        In tables, and beside its line in the picture.
    engine : str
        "batched": many copies at once on all cores; "openmm": one copy on each core.
    timestep_fs, constraints, hydrogen_mass_amu
        As `modified_system` takes them; energies are compared for flexible molecules alone.
    biased : bool
        Flatten phi, and reweight: it has to be known beforehand that phi is slow.
    hottest_kelvin : float, optional
        Parallel tempering up to there.
    n_temperatures : int
        Of a ladder; 1 is no tempering.
    """

    name: str
    short: str
    engine: str = "batched"
    timestep_fs: float = 2.0
    constraints: str = "none"
    hydrogen_mass_amu: float | None = 3.024
    biased: bool = False
    hottest_kelvin: float | None = None
    n_temperatures: int = 1

    @property
    def flexible(self) -> bool:
        """Whether it samples the flexible molecule, the target of all exact weights."""
        return self.constraints == "none"


MD_METHODS = {
    "openmm": MdMethod(
        "plain MD in OpenMM, one copy per core, 4 fs, X-H constrained, hydrogens of 3.024 u", "OpenMM", "openmm", 4.0, "hbonds"
    ),
    "md-2fs": MdMethod("plain MD, many copies at once, 2 fs, X-H constrained", "MD 2 fs", "batched", 2.0, "hbonds", None),
    "md-4fs": MdMethod(
        "plain MD, many copies at once, 4 fs, X-H constrained, hydrogens of 3.024 u", "MD 4 fs", "batched", 4.0, "hbonds"
    ),
    "tempering": MdMethod(
        "parallel tempering without bias, 4 temperatures to 600 K, 2 fs, flexible, hydrogens of 3.024 u", "tempering",
        hottest_kelvin=600.0, n_temperatures=4,
    ),
    "bias": MdMethod(
        "bias that flattens phi, reweighted, 2 fs, flexible, hydrogens of 3.024 u", "biased MD (knows phi)", biased=True
    ),
}  # fmt: skip


@dataclass(frozen=True)
class MdSettings:
    """How much of everything, and how often it is looked at.

    Attributes
    ----------
    n_copies, n_ladders : int
        Independent copies without, and ladders with, tempering.
    block_ps, observe_ps, swap_every_ps : float
        Of each copy or ladder: length of a block, time between frames, time between swaps.
    discarded : float
        Share of each curve's past that counts as equilibration.
    """

    n_copies: int = 32
    n_ladders: int = 8
    block_ps: float = 10.0
    observe_ps: float = 0.5
    swap_every_ps: float = 0.1
    discarded: float = 0.2


@functools.lru_cache(maxsize=8)
def _named_quads(topology: mdtraj.Topology) -> list[Quad]:
    return [torsion_by_name(topology, name) for name in (CV, "psi")]


def backbone(system: MolecularSystem) -> list[Quad]:
    """Return the atoms of phi and of psi."""
    return _named_quads(system.topology)


def phi_psi(system: MolecularSystem, positions_nm: np.ndarray) -> np.ndarray:
    """Return (phi, psi) in radians, shape=(..., 2), of positions (..., n_atoms, 3)."""
    return np.stack([torsion_angles(positions_nm, quad) for quad in backbone(system)], axis=-1)


class Walkers:
    """Independent copies, or ladders, of one protocol in the batched engine.

    All start at the system's own structure, as one does where nothing is known, but with a bias, whose ensemble is flat along
    phi: there rotatable torsions cover the torus.
    """

    def __init__(self, method: MdMethod, system: MolecularSystem, n_groups: int, settings: MdSettings, seed: int) -> None:
        self._method, self._settings, self._system = method, settings, system
        self._bias: TorsionBias | None = None
        if method.biased:
            self._bias = flattening_bias(system, backbone(system)[0], derive_seed(seed, "bias"))
        changed = modified_system(
            system, constraints=method.constraints, hydrogen_mass_amu=method.hydrogen_mass_amu, bias=self._bias
        )
        self.batched, self._exact = BatchedSystem(changed, "float32"), BatchedSystem(system, "float64")
        n = n_groups * method.n_temperatures
        starts = np.repeat(system.positions_nm[None], n, axis=0)
        if method.biased:
            starts = spread_structures(system, n, seed)
        starts, _ = minimise(self.batched, starts, max_iterations=300)
        self._advance: Callable[[], None]
        self._positions: Callable[[], np.ndarray]
        if method.n_temperatures > 1:
            self._begin_ladders(starts.reshape(n_groups, method.n_temperatures, system.n_atoms, 3), seed)
        else:
            self._begin_copies(starts, seed)
        self._n_frames = max(1, round(settings.block_ps / settings.observe_ps))
        self.ns_per_block = n * self._n_frames * settings.observe_ps * 1e-3

    def _begin_copies(self, starts: np.ndarray, seed: int) -> None:
        dynamics = BatchedDynamics(
            self.batched,
            starts,
            [derive_seed(seed, "copy", copy) for copy in range(len(starts))],
            temperature_kelvin=self._system.temperature_kelvin,
            timestep_fs=self._method.timestep_fs,
        )
        n_steps = max(1, round(self._settings.observe_ps * 1e3 / self._method.timestep_fs))
        self._advance, self._positions = lambda: dynamics.step(n_steps), lambda: dynamics.positions_nm

    def _begin_ladders(self, starts: np.ndarray, seed: int) -> None:
        method, settings = self._method, self._settings
        assert method.hottest_kelvin is not None
        ladders = ParallelTempering(
            self.batched,
            starts,
            geometric_ladder(self._system.temperature_kelvin, method.hottest_kelvin, method.n_temperatures),
            seed,
            steps_per_swap=max(1, round(settings.swap_every_ps * 1e3 / method.timestep_fs)),
            timestep_fs=method.timestep_fs,
        )
        n_swaps = max(1, round(settings.observe_ps / settings.swap_every_ps))
        self._advance, self._positions = lambda: ladders.run(n_swaps), lambda: ladders.coldest_nm

    def block(self) -> Sums:
        """Advance by one block; return its sums, with the energies of its last frame."""
        angles = []
        for _ in range(self._n_frames):
            self._advance()
            positions = self._positions()
            angles.append(phi_psi(self._system, positions))
        series = np.array(angles)
        weights = np.ones(series.shape[:2])
        if self._bias is not None:
            weights = np.exp(self._bias.energy_kj_mol(series[..., 0]) / self._system.kt_kj_mol)
        energies = self._exact.energies(positions) / self._system.kt_kj_mol if self._method.flexible else None
        return sum_frames(series, weights, energies, weights[-1])


class Curve:
    """Writes checkpoints when the time has grown by `STEP`; what it does costs the method nothing."""

    def __init__(self, truth: Truth) -> None:
        self._truth, self._due = truth, 0.0
        self.checkpoints: list[Checkpoint] = []

    def look(self, window: Window, cpu_s: float, wall_s: float, *, last: bool = False) -> None:
        """Look at what counts so far, if it is time to."""
        if cpu_s < self._due and not last:
            return
        sums = window.sums()
        if sums.total.sum() > 0:
            self.checkpoints.append(checkpoint(sums, group_free_energy(sums), self._truth, cpu_s, wall_s))
            self._due = STEP * cpu_s


def md_series(
    key: str, system: MolecularSystem, settings: MdSettings, truth: Truth, budget_cpu_s: float, seed: int, repeat: int
) -> Series:
    """Run a method of `MD_METHODS` in the batched engine, from zero for `budget_cpu_s`; return its curve."""
    method = MD_METHODS[key]
    watch = Stopwatch()
    n_groups = settings.n_ladders if method.n_temperatures > 1 else settings.n_copies
    walkers = Walkers(method, system, n_groups, settings, seed)
    fixed_s, wall_s = watch.cpu_s, watch.wall_s
    cpu_s, n_blocks = fixed_s, 0
    window, curve = Window(settings.discarded), Curve(truth)
    while n_blocks == 0 or cpu_s < budget_cpu_s:
        interrupts.check()
        watch = Stopwatch()
        window.add(walkers.block())
        cpu_s, wall_s, n_blocks = cpu_s + watch.cpu_s, wall_s + watch.wall_s, n_blocks + 1
        curve.look(window, cpu_s, wall_s, last=cpu_s >= budget_cpu_s)
    visited = int((window.sums().inside > 0).sum())
    facts = {"engine": f"{walkers.batched.description}, {walkers.batched.threads} thread(s)", "groups": n_groups}
    facts |= {"groups_with_phi_positive": visited, "simulated_ns": n_blocks * walkers.ns_per_block}
    return Series(key, repeat, fixed_s, curve.checkpoints, facts)


def long_run(method: MdMethod, system: MolecularSystem, settings: MdSettings, ns_per_group: float, seed: int) -> Sums:
    """Run `settings.n_ladders` ladders of a method for `ns_per_group` each; return the sums of what counts."""
    walkers, window = Walkers(method, system, settings.n_ladders, settings, seed), Window(settings.discarded)
    for _ in range(max(2, round(ns_per_group * 1e3 / settings.block_ps))):
        interrupts.check()
        window.add(walkers.block())
    return join([window.sums()])
