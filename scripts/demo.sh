#!/bin/bash
# The whole way on this machine: .nemo → TP=8 checkpoint → engine → Triton → streamed answers.
# DEMO_EXIT=1 ends after the answers; DEMO_PORTS=free takes free ports instead of 8000 to 8002.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
model=tests/tiny_nemotron/tiny_nemotron.nemo

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf demo
mkdir demo
step nemotron inspect "$model"
step nemotron convert "$model" -o demo/checkpoint --tp 8
step nemotron build demo/checkpoint -o demo/engine --profile cpu

ports=()
[ "${DEMO_PORTS:-}" = free ] && ports=(--http-port 0 --grpc-port 0 --metrics-port 0 --health-port 0 --gateway-port 0)
printf '\n\033[1m$ nemotron serve demo/engine\033[0m\n'
nemotron serve demo/engine "${ports[@]}" --port-file demo/ports.json --log-file demo/triton.log &
server=$!
stop() { kill -TERM "$server" 2>/dev/null || true; wait "$server" || true; }
trap stop EXIT
while [ ! -e demo/ports.json ]; do
  kill -0 "$server" 2>/dev/null || { trap - EXIT; wait "$server"; }
  sleep 0.1
done
url=127.0.0.1:$(python -c 'import json; print(json.load(open("demo/ports.json"))["grpc"])')

step nemotron chat --url "$url" "Why is the sky blue?"
printf '\n\033[1mA conversation: the second turn needs the first.\033[0m\n'
turns=("Hi! My name is Mia and I love tea." "What is my name, and what should I drink?")
printf '> %s\n' "${turns[@]}"
printf '%s\n' "${turns[@]}" | nemotron chat --url "$url"
step nemotron chat --url "$url" "日本の四季について教えてください。"

if [ "${DEMO_EXIT:-}" = 1 ]; then
  trap - EXIT
  kill -TERM "$server"
  wait "$server"
  exit
fi
printf '\nThe server stays up. In another terminal:\n'
printf '  .venv/bin/nemotron chat --url %s\n' "$url"
printf 'Ctrl-C drains and stops.\n'
trap - EXIT
trap : INT  # it reaches the server too, which drains; wait for that
wait "$server" || wait "$server"
