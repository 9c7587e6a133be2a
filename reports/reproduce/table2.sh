#!/usr/bin/env bash
# Table 2: pass@1 of GKD, DistiLLM and DistiLLM-2, with and without selection, on mathematics.
# Everything resumes: run it again after a stop. DRY_RUN=1 prints and checks the commands only.
# PAIRS may name the code pairs too (deepseek-coder qwen2.5-coder): their students are trained and not measured.
set -euo pipefail
cd "$(dirname "$0")/../.."
. reports/reproduce/commands.sh
. reports/reproduce/settings.sh
: "${PAIRS:=qwen2-math qwen2.5-math}"
: "${METHODS:=gkd distillm distillm2}"

# solved MODEL NAME: pass@1 on GSM8K, greedy.
solved() {
  [ "$KIND" = math ] || return 0
  selectkd passk --model "$1" --tasks gsm8k --shots "$MATH_SHOTS" --max-new-tokens "$MATH_TOKENS" --temperature 0 \
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
  [ "$KIND" != math ] || printed 2 "$PLACE/records" "$PAIR"
done
note "Not covered of Table 2: MATH (symbolic answers), HumanEval and MBPP (programs). Only GSM8K is measured."
