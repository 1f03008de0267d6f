"""Write the generated parts of the Helm chart: python scripts/helm_chart.py.

The profiles are copies of those in build/profiles. The schema of the values is generated from
values.yaml and from the types of the profiles. The table in the chart's README is generated from
the comments in values.yaml.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml

from nemotron_build.profile import Profile, shipped_profiles
from nemotron_gateway.settings import GatewaySettings

ROOT = Path(__file__).parents[1]
CHART = ROOT / "helm" / "nemotron"
PROFILES = ROOT / "build" / "profiles"
START, END = "<!-- values -->\n", "<!-- end -->\n"

QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTP]i?)?$"}
CPU = {"anyOf": [QUANTITY, {"type": "number", "exclusiveMinimum": 0}]}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
ID = {"type": ["integer", "null"], "minimum": 0}
DIGEST = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
POD_SPEC = (
    *("activeDeadlineSeconds", "affinity", "automountServiceAccountToken", "containers"),
    *("dnsConfig", "dnsPolicy", "enableServiceLinks", "ephemeralContainers", "hostAliases"),
    *("hostIPC", "hostNetwork", "hostPID", "hostUsers", "hostname", "hostnameOverride"),
    *("imagePullSecrets", "initContainers", "nodeName", "nodeSelector", "os", "overhead"),
    *("preemptionPolicy", "priority", "priorityClassName", "readinessGates", "resourceClaims"),
    *("resources", "restartPolicy", "runtimeClassName", "schedulerName", "schedulingGates"),
    *("schedulingGroup", "securityContext", "serviceAccount", "serviceAccountName"),
    *("setHostnameAsFQDN", "shareProcessNamespace", "subdomain", "terminationGracePeriodSeconds"),
    *("tolerations", "topologySpreadConstraints", "volumes"),
)
"""Fields of a pod's specification in all versions of Kubernetes that the chart knows."""
OBJECTS = {"type": "array", "items": {"type": "object"}}
NAMES = {"type": "array", "items": {"type": "string", "minLength": 1}}
COUNT = {"type": "integer", "minimum": 0}
POSITIVE = {"type": "integer", "minimum": 1}
AMOUNTS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"cpu": CPU, "memory": QUANTITY, "ephemeral-storage": QUANTITY},
}
RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"requests": AMOUNTS, "limits": AMOUNTS},
}
WITH_NAMES = ("containers", "ephemeralContainers", "initContainers")
CONTAINERS = {"type": "array", "items": {"type": "object", "required": ["name"]}}
OVERLAY = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "metadata": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"labels": STRINGS, "annotations": STRINGS},
        },
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {name: CONTAINERS if name in WITH_NAMES else {} for name in POD_SPEC},
        },
    },
}
CHART_SETTINGS = ("triton", "address", "port", "tokenizer", "api_keys_file")
"""Settings of the gateway that the chart decides itself."""
BY_NAME: dict[str, Any] = {
    "podLabels": STRINGS,
    "podOverlay": OVERLAY,
    "env": OBJECTS,
    "envFrom": OBJECTS,
    "extraVolumes": OBJECTS,
    "extraVolumeMounts": OBJECTS,
    "resources": RESOURCES,
    "nodeSelector": STRINGS,
    "annotations": STRINGS,
    "tolerations": OBJECTS,
    "affinity": {"type": "object"},
    "replicas": COUNT,
    "preStopSeconds": COUNT,
}
BY_PATH: dict[str, Any] = {
    "address": {"enum": ["0.0.0.0", "::"]},  # noqa: S104  # what a pod must listen on
    "profile": {"enum": shipped_profiles()},
    "image.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "image.pullSecrets": NAMES,
    "image.digests": {"type": "object", "additionalProperties": DIGEST},
    "podSecurityContext.runAsUser": ID,
    "podSecurityContext.runAsGroup": ID,
    "podSecurityContext.fsGroup": ID,
    "podSecurityContext.fsGroupChangePolicy": {"enum": ["OnRootMismatch", "Always", None]},
    "podSecurityContext.seccompProfile": {"type": ["object", "null"]},
    "preflight": {"enum": ["none", "namespace", "cluster"]},
    "convert.place": {"enum": ["job", "server"]},
    "autoscaling.scaleUpSeconds": {**POSITIVE, "maximum": 1800},
    "image.repository": {"type": "string", "minLength": 1},
    "storage.size": QUANTITY,
    "storage.accessMode": {"enum": ["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]},
    "model.sizeGiB": {"type": "number", "exclusiveMinimum": 0},
    "model.source.path": {"type": "string", "pattern": "^(/.+)?$"},
    "model.source.s3.url": {"type": "string", "pattern": "^(s3://.+)?$"},
    "model.source.s3.endpoint": {"type": "string", "pattern": "^(https?://.+)?$"},
    "model.source.huggingFace.endpoint": {"type": "string", "pattern": "^(https?://.+)?$"},
    "convert.options": NAMES,
    "build.wait": COUNT,
    "server.readGiBPerSecond": {"type": "number", "exclusiveMinimum": 0},
    "server.sharedMemory": QUANTITY,
    "server.multiNode.rdmaCount": POSITIVE,
    "gateway.placement": {"enum": ["own", "beside"]},
    "gateway.service.type": {"enum": ["ClusterIP", "LoadBalancer", "NodePort"]},
    "httpRoute.parentRefs": OBJECTS,
    "httpRoute.hostnames": NAMES,
    "autoscaling.kind": {"enum": ["none", "hpa", "keda"]},
    "autoscaling.minReplicas": POSITIVE,
    "autoscaling.maxReplicas": POSITIVE,
    "autoscaling.requestsPerReplica": POSITIVE,
    "monitoring.scrape": {"enum": ["none", "podMonitor", "serviceMonitor"]},
    "monitoring.interval": {"type": "string", "pattern": "^[0-9]+(s|m)$"},
    "monitoring.labels": STRINGS,
    "networkPolicy.monitoringNamespace": STRINGS,
    "networkPolicy.gatewayFrom": OBJECTS,
    "networkPolicy.downloadTo": OBJECTS,
    "networkPolicy.downloadPorts": {"type": "array", "minItems": 1, "items": POSITIVE},
    "podDisruptionBudget.maxUnavailable": COUNT,
}
"""Schemas of values whose default does not determine the type."""


def schema(values: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of the values. It refuses a key that values.yaml does not have."""
    override, definitions = _override()
    root = _schema(values, "")
    root["properties"]["profileOverride"] = override
    gateway = _optional(GatewaySettings.model_json_schema())
    definitions |= {f"Gateway{name}": part for name, part in gateway.pop("$defs").items()}
    gateway["properties"] = {
        name: json.loads(json.dumps(part).replace("/$defs/", "/$defs/Gateway"))
        for name, part in gateway["properties"].items()
        if name not in CHART_SETTINGS
    }
    root["properties"]["gateway"]["properties"]["settings"] = gateway
    root["properties"]["global"] = {"type": "object"}  # Helm adds this key for subcharts
    return {"$schema": "http://json-schema.org/draft-07/schema#", **root, "$defs": definitions}


def _schema(value: Any, path: str) -> dict[str, Any]:
    known = BY_PATH.get(path) or BY_NAME.get(path.rpartition(".")[2])
    if known is not None:
        return dict(known)
    match value:
        case dict():
            properties = {
                name: _schema(child, f"{path}.{name}".lstrip(".")) for name, child in value.items()
            }
            return {"type": "object", "additionalProperties": False, "properties": properties}
        case bool():
            return {"type": "boolean"}
        case str():
            return {"type": "string"}
    raise TypeError(f"{path}: add its schema to BY_PATH")


def _override() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the schema of `profileOverride` and its definitions.

    An override has any keys of a profile of one lane, except `lane` itself.
    """
    schemas, definitions = [], {}
    for profile_type in get_args(Profile):
        profile = _optional(profile_type.model_json_schema())
        definitions |= profile.pop("$defs")
        profile["properties"].pop("lane")
        schemas.append(profile)
    return {"anyOf": schemas}, dict(sorted(definitions.items()))


def _optional(part: Any) -> Any:
    """Return a schema, or a part of one, in which no key is required."""
    if isinstance(part, dict):
        return {
            name: _optional(child)
            for name, child in part.items()
            if name not in ("required", "title", "description", "prefixItems")
        }
    return [_optional(child) for child in part] if isinstance(part, list) else part


def table(text: str) -> str:
    """Return a Markdown table of the values in values.yaml: name, default and comment."""
    rows = ["| value | default | |", "|---|---|---|"]
    rows += [f"| `{path}` | `{default}` | {note} |" for path, default, note in _leaves(text)]
    return "\n".join(rows) + "\n"


def _leaves(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the path, the default and the comment of each value.

    A line `key:` without a value opens a level, except in front of a list.
    """
    path: list[str] = []
    comment: list[str] = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if note := re.fullmatch(r"\s*# (.*)", line):
            comment.append(note[1])
        elif key := re.fullmatch(r"( *)([A-Za-z0-9]+):(?: (.+))?", line):
            path = [*path[: len(key[1]) // 2], key[2]]
            opens = key[3] is None and not re.match(r"\s*- ", lines[number + 1])
            if opens and path[-1] == "resources":
                yield ".".join(path), "see values.yaml", " ".join(comment)
            elif not opens and "resources" not in path:
                default = key[3] or lines[number + 1].strip().removeprefix("- ")
                yield ".".join(path), default, " ".join(comment)
            if not opens or path[-1] == "resources":
                comment = []
        elif not line:
            comment = []


def files() -> dict[Path, str]:
    """Return the path and the text of each file that this script writes."""
    text = (CHART / "values.yaml").read_text()
    texts = {CHART / "profiles" / path.name: path.read_text() for path in PROFILES.glob("*.yaml")}
    texts[CHART / "values.schema.json"] = json.dumps(schema(yaml.safe_load(text)), indent=2) + "\n"
    readme = (CHART / "README.md").read_text()
    before, _, rest = readme.partition(START)
    texts[CHART / "README.md"] = before + START + table(text) + END + rest.partition(END)[2]
    return texts


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
    sys.exit(0)
