"""What a training step sees: items and noise, drawn from names and numbers, so that who draws them does not matter."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hpc_molgen.seeding import torch_generator
from hpc_molgen.surrogates.base import Surrogate

BLOCK = 256  # items that share a generator: a rank draws the blocks that its share touches, not the global batch
Noise = tuple[torch.Tensor, ...]


@dataclass
class TrainingSet:
    """Items to train on: single feature vectors, or windows of consecutive ones.

    Parameters
    ----------
    features : torch.Tensor, shape=(n_frames, ...)
    weights : torch.Tensor, shape=(n_items,)
        Unnormalised statistical weights: an item is drawn in proportion to its weight.
    starts : torch.Tensor, shape=(n_items,), optional
        First frame of each window; without it an item is a frame.
    length : int
        Frames of a window.
    labels : torch.Tensor, shape=(n_items, n_labels), optional
        Of each window; they come as further channels of its frames.
    """

    features: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor | None = None
    length: int = 1
    labels: torch.Tensor | None = None

    def __post_init__(self) -> None:
        self._cumulative = torch.cumsum(self.weights.double() / self.weights.double().sum(), dim=0)

    def __len__(self) -> int:
        return len(self.weights)

    def to(self, device: torch.device, dtype: torch.dtype) -> TrainingSet:
        """Return the set with its features on a device, where batches are gathered."""
        labels = None if self.labels is None else self.labels.to(device, dtype)
        return TrainingSet(self.features.to(device, dtype), self.weights, self.starts, self.length, labels)

    def choose(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Draw indices (n,) of items with replacement, by weight."""
        uniform = torch.rand(n, generator=generator, dtype=torch.float64)
        return torch.searchsorted(self._cumulative, uniform).clamp(max=len(self) - 1)

    def items(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return items (n, ...) or windows (n, length, ...) on the device of the features."""
        device = self.features.device
        if self.starts is None:
            return self.features[chosen.to(device, non_blocking=True)]
        frames = self.starts[chosen][:, None] + torch.arange(self.length)
        windows = self.features[frames.to(device, non_blocking=True)]
        if self.labels is None:
            return windows
        own = self.labels[chosen.to(device, non_blocking=True)]
        return torch.cat([windows, own[:, None].expand(-1, self.length, -1)], dim=2)


@dataclass(frozen=True)
class Drawn:
    """What one update of one part sees on one rank; `ready` is when a GPU has it."""

    batch: torch.Tensor
    noise: Noise
    ready: torch.cuda.Event | None = None


class Batches:
    """Draws the share of one rank of the global batch of every update.

    Items and noise of update `number` of step `step` come in blocks of `BLOCK` items, each from a generator seeded by
    (seed, "train", step, number, block). So the global batch is the same for any number of ranks and at every attempt, the
    position in the data is the step, and no rank draws more than its share and the rest of two blocks.

    Parameters
    ----------
    share : slice
        Of the global batch.
    device : torch.device
        On a GPU the next batches are drawn by a thread meanwhile, and copied on a stream of their own.
    """

    def __init__(
        self, data: TrainingSet, surrogate: Surrogate, batch_size: int, share: slice, seed: int, device: torch.device
    ) -> None:
        self.data, self.surrogate, self.batch_size, self.share = data, surrogate, batch_size, share
        self.seed, self.device = seed, device
        self.wait_s = 0.0
        self._drawn: Iterator[Drawn] | None = None

    def draw(self, step: int, number: int, part: str) -> tuple[torch.Tensor, Noise]:
        """Indices of the items and noise of one update, on the CPU."""
        chosen, noise = [], []
        for generator, n, wanted in blocks(self.share, self.batch_size, self.seed, "train", step, number):
            chosen.append(self.data.choose(n, generator)[wanted])
            noise.append([values[wanted] for values in self.surrogate.draw_noise(part, n, generator)])
        return torch.cat(chosen), tuple(torch.cat(values) for values in zip(*noise, strict=True))

    def start(self, step: int) -> None:
        """Begin at the first update of `step`."""
        self._drawn = self._ahead(step) if self.device.type == "cuda" else self._all(step)

    def next(self) -> Drawn:
        """Return the next update's batch and noise; the time that the caller waits for it adds to `wait_s`."""
        assert self._drawn is not None
        started = time.perf_counter()
        drawn = next(self._drawn)
        self.wait_s += time.perf_counter() - started
        if drawn.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(drawn.ready)
            for tensor in (drawn.batch, *drawn.noise):
                tensor.record_stream(stream)  # its memory was taken on the stream of copies
        return drawn

    def close(self) -> None:
        """End the thread that draws ahead."""
        if self._drawn is not None:
            self._drawn.close()  # type: ignore[attr-defined]

    def _all(self, step: int) -> Iterator[Drawn]:
        while True:
            for number, part in enumerate(self.surrogate.updates()):
                chosen, noise = self.draw(step, number, part)
                batch = self.data.items(chosen)
                yield Drawn(batch, tuple(values.to(batch) for values in noise))
            step += 1

    def _ahead(self, step: int) -> Iterator[Drawn]:
        filled: queue.Queue[Drawn | BaseException] = queue.Queue(maxsize=2 * len(self.surrogate.updates()))
        ended = threading.Event()
        thread = threading.Thread(target=self._fill, args=(step, filled, ended), daemon=True)
        thread.start()
        try:
            while True:
                drawn = filled.get()
                if isinstance(drawn, BaseException):
                    raise drawn
                yield drawn
        finally:
            ended.set()
            while thread.is_alive():
                while not filled.empty():
                    filled.get_nowait()
                thread.join(0.05)

    def _fill(self, step: int, filled: queue.Queue[Drawn | BaseException], ended: threading.Event) -> None:
        try:
            torch.cuda.set_device(self.device)
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            like = self.data.features
            while not ended.is_set():
                for number, part in enumerate(self.surrogate.updates()):
                    chosen, noise = self.draw(step, number, part)
                    with torch.cuda.stream(stream):
                        batch = self.data.items(chosen.pin_memory())
                        moved = tuple(values.to(like.dtype).pin_memory().to(like.device, non_blocking=True) for values in noise)
                        filled.put(Drawn(batch, moved, stream.record_event()))
                step += 1
        except BaseException as error:
            filled.put(error)


def blocks(share: slice, n: int, seed: int, *names: str | int) -> Iterator[tuple[torch.Generator, int, slice]]:
    """For each block that `share` of `n` items touches: its generator, its length, and what is wanted of it."""
    for block in range(share.start // BLOCK, -(-share.stop // BLOCK)):
        first = block * BLOCK
        wanted = slice(max(share.start - first, 0), min(share.stop - first, BLOCK))
        yield torch_generator(seed, *names, block), min(BLOCK, n - first), wanted
