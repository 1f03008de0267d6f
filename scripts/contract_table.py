"""Print the tables of docs/contract.md from the contract: python scripts/contract_table.py."""

from __future__ import annotations

from nemotron_core.wire import LANES, TEXT_INPUTS, TEXT_OUTPUTS, Tensor

NOTES = {
    "text_input": "a raw prompt; a request has exactly one of this and the next two",
    "messages": "a JSON list of `{role, content}`, which goes through the chat template",
    "input_token_ids": "the tokens of a raw prompt, used unchanged",
    "decoder_text_input": "only encoder-decoder models have this input",
    "max_tokens": "required; `limits.long_answers` determines what happens if it does not fit",
    "num_return_sequences": "1 to 64; each answer has its `sequence_index` (not on `generate`)",
    "bad_words": "each word is banned with and without a space in front of it",
    "stop_words": "matched on the text, across tokens; cut off; the engine is stopped",
    "exclude_input_in_output": "must be true, because an answer never repeats its prompt",
    "end_id": "replaces `<extra_id_1>` and `</s>`",
    "pad_id": "has no effect, because an answer has no padding",
    "top_k": "0 means no limit, 1 means greedy",
    "top_p": "0 means no limit",
    "temperature": "without it or with 0, decoding is greedy unless `top_k` is more than 1",
    "length_penalty": "only beam search has a length penalty",
    "seed": "the same seed gives the same sample; answer *i* of several has seed + *i*",
    "return_log_probs": "adds the log-probabilities of the answer's tokens",
    "return_context_logits": "the logits of one token of this vocabulary take a megabyte",
    "return_generation_logits": "as above",
    "return_perf_metrics": "adds the four times",
    "return_num_input_tokens": "has no effect, because the count is always sent",
    "return_num_output_tokens": "has no effect, because the count is always sent",
    "beam_width": "must be 1, because beams cannot be streamed",
    "stream": "sends each piece as it comes; otherwise each answer is one response",
    "prompt_embedding_table": "the model has no prompt tuning",
    "embedding_bias_words": "words whose tokens' logits are changed",
    "embedding_bias_weights": "the number to add to the logits, one for each word",
    "lora_task_id": "there are no adapters for this model",
    "guided_decoding_guide_type": "`json`, `json_schema`, `regex`, `ebnf_grammar`",
    "finish_reason": "`stop`, `length` or `cancelled`; empty until the last piece",
    "stop_reason": "the stop string that ended the answer, if one did",
    "output_token_ids": "the tokens of this piece",
    "cum_log_probs": "sent with `return_log_probs`",
    "arrival_time_ns": "sent with `return_perf_metrics`, by the server's clock",
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
