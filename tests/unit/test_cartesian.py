"""Cartesian coordinates in a body frame: invariance, Jacobian, one labelling of each conformation, what the density sums to."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import mdtraj
import numpy as np
import pytest
import torch

from hpc_molgen import annealing
from hpc_molgen.angles import wrap_angle
from hpc_molgen.config import CorrectConfig, RepresentationConfig, SampleConfig, SystemConfig, load_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import InputError
from hpc_molgen.montecarlo import smc
from hpc_molgen.preflight import check
from hpc_molgen.representations import base
from hpc_molgen.representations.base import Representation, load_representation
from hpc_molgen.representations.cartesian import CartesianRepresentation, body_frame, in_frame
from hpc_molgen.representations.internal import InternalRepresentation
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.structures import StructureChecker
from hpc_molgen.surrogates import base as surrogates
from hpc_molgen.surrogates.prior import draw_prior, log_prior
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system

CONFIG = RepresentationConfig(name="cartesian")
METHYLS = (("ACE1", "H1", "H2", "H3"), ("ALA2", "HB1", "HB2", "HB3"), ("NME3", "H1", "H2", "H3"))


@pytest.fixture(scope="module")
def frames(alanine: MolecularSystem) -> np.ndarray:
    """600 K frames: methyl groups turn, phi and psi move."""
    engine = Engine(alanine, "Reference", 5, temperature_kelvin=600.0)
    engine.minimise()
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    return np.concatenate([block.positions_nm for block in engine.simulate(1500, 40)]).astype(np.float64)


@pytest.fixture(scope="module")
def cartesian(alanine: MolecularSystem, frames: np.ndarray) -> CartesianRepresentation:
    return CartesianRepresentation.fit(alanine, CONFIG, frames, np.ones(len(frames)))


def as_they_are(cartesian: CartesianRepresentation, positions_nm: torch.Tensor) -> torch.Tensor:
    """Features (n, d) of positions whose labels are left as they are, in the domain or not."""
    seen = in_frame(positions_nm, cartesian.frame).flatten(1)[:, cartesian._columns]
    return torch.linalg.solve_triangular(cartesian._scale, (seen - cartesian._mean).T, upper=False).T


def test_real_numbers_in_a_frame_of_the_backbone(alanine: MolecularSystem, cartesian: CartesianRepresentation) -> None:
    assert (cartesian.n_torus, cartesian.n_euclidean) == (0, 60)
    assert [alanine.topology.atom(atom).name for atom in cartesian.frame] == ["N", "CA", "C"]
    assert "3N - 6" in cartesian.target


def test_rigid_motions_change_nothing_and_a_mirror_does(cartesian: CartesianRepresentation, frames: np.ndarray) -> None:
    generator, x = torch.Generator().manual_seed(1), torch.as_tensor(frames[:300])
    turns = torch.linalg.qr(torch.randn((300, 3, 3), generator=generator, dtype=torch.float64))[0]
    turns = turns * torch.linalg.det(turns).sign()[:, None, None]
    moved = x @ turns.transpose(1, 2) + 3 * torch.randn((300, 1, 3), generator=generator, dtype=torch.float64)
    features = cartesian.encode(x)
    assert (cartesian.encode(moved) - features).abs().max() < 1e-10
    assert (as_they_are(cartesian, x * torch.tensor([1.0, 1.0, -1.0])) - as_they_are(cartesian, x)).abs().amax(1).min() > 1


def test_round_trips(alanine: MolecularSystem, cartesian: CartesianRepresentation, frames: np.ndarray) -> None:
    x = cartesian.canonicalise(torch.as_tensor(frames))
    decoded, log_det = cartesian.decode(cartesian.encode(x))
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(x, x, compute_mode=exact) - torch.cdist(decoded, decoded, compute_mode=exact)
    assert torch.isfinite(log_det).all() and apart.abs().max() < 1e-10
    assert not any(check.chirality for check in StructureChecker(alanine, np.inf)(decoded.numpy(), np.zeros(len(x))))
    features = torch.randn((500, 60), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    positions, log_det = cartesian.decode(features)
    inside = torch.isfinite(log_det)
    assert 0.5 < inside.double().mean() < 1  # methyl groups of a normal density turn beyond their third
    assert (cartesian.encode(positions[inside]) - features[inside]).abs().max() < 1e-9
    relabelled = cartesian.canonicalise(positions[~inside])  # the same conformation, under its one labelling
    again, log_det = cartesian.decode(cartesian.encode(relabelled))
    apart = torch.cdist(again, again, compute_mode=exact) - torch.cdist(relabelled, relabelled, compute_mode=exact)
    assert torch.isfinite(log_det).all() and apart.abs().max() < 1e-10


def rotation(vector: torch.Tensor) -> torch.Tensor:
    a, b, c = vector
    zero = torch.zeros_like(a)
    return torch.linalg.matrix_exp(torch.stack([zero, -c, b, c, zero, -a, -b, a, zero]).reshape(3, 3))


def test_jacobian_is_that_of_all_positions(cartesian: CartesianRepresentation, frames: np.ndarray) -> None:
    """All 3N Cartesian coordinates as a function of 60 features, a translation and a rotation, by automatic differentiation."""

    def embed(v: torch.Tensor) -> torch.Tensor:
        positions, _ = cartesian.decode(v[None, :60])
        return (positions[0] @ rotation(v[60:63]).T + v[63:]).reshape(-1)

    for features in cartesian.encode(torch.as_tensor(frames[::250])):
        v = torch.cat([features, torch.zeros(6, dtype=torch.float64)])
        exact = torch.linalg.slogdet(torch.autograd.functional.jacobian(embed, v)).logabsdet
        assert abs(float(exact - cartesian.decode(features[None])[1][0])) < 1e-8


def test_volumes_are_those_of_internal_coordinates(
    alanine: MolecularSystem, cartesian: CartesianRepresentation, frames: np.ndarray
) -> None:
    """ln|det J| of both differ by that of the map from one's features to the other's: ln q has one measure."""
    internal = InternalRepresentation.fit(alanine, RepresentationConfig(), frames, np.ones(len(frames)))
    for x in torch.as_tensor(frames[::250])[:, None]:
        ours, theirs = cartesian.encode(x)[0], internal.encode(x)[0]
        between = torch.autograd.functional.jacobian(lambda v: internal.encode(cartesian.decode(v[None])[0])[0], ours)
        difference = cartesian.decode(ours[None])[1] - internal.decode(theirs[None])[1]
        assert abs(float(torch.linalg.slogdet(between).logabsdet - difference[0])) < 1e-8


def test_the_gradient_in_closed_form_is_that_of_autograd(cartesian: CartesianRepresentation, frames: np.ndarray) -> None:
    features = cartesian.encode(torch.as_tensor(frames[::50]))
    positions, _ = cartesian.decode(features)
    gradient = torch.randn(positions.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = cartesian.pulled_back(features, positions, gradient)
    torch.testing.assert_close(
        found, Representation.pulled_back(cartesian, features, positions, gradient), rtol=1e-9, atol=1e-7
    )


@pytest.mark.parametrize("noise_nm", [0.0, 0.1])
def test_one_labelling_of_each_conformation_counts(
    alanine: MolecularSystem, cartesian: CartesianRepresentation, frames: np.ndarray, noise_nm: float
) -> None:
    """Of the 27 labellings of three methyl groups, also where atoms are anywhere, as an untrained surrogate puts them."""
    names = [str(atom) for atom in alanine.topology.atoms]
    groups = [[names.index(f"{residue}-{atom}") for atom in atoms] for residue, *atoms in METHYLS]
    x = torch.as_tensor(frames[::30]) + noise_nm * torch.randn((50, 22, 3), generator=torch.Generator().manual_seed(4)).double()
    counted, encoded = torch.zeros(len(x)), cartesian.encode(x)
    for shifts in itertools.product(range(3), repeat=3):
        labelled = x.clone()
        for group, shift in zip(groups, shifts, strict=True):
            labelled[:, group] = x[:, group[shift:] + group[:shift]]
        _, log_det = cartesian.decode(as_they_are(cartesian, labelled))
        counted += torch.isfinite(log_det)
        assert (cartesian.encode(labelled) - encoded).abs().max() < 1e-9
    assert torch.equal(counted, torch.ones(len(x)))


def test_outside_of_the_domain_has_no_weight(cartesian: CartesianRepresentation) -> None:
    features = torch.zeros((3, 60), dtype=torch.float64)
    for row, column in ((1, 0), (2, 1)):  # a negative bond length; the third atom on the wrong side
        deviation = torch.zeros(60, dtype=torch.float64)
        deviation[column] = -1.0 - cartesian._mean[column]
        features[row] = torch.linalg.solve_triangular(cartesian._scale, deviation[:, None], upper=False)[:, 0]
    assert torch.isfinite(cartesian.decode(features)[1]).tolist() == [True, False, False]


class Methanol:
    """A known density: bonds, angles and offsets of the hydrogens are normal, the methyl group turns freely."""

    bonds_nm = torch.tensor([0.143, 0.096, 0.109, 0.109, 0.109], dtype=torch.float64)
    angles = torch.tensor([1.9, 1.91, 1.91, 1.91], dtype=torch.float64)
    offsets = torch.tensor([2 * math.pi / 3, -2 * math.pi / 3], dtype=torch.float64)
    # sum of (d - mean d)^2 over three hydrogens, as a form of the two offsets: the same for each labelling
    precision = torch.tensor([[2.0, -1.0], [-1.0, 2.0]], dtype=torch.float64) / 3 / 0.1**2
    sd_nm, sd = 0.006, 0.1

    def __init__(self) -> None:
        self.topology = mdtraj.Topology()
        residue = self.topology.add_residue("MOH", self.topology.add_chain())
        names = ("C", "O", "H1", "H2", "H3", "HO")
        atoms = [self.topology.add_atom(name, mdtraj.element.get_by_symbol(name[0]), residue) for name in names]
        for first, second in ((0, 1), (0, 2), (0, 3), (0, 4), (1, 5)):
            self.topology.add_bond(atoms[first], atoms[second])
        self.zmatrix = ZMatrix(self.topology)
        self.positions_nm = self.draw(20_000)
        self.system = MolecularSystem("methanol", self.topology, "", self.positions_nm[0].numpy(), 300.0)

    def draw(self, n: int) -> torch.Tensor:
        draw = torch.randn((n, 12), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        around = draw[:, 9:11] @ torch.linalg.cholesky(torch.linalg.inv(self.precision)).T
        leader = math.pi * torch.special.erf(draw[:, 11:] / math.sqrt(2))  # uniform
        torsions = torch.cat([leader, wrap_angle(around + self.offsets)], dim=1)
        bonds, angles = self.bonds_nm + self.sd_nm * draw[:, :5], self.angles + self.sd * draw[:, 5:9]
        return self.zmatrix.to_positions(bonds, angles, torsions)[0]

    def log_density(self, positions_nm: torch.Tensor) -> torch.Tensor:
        """Ln p (n,) per volume of positions: its integral over all labellings is one."""
        bonds, angles, torsions = self.zmatrix.to_internal(positions_nm)
        around = wrap_angle(torsions[:, 1:] - self.offsets)
        total = -0.5 * torch.einsum("ni,ij,nj->n", around, self.precision, around) + 0.5 * torch.logdet(self.precision)
        for values, mean, sd in ((bonds, self.bonds_nm, self.sd_nm), (angles, self.angles, self.sd)):
            total = total - 0.5 * (((values - mean) / sd) ** 2).sum(1) - values.shape[1] * math.log(sd * math.sqrt(2 * math.pi))
        volume = 2 * torch.log(bonds).sum(1) + torch.log(torch.sin(angles)).sum(1)
        return total - 2 * math.log(2 * math.pi) - volume


@pytest.fixture(scope="module")
def methanol() -> Methanol:
    return Methanol()


@pytest.mark.parametrize("kind", [CartesianRepresentation, InternalRepresentation])
def test_the_integral_over_the_domain_is_a_third(methanol: Methanol, kind: type[Representation]) -> None:
    """By importance sampling from wide normal features, of a density whose integral over three labellings is one."""
    n, width, one = 200_000, 1.3, np.ones(len(methanol.positions_nm))
    representation = kind.fit(methanol.system, CONFIG, methanol.positions_nm.numpy(), one)
    generator = torch.Generator().manual_seed(3)
    features = draw_prior(n, representation.n_torus, representation.n_euclidean, generator).double()
    features[:, representation.n_torus :] *= width
    log_q = log_prior(features, representation.n_torus, 2 * math.log(width))

    def integral(most: float = math.inf) -> tuple[float, float]:
        positions, log_det = representation.decode(features)
        weights = torch.exp(torch.nan_to_num(methanol.log_density(positions) - log_q + log_det, nan=-math.inf)).clamp(max=most)
        return float(weights.mean()), float(weights.std()) / math.sqrt(n)

    found, error = integral()
    assert error < 0.005 and abs(found - 1 / 3) < 5 * error
    if isinstance(representation, CartesianRepresentation):
        representation.symmetries = []  # a negative control: conformations beyond the domain count, once more, ...
        found, error = integral(20.0)  # ... and few of them much: cut, they are less than the whole
        assert found - 1 / 3 > 5 * error


def test_annealing_leaves_out_what_is_outside_of_the_domain(
    methanol: Methanol, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Relabelled proposals are no samples of a flow: the others are annealed, and ln Z keeps the share of all."""
    representation = CartesianRepresentation.fit(methanol.system, CONFIG, methanol.positions_nm.numpy(), np.ones(20_000))
    features = torch.randn((400, 12), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    positions, log_det = representation.decode(features)
    log_density = (log_prior(features, 0) - log_det).numpy()
    inside = np.flatnonzero(np.isfinite(log_density))
    assert 200 < len(inside) < 400
    given: list[torch.Tensor] = []

    def unmoved(start: object, target: object, particles: torch.Tensor, *rest: object, **options: object) -> smc.Particles:
        given.append(particles)
        n = len(particles)
        return smc.Particles(particles, np.zeros(n), np.zeros(n), np.arange(n), (1.0,), (0.5,))

    def target(system: object, used: object) -> SimpleNamespace:
        return SimpleNamespace(n_evaluations=0)

    monkeypatch.setattr(smc, "anneal", unmoved)
    monkeypatch.setattr("hpc_molgen.montecarlo.densities.BoltzmannDensity", target)
    monkeypatch.setattr(base, "load_representation", lambda *_: representation)
    flow = SimpleNamespace(one_pass=True, log_density_and_gradient=None)
    monkeypatch.setattr(surrogates, "load_surrogate", lambda *_: flow)
    nowhere = tmp_path / "none"
    files = (nowhere, methanol.system, CorrectConfig(), SampleConfig(), nowhere, nowhere)
    moved = annealing._move(annealing.Island(100, *files, positions.numpy(), log_density, 1))
    torch.testing.assert_close(given[0], features[inside], rtol=0, atol=1e-9)
    assert np.array_equal(moved.parent, inside)
    assert moved.about["log_z"] == pytest.approx(math.log(len(inside) / 400))
    nothing = annealing._move(annealing.Island(100, *files, positions.numpy(), np.full(400, np.inf), 1))
    assert "outside" in nothing.about["failed"] and len(nothing.log_weight) == 0


def test_files(alanine: MolecularSystem, cartesian: CartesianRepresentation, frames: np.ndarray, tmp_path: Path) -> None:
    cartesian.save(tmp_path / "r.safetensors", alanine)
    loaded = load_representation(tmp_path / "r.safetensors", alanine)
    x = torch.as_tensor(frames[:50])
    assert isinstance(loaded, CartesianRepresentation) and torch.equal(loaded.encode(x), cartesian.encode(x))
    tensors, values = cartesian.state()
    for changed in ({}, values | {"rows": []}, values | {"frame": None}):
        with pytest.raises(InputError, match="another version"):
            CartesianRepresentation.from_state(alanine, tensors, changed)


def test_constraints_are_refused(alanine: MolecularSystem) -> None:
    engine = Engine(alanine, "Reference", 5, constraints="hbonds", timestep_fs=2.0)
    engine.minimise()
    engine.set_positions(engine.positions_nm, draw_velocities=True)
    frames = next(engine.simulate(300, 20)).positions_nm
    with pytest.raises(InputError, match="was run with constraints, so 'cartesian'"):
        CartesianRepresentation.fit(alanine, CONFIG, frames, np.ones(300))
    asked = ["representation.name=cartesian"]
    with pytest.raises(InputError, match="do not vibrate"):
        load_config("tiny", [*asked, "reference.constraints=hbonds"])
    rigid = alanine.system_xml.replace("<Constraints/>", '<Constraints><Constraint d=".1" p1="0" p2="1"/></Constraints>')
    assert "<Constraint " in rigid
    with pytest.raises(InputError, match="has constraints, so exact weights of all 3N - 6 coordinates"):
        check(load_config("tiny", asked), dataclasses.replace(alanine, system_xml=rigid))


def test_frames_of_other_molecules() -> None:
    beads = load_system(SystemConfig(name="trp-cage"))
    a, b, c = body_frame(beads)
    assert (b - a, c - b) == (1, 1) and 8 <= b <= 11  # three beads in a row, in the middle
    topology = mdtraj.Topology()
    residue = topology.add_residue("C4", topology.add_chain())
    atoms = [topology.add_atom(f"C{k}", mdtraj.element.carbon, residue) for k in range(4)]
    for first, second in itertools.pairwise(atoms):
        topology.add_bond(first, second)
    straight = MolecularSystem("straight", topology, "", np.arange(4)[:, None] * np.array([0.0, 0.0, 0.13]), 300.0)
    with pytest.raises(InputError, match="straight lines"):
        body_frame(straight)
