"""The schema registry on a port: ``stream.alert.registry`` behind the standard library's HTTP server."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stream.alert.registry import CONTENT_TYPE, answer
from stream.core.errors import UsageError

_LONGEST_BODY = 1 << 20  # bytes; a schema is some 25 kB


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _respond(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= _LONGEST_BODY:
            self.close_connection = True
            status, content = 413, {"error_code": 413, "message": "too long"}
        else:
            status, content = answer(self.command, self.path, self.rfile.read(length))
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _respond  # noqa: N815 - names that the standard library calls

    def log_message(self, format: str, *args: object) -> None:
        """Silent: every client start would be a line."""


def make_server(host: str, port: int) -> ThreadingHTTPServer:
    """A server that answers once ``serve_forever`` is called; port 0 takes any free one.

    Raises
    ------
    UsageError
        The address cannot be listened on.
    """
    try:
        server = ThreadingHTTPServer((host, port), _Handler)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from error
    server.daemon_threads = True
    return server
