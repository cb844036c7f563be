"""From distances to coordinates: classical scaling, then majorisation of the weighted stress."""

from __future__ import annotations

import torch

N_ITERATIONS = 100  # of the relaxed Guttman transform: within 0.3 % of the lowest stress (Trp-cage, 20 beads)
ELEMENTS = 100_000  # pairs of beads that are worked on at once, so that they stay in the processor's cache
LEAST_NM = 1e-6


def as_matrix(values: torch.Tensor, pairs: torch.Tensor, n_beads: int) -> torch.Tensor:
    """Return values (n, n_pairs) of pairs (n_pairs, 2) as symmetric matrices (n, n_beads, n_beads) with a zero diagonal."""
    matrix = values.new_zeros((len(values), n_beads, n_beads))
    first, second = pairs.T
    matrix[:, first, second] = values
    matrix[:, second, first] = values
    return matrix


def shortest_paths(distances_nm: torch.Tensor) -> torch.Tensor:
    """Return the lengths (n, n_beads, n_beads) of shortest paths through given distances; inf where none is given (Floyd)."""
    found = distances_nm.clone()
    for via in range(found.shape[1]):
        found = torch.minimum(found, found[:, :, via, None] + found[:, via, None, :])
    return found


def classical_scaling(distances_nm: torch.Tensor) -> torch.Tensor:
    """Return coordinates (n, n_beads, 3) whose scalar products fit best to distances (n, n_beads, n_beads).

    Torgerson 1952, Psychometrika 17, 401: the three largest eigenvalues of the doubly centred -D^2 / 2.
    """
    n_beads = distances_nm.shape[1]
    centre = torch.eye(n_beads, dtype=distances_nm.dtype) - 1 / n_beads
    products = -0.5 * centre @ distances_nm.square() @ centre
    values, vectors = torch.linalg.eigh(0.5 * (products + products.transpose(1, 2)))
    # a flat arrangement gets a little thickness: no step of majorisation would ever leave its plane
    coordinates: torch.Tensor = vectors[:, :, -3:] * values[:, None, -3:].clamp(min=LEAST_NM).sqrt()
    return coordinates


def majorise(
    start_nm: torch.Tensor, lower_nm: torch.Tensor, upper_nm: torch.Tensor, weight: torch.Tensor, n_steps: int = N_ITERATIONS
) -> torch.Tensor:
    """Return coordinates (n, n_beads, 3) of low stress sum w (|x_i - x_j| - d)^2, d being the nearest value in its interval.

    SMACOF, by the Guttman transform of constant weights and interval distances (de Leeuw 1977, in Recent Developments in
    Statistics, 133; Groenen, Winsberg, Rodriguez and Diday 2006, Comput. Stat. Data Anal. 51, 360); steps are twice as long
    as the transform's but for the last, which needs half as many (de Leeuw and Heiser 1980, in Multivariate Analysis V, 501).

    Parameters
    ----------
    start_nm : torch.Tensor, shape=(n, n_beads, 3)
    lower_nm, upper_nm, weight : torch.Tensor, shape=(n, n_beads, n_beads)
        Bounds of each distance, equal where it is known; `weight` is positive off the diagonal, zero on it.
    """
    n_beads, x = start_nm.shape[1], start_nm
    # the constant takes the translation out of the null space, and changes nothing as all right-hand sides sum to zero
    constant = weight.sum((1, 2)) / n_beads**2
    laplacian = torch.diag_embed(weight.sum(2)) - weight + constant[:, None, None]
    factor = torch.linalg.cholesky(laplacian)
    for step in range(n_steps):
        lengths = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # of a product, digits would be lost
        wanted = torch.minimum(torch.maximum(lengths, lower_nm), upper_nm)
        pull = -weight * wanted / lengths.clamp(min=LEAST_NM)
        pull = pull - torch.diag_embed(pull.sum(2))
        moved = torch.cholesky_solve(pull @ x, factor)
        x = 2 * moved - x if step < n_steps - 1 else moved
    return x


def superposed_rmsd_nm(first_nm: torch.Tensor, second_nm: torch.Tensor) -> torch.Tensor:
    """Root mean square deviation (n,) of two sets (n, n_beads, 3) after the best rotation, no reflection (Kabsch 1976)."""
    a, b = (x - x.mean(1, keepdim=True) for x in (first_nm, second_nm))
    covariance = a.transpose(1, 2) @ b
    singular = torch.linalg.svdvals(covariance)
    last = singular[:, 2] * torch.sign(torch.linalg.det(covariance))
    squares = a.square().sum((1, 2)) + b.square().sum((1, 2)) - 2 * (singular[:, 0] + singular[:, 1] + last)
    deviations: torch.Tensor = (squares.clamp(min=0) / a.shape[1]).sqrt()
    return deviations
