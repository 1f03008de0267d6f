"""Write the tables of docs/performance.md: `python -m bench.measurements.pages`.

Each stands between `<!-- NAME -->` and `<!-- end -->`. A table whose results are not there says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nemotron_bench.report import table
from nemotron_build.plan import plans
from nemotron_build.profile import CpuProfile, load_profile, shipped_profiles

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "measurements" / "results"
MISSING = "*Not measured yet on a quiet machine.*"
Result = Mapping[str, Any]


def hops(result: Result) -> list[str]:
    rates = result["tokens_per_second"]
    counts = list(next(iter(rates.values())))
    rows = []
    for name, by_count in rates.items():
        responses = result["responses_per_second"][name]
        cells = (
            f"{spread(by_count[count], ',.0f')}: {responses[count]['median']:,.0f} responses/s"
            for count in counts
        )
        rows.append([name, *cells])
    return [*table(["tokens/s at streams", *counts], rows), "", told(result)]


def hops_real(result: Result) -> list[str]:
    rates = result["tokens_per_second"]
    alone = rates["engine alone"]
    rows = []
    for name, by_count in rates.items():
        cells = []
        for count, one in by_count.items():
            share = one["median"] / alone[count]["median"]
            responses = result["responses_per_second"][name][count]["median"]
            cells.append(
                f"{spread(one, ',.0f')}: {share:.2f}, {one['median'] / responses:.1f} a response"
            )
        rows.append([name, *cells])
    return [*table(["tokens/s at streams: share", *alone], rows), "", told(result)]


def peers(result: Result) -> list[str]:
    engines: Mapping[str, Any] = result["engines"]
    kinds = list(next(iter(engines.values()))["tokens_per_second"])
    rows = []
    for name, one in engines.items():
        rates = [spread(one["tokens_per_second"][kind], ",.1f") for kind in kinds]
        memory = (f"{one[kind] / 1e6:,.0f}" for kind in ("rss", "peak_rss"))
        rows.append([name, *rates, f"{one['load_seconds']:.1f}", *memory])
    best = []
    for kind in kinds:
        medians = {n: one["tokens_per_second"][kind]["median"] for n, one in engines.items()}
        others = [value for name, value in medians.items() if name != "openvino"]
        best.append(f"{medians['openvino'] / max(others):.2f}" if others else "–")
    rows.append(["openvino over the best peer", *best, "", "", ""])
    bandwidth = result["read_bandwidth"]["median"] / 1e9
    return [
        *table(["tokens/s", *kinds, "load s", "RSS MB", "peak RSS MB"], rows),
        "",
        f"Memory was read at {bandwidth:.1f} GB/s in turn with decoding, and a token reads "
        f"{result['bytes_read_per_token'] / 1e6:,.0f} MB: the limit at batch 1, which is what "
        f"`nemotron plan` predicts, is {result['limit_batch_1']:.1f} tokens/s. Of the limit at its "
        f"time the CPU engine reached {spread(result['openvino_over_limit'], '.2f')}.",
        "",
        told(result),
    ]


def startup(result: Result) -> list[str]:
    rows = [[step, spread(one, ".2f")] for step, one in result["steps"].items()]
    return [*table(["step", "seconds after the start"], rows), "", told(result)]


def perf_analyzer(result: Result) -> list[str]:
    rows = [
        [
            label,
            name,
            *(
                spread(one[generator], ",.0f" if one[generator]["median"] >= 100 else ".3g")
                for generator in ("builtin", "perf_analyzer")
            ),
            f"{one['ratio']:.3f}",
        ]
        for label, by_name in result["rows"].items()
        for name, one in by_name.items()
    ]
    return [*table(["load", "", "builtin", "perf_analyzer", "ratio"], rows), "", told(result)]


def plan() -> list[str]:
    """Nothing is measured here, so it is always there."""
    rows = []
    for name in shipped_profiles():
        profile = load_profile(name)
        if isinstance(profile, CpuProfile) or name.endswith("-pytorch"):
            continue
        (one,) = plans(profile, [], None)
        rows.append(
            [
                name,
                f"{one.weights / 2**30:.1f} GiB",
                f"{one.sequences}",
                f"{one.weight_read_seconds * 1e3:.1f} ms",
                f"{one.decode_rate(one.batch):,.0f} tokens/s",
                f"{one.prefill_rate:,.0f} tokens/s",
            ]
        )
    head = [
        *("profile", "weights per GPU", "4k sequences", "token at batch 1"),
        *("decode, batch 64", "prefill at 60 %"),
    ]
    return table(head, rows)


TABLES: dict[str, Callable[[Result], list[str]]] = {
    "hops": hops,
    "hops_real": hops_real,
    "cpu_peers": peers,
    "cpu_peers_zen4": peers,
    "startup": startup,
    "perf_analyzer_check": perf_analyzer,
    "perf_analyzer_check_tiny": perf_analyzer,
}
"""By the name of the result and of its place on the page."""


def spread(one: Mapping[str, float], form: str) -> str:
    """Median (min–max)."""
    return f"{one['median']:{form}} ({one['min']:{form}}–{one['max']:{form}})"


def told(result: Result) -> str:
    machine = result["machine"]
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory'] / 2**30:.0f} GiB, "
        f"Python {machine['python']}; {result['runs']} runs, median (lowest–highest)."
    )


def page(text: str, results: Path) -> str:
    """The page with all its tables made anew."""

    def fill(place: re.Match[str]) -> str:
        name = place[1]
        if name == "plan":
            lines = plan()
        elif (path := results / f"{name}.json").is_file():
            lines = TABLES[name](json.loads(path.read_text()))
        else:
            lines = [MISSING]
        return "\n".join([f"<!-- {name} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), RESULTS))
