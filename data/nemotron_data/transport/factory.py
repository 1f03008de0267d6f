"""The choice of a transport by the scheme of a server's URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from nemotron_core.errors import NemotronError
from nemotron_data.transport.protocol import Transport, api_key


def scheme_of(url: str) -> str:
    """Return the scheme of a server's URL. Raises `NemotronError` if it is not one."""
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https")
        port = parts.port  # raises ValueError if it is not a number
        if parts.hostname and (is_http or (parts.scheme in ("grpc", "grpcs") and port)):
            return parts.scheme
    except ValueError:
        pass
    raise NemotronError(
        "not the URL of a server",
        where=url,
        remedy="give http://HOST:1424 of the gateway or grpc://HOST:8001 of Triton",
    )


def server_urls(values: list[str]) -> list[str]:
    """Return the URLs of servers; `@FILE` stands for the lines of a file.

    Raises `NemotronError` if one is not the URL of a server, or if the file cannot be read.
    """
    urls: list[str] = []
    for value in values:
        if value.startswith("@"):
            try:
                lines = Path(value[1:]).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise NemotronError(f"cannot read: {error}", where=value) from error
            urls += [line.strip() for line in lines if line.strip() and line.strip()[0] != "#"]
        else:
            urls.append(value)
    for url in urls:
        scheme_of(url)
    if not urls:
        raise NemotronError("there is no server", where=" ".join(values))
    return list(dict.fromkeys(urls))


def open_transport(url: str, *, timeout: float, key_variables: tuple[str, ...]) -> Transport:
    """Return a transport to an OpenAI-compatible server (`http(s)://`) or Triton (`grpc(s)://`).

    `timeout` is in seconds for one request. The API key is the value of the first of the
    environment variables `key_variables` that is set. Raises `NemotronError` for any other URL.
    Must be called inside a running event loop.
    """
    key = api_key(key_variables)
    scheme = scheme_of(url)
    # Each transport needs a library of its own, so it is imported only where it is used.
    if scheme in ("grpc", "grpcs"):
        from nemotron_data.transport.triton import TritonTransport  # noqa: PLC0415

        address, secure = urlsplit(url).netloc, scheme == "grpcs"
        return TritonTransport(address, secure=secure, api_key=key, timeout=timeout)
    from nemotron_data.transport.openai import OpenAITransport  # noqa: PLC0415

    return OpenAITransport(url, key, key_variables=key_variables, timeout=timeout)
