"""Structures behind addresses: fetched once, checked, and refused when they are not whole or not the same."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hpc_molgen.config import SystemConfig, load_config
from hpc_molgen.downloads import fetch
from hpc_molgen.errors import InputError
from hpc_molgen.structures import pdb_text
from hpc_molgen.systems.base import MolecularSystem
from hpc_molgen.systems.registry import load_system
from tests.small_molecules import butane, butane_system, write_files


class Server:
    """A server of one file, which counts its requests and can break off or answer with an error."""

    def __init__(self) -> None:
        self.body, self.announced, self.status, self.n_requests = b"first", None, 200, 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.n_requests += 1
                self.send_response(outer.status)
                self.send_header("Content-Length", str(outer.announced or len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/some/1ABC.pdb"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    announced: int | None

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, and an empty cache folder."""
    monkeypatch.setenv("HPC_MOLGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served = Server()
    yield served
    served.stop()


def kept(tmp_path: Path) -> list[Path]:
    """Files in the cache."""
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_first_download_is_kept_and_binds_later_ones(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One request; the checksum lies beside the file and in the log; another file later is refused, the same one is not."""
    digest = hashlib.sha256(b"first").hexdigest()
    with caplog.at_level("INFO"):
        path = fetch(server.address, None, "system.pdb")
    assert path.read_bytes() == b"first" and path.name.endswith("1ABC.pdb") and digest in caplog.text
    assert path.with_name(path.name + ".sha256").read_text().strip() == digest
    assert fetch(server.address, None, "system.pdb") == path and server.n_requests == 1
    path.write_bytes(b"fir")  # damaged on disk: fetched again
    assert fetch(server.address).read_bytes() == b"first" and server.n_requests == 2
    path.unlink()
    server.body = b"other"
    with pytest.raises(InputError, match=r"system.pdb: .* but the first download, by .*sha256, had .*remove that file"):
        fetch(server.address, None, "system.pdb")
    assert not path.exists()


def test_given_checksum_is_enforced(server: Server, tmp_path: Path) -> None:
    """A wrong one leaves nothing behind; the right one, in capitals too, does; a wrong one is refused afterwards too."""
    wrong, right = hashlib.sha256(b"x").hexdigest(), hashlib.sha256(b"first").hexdigest()
    with pytest.raises(InputError, match=f"checksum {right}, but system.pdb_sha256 is {wrong}"):
        fetch(server.address, wrong, "system.pdb")
    assert kept(tmp_path) == []
    assert fetch(server.address, right.upper(), "system.pdb").read_bytes() == b"first"
    with pytest.raises(InputError, match=r"system\.pdb_sha256 is"):
        fetch(server.address, wrong, "system.pdb")
    with pytest.raises(InputError, match="pdb_sha256"):
        load_config("p450", ["system.pdb_sha256=abc"])


def test_what_cannot_be_had_whole_is_an_error(server: Server, tmp_path: Path) -> None:
    """Broken off, not found, empty, nobody there: one message each, and nothing kept."""
    server.announced = 500
    with pytest.raises(InputError, match=r"system.pdb: .* broke off after 5 of 500"):
        fetch(server.address, None, "system.pdb")
    server.announced, server.status = None, 404
    with pytest.raises(InputError, match=r"404.*bring the file and give its path"):
        fetch(server.address, None, "system.pdb")
    server.status, server.body = 200, b""
    with pytest.raises(InputError, match="broke off after 0"):
        fetch(server.address, None, "system.pdb")
    server.stop()
    with pytest.raises(InputError, match=r"cannot be fetched .*without a network"):
        fetch(server.address, None, "system.pdb")
    assert kept(tmp_path) == []


def test_a_system_by_address(server: Server, alanine: MolecularSystem) -> None:
    """`system.pdb` takes an address, for every system that reads a PDB file."""
    server.body = pdb_text(alanine.topology, alanine.positions_nm, []).encode()
    system = load_system(SystemConfig(name="pdb", pdb=server.address, pdb_sha256=hashlib.sha256(server.body).hexdigest()))
    assert system.n_atoms == alanine.n_atoms and server.n_requests == 1


def test_a_small_molecule_by_address(server: Server, tmp_path: Path) -> None:
    """`system.sdf` takes one too, with a checksum of its own."""
    write_files(tmp_path, butane(), butane_system())
    server.body = butane().v2000().encode()
    files = {"sdf": server.address, "system_xml": str(tmp_path / "mine.xml")}
    right = hashlib.sha256(server.body).hexdigest()
    assert load_system(SystemConfig(name="sdf-xml", sdf_sha256=right, **files)).n_atoms == 14 and server.n_requests == 1
    with pytest.raises(InputError, match=r"system\.sdf: .*system\.sdf_sha256 is 0{64}"):
        load_system(SystemConfig(name="sdf-xml", sdf_sha256=64 * "0", **files))
