"""The noising process on a torus times a Euclidean space, with one clock for both.

Euclidean coordinates follow the variance-preserving process dx = -x beta/2 dt + sqrt(beta) dW (Song et al. 2021, ICLR),
angles the Brownian motion da = sqrt(beta) dW on the circle. With cos(phi)^2 = exp(-integral of beta) the kernels at
"noise angle" phi are

    x_phi = cos(phi) x_0 + sin(phi) eps,        a_phi = a_0 + tau eps (wrapped),  tau^2 = -2 ln cos(phi),

so phi = 0 is data and phi = pi/2 is exactly the prior: standard normal times uniform. In terms of phi the
probability-flow ODE is d(x, a)/dphi = v(x, a, phi), where v is the conditional mean, given (x_phi, a_phi), of

    v_x = cos(phi) eps - sin(phi) x_0   (Salimans and Ho 2022, ICLR, section 4),
    v_a = -tan(phi) d/da ln p(a_phi | a_0),

both of order one at every phi. For whitened Gaussian data the mean of v_x is zero, and for uniform angles that of v_a, so a
network learns only how the molecule differs from that. Scores follow as s_x = -x - v_x / tan(phi) and s_a = -v_a / tan(phi).
"""

from __future__ import annotations

import math

import torch

from hpc_molgen.angles import wrap_angle

HALF_PI = math.pi / 2
_IMAGES = 3
_HARMONICS = 8
_SWITCH_TAU = 1.3  # below: sum over images; above: Fourier series; both exact to float64 there


def noise_angle(t: torch.Tensor, schedule: str) -> torch.Tensor:
    """Noise angle phi at time t in [0, 1] of the cosine or the linear schedule.

    cosine: Nichol and Dhariwal 2021 (eq. 17, without offset: phi = pi t / 2). linear: beta from 0.1 to 20 (the 1000-step
    1e-4..0.02 of Ho et al. 2020 in continuous time), ln alpha-bar = -(0.1 t + 9.95 t^2).
    """
    if schedule == "cosine":
        return HALF_PI * t
    return torch.arccos(torch.exp(-0.5 * (0.1 * t + 9.95 * t**2)))


def torus_sd(phi: torch.Tensor) -> torch.Tensor:
    """Standard deviation tau of the noise on angles."""
    return torch.sqrt(-2 * torch.log(torch.cos(phi).clamp(min=1e-30)))


def torus_velocity(delta: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
    """-tan(phi) times the score of the wrapped normal kernel at displacement `delta`, for the kernel of noise angle `phi`.

    Parameters
    ----------
    delta, phi : torch.Tensor
        phi expands to the shape of delta.
    """
    delta = wrap_angle(delta)
    phi = phi.expand_as(delta)
    tau = torus_sd(phi)
    near = tau < _SWITCH_TAU
    safe_tau = torch.where(near, tau.clamp(min=1e-4), torch.ones_like(tau))
    images = delta.unsqueeze(-1) + 2 * math.pi * torch.arange(-_IMAGES, _IMAGES + 1, dtype=delta.dtype, device=delta.device)
    share = torch.softmax(-(images**2) / (2 * safe_tau.unsqueeze(-1) ** 2), dim=-1)
    from_images = torch.tan(torch.where(near, phi, torch.ones_like(phi))) * (share * images).sum(-1) / safe_tau**2
    k = torch.arange(1, _HARMONICS + 1, dtype=delta.dtype, device=delta.device)
    cosine = torch.cos(phi).clamp(min=0.0).unsqueeze(-1)
    angle = k * delta.unsqueeze(-1)
    # exp(-k^2 tau^2 / 2) = cos(phi)^(k^2); one factor cos(phi) cancels against that of tan(phi)
    slope = 2 * torch.sin(phi) * (k * cosine ** (k**2 - 1) * torch.sin(angle)).sum(-1)
    density = (1 + 2 * (cosine ** (k**2) * torch.cos(angle)).sum(-1)).clamp(min=1e-3)
    return torch.where(near, from_images, slope / density)
