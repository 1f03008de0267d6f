"""Runs the judging of NVIDIA's MT-Bench evaluator, by the Python of its environment.

Usage: python mt_bench_judging.py FOLDER ARGUMENT…, with the evaluator's folder of FastChat and the
arguments of its `gen_judgment`.

The evaluator would load its module of models, and PyTorch with it, only to choose by the judge's
name how a chat begins. With names that it does not know, such as that of the card's judge, the
chat would begin with an example of another conversation. Here every judge gets what the evaluator
gives to gpt-4: the system message and the prompt.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from types import ModuleType

MODELS = "fastchat.model"
ADAPTER = f"{MODELS}.model_adapter"


def main() -> None:
    sys.path.insert(0, sys.argv.pop(1))
    chats = importlib.import_module("fastchat.conversation")
    adapter = ModuleType(ADAPTER)
    vars(adapter).update(
        get_conversation_template=lambda _model: chats.get_conv_template("chatgpt"),
        ANTHROPIC_MODEL_LIST=(),
    )
    sys.modules |= {MODELS: ModuleType(MODELS), ADAPTER: adapter}
    runpy.run_module("fastchat.llm_judge.scripts.gen_judgment", run_name="__main__")


if __name__ == "__main__":
    main()
