"""API keys: their file, which may change, and what users and admins may do."""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path

import pytest

from nemotron_core.errors import NemotronError
from nemotron_core.openai.errors import HttpError
from nemotron_gateway import keys as keys_module
from nemotron_gateway.app import Gateway
from nemotron_gateway.keys import Keys
from nemotron_gateway.settings import GatewaySettings
from tests.gateway.asgi import Connection, scope
from tests.gateway.process import running
from tests.waiting import until


def test_where_keys_come_from(tmp_path: Path) -> None:
    file, empty = tmp_path / "keys", tmp_path / "empty"
    file.write_text("a\n b \n# a comment\n")
    empty.write_text("\n")
    assert not Keys.configured(None, {}).are_required
    environment = {"NEMOTRON_API_KEYS": "x\ny"}
    assert Keys.configured(None, environment).check("Bearer y")
    environment["NEMOTRON_API_KEYS_FILE"] = str(file)
    keys = Keys.configured(None, environment)
    assert keys.check("bearer b")
    with pytest.raises(HttpError):
        keys.check("Bearer x")
    for path, message in ((empty, "no API keys in the file"), (tmp_path / "no", "cannot read")):
        with pytest.raises(NemotronError, match=message):
            Keys.configured(path, {})


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, whichever is the client's, and only by the function made for it."""
    compared: list[bytes] = []
    compare_digest = hmac.compare_digest

    def compare(sent: bytes, key: bytes) -> bool:
        compared.append(key)
        return compare_digest(sent, key)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = Keys(["a", "b", "c"])
    for authorization in ("Bearer a", "Bearer c", "Bearer no", "Basic a", ""):
        compared.clear()
        try:
            keys.check(authorization)
        except HttpError:
            assert authorization not in ("Bearer a", "Bearer c")
        assert len(compared) == 3
    assert {len(key) for key in compared} == {32}, "hashes of one length, not the keys"


def test_the_form_of_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(
        "plain\nadmin root name=ops\nuser carl name=carl requests=4 tokens=9000\nuser\n"
    )
    keys = Keys(path=file)
    plain, root, carl, user = (keys.check(f"Bearer {k}") for k in ("plain", "root", "carl", "user"))
    assert plain and root and carl and user
    assert (plain.is_admin, plain.requests, plain.tokens) == (False, None, None)
    assert (root.is_admin, root.name) == (True, "ops")
    assert (carl.is_admin, carl.name, carl.requests, carl.tokens) == (False, "carl", 4, 9000)
    for line in ("user key requests=0", "admin key name=", "key rate=5", "key two words"):
        file.write_text(f"\n{line}\n")
        with pytest.raises(NemotronError, match=r"a key's line is wrong .*line 2") as raised:
            Keys(path=file)
        assert line not in str(raised.value)


def test_what_needs_an_admin_is_off_without_one() -> None:
    for keys in (Keys(), Keys(["user a"])):
        with pytest.raises(HttpError, match="an admin key is needed") as raised:
            keys.check("", needs_admin=True)
        assert raised.value.status == 401
    keys = Keys(["user a", "admin b"])
    with pytest.raises(HttpError, match="this is a user's") as raised:
        keys.check("Bearer a", needs_admin=True)
    assert raised.value.status == 403
    key = keys.check("Bearer b", needs_admin=True)
    assert key and key.is_admin
    assert keys.check("Bearer b")


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_what_changes_the_server_is_off_without_an_admin_key(path: str) -> None:
    for keys, status in ((Keys(), 401), (Keys(["user a"]), 403), (Keys(["admin b"]), 401)):
        connection = Connection(b"{}")
        call = scope("POST", path)
        call["headers"] = [*call["headers"], (b"authorization", b"Bearer a")]
        gateway = Gateway(GatewaySettings(), keys)
        asyncio.run(gateway(call, connection.receive, connection.send))
        assert connection.answer().status == status


def test_the_file_is_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keys_module, "LOOK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text("old\n")
    keys = Keys(path=file)
    assert keys.check("Bearer old")
    file.write_text("new-key\n")
    assert keys.check("Bearer new-key")
    with pytest.raises(HttpError):
        keys.check("Bearer old")
    for wrong in ("", "user a b=c\n"):
        file.write_text(wrong)
        assert keys.check("Bearer new-key"), "the keys that were read last count"
    file.unlink()
    assert keys.check("Bearer new-key")
    assert "new-key" not in caplog.text
    assert "the keys that were read last count" in caplog.text


def test_a_running_gateway_takes_new_keys(triton: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one name=ann requests=1\n")
    with running(tmp_path, triton, "--api-keys-file", str(file)) as gateway:

        def models(key: str) -> int:
            return gateway.ask(
                "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"}
            ).status

        assert (models("one"), models("two")) == (200, 401)
        body = {"prompt": ["a", "b"], "max_tokens": 1}
        headers = {"Authorization": "Bearer one"}
        refused = gateway.ask("POST", "/v1/completions", body, headers)
        assert refused.status == 400
        assert "retry-after" not in refused.headers, "it would never be admitted"
        assert "this key may have 1 prompts" in refused.message
        one = gateway.ask("POST", "/v1/completions", body | {"prompt": "a"}, headers)
        assert one.status == 200

        def keys() -> list[str]:
            id_ = one.headers["x-request-id"]
            return [line["key"] for line in gateway.lines() if line["request_id"] == id_]

        until(lambda: keys() != [])
        assert keys() == ["ann"]
        file.write_text("two\n")
        until(lambda: models("two") == 200)
        assert models("one") == 401
        file.write_text("three tokens=20\n")
        until(lambda: models("three") == 200)
        headers = {"Authorization": "Bearer three"}
        for method, path, body in (
            ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 21}),
            ("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ("POST", "/v1/responses", {"input": "a", "max_output_tokens": 21}),
            ("PUT", "/generate", {"sentences": ["a"], "tokens_to_generate": 21}),
        ):
            refused = gateway.ask(method, path, body, headers)
            assert refused.status == 400, path
            assert "this key may have 20 tokens at a time" in refused.text
        small = {"prompt": "a", "max_tokens": 1}
        assert gateway.ask("POST", "/v1/completions", small, headers).status == 200
