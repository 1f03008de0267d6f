"""Print the tables of docs/contract.md from the contract: python scripts/contract_table.py."""

from __future__ import annotations

from nemotron_core.wire import LANES, TEXT_INPUTS, TEXT_OUTPUTS, Tensor

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
    """Return Markdown: the inputs with the lanes that support them, and the outputs."""
    lines = ["| input | type | cpu | tensorrt | pytorch | |", "|---|---|---|---|---|---|"]
    for entry in TEXT_INPUTS:
        lanes = " | ".join("yes" if lane in entry.lanes else "–" for lane in LANES)
        name = f"`{entry.name}`" + (" (ours)" if entry.is_extension else "")
        lines.append(f"| {name} | {_type(entry)} | {lanes} | {NOTES.get(entry.name, '')} |")
    lines += ["", "| output | type | |", "|---|---|---|"]
    for output in TEXT_OUTPUTS:
        lines.append(f"| `{output.name}` | {_type(output)} | {NOTES.get(output.name, '')} |")
    return "\n".join(lines)


def _type(tensor: Tensor) -> str:
    return f"{tensor.dtype}[{','.join(map(str, tensor.dims))}]"


if __name__ == "__main__":
    print(tables())
