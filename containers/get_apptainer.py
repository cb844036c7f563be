#!/usr/bin/env python3
"""Fetch Apptainer as a Debian package and unpack it, for machines of Debian 12 whose administrator has not installed it.

    python3 containers/get_apptainer.py FOLDER        then put FOLDER/usr/bin on PATH

Nothing outside FOLDER changes: apt's sources, its package lists and dpkg's records stay as they are. Debian 12 has no such
package; Debian's development suite has one, on the same mirror, and it wants a newer C library for two functions whose
older namesakes differ in nothing but the reading of binary numbers ("0b1"). Its programs are told to use those. A program that
wants more of the newer library is left alone, and that is an error. Building images takes `debootstrap` (or a registry),
`squashfs-tools` and `uidmap` besides, and a fast start `squashfuse`.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

_SUITE = "sid"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_NEW, _OLD, _PREFIX = b"GLIBC_2.38", b"GLIBC_2.2.5", b"__isoc23_"
# types of sections (the ELF specification, and the Linux Standard Base for the last two)
_DYNSYM, _VERNEED, _VERSYM = 11, 0x6FFFFFFE, 0x6FFFFFFF


def fetch(folder: Path) -> None:
    """Put Apptainer into `folder`, from where it runs; the folder's `usr` appears whole or not at all."""
    if (folder / "usr").exists():
        sys.exit(f"{folder / 'usr'} exists already")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        package = _download(Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        _call(["dpkg-deb", "-x", str(package), str(unpacked)])
        usr = unpacked / "usr"
        for name in ("etc", "var"):  # where a relocated apptainer looks, and its starter one folder further down
            shutil.move(unpacked / name, usr / name)
            (usr / "lib" / name).symlink_to(Path("..") / name)
        program, private = usr / "bin" / "apptainer", usr / "lib" / f"{os.uname().machine}-linux-gnu" / "apptainer"
        if not _runs(program):
            for file in (program, private / "bin" / "starter", *private.glob("lib/*.so")):
                relabel(file)
        if not _runs(program):
            sys.exit(f"the apptainer of {package.name} does not run here")
        usr.rename(folder / "usr")


def _download(scratch: Path) -> Path:
    """Download the package with settings of apt that are this call's own."""
    wanted = ["Created-By: Packages", f"Codename: {platform.freedesktop_os_release()['VERSION_CODENAME']}", "Origin: Debian"]
    mirrors = _call(["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]).split()
    mirror = os.environ.get("MIRROR") or next(iter(mirrors), "")
    if not mirror:
        sys.exit("apt knows no mirror of Debian here: apt-get update, or set MIRROR to the address of one")
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    sources = scratch / "sources.sources"
    sources.write_text(f"Types: deb\nURIs: {mirror}\nSuites: {_SUITE}\nComponents: main\nSigned-By: {_KEYRING}\n")
    settings = {
        "Dir::Etc::sourcelist": sources, "Dir::Etc::sourceparts": "/dev/null", "Dir::State::lists": scratch / "lists",
        "Dir::Cache": scratch / "cache", "APT::Sandbox::User": "root",
    }  # fmt: skip
    (scratch / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
    own = os.environ | {"APT_CONFIG": str(scratch / "apt.conf")}
    for words in (["update"], ["download", "apptainer"]):
        _call(["apt-get", "-qq", *words], cwd=scratch, env=own)
    return next(scratch.glob("apptainer_*.deb"))


def relabel(path: Path) -> None:
    """Let a 64-bit ELF file that wants `__isoc23_strtol` and its like of a newer C library use `strtol` of any."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, start + number * size) for number in range(count)]
    sections = {header[1]: header for header in headers if header[1] in (_DYNSYM, _VERNEED, _VERSYM)}
    if len(sections) < 3:
        return
    strings = headers[sections[_DYNSYM][6]][4]

    def text(offset: int) -> bytes:
        return bytes(data[strings + offset : data.index(0, strings + offset)])

    newer = {}  # version's number in the table of symbols -> where its entry is
    need = sections[_VERNEED][4]
    while True:
        _, entries, _, first, step = struct.unpack_from("<HHIII", data, need)
        entry = need + first
        for _ in range(entries):
            _, _, number, name, next_entry = struct.unpack_from("<IHHII", data, entry)
            if text(name) == _NEW:
                newer[number & 0x7FFF] = entry
            entry += next_entry
        if step == 0:
            break
        need += step
    if not newer:
        return
    end = headers[sections[_DYNSYM][6]][5] + strings
    older = data.find(b"\0" + _OLD + b"\0", strings, end) + 1 - strings
    if older <= 0:
        sys.exit(f"{path}: it uses nothing of {_OLD.decode()}, whose name is needed")
    for index in range(sections[_DYNSYM][5] // 24):
        (version,) = struct.unpack_from("<H", data, sections[_VERSYM][4] + 2 * index)
        if version & 0x7FFF not in newer:
            continue
        symbol = sections[_DYNSYM][4] + 24 * index
        (name,) = struct.unpack_from("<I", data, symbol)
        if not text(name).startswith(_PREFIX + b"strto"):
            sys.exit(f"{path}: wants {text(name).decode()} of {_NEW.decode()}, which this machine's C library lacks")
        struct.pack_into("<I", data, symbol, name + len(_PREFIX))  # the name without its prefix is the end of the same string
    for entry in newer.values():
        struct.pack_into("<I", data, entry, _hash(_OLD))
        struct.pack_into("<I", data, entry + 8, older)
    path.write_bytes(data)


def _hash(name: bytes) -> int:
    """Return the hash of the ELF specification."""
    value = 0
    for character in name:
        value = (value << 4) + character
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return value


def _runs(program: Path) -> bool:
    return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0


def _call(command: list[str], **options: object) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if ended.returncode:
        sys.exit(f"{' '.join(command)}: {ended.stderr.strip()}")
    return str(ended.stdout)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    fetch(Path(sys.argv[1]).resolve())
    print(Path(sys.argv[1]).resolve() / "usr" / "bin")
