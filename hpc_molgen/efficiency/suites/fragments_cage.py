"""Fragment moves in a molecule that is compact, and in the same one unfolded: all-atom Trp-cage, against molecular dynamics.

Neither can sample the ensemble of a folding protein in minutes. What can be measured is which windows accept other
conformations of their fragments, and how many residues turn in a CPU second beside molecular dynamics from the same structures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_molgen import interrupts
from hpc_molgen.angles import wrap
from hpc_molgen.config import SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.dynamics.langevin import BatchedDynamics, minimise
from hpc_molgen.dynamics.modified import modified_system
from hpc_molgen.efficiency.suites.record import Costs
from hpc_molgen.ensemble import Ensemble
from hpc_molgen.montecarlo.blocks import Block
from hpc_molgen.montecarlo.fragments import FAR_DEG, Moves, Whole, join, run_joined
from hpc_molgen.montecarlo.hamiltonian import LIGHTEST_AMU
from hpc_molgen.montecarlo.libraries import Tempering, fragment_of, tempered_library
from hpc_molgen.montecarlo.windows import windows_of
from hpc_molgen.seeding import derive_seed, numpy_generator
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.peptides import parse_sequence
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import Quad, atoms_beyond, named_torsions, set_torsion
from hpc_molgen.systems.trp_cage import PHI, PSI
from hpc_molgen.workers import Stopwatch

WINDOW = 2
TIMESTEP_FS, STEPS = 2.0, 50
MINIMISATION = 500


@dataclass(frozen=True)
class Fold:
    """A capped peptide and its compact structure, by torsions in degrees; None: as built.

    Attributes
    ----------
    name, sequence : str
    phi_deg, psi_deg : tuple of float or None
        Of each residue. Phi of proline turns about a bond in a ring, and stays.
    chi_deg : dict
        Chi1, chi2, ... of residues, counted from 1.
    """

    name: str
    sequence: str
    phi_deg: tuple[float | None, ...]
    psi_deg: tuple[float | None, ...]
    chi_deg: dict[int, tuple[float, ...]] = dataclasses.field(default_factory=dict)


# read from 1L2Y, model 1, as its backbone is (facts/md.md, section 3), which has charged ends in the place of caps
TRP_CAGE = Fold(
    "Trp-cage",
    "N-L-Y-I-Q-W-L-K-D-G-G-P-S-S-G-R-P-P-P-S",
    (None, *PHI),
    (*PSI, None),
    {
        1: (-68, -4), 2: (53, 107), 3: (-149, -85), 4: (-45, -56), 5: (-146, 81, -102), 6: (179, 79), 7: (-76, 176),
        8: (76, 99, 176, -116), 9: (-93, 52), 13: (-61,), 14: (-144,), 16: (59, -175, 88, -90), 20: (-60,),
    },
)  # fmt: skip


@dataclass(frozen=True)
class CageSettings:
    """Lengths of the comparison.

    Attributes
    ----------
    fold : Fold
    library : Tempering
        Of each fragment of two residues.
    n_copies, n_sweeps : int
        Chains from each kind of start, and sweeps over all windows.
    n_joined : int
        Of which the best become the unfolded starts.
    relaxation_ps : float
        Molecular dynamics of all starts, before either method begins.
    """

    fold: Fold
    library: Tempering
    n_copies: int
    n_sweeps: int
    n_joined: int
    relaxation_ps: float


def build(fold: Fold) -> MolecularSystem:
    """Return the peptide in its compact structure, minimised."""
    system = load_system(SystemConfig(name="peptide", sequence=fold.sequence))
    named, positions = named_torsions(system.topology), system.positions_nm
    asked: list[tuple[Quad, float | None]] = [
        *zip(named["phi"], fold.phi_deg, strict=True),
        *zip(named["psi"], fold.psi_deg, strict=True),
    ]
    for kind in ("chi1", "chi2", "chi3", "chi4"):
        for quad in named[kind]:
            values = fold.chi_deg.get(system.topology.atom(quad[1]).residue.index, ())
            asked.append((quad, values[int(kind[3]) - 1] if len(values) >= int(kind[3]) else None))
    for quad, value in asked:
        if value is not None and atoms_beyond(system.topology, quad[1], quad[2]) is not None:
            positions = set_torsion(system.topology, positions, quad, float(np.radians(value)))
    relaxed, _ = minimise(BatchedSystem(system, "float64", threads=1), positions[None], max_iterations=MINIMISATION)
    return dataclasses.replace(system, positions_nm=relaxed[0])


def compare_cage(settings: CageSettings, seed: int, costs: Costs) -> dict[str, Any]:
    """Run both methods from folded and from unfolded starts; return what the record holds of it."""
    system = build(settings.fold)
    whole, residues = Whole(system), parse_sequence(settings.fold.sequence)
    watch = Stopwatch()
    with costs.stage(f"{settings.fold.name}: libraries and densities of all windows of {WINDOW}"):
        blocks = _blocks(whole, residues, settings, seed)
    library_cpu_s = watch.cpu_s
    with costs.stage(f"{settings.fold.name}: starts"):
        folded = np.repeat(system.positions_nm[None], settings.n_copies, axis=0)
        unfolded = _unfolded(whole, blocks, settings, seed)
        starts = {name: _relaxed(system, x, settings, derive_seed(seed, name)) for name, x in
                  (("folded", folded), ("unfolded", unfolded))}  # fmt: skip
    found = {}
    for name, positions in starts.items():
        with costs.stage(f"{settings.fold.name}, {name}: fragment moves and molecular dynamics, as long each"):
            found[name] = _from_start(whole, blocks, positions, settings, derive_seed(seed, "run", name))
    names = ["-".join(residues[number - 1] for number in block.window.residues) for block in blocks]
    about = {
        "name": settings.fold.name,
        "molecule": system.name,
        "n_atoms": system.n_atoms,
        "windows": names,
        "library_cpu_s": library_cpu_s,
    }
    return {**about, "n_copies": settings.n_copies, "starts": found}


def _blocks(whole: Whole, residues: Sequence[str], settings: CageSettings, seed: int) -> list[Block]:
    blocks, libraries = [], dict[str, Ensemble]()
    for window in windows_of(len(residues), WINDOW):
        interrupts.check()
        fragment = fragment_of(whole.system, residues, window)
        if fragment.key not in libraries:
            libraries[fragment.key] = tempered_library(fragment, settings.library, derive_seed(seed, fragment.name))
        blocks.append(Block.fit(whole.system, whole.zmatrix, window, fragment, libraries[fragment.key], seed))
    return blocks


def _unfolded(whole: Whole, blocks: Sequence[Block], settings: CageSettings, seed: int) -> np.ndarray:
    """Positions (n_copies, n_atoms, 3) of the joined molecules with the largest weights, minimised: most others clash."""
    coordinates, log_weight = join(whole, blocks, settings.n_joined, numpy_generator(seed, "unfolded"))
    best = np.argsort(np.nan_to_num(-log_weight, posinf=np.inf))[: settings.n_copies].copy()
    batched = BatchedSystem(whole.system, "float64", threads=1)
    positions, _ = minimise(batched, whole.positions_nm(coordinates[best])[0], max_iterations=MINIMISATION)
    return positions


def _dynamics(system: MolecularSystem, positions_nm: np.ndarray, seed: int) -> BatchedDynamics:
    batched = BatchedSystem(modified_system(system, hydrogen_mass_amu=LIGHTEST_AMU), "float32", threads=1)
    seeds = [derive_seed(seed, "copy", copy) for copy in range(len(positions_nm))]
    kelvin = system.temperature_kelvin
    return BatchedDynamics(batched, positions_nm, seeds, temperature_kelvin=kelvin, timestep_fs=TIMESTEP_FS)


def _relaxed(system: MolecularSystem, positions_nm: np.ndarray, settings: CageSettings, seed: int) -> np.ndarray:
    dynamics = _dynamics(system, positions_nm, seed)
    dynamics.step(round(settings.relaxation_ps * 1e3 / TIMESTEP_FS))
    return dynamics.positions_nm.astype(np.float64)


def _from_start(
    whole: Whole, blocks: Sequence[Block], positions_nm: np.ndarray, settings: CageSettings, seed: int
) -> dict[str, Any]:
    """Run fragment moves, then molecular dynamics for as long, from the same structures."""
    watch, starts = Stopwatch(), whole.coordinates(positions_nm)
    chains = run_joined(whole, blocks, starts, settings.n_sweeps, seed, Moves("all"))
    cpu_s = watch.cpu_s
    own = _judged(whole, positions_nm, whole.positions_nm(chains.coordinates)[0], cpu_s)
    watch, dynamics = Stopwatch(), _dynamics(whole.system, positions_nm, seed)
    _until(lambda: watch.cpu_s >= cpu_s, dynamics)
    other = _judged(whole, positions_nm, dynamics.positions_nm.astype(np.float64), watch.cpu_s)
    other["ps_per_copy"] = dynamics.n_steps * TIMESTEP_FS * 1e-3
    return {
        "acceptance": chains.acceptance,
        "far": chains.far,
        "verlet_acceptance": chains.verlet_acceptance,
        "moves": own,
        "md": other,
        "start_rg_nm": float(radius_of_gyration(positions_nm).mean()),
    }


def _until(done: Callable[[], bool], dynamics: BatchedDynamics) -> None:
    while not done():
        dynamics.step(STEPS)


def _judged(whole: Whole, before_nm: np.ndarray, after_nm: np.ndarray, cpu_s: float) -> dict[str, Any]:
    """How many residues of a copy have turned, with its standard error over copies, in all and in a CPU second."""
    first, last = (whole.backbone_rad(whole.coordinates(x)) for x in (before_nm, after_nm))
    turned = (np.abs(wrap(last - first)) > np.radians(FAR_DEG)).any(axis=2).sum(axis=1).astype(np.float64)
    error = float(turned.std(ddof=1) / np.sqrt(len(turned)))
    total = len(turned) / cpu_s
    return {
        "cpu_s": cpu_s,
        "residues_turned": float(turned.mean()),
        "residues_turned_error": error,
        "per_cpu_s": float(turned.mean() * total),
        "per_cpu_s_error": error * total,
        "rg_nm": float(radius_of_gyration(after_nm).mean()),
    }


def radius_of_gyration(positions_nm: np.ndarray) -> np.ndarray:
    """Of all atoms alike, shape=(n,), of positions (n, n_atoms, 3)."""
    centred = positions_nm - positions_nm.mean(axis=1, keepdims=True)
    found: np.ndarray = np.sqrt((centred**2).sum(axis=2).mean(axis=1))
    return found
