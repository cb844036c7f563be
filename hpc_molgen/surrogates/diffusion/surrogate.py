"""The diffusion surrogate: training loss, samplers (ODE with exact ln q, weighted paths, ancestral), interpolation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hpc_molgen.angles import wrap_angle
from hpc_molgen.compilers import has_compiler
from hpc_molgen.config import ANCESTRAL_STEPS, PATH_STEPS, Integrator
from hpc_molgen.errors import InputError
from hpc_molgen.seeding import torch_generator
from hpc_molgen.surrogates.base import Surrogate
from hpc_molgen.surrogates.diffusion.integrators import Solution, solve
from hpc_molgen.surrogates.diffusion.network import VelocityNetwork
from hpc_molgen.surrogates.diffusion.path import path_steps, sample_path
from hpc_molgen.surrogates.diffusion.process import HALF_PI, noise_angle, torus_sd, torus_velocity
from hpc_molgen.surrogates.prior import draw_prior, log_prior

log = logging.getLogger(__name__)


class DiffusionSurrogate(Surrogate):
    """Diffusion on a torus times a Euclidean space (see `process`), with velocities as what is learnt.

    Parameters
    ----------
    n_torus, n_euclidean : int
        Angles first, whitened coordinates behind them.
    hidden, depth, harmonics : int
        Size of the network.
    schedule : str
        "cosine" or "linear": how noise levels are spread in training and in the ancestral sampler.
    """

    has_log_density = True

    def __init__(
        self, n_torus: int, n_euclidean: int, hidden: int = 256, depth: int = 3, harmonics: int = 4, schedule: str = "cosine"
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "n_torus": n_torus, "n_euclidean": n_euclidean, "hidden": hidden, "depth": depth,
            "harmonics": harmonics, "schedule": schedule,
        }  # fmt: skip
        self.n_torus, self.n_features, self.schedule = n_torus, n_torus + n_euclidean, schedule
        self.network = VelocityNetwork(n_torus, n_euclidean, hidden, depth, harmonics)
        self._compiled: Any = None

    def parts(self) -> dict[str, nn.Module]:
        return {"score": self.network}

    def draw_noise(self, part: str, n: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        strata = (torch.arange(n) + torch.rand(n, generator=generator)) / n  # items come in no order: no need to shuffle
        return strata, torch.randn((n, self.n_features), generator=generator)

    def loss(self, part: str, batch: torch.Tensor, noise: tuple[torch.Tensor, ...]) -> torch.Tensor:
        time, eps = noise
        noisy, phi, target = self.diffuse(batch, time, eps)
        velocity = self.network(noisy, self.network.embed_time(phi))
        loss: torch.Tensor = ((velocity - target) ** 2).sum(dim=1)
        return loss

    def diffuse(
        self, features: torch.Tensor, time: torch.Tensor, eps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noisy features (n, n_features), noise angles (n,) and the velocities (n, n_features) to be learnt."""
        m = self.n_torus
        phi = noise_angle(time, self.schedule).to(features.dtype)
        level = phi[:, None]
        cosine, sine, delta = torch.cos(level), torch.sin(level), torus_sd(level) * eps[:, :m]
        angles = wrap_angle(features[:, :m] + delta)
        rest = cosine * features[:, m:] + sine * eps[:, m:]
        target = torch.cat([torus_velocity(delta, level), cosine * eps[:, m:] - sine * features[:, m:]], dim=1)
        return torch.cat([angles, rest], dim=1), phi, target

    def draw_prior(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Features (n, n_features) at phi = pi/2: uniform angles, standard normal rest."""
        return draw_prior(n, self.n_torus, self.n_features - self.n_torus, generator).to(self._like())

    def _like(self) -> torch.Tensor:
        return next(self.parameters())

    @torch.no_grad()
    def sample(self, n: int, seed: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Draw `n` feature vectors.

        Parameters
        ----------
        n, seed : int
        sampler : {"ode", "path", "ancestral"}
        n_steps : int
            "ode": steps of the integrator (0: its default); "path" and "ancestral": noise levels.
        integrator, tolerance, compile : str, float, bool
            Of "ode": see `integrators.solve`; torch.compile of the network.
        log_density : bool
            Also ln q, or what stands for it in the weights of "path" (see `path`); "ancestral" has none.

        Returns
        -------
        torch.Tensor, shape=(n, n_features); torch.Tensor, shape=(n,), float64, or None
        """
        sampler = options.get("sampler", "ode")
        n_steps, log_density = int(options.get("n_steps", 0)), bool(options.get("log_density", True))
        generator = torch_generator(seed, "sample")
        self._compile(bool(options.get("compile", False)))
        if sampler == "ancestral":
            if log_density:
                raise InputError("the ancestral sampler knows no ln q: use sampler 'ode' or 'path', or log_density false")
            return self._ancestral(n, generator, n_steps or ANCESTRAL_STEPS), None
        prior = self.draw_prior(n, generator)
        if sampler == "path":
            steps = path_steps(n_steps or PATH_STEPS, self.n_torus)
            features, log_ratio = sample_path(lambda x, phi: self._slope(x, phi, divergence=False)[0], prior, steps, generator)
            return features, log_ratio if log_density else None
        integrator: Integrator = options.get("integrator", "rk4")
        tolerance = float(options.get("tolerance", 1e-3))
        found = self.run_ode(prior, HALF_PI, 0.0, integrator, n_steps, tolerance, divergence=log_density)
        if found.change is None:
            return found.features, None
        return found.features, log_prior(prior.double(), self.n_torus) - found.change

    @torch.no_grad()
    def log_density(
        self, features: torch.Tensor, n_steps: int = 0, integrator: Integrator = "rk4", tolerance: float = 1e-3
    ) -> torch.Tensor:
        """Return ln q (n,) of given features by running the ODE from the data to the prior."""
        found = self.run_ode(features.to(self._like()), 0.0, HALF_PI, integrator, n_steps, tolerance, divergence=True)
        assert found.change is not None
        return log_prior(found.features.double(), self.n_torus) + found.change

    def run_ode(
        self,
        features: torch.Tensor,
        start: float,
        end: float,
        integrator: Integrator = "rk4",
        n_steps: int = 0,
        tolerance: float = 1e-3,
        *,
        divergence: bool,
    ) -> Solution:
        """Run the probability-flow ODE from noise angle `start` to `end` (see `integrators.solve`); end points are wrapped.

        With `divergence` also its integral: ln|det| of the map (Chen et al. 2018, NeurIPS, theorem 1), without an estimator.
        """

        def slope(points: torch.Tensor, phi: float) -> tuple[torch.Tensor, torch.Tensor | None]:
            return self._slope(points, phi, divergence=divergence)

        found = solve(slope, features, start, end, integrator, n_steps, tolerance)
        return Solution(self.wrapped(found.features), found.change, found.n_evaluations)

    def _slope(self, features: torch.Tensor, phi: float, *, divergence: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        time = self.network.embed_time(torch.tensor([phi], dtype=torch.float64).to(features))
        if divergence:
            found: tuple[torch.Tensor, torch.Tensor] = (self._compiled or self.network.velocity_and_divergence)(features, time)
            return found
        return self.network(features, time), None

    def _compile(self, wanted: bool) -> None:
        """Compile velocity and divergence, or go back to running them as they are; without a compiler a line says so."""
        if not wanted:
            self._compiled = None
        elif self._compiled is None and has_compiler(str(self._like().device)):
            self._compiled = torch.compile(self._velocity_and_divergence(), dynamic=True)
        elif self._compiled is None:
            log.warning("sample.compile: there is no compiler for torch on this machine; the network runs as it is")

    def _velocity_and_divergence(self) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
        return self.network.velocity_and_divergence

    def wrapped(self, features: torch.Tensor) -> torch.Tensor:
        """Features (n, n_features) with their angles in (-pi, pi]."""
        return torch.cat([wrap_angle(features[:, : self.n_torus]), features[:, self.n_torus :]], dim=1)

    def _ancestral(self, n: int, generator: torch.Generator, n_levels: int) -> torch.Tensor:
        """Ancestral sampling (Ho et al. 2020, algorithm 2), and its analogue on the circle, at `n_levels` noise levels.

        The circle has no closed posterior of a_(i-1) given a_i and a_0; the step is the reverse SDE with the exact change
        of tau^2.
        """
        m = self.n_torus
        features = self.draw_prior(n, generator)
        levels = noise_angle(torch.linspace(1, 0, n_levels + 1, dtype=torch.float64), self.schedule)
        levels = levels.clamp(1e-4, HALF_PI - 1e-2)
        for now, then in zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True):
            velocity, _ = self._slope(features, now, divergence=False)
            eps = torch.randn(features.shape, generator=generator).to(features)
            last = then == levels[-1].item()
            alpha = (math.cos(now) / math.cos(then)) ** 2
            x = features[:, m:]
            noise = math.sin(now) * x + math.cos(now) * velocity[:, m:]
            mean = (x - (1 - alpha) / math.sin(now) * noise) / math.sqrt(alpha)
            spread = 0.0 if last else math.sin(then) / math.sin(now) * math.sqrt(1 - alpha)
            drop = 2 * math.log(math.cos(then) / math.cos(now))
            angles = features[:, :m] - drop / math.tan(now) * velocity[:, :m]
            turned = angles + (0.0 if last else math.sqrt(drop) * torus_ratio(then, now)) * eps[:, :m]
            features = torch.cat([wrap_angle(turned), mean + spread * eps[:, m:]], dim=1)
        return features

    @torch.no_grad()
    def interpolate(self, first: torch.Tensor, last: torch.Tensor, n_points: int, n_steps: int = 16) -> torch.Tensor:
        """Path of `n_points` features (n_points, n_features) between two feature vectors (n_features,), ends included.

        Both are run to the prior; there angles go the shorter way round and the rest along a great circle, and the path is
        run back.
        """
        m = self.n_torus
        both = torch.stack([first, last]).to(self._like())
        ends = self.run_ode(both, 0.0, HALF_PI, n_steps=n_steps, divergence=False).features
        share = torch.linspace(0, 1, n_points).to(ends)[:, None]
        angles = ends[:1, :m] + share * wrap_angle(ends[1:, :m] - ends[:1, :m])
        a, b = ends[:1, m:], ends[1:, m:]
        omega = torch.arccos(((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)).clamp(-1 + 1e-6, 1 - 1e-6))
        rest = (torch.sin((1 - share) * omega) * a + torch.sin(share * omega) * b) / torch.sin(omega)
        noise = torch.cat([wrap_angle(angles), rest], dim=1)
        return self.run_ode(noise, HALF_PI, 0.0, n_steps=n_steps, divergence=False).features


def torus_ratio(then: float, now: float) -> float:
    """Ratio of the noise on angles at two levels, the factor between posterior and forward spread of a small step."""
    return math.sqrt(math.log(math.cos(then)) / math.log(math.cos(now)))
