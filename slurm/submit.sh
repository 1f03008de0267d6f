#!/bin/bash
# Submit the steps of serve.sbatch as three jobs, each dependent on the one before: the conversion
# needs no GPU, the build one node. Options are passed to every sbatch:
# slurm/submit.sh --partition=gpu --nodes=1
set -euo pipefail
here=$(dirname "$0")

submit() { # STEP OPTION...
  STEPS=$1 sbatch --parsable --job-name="nemotron-$1" --kill-on-invalid-dep=yes "${@:2}" "$here/serve.sbatch"
}

convert=$(submit convert "$@" --gpus-per-node=0)
build=$(submit build "$@" --nodes=1 --ntasks-per-node=1 --dependency="afterok:${convert%;*}")
serve=$(submit serve "$@" --dependency="afterok:${build%;*}")
printf 'convert %s\nbuild   %s\nserve   %s\n' "$convert" "$build" "$serve"
