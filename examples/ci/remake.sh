#!/usr/bin/env bash
# Makes both committed plans again with the calibration that ships with lorasize, as when that calibration has changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
calibration=$PWD/../../calibrations/builtin-smollm2-135m-instruct.cpu.float32.json
corpus=(handbook.md stations.jsonl)
after=$(mktemp -d)
trap 'rm -rf "$after"' EXIT
cp handbook.md lorasize.toml grown/stations.jsonl "$after"

lorasize plan "${corpus[@]}" --calibration "$calibration"
cd "$after"
code=0
lorasize plan "${corpus[@]}" --calibration "$calibration" --out "$OLDPWD/grown/lorasize.plan.json" || code=$?
if [ "$code" -ne 1 ]; then
  echo "grown/ should be over budget (exit code 1) and is not (exit code $code)" >&2
  exit 1
fi
