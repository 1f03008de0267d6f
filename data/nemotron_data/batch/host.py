"""What a job takes from the program that it is a part of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nemotron_data.batch.interruption import Interruption, Signals
from nemotron_data.batch.progress import Display, Progress
from nemotron_data.batch.result_line import FailureLine, failure_line
from nemotron_data.transport.factory import open_transport
from nemotron_data.transport.protocol import API_KEYS, Transport


@dataclass(frozen=True)
class Host:
    """What a job takes from its program. The defaults are those of a command."""

    key_variables: tuple[str, ...] = API_KEYS
    """Environment variables with the API key, for the default transport."""
    transport: Callable[[str], Transport] | None = None
    """Opens the connection to a server by its URL, inside the run's event loop."""
    progress: Callable[[str], Progress] = Display
    """Makes the progress of a run, by its title."""
    interruption: Callable[[], Interruption] = Signals
    failure_line: FailureLine = failure_line

    def open_transport(self, url: str, timeout: float) -> Transport:
        """Return a connection to a server. `timeout` is in seconds for one request."""
        if self.transport is not None:
            return self.transport(url)
        return open_transport(url, timeout=timeout, key_variables=self.key_variables)
