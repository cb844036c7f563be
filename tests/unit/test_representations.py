"""Representations: round trip, Jacobian against automatic differentiation, chirality, labels of equivalent hydrogens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch

from hpc_molgen.angles import wrap, wrap_angle
from hpc_molgen.config import RepresentationConfig, SystemConfig
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import Representation, load_representation
from hpc_molgen.representations.internal import InternalRepresentation
from hpc_molgen.representations.torsion import TorsionRepresentation
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.structures import StructureChecker
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.torsions import torsion_angles, torsion_by_name


@pytest.fixture(scope="module")
def frames(alanine: MolecularSystem) -> np.ndarray:
    """600 K frames: methyl groups turn, phi and psi move."""
    engine = Engine(alanine, "Reference", 5, temperature_kelvin=600.0)
    engine.minimise()
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    return np.concatenate([block.positions_nm for block in engine.simulate(1500, 40)]).astype(np.float64)


@pytest.fixture(scope="module")
def internal(alanine: MolecularSystem, frames: np.ndarray) -> InternalRepresentation:
    return InternalRepresentation.fit(alanine, RepresentationConfig(), frames, np.ones(len(frames)))


def test_coordinates_are_complete(alanine: MolecularSystem, internal: InternalRepresentation) -> None:
    rows = ZMatrix(alanine.topology).rows
    assert (len(rows) - 1, len(rows) - 2, len(rows) - 3) == (21, 20, 19)
    assert internal.n_features == 60
    for name in ("phi", "psi"):
        atoms = torsion_by_name(alanine.topology, name)
        assert any((row.atom, row.a, row.b, row.c) in (atoms, atoms[::-1]) for row in rows)


def test_round_trip(internal: InternalRepresentation, frames: np.ndarray) -> None:
    x = internal.canonicalise(torch.as_tensor(frames))
    decoded, _ = internal.decode(internal.encode(x))
    assert (torch.cdist(x, x) - torch.cdist(decoded, decoded)).abs().max() < 1e-5
    volume = [torch.linalg.det(p[:, [8, 10, 14]] - p[:, [6, 6, 6]]).sign() for p in (x, decoded)]
    assert torch.equal(*volume)  # distances alone would not see a mirror image


def test_features_round_trip(internal: InternalRepresentation) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn((500, 60), generator=generator, dtype=torch.float64)
    features[:, : internal.n_torus] = (
        torch.rand((500, internal.n_torus), generator=generator, dtype=torch.float64) * 2 - 1
    ) * 3.1
    positions, log_det = internal.decode(features)
    inside = torch.isfinite(log_det)
    assert inside.float().mean() > 0.95
    again = internal.encode(positions[inside])
    m = internal.n_torus
    assert wrap_angle(again[:, :m] - features[inside, :m]).abs().max() < 1e-8
    assert (again[:, m:] - features[inside, m:]).abs().max() < 1e-8


def rotation(vector: torch.Tensor) -> torch.Tensor:
    a, b, c = vector
    zero = torch.zeros_like(a)
    return torch.linalg.matrix_exp(torch.stack([zero, -c, b, c, zero, -a, -b, a, zero]).reshape(3, 3))


def test_jacobian_against_autograd(internal: InternalRepresentation, frames: np.ndarray) -> None:
    """All 3N Cartesian coordinates as a function of 60 features, a translation and a rotation."""

    def embed(v: torch.Tensor) -> torch.Tensor:
        positions, _ = internal.decode(v[None, :60])
        return (positions[0] @ rotation(v[60:63]).T + v[63:]).reshape(-1)

    for features in internal.encode(torch.as_tensor(frames[::250])):
        v = torch.cat([features, torch.zeros(6, dtype=torch.float64)])
        exact = torch.linalg.slogdet(torch.autograd.functional.jacobian(embed, v)).logabsdet
        _, ours = internal.decode(features[None])
        assert abs(float(exact - ours[0])) < 1e-8


def test_the_gradient_in_closed_form_is_that_of_autograd(internal: InternalRepresentation, frames: np.ndarray) -> None:
    features = internal.encode(torch.as_tensor(frames[::50]))
    positions, _ = internal.decode(features)
    gradient = torch.randn(positions.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = internal.pulled_back(features, positions, gradient)
    torch.testing.assert_close(found, Representation.pulled_back(internal, features, positions, gradient), rtol=1e-9, atol=1e-7)


def toluene() -> mdtraj.Topology:
    topology = mdtraj.Topology()
    residue = topology.add_residue("TOL", topology.add_chain())
    atoms = [
        topology.add_atom(f"{letter}{k}", mdtraj.element.get_by_symbol(letter), residue)
        for k, letter in enumerate("C" * 7 + "H" * 8)
    ]
    pairs = [(k, (k + 1) % 6) for k in range(6)] + [(0, 6)] + [(6, k) for k in (7, 8, 9)] + [(k, k + 9) for k in range(1, 6)]
    for first, second in pairs:
        topology.add_bond(atoms[first], atoms[second])
    return topology


@pytest.mark.parametrize("made", [toluene, lambda: load_system(SystemConfig(name="trp-cage")).topology])
def test_the_gradient_by_internal_coordinates_of_other_molecules(made: Callable[[], mdtraj.Topology]) -> None:
    """A ring with a methyl group, and a chain of beads without branches, with any positions."""
    zmatrix, generator = ZMatrix(made()), torch.Generator().manual_seed(4)
    x = torch.randn((1, zmatrix.n_atoms, 3), generator=generator, dtype=torch.float64)
    internals = [
        (part + 0.02 * torch.randn((3, part.shape[1]), generator=generator, dtype=torch.float64)).requires_grad_(True)
        for part in zmatrix.to_internal(x)
    ]
    positions, log_abs_det = zmatrix.to_positions(*internals)
    gradient = torch.randn(positions.shape, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad((positions * gradient).sum() + log_abs_det.sum(), internals)
    for ours, autograd in zip(zmatrix.pulled_back(positions.detach(), gradient), expected, strict=True):
        torch.testing.assert_close(ours, autograd, rtol=1e-8, atol=1e-7)


def test_relabelled_hydrogens_are_the_same_conformation(
    alanine: MolecularSystem, internal: InternalRepresentation, frames: np.ndarray
) -> None:
    x = torch.as_tensor(frames[:200])
    names = [str(atom) for atom in alanine.topology.atoms]
    hydrogens = [names.index(f"ALA2-HB{k}") for k in (1, 2, 3)]
    shifted = x.clone()
    shifted[:, hydrogens] = x[:, [hydrogens[1], hydrogens[2], hydrogens[0]]]
    assert (wrap_angle((internal.encode(x) - internal.encode(shifted))[:, : internal.n_torus])).abs().max() < 1e-9
    assert (internal.encode(x) - internal.encode(shifted))[:, internal.n_torus :].abs().max() < 1e-9
    swapped = x.clone()  # two hydrogens exchanged: another labelling that no rotation reaches, a defect
    swapped[:, hydrogens[:2]] = x[:, [hydrogens[1], hydrogens[0]]]
    assert (internal.encode(swapped) - internal.encode(x)).abs().max() > 5


def test_decoded_samples_keep_chirality(alanine: MolecularSystem, internal: InternalRepresentation) -> None:
    features = torch.randn((300, 60), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    positions, _ = internal.decode(features)
    checks = StructureChecker(alanine, np.inf)(positions.numpy(), np.zeros(300))
    assert not any(check.chirality for check in checks)


def test_outside_of_the_domain_has_no_weight(internal: InternalRepresentation) -> None:
    features = torch.zeros((2, 60), dtype=torch.float64)
    features[1, internal.n_torus] = -1e4  # a negative bond length
    _, log_det = internal.decode(features)
    assert torch.isfinite(log_det[0]) and torch.isneginf(log_det[1])


def test_torsion_sets_what_it_is_asked_for(alanine: MolecularSystem, frames: np.ndarray) -> None:
    config = RepresentationConfig(name="torsion")
    representation = TorsionRepresentation.fit(alanine, config, frames, np.ones(len(frames)))
    features = representation.encode(torch.as_tensor(frames))
    positions, log_det = representation.decode(features)
    assert representation.n_features == 2 and not log_det.any()
    for name in ("phi", "psi"):
        atoms = torsion_by_name(alanine.topology, name)
        assert np.abs(wrap(torsion_angles(positions.numpy(), atoms) - torsion_angles(frames, atoms))).max() < 1e-9
    everything = TorsionRepresentation.fit(alanine, RepresentationConfig(torsions="all"), frames, np.ones(len(frames)))
    assert everything.n_torus >= 5
    with pytest.raises(InputError, match="turns no bond"):
        TorsionRepresentation.fit(alanine, RepresentationConfig(torsions=("0-1-2-3",)), frames, np.ones(len(frames)))


@pytest.mark.parametrize("kind", [InternalRepresentation, TorsionRepresentation])
def test_files(alanine: MolecularSystem, frames: np.ndarray, tmp_path: Path, kind: type) -> None:
    representation = kind.fit(alanine, RepresentationConfig(), frames, np.ones(len(frames)))
    representation.save(tmp_path / "r.safetensors", alanine)
    loaded = load_representation(tmp_path / "r.safetensors", alanine)
    x = torch.as_tensor(frames[:50])
    assert torch.equal(loaded.encode(x), representation.encode(x))
    (tmp_path / "r.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"r\.safetensors"):
        load_representation(tmp_path / "r.safetensors", alanine)


def test_frames_of_constrained_md_are_refused(alanine: MolecularSystem) -> None:
    engine = Engine(alanine, "Reference", 5, constraints="hbonds", timestep_fs=2.0)
    engine.minimise()
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    frames = next(engine.simulate(300, 20)).positions_nm
    with pytest.raises(InputError, match="was run with constraints"):
        InternalRepresentation.fit(alanine, RepresentationConfig(), frames, np.ones(300))
    TorsionRepresentation.fit(alanine, RepresentationConfig(name="torsion"), frames, np.ones(300))


def test_molecules_in_pieces_are_refused(alanine: MolecularSystem) -> None:
    broken = alanine.topology.copy()
    broken._bonds = [bond for bond in broken._bonds if {bond[0].name, bond[1].name} != {"CA", "C"}]
    with pytest.raises(InputError, match="connected by bonds"):
        ZMatrix(broken)


def test_a_file_of_other_internal_coordinates_is_refused(alanine: MolecularSystem, internal: InternalRepresentation) -> None:
    """As of a version that ordered or folded them otherwise: its numbers would be read as those of other atoms."""
    tensors, values = internal.state()
    InternalRepresentation.from_state(alanine, tensors, values)
    rows = [list(row) for row in values["rows"]]  # type: ignore[attr-defined]
    rows[3], rows[4] = rows[4], rows[3]
    for changed in ({}, {"rows": rows}):
        with pytest.raises(InputError, match="another version"):
            InternalRepresentation.from_state(alanine, tensors, changed)
