"""A stand-in for TensorRT-LLM's C++ Triton backend, with the CPU engine in place of the GPUs.

Its contract is the backend's: one rank per process under MPI, of which only the first talks to
Triton; no finish reasons; no end token in the output, but stop words; stopping by Triton's request
id.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from mpi4py import MPI

from nemotron_core.errors import NemotronError
from nemotron_engine.cpu import CpuEngine
from nemotron_engine.request import GenerationChunk, GenerationRequest, Overloaded
from nemotron_engine.triton import parameter, required, value, values
from nemotron_engine.watchdog import start_watchdog

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
END = 1
POLL_SECONDS = 0.05


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        start_watchdog()
        self._world = MPI.COMM_WORLD
        engine = Path(parameter(args, "gpt_model_path"))
        rank = self._world.Get_rank()
        if not (engine / f"rank{rank}.engine").is_file():
            raise RuntimeError(f"no engine for rank {rank} in {engine}")
        period = int(parameter(args, "cancellation_check_period_ms")) / 1000
        self._world.Barrier()  # as the executor: nobody is ready before all have loaded
        if rank:
            threading.Thread(target=self._wait_for_the_end, daemon=True).start()
            return
        self._engine = CpuEngine(engine)
        self._running: dict[str, tuple[str, Any]] = {}
        self._lock = threading.Lock()
        family = pb_utils.MetricFamily(
            name="nv_trt_llm_general_metrics",
            description="TRT LLM general metrics",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        labels = {"general_type": "iteration_counter", "model": "tensorrt_llm", "version": "1"}
        self._iterations = family.Metric(labels=labels)
        self._ended = threading.Event()
        threading.Thread(target=self._look, args=(period,), daemon=True).start()

    def finalize(self) -> None:
        if self._world.Get_rank() == 0:
            self._ended.set()
            self._engine.close()
            for rank in range(1, self._world.Get_size()):
                self._world.send(None, dest=rank, tag=END)
            MPI.Finalize()

    def _wait_for_the_end(self) -> None:
        """Poll for the end, because a blocking receive would spin on a core."""
        while not self._world.Iprobe(source=0, tag=END):
            time.sleep(POLL_SECONDS)
        self._world.recv(source=0, tag=END)
        MPI.Finalize()
        os.kill(os.getppid(), signal.SIGTERM)  # the backend ends its process here

    def _look(self, period: float) -> None:
        while not self._ended.wait(period):
            self._iterations.set(self._engine.state().steps)
            with self._lock:
                running = list(self._running.items())
            for id_, (_name, answer) in running:
                if answer.is_cancelled():
                    self._engine.cancel(id_)

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                if value(request, "stop", default=False):
                    self._stop(request.request_id())
                    sender.send(flags=FINAL)
                else:
                    self._start(request, sender)
            except Overloaded:
                text = "Maximum queue size of 448 has been reached, please try again later"
                sender.send(_error(text), flags=FINAL)
            except NemotronError as error:
                sender.send(_error(str(error)), flags=FINAL)

    def _stop(self, name: str) -> None:
        with self._lock:
            ids = [id_ for id_, (known, _answer) in self._running.items() if known == name]
        for id_ in ids:
            self._engine.cancel(id_)

    def _start(self, request: Any, sender: Any) -> None:
        _check_shapes(request, self._engine.settings.vocab_size)
        end_id = value(request, "end_id")
        stops = _stop_ids(request)
        count = value(request, "num_return_sequences", default=1)
        drawn = value(request, "runtime_top_k") or value(request, "runtime_top_p")
        submissions = []
        group = _Group(sender, count)
        for number in range(count):
            generation = GenerationRequest(
                request_id=uuid.uuid4().hex,
                input_ids=tuple(values(request, "input_ids") or ()),
                max_tokens=required(request, "request_output_len"),
                end_ids=(() if end_id is None else (end_id,)) + stops,
                temperature=value(request, "temperature") if drawn else None,
                top_k=value(request, "runtime_top_k") if drawn else None,
                top_p=value(request, "runtime_top_p") if drawn else None,
                seed=value(request, "seed", default=0) + number,
                log_probs=value(request, "return_log_probs", default=False),
            )
            answer = _Answer(
                group,
                number if count > 1 else None,
                end_id,
                log_probs=generation.log_probs,
                ended=partial(self._forget, generation.request_id),
            )
            with self._lock:
                self._running[generation.request_id] = (request.request_id(), answer)
            submissions.append((generation, answer.push))
        try:
            self._engine.submit_all(submissions)
        except NemotronError:
            for generation, _push in submissions:
                self._forget(generation.request_id)
            raise

    def _forget(self, id_: str) -> None:
        with self._lock:
            self._running.pop(id_, None)


class _Group:
    def __init__(self, sender: Any, remaining: int) -> None:
        self.sender, self.remaining = sender, remaining
        self.lock = threading.Lock()


class _Answer:
    def __init__(
        self,
        group: _Group,
        sequence: int | None,
        end_id: int | None,
        *,
        log_probs: bool,
        ended: Any,
    ) -> None:
        self._group, self._sequence, self._end_id = group, sequence, end_id
        self._log_probs, self._ended = log_probs, ended
        self._done = False
        self._cum = 0.0

    def is_cancelled(self) -> bool:
        with self._group.lock:
            return not self._done and bool(self._group.sender.is_cancelled())

    def push(self, chunk: GenerationChunk | NemotronError) -> None:
        last = isinstance(chunk, NemotronError) or chunk.finish_reason is not None
        if last:
            self._ended()
        response = _error(str(chunk)) if isinstance(chunk, NemotronError) else self._response(chunk)
        with self._group.lock:
            flags = 0
            if last:
                self._done = True
                self._group.remaining -= 1
                flags = 0 if self._group.remaining else int(FINAL)
            self._group.sender.send(response, flags=flags)

    def _response(self, chunk: GenerationChunk) -> Any:
        ids = list(chunk.token_ids)
        log_probs = list(chunk.log_probs)
        if ids and ids[-1] == self._end_id:
            ids, log_probs = ids[:-1], log_probs[:-1]
        self._cum += sum(log_probs)
        tensors = [
            pb_utils.Tensor("output_ids", np.array([[ids]], np.int32)),
            pb_utils.Tensor("sequence_length", np.array([[len(ids)]], np.int32)),
        ]
        if self._sequence is not None:
            index = np.array([[self._sequence]], np.int32)
            tensors.append(pb_utils.Tensor("sequence_index", index))
        if self._log_probs:
            rows = np.array([[log_probs]], np.float32)
            tensors.append(pb_utils.Tensor("output_log_probs", rows))
            tensors.append(pb_utils.Tensor("cum_log_probs", np.array([[self._cum]], np.float32)))
        return pb_utils.InferenceResponse(tensors)


def _check_shapes(request: Any, vocab_size: int) -> None:
    """Check the inputs whose effect only a GPU engine has."""
    bias = values(request, "embedding_bias")
    if bias is not None and (len(bias) != vocab_size or not any(bias)):
        raise NemotronError(f"embedding_bias has {len(bias)} elements")
    bad = pb_utils.get_input_tensor_by_name(request, "bad_words_list")
    if bad is not None:
        ids, ends = bad.as_numpy().reshape(2, -1).tolist()
        ends = [end for end in ends if end >= 0]
        if ends != sorted(set(ends)) or ends[-1] != len(ids):
            raise NemotronError(f"bad_words_list ends at {ends} of {len(ids)}")


def _stop_ids(request: Any) -> tuple[int, ...]:
    ids_and_ends = pb_utils.get_input_tensor_by_name(request, "stop_words_list")
    if ids_and_ends is None:
        return ()
    ids, ends = ids_and_ends.as_numpy().reshape(2, -1).tolist()
    return tuple(ids[end - 1] for end in ends if end > 0)


def _error(text: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
