"""distilabel as another way to send a file of chats; see `batch_peers.py`.

    PYTHON bench/measurements/batch_distilabel.py URL INPUT OUTPUT CONCURRENCY

PYTHON is that of an environment with `distilabel[openai]`, requests and beautifulsoup4.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration


def main(url: str, source: Path, output: Path, concurrency: int) -> None:
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    data = [
        {"custom_id": row["custom_id"], "instruction": row["messages"][0]["content"]}
        for row in rows
    ]
    settings = {"max_new_tokens": 1024, "temperature": 0.0}
    llm = OpenAILLM(
        model="stand-in", base_url=f"{url}/v1", api_key="none", generation_kwargs=settings
    )
    with Pipeline(name="batch") as pipeline:
        load = LoadDataFromDicts(data=data, batch_size=concurrency)
        load >> TextGeneration(llm=llm, input_batch_size=concurrency)
    answers = pipeline.run(use_cache=False)["default"]["train"]
    with output.open("w") as file:
        for answer in answers:
            line = {"custom_id": answer["custom_id"], "response": answer["generation"]}
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
