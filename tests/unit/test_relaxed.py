"""The representation `relaxed`: which torsions are free, and that its density is exact."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_molgen.config import RepresentationConfig, SystemConfig
from hpc_molgen.dynamics.batched import BatchedSystem
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo.from_zero import scale_coordinates, weighted_prior
from hpc_molgen.representations.base import load_representation
from hpc_molgen.representations.relaxed import RelaxedRepresentation
from hpc_molgen.representations.rotors import free_rotors
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.surrogates.prior import draw_prior, log_prior
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system


def peptide(sequence: str) -> MolecularSystem:
    return load_system(SystemConfig(name="peptide", sequence=sequence))


@pytest.fixture(scope="module")
def glycine() -> RelaxedRepresentation:
    system = peptide("GLY")
    return RelaxedRepresentation.fit(system, RepresentationConfig(), np.empty((0, system.n_atoms, 3)), np.empty(0))


def drawn(representation: RelaxedRepresentation, n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return draw_prior(n, representation.n_torus, representation.n_euclidean, generator).double()


@pytest.mark.parametrize(
    ("sequence", "turning"),
    [
        ("GLY", ["N-CA", "CA-C", "N-C", "C-CH3"]),
        ("SER", ["N-CA", "CA-C", "N-C", "CA-CB", "CB-OG", "C-CH3"]),
        ("ARG", ["N-CA", "CA-C", "N-C", "CA-CB", "CB-CG", "CG-CD", "CD-NE", "C-CH3"]),  # no bond of the guanidine
        ("TYR", ["N-CA", "CA-C", "N-C", "CA-CB", "CB-CG", "CZ-OH", "C-CH3"]),
        ("ASH", ["N-CA", "CA-C", "N-C", "CA-CB", "CB-CG", "CG-OD2", "C-CH3"]),
        ("PRO", ["CA-C", "N-C", "CA-CB", "CD-CG", "C-CH3"]),  # no phi, but how the ring is puckered
    ],
)
def test_bonds_that_turn_follow_from_chemistry(sequence: str, turning: list[str]) -> None:
    topology = peptide(sequence).topology
    rotors = free_rotors(topology, ZMatrix(topology))
    bonds = ["-".join(topology.atom(atom).name for atom in rotor.atoms[1:3]) for rotor in rotors]
    assert sorted(bonds) == sorted(turning)
    assert [rotor.fold for rotor in rotors].count(3) == 2  # the methyls of the caps


def test_features_and_positions_go_round(glycine: RelaxedRepresentation) -> None:
    features = drawn(glycine, 200, 1)
    positions, log_abs_det = glycine.decode(features)
    good = torch.isfinite(log_abs_det)
    back = glycine.encode(positions)
    around = torch.remainder(back[:, : glycine.n_torus] - features[:, : glycine.n_torus] + math.pi, 2 * math.pi) - math.pi
    assert float(around[good].abs().max()) < 1e-9
    assert float((back - features)[good][:, glycine.n_torus :].abs().max()) < 1e-8
    assert torch.equal(glycine.encode_torus(positions)[good], back[good][:, : glycine.n_torus])


def test_a_conformation_does_not_depend_on_the_others(glycine: RelaxedRepresentation) -> None:
    features = drawn(glycine, 37, 2)
    together, _ = glycine.decode(features)
    alone = torch.cat([glycine.decode(features[row : row + 1])[0] for row in range(len(features))])
    assert float((together - alone).abs().max()) < 1e-10


def test_the_shift_to_the_relaxed_structure_has_unit_jacobian(glycine: RelaxedRepresentation) -> None:
    """By central differences of all 51 coordinates: the determinant of a map whose shift depends on torsions alone is 1."""
    point, step = drawn(glycine, 1, 3)[0], 1e-5

    def inner(features: torch.Tensor) -> torch.Tensor:
        return glycine.internal.encode(glycine.decode(features)[0])

    shifts = step * torch.eye(len(point), dtype=torch.float64)
    jacobian = (inner(point + shifts) - inner(point - shifts)) / (2 * step)
    assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(0.0, abs=1e-5)
    _, log_abs_det = glycine.decode(point[None])
    _, of_internal = glycine.internal.decode(inner(point[None]))
    assert float(log_abs_det) == pytest.approx(float(of_internal), abs=1e-9)


def test_configuration_integral_is_that_of_internal_coordinates(glycine: RelaxedRepresentation) -> None:
    """ln Z by importance sampling with either representation, which share nothing but the Z-matrix; 4 standard errors."""
    features = drawn(glycine, 20_000, 4)
    positions, log_abs_det = glycine.decode(features)
    energies = BatchedSystem(glycine.system, "float64", threads=1).energies(positions.numpy()) / glycine.system.kt_kj_mol
    ours = (log_abs_det - log_prior(features, glycine.n_torus)).numpy() - energies
    scaled, _ = scale_coordinates(glycine.system, 5)
    theirs = weighted_prior(scaled, 6, 60_000).log_weight
    ends = []
    for log_weight in (ours, theirs):
        weights = np.exp(log_weight - log_weight.max())
        log_z = np.log(weights.mean()) + log_weight.max()
        ends.append((log_z, weights.std() / weights.mean() / np.sqrt(len(weights))))
    (first, first_error), (second, second_error) = ends
    assert max(first_error, second_error) < 0.1  # or nothing is shown
    assert abs(first - second) < 4 * math.hypot(first_error, second_error)


def test_energies_alone_scale_the_stiff_coordinates(glycine: RelaxedRepresentation) -> None:
    """Given torsions of low energy, weights of the normal numbers vary little: more than half of them count (0.70 was seen)."""
    generator = torch.Generator().manual_seed(7)
    torsions = glycine._low_torsions(generator)[:40].repeat_interleave(50, 0)
    rest = torch.randn((len(torsions), glycine.n_euclidean), generator=generator, dtype=torch.float64)
    positions, log_abs_det = glycine.decode(torch.cat([torsions, rest], dim=1))
    energies = torch.as_tensor(BatchedSystem(glycine.system, "float64", threads=1).energies(positions.numpy()))
    log_weight = (log_abs_det - energies / glycine.system.kt_kj_mol + 0.5 * (rest**2).sum(1)).view(40, 50)
    weights = torch.softmax(log_weight, dim=1)
    assert float((1 / (50 * (weights**2).sum(1))).median()) > 0.5


def test_a_file_holds_the_same_bits(glycine: RelaxedRepresentation, tmp_path: Path) -> None:
    glycine.save(tmp_path / "representation.safetensors", glycine.system)
    again = load_representation(tmp_path / "representation.safetensors", glycine.system)
    features = drawn(glycine, 20, 8)
    assert torch.equal(again.decode(features)[0], glycine.decode(features)[0])


def test_large_rings_are_refused() -> None:
    """A disulfide closes a ring of 17 atoms, whose backbone would be taken for stiff."""
    topology = peptide("CYM-ALA-ALA-CYM").topology.copy()
    first, second = (atom for atom in topology.atoms if atom.name == "SG")
    topology.add_bond(first, second)
    with pytest.raises(InputError, match=r"ring of \d+ atoms"):
        free_rotors(topology, ZMatrix(topology))
