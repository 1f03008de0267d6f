"""What `nemotron` alone shows: the way from a `.nemo` to an answer."""

from __future__ import annotations

TITLE = "NVIDIA Nemotron-4-340B-Instruct, from its .nemo checkpoint to tokens on the wire."
STEPS = (
    ("Try it", "nemotron demo", "the whole way on this machine, with a tiny model"),
    ("Choose", "nemotron profiles", "the machines that it runs on"),
    ("", "nemotron plan --profile NAME", "what fits there, and how fast it can be"),
    ("", "nemotron doctor --profile NAME", "whether this machine is ready"),
    ("Look", "nemotron inspect MODEL.nemo", "what the file holds, and whether it is whole"),
    ("Convert", "nemotron convert MODEL.nemo -o CHECKPOINT", ".nemo to checkpoint, BF16 or FP8"),
    ("", "nemotron verify CHECKPOINT --against MODEL.nemo", "whether it computes the same"),
    ("Build", "nemotron build CHECKPOINT -o ENGINE --profile NAME", "checkpoint to engine"),
    ("Serve", "nemotron serve ENGINE", "Triton, the OpenAI API and a chat page"),
    ("Ask", 'nemotron chat "Why is the sky blue?"', "one question, or without one a talk"),
    ("", "nemotron batch PROMPTS.jsonl ANSWERS.jsonl", "many prompts, each answered once"),
    ("Measure", "nemotron bench --sweep", "latency, throughput, and where it saturates"),
)
"""Name of each step, a command, and what the command gives."""
END = "nemotron VERB --help says more. nemotron --help lists all verbs."


def journey(bold: bool) -> str:
    """Return the steps as lines of text, with the names of the steps in bold if `bold`."""
    width = max(len(command) for _, command, _ in STEPS)
    lines = [TITLE, ""]
    for name, command, result in STEPS:
        label = f"\033[1m{name:8}\033[0m" if bold else f"{name:8}"
        lines.append(f"  {label} {command:{width}}  {result}".rstrip())
    return "\n".join([*lines, "", END])
