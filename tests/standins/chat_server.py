"""A small real HTTP server with a chat endpoint, whose answers a test provides.

It stands in for OpenAI-compatible servers of other projects: overloaded ones, failing ones, and
Nemotron-4-340B-Reward.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Mapping[str, Any], Mapping[str, str]]


def said(text: str, tokens: int = 1) -> Reply:
    """Return a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return 200, {"id": "x", "choices": [choice | {"finish_reason": "stop"}], "usage": usage}, {}


def refused(status: int, message: str = "no", **headers: str) -> Reply:
    return status, {"error": {"message": message, "type": "x", "code": None}}, headers


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


class ChatServer:
    """A server that runs inside a `with` block.

    Its threads call `answer` with the body of a request and the number of requests being answered.
    With a `key`, requests without it are refused; `model` is the one model that it lists.
    `requests` and `max_inside` are the number of requests so far, and the largest number of
    requests that were being answered at once.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any], int], Reply],
        key: str = "",
        model: Mapping[str, str] | None = None,
    ) -> None:
        self.requests = 0
        self.max_inside = 0
        self._inside = 0
        self._lock = threading.Lock()
        standin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.reply((200, {"data": [model or {"id": "stand-in"}]}, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if key and self.headers["authorization"] != f"Bearer {key}":
                    self.reply(refused(401))
                    return
                with standin._lock:
                    standin.requests += 1
                    standin._inside += 1
                    standin.max_inside = max(standin.max_inside, standin._inside)
                    inside = standin._inside
                try:
                    reply = answer(body, inside)
                finally:
                    with standin._lock:
                        standin._inside -= 1
                self.reply(reply)

            def reply(self, reply: Reply) -> None:
                status, content, headers = reply
                data = json.dumps(content).encode()
                self.send_response(status)
                always = {"content-type": "application/json", "content-length": str(len(data))}
                for name, value in {**headers, **always}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ChatServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
