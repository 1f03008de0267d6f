#!/bin/bash
# Programs that the tests drive and that are no part of the product: Debian packages, Python
# programs in environments of their own (.tools/NAME for tests/tools/NAME.txt), so that their
# dependencies do not meet ours, and what tests/tools/fetch_NAME.py puts into .tools/NAME.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/debian_packages.sh tests/tools/debian.list

# The registry's plain PyTorch carries gigabytes of CUDA; see the Makefile.
install() { # HOME REQUIREMENTS
  local uv=(.venv/bin/uv pip install --quiet --python "$1/bin/python") torch
  torch=$(grep '^torch==' "$2" || true)
  if [ -n "$torch" ]; then
    .venv/bin/pip --python "$1/bin/python" install --quiet --disable-pip-version-check "$torch" ||
      "${uv[@]}" --torch-backend cpu "${torch%+cpu}"
  fi
  "${uv[@]}" --requirements <(grep -v '^torch==' "$2")
}

for requirements in tests/tools/*.txt; do
  [ -e "$requirements" ] || continue
  home=.tools/$(basename "$requirements" .txt)
  cmp -s "$requirements" "$home/installed.txt" && continue
  rm -rf "$home"
  .venv/bin/uv venv --quiet --python .venv/bin/python "$home"
  install "$home" "$requirements"
  cp "$requirements" "$home/installed.txt"
done

for script in tests/tools/fetch_*.py; do
  [ -e "$script" ] || continue
  name=$(basename "$script" .py)
  home=.tools/${name#fetch_}
  cmp -s "$script" "$home/fetched.py" && continue
  rm -rf "$home"
  .venv/bin/python "$script" "$home"
  cp "$script" "$home/fetched.py"
done
