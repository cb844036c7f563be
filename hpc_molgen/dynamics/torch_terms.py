"""The energy terms in torch, batch last: for GPUs, for forces that the C++ kernel does not know, and where it is not built."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hpc_molgen.dynamics.born import OFFSET_NM, PROBE_NM, GeneralisedBorn
from hpc_molgen.dynamics.terms import Terms

Energy = Callable[[torch.Tensor], torch.Tensor]


class _Maker:
    """Puts parameters on the device, as columns (m, 1) that broadcast over copies."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device

    def column(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float64), dtype=self.dtype, device=self.device)[:, None]

    def index(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.int64, device=self.device)


def _between(x: torch.Tensor, to: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    return x.index_select(1, to) - x.index_select(1, start)


def _cross(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.stack((a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]))


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _bonds(terms: Terms, make: _Maker) -> Energy:
    i, j = (make.index(terms.bonds[:, k]) for k in range(2))
    length, strength = (make.column(terms.bond_parameters[:, k]) for k in range(2))

    def energy(x: torch.Tensor) -> torch.Tensor:
        d = _between(x, i, j)
        stretch = torch.sqrt(_dot(d, d)) - length
        return (0.5 * strength * stretch * stretch).sum(0)

    return energy


def _angles(terms: Terms, make: _Maker) -> Energy:
    i, j, k = (make.index(terms.angles[:, column]) for column in range(3))
    angle, strength = (make.column(terms.angle_parameters[:, column]) for column in range(2))

    def energy(x: torch.Tensor) -> torch.Tensor:
        u, w = _between(x, i, j), _between(x, k, j)
        normal = _cross(u, w)
        area = torch.sqrt(_dot(normal, normal).clamp(min=1e-12))
        bend = torch.atan2(area, _dot(u, w)) - angle
        return (0.5 * strength * bend * bend).sum(0)

    return energy


def _torsions(terms: Terms, make: _Maker) -> Energy:
    a, b, c, d = (make.index(terms.torsions[:, column]) for column in range(4))
    cosines = [make.column(terms.torsion_cos[:, n]) for n in range(terms.torsion_cos.shape[1])]
    sines = [make.column(terms.torsion_sin[:, n]) for n in range(terms.torsion_sin.shape[1])]

    def energy(x: torch.Tensor) -> torch.Tensor:
        f, g, h = _between(x, a, b), _between(x, b, c), _between(x, d, c)
        m, n = _cross(f, g), _cross(h, g)
        norm = torch.rsqrt((_dot(m, m) * _dot(n, n)).clamp(min=1e-24))
        cosine, sine = _dot(m, n) * norm, _dot(_cross(n, m), g) * norm * torch.rsqrt(_dot(g, g))
        total = cosines[0].sum()
        cos_n, sin_n = cosine, sine
        for order in range(1, len(cosines)):
            total = total + (cosines[order] * cos_n + sines[order] * sin_n).sum(0)
            cos_n, sin_n = cos_n * cosine - sin_n * sine, sin_n * cosine + cos_n * sine
        return total

    return energy


def _pairs(terms: Terms, make: _Maker) -> Energy:
    rows, columns = np.triu_indices(terms.n_atoms, 1)
    present = np.zeros(len(rows), dtype=bool)
    for matrix in (terms.coulomb, terms.c12, terms.c6):
        present |= matrix[rows, columns] != 0
    rows, columns = rows[present], columns[present]
    i, j = make.index(rows), make.index(columns)
    coulomb, c12, c6 = (make.column(matrix[rows, columns]) for matrix in (terms.coulomb, terms.c12, terms.c6))

    def energy(x: torch.Tensor) -> torch.Tensor:
        d = _between(x, i, j)
        inverse = torch.rsqrt(_dot(d, d))
        i2 = inverse * inverse
        i6 = i2 * i2 * i2
        return (coulomb * inverse + i6 * (c12 * i6 - c6)).sum(0)

    return energy


def _generalised_born(born: GeneralisedBorn, make: _Maker) -> Energy:
    n = len(born.charge)
    rows, columns = np.triu_indices(n, 1)
    i, j = make.index(rows), make.index(columns)
    product = make.column(born.prefactor * born.charge[rows] * born.charge[columns])
    self_energy = make.column(0.5 * born.prefactor * born.charge**2)
    inner, full = make.column(born.radius_nm - OFFSET_NM), make.column(born.radius_nm)
    surface = make.column(born.surface_kj_mol_nm2 * (born.radius_nm + PROBE_NM) ** 2 * born.radius_nm**6)
    o, scaled = inner[:, None], make.column(born.scale * (born.radius_nm - OFFSET_NM))[None]
    alpha, beta, gamma = born.rescaling
    own = torch.eye(n, dtype=make.dtype, device=make.device)[:, :, None]

    def radii(x: torch.Tensor) -> torch.Tensor:
        # all ordered pairs, atom i descreened by atom j: distances twice, but no gather, which compiles to faster code
        d = x[:, :, None, :] - x[:, None, :, :]
        r2 = _dot(d, d) + own
        inverse = torch.rsqrt(r2)
        r = r2 * inverse
        upper, lower = r + scaled, torch.maximum((r - scaled).abs(), o)
        product = 1 / (upper * lower)
        low, up = upper * product, lower * product  # reciprocals of the bounds
        ratio = scaled * inverse
        term = (low - up) * (1 - 0.25 * r * (low + up) * (1 - ratio * ratio)) - 0.5 * inverse * torch.log(upper * low)
        if born.engulfed:
            term = term + torch.where(scaled - r > o, 2 * (1 / o - low), 0.0)
        total = 0.5 * inner * (torch.where(upper > o, term, 0.0) * (1 - own)).sum(1)
        squared = total * total
        return 1 / (1 / inner - torch.tanh(alpha * total - beta * squared + gamma * squared * total) / full)

    def energy(x: torch.Tensor) -> torch.Tensor:
        d = _between(x, i, j)
        r2 = _dot(d, d)
        radius = radii(x)
        both = radius.index_select(0, i) * radius.index_select(0, j)
        pairs = product * torch.rsqrt(r2 + both * torch.exp(-r2 / (4 * both)))
        cubed = radius * radius * radius
        return pairs.sum(0) + (self_energy / radius + surface / (cubed * cubed)).sum(0)

    return energy


def torch_energy(terms: Terms, dtype: torch.dtype, device: torch.device) -> Energy:
    """Return the function from positions (3, n_atoms, n_copies) in nm to energies (n_copies,) in kJ/mol."""
    make = _Maker(dtype, device)
    parts: list[Energy] = []
    if len(terms.bonds):
        parts.append(_bonds(terms, make))
    if len(terms.angles):
        parts.append(_angles(terms, make))
    if len(terms.torsions):
        parts.append(_torsions(terms, make))
    if terms.coulomb.any() or terms.c12.any() or terms.c6.any():
        parts.append(_pairs(terms, make))
    if terms.born is not None:
        parts.append(_generalised_born(terms.born, make))
    parts += [term.build(dtype, device) for term in terms.custom]

    def energy(x: torch.Tensor) -> torch.Tensor:
        total = 0 * x.sum((0, 1))  # depends on every position: zero forces where there is no term, no number where one is lost
        for part in parts:
            total = total + part(x)
        return total

    return energy


def largest_intermediate(terms: Terms) -> int:
    """Return how many numbers per copy the largest intermediate tensor holds."""
    dense = (3 if terms.born is None else 6) * terms.n_atoms**2 // 2
    return max(dense, 3 * len(terms.torsions), 64)
