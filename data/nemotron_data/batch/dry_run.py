"""What a run would do, without sending anything."""

from __future__ import annotations

import msgspec
import typer

from nemotron_data.batch.plan import Plan
from nemotron_data.batch.progress import Progress
from nemotron_data.batch.request import Requests
from nemotron_data.batch.result_line import encode
from nemotron_data.batch.statistics import Prices
from nemotron_data.rows.row import PROMPTS, BadRow

BYTES_PER_TOKEN = 4
"""A guess for English text; other languages need more tokens."""


def dry_run(
    plan: Plan,
    requests: Requests,
    prices: Prices,
    urls: list[str],
    progress: Progress,
    rows_per_second: float | None,
) -> None:
    """Print the number of rows, guessed tokens, time and cost, and the first request.

    `rows_per_second` is the speed of the last run, if there was one.
    """
    prompt_tokens = completion_tokens = 0
    is_limited = True
    first = None
    for row in plan.rows():
        if isinstance(row, BadRow):
            continue
        body = requests.body(row)
        first = first or (row.endpoint, body)
        prompt_tokens += len(encode(body[PROMPTS[row.endpoint]])) // BYTES_PER_TOKEN
        longest = body.get("max_tokens", body.get("max_completion_tokens"))
        is_limited &= isinstance(longest, int)
        choices = body.get("n")
        if isinstance(longest, int):
            completion_tokens += longest * (choices if isinstance(choices, int) else 1)
    counts = plan.counts
    values = {
        "rows": f"{counts.rows:,}",
        "to be sent": f"{counts.rows - counts.bad - counts.kept:,}",
        "bad": f"{counts.bad:,}",
        "tokens of prompts, about": f"{prompt_tokens:,}",
        "tokens of answers, at most": f"{completion_tokens:,}" if is_limited else "no limit",
        "servers": ", ".join(urls),
    }
    if rows_per_second:
        left = counts.rows - counts.bad - counts.kept
        values["time, as fast as the last run"] = f"{left / rows_per_second:,.0f} s"
    cost = prices.cost(prompt_tokens, completion_tokens)
    if cost is not None:
        values["cost, at most about"] = f"{cost:,.2f}"
    progress.print_table("nothing is sent", values)
    if first is not None:
        request = encode({"url": first[0], "body": first[1]})
        typer.echo(msgspec.json.format(request, indent=2).decode())
