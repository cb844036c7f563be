"""Distances of beads: what comes back from their features, mirror images, soft contacts, files, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_molgen import preflight
from hpc_molgen.config import RepresentationConfig, RunConfig, SystemConfig, load_config
from hpc_molgen.dynamics.engine import Engine
from hpc_molgen.errors import InputError
from hpc_molgen.representations.base import REPRESENTATIONS, load_representation, representation_class
from hpc_molgen.representations.distance import DistanceRepresentation, Measure, bead_bonds, pair_distances_nm
from hpc_molgen.representations.embedding import as_matrix, classical_scaling, majorise, shortest_paths, superposed_rmsd_nm
from hpc_molgen.representations.handedness import odd_features, right_handed, virtual_torsions
from hpc_molgen.sampling import draw_structures
from hpc_molgen.surrogates.diffusion.surrogate import DiffusionSurrogate
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.observables import make_observables
from hpc_molgen.systems.registry import load_system
from hpc_molgen.systems.structure_based import chain_topology
from hpc_molgen.systems.torsions import torsion_angles

MIRROR = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def cage() -> MolecularSystem:
    return load_system(SystemConfig(name="trp-cage", temperature_kelvin=320.0))


@pytest.fixture(scope="module")
def frames(cage: MolecularSystem) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out frames (n, 20, 3) of MD, folded and unfolded: two trajectories, 5 ps between frames."""
    sides = []
    for seed in (1, 2):
        engine = Engine(cage, "Reference", seed, timestep_fs=10, friction_per_ps=1)
        engine.set_positions(cage.positions_nm, draw_velocities=True)
        engine.step(10_000)
        sides.append(next(engine.simulate(1000, 500, block=1000)).positions_nm.astype(np.float64))
    return sides[0], sides[1]


def fitted(cage: MolecularSystem, positions_nm: np.ndarray, **options: object) -> DistanceRepresentation:
    config = RepresentationConfig.model_validate({"name": "distance", **options})
    return DistanceRepresentation.fit(cage, config, positions_nm, np.full(len(positions_nm), 1 / len(positions_nm)))


@pytest.fixture(scope="module")
def plain(cage: MolecularSystem, frames: tuple[np.ndarray, np.ndarray]) -> DistanceRepresentation:
    return fitted(cage, frames[0])


def bond_lengths(positions_nm: torch.Tensor) -> torch.Tensor:
    return torch.linalg.norm(positions_nm[:, 1:] - positions_nm[:, :-1], dim=2)


@pytest.mark.parametrize("of", ["distances", "contacts"])
def test_frames_come_back_folded_and_unfolded(cage: MolecularSystem, frames: tuple[np.ndarray, np.ndarray], of: str) -> None:
    """Held-out frames, not those of the fit; a mirror image is 0.1 nm and more away, thermal motion of a bond 0.007 nm."""
    representation, x = fitted(cage, frames[0], distance_of=of), torch.as_tensor(frames[1])
    features = representation.encode(x)
    assert features.shape == (1000, representation.n_features) and features.dtype == torch.float64
    assert 54 < representation.n_features <= 190 and representation.n_torus == 0
    back, log_abs_det = representation.decode(features)
    assert back.dtype == torch.float64 and not log_abs_det.any()
    away, as_mirror = superposed_rmsd_nm(back, x), superposed_rmsd_nm(back, x * MIRROR)
    # by the energies of frames and their mirror images 0.1 % of frames at 320 K are more likely the other way round
    assert float((away < as_mirror).double().mean()) > 0.99
    q = make_observables(("q",), cage, cage.positions_nm)["q"][0](frames[1])
    for part in (q > 0.6, q < 0.4):
        assert part.sum() > 50
        assert float((away < as_mirror)[part].double().mean()) > 0.98  # of a hundred frames one may be wrong
    kept = torch.minimum(away, as_mirror)
    # components leave out 0.1 % of the variance: of distances whose deviation is 0.35 nm that is 0.011 nm; twice that is wrong
    assert float(kept.median()) < {"distances": 0.022, "contacts": 0.044}[of]
    assert float((bond_lengths(back) - bond_lengths(x)).square().mean().sqrt()) < 0.01
    figures = representation.round_trip(frames[1])
    assert figures["right_handed"] == pytest.approx(float((away <= as_mirror).double().mean()))
    assert figures["n_frames"] == 1000 and ("saturated" in figures) == (of == "contacts")
    assert figures["positions_rms_nm"] == pytest.approx(float(kept.square().mean().sqrt()), rel=1e-9)


def test_features_know_no_motion_and_no_mirror(plain: DistanceRepresentation, frames: tuple[np.ndarray, np.ndarray]) -> None:
    x = torch.as_tensor(frames[1][:50])
    turned = x @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0] + 3.0
    features = plain.encode(x)
    for other in (turned, x * MIRROR):
        torch.testing.assert_close(plain.encode(other), features, atol=1e-6, rtol=0)
    whole = plain.encode(torch.as_tensor(frames[0]))  # whitened over the frames of the fit
    torch.testing.assert_close(whole.mean(0), torch.zeros(plain.n_features, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        whole.T @ whole / len(whole), torch.eye(plain.n_features, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_all_components_lose_nothing(cage: MolecularSystem, frames: tuple[np.ndarray, np.ndarray]) -> None:
    both = np.concatenate(frames)  # in which no frame has beads nearer to each other than any other
    representation, x = fitted(cage, both, components=190), torch.as_tensor(frames[1][:100])
    back, _ = representation.decode(representation.encode(x))
    assert float(torch.minimum(superposed_rmsd_nm(back, x), superposed_rmsd_nm(back, x * MIRROR)).max()) < 0.01
    few = fitted(cage, frames[0], components=20).round_trip(frames[1])
    assert few["positions_rms_nm"] > 10 * representation.round_trip(frames[1])["positions_rms_nm"]


def test_features_of_no_frame_still_give_a_chain(cage: MolecularSystem, frames: tuple[np.ndarray, np.ndarray]) -> None:
    """Whatever a poor surrogate makes is a chain of beads with the bonds of one."""
    for of in ("distances", "contacts"):
        representation = fitted(cage, frames[0], distance_of=of)
        drawn = torch.randn(200, representation.n_features, generator=torch.Generator().manual_seed(2))
        back, _ = representation.decode(1.5 * drawn)
        lengths = bond_lengths(back)
        assert torch.isfinite(back).all()
        assert float((lengths / 0.38 - 1).abs().max()) < 0.2  # what the check of structures lets pass


def test_handedness_is_learnt(plain: DistanceRepresentation, frames: tuple[np.ndarray, np.ndarray]) -> None:
    x, coefficients = torch.as_tensor(frames[1]), plain.tensors["handedness"]
    torch.testing.assert_close(odd_features(x * MIRROR), -odd_features(x))
    torsion = torsion_angles(frames[1], (4, 5, 6, 7))
    np.testing.assert_allclose(virtual_torsions(x)[:, 4].numpy(), torsion, atol=1e-12)
    found = right_handed(x * MIRROR, coefficients)
    same = torch.isclose(found, x).all(dim=(1, 2))
    assert float(same.double().mean()) > 0.99
    torch.testing.assert_close(right_handed(x, coefficients), torch.where(same[:, None, None], x, x * MIRROR))


def test_majorisation_lowers_the_stress_to_a_known_minimum() -> None:
    """Points from their exact distances, and with one distance that is only known to be long enough."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 8, 3, dtype=torch.float64, generator=generator)
    pairs = torch.triu_indices(8, 8, 1).T
    exact = as_matrix(pair_distances_nm(x, pairs), pairs, 8)
    torch.testing.assert_close(torch.cdist(classical_scaling(exact), classical_scaling(exact)), exact)
    weight = as_matrix(torch.rand(5, 28, dtype=torch.float64, generator=generator) + 0.1, pairs, 8)
    start = classical_scaling(exact) + 0.3 * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    relaxed = majorise(start, exact, exact, weight, 1000)
    torch.testing.assert_close(torch.cdist(relaxed, relaxed), exact, atol=1e-3, rtol=0)
    lower, upper = exact.clone(), exact.clone()
    lower[:, 0, 7] = lower[:, 7, 0] = 0.5 * exact[:, 0, 7]
    upper[:, 0, 7] = upper[:, 7, 0] = torch.inf
    near = x + 0.05 * torch.randn(x.shape, dtype=torch.float64, generator=generator)  # the stress has other minima far away
    free = majorise(near, lower, upper, weight, 1000)  # the others fix that distance
    torch.testing.assert_close(torch.cdist(free, free), exact, atol=1e-3, rtol=0)


def test_shortest_paths_fill_what_is_not_known() -> None:
    line = torch.full((1, 4, 4), torch.inf, dtype=torch.float64)
    line[:, range(4), range(4)] = 0
    for i in range(3):
        line[:, i, i + 1] = line[:, i + 1, i] = 1.0 + i
    assert shortest_paths(line)[0, 0].tolist() == [0, 1, 3, 6]


def test_contacts_tell_distances_until_they_are_saturated() -> None:
    measure = Measure("contacts", 1.0, 0.2)
    distance = torch.tensor([0.5, 1.0, 1.5, 2.5], dtype=torch.float64)
    lower, upper, slope = measure.bounds_nm(measure.of_distance(distance))
    torch.testing.assert_close(lower[:3], distance[:3])
    torch.testing.assert_close(upper[:3], distance[:3])
    assert float(lower[3]) == pytest.approx(1.0 + 0.2 * np.log(99)) and torch.isinf(upper[3])
    assert float(slope[1]) == pytest.approx(0.8)
    near = torch.tensor([0.995], dtype=torch.float64)
    lower, upper, _ = measure.bounds_nm(near)
    assert float(upper) == pytest.approx(1.0 - 0.2 * np.log(99), abs=0.1) and lower <= upper


def test_a_file_keeps_every_bit(
    cage: MolecularSystem, frames: tuple[np.ndarray, np.ndarray], plain: DistanceRepresentation, tmp_path: Path
) -> None:
    for representation in (plain, fitted(cage, frames[0], distance_of="contacts", contact_nm=0.9)):
        representation.save(tmp_path / "a", cage)
        read = load_representation(tmp_path / "a", cage)
        read.save(tmp_path / "b", cage)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        x = torch.as_tensor(frames[1][:40])
        features = representation.encode(x)
        assert torch.equal(read.encode(x), features)
        assert torch.equal(read.decode(features)[0], representation.decode(features)[0])


def test_other_molecules_and_gradients_are_refused(cage: MolecularSystem, plain: DistanceRepresentation) -> None:
    peptide = load_system(SystemConfig(name="alanine-dipeptide"))
    with pytest.raises(InputError, match=r"one bead for each residue.*22 atoms in 3 residues"):
        bead_bonds(peptide)
    config = load_config(
        "trp-cage-distance", ["system.name=alanine-dipeptide", "reference.timestep_fs=1", "farm.timestep_fs=1"]
    )
    with pytest.raises(InputError, match="one bead for each residue"):
        preflight.check(config, peptide)
    short = MolecularSystem("three", chain_topology(["ALA"] * 3), cage.system_xml, cage.positions_nm[:3], 300.0)
    with pytest.raises(InputError, match=r"4 to 100 beads.*three has 3"):
        bead_bonds(short)
    assert bead_bonds(cage) == [(i, i + 1) for i in range(19)]
    features = torch.zeros(1, plain.n_features)
    with pytest.raises(InputError, match="no density"):
        plain.pulled_back(features, torch.zeros(1, 20, 3), torch.zeros(1, 20, 3))


def test_more_components_than_directions_are_refused(cage: MolecularSystem, frames: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(InputError, match=r"representation.components 191: the training frames vary in \d+ directions only"):
        fitted(cage, frames[0], components=191)


def test_the_configuration_knows_which_representations_have_a_density() -> None:
    """`RepresentationConfig.has_density` stands where classes are not loaded; it must say what they say."""
    for name in REPRESENTATIONS:
        kind = representation_class(name)
        assert RepresentationConfig(name=name).has_density == (kind.density != "none"), name
        assert bool(kind.density_note) == (kind.density != "exact"), name


@pytest.mark.parametrize(
    "setting",
    [
        {"refine": {"rounds": 1}},
        {"refine": {"start": "prior"}},
        {"sample": {"temperatures_kelvin": [350]}},
        {"correct": {"method": "anneal"}},
        {"reference": {"training_kelvin": 400}},
    ],
)
def test_what_needs_weights_is_refused_at_once(setting: dict[str, dict[str, object]]) -> None:
    named = {"representation": {"name": "distance"}, "system": {"name": "trp-cage"}, **setting}
    (section, (key,)) = next((name, list(values)) for name, values in setting.items())
    with pytest.raises(ValueError, match=rf"'distance' has no density of conformations.*{section}\.{key}"):
        RunConfig.model_validate(named)
    RunConfig.model_validate({**named, section: {}})
    RunConfig.model_validate({**named, section: {}, "sample": {"sampler": "ancestral"}})  # weights are off by themselves


def test_no_log_density_is_asked_for(plain: DistanceRepresentation) -> None:
    surrogate = DiffusionSurrogate(0, plain.n_features, hidden=16, depth=1)
    asked: list[bool] = []
    draw = surrogate.sample

    def sample(n: int, seed: int, **options: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        asked.append(bool(options["log_density"]))
        return draw(n, seed, **options)

    surrogate.sample = sample  # type: ignore[method-assign]
    config = RunConfig().sample
    assert config.log_density
    _, positions, log_density = draw_structures(surrogate, plain, config, 5, 1)
    assert asked == [False] and log_density is None and positions.shape == (5, 20, 3)
