"""Which Triton may serve others than this machine: the floor of its releases."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from packaging.version import InvalidVersion, Version

from nemotron_build.lanes.deployment import Deployment

SAFE_RELEASE = "25.08"
"""First of NVIDIA's monthly releases with the fixes of 2025 to Triton's Python backend."""
SAFE_VERSION = "2.60"
"""Triton's own version in that release."""
WHEEL_VERSION = "2.51"
"""Triton's own version in the wheel nvidia-pytriton that pyproject.toml pins."""
VERSION_FILE = "TRITON_VERSION"
RELEASE_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"
"""Variable with the release in NVIDIA's images."""


def triton_version(installation: Path | None) -> str | None:
    """Return the version of an installed Triton, or its release, or `None` if it does not say.

    `None` as the installation means the wheel.
    """
    if installation is None:
        return WHEEL_VERSION
    try:
        return (installation / VERSION_FILE).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return os.environ.get(RELEASE_VARIABLE)


def exposure(deployment: Deployment, address: str) -> str | None:
    """Return why a Triton should not listen on `address`, or `None` if it may."""
    version = triton_version(deployment.triton)
    if _is_loopback(address) or (version is not None and _is_safe(version)):
        return None
    return (
        f"Triton {version or 'of an unknown version'} listens on {address}: before {SAFE_RELEASE}"
        f" ({SAFE_VERSION}) it lacks security fixes. Let only clients that you trust reach its"
        " ports, with the gateway in front, or use NVIDIA's tritonserver as `triton` in the profile"
    )


def _is_safe(version: str) -> bool:
    try:
        found = Version(version)
    except InvalidVersion:
        return False
    return found >= Version(SAFE_RELEASE if found.major > 2 else SAFE_VERSION)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
