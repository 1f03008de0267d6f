"""How an error's text begins, for clients: inside a gRPC stream Triton loses the status code.

(Its header `triton_grpc_error` would keep it, but takes the server down in 2.51 when a client has
cancelled a stream before.)
"""

from __future__ import annotations

REFUSED = "request refused: "
SHUTTING_DOWN = "server shutting down: "
OVERLOADED = "server overloaded: "
TIMED_OUT = "deadline exceeded: "
FAILED = "engine failed: "
