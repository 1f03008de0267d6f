"""The routes of files and batches, and what answers them while no folder is set."""

from __future__ import annotations

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from nemotron_core.openai.errors import HttpError
from nemotron_gateway.request_record import RequestRecord

ROUTES = {
    ("POST", "/v1/files"): "Upload the requests of a batch, as a form",
    ("GET", "/v1/files"): "The files of this key",
    ("GET", "/v1/files/{id}"): "The description of a file",
    ("GET", "/v1/files/{id}/content"): "The content of a file",
    ("DELETE", "/v1/files/{id}"): "Delete a file",
    ("POST", "/v1/batches"): "Run a file of requests in the background",
    ("GET", "/v1/batches"): "The batches of this key",
    ("GET", "/v1/batches/{id}"): "A batch: its status, its counts and its files",
    ("POST", "/v1/batches/{id}/cancel"): "Cancel a batch",
}
"""What each method of each path does."""


async def answer_off(_request: Request, _record: RequestRecord) -> Response:
    """Answer that nothing is stored here."""
    raise HttpError(
        HTTPStatus.NOT_FOUND,
        "files and batches are off: start the gateway with --files FOLDER, or set files.folder in "
        "its settings",
        code="files_off",
    )
