"""Tasks of inspect-ai: questions with exact answers, and the scores of a model on them.

Usage: python inspect_task.py MODEL LOGS ROWS.jsonl…; rows have `question` and `answer`.
"""

import json
import sys
from pathlib import Path

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import exact
from inspect_ai.solver import generate

model, logs, *files = sys.argv[1:]
tasks = []
for number, file in enumerate(files):
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    samples = [Sample(input=row["question"], target=row["answer"]) for row in rows]
    tasks.append(
        Task(
            dataset=MemoryDataset(samples), solver=generate(), scorer=exact(), name=f"task{number}"
        )
    )
done = eval(tasks, model=model, temperature=0, max_tokens=200, log_dir=logs, display="none")
results = {
    log.eval.task: [log.status, len(log.samples), log.results.scores[0].metrics["mean"].value]
    for log in done
}
print(json.dumps([results[name] for name in sorted(results)]))
