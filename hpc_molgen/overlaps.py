"""Time series that repeat each other: copies and windows of one longer series, found, joined, kept on one side of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_RUN = 20  # equal frames, one after the other, that cannot be chance
_CHUNK = 2**20


@dataclass(frozen=True)
class Parent:
    """A series that one or more of the given ones are windows of.

    Attributes
    ----------
    members : tuple of (int, int)
        Which series, and the frame of the parent at which it begins; in the order of these frames.
    n_frames : int
    group : int
        Parents of one group share frames, though they cannot be joined: they belong on one side of a split.
    """

    members: tuple[tuple[int, int], ...]
    n_frames: int
    group: int

    def assemble(self, series: Sequence[np.ndarray]) -> np.ndarray:
        """Return the parent, shape=(n_frames, n_features)."""
        if len(self.members) == 1:
            return np.asarray(series[self.members[0][0]])
        first = series[self.members[0][0]]
        joined = np.empty((self.n_frames, *first.shape[1:]), first.dtype)
        for index, start in self.members:
            joined[start : start + len(series[index])] = series[index]
        return joined


def find_parents(series: Sequence[np.ndarray]) -> list[Parent]:
    """Find which series are copies of others, or windows of a longer one.

    Two series are joined where the whole range that they would share is equal to the last bit, and holds at least `MIN_RUN`
    different frames in a row. Series that share so long a run but differ elsewhere in that range stay apart, in one group.

    Parameters
    ----------
    series : sequence of np.ndarray, each of shape=(n_frames, n_features)
        Of one dtype; may be memory maps, which are read twice from end to end.

    Returns
    -------
    list of Parent
        In the order of their first members.
    """
    hashes = [_hashes(values) for values in series]
    distinct: dict[bytes, int] = {}
    links: list[tuple[int, int, int]] = []
    loose: list[tuple[int, int, int]] = []
    for index, own in enumerate(hashes):  # copies of whole series are many, and cheap to set aside
        links += [(first, index, 0)] if (first := distinct.setdefault(own.tobytes(), index)) != index else []
    for first, second, offset in _candidates(hashes, list(distinct.values())):
        shared = _shared(series[first], series[second], offset)
        if shared is not None:
            (links if shared else loose).append((first, second, offset))
    place = _place(len(series), links)
    group = _groups(len(series), [(a, b) for a, b, _ in [*links, *loose]])
    parents = []
    for root in sorted({at for at, _ in place}):
        members = sorted(((index, start) for index, (at, start) in enumerate(place) if at == root), key=lambda m: (m[1], m[0]))
        lowest = members[0][1]
        placed = tuple((index, start - lowest) for index, start in members)
        length = max(start + len(series[index]) for index, start in placed)
        parents.append(Parent(placed, length, group[root]))
    return parents


def _hashes(values: np.ndarray) -> np.ndarray:
    """Return a number (n_frames,) for each frame, equal for equal ones, and hardly ever for others."""
    hashes = np.empty(len(values), np.uint64)
    for start in range(0, len(values), _CHUNK):
        block = np.ascontiguousarray(values[start : start + _CHUNK], np.float64) + 0.0  # -0.0 becomes 0.0
        mixed = np.zeros(len(block), np.uint64)
        for column in block.view(np.uint64).reshape(len(block), -1).T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        hashes[start : start + _CHUNK] = mixed
    return hashes


def _candidates(all_hashes: Sequence[np.ndarray], chosen: Sequence[int]) -> list[tuple[int, int, int]]:
    """Pairs of series with at least `MIN_RUN` equal frames at one offset: frame t of the second is t + offset of the first."""
    hashes = np.concatenate([all_hashes[index] for index in chosen])
    owner = np.repeat(chosen, [len(all_hashes[index]) for index in chosen])
    frame = np.concatenate([np.arange(len(all_hashes[index])) for index in chosen])
    order = np.argsort(hashes, kind="stable")
    hashes, owner, frame = hashes[order], owner[order], frame[order]
    found: dict[tuple[int, int, int], int] = {}
    step = 1
    while step < len(hashes):  # members of a class of equal frames, 1, 2, 3, ... places apart in the sorted order
        same = np.flatnonzero(hashes[step:] == hashes[:-step])
        if not len(same):
            break
        pairs = np.stack([owner[same], owner[same + step], frame[same] - frame[same + step]], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        for (a, b, offset), n in zip(*np.unique(pairs, axis=0, return_counts=True), strict=True) if len(pairs) else ():
            key = (int(a), int(b), int(offset)) if a < b else (int(b), int(a), -int(offset))
            found[key] = found.get(key, 0) + int(n)
        step += 1
        if step > 4 * len(chosen):  # frames that a single series repeats again and again, as in discrete data
            break
    return sorted(key for key, n in found.items() if n >= MIN_RUN)


def _shared(first: np.ndarray, second: np.ndarray, offset: int) -> bool | None:
    """Whether the overlap at `offset` is equal throughout (True), holds a long equal run (False), or neither (None)."""
    start, stop = max(0, offset), min(len(first), len(second) + offset)
    a, b = first[start:stop], second[start - offset : stop - offset]
    equal = (np.asarray(a) == np.asarray(b)).reshape(len(a), -1).all(axis=1)
    changes = np.concatenate([[True], (np.asarray(a[1:]) != np.asarray(a[:-1])).reshape(len(a) - 1, -1).any(axis=1)])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], equal, [False]]).astype(np.int8)))
    longest = max((int(changes[i:j].sum()) for i, j in zip(edges[::2], edges[1::2], strict=True)), default=0)
    if longest < MIN_RUN:
        return None
    return bool(equal.all())


def _place(n: int, links: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """For each series the root of its chain of links, and its first frame counted from the root's."""
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for first, second, offset in links:
        neighbours[first].append((second, offset))
        neighbours[second].append((first, -offset))
    place: list[tuple[int, int] | None] = [None] * n
    for root in range(n):
        if place[root] is not None:
            continue
        place[root], waiting = (root, 0), [root]
        while waiting:
            here = waiting.pop()
            start = place[here][1]  # type: ignore[index]
            for there, offset in neighbours[here]:
                if place[there] is None:
                    place[there] = (root, start + offset)
                    waiting.append(there)
    return [found for found in place if found is not None]


def _groups(n: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    group = list(range(n))

    def top(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    for first, second in pairs:
        a, b = sorted((top(first), top(second)))
        group[b] = a
    return [top(index) for index in range(n)]
