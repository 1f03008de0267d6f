"""A prompt format as a template in Jinja, for programs that render prompts themselves."""

from __future__ import annotations

import json

from nemotron_core.text.chat_format import CARD, CONTROL_PREFIX, ChatFormat
from nemotron_core.text.prompt import CHAT_TEMPLATE

_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role not in ('system', 'user', 'assistant') -%}"
    "{{ raise_exception('unknown role ' + message.role) }}"
    "{%- endif -%}"
    "{%- if '@CONTROL@' in message.content -%}"
    "{{ raise_exception('a message contains a control piece (@CONTROL@…)') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- for message in messages if message.role == 'system' -%}"
    "{{- (@system_start@ if loop.first else '\\n') + message.content -}}"
    "{%- if loop.last -%}{{- @system_end@ -}}{%- endif -%}"
    "{%- else -%}"
    "{{- @no_system@ -}}"
    "{%- endfor -%}"
    "{%- for turn in messages if turn.role != 'system' -%}"
    "{%- if turn.role == 'user' -%}{{- @user_start@ + turn.content + @user_end@ -}}"
    "{%- else -%}{{- @assistant_start@ + turn.content + @assistant_end@ -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- @assistant_start@ -}}{%- endif -%}"
).replace("@CONTROL@", CONTROL_PREFIX)


def chat_template(chat_format: ChatFormat) -> str:
    """Return the template that does the same as `render_prompt` with this format.

    It refuses messages with a control piece, as `CHAT_TEMPLATE` does, which it is for the model
    card's format.
    """
    if chat_format == CARD:
        return CHAT_TEMPLATE
    template = _TEMPLATE
    for name, text in vars(chat_format).items():
        template = template.replace(f"@{name}@", json.dumps(text, ensure_ascii=False))
    return template
