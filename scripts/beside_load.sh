#!/bin/bash
# Run a command beside eight processes that keep every core busy: scripts/beside_load.sh COMMAND…
set -euo pipefail
busy=()
for _ in 1 2 3 4 5 6 7 8; do
  (while :; do :; done) &
  busy+=($!)
done
trap 'kill "${busy[@]}"' EXIT
"$@"
