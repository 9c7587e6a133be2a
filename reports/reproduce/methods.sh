#!/usr/bin/env bash
# Every recipe x {no gate, Top-k, Spec-k} x 3 seeds on the embedded pair, and the table of pass@1 from the records.
# No GPU, no network. Everything resumes: run it again after a stop; it may run in the background:
#
#   JOBS=2 nohup bash reports/reproduce/methods.sh > methods.log 2>&1 &
#
# SEEDS, RECIPES (words) and OUT narrow it; DRY_RUN=1 prints the commands only.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${JOBS:=2}" "${SEEDS:=0 1 2}" "${RECIPES:=}" "${OUT:=reports/records/methods}" "${DRY_RUN:=0}" "${PYTHON:=python}"
export OMP_NUM_THREADS=1
words=(--jobs "$JOBS" --out "$OUT")
# shellcheck disable=SC2206 # several words each
words+=(--seeds $SEEDS ${RECIPES:+--recipes $RECIPES})
[ "$DRY_RUN" = 0 ] || words+=(--dry-run)
exec "$PYTHON" reports/reproduce/methods.py "${words[@]}"
