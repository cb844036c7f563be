"""Learned collective variables: a time-lagged autoencoder's latent space or TICA's, beside observables that have a name.

Wehmeyer and Noe 2018, J. Chem. Phys. 148, 241703: an encoder and a decoder that predict a frame from one that is a lag earlier
keep, in a few numbers between them, what is slow. Frames are seen as distances, which need no superposition (and cannot tell a
structure from its mirror image), whitened, so that fast motions of large amplitude count no more than others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from hpc_molgen.errors import InputError
from hpc_molgen.representations.cvs import CollectiveVariables, Labels
from hpc_molgen.seeding import derive_seed, torch_generator
from hpc_molgen.systems.observables import make_observables, values_of
from hpc_molgen.workers import one_thread

if TYPE_CHECKING:
    from hpc_molgen.config import RepresentationConfig
    from hpc_molgen.systems.base import MolecularSystem
    from hpc_molgen.trajectories import TrajectorySet

MAX_POINTS = 25  # atoms between which distances are taken: at most 300
MIN_ALPHA = 10  # residues from which on the C-alpha atoms stand for a chain
SET_APART = 0.2  # of the training walkers, to choose the best weights by
BATCH, LEARNING_RATE, N_CHECKS, CHECKED_PAIRS = 256, 1e-3, 40, 4096
CHUNK = 2000


def distance_pairs(system: MolecularSystem) -> np.ndarray:
    """Return pairs of atoms (n_pairs, 2): of every k-th C-alpha atom, or heavy atom of what has few of those.

    Raises
    ------
    InputError
        For what has fewer than three such atoms: a time series without structures, for example.
    """
    solute = [atom for atom in system.topology.atoms if not atom.residue.is_water]
    atoms = [atom.index for atom in solute if atom.name == "CA"]
    if len(atoms) < MIN_ALPHA:
        atoms = [atom.index for atom in solute if atom.element is None or atom.element.symbol != "H"]
    if len(atoms) < 3:
        raise InputError(
            f"representation.name 'latent': {system.name} has no structures with distances to learn from; use 'cvs' there"
        )
    chosen = np.array(atoms)[:: math.ceil(len(atoms) / MAX_POINTS)]
    return chosen[np.stack(np.triu_indices(len(chosen), 1), axis=1)]


def distances(positions_nm: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return distances (n, n_pairs), float64, in positions (n, n_atoms, 3)."""
    x = np.asarray(positions_nm, dtype=np.float64)
    parts = [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]
    return np.concatenate([np.linalg.norm(part[:, pairs[:, 0]] - part[:, pairs[:, 1]], axis=2) for part in parts])


class LinePlus(nn.Module):
    """A linear map plus a small network, which begins as nothing: what is linear need not be built of its units."""

    def __init__(self, inward: int, outward: int, hidden: int) -> None:
        super().__init__()
        self.line = nn.Linear(inward, outward)
        self.bend = nn.Sequential(
            nn.Linear(inward, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outward)
        )
        for layer in (self.line, self.bend[-1]):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (n, inward) -> (n, outward)."""
        out: torch.Tensor = self.line(x) + self.bend(x)
        return out


class Encoder:
    """From features of a frame to standardised latent coordinates, slowest first.

    Attributes
    ----------
    tensors : dict of str to torch.Tensor
        "mean" (n_inputs,), "whiten" (n_inputs, n_components), "shift" (n_latent,), "turn" (n_latent, n_latent), and the weights
        of the network as "network.*".
    hidden : int
        Width of the network.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], hidden: int) -> None:
        self.tensors, self.hidden = tensors, hidden
        n_components, n_latent = tensors["whiten"].shape[1], len(tensors["shift"])
        weights = {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}
        with torch.device("meta"):  # draws no random numbers for weights that are known
            self._network = LinePlus(n_components, n_latent, hidden)
        self._network.load_state_dict(weights, assign=True)

    @property
    def n_latent(self) -> int:
        """Number of latent coordinates."""
        return len(self.tensors["shift"])

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Latent coordinates (n, n_latent), float64, of features (n, n_inputs)."""
        white = (torch.as_tensor(inputs, dtype=torch.float64) - self.tensors["mean"]) @ self.tensors["whiten"]
        with torch.no_grad():
            raw = self._network(white)
        found: np.ndarray = ((raw - self.tensors["shift"]) @ self.tensors["turn"]).numpy()
        return found


def learn_encoder(
    walkers: Callable[[], Iterable[np.ndarray]], config: RepresentationConfig, seed: int
) -> tuple[Encoder, dict[str, Any]]:
    """Train a time-lagged autoencoder, or solve TICA; return the encoder and what is worth knowing about it.

    Latent coordinates of the network are known up to an invertible map alone. They are turned to have zero mean, unit variance
    and no correlation over all frames, and to be ordered by their autocorrelation at the lag; each grows with the feature that
    it correlates with most.

    Parameters
    ----------
    walkers : callable
        Returns the features (n_frames, n_inputs) of one training walker after the other, each time it is called.

    Raises
    ------
    InputError
        When no walker is longer than the lag, or there are fewer principal components than latent coordinates.
    """
    lag = config.latent_lag_frames
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "latent weights"))
        mean, whiten, unwhiten = _whitening(walkers(), config.latent_components)
        white = [((part - mean) @ whiten).astype(np.float32) for part in walkers()]
        if max(map(len, white)) <= lag + 1:
            raise InputError(f"representation.latent_lag_frames {lag}: the longest training walker has {max(map(len, white))}")
        if whiten.shape[1] < config.latent:
            raise InputError(f"representation.latent {config.latent}: frames vary in {whiten.shape[1]} directions only")
        encoder, curve = _tica(white, config) if config.latent_by == "tica" else _train(white, config, seed)
        with torch.no_grad():
            raw = [encoder(torch.from_numpy(part).double()).numpy() for part in white]
    shift, turn = _slowest_first(raw, lag)
    latents = [(part - shift) @ turn for part in raw]
    turn = turn * _signs(white, latents, unwhiten)
    tensors = {"mean": mean, "whiten": whiten, "shift": shift, "turn": turn}
    found = {key: torch.as_tensor(np.ascontiguousarray(value)) for key, value in tensors.items()}
    found |= {f"network.{key}": value for key, value in encoder.state_dict().items()}
    about: dict[str, Any] = {
        "by": config.latent_by, "lag_frames": lag, "n_inputs": len(mean), "n_components": whiten.shape[1],
        "n_frames": sum(map(len, white)), "autocorrelations": _lagged(latents, lag).tolist(),
    }  # fmt: skip
    if curve:
        best = min(curve, key=lambda check: check["set_apart"])
        about |= {"best_step": best["step"], "loss_set_apart": best["set_apart"], "loss_linear": curve[0]["set_apart"]}
        about["curve"] = curve
    return Encoder(found, config.latent_hidden), about


def _whitening(walkers: Iterable[np.ndarray], n_components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean (n_inputs,), the map to the largest principal components over their deviations, and its inverse."""
    n, total, squares = 0, np.zeros(1), np.zeros((1, 1))
    origin: np.ndarray | None = None
    for part in walkers:
        origin = part[0] if origin is None else origin  # sums of squares about a near point lose no digits
        near = part - origin
        n, total, squares = n + len(near), total + near.sum(axis=0), squares + near.T @ near
    if origin is None:
        raise InputError("a latent space is learned from one training walker at least")
    mean = total / n
    variances, axes = np.linalg.eigh(squares / n - np.outer(mean, mean))
    kept = np.flatnonzero(variances > 1e-8 * variances.max())[::-1][:n_components]
    deviations = np.sqrt(variances[kept])
    return origin + mean, axes[:, kept] / deviations, (axes[:, kept] * deviations).T


def _tica(white: Sequence[np.ndarray], config: RepresentationConfig) -> tuple[nn.Module, list[dict[str, float]]]:
    """Return the linear encoder of time-lagged independent components, and that there was no training.

    Perez-Hernandez et al. 2013, J. Chem. Phys. 139, 015102, as deeptime solves it, with reversible estimates.
    """
    from deeptime.decomposition import TICA

    lag = config.latent_lag_frames
    long = [part.astype(np.float64) for part in white if len(part) > lag]
    model = TICA(lagtime=lag, dim=config.latent).fit_from_timeseries(long).fetch_model()
    encoder = LinePlus(white[0].shape[1], config.latent, config.latent_hidden).double()
    vectors = torch.from_numpy(model.singular_vectors_left[:, : config.latent].real.copy())
    with torch.no_grad():
        encoder.line.weight[: vectors.shape[1]] = vectors.T
        encoder.line.bias[: vectors.shape[1]] = -torch.from_numpy(np.asarray(model.mean_0)) @ vectors
    return encoder, []


def _train(white: Sequence[np.ndarray], config: RepresentationConfig, seed: int) -> tuple[nn.Module, list[dict[str, float]]]:
    """Return the encoder (float64) with the least loss on what is set apart, and the course of both losses.

    It begins with the best linear one: the leading singular vectors of the covariance of whitened frames a lag apart.
    """
    frames, lag = torch.from_numpy(np.concatenate(white)), config.latent_lag_frames
    fitted, apart = _pairs(list(map(len, white)), lag)
    encoder = LinePlus(frames.shape[1], config.latent, config.latent_hidden)
    decoder = LinePlus(config.latent, frames.shape[1], config.latent_hidden)
    forward, strength, backward = torch.linalg.svd(frames[fitted].T.double() @ frames[fitted + lag].double() / len(fitted))
    with torch.no_grad():
        n = min(config.latent, frames.shape[1])
        encoder.line.weight[:n] = forward[:, :n].T
        decoder.line.weight[:, :n] = (strength[:n, None] * backward[:n]).T
    weights = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.Adam(weights, LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.latent_steps)
    generator = torch_generator(seed, "latent batches")

    def loss(starts: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(decoder(encoder(frames[starts])), frames[starts + lag])

    def check(starts: torch.Tensor) -> float:
        with torch.no_grad():
            return float(loss(starts[:: max(1, len(starts) // CHECKED_PAIRS)]))

    best, least, seen = copy.deepcopy(encoder), check(apart), 0.0
    curve = [{"step": 0, "train": check(fitted), "set_apart": least}]
    every = max(1, config.latent_steps // N_CHECKS)
    for step in range(1, config.latent_steps + 1):
        batch = fitted[torch.randint(len(fitted), (BATCH,), generator=generator)]
        optimiser.zero_grad()
        value = loss(batch)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        seen += float(value.detach()) / every
        if step % every == 0:
            curve.append({"step": step, "train": seen, "set_apart": check(apart)})
            seen = 0.0
            if curve[-1]["set_apart"] < least:
                best, least = copy.deepcopy(encoder), curve[-1]["set_apart"]
    return best.double(), curve


def _pairs(lengths: Sequence[int], lag: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return first frames of pairs to fit and of those set apart: of the last walkers, or of the end of a single one."""
    edges = np.concatenate([[0], np.cumsum(lengths)])
    starts = [np.arange(first, first + n - lag) for first, n in zip(edges, lengths, strict=False) if n > lag + 1]
    n_apart = round(SET_APART * len(starts)) or min(1, len(starts) - 1)
    if n_apart:
        fitted, apart = starts[:-n_apart], starts[-n_apart:]
    else:  # a gap of a lag between the two
        cut = max(1, round((1 - SET_APART) * len(starts[0])))
        fitted, apart = [starts[0][: max(1, cut - lag)]], [starts[0][min(cut, len(starts[0]) - 1) :]]
    return torch.from_numpy(np.concatenate(fitted)), torch.from_numpy(np.concatenate(apart))


def _slowest_first(raw: Sequence[np.ndarray], lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Return shift (n_latent,) and turn (n_latent, n_latent) to uncorrelated coordinates of most autocorrelation first."""
    together = np.concatenate(raw)
    shift = together.mean(axis=0)
    variances, axes = np.linalg.eigh((together - shift).T @ (together - shift) / len(together))
    whiten = axes / np.sqrt(np.maximum(variances, 1e-12 * variances.max()))
    lagged = [((part[:-lag] - shift) @ whiten).T @ ((part[lag:] - shift) @ whiten) for part in raw if len(part) > lag]
    covariance = sum(lagged) / sum(len(part) - lag for part in raw if len(part) > lag)
    _, turns = np.linalg.eigh(0.5 * (covariance + covariance.T))
    return shift, whiten @ turns[:, ::-1]


def _signs(white: Sequence[np.ndarray], latents: Sequence[np.ndarray], unwhiten: np.ndarray) -> np.ndarray:
    """Return signs (n_latent,) by which each latent coordinate grows with the feature that it correlates with most."""
    covariance = sum(z.T @ x.astype(np.float64) for x, z in zip(white, latents, strict=True)) @ unwhiten
    correlation = covariance / np.linalg.norm(unwhiten, axis=0).clip(1e-300)
    strongest = np.abs(correlation).argmax(axis=1)
    return np.where(correlation[np.arange(len(strongest)), strongest] < 0, -1.0, 1.0)


def _lagged(series: Sequence[np.ndarray], lag: int) -> np.ndarray:
    """Autocorrelation (n_columns,) at one lag of standardised series."""
    parts = [part for part in series if len(part) > lag]
    together = sum((part[:-lag] * part[lag:]).sum(axis=0) for part in parts)
    return np.asarray(together / sum(len(part) - lag for part in parts))


class LatentVariables(CollectiveVariables):
    """Observables by name, then latent coordinates z1, z2, ... of frames, slowest first.

    Attributes
    ----------
    cvs : tuple of str
        The observables; may be none.
    encoder : Encoder
        Of the distances of `pairs`, shape=(n_pairs, 2).
    about : dict
        Lag, autocorrelations at it, and how the training went.
    """

    name = "latent"
    target: ClassVar[str] = CollectiveVariables.target

    def __init__(
        self,
        system: MolecularSystem,
        names: tuple[str, ...],
        units: tuple[str, ...],
        mean: np.ndarray,
        scale: np.ndarray,
        encoder: Encoder,
        pairs: np.ndarray,
        about: dict[str, Any],
        labels: Labels | None = None,
    ) -> None:
        super().__init__(system, names, units, mean, scale, labels)
        self.encoder, self.pairs, self.about = encoder, pairs, about
        self.cvs = names[: len(names) - encoder.n_latent]

    @classmethod
    def learn(
        cls,
        system: MolecularSystem,
        config: RepresentationConfig,
        walkers: Callable[[], Iterable[np.ndarray]],
        seed: int,
    ) -> LatentVariables:
        """Learn the latent space; scales of all features come with `standardised`.

        Parameters
        ----------
        walkers : callable
            Returns the positions (n_frames, n_atoms, 3) of one training walker after the other, each time it is called.
        """
        pairs = distance_pairs(system)
        measured = make_observables(config.cvs, system, system.positions_nm)
        encoder, about = learn_encoder(lambda: (distances(x, pairs) for x in walkers()), config, seed)
        names = (*config.cvs, *(f"z{number}" for number in range(1, config.latent + 1)))
        units = (*(unit for _, unit in measured.values()), *("dimensionless",) * config.latent)
        return cls(system, names, units, np.zeros(len(names)), np.ones(len(names)), encoder, pairs, about)

    def standardised(self, train: TrajectorySet, held_out: TrajectorySet | None = None) -> LatentVariables:
        """Return the same with means and scales of the training trajectories, and the labels of all."""
        plain = CollectiveVariables.of_series(self.system, train, held_out)
        parts = self.system, self.names, self.units, plain.mean, plain.scale, self.encoder, self.pairs, self.about
        return LatentVariables(*parts, plain.labels)

    def measure(self, positions_nm: np.ndarray) -> np.ndarray:
        latent = self.encoder(distances(positions_nm, self.pairs))
        if not self.cvs:
            return latent
        measured = values_of(make_observables(self.cvs, self.system, self.system.positions_nm), positions_nm)
        return np.concatenate([measured, latent], axis=1)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        tensors, values = super().state()
        tensors |= {"pairs": torch.as_tensor(self.pairs)}
        tensors |= {f"encoder.{key}": value for key, value in self.encoder.tensors.items()}
        return tensors, values | {"hidden": self.encoder.hidden, "about": self.about}

    @classmethod
    def from_state(cls, system: MolecularSystem, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> LatentVariables:
        own = {key.removeprefix("encoder."): value for key, value in tensors.items() if key.startswith("encoder.")}
        plain = CollectiveVariables.from_state(system, tensors, values)
        parts = system, plain.names, plain.units, plain.mean, plain.scale
        encoder = Encoder(own, int(values["hidden"]))
        return cls(*parts, encoder, tensors["pairs"].numpy(), values["about"], plain.labels)
