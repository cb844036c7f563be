"""The velocity network: its exact divergence against automatic differentiation, on every kind of feature space."""

from __future__ import annotations

import logging

import pytest
import torch

from hpc_molgen.compilers import has_compiler
from hpc_molgen.surrogates.diffusion import surrogate as surrogate_module
from hpc_molgen.surrogates.diffusion.divergence import velocity_and_divergence_by_jvp
from hpc_molgen.surrogates.diffusion.network import VelocityNetwork
from hpc_molgen.surrogates.diffusion.surrogate import DiffusionSurrogate


def scrambled(network: VelocityNetwork, seed: int) -> VelocityNetwork:
    """Replace the initial weights, many of them zero, by random ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network.double()


@pytest.mark.parametrize(("n_torus", "n_euclidean"), [(2, 0), (0, 3), (3, 7), (1, 20)])
def test_divergence_is_the_trace_of_the_jacobian(n_torus: int, n_euclidean: int) -> None:
    network = scrambled(VelocityNetwork(n_torus, n_euclidean, hidden=24, depth=2, harmonics=3), 1)
    features = torch.randn((6, n_torus + n_euclidean), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    time = network.embed_time(torch.tensor([0.7], dtype=torch.float64))
    velocity, divergence = network.velocity_and_divergence(features, time)
    again, by_jvp = velocity_and_divergence_by_jvp(network, features, time)
    assert torch.equal(again, network(features, time)) and (velocity - again).abs().max() < 1e-12
    for index in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda x: network(x[None], time)[0], features[index])
        for found in (divergence, by_jvp):
            assert found[index].item() == pytest.approx(torch.trace(jacobian).item(), rel=1e-10, abs=1e-10)


def test_divergence_at_a_time_of_its_own_for_each_item() -> None:
    network = scrambled(VelocityNetwork(2, 4, hidden=24, depth=2, harmonics=2), 8)
    features = torch.randn((5, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    time = network.embed_time(torch.linspace(0.1, 1.5, 5, dtype=torch.float64))
    _, divergence = network.velocity_and_divergence(features, time)
    for index in range(5):
        alone = network.velocity_and_divergence(features[index : index + 1], time[index : index + 1])[1]
        assert divergence[index].item() == pytest.approx(alone.item(), rel=1e-10, abs=1e-10)


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler("cpu"), reason="needs a C++ compiler")
def test_compiled_samples_are_those_of_the_plain_network() -> None:
    surrogate = DiffusionSurrogate(1, 0, hidden=8, depth=0, harmonics=1)
    scrambled(surrogate.network, 5)
    plain, compiled = (surrogate.sample(40, 3, compile=flag) for flag in (False, True))
    assert surrogate._compiled is not None
    for first, second in zip(plain, compiled, strict=True):
        assert first is not None and second is not None
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)


def test_without_a_compiler_a_line_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(surrogate_module, "has_compiler", lambda _: False)
    surrogate = DiffusionSurrogate(1, 2, hidden=16, depth=1)
    with caplog.at_level(logging.WARNING):
        features, _ = surrogate.sample(4, 3, compile=True)
    assert "no compiler" in caplog.text and torch.equal(features, surrogate.sample(4, 3)[0])


def test_velocity_is_periodic_in_the_angles() -> None:
    network = scrambled(VelocityNetwork(2, 3, hidden=24, depth=1, harmonics=3), 3)
    features = torch.randn((4, 5), dtype=torch.float64)
    turned = features.clone()
    turned[:, :2] += 2 * torch.pi
    time = network.embed_time(torch.tensor([0.3], dtype=torch.float64))
    assert torch.allclose(network(features, time), network(turned, time), atol=1e-10)


def test_surrogate_rebuilds_itself_from_its_file(tmp_path: object) -> None:
    from pathlib import Path

    from hpc_molgen.errors import InputError
    from hpc_molgen.surrogates.base import load_surrogate

    assert isinstance(tmp_path, Path)
    surrogate = DiffusionSurrogate(2, 3, hidden=16, depth=1)
    scrambled(surrogate.network, 4)
    surrogate.float().save(tmp_path / "s.safetensors", "diffusion", "key")
    loaded = load_surrogate(tmp_path / "s.safetensors", "key")
    for (features, log_q), (again, log_q_again) in [(surrogate.sample(5, 1), loaded.sample(5, 1))]:
        assert (
            torch.equal(features, again) and log_q is not None and log_q_again is not None and torch.equal(log_q, log_q_again)
        )
    with pytest.raises(InputError, match="belongs to system key key"):
        load_surrogate(tmp_path / "s.safetensors", "other")
    (tmp_path / "s.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="not a readable surrogate"):
        load_surrogate(tmp_path / "s.safetensors", "key")


def test_interpolation_starts_and_ends_at_the_ends() -> None:
    surrogate = DiffusionSurrogate(2, 3, hidden=16, depth=1)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.mul_(0.5)
    first, last = torch.tensor([3.0, -3.0, 0.1, 0.2, 0.3]), torch.tensor([-3.0, 3.0, -1.0, 0.5, 0.0])
    path = surrogate.interpolate(first, last, 9)
    assert path.shape == (9, 5)
    assert torch.allclose(path[0], first, atol=1e-3) and torch.allclose(path[-1], last, atol=1e-3)
    assert path[4, :2].abs().min() > 2.5  # the angles went the short way round, across the seam
