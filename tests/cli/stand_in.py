"""Something that listens where a mesh should, and answers what a test wants: errors, pages, or no end of work."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.harness import free_port


class Asked(NamedTuple):
    path: str  # with its query
    params: dict[str, Any]  # of its body


class Said(NamedTuple):
    status: int
    body: bytes
    media_type: str = "application/json"


Answer = Callable[[Asked], Said]


def as_json(value: Any, status: int = 200) -> Said:
    return Said(status, json.dumps(value).encode())


@contextlib.contextmanager
def stand_in(answer: Answer) -> Iterator[str]:
    """Its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said = answer(Asked(self.path, json.loads(body or b"{}")))
            self.send_response(said.status)
            self.send_header("Content-Type", said.media_type)
            self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            self.wfile.write(said.body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
