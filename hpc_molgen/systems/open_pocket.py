"""What acts on a ligand of beads in an open pocket, so that it binds and unbinds many times in a minute.

With all repulsion left in, a ligand leaves a buried pocket and does not find back within minutes of CPU time (facts/md.md,
section 5). This model was made to suit by these means, and its rates are its own:

* The ligand is drawn by its native contacts alone (beads within 0.9 nm): Gaussians 0.15 nm wide, of equal depth, about their
  native lengths. Their total depth is chosen for each complex (`balanced_well`), so that a rigid ligand in the rigid receptor
  is within `BOUND_NM` of its native place `BOUND_SHARE` of the time. The affinity is therefore put in, not predicted.
* The lining has no repulsive core. Nor has what stands within 0.8 nm of the way out, the direction from the pocket that passes
  the fewest beads: the tunnel is open. All other beads repel by a Gaussian of 8 kJ/mol, which does not jam.
* Walls keep the mean of the ligand's beads in a tube of 0.8 nm about the way out, from 0.3 nm behind its native place to 1.2 nm
  beyond the last bead in the tube: the cylinder of a funnel restraint (Limongelli, Bonomi and Parrinello 2013, PNAS 110, 6358).
"""

from __future__ import annotations

import numpy as np
import openmm
from scipy.spatial.transform import Rotation

from hpc_molgen.systems.pocket import Pocket
from hpc_molgen.units import kt_kj_mol

BOND_KJ_MOL_NM2 = 5000.0  # between all beads of the ligand
WELL_WIDTH_NM = 0.15
SOFT_KJ_MOL, SOFT_NM = 8.0, 0.25
OPEN_NM = 0.8
TUBE_NM, BEHIND_NM, OUTSIDE_NM, WALL_KJ_MOL_NM2 = 0.8, 0.3, 1.2, 500.0
BOUND_NM, BOUND_SHARE = 0.4, 0.4
N_POSES, LARGEST_WELL_KJ_MOL = 20_000, 200.0
MARGIN_NM = 0.3  # of poses beyond the walls, which are soft


def mouth_nm(pocket: Pocket, native_nm: np.ndarray) -> float:
    """Return how far along the way out the last bead of the receptor is that stands in the tube."""
    place = pocket.local(native_nm[pocket.receptor])
    inside = np.linalg.norm(place[:, :2], axis=1) < TUBE_NM
    return float(max(place[inside, 2], default=0.0))


def repelling(pocket: Pocket, native_nm: np.ndarray) -> np.ndarray:
    """Return the beads of the receptor that repel the ligand: neither lining nor beside the way out, and within its reach."""
    place = pocket.local(native_nm[pocket.receptor])
    beside = np.linalg.norm(place[:, :2], axis=1)
    reach = float(np.linalg.norm(pocket.local(native_nm[pocket.ligand]), axis=1).max()) + 3 * SOFT_NM
    near = (beside < TUBE_NM + reach) & (place[:, 2] > -BEHIND_NM - reach)
    gate = (beside < OPEN_NM) & (place[:, 2] > 0)
    return np.setdiff1d(pocket.receptor[near & ~gate], pocket.lining)


def ligand_forces(pocket: Pocket, native_nm: np.ndarray, well_kj_mol: float) -> list[openmm.Force]:
    """Return the forces on the ligand: its bonds, contacts (together `well_kj_mol` deep), soft repulsion, and the tube."""
    bonds = openmm.HarmonicBondForce()
    for number, i in enumerate(pocket.ligand.tolist()):
        for j in pocket.ligand[number + 1 :].tolist():
            bonds.addBond(i, j, float(np.linalg.norm(native_nm[i] - native_nm[j])), BOND_KJ_MOL_NM2)
    wells = openmm.CustomBondForce(f"-depth * exp(-(r - length)^2 / {2 * WELL_WIDTH_NM**2!r})")
    wells.addPerBondParameter("depth")
    wells.addPerBondParameter("length")
    for (i, j), length in zip(pocket.contacts.tolist(), pocket.lengths_nm.tolist(), strict=True):
        wells.addBond(i, j, [well_kj_mol / len(pocket.contacts), length])
    soft = openmm.CustomBondForce(f"{SOFT_KJ_MOL!r} * exp(-r^2 / {2 * SOFT_NM**2!r})")
    for i in repelling(pocket, native_nm).tolist():
        for j in pocket.ligand.tolist():
            soft.addBond(i, j, [])
    return [bonds, wells, soft, _tube(pocket, mouth_nm(pocket, native_nm))]


def _tube(pocket: Pocket, mouth: float) -> openmm.Force:
    """Walls for the mean of the ligand's beads."""
    centre = pocket.centre_nm.tolist()
    across_1, across_2, outward = (
        " + ".join(f"({part!r}) * ({axis}1 - ({at!r}))" for part, axis, at in zip(row, "xyz", centre, strict=True))
        for row in pocket.axes.tolist()
    )
    force = openmm.CustomCentroidBondForce(
        1,
        f"{WALL_KJ_MOL_NM2 / 2!r} * (max(0, beside - {TUBE_NM!r})^2 + max(0, outward - {mouth + OUTSIDE_NM!r})^2 + "
        f"max(0, -{BEHIND_NM!r} - outward)^2); beside = sqrt(({across_1})^2 + ({across_2})^2 + 1e-12); outward = {outward}",
    )
    force.addGroup(pocket.ligand.tolist(), [1.0] * len(pocket.ligand))
    force.addBond([0], [])
    return force


def balanced_well(pocket: Pocket, native_nm: np.ndarray, temperature_kelvin: float) -> float:
    """Return the total depth of the contacts, in kJ/mol, by which a rigid ligand is bound `BOUND_SHARE` of the time.

    Over poses of the native ligand in the native receptor, uniform in place and orientation: `N_POSES` within `BOUND_NM` of the
    native place and as many in the whole tube. The numbers are the same in every call. At most `LARGEST_WELL_KJ_MOL`.
    """
    rng = np.random.default_rng(0)
    end, radius = mouth_nm(pocket, native_nm) + OUTSIDE_NM, TUBE_NM + MARGIN_NM
    direction = rng.normal(size=(N_POSES, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    inner = direction * BOUND_NM * rng.random((N_POSES, 1)) ** (1 / 3)
    beside, turn = radius * np.sqrt(rng.random(N_POSES)), 2 * np.pi * rng.random(N_POSES)
    outer = np.stack(
        [beside * np.cos(turn), beside * np.sin(turn), rng.uniform(-BEHIND_NM - MARGIN_NM, end + MARGIN_NM, N_POSES)], axis=1
    )
    outer = outer[np.linalg.norm(outer, axis=1) > BOUND_NM]
    volumes = 4 / 3 * np.pi * BOUND_NM**3 / N_POSES, np.pi * radius**2 * (end + BEHIND_NM + 2 * MARGIN_NM) / N_POSES
    kt = kt_kj_mol(temperature_kelvin)

    def walls(places: np.ndarray) -> np.ndarray:
        beside, outward = np.hypot(places[:, 0], places[:, 1]), places[:, 2]
        beyond = np.stack([beside - TUBE_NM, outward - end, -BEHIND_NM - outward])
        return np.asarray(WALL_KJ_MOL_NM2 / 2 * (np.maximum(0, beyond) ** 2).sum(axis=0))

    terms = []
    for places in (inner, outer):
        share, soft = _energies_of_poses(pocket, native_nm, places, rng)
        terms.append((share, soft + walls(places)))

    def bound(well_kj_mol: float) -> float:
        inside, outside = (
            volume * np.exp((well_kj_mol * share - soft) / kt).sum()
            for volume, (share, soft) in zip(volumes, terms, strict=True)
        )
        return float(inside / (inside + outside))

    low, high = 0.0, LARGEST_WELL_KJ_MOL
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if bound(middle) < BOUND_SHARE else (low, middle)
    return high


def _energies_of_poses(
    pocket: Pocket, native_nm: np.ndarray, places: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return shares of the contacts' depth (n,) and repulsion (n,) of randomly turned ligands at local places (n, 3)."""
    shape = pocket.local(native_nm[pocket.ligand])
    receptor = pocket.local(native_nm)
    pushing = receptor[repelling(pocket, native_nm)]
    beads = {atom: row for row, atom in enumerate(pocket.ligand.tolist())}
    rows = [beads[atom] for atom in pocket.contacts[:, 1].tolist()]
    shares, soft = [], []
    for part in np.array_split(places, max(1, len(places) // 500)):
        turns = Rotation.from_quat(rng.normal(size=(len(part), 4))).as_matrix()
        x = np.einsum("nij,bj->nbi", turns, shape) + part[:, None]
        apart = np.linalg.norm(x[:, rows] - receptor[pocket.contacts[:, 0]], axis=2)
        shares.append(np.exp(-((apart - pocket.lengths_nm) ** 2) / (2 * WELL_WIDTH_NM**2)).mean(axis=1))
        squared = (x**2).sum(2)[:, :, None] + (pushing**2).sum(1) - 2 * x @ pushing.T
        soft.append(SOFT_KJ_MOL * np.exp(-squared / (2 * SOFT_NM**2)).sum(axis=(1, 2)))
    return np.concatenate(shares), np.concatenate(soft)
