"""The LoRA adapters of the vLLM lane, which vLLM applies to each request by its adapter's name."""

from __future__ import annotations

import importlib
import itertools
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemotron_core.engine_settings import LoraLimits
from nemotron_core.errors import NemotronError
from nemotron_engine.adapters.peft_folder import check_peft_folder


class VllmLoras:
    """See `LoraStore`. No request meets an adapter that vLLM has not loaded: that would end all."""

    def __init__(self, engine: Any, model: Path, limits: LoraLimits) -> None:
        self._engine = engine
        self._model = model
        self._limits = limits
        self._requests: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    @property
    def names(self) -> list[str]:
        """See `LoraStore`."""
        return list(self._requests)

    def request(self, name: str) -> Any:
        """Return what vLLM takes with a request to this adapter."""
        return self._requests[name]

    def load(self, name: str, folder: Path) -> None:
        """See `LoraStore`."""
        if len(self._requests) >= self._limits.max_adapters:
            raise NemotronError(
                f"the engine holds {self._limits.max_adapters} adapters already",
                remedy="unload one, or raise lora.max_adapters in the profile and build again",
            )
        check_peft_folder(folder, self._model, self._limits.max_rank)
        lora: Any = importlib.import_module("vllm.lora.request")
        request = lora.LoRARequest(name, next(self._numbers), str(folder.resolve()))
        try:
            self._engine.add_lora(request)
        except Exception as error:  # whatever it is, the engine goes on without this adapter
            with suppress(Exception):  # it may have got as far as its place
                self._engine.remove_lora(request.lora_int_id)
            raise NemotronError(f"vLLM cannot load it: {error}", where=folder) from error
        self._requests[name] = request

    def unload(self, name: str) -> None:
        """See `LoraStore`."""
        self._engine.remove_lora(self._requests.pop(name).lora_int_id)
