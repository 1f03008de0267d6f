"""The limits of the serving path, and the loads that hang up."""

from __future__ import annotations

import pytest

from bench.measurements.hangups import TEXT_MODELS, is_unheard, single_routes, soak_routes
from bench.measurements.servers import Server
from bench.measurements.serving import LIMITS, LOADS, NEW, OLD, Sample, Samples, label, results


def rounds(values: dict[str, float]) -> Samples:
    """Return three rounds of every load, whose quantities are 0.9, 1 and 1.1 of the values."""
    zeros = {"errors": 0.0, "truncated": 0.0}
    return {
        label(*load): [
            {name: value * factor for name, value in values.items()} | zeros
            for factor in (0.9, 1.0, 1.1)
        ]
        for load in LOADS
    }


QUANTITIES = {
    "fraction": 0.96,
    "cpu_us_per_response": 300.0,
    "gateway_us_per_event": 40.0,
    "cores": 0.5,
    "ttft_p50_steps": 3.0,
}


def test_limits_are_compared_with_the_medians_and_with_the_earlier_commit() -> None:
    new = rounds(QUANTITIES)
    old = rounds(QUANTITIES | {"fraction": 0.5, "cpu_us_per_response": 800.0, "cores": 1.0})
    outcome = results({NEW: new, OLD: old})
    assert outcome["faults"] == []
    by_limit = {(limit["load"], limit["quantity"]): limit for limit in outcome["limits"]}
    assert len(by_limit) == len(LIMITS)
    held = {key: limit["held"] for key, limit in by_limit.items()}
    assert held["direct 256x300", "fraction"] and not held["direct 256x900", "fraction"]
    assert held["direct 256x300", "ttft_p50_steps"]  # exactly the limit
    assert held["ensemble 32x300", "cores"] and not held["direct 32x300", "cores"]
    relative = by_limit["direct 256x300", "cpu_us_per_response"]
    assert relative["value"]["median"] == pytest.approx(300 / 800)
    assert not relative["held"] and relative["old"] is None
    assert by_limit["ensemble 256x300", "cpu_us_per_response"]["held"]
    assert by_limit["direct 256x300", "fraction"]["old"]["median"] == pytest.approx(0.5)
    assert by_limit["gateway 256x300", "fraction_of_direct"]["value"]["median"] == 1.0


def test_without_an_earlier_commit_only_absolute_limits_are_compared() -> None:
    limits = results({NEW: rounds(QUANTITIES)})["limits"]
    assert {limit["relative_to"] for limit in limits} == {None}


def test_errors_and_truncated_answers_are_faults() -> None:
    samples = rounds(QUANTITIES)
    bad: Sample = samples["gateway 256x900"][1]
    bad["errors"], bad["truncated"] = 2.0, 3.0
    (fault,) = results({NEW: samples})["faults"]
    assert fault == "gateway 256x900: 2 errors, 3 truncated answers"


def test_every_text_model_and_the_gateway_are_hung_up_on() -> None:
    server = Server(1, http=2, grpc=3, metrics=4, health=5, gateway=6)
    routes = single_routes(server)
    assert list(routes) == [*TEXT_MODELS, "gateway"]
    assert [name for name, loads in routes.items() if is_unheard(loads)] == ["generate"]
    soak = soak_routes(server, 200)
    assert sum(streams for _, streams in soak) == 200
    assert not is_unheard(soak)
    assert {route.target for route, _ in soak} == {2, 3, 6}
