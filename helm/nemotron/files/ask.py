"""Send the gateway one question and fail if the answer is empty. Uses only the standard library."""

import json
import os
import sys
import urllib.request

url = sys.argv[-1]
key = os.environ.get("NEMOTRON_API_KEYS", "none").split()[0]
headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}


def ask(path, body=None):
    """Return the answer to a request, as JSON."""
    content = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"{url}{path}", content, headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


body = {
    "model": ask("/v1/models")["data"][0]["id"],
    "messages": [{"role": "user", "content": "Who are you?"}],
    "max_tokens": 40,
}
answer = ask("/v1/chat/completions", body)["choices"][0]["message"]["content"]
print(answer)
sys.exit(not answer)
