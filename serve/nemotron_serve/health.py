"""The health of a server, reported on its own HTTP port."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from nemotron_core.errors import NemotronError


class Health:
    """An HTTP server for `GET /health/live` and `/health/ready`, as a context manager.

    `is_ready` returns whether the engine works and the server has not been asked to stop. Raises
    `NemotronError` if the port cannot be used.
    """

    def __init__(self, address: str, port: int, is_ready: Callable[[], bool]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the library requires this name
                if self.path not in ("/health/live", "/health/ready"):
                    self.send_error(HTTPStatus.NOT_FOUND)
                    return
                healthy = self.path == "/health/live" or is_ready()
                body = json.dumps({"ready": is_ready()}).encode()
                self.send_response(HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing: probes come every second."""

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

        try:
            self._server = Server((address, port), Handler)
        except OSError as error:
            raise NemotronError(
                f"the health port {port} cannot be used: {error.strerror}",
                where=f"{address}:{port}",
                remedy="stop what listens there or choose another with --health-port",
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
