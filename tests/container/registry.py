"""A registry of one image on this machine, as far as an engine asks one (OCI distribution specification, pull)."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@contextlib.contextmanager
def registry(layer: Path) -> Iterator[str]:
    """Serve a root file system (.tar.gz) as an image of any name; yield host and port."""
    blobs: dict[str, tuple[str, bytes]] = {}

    def add(kind: str, data: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        blobs[digest] = kind, data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    packed = layer.read_bytes()
    files = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(gzip.decompress(packed)).hexdigest()}"]}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": files,
    }
    parts = {"config": add(_CONFIG, json.dumps(config).encode()), "layers": [add(_LAYER, packed)]}
    manifest = add(_MANIFEST, json.dumps({"schemaVersion": 2, "mediaType": _MANIFEST, **parts}).encode())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            last = self.path.rpartition("/")[2]
            if self.path == "/v2/":
                kind, data = "application/json", b"{}"
            elif "/manifests/" in self.path:
                kind, data = blobs.get(last, blobs[manifest["digest"]])
            elif last in blobs:
                kind, data = blobs[last]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            for name, value in {"Content-Type": kind, "Content-Length": len(data)}.items():
                self.send_header(name, str(value))
            if "/manifests/" in self.path:
                self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(data).hexdigest()}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
