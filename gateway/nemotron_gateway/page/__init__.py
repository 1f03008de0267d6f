"""The chat page and the page of the API: static files, which load nothing from other servers.

`vendor/` has the libraries of others, as their npm packages have them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from nemotron_gateway.request_record import RequestRecord

FOLDER = Path(__file__).parent
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGES = {"/": "index.html", "/docs": "docs.html", "/favicon.ico": "icon.svg"}
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'none'",
        *(f"{source}-src 'self'" for source in ("script", "style", "img", "connect")),
        *(f"{target} 'none'" for target in ("base-uri", "form-action", "frame-ancestors")),
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    ]
)
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
"""Headers of every response."""


@dataclass(frozen=True)
class File:
    """A static file."""

    data: bytes
    media_type: str

    async def respond(self, request: Request, _record: RequestRecord) -> Response:
        """Answer with the file, or with 304 if the browser's copy has the same hash."""
        tag = f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'
        headers = {
            "Cache-Control": "no-cache",
            "ETag": tag,
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        }
        if request.headers.get("if-none-match") == tag:
            return Response(b"", HTTPStatus.NOT_MODIFIED, headers, self.media_type)
        return Response(self.data, HTTPStatus.OK, headers, self.media_type)


def files() -> dict[str, File]:
    """Return the files by URL path: the pages, and below `/page/` all files that they load."""
    by_name = {
        path.relative_to(FOLDER).as_posix(): File(path.read_bytes(), MEDIA_TYPES[path.suffix])
        for path in FOLDER.rglob("*")
        if path.suffix in MEDIA_TYPES
    }
    return {path: by_name[name] for path, name in PAGES.items()} | {
        f"/page/{name}": file for name, file in by_name.items()
    }
