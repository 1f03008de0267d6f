"""The chat: its commands, its input, and servers of OpenAI's API."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from typer.testing import CliRunner

from nemotron_cli.chat_commands import COMMANDS, ChatEnds, run_command
from nemotron_cli.conversation import Conversation
from nemotron_cli.main import app
from nemotron_cli.terminal import make_session
from nemotron_client.exceptions import ConnectionFailed, RequestRefused, ServerFailed
from nemotron_client.openai_chat import OpenAIChat, speaks_openai
from nemotron_core.errors import NemotronError
from nemotron_core.generation import Generation, Piece
from tests.waiting import until

NEMOTRON = str(Path(sys.executable).with_name("nemotron"))


class Scripted:
    """A stand-in for a server, which gives one answer after the other and keeps the requests."""

    def __init__(self, *answers: list[Piece]) -> None:
        self._answers = list(answers)
        self.requests: list[list[dict[str, Any]]] = []
        self.generations: list[Generation] = []

    def stream_chat(
        self, messages: Sequence[Mapping[str, Any]], generation: Generation
    ) -> Generator[Piece, None, None]:
        self.requests.append([dict(message) for message in messages])
        self.generations.append(generation)
        yield from self._answers.pop(0)


def conversation(*answers: str) -> tuple[Conversation, Scripted]:
    pieces = [
        [Piece(text), Piece("", finish_reason="stop", num_input_tokens=7, num_output_tokens=3)]
        for text in answers
    ]
    server = Scripted(*pieces)
    return Conversation(server, Generation()), server


def test_commands_change_the_conversation(tmp_path: Path) -> None:
    talk, server = conversation("one", "two", "three")
    run_command(talk, "system", "Be brief.")
    run_command(talk, "set", "temperature 0.5")
    run_command(talk, "set", "stop END")
    assert "".join(talk.answer("first")) == "one"
    assert server.generations[0].temperature == 0.5
    assert server.generations[0].stop_words == ("END",)
    assert [m["role"] for m in server.requests[0]] == ["system", "user"]
    assert run_command(talk, "tokens", "") == ("last prompt 7, last answer 3, all answers 3 tokens")
    path = tmp_path / "talk.json"
    run_command(talk, "save", str(path))
    run_command(talk, "reset", "")
    run_command(talk, "set", "temperature 0.9")
    run_command(talk, "set", "seed 5")
    run_command(talk, "set", "stop none")
    assert "".join(talk.answer("second")) == "two"
    assert [m["content"] for m in server.requests[1]] == ["Be brief.", "second"]
    run_command(talk, "load", str(path))
    list(talk.answer("third"))
    assert server.generations[2] == server.generations[0]
    assert [m["content"] for m in server.requests[2]] == ["Be brief.", "first", "one", "third"]
    run_command(talk, "set", "temperature none")
    assert "temperature" not in talk.settings()
    with pytest.raises(ChatEnds):
        run_command(talk, "exit", "")


@pytest.mark.parametrize(
    ("name", "argument", "what"),
    [
        ("nothing", "", "no such command"),
        ("set", "beams 4", "no such setting"),
        ("set", "seed x", "is no int"),
        ("set", "seed", "no value"),
        ("load", "/none", "cannot read"),
        ("save", "", "no file is named"),
        ("save", "/none/talk.json", "cannot write"),
    ],
)
def test_wrong_commands_say_what_is_wrong(name: str, argument: str, what: str) -> None:
    with pytest.raises(NemotronError, match=what):
        run_command(conversation()[0], name, argument)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no JSON"),
        ("[]", "no conversation"),
        ('{"messages": [{"role": "tool", "content": "x"}]}', "no conversation"),
        ('{"messages": [], "settings": [1]}', "the settings are no object"),
        ('{"messages": [], "settings": {"beams": 4}}', "no such setting"),
        ('{"messages": [], "settings": {"seed": 1.5}}', "'1.5' is no int"),
        ('{"messages": [], "settings": {"max_tokens": null}}', "'None' is no int"),
        ('{"messages": [], "settings": {"stop": "END"}}', "stop is no list of texts"),
    ],
)
def test_a_file_that_is_no_conversation(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "talk.json").write_text(text)
    talk, _ = conversation("one")
    list(talk.answer("first"))
    before = (talk.messages, talk.generation)
    with pytest.raises(NemotronError, match=what):
        run_command(talk, "load", str(tmp_path / "talk.json"))
    assert (talk.messages, talk.generation) == before


def test_a_file_without_settings_changes_none(tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text('{"messages": []}')
    talk, _ = conversation()
    run_command(talk, "set", "seed 5")
    run_command(talk, "load", str(tmp_path / "talk.json"))
    assert talk.generation == Generation(seed=5)


def test_an_answer_that_fails_has_no_tokens() -> None:
    talk, _ = conversation("one")
    list(talk.answer("first"))
    for _ in range(2):
        with pytest.raises(IndexError):  # the script is at its end
            list(talk.answer("second"))
    assert run_command(talk, "tokens", "") == "last prompt 0, last answer 0, all answers 3 tokens"


def test_help_lists_every_command() -> None:
    text = run_command(conversation()[0], "help", "")
    assert all(f"/{name}" in text for name in COMMANDS)


def test_an_empty_answer_says_why() -> None:
    talk = Conversation(Scripted([Piece("", finish_reason="length")]), Generation(max_tokens=1))
    assert list(talk.answer("x")) == []
    assert talk.why_empty() == "the answer is empty: max_tokens is 1"
    assert talk.turns == []


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("one line\r", "one line"),
        ("\x1b[200~pasted\nlines\n\x1b[201~\r", "pasted\nlines\n"),
        ("first\x1b\rsecond\r", "first\nsecond"),
    ],
)
def test_lines_in_the_terminal(keys: str, text: str, tmp_path: Path) -> None:
    history = tmp_path / "state" / "history"
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys)
        assert make_session(history).prompt("> ") == text
    assert text.splitlines()[0] in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


class OpenAIServer(BaseHTTPRequestHandler):
    """A stand-in for a server of OpenAI's API that streams what a test gives it."""

    events: ClassVar[list[str]] = []
    bodies: ClassVar[list[dict[str, Any]]] = []
    is_endless: ClassVar[bool] = False

    def do_GET(self) -> None:
        self._send(200, b'{"data": [{"id": "stand-in"}]}')

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        if self.headers["authorization"] != "Bearer secret":
            self._send(401, b'{"error": {"message": "no key"}}')
            return
        self._send(200, "".join(f"data: {event}\n\n" for event in self.events).encode())
        while self.is_endless:
            time.sleep(0.05)

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        pass


def piece_event(text: str, reason: str | None = None) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": reason}]})


@pytest.fixture
def openai_url() -> Iterator[str]:
    OpenAIServer.bodies.clear()
    OpenAIServer.is_endless = False
    OpenAIServer.events = [
        piece_event("# Hi"),
        piece_event(" there", "stop"),
        '{"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}',
        "[DONE]",
    ]
    with ThreadingHTTPServer(("127.0.0.1", 0), OpenAIServer) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        OpenAIServer.is_endless = False
        server.shutdown()
        thread.join()


def test_a_server_of_openais_api(openai_url: str) -> None:
    with OpenAIChat(openai_url, api_key="secret") as server:
        talk = Conversation(server, Generation(max_tokens=9))
        assert "".join(talk.answer("Hello")) == "# Hi there"
    assert (talk.tokens.prompt, talk.tokens.answer, talk.finish_reason) == (4, 2, "stop")
    (body,) = OpenAIServer.bodies
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("stand-in", 9, 0.0)
    assert speaks_openai(openai_url)


def test_options_go_before_the_settings_of_a_loaded_file(openai_url: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(
        '{"messages": [], "settings": {"max_tokens": 7, "temperature": 0.5, "seed": 5}}'
    )
    arguments = ["chat", "Hello", "--url", openai_url, "--api-key", "secret"]
    for more in ([], ["--load", str(path)], ["--load", str(path), "--temperature", "0.9"]):
        done = CliRunner().invoke(app, [*arguments, *more])
        assert done.exit_code == 0, done.exception
    assert [
        (body["max_tokens"], body["temperature"], body.get("seed")) for body in OpenAIServer.bodies
    ] == [(1024, 0.0, None), (7, 0.5, 5), (7, 0.9, 5)]


def test_failures_of_a_server_of_openais_api(openai_url: str) -> None:
    with pytest.raises(RequestRefused, match="no key"):
        list(OpenAIChat(openai_url).stream_chat([], Generation()))
    OpenAIServer.events = ['{"error": {"message": "it broke"}}']
    with pytest.raises(ServerFailed, match="it broke"):
        list(OpenAIChat(openai_url, api_key="secret").stream_chat([], Generation()))
    with pytest.raises(ConnectionFailed, match=r"no answer from http://127\.0\.0\.1:9"):
        OpenAIChat("http://127.0.0.1:9")


def take_terminal() -> None:
    """Let this process be interrupted from its terminal, also if the tests ignore that."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_stops_the_answer_and_not_the_chat(openai_url: str, tmp_path: Path) -> None:
    OpenAIServer.events, OpenAIServer.is_endless = [piece_event("It goes on")], True
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [NEMOTRON, "chat", "--url", openai_url, "--api-key", "secret", "--no-markdown"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm"},
    )
    os.close(slave)
    shown = bytearray()

    def read() -> None:
        try:
            while data := os.read(master, 1 << 16):
                shown.extend(data)
        except OSError:  # the other end is closed
            return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        for keys, answer in (
            (b"Hello\r", b"It goes on"),
            (b"\x03", b"[stopped]"),
            (b"/tokens\r", b"all answers 0 tokens"),
        ):
            os.write(master, keys)
            until(lambda answer=answer: answer in shown, explain=lambda: bytes(shown))  # type: ignore[misc]
        os.write(master, b"/exit\r")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert "Hello" in (tmp_path / "nemotron" / "chat_history").read_text()
