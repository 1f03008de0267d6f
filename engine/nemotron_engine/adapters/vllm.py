"""The adapter of the vLLM lane: vLLM's engine, stepped in this process.

vLLM starts a process for each further rank itself. Text never reaches it: the tokenizer is loaded
all the same, because without one vLLM refuses guides, ignores bad words silently, and does not
check token ids, of which a wrong one ends the engine for everybody (seen in vLLM 0.32).
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemotron_core.engine_settings import VllmEngineSettings
from nemotron_core.errors import ErrorKind, NemotronError
from nemotron_core.launcher import first_machine, own_rank
from nemotron_engine.protocol import FEATURES, GUIDE_TYPES, Capabilities, Chunk, Request
from nemotron_engine.worker_watch import workers_watched

LIBRARY = "vllm"
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
"""No telemetry, no network, the scheduler in this process, and a sampler that compiles nothing."""
CPU_ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""On a CPU, no compiler at the first request with log-probabilities (a minute), and threads that
are bound to no core, where they would wait for whatever else runs on it."""
PORT = "MASTER_PORT"
"""Environment variable with the port at which the machines meet, as PyTorch reads it."""
DEFAULT_PORT = 29501
MAX_LOG_PROBS = 20
MAX_TEMPERATURE = 2.0
"""Limits of vLLM."""
FINISH_REASONS = {"stop": "stop", "length": "length"}
GUIDE_FIELDS = {"json_schema": "json", "ebnf_grammar": "grammar"}
"""Names that vLLM has for a guide; the others are the same."""
DTYPES = {"bf16": "auto", "fp8": "fp8"}
"""vLLM's names of the KV cache's types."""


class VllmAdapter:
    """See `Adapter`. vLLM computes in `step`, all requests together, so it is stepped.

    Raises `NemotronError` if the folder is no engine of this lane, or cannot be loaded.
    """

    wake_file = None
    capabilities = Capabilities(
        features=list(FEATURES),
        guide_types=list(GUIDE_TYPES),
        max_log_probs=MAX_LOG_PROBS,
        max_temperature=MAX_TEMPERATURE,
    )

    def __init__(self, folder: Path) -> None:
        self.settings = VllmEngineSettings.read(folder)
        _set_environment(self.settings)
        self._api: Any = importlib.import_module(LIBRARY)
        self._sampling: Any = importlib.import_module(f"{LIBRARY}.sampling_params")
        errors = importlib.import_module(f"{LIBRARY}.exceptions")
        self._refusals = (TypeError, ValueError, getattr(errors, "VLLMClientError", ValueError))
        self.library = f"vllm {self._api.__version__}"
        arguments = engine_arguments(folder, self.settings, own_rank())
        try:
            self._engine = self._api.LLMEngine.from_engine_args(self._api.EngineArgs(**arguments))
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise NemotronError(
                str(error), where=folder, remedy="see the engine's log for what vLLM says"
            ) from error
        self._requests: dict[str, Request] = {}

    def ask(self, request: Request) -> None:
        """See `Adapter`. vLLM compiles the guide here, and refuses one that is wrong."""
        name = request.key.hex()
        prompt = {"prompt_token_ids": request.input_ids}
        try:
            params = self._params(request)
            self._engine.add_request(name, prompt, params, priority=request.priority)
        except self._refusals as error:
            raise NemotronError(f"the engine refuses the request: {error}") from error
        self._requests[name] = request

    def cancel(self, key: bytes) -> None:
        """See `Adapter`."""
        if self._requests.pop(key.hex(), None) is not None:
            self._engine.abort_request([key.hex()])

    def collect(self) -> Iterable[Chunk]:
        """See `Adapter`."""
        chunks = []
        for output in self._engine.step():
            if (request := self._requests.get(output.request_id)) is not None:
                chunks.append(_chunk(request, output))
                if output.finished:
                    del self._requests[output.request_id]
        return chunks

    def kv_cache_usage(self) -> float | None:
        """See `Adapter`."""
        return float(self._engine.engine_core.engine_core.scheduler.kv_cache_manager.usage)

    def close(self) -> None:
        """See `Adapter`."""
        self._engine.engine_core.shutdown()

    def _params(self, request: Request) -> Any:
        fields: dict[str, Any] = {
            "max_tokens": request.max_tokens,
            "min_tokens": request.min_tokens,
            "stop_token_ids": request.end_ids or None,
            "ignore_eos": True,  # the end tokens are named
            "repetition_penalty": request.repetition_penalty,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "logit_bias": request.bias or None,
            "detokenize": False,
            "output_kind": self._sampling.RequestOutputKind.DELTA,
            "temperature": request.temperature,
        }
        if request.temperature > 0:
            fields |= {
                "top_k": request.top_k,
                "top_p": request.top_p or 1.0,
                "seed": request.seed,
            }
        if request.log_probs or request.top_log_probs:
            fields["logprobs"] = request.top_log_probs
        if request.prompt_log_probs is not None:
            fields["prompt_logprobs"] = request.prompt_log_probs
        if request.guide_type:
            fields["structured_outputs"] = self._guide(request.guide_type, request.guide)
        params = self._api.SamplingParams(**fields)
        if request.bad_sequences:
            # Only strings are public. They would have to survive vLLM's tokenizer.
            params._bad_words_token_ids = request.bad_sequences
        return params

    def _guide(self, guide_type: str, guide: str) -> Any:
        params = self._sampling.StructuredOutputsParams
        if guide_type == "json":
            return params(json_object=True)
        return params(**{GUIDE_FIELDS.get(guide_type, guide_type): guide})


def work(folder: Path, place: tuple[int, int]) -> None:
    """Compute on this machine for the engine on the first one, until that ends.

    `place` is this process's rank and the number of machines. Raises `NemotronError` if the engine
    is for another number of them.
    """
    settings = VllmEngineSettings.read(folder)
    _set_environment(settings)
    arguments = engine_arguments(folder, settings, place)
    api: Any = importlib.import_module(LIBRARY)
    executors: Any = importlib.import_module(f"{LIBRARY}.v1.executor.multiproc_executor")
    config = api.EngineArgs(**arguments).create_engine_config(headless=True)
    # As `vllm serve --headless` does, whose handlers of signals would cut off what drains.
    executor = executors.MultiprocExecutor(config, monitor_workers=False)
    with workers_watched():
        executor.start_worker_monitor(inline=True)


def _set_environment(settings: VllmEngineSettings) -> None:
    is_cpu = settings.kv_cache_tokens is not None
    for name, text in (ENVIRONMENT | (CPU_ENVIRONMENT if is_cpu else {})).items():
        os.environ.setdefault(name, text)


def engine_arguments(
    folder: Path, settings: VllmEngineSettings, place: tuple[int, int] | None
) -> dict[str, Any]:
    """Return the arguments of vLLM's engine on one machine.

    `place` is the rank of this machine's process and the number of machines, or `None` for one.
    """
    arguments: dict[str, Any] = {
        "model": str(folder),
        "tokenizer": str(folder),
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "kv_cache_dtype": DTYPES[settings.kv_cache_dtype],
        "tensor_parallel_size": settings.tp,
        "pipeline_parallel_size": settings.pp,
        "max_model_len": settings.max_seq_len,
        "max_num_seqs": settings.max_batch_size,
        "max_num_batched_tokens": settings.max_num_tokens,
        "max_logprobs": MAX_LOG_PROBS,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "structured_outputs_config": {"backend": "xgrammar"},  # as on the other lanes
        "generation_config": "vllm",  # none of the folder's defaults
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
    }
    if settings.kv_cache_tokens is not None:
        arguments["enforce_eager"] = True
        arguments["kv_cache_memory_bytes"] = (
            settings.kv_cache_tokens * _kv_bytes(folder) // (settings.tp * settings.pp)
        )
    else:
        arguments["gpu_memory_utilization"] = settings.memory_share
    nodes = settings.tp * settings.pp // settings.gpus_per_node
    if (place[1] if place else 1) != nodes:
        raise NemotronError(
            f"the engine is for {nodes} machines, a launcher has started"
            f" {place[1] if place else 'no'} processes",
            remedy="start one on each machine",
        )
    if place is not None:
        arguments |= {
            "distributed_executor_backend": "mp",
            "nnodes": place[1],
            "node_rank": place[0],
            "master_addr": first_machine(),
            "master_port": int(os.environ.get(PORT, DEFAULT_PORT)),
        }
    return arguments


def _kv_bytes(folder: Path) -> int:
    """Return the bytes of the keys and values of one token in BF16, over all ranks."""
    config = json.loads((folder / "config.json").read_bytes())
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    return 2 * 2 * int(config["num_hidden_layers"]) * int(kv_heads) * int(head_size)


def _chunk(request: Request, output: Any) -> Chunk:
    """Return what a step has added to an answer."""
    (answer,) = output.outputs
    ids = list(answer.token_ids)
    chunk = Chunk(request.key, ids)
    if output.finished:
        if answer.finish_reason not in FINISH_REASONS:  # as for a guide that no token fits
            reason = f"vLLM has ended the request: {answer.finish_reason}"
            return Chunk.of_error(request.key, NemotronError(reason, kind=ErrorKind.FAILED))
        chunk.finish_reason = FINISH_REASONS[answer.finish_reason]
    if request.log_probs or request.top_log_probs:
        tables = answer.logprobs or []
        if len(tables) != len(ids):
            raise RuntimeError(f"{len(ids)} tokens have {len(tables)} log-probabilities")
        if request.log_probs:
            chunk.log_probs = [
                float(table[id_].logprob) for table, id_ in zip(tables, ids, strict=True)
            ]
        if request.top_log_probs:
            chunk.top_log_probs = [_best(table, request.top_log_probs) for table in tables]
    if request.prompt_log_probs is not None and output.prompt_logprobs:
        chunk.prompt_log_probs = [
            _own_and_best(table, id_, request.prompt_log_probs)
            for table, id_ in zip(output.prompt_logprobs, request.input_ids, strict=True)
        ]
    return chunk


def _best(table: dict[int, Any], count: int) -> list[tuple[int, float]]:
    """Return the `count` most probable tokens of vLLM's table, the best first.

    The table has the token that was taken too, whatever its rank.
    """
    ranked = sorted(table.items(), key=lambda entry: entry[1].rank)
    return [(id_, float(entry.logprob)) for id_, entry in ranked[:count]]


def _own_and_best(table: dict[int, Any] | None, id_: int, count: int) -> list[tuple[int, float]]:
    if table is None:  # nothing stands before the first token
        return []
    return [(id_, float(table[id_].logprob)), *_best(table, count)]
