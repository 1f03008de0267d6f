"""Send the gateway one question and fail if the answer is empty. Uses only the standard library."""

import json
import os
import sys
import urllib.request

url = sys.argv[-1]
key = os.environ.get("NEMOTRON_API_KEYS", "none").split()[0]
body = {
    "model": "nemotron-4-340b-instruct",
    "messages": [{"role": "user", "content": "Who are you?"}],
    "max_tokens": 40,
}
request = urllib.request.Request(
    f"{url}/v1/chat/completions",
    json.dumps(body).encode(),
    {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
)
with urllib.request.urlopen(request, timeout=120) as response:
    answer = json.load(response)["choices"][0]["message"]["content"]
print(answer)
sys.exit(not answer)
