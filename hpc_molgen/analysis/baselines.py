"""What a surrogate of trajectories has to beat: shuffled frames, an autoregression, a Markov state model that emits frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_molgen.analysis.markov import Clusters
from hpc_molgen.analysis.series import Series


def shuffled(train: Series, n_trajectories: int, n_frames: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Draw frames of the training set at random: the right distribution, and no time."""
    frames = np.concatenate([np.asarray(part) for part in train])
    return [frames[generator.integers(len(frames), size=n_frames)] for _ in range(n_trajectories)]


def autoregression(train: Series, n_trajectories: int, n_frames: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Simulate x(t+1) = m + A (x(t) - m) + noise fitted by least squares: a discrete Ornstein-Uhlenbeck process, VAR(1).

    Its noise is normal with the covariance of the residuals; it starts from its own stationary distribution.
    """
    from scipy.linalg import solve_discrete_lyapunov

    before = np.concatenate([np.asarray(part[:-1], np.float64) for part in train])
    after = np.concatenate([np.asarray(part[1:], np.float64) for part in train])
    mean = before.mean(axis=0)
    solution, *_ = np.linalg.lstsq(before - mean, after - mean, rcond=None)
    matrix = solution.T
    residual = (after - mean) - (before - mean) @ solution
    covariance = np.atleast_2d(np.cov(residual.T))
    stationary = solve_discrete_lyapunov(matrix, covariance)
    x = generator.multivariate_normal(np.zeros(len(mean)), stationary, n_trajectories)
    root = np.linalg.cholesky(covariance + 1e-12 * np.trace(covariance) * np.eye(len(mean)))
    out = np.empty((n_trajectories, n_frames, len(mean)), np.float32)
    for frame in range(n_frames):
        out[:, frame] = mean + x
        x = x @ solution + generator.standard_normal(x.shape) @ root.T
    return list(out)


@dataclass(frozen=True)
class MarkovSampler:
    """A Markov chain over clusters that emits training frames of the cluster it is in.

    Attributes
    ----------
    cumulative : np.ndarray, shape=(n_states, n_states)
        Of the transition probabilities from one frame to the next.
    start : np.ndarray, shape=(n_states,)
        Share of frames in each cluster.
    frames : np.ndarray, shape=(n_frames, n_features)
        Ordered by cluster.
    edges : np.ndarray, shape=(n_states + 1,)
        Where the frames of each cluster begin.
    """

    cumulative: np.ndarray
    start: np.ndarray
    frames: np.ndarray
    edges: np.ndarray

    def sample(self, n_trajectories: int, n_frames: int, generator: np.random.Generator) -> list[np.ndarray]:
        """Draw trajectories (n_frames, n_features)."""
        state = generator.choice(len(self.start), n_trajectories, p=self.start)
        visited = np.empty((n_trajectories, n_frames), np.int32)
        for frame in range(n_frames):
            visited[:, frame] = state
            uniform = generator.random(n_trajectories)
            state = np.minimum((self.cumulative[state] < uniform[:, None]).sum(axis=1), len(self.start) - 1)
        low, high = self.edges[visited], self.edges[visited + 1]
        chosen = low + (generator.random(visited.shape) * (high - low)).astype(np.int64)
        return list(self.frames[chosen])


def fit_markov_sampler(train: Series, clusters: Clusters) -> MarkovSampler:
    """Count transitions from one frame to the next between clusters of the training set, made reversible by symmetrising.

    Clusters that the training set does not visit are left out.
    """
    discrete = clusters.assign(train)
    flat = np.concatenate(discrete)
    present, flat = np.unique(flat, return_inverse=True)
    n = len(present)
    counts = np.zeros((n, n))
    begin = 0
    for part in discrete:
        own = flat[begin : begin + len(part)]
        counts += np.bincount(own[:-1] * n + own[1:], minlength=n * n).reshape(n, n)
        begin += len(part)
    counts = counts + counts.T
    probabilities = counts / counts.sum(axis=1, keepdims=True)
    order = np.argsort(flat, kind="stable")
    frames = np.concatenate([np.asarray(part) for part in train])[order]
    edges = np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=n))])
    return MarkovSampler(np.cumsum(probabilities, axis=1), counts.sum(axis=1) / counts.sum(), frames, edges)
