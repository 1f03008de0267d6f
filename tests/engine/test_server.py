"""The engine's process: its socket, its clients, its end. Its library only counts."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron_core.errors import ErrorKind
from nemotron_core.model_config import TOKENIZER_NAME
from nemotron_engine.protocol import (
    Cancel,
    Capabilities,
    Chunk,
    Drain,
    Failed,
    Hello,
    Load,
    Query,
    Step,
    frame,
)
from nemotron_engine.server import listen
from tests.engine.fake_adapter import (
    FATAL,
    MAX_BATCH_SIZE,
    MAX_QUEUE_SIZE,
    MAX_SEQ_LEN,
    REQUEST_SECONDS,
    SILENT,
    STEP_SECONDS,
    VOCAB_SIZE,
)
from tests.engine.process import FAKE, WAKING, Connection, engine_process, log_of
from tests.engine.requests import request
from tests.waiting import WAIT, until

ENDLESS = MAX_SEQ_LEN - 1
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may be another user")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    folder.chmod(0o700)
    (folder / TOKENIZER_NAME).write_bytes(b"a tokenizer")
    return folder


@pytest.fixture(scope="module", params=[FAKE, WAKING])
def path(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """The socket of an engine that makes steps of a millisecond."""
    path = folder / f"{request.param_index}.sock"
    with engine_process(folder, request.param, path=path, **{STEP_SECONDS: "0.001"}) as (_, path):
        yield path


@pytest.fixture
def client(path: Path) -> Iterator[Connection]:
    with Connection(path) as connection:
        yield connection


def is_idle(path: Path) -> bool:
    with Connection(path) as other:
        return other.load().running == 0


def kind(chunk: Chunk) -> ErrorKind:
    assert chunk.finish_reason == "error"
    return chunk.failure().kind


def test_hello_comes_first(client: Connection) -> None:
    hello = client.message()
    assert isinstance(hello, Hello)
    os.kill(hello.pid, 0)
    assert hello == Hello(
        version=1,
        lane=hello.lane,
        library="fake 1.0",
        vocab_size=VOCAB_SIZE,
        max_seq_len=MAX_SEQ_LEN,
        max_batch_size=MAX_BATCH_SIZE,
        max_queue_size=MAX_QUEUE_SIZE,
        request_seconds=REQUEST_SECONDS,
        tokenizer=hashlib.sha256(b"a tokenizer").hexdigest(),
        capabilities=Capabilities(),
        pid=hello.pid,
    )
    assert hello.lane in (FAKE, WAKING)


def test_tokens_come_in_order_and_end(client: Connection) -> None:
    short, long = request([7], max_tokens=1), request([100, 200], max_tokens=50, log_probs=True)
    client.ask(short, long)
    assert client.whole(short).token_ids == [8]
    last = client.whole(long)
    assert last.token_ids == list(range(201, 251))
    assert last.finish_reason == "length"
    assert 0 < last.scheduled_ns < time.time_ns()


def test_a_refusal_is_an_answer(client: Connection) -> None:
    bad = request([])
    client.ask(bad)
    assert kind(client.whole(bad)) is ErrorKind.REFUSED
    assert "the prompt is empty" in client.whole(bad).error


def test_a_cancel_may_come_over_another_connection(path: Path, client: Connection) -> None:
    endless = request([1], max_tokens=ENDLESS)
    client.ask(endless)
    client.first(endless)
    with Connection(path) as other:
        other.cancel(endless.key)
        last = client.whole(endless)
        assert last.finish_reason == "cancelled"
        assert last.token_ids == list(range(2, 2 + len(last.token_ids)))
    until(lambda: is_idle(path))


def test_a_cancel_by_name_ends_every_request_with_it(path: Path, client: Connection) -> None:
    with Connection(path) as other:
        mine, theirs, third = (
            request([1], max_tokens=ENDLESS, request_id=name) for name in ("a", "a", "b")
        )
        client.ask(mine, third)
        other.ask(theirs)
        client.first(mine)
        other.first(theirs)
        other.cancel(request_ids=("a",))
        assert other.whole(theirs).finish_reason == "cancelled"
        assert client.whole(mine).finish_reason == "cancelled"
        assert client.load().running == 1
        client.cancel(third.key)
        assert client.whole(third).finish_reason == "cancelled"


def test_a_deadline_comes_though_the_library_says_nothing(client: Connection) -> None:
    silent, endless = (request([id_], max_tokens=ENDLESS, seconds=0.2) for id_ in (SILENT, 1))
    client.ask(silent)
    assert kind(client.whole(silent)) is ErrorKind.TIMED_OUT
    client.ask(endless)
    last = client.whole(endless)
    assert kind(last) is ErrorKind.TIMED_OUT
    assert last.token_ids


def test_a_stop_sequence_of_several_tokens(client: Connection) -> None:
    stops = request([1], max_tokens=ENDLESS, stop_sequences=[[5, 7], [20, 21, 22]])
    client.ask(stops)
    last = client.whole(stops)
    assert (last.token_ids, last.finish_reason) == (list(range(2, 23)), "stop")


def test_a_full_queue_says_so_at_once(path: Path, client: Connection) -> None:
    waiting = [request([SILENT]) for _ in range(MAX_BATCH_SIZE + MAX_QUEUE_SIZE)]
    client.ask(*waiting)
    with Connection(path) as other:
        until(lambda: other.load().running == len(waiting))
        assert other.load().waiting == MAX_QUEUE_SIZE
        late = request([1])
        other.ask(late)
        assert kind(other.whole(late)) is ErrorKind.OVERLOADED
    client.cancel(*(asked.key for asked in waiting))
    assert all(client.whole(asked).finish_reason == "cancelled" for asked in waiting)


def test_a_client_that_disconnects_ends_its_own_requests(path: Path, client: Connection) -> None:
    stays = request([1], max_tokens=ENDLESS)
    client.ask(stays)
    with Connection(path) as other:
        leaves = [request([1], max_tokens=ENDLESS) for _ in range(5)]
        other.ask(*leaves)
        other.first(leaves[0])
        assert client.load().running == 6
    until(lambda: client.load().running == 1)
    client.cancel(stays.key)
    assert client.whole(stays).finish_reason == "cancelled"


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x01\0\0\0\x90", frame(Step([]))])
def test_a_client_that_speaks_nonsense_is_cut_off(
    data: bytes, path: Path, client: Connection
) -> None:
    with Connection(path) as other:
        stays = request([SILENT])
        other.ask(stays)
        client.ask(request([SILENT]))
        client.socket.sendall(data)
        with pytest.raises(ConnectionResetError):
            client.next(Load)
        until(lambda: other.load().running == 1)
        other.cancel(stays.key)
        assert other.whole(stays).finish_reason == "cancelled"


def test_unknown_keys_and_half_messages_harm_nobody(path: Path) -> None:
    with Connection(path) as other:
        other.send(Cancel([b"", b"x" * 16, b"y" * 99], ["nobody"]))
        other.socket.sendall(frame(Query())[:3])
    assert is_idle(path)


def test_a_slow_client_gets_its_tokens_in_fewer_chunks(folder: Path) -> None:
    """It holds up neither the engine nor another client."""
    with (
        engine_process(folder) as (_, path),
        Connection(path, receive_buffer=1 << 12) as slow,
        Connection(path) as quick,
    ):
        length, count = 1500, MAX_BATCH_SIZE + MAX_QUEUE_SIZE
        asked = [request([n], max_tokens=length, log_probs=True) for n in range(count)]
        slow.ask(*asked)
        until(lambda: quick.load().running == len(asked))
        until(lambda: quick.load().running == 0)
        steps = quick.load().steps
        chunks = [slow.chunks(one) for one in asked]
    assert steps >= length
    assert all(len(parts) < length for parts in chunks)
    for number, parts in enumerate(chunks):
        ids = [id_ for part in parts for id_ in part.token_ids]
        assert ids == list(range(number + 1, number + 1 + length))
        assert [part.finish_reason for part in parts].count("length") == 1


@pytest.mark.parametrize("lane", [FAKE, WAKING])
@pytest.mark.parametrize("how", ["drain", "SIGTERM", "SIGINT"])
def test_it_drains(how: str, lane: str, folder: Path) -> None:
    with (
        engine_process(folder, lane, **{STEP_SECONDS: "0.001"}) as (process, path),
        Connection(path) as client,
    ):
        running, late = request([1], max_tokens=300), request([2])
        client.ask(running)
        client.first(running)
        if how == "drain":
            client.send(Drain())
        else:
            process.send_signal(getattr(signal, how))
            time.sleep(0.05)
        client.ask(late)
        assert kind(client.whole(late)) is ErrorKind.SHUTTING_DOWN
        assert client.whole(running).token_ids == list(range(2, 302))
        assert process.wait(WAIT) == 0
        with pytest.raises(ConnectionResetError):
            client.next(Load)
        assert not path.exists()


def test_idle_it_ends_at_once(folder: Path) -> None:
    with engine_process(folder) as (process, path):
        process.terminate()
        assert process.wait(WAIT) == 0
        assert not path.exists()


def test_a_lost_library_is_told_to_everybody(folder: Path) -> None:
    with (
        engine_process(folder) as (process, path),
        Connection(path) as client,
        Connection(path) as other,
    ):
        client.hello()
        other.hello()
        client.ask(request([FATAL]))
        for connection in (client, other):
            message = connection.message()
            while isinstance(message, Step):
                message = connection.message()
            assert message == Failed("RuntimeError: the library is lost")
            with pytest.raises(ConnectionResetError):
                connection.message()
        assert process.wait(WAIT) == 1
        assert log_of(path).splitlines()[-1] == "RuntimeError: the library is lost"
        assert not path.exists()


ONCE = (
    "-c",
    "import sys; from nemotron_engine import __main__ as program; "
    "program.ORPHAN_SECONDS = 0.5; sys.exit(program.main())",
)


@pytest.mark.parametrize("lane", [FAKE, WAKING])
def test_an_engine_for_one_server_ends_after_it(lane: str, folder: Path) -> None:
    with engine_process(folder, lane, "--once", program=ONCE) as (process, path):
        with Connection(path) as client:
            client.hello()
            client.ask(request([SILENT], max_tokens=ENDLESS))
            time.sleep(1)
            assert client.load().running == 1
        assert process.wait(WAIT) == 0
        assert not path.exists()


def refused(folder: Path, path: Path, *options: str, lane: str = FAKE) -> str:
    """Return the last line of an engine that does not start."""
    command = [sys.executable, "-m", "nemotron_engine", "--lane", lane, "--socket", str(path)]
    done = subprocess.run(
        [*command, *options, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=WAIT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 1
    *_notes, line = done.stderr.splitlines()
    assert line.startswith("nemotron_engine: ")
    return line.removeprefix("nemotron_engine: ")


def test_a_second_engine_on_the_same_socket_is_refused(folder: Path, path: Path) -> None:
    assert refused(folder, path) == f"an engine listens here already [{path}]: stop it first"
    assert is_idle(path)


def test_a_socket_that_a_killed_engine_has_left_is_replaced(folder: Path) -> None:
    path = folder / "stale.sock"
    with engine_process(folder, path=path) as (process, _):
        process.kill()
        process.wait()
        assert path.is_socket()
    with engine_process(folder, path=path), Connection(path) as client:
        assert client.hello().lane == FAKE


def test_a_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    path = folder / TOKENIZER_NAME
    assert "cannot listen: Address already in use" in refused(folder, path)
    assert path.read_bytes() == b"a tokenizer"


def test_paths_that_cannot_be_used(folder: Path) -> None:
    assert "cannot listen: No such file or directory" in refused(
        folder, folder / "none" / "none" / "socket"
    )
    assert "cannot listen: AF_UNIX path too long" in refused(folder, folder / ("x" * 120))


@pytest.mark.parametrize(("group", "mode"), [(None, 0o700), (os.getegid(), 0o770)])
def test_the_folder_of_the_socket_is_made(tmp_path: Path, group: int | None, mode: int) -> None:
    path = tmp_path / "made" / "socket"
    with listen(path, group), Connection(path):
        made = path.parent.stat()
    assert stat.S_IMODE(made.st_mode) == mode
    assert made.st_gid == os.getegid()


def test_an_engine_folder_without_a_tokenizer(tmp_path: Path) -> None:
    assert "No such file or directory" in refused(tmp_path, tmp_path / "socket")


def test_a_folder_that_others_can_reach_is_refused(folder: Path, tmp_path: Path) -> None:
    for mode in (0o755, 0o701, 0o710):
        tmp_path.chmod(mode)
        expected = f"other users can reach this folder (mode {mode:o}) [{tmp_path}]: chmod 700"
        assert refused(folder, tmp_path / "socket") == expected
    tmp_path.chmod(0o775)
    line = refused(folder, tmp_path / "socket", "--group", str(os.getegid()))
    assert line.endswith("(mode 775) [" + str(tmp_path) + "]: chmod 770")


def test_only_its_user_may_use_the_socket(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own folders are not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


def hello_as(path: Path, user: int, group: int, *more_groups: int) -> str:
    """Return what happens to a connection of another user: "hello", "closed" or "denied"."""
    groups = os.getgroups()
    os.setgroups(more_groups)
    os.setegid(group)
    os.seteuid(user)
    try:
        connection = Connection(path)
    except PermissionError:
        return "denied"
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
    with connection:
        try:
            return type(connection.message()).__name__.lower()
        except ConnectionResetError:
            return "closed"


@as_root
def test_members_of_the_group_may_connect_and_nobody_else(
    folder: Path, shared_folder: Path
) -> None:
    group, other = 54321, 54322
    os.chown(shared_folder, -1, group)
    shared_folder.chmod(0o770)
    path = shared_folder / "engine.sock"
    with engine_process(folder, FAKE, "--group", str(group), path=path):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o660, group)
        assert hello_as(path, NOBODY, group) == "hello"
        assert hello_as(path, NOBODY, other) == "denied"  # by the folder's mode
        # These reach the socket, and the engine itself refuses them.
        assert hello_as(path, NOBODY, other, group) == "closed"
        shared_folder.chmod(0o777)
        path.chmod(0o666)
        assert hello_as(path, NOBODY, other) == "closed"
        assert hello_as(path, NOBODY, group) == "hello"


@as_root
def test_without_a_group_no_other_user_may_connect(folder: Path, shared_folder: Path) -> None:
    path = shared_folder / "engine.sock"
    with engine_process(folder, path=path):
        shared_folder.chmod(0o777)
        path.chmod(0o666)
        assert hello_as(path, NOBODY, 0) == "closed"
        with Connection(path) as client:
            assert client.hello().lane == FAKE
