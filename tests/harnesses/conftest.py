"""Real harnesses on the real stack. `make test-eval` installs them and names their folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.conftest import gateway, triton

__all__ = ["gateway", "triton"]


@pytest.fixture(scope="session")
def environments(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.option.harnesses).absolute()
