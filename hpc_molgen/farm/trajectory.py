"""Trajectory files that grow: MDTraj's HDF5, whole for every reader at every moment, whoever is killed."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_molgen.errors import EnvironmentProblem, InputError
from hpc_molgen.files import write_atomically

SMALL_BYTES = 2**20
_PAGE = 4096
_MAGIC = b"hpc_molgen redo 1\n"


def append(path: Path, keep: int, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any] | None = None) -> None:
    """Add frames to a file of `write_ensemble(total_frames=...)`, in place of those after the first `keep`.

    HDF5 alone cannot be killed while it writes: it changes a file's index in several places. Here its writes are collected in
    memory. A small file is then replaced. Of a large one, what lies behind its end is written first, where no reader looks;
    then the changes to what is there (some kilobytes) are kept in a file of their own, made, and the copy is removed. A
    process that is killed anywhere leaves either the old file or a copy with which `repair` finishes the new one.

    Parameters
    ----------
    arrays : mapping of str to np.ndarray, each of shape (n, ...)
        New frames of every dataset of the file that has frames.
    attributes : mapping
        Set in the group `/hpc_molgen`.

    Raises
    ------
    EnvironmentProblem
        When the file cannot be written (a full disk); it is as it was before.
    InputError
        When it is not such a file.
    """
    repair(path)
    try:
        if path.stat().st_size < SMALL_BYTES:
            image = io.BytesIO(path.read_bytes())
            _extend(image, keep, arrays, attributes)
            write_atomically(path, image.getvalue())
            return
        with open(path, "r+b", buffering=0) as raw:
            overlay = _Overlay(raw)
            _extend(overlay, keep, arrays, attributes)
            old_size = overlay.old_size
            appended = overlay.appended()
            try:
                _write_at(raw, old_size, appended)
                os.fsync(raw.fileno())
                write_atomically(_redo(path), overlay.changes())
            except (OSError, EnvironmentProblem):
                raw.truncate(old_size)
                raise
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: not a trajectory that can grow ({error})") from error
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot be written ({error}). Make space; the same command then goes on.") from error
    repair(path)


def _extend(target: Any, keep: int, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any] | None) -> None:
    with h5py.File(target, "r+") as file:
        for name, values in arrays.items():
            file[name].resize(keep + len(values), axis=0)
            file[name][keep:] = values
        file["hpc_molgen"].attrs.update(attributes or {})


def repair(path: Path) -> None:
    """Finish an addition that was interrupted after its changes had been kept; nothing to do for other files."""
    redo = _redo(path)
    try:
        data = redo.read_bytes()
    except FileNotFoundError:
        return
    with open(path, "r+b", buffering=0) as raw:
        for offset, size, start in _parse(data, redo):
            _write_at(raw, offset, data[start : start + size])
        os.fsync(raw.fileno())
    redo.unlink()


def n_frames(path: Path) -> int:
    """Frames in a file, after a repair where one was due; 0 when there is none, or none that can be read."""
    if not path.is_file():
        return 0
    repair(path)
    try:
        with h5py.File(path, "r") as file:
            return int(file["coordinates"].shape[0])
    except (OSError, KeyError):
        return 0


def _redo(path: Path) -> Path:
    return path.with_name(f".{path.name}.redo")


def _parse(data: bytes, source: Path) -> list[tuple[int, int, int]]:
    """Return (offset in the file, size, offset in `data`) of every change."""
    body = data[len(_MAGIC) + 4 :]
    if not data.startswith(_MAGIC) or struct.unpack_from("<I", data, len(_MAGIC))[0] != zlib.crc32(body):
        raise InputError(f"{source}: damaged; delete it and the trajectory beside it, which then is made again")
    parts, at = [], len(_MAGIC) + 4
    while at < len(data):
        offset, size = struct.unpack_from("<QI", data, at)
        parts.append((offset, size, at + 12))
        at += 12 + size
    return parts


def _write_at(raw: io.FileIO, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(raw.fileno(), view, offset)
        view, offset = view[written:], offset + written


class _Overlay(io.RawIOBase):
    """A file whose writes stay in memory, page by page."""

    def __init__(self, raw: io.FileIO) -> None:
        self._descriptor = raw.fileno()
        self.old_size = self._size = os.fstat(self._descriptor).st_size
        self._pages: dict[int, bytearray] = {}
        self._at = 0

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            data = os.pread(self._descriptor, _PAGE, number * _PAGE) if number * _PAGE < self.old_size else b""
            self._pages[number] = bytearray(data.ljust(_PAGE, b"\0"))
        return self._pages[number]

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        n = max(0, min(len(view), self._size - self._at))
        view[:n] = os.pread(self._descriptor, n, self._at).ljust(n, b"\0")
        for number in range(self._at // _PAGE, -(-(self._at + n) // _PAGE)):
            if number in self._pages:
                start, end = max(self._at, number * _PAGE), min(self._at + n, (number + 1) * _PAGE)
                page = self._pages[number][start - number * _PAGE : end - number * _PAGE]
                view[start - self._at : end - self._at] = page
        self._at += n
        return n

    def write(self, data: Any) -> int:
        view, done = memoryview(data).cast("B"), 0
        while done < len(view):
            number, within = divmod(self._at, _PAGE)
            n = min(_PAGE - within, len(view) - done)
            self._page(number)[within : within + n] = view[done : done + n]
            self._at, done = self._at + n, done + n
        self._size = max(self._size, self._at)
        return done

    def truncate(self, size: int | None = None) -> int:
        self._size = self._at if size is None else size
        return self._size

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def appended(self) -> bytes:
        """What lies behind the old end of the file."""
        first = self.old_size // _PAGE
        pages = (self._pages.get(number, bytes(_PAGE)) for number in range(first, -(-self._size // _PAGE)))
        return b"".join(pages)[self.old_size - first * _PAGE : self._size - first * _PAGE]

    def changes(self) -> bytes:
        """What changes before the old end of the file, as `_parse` reads it."""
        parts = []
        for number in sorted(self._pages):
            data = bytes(self._pages[number][: max(0, self.old_size - number * _PAGE)])
            if data:
                parts.append(struct.pack("<QI", number * _PAGE, len(data)) + data)
        body = b"".join(parts)
        return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body
