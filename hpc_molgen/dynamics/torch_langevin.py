"""The steps of `BatchedDynamics` in torch, batch last: on GPUs, and for forces that the C++ kernel does not know."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from hpc_molgen.dynamics.batched import BatchedSystem

_ROTATIONS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
_PARITY = 0x1BD11BDA
MAX_SWEEPS = 200


def _rotate(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Rotate 32-bit words, kept in int32, to the left."""
    return (x << bits) | ((x >> (32 - bits)) & ((1 << bits) - 1))


def _word(value: int) -> int:
    """The int32 that has the bits of an unsigned 32-bit number."""
    return (value & 0xFFFFFFFF) - (1 << 32) * ((value & 0xFFFFFFFF) >> 31)


def threefry(counter: list[torch.Tensor], key: list[torch.Tensor]) -> list[torch.Tensor]:
    """Threefry-4x32 with 20 rounds (Salmon et al. 2011, SC11), as in the kernel's random.h; int32 tensors that broadcast."""
    schedule = [*key, key[0] ^ key[1] ^ key[2] ^ key[3] ^ _PARITY]
    x = [word + schedule[index] for index, word in enumerate(counter)]
    for number in range(20):
        first, second = _ROTATIONS[number % 8]
        a, b = (3, 1) if number % 2 else (1, 3)
        x[0] = x[0] + x[a]
        x[a] = _rotate(x[a], first) ^ x[0]
        x[2] = x[2] + x[b]
        x[b] = _rotate(x[b], second) ^ x[2]
        if number % 4 == 3:
            injection = number // 4 + 1
            x = [word + schedule[(injection + index) % 5] for index, word in enumerate(x)]
            x[3] = x[3] + injection
    return x


def normals(seeds: torch.Tensor, step: int, n_rows: int) -> torch.Tensor:
    """Standard normal deviates (n_rows, n_copies), float32, of one step; `seeds` (2, n_copies) int32 keys the streams."""
    n_blocks = -(-n_rows // 4)
    zero = torch.zeros_like(seeds[:1])
    block = torch.arange(n_blocks, dtype=torch.int32, device=seeds.device)[:, None]
    counter = [zero + _word(step), zero + _word(step >> 32), zero + block, zero]
    bits = torch.stack(threefry(counter, [seeds[:1], seeds[1:], zero, zero]), dim=1)  # (n_blocks, 4, n_copies)
    uniform = (((bits[:, 0::2] >> 8) & 0xFFFFFF) + 1).float() * 2**-24
    angle = ((bits[:, 1::2] >> 30) & 3).float() * (math.pi / 2)
    angle = angle + ((bits[:, 1::2] >> 6) & 0xFFFFFF).float() * (math.pi / 2**25) - math.pi / 4
    radius = torch.sqrt(-2 * torch.log(uniform))
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=2)
    return pairs.reshape(4 * n_blocks, -1)[:n_rows]


class TorchIntegrator:
    """Langevin-middle steps; the same sequence of updates and the same random numbers as the kernel's.

    Constraints that share no atom are treated at once, layer by layer, and a copy whose lengths are right stays as it is.
    """

    def __init__(
        self, batched: BatchedSystem, timestep_ps: float, friction_per_ps: float, tolerance: float, recentre: int
    ) -> None:
        assert batched._torch is not None
        self._energies, terms = batched._torch, batched.terms
        self._dt, self._tolerance, self._recentre = timestep_ps, tolerance, recentre
        self._decay = math.exp(-friction_per_ps * timestep_ps)
        self._noise = math.sqrt(-math.expm1(-2 * friction_per_ps * timestep_ps))
        device, dtype = self._energies.device, self._energies.dtype
        with np.errstate(divide="ignore"):
            inverse = np.where(terms.masses_amu > 0, 1 / terms.masses_amu, 0.0)
        self._inverse = torch.as_tensor(inverse, dtype=dtype, device=device)[:, None]
        self._layers = []
        for rows in _layers(terms.constraints):
            i, j = (torch.as_tensor(terms.constraints[rows, k], dtype=torch.int64, device=device) for k in range(2))
            length = torch.as_tensor(terms.constraint_lengths_nm[rows], dtype=dtype, device=device)[:, None]
            self._layers.append((i, j, length * length))

    def run(
        self, positions: np.ndarray, velocities: np.ndarray, kt: np.ndarray, seeds: np.ndarray, first_step: int, n_steps: int
    ) -> None:
        """See `NativeIntegrator.run`."""
        device, dtype = self._energies.device, self._energies.dtype
        self._energies.prepare(len(positions) * n_steps)
        x, v = (torch.from_numpy(array).to(device).permute(2, 1, 0).contiguous() for array in (positions, velocities))
        root_kt = torch.as_tensor(np.sqrt(kt), dtype=dtype, device=device)
        keys = torch.from_numpy(seeds.view(np.int32).T.copy()).to(device)
        for number in range(first_step, first_step + n_steps):
            x, v = self._step(x, v, root_kt, keys, number)
        positions[...] = x.permute(2, 1, 0).cpu().numpy()
        velocities[...] = v.permute(2, 1, 0).cpu().numpy()

    def _forces(self, x: torch.Tensor) -> torch.Tensor:
        chunk = self._energies.chunk
        parts = []
        for start in range(0, x.shape[2], chunk):
            _, force = self._energies.batch(x[:, :, start : start + chunk].contiguous(), forces=True)
            assert force is not None
            parts.append(force)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _step(
        self, x: torch.Tensor, v: torch.Tensor, root_kt: torch.Tensor, keys: torch.Tensor, number: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dt, n_atoms = self._dt, x.shape[1]
        v = v + dt * self._inverse * self._forces(x)
        if self._layers:
            v = self._constrain_velocities(v, x)
        noise = normals(keys, number, 3 * n_atoms).to(x.dtype).view(n_atoms, 3, -1).permute(1, 0, 2)
        fresh = self._decay * v + self._noise * root_kt * torch.sqrt(self._inverse) * noise
        free = x + dt / 2 * (v + fresh)
        x, v = (self._constrain_positions(free, x), fresh) if self._layers else (free, fresh)
        if self._layers:
            v = v + (x - free) / dt
        if self._recentre and number % self._recentre == 0:
            x = x - x.mean(dim=1, keepdim=True)
        return x, v

    def _constrain_positions(self, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for _ in range(MAX_SWEEPS):
            still = torch.zeros((), dtype=torch.bool, device=x.device)
            for i, j, square in self._layers:
                now, before = x[:, i] - x[:, j], reference[:, i] - reference[:, j]
                excess = square - (now * now).sum(0)
                off = excess.abs() > 2 * self._tolerance * square
                scale = 2 * (self._inverse[i] + self._inverse[j]) * (now * before).sum(0)
                g = torch.where(off, excess / torch.where(off, scale, 1.0), 0.0)
                x[:, i] += g * self._inverse[i] * before
                x[:, j] -= g * self._inverse[j] * before
                still = still | off.any()
            if not still:
                break
        return x

    def _constrain_velocities(self, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        v = v.clone()
        for _ in range(MAX_SWEEPS):
            still = torch.zeros((), dtype=torch.bool, device=x.device)
            for i, j, square in self._layers:
                bond = x[:, i] - x[:, j]
                along = (bond * (v[:, i] - v[:, j])).sum(0)
                off = along.abs() > self._tolerance * square / self._dt
                g = torch.where(off, along / ((self._inverse[i] + self._inverse[j]) * (bond * bond).sum(0)), 0.0)
                v[:, i] -= g * self._inverse[i] * bond
                v[:, j] += g * self._inverse[j] * bond
                still = still | off.any()
            if not still:
                break
        return v


def _layers(constraints: np.ndarray) -> list[list[int]]:
    """Cut constraints into layers in which no atom occurs twice."""
    layers: list[tuple[set[int], list[int]]] = []
    for row, (i, j) in enumerate(constraints.tolist()):
        for atoms, rows in layers:
            if not {i, j} & atoms:
                atoms.update((i, j))
                rows.append(row)
                break
        else:
            layers.append(({i, j}, [row]))
    return [rows for _, rows in layers]
