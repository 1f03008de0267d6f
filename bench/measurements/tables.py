"""The tables of the pages, each made from one or more records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bench.measurements.batch_tables import batch_slow, batch_speed
from bench.measurements.convert_tables import convert_index, convert_startup, hashing
from bench.measurements.cpu_peers import OURS
from bench.measurements.fp8_tables import calibrate_speed, fp8_accuracy, fp8_compare
from bench.measurements.records import Record, conditions
from bench.measurements.serving_tables import hangups, hops, leaving, serving
from bench.measurements.timing import spread
from nemotron_bench.report import table
from nemotron_build.plan import plans
from nemotron_build.profile import load_profile, shipped_profiles


def peers(name: str) -> list[str]:
    record = Record.read(name)
    results = record.results
    engines: Mapping[str, Any] = results["engines"]
    loads = list(engines["openvino"]["tokens_per_second"])
    rows = []
    for engine, values in engines.items():
        rates = [spread(values["tokens_per_second"][load], ",.1f") for load in loads]
        memory = (f"{values[key] / 1e6:,.0f}" for key in ("rss", "peak_rss"))
        rows.append([engine, *rates, f"{values['load_seconds']:.1f}", *memory])
    ratios = [f"{over_best_peer(engines, load):.2f}" for load in loads]
    rows.append([f"{ours(engines)} over the best peer", *ratios, "", "", ""])
    return [
        *table(["tokens/s", *loads, "load s", "RSS MB", "peak RSS MB"], rows),
        "",
        f"Memory was read at {results['read_bandwidth']['median'] / 1e9:.1f} GB/s in turn with "
        f"decoding, and a token reads {results['bytes_read_per_token'] / 1e6:,.0f} MB. So the "
        f"limit at batch 1, which `nemotron plan` predicts, is {results['limit_batch_1']:.1f} "
        "tokens/s. The CPU engine reached a fraction of "
        f"{spread(results['openvino_over_limit'], '.2f')} of the limit at the same time.",
        "",
        conditions(record),
    ]


def over_best_peer(engines: Mapping[str, Any], load: str) -> float:
    """Return our median tokens per second over those of the fastest other engine."""
    medians = {
        name: values["tokens_per_second"][load]["median"] for name, values in engines.items()
    }
    peers = [median for name, median in medians.items() if name not in OURS]
    return float(medians[ours(engines)] / max(peers))


def ours(engines: Mapping[str, Any]) -> str:
    """Return which of our engines is compared: the served one, as peers are, if it was measured."""
    return next(name for name in reversed(OURS) if name in engines)


def startup() -> list[str]:
    record = Record.read("startup")
    rows = [[step, spread(times, ".2f")] for step, times in record.results["steps"].items()]
    return [*table(["step", "seconds after the start"], rows), "", conditions(record)]


def perf_analyzer(name: str) -> list[str]:
    record = Record.read(name)
    rows = [
        [
            load,
            quantity,
            *(
                spread(values[tool], ",.0f" if values[tool]["median"] >= 100 else ".3g")
                for tool in ("builtin", "perf_analyzer")
            ),
            f"{values['ratio']:.3f}",
        ]
        for load, quantities in record.results["rows"].items()
        for quantity, values in quantities.items()
    ]
    head = ["load", "", "builtin", "perf_analyzer", "ratio"]
    return [*table(head, rows), "", conditions(record)]


def plan() -> list[str]:
    """Return the table of `nemotron plan`, which is computed and needs no record."""
    rows = []
    for name in shipped_profiles():
        profile = load_profile(name)
        if profile.lane != "tensorrt":  # the others are the same GPUs
            continue
        (profile_plan,) = plans(profile, [], None)
        rows.append(
            [
                name,
                f"{profile_plan.weights / 2**30:.1f} GiB",
                f"{profile_plan.sequences}",
                f"{profile_plan.weight_read_seconds * 1e3:.1f} ms",
                f"{profile_plan.decode_rate(profile_plan.batch):,.0f} tokens/s "
                f"at {profile_plan.batch}",
                f"{profile_plan.prefill_rate:,.0f} tokens/s",
            ]
        )
    head = [
        *("profile", "weights per GPU", "4k sequences", "token at batch 1"),
        *("decode, full batch", "prefill at 60 %"),
    ]
    return table(head, rows)


def convert() -> list[str]:
    cp, modelopt = Record.read("convert_speed"), Record.read("convert_modelopt")
    cp_seconds, modelopt_seconds = cp.results["seconds"], modelopt.results["seconds"]
    rss = modelopt.results["peak_rss"]
    (version,) = (
        package.partition("==")[2]
        for package in modelopt.results["packages"]
        if package.startswith("nvidia-modelopt==")
    )

    def conversion(record: Record) -> str:
        size, runs = record.results["bytes"] / 1e9, record.arguments["runs"]
        return f"`nemotron convert`: {size:.1f} GB, zarr → TP 8, {runs} runs"

    rows = [
        [conversion(cp), cp_seconds["convert"], f"{cp.results['peak_rss'] / 1e6:,.0f} MB"],
        ["`cp -r` of the same bytes", cp_seconds["cp"], ""],
        ["`cp -r` and `sync`, which gives the same guarantee", cp_seconds["cp and sync"], ""],
        [
            conversion(modelopt),
            modelopt_seconds["nemotron convert"],
            f"{rss['nemotron convert'] / 1e6:,.0f} MB",
        ],
        [
            f"NVIDIA ModelOpt {version}: the same weights from a Hugging Face folder",
            modelopt_seconds["ModelOpt"],
            f"{rss['ModelOpt'] / 1e6:,.0f} MB",
        ],
    ]
    return [
        *table(
            ["in turn in one run", "seconds", "peak RSS of all processes"],
            [[label, spread(seconds, ".1f"), memory] for label, seconds, memory in rows],
        ),
        "",
        f"The throughput was {cp.results['throughput_over_cp']:.1f} times that of `cp -r`, and "
        f"{cp.results['throughput_over_cp_and_sync']:.2f} times that of `cp -r` and `sync`. "
        f"ModelOpt took {modelopt.results['modelopt_time_over_ours']:.1f} times as long and "
        f"{modelopt.results['modelopt_rss_over_ours']:.0f} times the memory.",
        "",
        f"{cp.machine['cores']} cores of {cp.machine['cpu']}; median (lowest–highest).",
    ]


def row_spread(row: Mapping[str, float], form: str) -> str:
    """Return the spread of a row that has its summary of seconds in three fields."""
    return spread({key: row[f"{key}_seconds"] for key in ("median", "min", "max")}, form)


def convert_scaling() -> list[str]:
    record = Record.read("convert_scaling")
    rows = [
        [
            f"{row['bytes'] / 1e9:.1f} GB",
            row_spread(row, ".1f"),
            f"{row['peak_rss'] / 1e6:,.0f} MB",
        ]
        for row in record.results["rows"]
    ]
    return [*table(["bytes", "seconds", "peak RSS"], rows), "", conditions(record)]


def fp8_quantize() -> list[str]:
    record = Record.read("fp8_quantize")
    labels = {
        "table": "table look-up",
        "torch": "PyTorch's conversion",
        "amax": "amax",
        "amax by torch": "amax by PyTorch",
        "disk": "reading the same bytes from this machine's disk",
    }
    rates = record.results["gb_per_s"]
    rows = [[label, spread(rates[name], ".2f")] for name, label in labels.items()]
    return [*table(["method, on one core", "GB/s of BF16 input"], rows), "", conditions(record)]


def calibrate_memory() -> list[str]:
    record = Record.read("calibrate_memory")
    by_layers: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted(record.results["rows"], key=lambda row: not row["states_in_memory"]):
        by_layers.setdefault(row["layers"], []).append(row)
    rows = []
    for layers, pair in by_layers.items():
        cells = [
            f"{row['least_peak_rss'] / 1e6:,.0f}–{row['peak_rss'] / 1e6:,.0f} MB, "
            f"{row_spread(row, '.1f')} s"
            for row in pair
        ]
        rows.append([str(layers), f"{pair[0]['bytes'] / 1e9:.1f} GB", *cells])
    head = [
        *("layers", "weights", "hidden states in memory: peak RSS, time"),
        "hidden states on disk: peak RSS, time",
    ]
    return [*table(head, rows), "", conditions(record)]


def gateway_overhead() -> list[str]:
    record = Record.read("gateway_overhead")
    rows = []
    for row in record.results["rows"]:
        rate, first = row["tokens_per_second"], row["first_token_seconds"]
        rows.append(
            [
                row["source"],
                str(row["streams"]),
                spread(rate["ratio"], ".3f"),
                spread(first["direct"], ".1f", 1e3),
                spread(first["gateway"], ".1f", 1e3),
                spread(row["gateway_us_per_event"], ".0f"),
            ]
        )
    head = [
        *("", "streams", "tokens/s through the gateway / direct", "first token ms, direct"),
        *("first token ms, through the gateway", "CPU time of the gateway per event, µs"),
    ]
    return [*table(head, rows), "", conditions(record)]


def idle_connections() -> list[str]:
    """Return the time of a chat request without and with hundreds of other connections."""
    record = Record.read("idle_connections")
    results = record.results
    ways = {"alone": "none", "beside": f"{record.arguments['connections']}"}
    rows = [
        [name, spread(results["seconds"][way], ".1f", 1e3), ratio]
        for (way, name), ratio in zip(
            ways.items(), ("", spread(results["ratio"], ".2f")), strict=True
        )
    ]
    head = ["other connections", "a request's median, ms", "over none, in the same run"]
    closed = spread(results["closed_after_seconds"], ".1f")
    ends = f"{results['failures']} requests failed; a connection was closed after {closed} s."
    return [*table(head, rows), "", ends, "", conditions(record)]


TABLES: Mapping[str, Callable[[], list[str]]] = {
    "plan": plan,
    "serving": partial(serving, "serving"),
    "hops": hops,
    "hangups": hangups,
    "leaving": leaving,
    "cpu_peers": partial(peers, "cpu_peers"),
    "cpu_peers_zen4": partial(peers, "cpu_peers_zen4"),
    "cpu_peers_avx2": partial(peers, "cpu_peers_avx2"),
    "startup": startup,
    "perf_analyzer_check": partial(perf_analyzer, "perf_analyzer_check"),
    "perf_analyzer_check_tiny": partial(perf_analyzer, "perf_analyzer_check_tiny"),
    "convert": convert,
    "convert_scaling": convert_scaling,
    "convert_index": convert_index,
    "convert_startup": convert_startup,
    "hashing": hashing,
    "fp8_quantize": fp8_quantize,
    "fp8_accuracy": fp8_accuracy,
    "fp8_compare": fp8_compare,
    "calibrate_memory": calibrate_memory,
    "calibrate_speed": calibrate_speed,
    "gateway_overhead": gateway_overhead,
    "idle_connections": idle_connections,
    "batch_speed": batch_speed,
    "batch_slow": batch_slow,
}
"""Tables by the name of their markers in a page."""
