"""The tables of the accuracy in FP8, each made from a record."""

from __future__ import annotations

from collections.abc import Mapping

from bench.measurements.records import Record, conditions
from bench.measurements.timing import spread
from nemotron_bench.report import table


def fp8_accuracy() -> list[str]:
    results = Record.read("fp8_accuracy").results
    rows = [
        [
            row["dtype"].upper(),
            f"{row['exact_answers']} of {row['answers']}",
            f"{row['mean_log_prob']:.5f}".replace("-", "−"),
            f"{row['exact_top1']:.2%} of {row['tokens']:,}",
        ]
        for row in results["rows"]
    ]
    head = [
        *("", "answers exactly right", "mean log-probability of their tokens"),
        "tokens that greedy decoding also chooses",
    ]
    return table(head, rows)


def fp8_compare() -> list[str]:
    results = Record.read("fp8_compare").results
    compare, answers = results["compare"], results["compare"]["answers"]

    def row(name: str, estimate: Mapping[str, float], form: str) -> list[str]:
        return [name, f"{estimate['value']:{form}}", f"{estimate['low']:{form}} to "
                f"{estimate['high']:{form}}"]  # fmt: skip

    mean_kl = compare["mean_kl"]
    whole = f"{results['mean_kl']:.2e}; the bound is {mean_kl['value'] / results['mean_kl']:.0%}"
    rows = [
        row("mean KL, lower bound from 20 alternatives (nats)", mean_kl, ".2e"),
        ["mean KL over the whole vocabulary, without a server", whole, ""],
        ["KL, p99 and max", f"{compare['kl_percentiles']['p99']:.2e} and "
         f"{compare['kl_percentiles']['max']:.2e}", ""],
        row("same most probable token", compare["top1"], ".2%"),
        row("perplexity of FP8 over BF16", compare["perplexity_ratio"], ".5f"),
        row("equal greedy answers", answers["equal"], ".1%"),
    ]  # fmt: skip
    head = [f"{compare['tokens']:,} tokens of {compare['texts']:,} conversations", "",
            "95 % interval"]  # fmt: skip
    return table(head, rows)


def calibrate_speed() -> list[str]:
    """Return the time of a layer's calibration beside what nothing can beat by much."""
    record = Record.read("calibrate_speed")
    names = {
        "layer": "a layer, without the first",
        "read": "reading its files",
        "compute_at_half_of_peak": "its matrix products alone",
        "over_limit": "a layer over the greater of both",
    }
    rows = [
        [label, spread(record.results["seconds"][name], ".2f")] for name, label in names.items()
    ]
    operations = record.results["fraction_of_device_time"]
    kinds = ", ".join(f"{kind} {fraction:.2f}" for kind, fraction in operations.items())
    tokens, size = record.results["tokens"], record.results["layer_bytes"]
    text = f"A layer of {size / 1e6:,.0f} MB and {tokens:,} tokens. Fractions of its time: {kinds}."
    return [*table(["seconds", ""], rows), "", text, "", conditions(record)]
