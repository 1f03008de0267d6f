#!/bin/bash
# Install the Debian packages of a list that are missing: debian_packages.sh LIST.
set -euo pipefail

mapfile -t packages < <(sed 's/#.*//' "$1" | xargs -n 1)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  else
    printf '\n*** Not Debian, or not root: tests that need these are SKIPPED: %s ***\n\n' "${missing[*]}" >&2
  fi
fi
