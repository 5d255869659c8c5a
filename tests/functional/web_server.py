"""Serves one file over HTTP on the loopback, whole or as slowly as a test wants."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Server:
    """`requests` counts those that came; setting `go` lets a stalled answer go on."""

    url: str
    sha256: str
    requests: int = 0
    go: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(path: Path, *, stall: bool = False) -> Iterator[Server]:
    """Serve `path`; with `stall` the second half of it waits for `go`."""
    content = path.read_bytes()
    server = Server(url="", sha256=hashlib.sha256(content).hexdigest())
    if not stall:
        server.go.set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = len(content) // 2
            self.wfile.write(content[:half])
            server.go.wait(60)
            # The test may have killed the program that was reading.
            with suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(content[half:])

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}/{path.name}"
    try:
        yield server
    finally:
        server.go.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()
