#!/usr/bin/env bash
# Table 1: win rates of seven methods, with and without selection, for three teacher-student pairs.
# Everything resumes: run it again after a stop. DRY_RUN=1 prints and checks the commands only.
set -euo pipefail
cd "$(dirname "$0")/../.."
. reports/reproduce/commands.sh
. reports/reproduce/settings.sh
: "${PAIRS:=qwen2 danube2 gemma2}"
: "${METHODS:=kd seqkd imitkd gkd distillm skd distillm2}"

needs_judge
evaluation
for PAIR in $PAIRS; do
  pair "$PAIR"
  text_of "$KIND"
  fine_tune
  write_text
  write_pairs
  judged "$TEACHER" teacher
  judged "$STUDENT" start
  for SEED in $SEEDS; do
    for METHOD in $METHODS; do
      for VERIFIER in none "$GATE"; do
        distil "$METHOD" "$VERIFIER" "$SEED"
        judged "$TRAINED" "$NAME"
      done
    done
  done
  printed 1 "$PLACE/records" "$PAIR"
done
