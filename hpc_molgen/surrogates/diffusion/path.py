"""Importance weights on paths: the reverse process as a Markov chain, against the noising process as one.

The chain x_N -> ... -> x_0 starts from the prior at noise angle pi/2 and ends at 0. Each step draws from a normal distribution
(angles: wrapped normal) R(x_k | x_(k+1)) around the posterior mean that the network gives (Ho et al. 2020, NeurIPS, eq. 7). The
noising process F(x_(k+1) | x_k) of `process` starts from the target p. Both are proper densities of whole paths, so

    ln w = ln p(x_0) + sum_k ln F(x_(k+1) | x_k) - ln prior(x_N) - sum_k ln R(x_k | x_(k+1))

is an importance weight on the space of paths whatever the network and the number of steps, and its marginal target for x_0 is
p exactly: annealed importance sampling with learnt kernels (Neal 2001, Stat. Comput. 11, 125; Sohl-Dickstein et al. 2015, ICML,
section 2.3; Doucet, Grathwohl, Matthews and Strathmann 2022, NeurIPS, section 3). No divergence is needed. The price: ln w
spreads more than that of x_0 alone, the more the fewer steps there are.

The last kernel of F, from any level to pi/2, is the prior. Variances of R are those of F, the upper of the two usual choices
(Ho et al. 2020, section 3.2), which is the exact one where data are standard normal, as whitened coordinates are. So the last
step, to noise angle 0, has the variance sin(phi_1)^2 and not zero, with which there would be no density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from hpc_molgen.angles import wrap_angle
from hpc_molgen.surrogates.diffusion.process import HALF_PI
from hpc_molgen.surrogates.prior import log_prior

Velocity = Callable[[torch.Tensor, float], torch.Tensor]
_WIDEST = 4.0  # standard deviation of a wrapped normal that is uniform to 1e-3
_IMAGES = 3
_HARMONICS = 8
_SWITCH_SD = 1.3  # below: sum over images; above: Fourier series; both exact to float64 there


@dataclass(frozen=True)
class Step:
    """The kernels of both chains between two noise angles, `then` < `now`.

    Attributes
    ----------
    towards_posterior : float
        0: the variance of R is that of F (beta); 1: that of the posterior given x_0 (beta-tilde); between: geometric means.
        The step to noise angle 0 has that of F.
    """

    then: float
    now: float
    n_torus: int
    towards_posterior: float = 0.0

    @property
    def kept(self) -> float:
        """Factor that a coordinate keeps from `then` to `now`."""
        return 0.0 if self.to_prior else math.cos(self.now) / math.cos(self.then)

    @property
    def to_prior(self) -> bool:
        """Whether `now` is pi/2."""
        return self.now >= HALF_PI

    @property
    def forward_sd(self) -> tuple[float, float]:
        """Standard deviations of F: of angles (inf at the prior), and of the rest."""
        rest = math.sqrt(math.sin(self.now - self.then) * math.sin(self.now + self.then)) / math.cos(self.then)
        return math.inf if self.to_prior else math.sqrt(-2 * math.log(self.kept)), rest

    @property
    def reverse_sd(self) -> tuple[float, float]:
        """Standard deviations of R: of angles, and of the rest."""
        angles, rest = self.forward_sd
        if self.then > 0 and self.towards_posterior:
            ratio = math.sin(self.then) / math.sin(self.now)
            logs = 0.0 if self.to_prior else math.log(math.cos(self.then)) / math.log(math.cos(self.now))
            angles *= logs ** (self.towards_posterior / 2) if logs else 1.0
            rest *= ratio**self.towards_posterior
        return min(_WIDEST, angles), rest

    def mean(self, features: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """Mean (n, n_features) of R from points at `now`; angles are not wrapped.

        Of the Euclidean part it is that of the posterior at the mean of x_0, cos(phi) x - sin(phi) v; of angles, a + sd^2 times
        the score.
        """
        m, here = self.n_torus, features[:, self.n_torus :]
        clean = math.cos(self.now) * here - math.sin(self.now) * velocity[:, m:]
        square = math.sin(self.now) ** 2
        beta = self.forward_sd[1] ** 2
        rest = math.cos(self.then) * beta / square * clean + self.kept * math.sin(self.then) ** 2 / square * here
        angles = features[:, :m]
        if not self.to_prior:
            angles = angles - self.forward_sd[0] ** 2 / math.tan(self.now) * velocity[:, :m]
        return torch.cat([angles, rest], dim=1)

    def log_reverse(self, mean: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """Ln R (n,) at points `there` (n, n_features)."""
        m, (angles, rest) = self.n_torus, self.reverse_sd
        return _log_wrapped(there[:, :m] - mean[:, :m], angles) + _log_normal(there[:, m:] - mean[:, m:], rest)

    def log_forward(self, there: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """Ln F (n,) of points `here` at `now`, from points `there` at `then`; shapes (n, n_features)."""
        if self.to_prior:
            return log_prior(here, self.n_torus)
        m, (angles, rest) = self.n_torus, self.forward_sd
        return _log_wrapped(here[:, :m] - there[:, :m], angles) + _log_normal(here[:, m:] - self.kept * there[:, m:], rest)


def path_steps(n_steps: int, n_torus: int, towards_posterior: float = 0.0) -> tuple[Step, ...]:
    """Steps of equal length in the noise angle, the one from the prior first."""
    levels = [HALF_PI * index / n_steps for index in range(n_steps)] + [HALF_PI]
    return tuple(Step(levels[k], levels[k + 1], n_torus, towards_posterior) for k in reversed(range(n_steps)))


def sample_path(
    velocity: Velocity, start: torch.Tensor, steps: tuple[Step, ...], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the reverse chain from points of the prior.

    Parameters
    ----------
    velocity : callable
        ``velocity(features, phi) -> (n, n_features)``; one call a step.
    start : torch.Tensor, shape=(n, n_features)
        Drawn from the prior; its type and device are those of the network.
    steps : tuple of Step
        From the prior to the data.
    generator : torch.Generator
        Of the CPU.

    Returns
    -------
    torch.Tensor, shape=(n, n_features), float64
        x_0, angles wrapped.
    torch.Tensor, shape=(n,), float64
        ln prior(x_N) + sum ln R - sum ln F: in a weight it stands in the place of ln q(x_0), which it is not.
    """
    here = start.double()
    log_ratio = log_prior(here, steps[0].n_torus)
    for step in steps:
        m, (angles, rest) = step.n_torus, step.reverse_sd
        mean = step.mean(here, velocity(here.to(start), step.now).double())
        noise = torch.randn(here.shape, generator=generator, dtype=torch.float64).to(here)
        turned = wrap_angle(mean[:, :m] + angles * noise[:, :m])
        there = torch.cat([turned, mean[:, m:] + rest * noise[:, m:]], dim=1)
        log_ratio = log_ratio + step.log_reverse(mean, there) - step.log_forward(there, here)
        here = there
    return here, log_ratio


def _log_normal(delta: torch.Tensor, sd: float) -> torch.Tensor:
    return -0.5 / sd**2 * delta.square().sum(1) - delta.shape[1] * math.log(math.sqrt(2 * math.pi) * sd)


def _log_wrapped(delta: torch.Tensor, sd: float) -> torch.Tensor:
    return log_wrapped_normal(delta, sd).sum(1)


def log_wrapped_normal(delta: torch.Tensor, sd: float) -> torch.Tensor:
    """Ln of the wrapped normal density of standard deviation `sd` at displacements `delta`, of any shape."""
    delta = wrap_angle(delta)
    if sd < _SWITCH_SD:
        turns = 2 * math.pi * torch.arange(-_IMAGES, _IMAGES + 1, dtype=delta.dtype, device=delta.device)
        images = torch.logsumexp(-0.5 * ((delta.unsqueeze(-1) + turns) / sd) ** 2, dim=-1)
        return images - math.log(math.sqrt(2 * math.pi) * sd)
    k = torch.arange(1, _HARMONICS + 1, dtype=delta.dtype, device=delta.device)
    series = (torch.exp(-0.5 * (k * sd) ** 2) * torch.cos(k * delta.unsqueeze(-1))).sum(-1)
    return torch.log1p(2 * series) - math.log(2 * math.pi)
