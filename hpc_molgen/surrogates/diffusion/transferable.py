"""A diffusion of torsions for many molecules: conditioned on their graphs, trained on some, sampled for others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hpc_molgen.config import Integrator
from hpc_molgen.errors import InputError
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.surrogates.diffusion.graph_network import Conditions, Graphs, TorsionNetwork
from hpc_molgen.surrogates.diffusion.integrators import Solution
from hpc_molgen.surrogates.diffusion.surrogate import DiffusionSurrogate
from hpc_molgen.systems.graph import ATOM_FEATURES, N_DISTANCES, N_RESIDUE_TYPES, MolecularGraph
from hpc_molgen.tensorfiles import load_tensors

EVERYWHERE = "any"  # system key of a file that serves every molecule
_VARIANTS = 4  # of each molecule in training: as it is or its mirror image, with and without residue types


class TransferableDiffusion(DiffusionSurrogate):
    """Diffusion on the torus of the free torsions of any molecule, with standard normal numbers behind them.

    The features are those of the representation `relaxed`, whose Euclidean part is standard normal for every molecule but for
    anharmonicity; it is drawn and not learnt, and ln q of all features is exact. Torsions are invariant under translation and
    rotation. In training every molecule is its mirror image half of the time, with all torsions negative, so that handedness is
    learnt as such; and half of the time residues come without their types, as they do for types that training never saw.

    Parameters
    ----------
    graphs : list of dict
        Of the molecules (`MolecularGraph.as_dict`), or of the one that is sampled.
    n_euclidean : int
        Features behind the torsions of the one that is sampled; 0 for several.
    residues : list of str
        Residue types that training has seen.
    constant : list of (int, float)
        Features of atoms that were the same in all of training, which hence taught nothing, and their values: a molecule that
        differs there is shown with these.
    hidden, depth, harmonics, width, layers : int
        Of `TorsionNetwork`.
    schedule : str
        As in `DiffusionSurrogate`.
    """

    has_log_density = True
    centres: torch.Tensor

    def __init__(
        self, graphs: list[dict[str, Any]], n_euclidean: int = 0, residues: Sequence[str] = (),
        constant: Sequence[tuple[int, float]] = (), hidden: int = 96,
        depth: int = 2, harmonics: int = 4, width: int = 64, layers: int = 4, schedule: str = "cosine",
    ) -> None:  # fmt: skip
        Surrogate.__init__(self)
        self.hyperparameters = {
            "graphs": graphs, "n_euclidean": n_euclidean, "residues": list(residues),
            "constant": [list(pair) for pair in constant], "hidden": hidden, "depth": depth,
            "harmonics": harmonics, "width": width, "layers": layers, "schedule": schedule,
        }  # fmt: skip
        self.graphs = [MolecularGraph.from_dict(graph) for graph in graphs]
        self.sizes = [graph.n_torsions for graph in self.graphs]
        if not all(self.sizes):
            raise InputError("surrogate.name 'transferable' moves torsions that turn freely, and this molecule has none")
        self.n_torus = max(self.sizes)
        self.n_features, self.schedule = self.n_torus + n_euclidean, schedule
        self._compiled: Any = None
        told = set(residues)
        known = [_as_taught(graph, told, constant) for graph in self.graphs]
        # tuned on one molecule, it learns what will be sampled
        variants = zip(*(_variants(graph) for graph in (known if len(known) == 1 else self.graphs)), strict=True)
        self._of_training = nn.ModuleList([Graphs(same, N_DISTANCES) for same in variants])
        self._of_sampling = Graphs(known[:1], N_DISTANCES)
        counts = (self._of_sampling.atoms.shape[1], self._of_sampling.of_torsion.shape[1], self._of_sampling.of_pair.shape[1])
        self.velocities = TorsionNetwork(*counts, hidden, depth, harmonics, width, layers)
        centres = torch.zeros((len(self.graphs), self.n_torus))
        for row, graph in zip(centres, self.graphs, strict=True):
            row[: graph.n_torsions] = torch.as_tensor(graph.centre)
        self.register_buffer("centres", centres, persistent=False)
        self._conditions: Conditions | None = None

    @classmethod
    def for_molecule(cls, path: Path, graph: MolecularGraph, n_euclidean: int) -> TransferableDiffusion:
        """Read a trained file and bind it to a molecule.

        Raises
        ------
        InputError
            If the file cannot be read or is not of such a surrogate.
        """
        tensors, about = load_tensors(path, "surrogate", EVERYWHERE)
        if about["name"] != "transferable":
            raise InputError(f"{path}: holds the surrogate '{about['name']}', not 'transferable'")
        own = {"graphs": [graph.as_dict()], "n_euclidean": n_euclidean}
        found = cls(**(about["hyperparameters"] | own))
        found.load_state_dict(tensors)
        return found

    def parts(self) -> dict[str, nn.Module]:
        return {"score": self.velocities}

    def draw_noise(self, part: str, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        strata = (torch.arange(n) + torch.rand(n, generator=generator)) / n
        eps = torch.randn((n, self.n_torus), generator=generator)
        # one for all items that are drawn together: what each variant of the molecules makes of the network costs time
        variant = torch.randint(_VARIANTS if len(self.graphs) > 1 else 1, (1,), generator=generator)
        return strata, eps, variant.float().expand(n)

    def loss(self, part: str, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Squared error of the velocities of each item's torsions (n,).

        Parameters
        ----------
        batch : torch.Tensor, shape=(n, n_torus + 1) or (n, n_features)
            Torsions, of molecules with fewer of them the first so many; the number of the molecule where there are several.
        """
        time, eps, variant = noise
        which = batch[:, -1].long() if len(self.graphs) > 1 else batch.new_zeros(len(batch)).long()
        angles = batch[:, : self.n_torus] + self.centres[which]
        mirror = (variant.long() % 2)[:, None].bool()
        angles = torch.where(mirror, -angles, angles)
        noisy, phi, target = self.diffuse(angles, time, eps)
        embedded = self.velocities.time(phi)
        kinds = variant.long() * len(self.graphs) + which
        conditions = {number: self._conditions_of(number) for number in torch.unique(variant.long()).tolist()}
        rows, others, own, told, out = [], [], [], [], []
        for kind in torch.unique(kinds).tolist():  # items of one molecule share its matrices
            chosen, of_kind = (
                torch.nonzero(kinds == kind).flatten(),
                conditions[kind // len(self.graphs)][kind % len(self.graphs)],
            )
            m = len(of_kind.out)
            here = self.velocities.gathered(noisy[chosen, :m], of_kind)
            others.append(here[0].flatten(0, 1))
            own.append(here[1].flatten(0, 1))
            told.append((embedded[chosen, None] + of_kind.tokens).flatten(0, 1))
            out.append(of_kind.out.expand(len(chosen), -1, -1).flatten(0, 1))
            rows.append((chosen[:, None] * self.n_torus + torch.arange(m, device=chosen.device)).flatten())
        velocity = self.velocities.finished(*(torch.cat(parts) for parts in (others, own, told, out)))
        where = torch.cat(rows)
        errors = batch.new_zeros(len(batch) * self.n_torus).index_put(
            (where,), (velocity - target.flatten()[where]).to(batch) ** 2
        )
        total = errors.view(len(batch), self.n_torus).sum(1)
        if min(self.sizes) == 1:  # which needs no pairs: DDP waits for the gradients of all weights
            total = total + 0 * sum(weight.sum() for weight in self.velocities.parameters())
        return total

    def _conditions_of(self, variant: int) -> list[Conditions]:
        graphs = self._of_training[variant]
        assert isinstance(graphs, Graphs)
        return self.velocities.conditions(graphs)

    @torch.no_grad()
    def sample(self, n: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As in `DiffusionSurrogate`."""
        self._bind()
        return super().sample(n, seed, **options)

    def run_ode(
        self, features: torch.Tensor, start: float, end: float, integrator: Integrator = "rk4", n_steps: int = 0,
        tolerance: float = 1e-3, *, divergence: bool,
    ) -> Solution:  # fmt: skip
        """As in `DiffusionSurrogate`, for the torsions alone: the rest is at rest."""
        self._bind()
        m = self.n_torus
        found = super().run_ode(features[:, :m], start, end, integrator, n_steps, tolerance, divergence=divergence)
        return Solution(torch.cat([found.features, features[:, m:]], dim=1), found.change, found.n_evaluations)

    @torch.no_grad()
    def _bind(self) -> None:
        """Compute once what the network is for this molecule."""
        if len(self.graphs) > 1:
            raise InputError("a surrogate of several molecules is sampled for one of them: bind it with `for_molecule`")
        (self._conditions,) = self.velocities.conditions(self._of_sampling)

    def _velocity_and_divergence(self) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        return self.velocities.velocity_and_divergence

    def _like(self) -> torch.Tensor:
        return self.centres

    def _slope(self, features: torch.Tensor, phi: float, *, divergence: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._conditions is None:
            self._bind()
        assert self._conditions is not None
        angles, m = features[:, : self.n_torus] + self.centres[0], self.n_torus
        time = self.velocities.time(torch.tensor([phi], dtype=torch.float64).to(features))
        slope = None
        if divergence:
            velocity, slope = (self._compiled or self.velocities.velocity_and_divergence)(angles, time, self._conditions)
        else:
            others, own = self.velocities.gathered(angles, self._conditions)
            velocity = self.velocities.finished(others, own, time[:, None] + self._conditions.tokens, self._conditions.out)
        return torch.cat([velocity, torch.zeros_like(features[:, m:])], dim=1), slope


def constant_features(graphs: Sequence[MolecularGraph]) -> list[tuple[int, float]]:
    """Return columns of the features of atoms, but for residue types, that are the same in all graphs, and their values."""
    atoms = np.concatenate([graph.atoms for graph in graphs])
    types = range(len(ATOM_FEATURES), len(ATOM_FEATURES) + N_RESIDUE_TYPES)
    same = np.flatnonzero(np.ptp(atoms, axis=0) == 0)
    return [(int(column), float(atoms[0, column])) for column in same if column not in types]


def _as_taught(graph: MolecularGraph, told: set[str], constant: Sequence[tuple[int, float]]) -> MolecularGraph:
    """Return a graph without what training has not taught: types of residues, and features that were the same everywhere."""
    graph = graph if set(graph.residue_types()) <= told else graph.anonymous()
    atoms = graph.atoms.copy()
    for column, value in constant:
        atoms[:, column] = value
    return dataclasses.replace(graph, atoms=atoms)


def _variants(graph: MolecularGraph) -> list[MolecularGraph]:
    """As it is, its mirror image, and both without residue types: numbers 0 to 3."""
    nameless = graph.anonymous()
    return [graph, graph.mirrored(), nameless, nameless.mirrored()]
