"""The endpoints of files and batches of a gateway that has a folder for them."""

from __future__ import annotations

from collections.abc import Mapping

from nemotron_gateway.batches.batches_api import Batches, BatchRequest
from nemotron_gateway.batches.files_api import Files
from nemotron_gateway.batches.routes import ROUTES
from nemotron_gateway.batches.scheduler import Scheduler
from nemotron_gateway.openapi import Access, Endpoint
from nemotron_gateway.reward_api import Handler
from nemotron_gateway.settings import GatewaySettings


def endpoints(settings: GatewaySettings, scheduler: Scheduler) -> list[Endpoint]:
    """Return an endpoint for each of the `ROUTES`."""
    files, batches = Files(settings, scheduler), Batches(settings, scheduler)
    handlers: Mapping[tuple[str, str], Handler] = {
        ("POST", "/v1/files"): files.create,
        ("GET", "/v1/files"): files.list,
        ("GET", "/v1/files/{id}"): files.one,
        ("GET", "/v1/files/{id}/content"): files.content,
        ("DELETE", "/v1/files/{id}"): files.delete,
        ("POST", "/v1/batches"): batches.create,
        ("GET", "/v1/batches"): batches.list,
        ("GET", "/v1/batches/{id}"): batches.one,
        ("POST", "/v1/batches/{id}/cancel"): batches.cancel,
    }
    bodies = {("POST", "/v1/batches"): BatchRequest}
    return [
        Endpoint(*route, handlers[route], summary, bodies.get(route), access=Access.USER)
        for route, summary in ROUTES.items()
    ]
