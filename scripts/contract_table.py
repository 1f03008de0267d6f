"""The tables of docs/contract.md, from the contract itself: python scripts/contract_table.py."""

from __future__ import annotations

from nemotron_core.wire import LANES, TEXT_INPUTS, TEXT_OUTPUTS, Input, Tensor

NOTES = {
    "text_input": "a raw prompt; exactly one of this and the two below",
    "messages": "JSON list of `{role, content}`, through the chat template",
    "input_token_ids": "a raw prompt's tokens, as they are",
    "decoder_text_input": "of encoder-decoders",
    "max_tokens": "must be there; what does not fit beside the prompt: `limits.long_answers`",
    "num_return_sequences": "1 to 64; each answer has its `sequence_index` (not on `generate`)",
    "bad_words": "each as the tokens it has after a space and without one",
    "stop_words": "matched on the text, across tokens; cut; the engine is stopped",
    "exclude_input_in_output": "an answer never repeats its prompt: only true is taken",
    "end_id": "instead of `<extra_id_1>` and `</s>`",
    "pad_id": "taken, for an answer has no padding",
    "top_k": "0: no limit, 1: greedy",
    "top_p": "0: no limit",
    "temperature": "greedy without it and with 0, unless `top_k` is more than 1",
    "length_penalty": "of beams",
    "seed": "the same seed, the same sample; answer *i* of several has seed + *i*",
    "return_log_probs": "of the tokens in the answer",
    "return_context_logits": "a megabyte for each token of this vocabulary",
    "return_generation_logits": "the same",
    "return_perf_metrics": "adds the four times",
    "return_num_input_tokens": "taken; the counts always come",
    "return_num_output_tokens": "the same",
    "beam_width": "beams cannot be streamed; only 1 is taken",
    "stream": "each piece as it comes; else one response (one for each answer)",
    "prompt_embedding_table": "the model has no prompt tuning",
    "embedding_bias_words": "added to the logits of each of the word's tokens",
    "embedding_bias_weights": "one for each word",
    "lora_task_id": "there are no adapters for this model",
    "guided_decoding_guide_type": "`json`, `json_schema`, `regex`, `ebnf_grammar`",
    "finish_reason": "`stop`, `length`, `cancelled`; empty until the last piece",
    "stop_reason": "the stop string, if one ended the answer",
    "output_token_ids": "of this piece",
    "cum_log_probs": "with `return_log_probs`",
    "arrival_time_ns": "with `return_perf_metrics`; the server's clock",
}


def tables() -> str:
    """Markdown: the inputs with the lanes that have them, and the outputs."""
    lines = ["| input | type | cpu | tensorrt | pytorch | |", "|---|---|---|---|---|---|"]
    for one in TEXT_INPUTS:
        lanes = " | ".join("yes" if lane in one.lanes else "–" for lane in LANES)
        lines.append(f"| {_name(one)} | {_type(one)} | {lanes} | {NOTES.get(one.name, '')} |")
    lines += ["", "| output | type | |", "|---|---|---|"]
    lines += [f"| {_name(o)} | {_type(o)} | {NOTES.get(o.name, '')} |" for o in TEXT_OUTPUTS]
    return "\n".join(lines)


def _name(one: Tensor) -> str:
    ours = isinstance(one, Input) and one.is_extension
    return f"`{one.name}`" + (" (ours)" if ours else "")


def _type(one: Tensor) -> str:
    return f"{one.dtype}[{','.join(map(str, one.dims))}]"


if __name__ == "__main__":
    print(tables())
