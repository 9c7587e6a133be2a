#!/usr/bin/env bash
# Table 5: Llama-68m as the draft of Phi-3-medium and Phi-3.5-mini after SFT, GKD, DistiLLM, DistiLLM-2 and SelecTKD.
# Everything resumes: run it again after a stop. DRY_RUN=1 prints and checks the commands only.
#
# The SFT row is the draft that the others start from. "SelecTKD" is DistiLLM-2 with the gate (the paper's Figure 1).
# Training data, draft length, temperature, prompts and the definition of acceptance are not in the paper: ours are
# the prompts and settings of Table 1, greedy decoding of Evol-Instruct prompts, and every acceptance by its name.
set -euo pipefail
cd "$(dirname "$0")/../.."
. reports/reproduce/commands.sh
. reports/reproduce/settings.sh
: "${PAIRS:=phi-3-medium phi-3.5-mini}"
: "${ROWS:=gkd:none distillm:none distillm2:none distillm2:$GATE}"

# timed NAME DRAFTS: one GPU, batch 1; all drafts of a training seed in turns on every prompt.
timed() {
  # shellcheck disable=SC2086 # several draft lengths
  selectkd speedup --target "$TEACHER" --draft "${@:2}" --prompts "$DATA/evol_inst_eval.json" --limit "$SPEED_PROMPTS" \
    --gamma $GAMMAS --max-new-tokens "$SPEED_TOKENS" --dtype "$SPEED_DTYPE" --name "$1" --out "$PLACE/records"
}

evaluation
for PAIR in $PAIRS; do
  pair "$PAIR"
  text_of "$KIND"
  fine_tune
  write_text
  write_pairs
  for SEED in $SEEDS; do
    DRAFTS=("$STUDENT")
    for ROW in $ROWS; do
      distil "${ROW%:*}" "${ROW#*:}" "$SEED"
      DRAFTS+=("$TRAINED")
    done
    timed "seed$SEED" "${DRAFTS[@]}"
  done
  printed 5 "$PLACE/records" "$PAIR"
done
