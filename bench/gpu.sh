#!/usr/bin/env bash
# What is to be known of a GPU, in one call of at most eight minutes; each part writes its result as it ends.
#
#   bench/gpu.sh            on a machine with a GPU; results in $OUT (build/gpu unless set), a file for each part
#   bench/gpu.sh --dry      anywhere: that every part's program is there and takes its options; says what would run
#
# In this order, so that what matters most is there if time runs out: the tests that need a GPU, the study's A/B, the FP8
# step (eager, compiled, native), the chip's 8-bit product against the emulated accumulators, bandwidth of casts. A part
# that is stopped keeps what it had printed; one for which no time is left is named in summary.txt.
#
# PYTHON: an interpreter with the package's dependencies. LIMIT: seconds in all (480).
set -uo pipefail
cd "$(dirname "$0")/.."
DRY=no; [ "${1:-}" = --dry ] && DRY=yes
OUT=${OUT:-build/gpu}; LIMIT=${LIMIT:-480}; PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
failed=0

say() { echo "$*" | tee -a "$OUT/summary.txt"; }

# part NAME SECONDS 'COMMAND' 'CHECK': run the command with at most so many seconds; with --dry, the check instead.
part() {
  local name=$1 limit=$2 command=$3 check=$4 begun=$SECONDS left=$((LIMIT - SECONDS - 3)) rc
  if [ $DRY = yes ]; then
    echo "$name, at most $limit s: $command"
    bash -c "$check" >"$OUT/$name.txt" 2>&1 || { failed=1; echo "  FAILED: $check"; tail -n 5 "$OUT/$name.txt"; }
    return
  fi
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 10 ]; then say "$name: not run, no time left"; return; fi
  timeout --signal=INT --kill-after=5 "$limit" bash -c "$command" >"$OUT/$name.txt" 2>&1; rc=$?
  say "$name: exit $rc after $((SECONDS - begun)) s of $limit"
}

: >"$OUT/summary.txt"
say "begun $(date -u +%FT%TZ), limit $LIMIT s"
part tests 130 "$PYTHON -m pytest -n 4 -m cuda tests/cuda -q --durations=10" \
  "$PYTHON -m pytest -m cuda tests/cuda -q --collect-only"
part ab 130 "$PYTHON -m study.run --part gpu --device cuda --workers 3 --results $OUT/study --runs $OUT/runs" \
  "$PYTHON -m study.run --part gpu --count"
rm -rf "$OUT/runs"  # what is kept of a run is its row
part step 120 "$PYTHON -m bench.step --only fp8 --native --how model --rounds 10 --dtype bfloat16 --json $OUT/step.json" \
  "$PYTHON -m bench.step --help"
part accumulators 40 "$PYTHON -m bench.accumulators machine" "$PYTHON -m bench.accumulators --help"
part casts 60 "$PYTHON -m bench.cast --bits 28 24 --threads 1 --formats e4m3fn --rounds 30" "$PYTHON -m bench.cast --help"
[ $DRY = yes ] || say "ended after $SECONDS s"
exit $failed
