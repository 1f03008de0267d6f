"""The description of the API in `/openapi.json`, made from the endpoints and their schemas."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from nemotron_gateway.request_record import RequestRecord

REF = "#/components/schemas/{model}"


class Access(Enum):
    """Who may use an endpoint of a gateway with API keys."""

    OPEN = "everybody"
    USER = "holders of any key"
    ADMIN = "holders of admin keys; without keys nobody"


@dataclass(frozen=True)
class Endpoint:
    """One method of one path, and what answers it."""

    method: str
    path: str
    handler: Callable[[Request, RequestRecord], Awaitable[Response]]
    summary: str = ""
    """One line for the description of the API, which leaves an endpoint without it out."""
    body: type[BaseModel] | None = None
    """Schema of the request's JSON body."""
    access: Access = Access.OPEN
    """Who may send requests, if the gateway has API keys."""


def describe(endpoints: Sequence[Endpoint], *, model: str, has_keys: bool) -> dict[str, Any]:
    """Return the description as OpenAPI 3.1. `model` is its title and the `name` in paths."""
    documented = [endpoint for endpoint in endpoints if endpoint.summary]
    bodies = [endpoint.body for endpoint in documented if endpoint.body]
    _, schemas = models_json_schema([(body, "validation") for body in bodies], ref_template=REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": model,
            "version": version("nemotron-triton"),
            "description": "OpenAI's API and the model card's, in front of Triton.",
        },
        "paths": {
            re.sub(r":\w+}", "}", endpoint.path): {
                endpoint.method.lower(): _operation(endpoint, model, has_keys)
            }
            for endpoint in documented
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint, model: str, has_keys: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "security": [{"key": []}] if endpoint.access is not Access.OPEN and has_keys else [],
        "responses": {"200": {"description": "OK"}},
    }
    if parameters := re.findall(r"{(\w+)[:}]", endpoint.path):
        operation["parameters"] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"const": model} if name == "name" else {"type": "string"},
            }
            for name in parameters
        ]
    if endpoint.body:
        schema = {"$ref": REF.format(model=endpoint.body.__name__)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
        operation["responses"]["default"] = {"description": "An error: status and message"}
    return operation
