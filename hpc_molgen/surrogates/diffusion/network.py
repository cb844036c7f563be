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

    def with_tangents(self, x: torch.Tensor, time: torch.Tensor, tangents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and what becomes of derivatives (k, n, width) of x."""
        inner, inner_slope = silu_and_slope(x)
        outer, outer_slope = silu_and_slope(self.first(inner) + self.time(time))
        moved = nn.functional.linear(tangents * inner_slope, self.first.weight) * outer_slope
        return x + self.second(outer), _plus_linear(tangents, moved, self.second.weight)


class TimeEmbedding(nn.Sequential):
    """A perceptron of waves of the noise angle phi, of phi itself and of its logarithm."""

    frequencies: torch.Tensor

    def __init__(self, hidden: int) -> None:
        super().__init__(nn.Linear(34, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.register_buffer("frequencies", torch.arange(1, 17, dtype=torch.float32), persistent=False)

    def forward(self, phi: torch.Tensor) -> torch.Tensor:
        """Shape (n,) -> (n, hidden)."""
        angle = phi[:, None] * self.frequencies
        scaled = torch.stack([phi / (math.pi / 2), torch.log(phi + 0.01)], dim=1)
        x = torch.cat([torch.cos(angle), torch.sin(angle), scaled], dim=1)
        for layer in self:
            x = layer(x)
        return x


class VelocityNetwork(nn.Module):
    """v(a, y, phi) for angles a (n, n_torus), whitened coordinates y (n, n_euclidean) and the noise angle phi.

    A residual trunk h(a, phi) sees the angles as (cos ka, sin ka). The Euclidean part enters in three ways only, each
    with a divergence in closed form: a mean m(h); a map U diag(g(h)) V y, linear in y, of which the trace is
    g . diag(V U); and a perceptron with two hidden layers whose biases depend on h, W3 silu(W2 silu(W1 y + c1) + c2), of
    which the trace is d2 . (W2 * (W1 W3)^T) d1 with d the slopes of the activations. So the n_euclidean Jacobian-vector
    products of the usual exact divergence cost one matrix product here; the angles take one such product each, all in one call.
    """

    harmonics: torch.Tensor

    def __init__(self, n_torus: int, n_euclidean: int, hidden: int, depth: int, harmonics: int) -> None:
        super().__init__()
        self.n_torus, self.n_euclidean = n_torus, n_euclidean
        self.register_buffer("harmonics", torch.arange(1, harmonics + 1, dtype=torch.float32), persistent=False)
        self.time = TimeEmbedding(hidden)
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
        out: torch.Tensor = self.time(phi)
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
        angles, rest = features[:, : self.n_torus], features[:, self.n_torus :]
        h = self.trunk(angles, time)
        mixed = h
        parts = []
        if self.n_euclidean:
            z1 = self.w1(rest) + self.c1(h)
            mixed = nn.functional.silu(self.w2(nn.functional.silu(z1)) + self.c2(h))
            parts.append(self.mean(h) + self.bilinear_out(self.gate(h) * self.bilinear_in(rest)) + self.w3(mixed))
        if self.n_torus:
            parts.insert(0, self.torus_out(nn.functional.silu(self.torus_mix(mixed) + h)))
        return torch.cat(parts, dim=1)

    def velocity_and_divergence(self, features: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocity (n, n_features) and its exact divergence (n,) from features (n, n_features) and embedded time.

        The Euclidean block has its trace in closed form. The tangents of all angles go through the network together, as one
        array (n_torus, n, hidden), beside the values and with the slopes of the same activations: forward-mode
        differentiation (Griewank and Walther 2008, Evaluating Derivatives, chapter 3), written out.
        """
        angles, rest = features[:, : self.n_torus], features[:, self.n_torus :]
        h, tangents = self._trunk_with_tangents(angles, time)
        divergence = h.new_zeros(len(features))
        mixed, mixed_tangents = h, tangents
        parts = []
        if self.n_euclidean:
            y1, slope1 = silu_and_slope(self.w1(rest) + self.c1(h))
            mixed, slope2 = silu_and_slope(self.w2(y1) + self.c2(h))
            gate = self.gate(h)
            parts.append(self.mean(h) + self.bilinear_out(gate * self.bilinear_in(rest)) + self.w3(mixed))
            coupling = self.w2.weight * (self.w1.weight @ self.w3.weight).T
            loop = (self.bilinear_in.weight * self.bilinear_out.weight.T).sum(1)
            divergence = gate @ loop + (slope2 * (slope1 @ coupling.T)).sum(1)
            if self.n_torus:
                through = nn.functional.linear(nn.functional.linear(tangents, self.c1.weight) * slope1, self.w2.weight)
                mixed_tangents = _plus_linear(through, tangents, self.c2.weight) * slope2
        if self.n_torus:
            out, slope = silu_and_slope(self.torus_mix(mixed) + h)
            parts.insert(0, self.torus_out(out))
            ends = _plus_linear(tangents, mixed_tangents, self.torus_mix.weight) * slope
            divergence = divergence + torch.bmm(ends, self.torus_out.weight[:, :, None]).sum(0)[:, 0]
        return torch.cat(parts, dim=1), divergence

    def _trunk_with_tangents(self, angles: torch.Tensor, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden state (n, hidden), and its derivatives by each of the angles (n_torus, n, hidden)."""
        if not self.n_torus:
            return self.trunk(angles, time), angles.new_zeros((0, len(angles), 1))
        m, n_harmonics = self.n_torus, len(self.harmonics)
        multiples = angles[:, :, None] * self.harmonics
        cosine, sine = torch.cos(multiples), torch.sin(multiples)
        h = self.input(torch.cat([cosine.flatten(1), sine.flatten(1)], dim=1)) + time
        turned = torch.cat([-sine * self.harmonics, cosine * self.harmonics], dim=2).transpose(0, 1)
        columns = self.input.weight.view(-1, 2, m, n_harmonics).permute(2, 1, 3, 0).reshape(m, 2 * n_harmonics, -1)
        tangents = torch.bmm(turned, columns)
        for block in self.blocks:
            assert isinstance(block, ResidualBlock)
            h, tangents = block.with_tangents(h, time, tangents)
        h, slope = silu_and_slope(h)
        return h, tangents * slope


def silu_and_slope(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Silu and its derivative, of one sigmoid."""
    gate = torch.sigmoid(x)
    value = x * gate
    return value, torch.addcmul(gate, value, 1 - gate)


def _plus_linear(base: torch.Tensor, tangents: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Base + tangents @ weight.T, for arrays (k, n, hidden), without an array in between."""
    return torch.baddbmm(base, tangents, weight.T.expand(len(tangents), -1, -1))
