"""The report of a comparison as Markdown."""

from __future__ import annotations

from nemotron_evaluate.comparison.result import Result
from nemotron_evaluate.estimate import Estimate
from nemotron_evaluate.tables import code, table

HEAD = ("", "value", "95 % interval")


def markdown(result: Result) -> str:
    """Return the report."""
    rows = [
        _row("mean KL, lower bound (nats)", result.mean_kl, ".3g"),
        *([f"KL, {name}", f"{value:.3g}", ""] for name, value in result.kl_percentiles.items()),
        _row("same most probable token", result.top1, ".2%"),
        ["perplexity of A", f"{result.perplexity_first:.5g}", ""],
        ["perplexity of B", f"{result.perplexity_second:.5g}", ""],
        _row("perplexity of B over A", result.perplexity_ratio, ".5f"),
        ["probability of the text's token, RMS difference", f"{result.rms_probability:.3g}", ""],
    ]
    if result.answers is not None:
        rows += [
            _row("equal greedy answers", result.answers.equal, ".1%"),
            _row(
                f"tokens before they differ (of {result.answers.mean_length:.1f} on average)",
                result.answers.common_prefix,
                ".1f",
            ),
        ]
    worst = [
        [
            f"{token.kl:.3g}",
            f"{token.text}:{token.position}",
            code(f"…{token.context}"),
            code(token.token),
            f"{token.log_prob_first:.2f}",
            f"{token.log_prob_second:.2f}",
            "same" if token.top_first == token.top_second else "differ",
        ]
        for token in result.worst
    ]
    return "\n".join(
        [
            f"{result.tokens:,} tokens of {result.texts:,} texts, "
            f"{result.alternatives} alternatives at each token.",
            "",
            *(
                f"- {name}: " + ", ".join(f"{key} {value}" for key, value in server.items())
                for name, server in (("A", result.first), ("B", result.second))
            ),
            "",
            *table(HEAD, rows),
            "",
            "The tokens that differ most:",
            "",
            *table(("KL", "place", "after", "token", "log p, A", "log p, B", "top"), worst),
            "",
        ]
    )


def _row(name: str, estimate: Estimate, form: str) -> list[str]:
    interval = (
        "–"
        if estimate.low is None or estimate.high is None
        else f"{estimate.low:{form}} to {estimate.high:{form}}"
    )
    return [name, f"{estimate.value:{form}}", interval]
