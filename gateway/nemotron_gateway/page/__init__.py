"""The chat page and the API's page: static files, sent as they are, asking nothing of elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from nemotron_gateway.call import Call

FOLDER = Path(__file__).parent
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGES = {"/": "index.html", "/docs": "docs.html", "/favicon.ico": "icon.svg"}
POLICY = "; ".join(
    [
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
        *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors")),
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
)
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
"""Of every response."""


@dataclass(frozen=True)
class File:
    data: bytes
    kind: str

    async def send(self, call: Call) -> None:
        """With a tag, so that a browser that has it need not load it again."""
        tag = f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'
        headers = {"Cache-Control": "no-cache", "ETag": tag, "Content-Security-Policy": POLICY}
        if call.header("if-none-match") == tag:
            await call.send_bytes(b"", self.kind, HTTPStatus.NOT_MODIFIED, headers)
        else:
            await call.send_bytes(self.data, self.kind, HTTPStatus.OK, headers)


def files() -> dict[str, File]:
    """By path: the pages, and all that they load below `/page/`."""
    found = {path: path.name for path in FOLDER.iterdir() if path.suffix in TYPES}
    by_name = {name: File(path.read_bytes(), TYPES[path.suffix]) for path, name in found.items()}
    return {path: by_name[name] for path, name in PAGES.items()} | {
        f"/page/{name}": file for name, file in by_name.items()
    }
