"""A stand-in for a Kubernetes API server, as far as `helm install --dry-run=server` asks it.

It answers which kinds there are and which objects, and nothing else: nothing is created.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Object = dict[str, Any]
NAMESPACE = "models"
CLUSTER_WIDE = ("Node", "StorageClass", "PriorityClass", "RuntimeClass", "IngressClass")
BUILT_IN = {
    "v1": (
        *("ServiceAccount", "Secret", "PersistentVolumeClaim", "Service", "Node", "ConfigMap"),
        *("Pod", "Namespace"),
    ),
    "apps/v1": ("StatefulSet", "Deployment"),
    "batch/v1": ("Job",),
    "policy/v1": ("PodDisruptionBudget",),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "storage.k8s.io/v1": ("StorageClass",),
    "scheduling.k8s.io/v1": ("PriorityClass",),
    "node.k8s.io/v1": ("RuntimeClass",),
    "networking.k8s.io/v1": ("IngressClass", "Ingress", "NetworkPolicy"),
}


def resource(kind: str) -> str:
    """Return the name of a kind in paths."""
    name = kind.lower()
    if name.endswith("y"):
        return name[:-1] + "ies"
    return name + ("es" if name.endswith("s") else "s")


def named(api: str, kind: str, name: str, **content: Any) -> Object:
    """Return an object, which the release `demo` may have made."""
    owner = {"meta.helm.sh/release-name": "demo", "meta.helm.sh/release-namespace": NAMESPACE}
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    metadata = {"name": name, "labels": labels, "annotations": owner}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **content}


def secret(name: str, *keys: str) -> Object:
    return named("v1", "Secret", name, data=dict.fromkeys(keys, "eA=="))


@contextmanager
def api_server(*objects: Object, kinds: dict[str, tuple[str, ...]] | None = None) -> Iterator[str]:
    """Yield the URL of a cluster with the objects, and with kinds besides the built-in ones."""
    account = named("v1", "ServiceAccount", "default")
    handler = type("Handler", (_Handler,), {})
    handler.kinds = BUILT_IN | (kinds or {})  # type: ignore[attr-defined]
    handler.objects = (account, *objects)  # type: ignore[attr-defined]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    kinds: dict[str, tuple[str, ...]]
    objects: tuple[Object, ...]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # the library requires this name
        path = self.path.partition("?")[0].strip("/")
        answer = self._discovery(path) or self._found(path)
        status = HTTPStatus.OK if answer else HTTPStatus.NOT_FOUND
        missing = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": 404}
        content = json.dumps(answer or missing | {"reason": "NotFound"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _discovery(self, path: str) -> Object | None:
        groups = [api.split("/") for api in self.kinds if "/" in api]
        if path == "version":
            return {"major": "1", "minor": "33", "gitVersion": "v1.33.0"}
        if path == "api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "apis":
            listed = [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                    "preferredVersion": {"groupVersion": f"{group}/{version}", "version": version},
                }
                for group, version in groups
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        api = path.removeprefix("apis/").removeprefix("api/")
        if api not in self.kinds:
            return None
        resources = [
            {
                "name": resource(kind),
                "kind": kind,
                "namespaced": kind not in CLUSTER_WIDE,
                "verbs": ["get", "list"],
            }
            for kind in self.kinds[api]
        ]
        return {"kind": "APIResourceList", "groupVersion": api, "resources": resources}

    def _found(self, path: str) -> Object | None:
        for entry in self.objects:
            api, kind, name = entry["apiVersion"], entry["kind"], entry["metadata"]["name"]
            place = f"{'api' if api == 'v1' else 'apis'}/{api}"
            if kind not in CLUSTER_WIDE:
                place += f"/namespaces/{NAMESPACE}"
            if path == f"{place}/{resource(kind)}/{name}":
                return entry
        for api, kinds in self.kinds.items():
            for kind in kinds:
                if path.startswith(f"api{'' if api == 'v1' else 's'}/{api}/") and path.endswith(
                    f"/{resource(kind)}"
                ):
                    items = [entry for entry in self.objects if entry["kind"] == kind]
                    return {
                        "kind": f"{kind}List",
                        "apiVersion": api,
                        "metadata": {},
                        "items": items,
                    }
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
