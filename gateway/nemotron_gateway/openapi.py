"""The API's description, made from what is checked: /openapi.json."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from nemotron_core.openai.schema import ChatRequest, CompletionRequest
from nemotron_gateway.nemo_api import KEYS
from nemotron_gateway.settings import GatewaySettings

REF = "#/components/schemas/{model}"
OF_TYPE = {bool: "boolean", int: "integer", float: "number"}


def describe(settings: GatewaySettings, *, closed: bool) -> dict[str, Any]:
    """OpenAPI 3.1. `closed`: a key is needed."""
    schemas: dict[str, Any] = {"GenerateRequest": _generate_request(settings)}
    for kind in (ChatRequest, CompletionRequest):
        schemas |= _schemas(kind)
    keyed: list[dict[str, Any]] = [{"key": []}] if closed else []
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nemotron-4-340B-Instruct",
            "version": version("nemotron-triton"),
            "description": "OpenAI's API and the model card's, in front of Triton.",
        },
        "paths": {
            "/v1/chat/completions": {
                "post": _operation("The answer to a conversation", "ChatRequest", keyed)
            },
            "/v1/completions": {
                "post": _operation("What follows a prompt", "CompletionRequest", keyed)
            },
            "/v1/models": {"get": _operation("The model", None, keyed)},
            "/v1/models/{name}": {
                "get": _operation("The model, by its name", None, keyed)
                | {
                    "parameters": [
                        {
                            "name": "name",
                            "in": "path",
                            "required": True,
                            "schema": {"const": settings.model},
                        }
                    ]
                }
            },
            "/generate": {
                "put": _operation("The model card's API, as NeMo's", "GenerateRequest", keyed)
            },
            "/health/live": {"get": _operation("200 while the gateway runs", None, [])},
            "/health/ready": {
                "get": _operation("200 if the engine makes a token, else 503", None, [])
            },
            "/metrics": {"get": _operation("For Prometheus", None, [])},
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(summary: str, schema: str | None, keyed: list[dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "security": keyed,
        "responses": {"200": {"description": "OK"}},
    }
    if schema is not None:
        content = {"application/json": {"schema": {"$ref": REF.format(model=schema)}}}
        operation["requestBody"] = {"required": True, "content": content}
        operation["responses"]["default"] = {"description": "An error: status and message"}
    return operation


def _schemas(kind: type[BaseModel]) -> dict[str, Any]:
    schema = kind.model_json_schema(ref_template=REF)
    parts: dict[str, Any] = schema.pop("$defs", {})
    return parts | {kind.__name__: schema}


def _generate_request(settings: GatewaySettings) -> dict[str, Any]:
    strings = {"type": "array", "items": {"type": "string"}}
    properties: dict[str, Any] = {"sentences": strings | {"maxItems": settings.limits.prompts}}
    for name, key in KEYS.items():
        kind: dict[str, Any] = {}
        if isinstance(key.default, list):
            kind = dict(strings)
        elif key.default is not None:
            kind = {"type": OF_TYPE[type(key.default)]}
        properties[name] = kind | {"default": key.default, "description": key.message}
    return {"type": "object", "required": ["sentences"], "properties": properties}
