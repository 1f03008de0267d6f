"""Recording rules, alerts and dashboard, through Prometheus' own promtool."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import pytest
import yaml

from nemotron_build.profile import load_profile
from nemotron_core import metrics
from nemotron_serve.model_server import ModelServer
from tests.helm.chart import CHART, PRODUCTION, find, render
from tests.serve.wire import stream
from tests.tools import debian_program
from tests.waiting import WAIT, until

POD = 'namespace="models",pod="demo-nemotron-server-0"'
OTHER = 'namespace="models",pod="other-nemotron-server-0"'


def promtool(*arguments: object) -> str:
    command = [debian_program("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(find(render(PRODUCTION), "PrometheusRule")["spec"]))
    return path


def test_rules_are_rules(rules: Path) -> None:
    assert "9 rules found" in promtool("check", "rules", rules)


def test_when_alerts_fire(rules: Path) -> None:
    running, made = "nemotron_requests_running", "nemotron_generated_tokens_total"
    slow = "nemotron_time_to_first_token_seconds_bucket"

    def alert(at: str, name: str, expected: list[dict[str, str]]) -> dict[str, object]:
        return {
            "eval_time": at,
            "alertname": name,
            "exp_alerts": [{"exp_labels": labels} for labels in expected],
        }

    pod = {"namespace": "models", "pod": "demo-nemotron-server-0"}
    profile = load_profile(yaml.safe_load(PRODUCTION.read_text())["profile"])
    half = f"{profile.limits.max_batch_size // 2 + 1}x60"  # twice that is more than a step takes
    tests = [
        {  # a server that works, beside another release's server, which does not count
            "interval": "1m",
            "input_series": [
                {"series": f"{running}{{{POD}}}", "values": "5x60"},
                {"series": f"{made}{{{POD}}}", "values": "0+6000x60"},
                {"series": f"{running}{{{OTHER}}}", "values": "500x60"},
                {"series": f'{slow}{{{POD},le="1"}}', "values": "0+10x60"},
                {"series": f'{slow}{{{POD},le="+Inf"}}', "values": "0+10x60"},
            ],
            "alert_rule_test": [
                alert("50m", name, [])
                for name in (
                    "NemotronNoServer",
                    "NemotronMakesNoTokens",
                    "NemotronIsFull",
                    "NemotronIsSlowToBegin",
                )
            ],
            "promql_expr_test": [
                {
                    "expr": "nemotron_requests",
                    "eval_time": "50m",
                    "exp_samples": [{"labels": f"nemotron_requests{{{POD}}}", "value": 5}],
                },
                {
                    "expr": "nemotron:generated_tokens:rate1m",
                    "eval_time": "50m",
                    "exp_samples": [
                        {"labels": f"nemotron:generated_tokens:rate1m{{{POD}}}", "value": 100}
                    ],
                },
            ],
        },
        {  # a server that is stuck, full, and has been slow
            "interval": "1m",
            "input_series": [
                {"series": f'{running}{{{POD},model="ensemble"}}', "values": half},
                {"series": f'{running}{{{POD},model="tensorrt_llm_bls"}}', "values": half},
                {"series": f"{made}{{{POD}}}", "values": "100x60"},
                {"series": f'{slow}{{{POD},le="30"}}', "values": "0+1x60"},
                {"series": f'{slow}{{{POD},le="60"}}', "values": "0+10x60"},
                {"series": f'{slow}{{{POD},le="+Inf"}}', "values": "0+10x60"},
            ],
            "alert_rule_test": [
                alert("30m", "NemotronMakesNoTokens", [{"severity": "critical", **pod}]),
                alert("30m", "NemotronIsFull", [{"severity": "warning", **pod}]),
                alert(
                    "30m", "NemotronIsSlowToBegin", [{"severity": "warning", "namespace": "models"}]
                ),
            ],
        },
        {  # no server; absent() keeps the labels that its selector names
            "interval": "1m",
            "input_series": [{"series": "up", "values": "1x60"}],
            "alert_rule_test": [
                alert("5m", "NemotronNoServer", []),
                alert("15m", "NemotronNoServer", [{"severity": "critical", "namespace": "models"}]),
            ],
        },
    ]
    text = yaml.safe_load(rules.read_text())
    for group in text["groups"]:
        for rule in group["rules"]:
            rule.pop("annotations", None)  # promtool would compare them word by word
    bare = rules.with_name("bare.yaml")
    bare.write_text(yaml.safe_dump(text))
    file = rules.with_name("test.yaml")
    file.write_text(yaml.safe_dump({"rule_files": [str(bare)], "tests": tests}))
    assert "SUCCESS" in promtool("test", "rules", file)


def test_every_metric_exists(server: ModelServer) -> None:
    """Each metric is on the metrics page of a real server or recorded by a rule."""
    stream(server, text_input="<extra_id_1>User\nHi", max_tokens=3)
    rules = find(render(PRODUCTION), "PrometheusRule")["spec"]["groups"]
    recorded = {rule["record"] for rule in rules[0]["rules"]}
    dashboard = json.loads((CHART / "files" / "dashboard.json").read_text())
    expressions = [rule["expr"] for group in rules for rule in group["rules"]]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = set(re.findall(r"\bn(?:emotron|v)[_:][a-z_:0-9]+", " ".join(expressions))) - recorded
    used = {name for name in used if not name.startswith("nemotron-")}
    assert metrics.RUNNING_METRIC in used
    of_the_gateway = {"nemotron_gateway_requests_total"}  # seen in test_run.py
    expected = used - of_the_gateway
    until(  # the models pass their counts on twice a second
        lambda: expected <= names_on(server), explain=lambda: expected - names_on(server)
    )


def names_on(server: ModelServer) -> set[str]:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.endpoints.metrics}/metrics", timeout=WAIT
    ) as page:
        return set(re.findall(r"^(\w+)[ {]", page.read().decode(), re.MULTILINE))


def test_the_dashboard_is_in_its_config_map() -> None:
    data = find(render(PRODUCTION), "ConfigMap", "-dashboard")["data"]
    (text,) = data.values()
    assert json.loads(text) == json.loads((CHART / "files" / "dashboard.json").read_text())
