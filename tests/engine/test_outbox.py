"""What a client has not been sent yet is one chunk for each request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemotron_engine.outbox import Outbox
from nemotron_engine.protocol import Chunk


def test_chunks_of_a_request_become_one() -> None:
    outbox = Outbox()
    assert not outbox
    outbox.put(Chunk(b"a", [1], [-0.5], top_log_probs=[[(1, -0.5)]]))
    outbox.put(Chunk(b"b", [7]))
    outbox.put(
        Chunk(b"a", [2, 3], [-1.0, -1.5], "stop", 99, top_log_probs=[[(2, -1.0)], [(3, -1.5)]])
    )
    assert outbox
    assert outbox.take() == [
        Chunk(
            *(b"a", [1, 2, 3], [-0.5, -1.0, -1.5], "stop", 99),
            top_log_probs=[[(1, -0.5)], [(2, -1.0)], [(3, -1.5)]],
        ),
        Chunk(b"b", [7]),
    ]
    assert not outbox
    assert outbox.take() == []


def test_the_scores_of_a_prompt_and_an_error_are_kept() -> None:
    outbox = Outbox()
    outbox.put(Chunk(b"a", [1], prompt_log_probs=[[], [(4, -2.0)]]))
    outbox.put(Chunk(b"a", finish_reason="error", error="no room", error_kind="FAILED"))
    (chunk,) = outbox.take()
    assert (chunk.token_ids, chunk.prompt_log_probs) == ([1], [[], [(4, -2.0)]])
    assert (chunk.finish_reason, chunk.error, chunk.error_kind) == ("error", "no room", "FAILED")


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 3), st.integers(0, 99)))))
def test_however_often_it_is_emptied_each_request_gets_its_tokens_in_order(
    steps: list[tuple[int, int] | None],
) -> None:
    outbox = Outbox()
    put: dict[bytes, list[int]] = {}
    taken: dict[bytes, list[int]] = {}
    for step in [*steps, None]:
        if step is None:
            for chunk in outbox.take():
                taken[chunk.key] = taken.get(chunk.key, []) + chunk.token_ids
        else:
            key, id_ = bytes([step[0]]), step[1]
            put[key] = [*put.get(key, []), id_]
            outbox.put(Chunk(key, [id_]))
    assert taken == put
