"""Files behind http(s) addresses: fetched once, checked, kept."""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from hpc_molgen.errors import InputError
from hpc_molgen.files import cache_folder, write_atomically

log = logging.getLogger(__name__)
TIMEOUT_S = 30.0
LARGEST_BYTES = 200 * 2**20


def is_address(name: str) -> bool:
    """Whether `name` is an http(s) address rather than a path."""
    return name.lower().startswith(("http://", "https://"))


def fetch(address: str, sha256: str | None = None, key: str = "") -> Path:
    """Return the path of the kept copy of a file, after downloading it where there is none.

    Parameters
    ----------
    address : str
        http(s) address.
    sha256 : str, optional
        Of the file, enforced. None: that of the first download, which is written beside the kept file and into the log, and
        which later downloads must match.
    key : str
        The option that holds the address, for messages.

    Raises
    ------
    InputError
        When the file cannot be had whole, or has another checksum.
    EnvironmentProblem
        When the cache folder cannot be written.
    """
    base = re.sub(r"[^A-Za-z0-9._-]", "_", Path(urlsplit(address).path).name) or "file"
    path = cache_folder("downloads") / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{base}"
    noted = path.with_name(f"{path.name}.sha256")
    first = noted.read_text().strip() if noted.is_file() else None
    expected = sha256.lower() if sha256 else first
    if expected and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == expected:
        return path
    data = _download(address, key)
    found = hashlib.sha256(data).hexdigest()
    if expected and found != expected:
        source = f"{key}_sha256 is" if sha256 else f"the first download, by {noted}, had"
        remedy = f"correct {key}_sha256" if sha256 else "remove that file"
        raise InputError(
            f"{key}: {address} has the SHA-256 checksum {found}, but {source} {expected}; if the new file is right, {remedy}"
        )
    write_atomically(noted, f"{found}\n".encode())
    write_atomically(path, data)
    log.info("%s: kept as %s, SHA-256 %s%s", address, path, found, "" if expected else " (noted for later downloads)")
    return path


def _download(address: str, key: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
            data: bytes = response.read(LARGEST_BYTES + 1)
            length = response.headers.get("Content-Length")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(
            f"{key}: {address} cannot be fetched ({error}); without a network, bring the file and give its path"
        ) from error
    if len(data) > LARGEST_BYTES:
        raise InputError(f"{key}: {address} is larger than {LARGEST_BYTES} bytes, and is no structure")
    if not data or (length is not None and len(data) != int(length)):
        raise InputError(f"{key}: {address} broke off after {len(data)} of {length} bytes; try again")
    return data
