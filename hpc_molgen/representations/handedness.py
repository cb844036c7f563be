"""Which of two mirror images a chain of beads is: learnt from frames, because distances do not tell."""

from __future__ import annotations

import torch

HARMONICS = 3
RIDGE = 1e-3  # on the coefficients: keeps them finite where frames never leave one image
MOST_FRAMES = 20_000
NEWTON_STEPS = 30
TOLERANCE = 1e-9


def virtual_torsions(positions_nm: torch.Tensor) -> torch.Tensor:
    """Torsions (n, n_beads - 3), radians, of beads i, i + 1, i + 2, i + 3 of chains (n, n_beads, 3)."""
    bonds = positions_nm[:, 1:] - positions_nm[:, :-1]
    first, axis, last = bonds[:, :-2], bonds[:, 1:-1], bonds[:, 2:]
    normal_1, normal_2 = torch.linalg.cross(first, axis), torch.linalg.cross(axis, last)
    sine = torch.linalg.norm(axis, dim=2) * (first * normal_2).sum(2)
    return torch.atan2(sine, (normal_1 * normal_2).sum(2))


def odd_features(positions_nm: torch.Tensor) -> torch.Tensor:
    """Sines (n, HARMONICS * (n_beads - 3)) of the multiples of all virtual torsions: a reflection changes every sign."""
    torsions = virtual_torsions(positions_nm)
    return torch.cat([torch.sin(k * torsions) for k in range(1, HARMONICS + 1)], dim=1)


def learn_handedness(positions_nm: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return coefficients (HARMONICS * (n_beads - 3),) of ln [p(x) / p(mirror image of x)] = coefficients . odd features.

    Logistic regression of frames (n, n_beads, 3) with weights (n,) against their own mirror images. All that is even under a
    reflection cancels in that ratio. Where energies depend on the torsions by Fourier terms, as in structure-based models, it
    is exactly such a sum, whatever contacts there are; a product of one histogram for each torsion would not be.
    """
    kept = torch.arange(0, len(positions_nm), -(-len(positions_nm) // MOST_FRAMES))
    features, share = odd_features(positions_nm[kept]), weights[kept] / weights[kept].sum()
    found = features.new_zeros(features.shape[1])
    ridge = RIDGE * torch.eye(len(found), dtype=features.dtype)

    def loss(at: torch.Tensor) -> float:
        return float((share * torch.nn.functional.softplus(-features @ at)).sum() + 0.5 * RIDGE * at.square().sum())

    for _ in range(NEWTON_STEPS):
        mirrored = torch.sigmoid(-features @ found)  # probability of the other image
        gradient = features.T @ (share * mirrored) - RIDGE * found
        curvature = (features * (share * mirrored * (1 - mirrored))[:, None]).T @ features + ridge
        step = torch.linalg.solve(curvature, gradient)
        while loss(found + step) > loss(found) and float(step.abs().max()) > TOLERANCE:
            step = 0.5 * step  # the loss is convex, but far from its minimum a whole step can be too long
        found = found + step
        if float(step.abs().max()) < TOLERANCE:
            break
    return found


def right_handed(positions_nm: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Return the positions (n, n_beads, 3), or their mirror images where these are more likely by what was learnt."""
    mirrored = odd_features(positions_nm) @ coefficients < 0
    signs = torch.where(mirrored, -1.0, 1.0).to(positions_nm.dtype)
    return torch.cat([positions_nm[:, :, :2], positions_nm[:, :, 2:] * signs[:, None, None]], dim=2)
