"""Monotonic rational-quadratic splines on the circle and on the line, with ln of their slope.

Durkan, Bekasov, Murray and Papamakarios 2019 (NeurIPS, "Neural spline flows", equations 4 to 8): between knots the spline is a
quotient of two quadratics, so its inverse is the root of a quadratic and no iteration is needed. On the circle the slope at the
last knot is that at the first (Rezende et al. 2020, ICML, "Normalizing flows on tori and spheres", section 2.1.2).

On CPUs a library in C++ computes them (splines.cpp), one number in each lane of a vector, with gradients written out: most of
the time of a flow in plain torch goes into its splines. Samples are the last axis for that reason.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from hpc_molgen import native
from hpc_molgen.angles import wrap_angle

LEAST_WIDTH = 1e-3  # of a bin, in units of the interval; as in splines.cpp
LEAST_SLOPE = 1e-3
MOST_SCALE = 2.0  # of ln of the scale of the line: a network that is asked far from its data cannot stretch it without end
MOST_BINS = 64
_UNIT_SLOPE = math.log(math.expm1(1 - LEAST_SLOPE))  # the logit of a slope of one
_SUFFIXES = {torch.float32: "f32", torch.float64: "f64"}


def n_parameters(bins: int) -> int:
    """Numbers that shape one spline, on the circle or on the line."""
    return 3 * bins + 1


def circular_spline(angles: torch.Tensor, parameters: torch.Tensor, *, inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Map angles to angles, by a turn of the circle (so that no angle is special) and a spline; zeros are the identity.

    Parameters
    ----------
    angles : torch.Tensor, shape=(d, n)
    parameters : torch.Tensor, shape=(3 n_bins + 1, d, n)
        Widths, heights, slopes, the turn.

    Returns
    -------
    torch.Tensor, torch.Tensor, shape=(d, n)
        The image in [-pi, pi], and ln of the slope.
    """
    turn = parameters[-1]
    start = angles if inverse else angles + turn
    unit, log_slope = unit_spline(start.remainder(2 * math.pi) / (2 * math.pi), parameters[:-1], circular=True, inverse=inverse)
    return wrap_angle(2 * math.pi * unit - (turn if inverse else 0)), log_slope


def line_spline(x: torch.Tensor, parameters: torch.Tensor, bound: float, *, inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Map the line to itself, by a spline within +-bound and an affine map after it; zeros are the identity.

    Parameters
    ----------
    x : torch.Tensor, shape=(d, n)
    parameters : torch.Tensor, shape=(3 n_bins + 1, d, n)
        Widths, heights, slopes at the inner knots, shift, ln of the scale (which approaches +-2).

    Returns
    -------
    torch.Tensor, torch.Tensor, shape=(d, n)
        The image, and ln of the slope.
    """
    shift, log_scale = parameters[-2], MOST_SCALE * torch.tanh(parameters[-1] / MOST_SCALE)
    start = (x - shift) * torch.exp(-log_scale) if inverse else x
    unit, log_slope = unit_spline(start / (2 * bound) + 0.5, parameters[:-2], circular=False, inverse=inverse)
    inside = start.abs() < bound
    bent = torch.where(inside, (2 * unit - 1) * bound, start)
    log_slope = torch.where(inside, log_slope, torch.zeros_like(log_slope))
    if inverse:
        return bent, log_slope - log_scale
    return bent * torch.exp(log_scale) + shift, log_slope + log_scale


def unit_spline(x: torch.Tensor, logits: torch.Tensor, *, circular: bool, inverse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Map [0, 1] to itself by a spline, or back.

    Parameters
    ----------
    x : torch.Tensor, shape=(d, n)
        What lies outside is moved to the nearer end.
    logits : torch.Tensor, shape=(3 n_bins, d, n) if circular, else (3 n_bins - 1, d, n)
        Of the bins' widths and heights (a softmax) and of the slopes at knots (one where the logit is zero): at the left knot
        of each bin of the circle; at the inner knots of the line, at whose ends it is one.

    Returns
    -------
    torch.Tensor, torch.Tensor, shape=(d, n)
        The image, and ln of the slope there.
    """
    fits = x.device.type == "cpu" and x.dtype == logits.dtype and x.dtype in _SUFFIXES and len(logits) <= 3 * MOST_BINS
    if fits and _library() is not None:
        image, log_slope = _Native.apply(x, logits, circular, inverse)  # type: ignore[no-untyped-call]
        return image, log_slope
    return plain_unit_spline(x, logits, circular=circular, inverse=inverse)


def plain_unit_spline(
    x: torch.Tensor, logits: torch.Tensor, *, circular: bool, inverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`unit_spline` in plain torch."""
    n_bins = (len(logits) + (not circular)) // 3
    left, wide = _bins(logits[:n_bins])
    low, high = _bins(logits[n_bins : 2 * n_bins])
    given = logits[2 * n_bins :]
    ends = torch.cat([given, given[:1]]) if circular else functional.pad(given, (0, 0, 0, 0, 1, 1))
    slopes = LEAST_SLOPE + functional.softplus(ends + _UNIT_SLOPE)
    x = x.clamp(0, 1)
    index = (x >= (low if inverse else left)[1:]).sum(dim=0, keepdim=True)
    x0, dx, y0, dy, s0, s1 = (part.gather(0, index)[0] for part in (left, wide, low, high, slopes[:-1], slopes[1:]))
    mean = dy / dx
    bend = s0 + s1 - 2 * mean
    if inverse:
        rise = x - y0
        a, b, c = dy * (mean - s0) + rise * bend, dy * s0 - rise * bend, -mean * rise
        t = 2 * c / (-b - torch.sqrt((b * b - 4 * a * c).clamp(min=0)))
    else:
        t = (x - x0) / dx
    t = t.clamp(0, 1)
    rest = 1 - t
    bottom = mean + bend * t * rest
    image = x0 + t * dx if inverse else y0 + dy * (mean * t * t + s0 * t * rest) / bottom
    log_slope = 2 * torch.log(mean) + torch.log(s1 * t * t + 2 * mean * t * rest + s0 * rest * rest) - 2 * torch.log(bottom)
    return image, -log_slope if inverse else log_slope


def _bins(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where bins begin, and how large they are: both (n_bins, d, n)."""
    size = LEAST_WIDTH + (1 - LEAST_WIDTH * len(logits)) * torch.softmax(logits, dim=0)
    return torch.cumsum(size, dim=0) - size, size


@functools.cache
def _library() -> ctypes.CDLL | None:
    where = Path(__file__).parent, MOST_BINS
    variants = native.built_variants(*where, "splines_")
    return native.open_variant(*where, variants[0], "splines_") if variants else None


class _Native(torch.autograd.Function):
    """`unit_spline` by the library; its gradients cannot be differentiated again."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, logits: torch.Tensor, circular: bool, inverse: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, logits = x.contiguous(), logits.contiguous()
        image, log_slope = torch.empty_like(x), torch.empty_like(x)
        ctx.save_for_backward(x, logits)
        ctx.kind = circular, inverse
        _call("hm_spline", x, logits, ctx.kind, image, log_slope)
        return image, log_slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_image: torch.Tensor, of_slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x, logits = ctx.saved_tensors
        of_x, of_logits = torch.empty_like(x), torch.empty_like(logits)
        _call("hm_spline_gradients", x, logits, ctx.kind, of_image.contiguous(), of_slope.contiguous(), of_x, of_logits)
        return of_x, of_logits, None, None


def _call(name: str, x: torch.Tensor, logits: torch.Tensor, kind: tuple[bool, bool], *rest: torch.Tensor) -> None:
    circular, inverse = kind
    function = getattr(_library(), f"{name}_{_SUFFIXES[x.dtype]}")
    sizes = (len(logits) + (not circular)) // 3, circular, inverse, *x.shape
    function(
        ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(logits.data_ptr()), *map(ctypes.c_int64, sizes),
        *(ctypes.c_void_p(part.data_ptr()) for part in rest),
    )  # fmt: skip
