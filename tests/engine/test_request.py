"""Requests that an engine refuses before its library sees them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nemotron_core.engine_settings import EngineSettings
from nemotron_core.errors import NemotronError
from nemotron_engine.protocol import FEATURES, Capabilities, Request
from nemotron_engine.request import MAX_SEQUENCES, check_request

KEY = b"k" * 16
SETTINGS = EngineSettings(
    vocab_size=1536,
    max_seq_len=4096,
    max_batch_size=64,
    max_num_tokens=2048,
    max_queue_size=64,
    request_seconds=60,
)
PLAIN = Capabilities(max_temperature=100.0)
ABLE = Capabilities(features=list(FEATURES), guide_types=["json", "json_schema"], max_log_probs=5)
GUIDE = {"guide_type": "json_schema", "guide": "{}"}


def check(capabilities: Capabilities = PLAIN, **fields: Any) -> None:
    request = Request(**({"key": KEY, "input_ids": [4, 20, 30], "max_tokens": 64} | fields))
    check_request(request, SETTINGS, capabilities)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key": b"short"}, "the key has 5 bytes: use 16"),
        ({"key": b"k" * 17}, "the key has 17 bytes: use 16"),
        ({"input_ids": []}, "the prompt is empty"),
        ({"input_ids": [4, 1536]}, r"token id 1536 is outside the vocabulary of 1536 \[input_ids"),
        ({"input_ids": [-1]}, "token id -1 is outside"),
        ({"end_ids": [5, 99999]}, r"token id 99999 is outside .* \[end_id\]"),
        ({"stop_sequences": [[5], [5, 1536]]}, r"token id 1536 .* \[stop_words_list\]"),
        ({"bad_sequences": [[-2]]}, r"token id -2 .* \[bad_words_list\]"),
        ({"bias": {1536: 1.0}}, r"token id 1536 .* \[embedding_bias\]"),
        ({"bias": {5: math.inf}}, "a bias is inf"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 4094}, "3 prompt tokens and max_tokens 4094 are more than the 4096"),
        ({"max_tokens": 4094}, "ask for at most 4093"),
        ({"input_ids": [4] * 5000}, "ask for at most 0"),
        ({"stop_sequences": [[5], []]}, "2 stop_sequences: send at most 1024, none empty"),
        ({"stop_sequences": [[5]] * (MAX_SEQUENCES + 1)}, "1025 stop_sequences"),
        ({"bad_sequences": [[]]}, "1 bad_sequences"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": 100.1}, "temperature is 100.1: use 0 to 100.0"),
        ({"top_p": 1.5}, "top_p is 1.5: use 0 to 1"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2**31}, "top_k is 2147483648"),
        ({"chunk_seconds": -0.1}, "chunk_seconds is -0.1: use 0 or more"),
        ({"chunk_seconds": math.nan}, "chunk_seconds is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0: use a positive number"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"repetition_penalty": 1000.5}, "repetition_penalty is 1000.5"),
        ({"presence_penalty": 3.0}, "presence_penalty is 3.0: use -2 to 2"),
        ({"presence_penalty": -2.5}, "presence_penalty is -2.5"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan"),
        ({"frequency_penalty": 2.5}, "frequency_penalty is 2.5"),
        ({"frequency_penalty": -2.5}, "frequency_penalty is -2.5"),
        ({"min_tokens": 65}, "min_tokens is 65: use 0 to 64"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seconds": 0.0}, "the time limit is 0.0 seconds"),
        ({"seconds": math.nan}, "the time limit is nan seconds"),
        ({"guide_type": "poem", "guide": "x"}, "guided_decoding_guide_type is 'poem': use one of"),
        ({"guide_type": "regex"}, "do not go together: send both, or only the type json"),
        ({"guide": "{}"}, "do not go together"),
        ({"guide_type": "json", "guide": "{}"}, "do not go together"),
        ({"top_log_probs": -1}, "this engine has no top log probs|alternatives is -1"),
    ],
)
def test_a_request_that_makes_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(NemotronError, match=message):
        check(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 1, "frequency_penalty": -2.0},
        {"max_tokens": 4093, "input_ids": [0, 5, 1535], "end_ids": [0, 1535]},
        {"temperature": 100.0, "top_p": 1.0, "top_k": 2**31 - 1, "seed": 2**64 - 1},
        {"temperature": 0.0, "top_p": 0.0, "top_k": 0, "seed": 0, "min_tokens": 64},
        {"repetition_penalty": 1000.0, "presence_penalty": -2.0, "frequency_penalty": 2.0},
        {"stop_sequences": [[5]] * MAX_SEQUENCES, "seconds": 1e-3, "log_probs": True},
    ],
)
def test_the_limits_themselves_are_accepted(fields: dict[str, Any]) -> None:
    check(**fields)


@pytest.mark.parametrize(
    ("fields", "feature"),
    [
        ({"bad_sequences": [[5]]}, "bad words"),
        ({"bias": {5: 1.0}}, "bias"),
        (GUIDE, "guides"),
        ({"priority": -1}, "priorities"),
        ({"prompt_log_probs": 0}, "prompt log probs"),
        ({"top_log_probs": 1}, "top log probs"),
    ],
)
def test_what_an_engine_lacks_is_refused_by_name(fields: dict[str, Any], feature: str) -> None:
    with pytest.raises(NemotronError, match=f"^this engine has no {feature}$"):
        check(**fields)
    check(ABLE, **fields)
    others = [name for name in FEATURES if name != feature.replace(" ", "_")]
    with pytest.raises(NemotronError, match=f"^this engine has no {feature}$"):
        check(Capabilities(features=others, guide_types=["json_schema"], max_log_probs=5), **fields)


def test_a_guide_of_a_kind_that_the_engine_lacks() -> None:
    with pytest.raises(NemotronError, match="'regex' is not on this engine: use json or json_sch"):
        check(ABLE, guide_type="regex", guide="a+")
    check(ABLE, guide_type="json")


@pytest.mark.parametrize("name", ["top_log_probs", "prompt_log_probs"])
def test_more_alternatives_than_the_engine_gives(name: str) -> None:
    check(ABLE, **{name: 5})
    for count in (6, -1):
        with pytest.raises(NemotronError, match=f"alternatives is {count}: use 0 to 5"):
            check(ABLE, **{name: count})
