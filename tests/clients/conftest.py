"""The gateway in front of the shared server, as the gateway's own tests have it."""

from __future__ import annotations

from tests.gateway.conftest import gateway, triton

__all__ = ["gateway", "triton"]
