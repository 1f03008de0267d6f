"""The tables of the converter's smaller measurements."""

from __future__ import annotations

from bench.measurements.records import Record, conditions
from bench.measurements.timing import spread
from nemotron_bench.report import table


def convert_index() -> list[str]:
    record = Record.read("convert_index")
    rows = [
        [
            f"{row['entries']:,}",
            f"{row['bytes'] / 1e6:,.0f}",
            spread(row["cpu_seconds"], ".1f"),
            f"{row['cpu_seconds']['median'] / row['bytes'] * 1e8:.1f}",
        ]
        for row in record.results["rows"]
    ]
    head = ["chunks", "MB", "CPU seconds", "CPU seconds for 100 MB"]
    return [*table(head, rows), "", conditions(record)]


def convert_startup() -> list[str]:
    record = Record.read("convert_startup")
    rows = [
        [name, *(spread(record.results[key][name], ".2f") for key in ("cpu_seconds", "seconds"))]
        for name in record.results["cpu_seconds"]
    ]
    return [*table(["", "CPU seconds", "seconds"], rows), "", conditions(record)]


def hashing() -> list[str]:
    record = Record.read("hashing")
    rates = record.results["gb_per_s"]
    threads = sorted({int(name.split()[1]) for name in rates})
    rows = [
        [label, *(spread(rates[f"{name} {count}"], ".2f") for count in threads)]
        for name, label in (("sha256", "SHA-256"), ("blake3", "BLAKE3"))
    ]
    names = [f"{count} threads" if count > 1 else "1 thread" for count in threads]
    return [*table(["GB/s", *names], rows), "", conditions(record)]
