"""`nemotron serve` on the vLLM lane: a dead rank ends requests with an error, and is replaced."""

from __future__ import annotations

from pathlib import Path

import psutil
from tritonclient.utils import InferenceServerException

from nemotron_build.engine_folder import build_engine, open_engine
from nemotron_build.profile import Profile
from nemotron_serve.model_server import ModelServer, ServerOptions
from tests.serve.wire import Running, messages_json, stream, text
from tests.tiny_nemotron.answers import ExactAnswer
from tests.waiting import until


def test_a_killed_rank(
    checkpoint_hf64: Path, vllm_profile: Profile, tmp_path: Path, answers: list[ExactAnswer]
) -> None:
    split = vllm_profile.split.model_copy(update={"tp": 2, "gpus_per_node": 2})
    profile = vllm_profile.model_copy(update={"split": split})
    build_engine(checkpoint_hf64, tmp_path / "engine", profile)
    assert open_engine(tmp_path / "engine").profile.split.tp == 2
    exact = answers[0]
    fields = {"messages": messages_json(exact.question.messages), "max_tokens": 200}
    options = ServerOptions(log_file=tmp_path / "server.log")
    with ModelServer(tmp_path / "engine", profile, options) as server:
        assert text(stream(server, **fields)) == exact.question.answer
        endless = {**fields, "max_tokens": 3000, "end_id": -1, "stream": True}
        with Running(server, "tensorrt_llm_bls", **endless) as request:
            request.begin()
            engine = psutil.Process(server.engine.hello.pid)
            ranks = [child for child in engine.children() if "Worker" in child.name()]
            assert len(ranks) == 2
            ranks[1].kill()
            until(lambda: request.error is not None)
            assert "the engine has ended" in str(request.error)
        until(lambda: not any(process.is_running() for process in (engine, *ranks)))
        until(lambda: not server.is_working)

        def answers_again() -> bool:
            try:
                return text(stream(server, **fields)) == exact.question.answer
            except InferenceServerException:
                return False

        until(answers_again, poll_seconds=0.5)
        assert server.engine.hello.pid != engine.pid
