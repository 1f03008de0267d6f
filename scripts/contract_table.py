"""Print the tables of docs/contract.md from the contract: python scripts/contract_table.py."""

from __future__ import annotations

from nemotron_core.wire import TEXT_INPUTS, TEXT_OUTPUTS, Input, Tensor

NOTES = {
    "text_input": "a raw prompt; a request has exactly one of this and the next two",
    "messages": "a JSON list of `{role, content}`, which goes through the chat template",
    "add_generation_prompt": "if false, the prompt ends with the last of `messages`",
    "continue_final_message": "the answer goes on with the last message, the assistant's",
    "stop_token_ids": "tokens that end the answer, besides those of `end_id`",
    "bias_token_ids": "tokens whose logits are changed",
    "bias_values": "the number to add to the logit of each of `bias_token_ids`",
    "num_top_log_probs": "most probable tokens to return at each token of the answer",
    "num_prompt_log_probs": "the same at each token of the prompt; -1: none, 0: only its own",
    "top_token_ids": "with `num_top_log_probs`: [tokens, number], the best first",
    "top_log_probs": "their log-probabilities",
    "prompt_top_token_ids": "with `num_prompt_log_probs`: [tokens, 1 + number], its own first; "
    "-1: none",
    "prompt_top_log_probs": "their log-probabilities",
    "input_token_ids": "the tokens of a raw prompt, used unchanged",
    "decoder_text_input": "only encoder-decoder models have this input",
    "max_tokens": "required; `limits.long_answers` determines what happens if it does not fit",
    "num_return_sequences": "1 to 64 answers to each prompt",
    "bad_words": "each word is banned with and without a space in front of it",
    "stop_words": "matched on the text, across tokens; cut off; the engine is stopped",
    "exclude_input_in_output": "if false, the answer begins with its prompt",
    "end_id": "replaces `<extra_id_1>` and `</s>`; -1 means that no token ends the answer",
    "pad_id": "fills up the rows of `output_token_ids`; 0 without it",
    "top_k": "0 means no limit, 1 means greedy",
    "top_p": "0 means no limit",
    "temperature": "has an effect only with a `top_k` above 1 or a positive `top_p`",
    "min_length": "the name of `min_tokens` in older releases",
    "random_seed": "the name of `seed` in older releases",
    "length_penalty": "only beam search has a length penalty",
    "seed": "the same seed gives the same sample; without one each request gets a new one",
    "return_log_probs": "adds the log-probabilities of the answer's tokens",
    "return_context_logits": "the logits of one token of this vocabulary take a megabyte",
    "return_generation_logits": "as above",
    "return_perf_metrics": "adds the four times of each answer",
    "return_kv_cache_reuse_stats": "adds the numbers of blocks in the KV cache",
    "return_num_input_tokens": "has no effect, because the count is always sent",
    "return_num_output_tokens": "has no effect, because the count is always sent",
    "beam_width": "must be 1, because beams cannot be streamed",
    "stream": "sends each piece as it comes; otherwise all answers are one response",
    "prompt_embedding_table": "a P-tuning is converted with its base model",
    "embedding_bias_words": "words whose tokens' logits are changed",
    "embedding_bias_weights": "the number to add to the logits, one for each word",
    "lora_name": "the adapter to compute with, by the name that it is served by",
    "lora_task_id": "the same by number: 7 is the adapter that is served by the name 7",
    "lora_weights": "adapters are loaded by `serve --adapter`, or at the gateway",
    "guided_decoding_guide_type": "one of the kinds of guides that the engine has",
    "finish_reason": "`stop`, `length` or `cancelled`",
    "stop_reason": "the stop string that ended the answer, if one did",
    "text_output": "one text for each answer of the response",
    "batch_index": "row of the prompt; in the middle of a stream only if there are several answers",
    "sequence_index": "the same among the answers to one prompt",
    "kv_cache_alloc_new_blocks": "sent with `return_kv_cache_reuse_stats`; -1: unknown",
    "output_token_ids": "the tokens of this response",
    "cum_log_probs": "sent with `return_log_probs`",
    "arrival_time_ns": "sent with `return_perf_metrics`, by the server's clock",
}


def tables() -> str:
    """Return Markdown: the inputs with the features that they need, and the outputs."""
    lines = ["| input | type | engine | |", "|---|---|---|---|"]
    for entry in TEXT_INPUTS:
        name = f"`{entry.name}`" + (" (ours)" if entry.is_extension else "")
        engine = _engine(entry)
        lines.append(f"| {name} | {_type(entry)} | {engine} | {NOTES.get(entry.name, '')} |")
    lines += ["", "| output | type | |", "|---|---|---|"]
    for output in TEXT_OUTPUTS:
        lines.append(f"| `{output.name}` | {_type(output)} | {NOTES.get(output.name, '')} |")
    return "\n".join(lines)


def _engine(entry: Input) -> str:
    """Return the engines that support an input: "any", those with a feature, or "none"."""
    if not entry.is_supported:
        return "none"
    return f"with `{entry.feature}`" if entry.feature else "any"


def _type(tensor: Tensor) -> str:
    return f"{tensor.dtype}[{','.join(map(str, tensor.dims))}]"


if __name__ == "__main__":
    print(tables())
