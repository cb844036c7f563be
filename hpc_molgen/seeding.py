"""Seeds derived from names, so that results depend on what is computed and not on who computes it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(base: int, *names: str | int) -> int:
    """Return a 31-bit seed for the item that `names` identify, for example ``derive_seed(7, "farm", 12)``.

    The seed is the start of the BLAKE2b digest of the base seed and the names: independent of the rank, the
    clock and the Python process, and positive, as OpenMM asks (0 would mean "choose at random" there).
    """
    text = "\x1f".join([str(int(base)), *(str(name) for name in names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (2**31 - 1) + 1


def numpy_generator(base: int, *names: str | int) -> np.random.Generator:
    """Return a NumPy generator seeded by `derive_seed`."""
    return np.random.default_rng(derive_seed(base, *names))


def torch_generator(base: int, *names: str | int) -> torch.Generator:
    """Return a torch CPU generator seeded by `derive_seed`."""
    import torch

    return torch.Generator().manual_seed(derive_seed(base, *names))
