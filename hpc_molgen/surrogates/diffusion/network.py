"""The velocity network, built so that its exact divergence is cheap."""

from __future__ import annotations

import math

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """x + W2 silu(W1 silu(x) + time)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.time = nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Shapes (n, width) and (n or 1, width) -> (n, width)."""
        out: torch.Tensor = x + self.second(nn.functional.silu(self.first(nn.functional.silu(x)) + self.time(time)))
        return out


class VelocityNetwork(nn.Module):
    """v(a, y, phi) for angles a (n, n_torus), whitened coordinates y (n, n_euclidean) and the noise angle phi.

    A residual trunk h(a, phi) sees the angles as (cos ka, sin ka). The Euclidean part enters in three ways only, each
    with a divergence in closed form: a mean m(h); a map U diag(g(h)) V y, linear in y, of which the trace is
    g . diag(V U); and a perceptron with two hidden layers whose biases depend on h, W3 silu(W2 silu(W1 y + c1) + c2), of
    which the trace is d2 . (W2 * (W1 W3)^T) d1 with d the slopes of the activations. So the n_euclidean Jacobian-vector
    products of the usual exact divergence cost one matrix product here; the angles take one such product each.
    """

    harmonics: torch.Tensor
    frequencies: torch.Tensor

    def __init__(self, n_torus: int, n_euclidean: int, hidden: int, depth: int, harmonics: int) -> None:
        super().__init__()
        self.n_torus, self.n_euclidean = n_torus, n_euclidean
        self.register_buffer("harmonics", torch.arange(1, harmonics + 1, dtype=torch.float32), persistent=False)
        self.register_buffer("frequencies", torch.arange(1, 17, dtype=torch.float32), persistent=False)
        self.time = nn.Sequential(nn.Linear(34, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.input = nn.Linear(max(1, 2 * harmonics * n_torus), hidden)
        self.blocks = nn.ModuleList([ResidualBlock(hidden) for _ in range(depth)])
        if n_euclidean:
            rank = min(2 * n_euclidean, hidden)
            self.mean, self.gate = nn.Linear(hidden, n_euclidean), nn.Linear(hidden, rank)
            self.bilinear_in, self.bilinear_out = nn.Linear(n_euclidean, rank, False), nn.Linear(rank, n_euclidean, False)
            self.w1, self.w2 = nn.Linear(n_euclidean, hidden, False), nn.Linear(hidden, hidden, False)
            self.w3 = nn.Linear(hidden, n_euclidean, False)
            self.c1, self.c2 = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
            for layer in (self.mean, self.gate, self.w3):
                nn.init.zeros_(layer.weight)
            nn.init.zeros_(self.mean.bias)
            nn.init.zeros_(self.gate.bias)
        if n_torus:
            self.torus_mix = nn.Linear(hidden, hidden)
            self.torus_out = nn.Linear(hidden, n_torus)
            nn.init.zeros_(self.torus_out.weight)
            nn.init.zeros_(self.torus_out.bias)

    def embed_time(self, phi: torch.Tensor) -> torch.Tensor:
        """Embedding (n, hidden) of noise angles (n,)."""
        angle = phi[:, None] * self.frequencies
        scaled = torch.stack([phi / (math.pi / 2), torch.log(phi + 0.01)], dim=1)
        out: torch.Tensor = self.time(torch.cat([torch.cos(angle), torch.sin(angle), scaled], dim=1))
        return out

    def trunk(self, angles: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Hidden state (n, hidden) of the angles."""
        if self.n_torus:
            multiples = (angles[:, :, None] * self.harmonics).flatten(1)
            h = self.input(torch.cat([torch.cos(multiples), torch.sin(multiples)], dim=1)) + time
        else:
            h = self.input(angles.new_zeros((len(angles), 1))) + time
        for block in self.blocks:
            h = block(h, time)
        return nn.functional.silu(h)

    def forward(self, features: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Velocity (n, n_features) from features (n, n_features) and embedded time (n or 1, hidden)."""
        velocity, _ = self._evaluate(features[:, : self.n_torus], features[:, self.n_torus :], time, trace=False)
        return velocity

    def _evaluate(
        self, angles: torch.Tensor, rest: torch.Tensor, time: torch.Tensor, *, trace: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocity, and the trace of its Euclidean block (zeros unless `trace`)."""
        h = self.trunk(angles, time)
        divergence = h.new_zeros(len(angles))
        mixed = h
        parts = []
        if self.n_euclidean:
            z1 = self.w1(rest) + self.c1(h)
            z2 = self.w2(nn.functional.silu(z1)) + self.c2(h)
            mixed = nn.functional.silu(z2)
            gate = self.gate(h)
            parts.append(self.mean(h) + self.bilinear_out(gate * self.bilinear_in(rest)) + self.w3(mixed))
            if trace:
                coupling = self.w2.weight * (self.w1.weight @ self.w3.weight).T
                loop = (self.bilinear_in.weight * self.bilinear_out.weight.T).sum(1)
                divergence = gate @ loop + (silu_slope(z2) * (silu_slope(z1) @ coupling.T)).sum(1)
        if self.n_torus:
            parts.insert(0, self.torus_out(nn.functional.silu(self.torus_mix(mixed) + h)))
        return torch.cat(parts, dim=1), divergence

    def velocity_and_divergence(self, features: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocity (n, n_features) and its exact divergence (n,): closed form for the rest, one JVP for each angle."""
        angles, rest = features[:, : self.n_torus], features[:, self.n_torus :]
        velocity, divergence = self._evaluate(angles, rest, time, trace=True)
        for column in range(self.n_torus):
            tangent = torch.zeros_like(angles)
            tangent[:, column] = 1.0
            slope = torch.func.jvp(lambda a: self._evaluate(a, rest, time, trace=False)[0], (angles,), (tangent,))[1]
            divergence = divergence + slope[:, column]
        return velocity, divergence


def silu_slope(x: torch.Tensor) -> torch.Tensor:
    """Derivative of silu."""
    gate = torch.sigmoid(x)
    return gate * (1 + x * (1 - gate))
