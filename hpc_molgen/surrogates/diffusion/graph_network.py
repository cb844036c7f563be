"""Velocities of the torsions of any molecule, from its graph: what depends on the graph alone is computed once a molecule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hpc_molgen.surrogates.diffusion.network import ResidualBlock, TimeEmbedding, silu_and_slope

if TYPE_CHECKING:
    from hpc_molgen.systems.graph import MolecularGraph

PAIR_HARMONICS = 3


class Graphs(nn.Module):
    """Several molecules side by side, as one graph of several pieces; buffers follow the network to its device.

    Parameters
    ----------
    graphs : sequence of MolecularGraph
    """

    atoms: torch.Tensor
    bonds: torch.Tensor
    ends: torch.Tensor
    hanging: torch.Tensor
    hanging_turn: torch.Tensor
    of_torsion: torch.Tensor
    pairs: torch.Tensor
    pair_ends: torch.Tensor
    of_pair: torch.Tensor
    turned: torch.Tensor

    def __init__(self, graphs: Sequence[MolecularGraph], n_distances: int) -> None:
        super().__init__()
        self.sizes = [graph.n_torsions for graph in graphs]
        first_atom = np.cumsum([0, *(len(graph.atoms) for graph in graphs)])
        first_torsion = np.cumsum([0, *self.sizes])
        self._put("atoms", np.concatenate([graph.atoms for graph in graphs]))
        self._put("bonds", np.concatenate([graph.bonds + start for graph, start in zip(graphs, first_atom, strict=False)]))
        self._put("ends", np.concatenate([graph.ends + start for graph, start in zip(graphs, first_atom, strict=False)]))
        shifts = [np.array([torsion, 0, atom]) for torsion, atom in zip(first_torsion, first_atom, strict=True)]
        self._put("hanging", np.concatenate([graph.hanging + shift for graph, shift in zip(graphs, shifts, strict=False)]))
        self._put("hanging_turn", np.concatenate([graph.hanging_turn for graph in graphs]))
        self._put("of_torsion", np.concatenate([_torsion_features(graph) for graph in graphs]))
        pairs, ends, about, turned = zip(*(_pair_features(graph, n_distances) for graph in graphs), strict=True)
        self._put("pairs", np.concatenate([own + start for own, start in zip(pairs, first_torsion, strict=False)]))
        self._put("pair_ends", np.concatenate(ends))
        self._put("of_pair", np.concatenate(about))
        self._put("turned", np.concatenate(turned))
        self.n_pairs = [len(own) for own in pairs]

    def _put(self, name: str, values: np.ndarray) -> None:
        tensor = torch.as_tensor(values)
        self.register_buffer(name, tensor if tensor.dtype == torch.int64 else tensor.float(), persistent=False)


def _torsion_features(graph: MolecularGraph) -> np.ndarray:
    folds = np.stack([graph.fold == 1, graph.fold == 3, (graph.fold != 1) & (graph.fold != 3)], axis=1)
    return np.concatenate([graph.energy, folds.astype(float)], axis=1)


def _pair_features(graph: MolecularGraph, n_distances: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ordered pairs (i, j), the sides of their bonds that face each other, features, and the turn of j as seen from i."""
    m = graph.n_torsions
    pairs = np.array([(i, j) for i in range(m) for j in range(m) if i != j], dtype=int).reshape(-1, 2)
    i, j = pairs.T
    waves = np.arange(1, PAIR_HARMONICS + 1)
    distance = np.eye(n_distances)[graph.distance[i, j]]
    angles = [graph.turn[i, j][:, None] * waves, graph.turn[j, i][:, None] * waves]
    about = np.concatenate([distance, *(function(angle) for angle in angles for function in (np.cos, np.sin))], axis=1)
    return pairs, np.stack([graph.side[i, j], graph.side[j, i]], axis=1), about, graph.turn[j, i]


@dataclass(frozen=True)
class Conditions:
    """What the graph of one molecule with m torsions makes of the network.

    Attributes
    ----------
    inputs : torch.Tensor, shape=(m * 2 * harmonics, m * hidden)
        From the cosines and sines of all torsions to the state of each; of a torsion to its own state it is zero.
    tokens : torch.Tensor, shape=(m, hidden)
    own : torch.Tensor, shape=(m, 2 * harmonics, hidden)
        From the cosines and sines of a torsion to its own head.
    out : torch.Tensor, shape=(m, hidden)
    """

    inputs: torch.Tensor
    tokens: torch.Tensor
    own: torch.Tensor
    out: torch.Tensor


class GraphEncoder(nn.Module):
    """Vectors for each torsion and each pair of torsions, by messages along bonds (Gilmer et al. 2017, ICML).

    What hangs on the two ends of a torsion's bond enters with the angle at which it hangs, as Fourier moments: so the vectors
    know which of two mirror images they belong to, and are the same whichever atoms define the torsion's direction.

    Parameters
    ----------
    n_atom_features, n_torsion_features, n_pair_features : int
    width : int
        Of all vectors.
    layers : int
        Messages: how many bonds far an atom sees.
    """

    def __init__(self, n_atom_features: int, n_torsion_features: int, n_pair_features: int, width: int, layers: int) -> None:
        super().__init__()
        self.lift = nn.Linear(n_atom_features, width)
        self.messages = nn.ModuleList([_perceptron(width, width, width) for _ in range(layers)])
        self.updates = nn.ModuleList([_perceptron(2 * width, width, width) for _ in range(layers)])
        self.end = _perceptron(4 * width, width, width)
        self.torsion = _perceptron(2 * width + n_torsion_features, width, width)
        self.pair = _perceptron(4 * width + n_pair_features, width, width)

    def forward(self, graphs: Graphs) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of torsions (n_torsions, width) and of ordered pairs (n_pairs, width)."""
        h = self.lift(graphs.atoms)
        source, goal = graphs.bonds.T
        for message, update in zip(self.messages, self.updates, strict=True):
            said = message(h)[source]
            heard = said.new_zeros(h.shape).index_add(0, goal, said)
            h = h + update(torch.cat([h, heard], dim=1))
        n = len(graphs.ends)
        torsion, end, atom = graphs.hanging.T
        turn = graphs.hanging_turn[:, None]
        there = torch.cat([h[atom], torch.cos(turn) * h[atom], torch.sin(turn) * h[atom]], dim=1)
        moments = there.new_zeros((2 * n, there.shape[1])).index_add(0, 2 * torsion + end, there)
        ends = self.end(torch.cat([h[graphs.ends.flatten()], moments], dim=1)).view(n, 2, -1)
        both = torch.cat([ends.sum(1), ends.prod(1)], dim=1)
        tokens = self.torsion(torch.cat([both, graphs.of_torsion], dim=1))
        i, j = graphs.pairs.T
        facing = [ends[i, graphs.pair_ends[:, 0]], ends[j, graphs.pair_ends[:, 1]]]
        pairs = self.pair(torch.cat([tokens[i], tokens[j], *facing, graphs.of_pair], dim=1))
        return tokens, pairs


class TorsionNetwork(nn.Module):
    """v_i(a, phi) for the torsions a of a molecule that its graph conditions, with a divergence that costs one tangent.

    The state of a torsion is a residual trunk of the others' angles alone, to which each contributes by a matrix that the
    pair's vector gives; the torsion's own angle enters behind the trunk, in a head of two layers. So dv_i/da_i needs the head
    alone (Chen and Duvenaud 2019, NeurIPS, "Neural networks with cheap differential operators"), and nothing is lost: v_i is
    any function of a_i and of the others. Torsions are a set: their order and number do not matter, and all share all weights.

    Parameters
    ----------
    n_atom_features, n_torsion_features, n_pair_features : int
        Of the graphs.
    hidden, depth, harmonics : int
        Width of the trunk, its residual blocks, and cos(k a), sin(k a) for k = 1..harmonics as inputs.
    width, layers : int
        Of the encoder.
    """

    harmonics: torch.Tensor

    def __init__(
        self, n_atom_features: int, n_torsion_features: int, n_pair_features: int, hidden: int, depth: int, harmonics: int,
        width: int, layers: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.hidden = hidden
        self.register_buffer("harmonics", torch.arange(1, harmonics + 1, dtype=torch.float32), persistent=False)
        self.encoder = GraphEncoder(n_atom_features, n_torsion_features, n_pair_features, width, layers)
        self.time = TimeEmbedding(hidden)
        self.inputs = nn.Linear(width, 2 * harmonics * hidden)
        self.token, self.out = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.own = nn.Linear(width, 2 * harmonics * hidden)
        self.blocks = nn.ModuleList([ResidualBlock(hidden) for _ in range(depth)])
        self.state, self.again = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.second = nn.Linear(hidden, hidden, False)
        with torch.no_grad():  # sums over torsions and waves of order one
            for layer in (self.inputs, self.own):
                layer.weight.mul_(0.5)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def conditions(self, graphs: Graphs) -> list[Conditions]:
        """Return what each of the graphs makes of the network."""
        tokens, pairs = self.encoder(graphs)
        n_waves, hidden = len(self.harmonics), self.hidden
        matrices = self.inputs(pairs).view(-1, 2, n_waves, hidden)
        turn = graphs.turned[:, None] * self.harmonics
        cosine, sine = torch.cos(turn)[:, :, None], torch.sin(turn)[:, :, None]
        # of angles as they are seen from the other torsion: cos k(a + turn) and sin k(a + turn)
        of_cosine = matrices[:, 0] * cosine + matrices[:, 1] * sine
        of_sine = matrices[:, 1] * cosine - matrices[:, 0] * sine
        seen = torch.stack([of_cosine, of_sine], dim=1).flatten(1, 2)
        own = self.own(tokens).view(-1, 2 * n_waves, hidden)
        parts = zip(
            torch.split(seen, graphs.n_pairs), torch.split(self.token(tokens), graphs.sizes), torch.split(own, graphs.sizes),
            torch.split(self.out(tokens), graphs.sizes), graphs.sizes, strict=True,
        )  # fmt: skip
        return [Conditions(self._dense(matrix, m), token, head, out) for matrix, token, head, out, m in parts]

    def _dense(self, matrices: torch.Tensor, m: int) -> torch.Tensor:
        """Matrices of ordered pairs (i, j), j to i, as one matrix (m * 2 * harmonics, m * hidden) by (j, i)."""
        if m == 1:
            return matrices.new_zeros((2 * len(self.harmonics), self.hidden))
        # of torsion i all j but itself: a zero is put where j = i
        full = matrices.view(m, m - 1, -1, self.hidden)
        rows = [torch.cat([own[:i], torch.zeros_like(own[:1]), own[i:]]) for i, own in enumerate(full)]
        return torch.stack(rows, dim=2).reshape(-1, m * self.hidden)

    def waves(self, angles: torch.Tensor) -> torch.Tensor:
        """Cosines, then sines of multiples of angles (n, m): (n, m, 2 * harmonics)."""
        multiples = angles[:, :, None] * self.harmonics
        return torch.cat([torch.cos(multiples), torch.sin(multiples)], dim=2)

    def gathered(self, angles: torch.Tensor, conditions: Conditions) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs of the trunk and of the head, (n, m, hidden) each, of angles (n, m) of one molecule."""
        waves = self.waves(angles)
        others = (waves.flatten(1) @ conditions.inputs).view(*angles.shape, self.hidden)
        return others, torch.einsum("nmk,mkh->nmh", waves, conditions.own)

    def finished(self, others: torch.Tensor, own: torch.Tensor, told: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Velocities (...) from inputs, time and tokens (..., hidden)."""
        state = self._trunk(others, told)
        first = nn.functional.silu(self.state(state) + own)
        second = nn.functional.silu(self.second(first) + self.again(state))
        return (second * out).sum(-1)

    def velocity_and_divergence(
        self, angles: torch.Tensor, time: torch.Tensor, conditions: Conditions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocity (n, m) and its exact divergence (n,) at angles (n, m) and embedded time (1, hidden)."""
        others, own = self.gathered(angles, conditions)
        state = self._trunk(others, time[:, None] + conditions.tokens)
        first, slope = silu_and_slope(self.state(state) + own)
        second, second_slope = silu_and_slope(self.second(first) + self.again(state))
        n_waves = len(self.harmonics)
        waves = self.waves(angles)
        turned = torch.cat([-waves[:, :, n_waves:] * self.harmonics, waves[:, :, :n_waves] * self.harmonics], dim=2)
        tangent = torch.einsum("nmk,mkh->nmh", turned, conditions.own) * slope
        slopes = self.second(tangent) * second_slope
        return (second * conditions.out).sum(-1), (slopes * conditions.out).sum((1, 2))

    def _trunk(self, others: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        h = others + told
        for block in self.blocks:
            h = block(h, told)
        return nn.functional.silu(h)


def _perceptron(inward: int, hidden: int, outward: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inward, hidden), nn.SiLU(), nn.Linear(hidden, outward))
