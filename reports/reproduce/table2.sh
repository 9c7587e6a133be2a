#!/usr/bin/env bash
# Table 2: pass@1 of GKD, DistiLLM and DistiLLM-2, with and without selection, on mathematics and code.
# Everything resumes: run it again after a stop. DRY_RUN=1 prints and checks the commands only.
set -euo pipefail
cd "$(dirname "$0")/../.."
. reports/reproduce/commands.sh
. reports/reproduce/settings.sh
: "${PAIRS:=qwen2-math qwen2.5-math deepseek-coder qwen2.5-coder}"
: "${METHODS:=gkd distillm distillm2}"

# solved MODEL NAME: pass@1, greedy, on the tasks of the pair's kind.
solved() {
  local tasks=($MATH_TASKS) tokens=$MATH_TOKENS
  [ "$KIND" = math ] || tasks=($CODE_TASKS) tokens=$CODE_TOKENS
  selectkd passk --model "$1" --tasks "${tasks[@]}" --max-new-tokens "$tokens" --temperature 0 \
    --name "$2" --out "$PLACE/records"
}

evaluation
for PAIR in $PAIRS; do
  pair "$PAIR"
  text_of "$KIND"
  fine_tune
  write_text
  write_pairs
  solved "$TEACHER" teacher
  solved "$STUDENT" start
  for SEED in $SEEDS; do
    for METHOD in $METHODS; do
      for VERIFIER in none "$GATE"; do
        distil "$METHOD" "$VERIFIER" "$SEED"
        solved "$TRAINED" "$NAME"
      done
    done
  done
  printed 2 "$PLACE/records" "$PAIR"
done
