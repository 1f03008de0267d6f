#!/bin/bash
# Pin every package of `make demo` and `make test` by version and hash: locks/demo.txt, locks/test.txt.
# What is pinned stays unless pyproject.toml no longer allows it; --upgrade takes the newest of everything.
# --check changes nothing and fails if a lock does not fit pyproject.toml. PyTorch is not in the locks.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-}
folder=locks
if [ "$mode" = --check ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  cp locks/*.txt "$folder"
fi

compile() { # EXTRA OUTPUT [OPTION…]
  .venv/bin/uv pip compile pyproject.toml --extra "$1" --output-file "$2" "${@:3}" \
    --universal --python-version 3.10 --generate-hashes \
    --no-emit-index-url --no-annotate --no-header --quiet
}
upgrade=()
[ "$mode" = --upgrade ] && upgrade=(--upgrade)
compile dev "$folder/test.txt" "${upgrade[@]}"
compile cpu "$folder/demo.txt" --constraint "$folder/test.txt" "${upgrade[@]}"

if [ "$mode" = --check ]; then
  for lock in demo test; do
    cmp -s "locks/$lock.txt" "$folder/$lock.txt" || {
      echo "locks/$lock.txt does not fit pyproject.toml: run scripts/lock.sh" >&2
      exit 1
    }
  done
fi
