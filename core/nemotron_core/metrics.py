"""Names and descriptions of the metrics that our models add to Triton's own."""

from __future__ import annotations

RUNNING_METRIC = "nemotron_requests_running"
WAITING_METRIC = "nemotron_requests_waiting"
KV_CACHE_USAGE_METRIC = "nemotron_kv_cache_usage_ratio"
STEPS_METRIC = "nemotron_engine_steps_total"
PROMPT_TOKENS_METRIC = "nemotron_prompt_tokens_total"
GENERATED_TOKENS_METRIC = "nemotron_generated_tokens_total"
DRAFT_STEPS_METRIC = "nemotron_draft_steps_total"
DRAFT_PROPOSED_METRIC = "nemotron_draft_proposed_tokens_total"
DRAFT_ACCEPTED_METRIC = "nemotron_draft_accepted_tokens_total"
TIME_TO_FIRST_TOKEN_METRIC = "nemotron_time_to_first_token_seconds"
INTER_TOKEN_LATENCY_METRIC = "nemotron_inter_token_latency_seconds"

GAUGES = {
    RUNNING_METRIC: "Requests that have begun and not ended",
    WAITING_METRIC: "Requests that wait for their first step",
    KV_CACHE_USAGE_METRIC: "Fraction of the KV cache in use, 0 to 1",
}
COUNTERS = {
    STEPS_METRIC: "Steps of the engine",
    PROMPT_TOKENS_METRIC: "Prompt tokens of all requests that began",
    GENERATED_TOKENS_METRIC: "Tokens that the engine generated",
    DRAFT_STEPS_METRIC: "Steps in which an answer got tokens with a draft",
    DRAFT_PROPOSED_METRIC: "Tokens that the draft could propose in them",
    DRAFT_ACCEPTED_METRIC: "Tokens of the draft that were right",
}
HISTOGRAMS = {
    TIME_TO_FIRST_TOKEN_METRIC: "Seconds from a request's arrival to its first token",
    INTER_TOKEN_LATENCY_METRIC: "Seconds between two consecutive tokens of one request",
}
LATENCY_BOUNDS = tuple(0.001 * 2**power for power in range(17))
"""Upper bounds of the histograms' buckets in seconds, 1 ms to 65 s."""
