#!/bin/bash
# Build sdist and wheel, install the wheel in a clean environment, and go the whole way with it, away from
# this checkout. The wheel is built from the sdist, so both are whole.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
.venv/bin/uv build --quiet --out-dir "$folder/dist" .
.venv/bin/uv venv --quiet --python .venv/bin/python "$folder/venv"
install=(.venv/bin/uv pip install --quiet --python "$folder/venv/bin/python")
"${install[@]}" --require-hashes --requirements locks/demo.txt
"${install[@]}" --no-deps "$folder"/dist/*.whl
cd "$folder"
venv/bin/nemotron --version
[ "$(venv/bin/nemotron --version)" = "nemotron $(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")" ]
venv/bin/nemotron demo --exit --free-ports | tee demo.txt
grep -qx stopped demo.txt
