"""Graphs of molecules, and the surrogate of torsions that they condition."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hpc_molgen.config import RepresentationConfig, SystemConfig, TrainConfig
from hpc_molgen.errors import InputError
from hpc_molgen.representations.relaxed import RelaxedRepresentation
from hpc_molgen.representations.rotors import free_rotors
from hpc_molgen.representations.zmatrix import ZMatrix
from hpc_molgen.surrogates.base import Surrogate, load_surrogate
from hpc_molgen.surrogates.diffusion.transferable import EVERYWHERE, TransferableDiffusion, constant_features
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.graph import MolecularGraph, molecular_graph
from hpc_molgen.systems.registry import load_system
from hpc_molgen.training.batches import TrainingSet
from hpc_molgen.training.distributed import process_group
from hpc_molgen.training.loop import Trainer
from hpc_molgen.training.stage import with_rehearsal

SMALL = {"hidden": 24, "depth": 1, "harmonics": 3, "width": 16, "layers": 2}


def peptide(sequence: str) -> MolecularSystem:
    return load_system(SystemConfig(name="peptide", sequence=sequence))


def graph_of(system: MolecularSystem, order: list[int] | None = None) -> MolecularGraph:
    rotors = free_rotors(system.topology, ZMatrix(system.topology))
    torsions = [(rotor.atoms, rotor.fold) for rotor in rotors]
    return molecular_graph(system, [torsions[number] for number in order or range(len(torsions))])


@pytest.fixture(scope="module")
def surrogate() -> TransferableDiffusion:
    """Of two molecules with different numbers of torsions; weights random, so that velocities are not zero."""
    torch.manual_seed(1)
    graphs = [graph_of(peptide(name)) for name in ("ALA", "VAL")]
    made = TransferableDiffusion([graph.as_dict() for graph in graphs], residues=["ALA", "VAL"], **SMALL)
    torch.nn.init.normal_(made.velocities.out.weight, std=0.3)
    return made


def bound(surrogate: TransferableDiffusion, graph: MolecularGraph, folder: Path, n_euclidean: int = 0) -> TransferableDiffusion:
    surrogate.save(folder / "shared.safetensors", "transferable", EVERYWHERE)
    return TransferableDiffusion.for_molecule(folder / "shared.safetensors", graph, n_euclidean).double().eval()


def slopes(surrogate: TransferableDiffusion, angles: torch.Tensor, phi: float = 0.7) -> torch.Tensor:
    surrogate._bind()
    return surrogate._slope(angles, phi, divergence=False)[0]


def some_angles(n: int, m: int) -> torch.Tensor:
    return (2 * torch.rand((n, m), generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 1) * torch.pi


def assert_same(first: MolecularGraph, second: MolecularGraph, tolerance: float = 1e-5) -> None:
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name in ("turn", "hanging_turn"):
            one, other = np.exp(1j * one), np.exp(1j * other)  # angles
        np.testing.assert_allclose(one, other, atol=tolerance, err_msg=field.name)


def test_a_graph_does_not_change_with_the_frame_of_reference() -> None:
    system = peptide("THR")
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turn = turn * np.linalg.det(turn)  # proper
    moved = dataclasses.replace(system, positions_nm=system.positions_nm @ turn + 3.0)
    assert_same(graph_of(system), graph_of(moved))


def test_the_graph_of_the_mirror_image_is_the_mirrored_graph() -> None:
    system = peptide("ILE")
    image = dataclasses.replace(system, positions_nm=system.positions_nm * np.array([1.0, 1.0, -1.0]))
    assert_same(graph_of(image), graph_of(system).mirrored())
    with pytest.raises(AssertionError):
        assert_same(graph_of(image), graph_of(system))


def test_torsional_energy_is_that_of_the_force_field() -> None:
    """Against OpenMM's torsion force alone, its bond turned with all else rigid."""
    import openmm

    from hpc_molgen.systems.torsions import set_torsion, torsion_angles

    system = peptide("VAL")
    rotors = free_rotors(system.topology, ZMatrix(system.topology))
    number, rotor = next((n, r) for n, r in enumerate(rotors) if r.fold == 1 and system.topology.atom(r.atoms[2]).name == "CB")
    energy = openmm.XmlSerializer.deserialize(system.system_xml)
    for index in reversed(range(energy.getNumForces())):
        if not isinstance(energy.getForce(index), openmm.PeriodicTorsionForce):
            energy.removeForce(index)
    context = openmm.Context(energy, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    found, expected = [], []
    coefficients = graph_of(system).energy[number]
    waves = np.arange(1, 7)
    for angle in np.linspace(-3, 3, 13):
        positions = set_torsion(system.topology, system.positions_nm, rotor.atoms, angle)
        assert torsion_angles(positions, rotor.atoms) == pytest.approx(angle, abs=1e-6)
        context.setPositions(positions)
        found.append(context.getState(getEnergy=True).getPotentialEnergy()._value / system.kt_kj_mol)
        expected.append(coefficients @ np.concatenate([np.cos(waves * angle), np.sin(waves * angle)]))
    assert np.ptp(found) > 1
    np.testing.assert_allclose(np.array(found) - np.mean(found), np.array(expected) - np.mean(expected), atol=1e-6)


def test_residues_are_described_and_can_be_left_nameless() -> None:
    graph = graph_of(peptide("SER-ALA"))
    assert graph.residue_types() == ["ALA", "SER"] and not graph.anonymous().residue_types()
    again = MolecularGraph.from_dict(json.loads(json.dumps(graph.as_dict())))
    for field in dataclasses.fields(graph):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(graph, field.name))


def test_divergence_is_exact(surrogate: TransferableDiffusion, tmp_path: Path) -> None:
    one = bound(surrogate, graph_of(peptide("VAL")), tmp_path, 3)
    x = torch.cat([some_angles(4, one.n_torus), torch.ones((4, 3), dtype=torch.float64)], dim=1)
    one._bind()
    velocity, divergence = one._slope(x, 0.7, divergence=True)
    plain, _ = one._slope(x, 0.7, divergence=False)
    jacobians = torch.stack(
        [torch.autograd.functional.jacobian(lambda point: slopes(one, point[None])[0], point) for point in x]
    )
    assert divergence is not None and float(divergence.abs().min()) > 1e-3
    torch.testing.assert_close(divergence, torch.diagonal(jacobians, dim1=1, dim2=2).sum(1), atol=1e-10, rtol=0)
    torch.testing.assert_close(velocity, plain, atol=1e-12, rtol=0)
    assert not velocity[:, one.n_torus :].any()


def test_the_order_of_torsions_does_not_matter(surrogate: TransferableDiffusion, tmp_path: Path) -> None:
    system, order = peptide("VAL"), [3, 0, 6, 1, 5, 2, 4]
    plain, other = bound(surrogate, graph_of(system), tmp_path), bound(surrogate, graph_of(system, order), tmp_path)
    angles = some_angles(5, 7)
    torch.testing.assert_close(slopes(other, angles[:, order]), slopes(plain, angles)[:, order], atol=1e-6, rtol=0)


def test_the_direction_of_torsions_does_not_matter(surrogate: TransferableDiffusion, tmp_path: Path) -> None:
    system = peptide("SER")
    torsions = [(rotor.atoms, rotor.fold) for rotor in free_rotors(system.topology, ZMatrix(system.topology))]
    plain = molecular_graph(system, torsions)
    turned = molecular_graph(system, [(quad[::-1], fold) for quad, fold in torsions])  # type: ignore[misc]
    angles = some_angles(5, len(torsions))
    found = [slopes(bound(surrogate, graph, tmp_path), angles) for graph in (plain, turned)]
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_residue_types_that_training_has_not_seen_are_not_used(surrogate: TransferableDiffusion, tmp_path: Path) -> None:
    unseen, seen = graph_of(peptide("SER")), graph_of(peptide("VAL"))
    angles = some_angles(3, unseen.n_torsions)
    named, nameless = (slopes(bound(surrogate, graph, tmp_path), angles) for graph in (unseen, unseen.anonymous()))
    assert torch.equal(named, nameless)
    angles = some_angles(3, seen.n_torsions)
    named, nameless = (slopes(bound(surrogate, graph, tmp_path), angles) for graph in (seen, seen.anonymous()))
    assert not torch.allclose(named, nameless)


def test_loss_of_an_item_does_not_depend_on_the_batch(surrogate: TransferableDiffusion) -> None:
    generator = torch.Generator().manual_seed(3)
    batch = torch.zeros((40, surrogate.n_torus + 1))
    batch[:, :-1] = 2 * torch.rand((40, surrogate.n_torus), generator=generator) - 1
    batch[20:, -1] = 1
    noise = surrogate.draw_noise("score", 40, generator)
    together = surrogate.loss("score", batch, noise)
    alone = torch.cat([surrogate.loss("score", batch[k : k + 1], tuple(v[k : k + 1] for v in noise)) for k in range(40)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    changed = batch.clone()
    changed[:20, 5:7] = 2.0  # alanine has five torsions: the rest of its row means nothing
    assert torch.equal(surrogate.loss("score", changed, noise), together)


def test_mirror_images_have_mirrored_losses() -> None:
    """Variant 1 of a molecule is variant 0 of its mirror image, whose torsions have the opposite sign."""
    torch.manual_seed(4)
    graph = graph_of(peptide("THR"))
    one, image = (TransferableDiffusion([g.as_dict()], residues=["THR"], **SMALL) for g in (graph, graph.mirrored()))
    torch.nn.init.normal_(one.velocities.out.weight, std=0.3)
    image.load_state_dict(one.state_dict())
    angles = some_angles(20, graph.n_torsions).float()
    time, eps, _ = one.draw_noise("score", 20, torch.Generator().manual_seed(5))
    plain, mirrored = torch.zeros(20), torch.ones(20)
    torch.testing.assert_close(
        one.loss("score", angles, (time, eps, mirrored)), image.loss("score", -angles, (time, eps, plain)), atol=1e-4, rtol=1e-4
    )


def test_samples_know_their_density(surrogate: TransferableDiffusion, tmp_path: Path) -> None:
    one = bound(surrogate, graph_of(peptide("ALA")), tmp_path, 4)
    features, log_q = one.sample(50, 1, n_steps=40)
    assert features.shape == (50, 9) and log_q is not None
    torch.testing.assert_close(one.log_density(features, n_steps=40), log_q, atol=1e-4, rtol=0)
    again, _ = one.sample(50, 1, n_steps=40)
    assert torch.equal(features, again)


def test_files_serve_every_molecule_and_those_of_one_serve_that(surrogate: TransferableDiffusion, tmp_path: Path) -> None:
    one = bound(surrogate, graph_of(peptide("GLY")), tmp_path, 2)
    one.float().save(tmp_path / "one.safetensors", "transferable", "key")
    again = load_surrogate(tmp_path / "one.safetensors", "key")
    assert torch.equal(again.sample(10, 1, n_steps=4)[0], one.sample(10, 1, n_steps=4)[0])
    with pytest.raises(InputError, match="belongs to system key key"):
        TransferableDiffusion.for_molecule(tmp_path / "one.safetensors", graph_of(peptide("GLY")), 2)
    with pytest.raises(InputError, match="for one of them"):
        surrogate.sample(10, 1)


def test_graphs_come_from_the_representation() -> None:
    system = peptide("GLY")
    representation = RelaxedRepresentation.fit(system, RepresentationConfig(), np.empty((0, 19, 3)), np.empty(0))
    assert_same(representation.graph(), graph_of(system), 1e-12)
    assert representation.graph().n_torsions == representation.n_torus


def test_the_network_runs_in_bf16(surrogate: TransferableDiffusion) -> None:
    batch = torch.zeros((8, surrogate.n_torus + 1))
    noise = surrogate.draw_noise("score", 8, torch.Generator().manual_seed(1))
    plain = surrogate.loss("score", batch, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = surrogate.loss("score", batch, noise)
    mixed.sum().backward()
    torch.testing.assert_close(mixed, plain, rtol=0.1, atol=0.1)  # bf16 has eight bits


def test_features_that_never_varied_in_training_are_not_used() -> None:
    """Capped single residues all have place 0 in their sequence: of longer ones it would be noise through untrained weights."""
    torch.manual_seed(1)
    taught, asked = [graph_of(peptide(name)) for name in ("ALA", "SER")], graph_of(peptide("ALA-ALA"))
    constant = constant_features(taught)
    assert len(constant) > 5
    angles = some_angles(3, asked.n_torsions).float()
    found = []
    for known in ([], constant):
        made = TransferableDiffusion([asked.as_dict()], residues=["ALA"], constant=known, **SMALL)
        made.load_state_dict(found[0][0].state_dict() if found else made.state_dict())
        torch.nn.init.normal_(made.velocities.out.weight, std=0.3, generator=torch.Generator().manual_seed(2))
        found.append((made, slopes(made, angles)))
    assert not torch.allclose(found[0][1], found[1][1])  # place and number of neighbours' kinds do differ here
    again = TransferableDiffusion(**found[1][0].hyperparameters)
    again.load_state_dict(found[1][0].state_dict())
    assert torch.equal(slopes(again, angles), found[1][1])


def test_a_molecule_of_which_nothing_turns_is_refused() -> None:
    with pytest.raises(InputError, match="no torsion of it turns freely"):
        molecular_graph(peptide("GLY"), [])


def test_tuning_on_few_frames_keeps_what_they_do_not_show(tmp_path: Path) -> None:
    """Three in ten items have phi > 0, no frame of the tuning has: half of them stay if half of what is shown is rehearsed."""
    torch.manual_seed(3)
    made = TransferableDiffusion([graph_of(peptide("ALA")).as_dict()], residues=["ALA"], **SMALL)
    generator = torch.Generator().manual_seed(4)

    def frames(n: int, share: float) -> TrainingSet:
        right = torch.rand(n, generator=generator) < share
        phi = torch.where(right, 1.0, -1.5) + 0.3 * torch.randn(n, generator=generator)
        rest = 0.3 * torch.randn((n, made.n_torus - 1), generator=generator)
        return TrainingSet(torch.cat([phi[:, None], rest], dim=1).double(), torch.ones(n))

    def trained(start: Surrogate, data: TrainingSet, folder: str, n_steps: int) -> Surrogate:
        steps = {"n_steps": n_steps, "validate_every": n_steps, "warmup_steps": 10, "ema_decay": 0.98, "batch_size": 256}
        (tmp_path / folder).mkdir()
        own = TrainConfig.model_validate(steps)
        return Trainer(start, own, data, frames(100, 0.3), tmp_path / folder, process_group("cpu"), 1, lambda _: None).run()

    def copied() -> Surrogate:
        return copy.deepcopy(first).requires_grad_(True)

    def share_on_the_right(surrogate: Surrogate) -> float:
        phi = surrogate.eval().sample(2000, 5, log_density=False)[0][:, 0]
        return float((torch.remainder(phi + torch.pi, 2 * torch.pi) - torch.pi > -0.2).double().mean())

    first = trained(made, frames(4000, 0.3), "first", 400)
    assert share_on_the_right(first) == pytest.approx(0.3, abs=0.06)
    few = frames(60, 0.0)
    both = with_rehearsal(few, copied(), 0.5, 1)
    shown = both.weights / both.weights.sum()
    assert float(shown[:60].sum()) == pytest.approx(0.5) and float(shown[both.features[:, 0] > -0.2].sum()) > 0.1
    assert share_on_the_right(trained(copied(), both, "rehearsed", 300)) == pytest.approx(0.15, abs=0.05)
    assert share_on_the_right(trained(copied(), few, "not", 300)) < 0.02
