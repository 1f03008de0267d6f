#!/bin/bash
# Other people's clients, each in an environment of its own: FOLDER/NAME for
# tests/clients/environments/NAME.txt. An environment is made again when its file has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1

for requirements in tests/clients/environments/*.txt; do
  home=$folder/$(basename "$requirements" .txt)
  cmp -s "$requirements" "$home/installed.txt" && continue
  rm -rf "$home"
  .venv/bin/uv venv --quiet --python .venv/bin/python "$home"
  .venv/bin/uv pip install --quiet --python "$home/bin/python" --requirements "$requirements"
  cp "$requirements" "$home/installed.txt"
done
