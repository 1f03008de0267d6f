"""How many tokens the postprocessing model turns into text each second, in a real Triton.

    python -m bench.postprocessing CHECKPOINT [--streams 64] [--tokens 200] [--runs 5] [--json OUT]

In place of the engine stands a model that repeats one answer's tokens as fast as Triton takes them,
one response for each, so that the rest of the ensemble is what is measured. A real engine's work
would only hide it. Clients, Triton and its models share this machine's cores; what the model could
do with one to itself is told by the CPU time of its process.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
import tritonclient.grpc

from bench.convert_speed import machine
from nemotron_build import repository
from nemotron_build.engine import build_engine
from nemotron_build.profile import load_profile
from nemotron_build.resources import resource
from nemotron_build.server import TritonServer
from tests.serve.wire import WAIT, inputs

COUNT = 'nv_inference_count{model="postprocessing",version="1"}'
TALKER = """
import threading
import numpy as np
import triton_python_backend_utils as pb_utils
from nemotron_engine.triton import tensor, value, values

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            if value(request, "stop", default=False):
                sender.send(flags=FINAL)
                continue
            echo = value(request, "answer_settings", default="")
            ids = values(request, "input_ids")
            length = value(request, "request_output_len")
            threading.Thread(target=self.talk, args=(sender, echo, ids, length)).start()

    def talk(self, sender, echo, ids, length):
        for number in range(length):
            last = number == length - 1
            sender.send(
                pb_utils.InferenceResponse([
                    tensor("output_ids", [[ids[number % len(ids)]]], np.int32),
                    tensor("sequence_length", [1], np.int32),
                    tensor("finish_reason", ["length" if last else ""], np.object_),
                    tensor("answer_settings", [echo], np.object_),
                    tensor("sequence_index", [0], np.int32),
                ]),
                flags=FINAL if last else 0,
            )
"""


def model_process(server: TritonServer) -> psutil.Process:
    everyone = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = (one for one in everyone if "models/postprocessing/1" in " ".join(one.cmdline()))
    return found


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def run(server: TritonServer, streams: int, tokens: int) -> dict[str, float]:
    """One time all streams at once; rates in tokens a second."""
    prompt = "The quick brown fox jumps over the lazy dog, and 日本 too. " * 3
    found: queue.Queue[str] = queue.Queue()

    def ask() -> None:
        pieces: list[str] = []
        done = threading.Event()

        def take(result: object, error: object) -> None:
            if error is not None:
                pieces.append(str(error))
                done.set()
                return
            pieces.append(result.as_numpy("text_output").ravel()[0].decode())  # type: ignore[attr-defined]
            if result.as_numpy("finish_reason").ravel()[0]:  # type: ignore[attr-defined]
                done.set()

        url = f"{server.endpoints.address}:{server.endpoints.grpc}"
        with tritonclient.grpc.InferenceServerClient(url) as client:
            client.start_stream(take)
            fields = inputs(
                tritonclient.grpc, text_input=prompt, max_tokens=tokens, end_id=0, stream=True
            )
            client.async_stream_infer("ensemble", fields)
            if not done.wait(WAIT):
                raise SystemExit("a stream has not ended")
        found.put("".join(pieces))

    threads = [threading.Thread(target=ask) for _ in range(streams)]
    process = model_process(server)
    (count,) = server.metric(COUNT)
    busy = cpu_seconds(process)
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    texts = {found.get() for _ in threads}
    assert len(texts) == 1, "streams of the same tokens have different texts"
    total = server.metric(COUNT)[0] - count
    assert total == streams * tokens
    return {
        "second": total / seconds,
        "second of its CPU time": total / (cpu_seconds(process) - busy),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    profile = load_profile("cpu")
    ports = dict.fromkeys(type(profile.ports).model_fields, 0)
    profile = profile.model_copy(update={"ports": profile.ports.model_copy(update=ports)})
    with tempfile.TemporaryDirectory() as folder:
        build_engine(options.checkpoint, Path(folder, "engine"), profile)
        models = shutil.copytree(resource("model_repository"), Path(folder, "models"))
        (models / "tensorrt_llm" / "1" / "model.py").write_text(TALKER)
        repository.resource = lambda _name: models
        with TritonServer(Path(folder, "engine"), profile) as server:
            run(server, options.streams, options.tokens)  # warm
            runs = [run(server, options.streams, options.tokens) for _ in range(options.runs)]
    result = {
        "machine": machine(),
        "streams": options.streams,
        "tokens of a stream": options.tokens,
        "tokens for each": {
            name: {
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
            for name in runs[0]
            if (values := [one[name] for one in runs])
        },
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
