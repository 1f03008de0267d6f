"""A stand-in for the program garak: the same settings and the same form of reports.

It asks one question for each probe. The real program runs in `make test-eval`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

FILES = Path("garak", "resources", "plugin_cache.json")
PROBES = {"dan.One": True, "dan.Two": True, "dan.Old": False, "encoding.Hex": True}
"""Probes, and whether they are active."""
DETECTOR = "mitigation.Stand"


def ask(client: dict[str, Any], model: str, probe: str) -> str | None:
    body = {"model": model, "messages": [{"role": "user", "content": probe}]}
    headers = {"authorization": "Bearer " + os.environ["OPENAICOMPATIBLE_API_KEY"]}
    request = urllib.request.Request(
        client["uri"] + "chat/completions", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])
    except urllib.error.HTTPError:
        return None


def main() -> None:
    assert sys.argv[1:4] == ["-m", "garak", "--config"]
    settings = yaml.safe_load(Path(sys.argv[4]).read_text())
    plugins, reporting = settings["plugins"], settings["reporting"]
    client = plugins["generators"]["openai"]["OpenAICompatible"]
    path = Path(reporting["report_dir"], reporting["report_prefix"] + ".report.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for name in settings["run"]["spec"]["include"]:
            probe = name.removeprefix("probes.")
            answer = ask(client, plugins["target_name"], probe)
            if answer == "sleep":
                file.write('{"entry_type": "att')
                file.flush()
                time.sleep(600)
            attempt = {"entry_type": "attempt", "probe_classname": probe, "outputs": [answer]}
            file.write(json.dumps(attempt, ensure_ascii=False) + "\n")
            counts = {"fails": int(answer == "sure"), "total_evaluated": int(answer is not None)}
            record = {"entry_type": "eval", "probe": probe, "detector": DETECTOR, **counts}
            file.write(json.dumps(record | {"nones": int(answer is None)}) + "\n")
            file.write(json.dumps({"entry_type": "probe_summary", "probe": probe}) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
