"""A file that comes as `multipart/form-data`, written to the disk while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from nemotron_core.openai.errors import HttpError, bad_request

FORM_BYTES = 64 << 10
"""Number of bytes of a form besides its file."""
MAX_NAME = 255
"""Length in characters of a file's name; longer ones are cut."""


@dataclass
class Upload:
    """What a form has brought."""

    filename: str | None = None
    """Name of the file, or `None` if the form has none."""
    size: int = 0
    fields: dict[str, str] = field(default_factory=dict)


async def receive(request: Request, path: Path, *, limit: int, seconds: float) -> Upload:
    """Write the form's file to `path`, and return it with the form's other fields.

    Raises `HttpError` if the request is no form, if the file has more than `limit` bytes, or if
    nothing comes for `seconds`.
    """
    media_type, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if media_type != b"multipart/form-data" or not boundary:
        raise HttpError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "send the file as multipart/form-data, with the fields purpose and file",
        )
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit + FORM_BYTES:
        raise _too_large(limit)
    with path.open("xb") as file:
        form = _Form(boundary, file, limit)
        async for data in _pieces(request, seconds):
            form.write(data)
        return form.end()


async def _pieces(request: Request, seconds: float) -> AsyncIterator[bytes]:
    pieces = request.stream().__aiter__()
    while True:
        try:
            yield await asyncio.wait_for(anext(pieces), seconds)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError as error:
            message = f"nothing of the file has come for {seconds:g} s"
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, message, closes=True) from error


class _Form:
    """The parts of a form, as the parser finds them."""

    def __init__(self, boundary: bytes, file: BinaryIO, limit: int) -> None:
        self._upload = Upload()
        self._file, self._limit = file, limit
        self._form_bytes = 0
        self._header = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None
        """Name of the field that is being read; `None` for the file and what is left out."""
        self._is_file = self._is_whole = False
        self._text = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_header,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        """Take the next piece of the body."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise bad_request(f"the form is wrong: {error}") from error

    def end(self) -> Upload:
        """Return what has come."""
        if not self._is_whole:
            raise bad_request("the form ends before its last boundary")
        return self._upload

    def _begin_part(self) -> None:
        self._headers = {}
        self._text.clear()
        self._field, self._is_file = None, False

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._count(end - start)

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._count(end - start)

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name", b"").decode(errors="replace")
        if name == "file":
            if self._upload.filename is not None:
                raise bad_request("the form has two files: send one at a time", "file")
            self._is_file = True
            filename = options.get(b"filename", b"file").decode(errors="replace")
            self._upload.filename = filename.replace("\0", "")[-MAX_NAME:]
        else:
            self._field = name

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            self._count(end - start)
            self._text += data[start:end]
            return
        self._upload.size += end - start
        if self._upload.size > self._limit:
            raise _too_large(self._limit)
        self._file.write(data[start:end])

    def _end_part(self) -> None:
        if self._field is not None:
            self._upload.fields[self._field] = self._text.decode(errors="replace")

    def _end(self) -> None:
        self._is_whole = True

    def _count(self, size: int) -> None:
        self._form_bytes += size
        if self._form_bytes > FORM_BYTES:
            message = f"the form has more than {FORM_BYTES} bytes besides its file"
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


def _too_large(limit: int) -> HttpError:
    return HttpError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the file has more than {limit} bytes: split it into several batches",
        code="file_too_large",
    )
