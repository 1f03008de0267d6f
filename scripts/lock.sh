#!/bin/bash
# Pin every package of `make demo` and `make test` by version and hash: locks/demo.txt, locks/test.txt;
# and those of each harness of `nemotron eval`: NAME.in to NAME.txt beside it, without NAME.excludes.
# What is pinned stays unless pyproject.toml no longer allows it; --upgrade takes the newest of everything.
# --check changes nothing and fails if a lock does not fit pyproject.toml; a test compares the harnesses' locks with
# their sources. PyTorch is not in the locks.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-}
folder=locks harnesses=evaluate/nemotron_evaluate/harnesses/locks
if [ "$mode" = --check ]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  cp locks/*.txt "$folder"
fi

compile() { # SOURCE OUTPUT [OPTION…]; the source may name the oldest Python that it runs on
  local python
  python=$(sed -n 's/^# Python //p' "$1")
  .venv/bin/uv pip compile "$1" --output-file "$2" "${@:3}" \
    --universal --python-version "${python:-3.10}" --generate-hashes \
    --no-emit-index-url --no-annotate --no-header --quiet
}
upgrade=()
[ "$mode" = --upgrade ] && upgrade=(--upgrade)
compile pyproject.toml "$folder/test.txt" --extra dev "${upgrade[@]}"
compile pyproject.toml "$folder/demo.txt" --extra cpu --constraint "$folder/test.txt" "${upgrade[@]}"

if [ "$mode" = --check ]; then
  for lock in demo test; do
    cmp -s "locks/$lock.txt" "$folder/$lock.txt" || {
      echo "locks/$lock.txt does not fit pyproject.toml: run scripts/lock.sh" >&2
      exit 1
    }
  done
else
  for source in "$harnesses"/*.in; do
    excludes=()
    [ -e "${source%.in}.excludes" ] && excludes=(--excludes "${source%.in}.excludes")
    compile "$source" "${source%.in}.txt" "${excludes[@]}" "${upgrade[@]}"
  done
fi
