"""The tables of the serving path's measurements, each made from one record."""

from __future__ import annotations

from bench.measurements.records import Record, conditions
from bench.measurements.timing import spread
from nemotron_bench.report import table

QUANTITIES = {
    "fraction": "fraction of the engine's tokens",
    "fraction_of_direct": "fraction of the direct model's tokens",
    "cpu_us_per_response": "CPU per response, µs",
    "gateway_us_per_event": "CPU of the gateway per event, µs",
    "cores": "cores of the server",
    "ttft_p50_steps": "time to first token, p50, in steps of the engine",
}
RELATIVE = "of {}, earlier commit"


def serving(name: str) -> list[str]:
    """Return the limits of the serving path, and the values before and now."""
    record = Record.read(name)
    rows = []
    for limit in record.results["limits"]:
        quantity = QUANTITIES[limit["quantity"]]
        if limit["relative_to"]:
            quantity += f": {RELATIVE.format(limit['relative_to'])}"
        rows.append(
            [
                limit["load"].replace("x", " × "),
                quantity.replace("x", " × ") if limit["relative_to"] else quantity,
                spread(limit["old"], ".2f") if limit["old"] else "",
                spread(limit["value"], ".2f"),
                f"{'≥' if limit['at_least'] else '≤'} {limit['limit']:g}",
                "yes" if limit["held"] else "**no**",
            ]
        )
    head = ["streams × tokens", "quantity", "earlier commit", "now", "limit", "held"]
    return [*table(head, rows), "", conditions(record)]


def hops() -> list[str]:
    """Return the rates of the CPU engine through each hop."""
    record = Record.read("hops")
    rates = record.results["tokens_per_second"]
    fractions = record.results["fraction_of_the_engine"]
    shares = record.results["engine_share_of_cpu"]
    counts = list(next(iter(rates.values())))
    rows = [
        [
            hop,
            *(f"{spread(rate, ',.0f')}{_fraction(fractions, hop, n)}" for n, rate in by.items()),
            *(spread(shares[hop][n], ".3f") for n in counts),
        ]
        for hop, by in rates.items()
    ]
    head = [
        "tokens/s at streams: fraction",
        *counts,
        *(f"engine's share of the CPU time, {n}" for n in counts),
    ]
    return [*table(head, rows), "", conditions(record)]


def _fraction(fractions: dict[str, dict[str, dict[str, float]]], hop: str, count: str) -> str:
    return f": {spread(fractions[hop][count], '.2f')}" if hop in fractions else ""


def hangups() -> list[str]:
    """Return the outcomes of the loads whose clients hang up."""
    parts = Record.read("hangups").results["parts"]
    names = ("finished", "left", "killed client processes", "errors", "truncated")
    rows = []
    for name, part in parts.items():
        sizes = [sum(part["rss_bytes"][time].values()) / 1e6 for time in ("half way", "end")]
        rows.append(
            [
                name,
                *(f"{part['outcomes'][outcome]:,}" for outcome in names),
                str(len(part["disturbances"])),
                " → ".join(f"{size:,.0f}" for size in sizes),
                "; ".join(part["faults"]) or "none",
            ]
        )
    head = ["", *names, "engines killed or stopped", "RSS MB, half way → end", "faults"]
    return table(head, rows)


def leaving() -> list[str]:
    """Return the times until the engine is free of a request whose client has left."""
    record = Record.read("hangups")
    rows = [
        [way, *(f"{values[name] * 1e3:,.0f}" for name in ("p50", "p99", "max"))]
        for way, values in record.results["seconds_to_free"].items()
    ]
    machine = record.machine
    return [
        *table(["way to leave: ms until the engine is free", "p50", "p99", "longest"], rows),
        "",
        f"{machine['cores']} cores of {machine['cpu']}, {record.arguments['tries']} tries each,"
        f" beside {record.arguments['background']} other streams.",
    ]
