"""The endpoints of OpenAI's API for files, as far as batches need them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from nemotron_core.errors import NemotronError
from nemotron_core.openai.errors import HttpError, bad_request
from nemotron_gateway.batches.records import Batch, FileObject, new_id, now
from nemotron_gateway.batches.scheduler import Scheduler
from nemotron_gateway.batches.store import FILE, OwnerStore
from nemotron_gateway.batches.upload import Upload, receive
from nemotron_gateway.json_response import JsonResponse
from nemotron_gateway.keys import owner_of
from nemotron_gateway.request_record import RequestRecord
from nemotron_gateway.settings import GatewaySettings

PURPOSE = "batch"
LONGEST_LIST = 10_000
NUMBER = re.compile(r"[1-9][0-9]{0,8}")
"""A number from 1 on that a form or a query may have; `isdigit` takes more than `int` does."""
EXPIRY = "expires_after[seconds]"
"""Name of the form's field with the seconds for which a file stays."""


class Files:
    """The endpoints. A key sees its own files only."""

    def __init__(self, settings: GatewaySettings, scheduler: Scheduler) -> None:
        self._settings, self._scheduler = settings, scheduler

    async def create(self, request: Request, record: RequestRecord) -> Response:
        """Answer `POST /v1/files`."""
        self._check_origin(request)
        store, limits = self._of(record), self._settings.files
        announced = request.headers.get("content-length", "")
        size = min(int(announced), limits.file_bytes) if announced.isdigit() else limits.file_bytes
        store.reserve(size, limits.key_bytes)
        try:
            path = store.new_path()
            try:
                seconds = self._settings.timeouts.body
                upload = await receive(request, path, limit=limits.file_bytes, seconds=seconds)
                file = _describe(upload)
                await asyncio.to_thread(store.add_file, path, file)
            finally:
                path.unlink(missing_ok=True)
        except (OSError, NemotronError) as error:
            raise HttpError(
                HTTPStatus.INSUFFICIENT_STORAGE,
                f"the file cannot be stored: {error}",
                error_type="server_error",
            ) from error
        finally:
            store.release(size)
        return JsonResponse(file)

    async def list(self, request: Request, record: RequestRecord) -> Response:
        """Answer `GET /v1/files`."""
        files = self._of(record).files()
        if purpose := request.query_params.get("purpose"):
            files = [file for file in files if file.purpose == purpose]
        if request.query_params.get("order") == "asc":
            files.reverse()
        return page_of(request, files, LONGEST_LIST)

    async def one(self, request: Request, record: RequestRecord) -> Response:
        """Answer `GET /v1/files/{id}`."""
        return JsonResponse(self._of(record).file(request.path_params["id"]))

    async def content(self, request: Request, record: RequestRecord) -> Response:
        """Answer `GET /v1/files/{id}/content`."""
        store = self._of(record)
        file = store.file(request.path_params["id"])
        # As an attachment of no type: what a model wrote is no page of this server.
        return FileResponse(
            store.content(file.id), media_type="application/octet-stream", filename=file.filename
        )

    async def delete(self, request: Request, record: RequestRecord) -> Response:
        """Answer `DELETE /v1/files/{id}`."""
        file_id = request.path_params["id"]
        self._of(record).delete_file(file_id)
        return JsonResponse({"id": file_id, "object": "file", "deleted": True})

    def _of(self, record: RequestRecord) -> OwnerStore:
        return self._scheduler.store.of(owner_of(record.key))

    def _check_origin(self, request: Request) -> None:
        """Refuse forms that a page of another site sends through its visitor's browser.

        A browser sends them without asking first, unlike JSON.
        """
        origin = request.headers.get("origin")
        if origin is None or {origin, "*"} & set(self._settings.cors_origins):
            return
        if urlsplit(origin).netloc != request.headers.get("host"):
            raise HttpError(
                HTTPStatus.FORBIDDEN,
                f"pages of {origin} cannot send files: name it in the setting cors_origins",
                code="origin_not_allowed",
            )


def _describe(upload: Upload) -> FileObject:
    """Return the file that a form has brought. Raises `HttpError` if it is none for batches."""
    purpose = upload.fields.get("purpose")
    if purpose != PURPOSE:
        raise bad_request(f"purpose is {purpose!r}: files are kept for batches only", "purpose")
    if upload.filename is None:
        raise bad_request("the form has no file", "file")
    if not upload.size:
        raise bad_request("the file is empty", "file")
    created, expires = now(), None
    if (seconds := upload.fields.get(EXPIRY)) is not None:
        if not NUMBER.fullmatch(seconds):
            raise bad_request(f"{EXPIRY} is {seconds[:20]!r}: use a number from 1 on", EXPIRY)
        expires = created + int(seconds)
    return FileObject(
        id=new_id(FILE),
        bytes=upload.size,
        created_at=created,
        filename=upload.filename,
        purpose=PURPOSE,
        expires_at=expires,
    )


def page_of(
    request: Request, items: Sequence[FileObject | Batch], longest: int, default: int = 0
) -> Response:
    """Answer with the part of a list that the request's `after` and `limit` ask for."""
    limit = request.query_params.get("limit", str(default or longest))
    if not NUMBER.fullmatch(limit) or int(limit) > longest:
        raise bad_request(f"limit is {limit[:20]!r}: use a number from 1 to {longest}", "limit")
    if (after := request.query_params.get("after")) is not None:
        names = [item.id for item in items]
        if after not in names:
            raise bad_request(f"after is {after!r}, which is not in the list", "after")
        items = items[names.index(after) + 1 :]
    part = items[: int(limit)]
    return JsonResponse(
        {
            "object": "list",
            "data": part,
            "first_id": part[0].id if part else None,
            "last_id": part[-1].id if part else None,
            "has_more": len(part) < len(items),
        }
    )
