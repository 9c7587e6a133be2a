# What every script here does with a command: check it, say it, run it once. Sourced, after `set -euo pipefail`.
#
#   DRY_RUN=1  print every command and check its options with the command line's own parser; run nothing
#   FORCE=1    run commands whose record is finished too (they go through their inputs again and measure nothing new)

: "${DRY_RUN:=0}" "${FORCE:=0}" "${PYTHON:=python}"
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

note() { printf '%s\n' "$*" >&2; }

coproc CHECK { "$PYTHON" "$HERE/check.py"; }

# shown WORDS: one line that can be pasted into a shell.
shown() {
  local line
  printf -v line '%q ' "$@"
  printf '%s\n' "${line% }"
}

# run WORDS: any command that is not selectkd-eval's.
run() {
  shown "$@"
  [ "$DRY_RUN" = 1 ] || "$@"
}

# selectkd VERB OPTIONS: sets RECORD to where the command's record lies, and runs the command unless that is finished.
selectkd() {
  local state words
  printf -v words '%s\x1f' "$@"
  printf '%s\n' "${words%?}" >&"${CHECK[1]}"
  IFS=' ' read -r state RECORD <&"${CHECK[0]}" || state=error
  [ "$state" != error ] || { note "${0##*/}: stopped at the command above"; exit 2; }
  local -a line=("$PYTHON" -m selectkd_eval)
  # --bf16 is the trainer's own; the launcher only starts one process per GPU.
  [ "$1" != train ] || [ "$GPUS" = 1 ] ||
    line=(accelerate launch --multi_gpu --num_processes "$GPUS" --mixed_precision no -m selectkd_eval)
  shown "${line[@]}" "$@"
  [ "$DRY_RUN" = 0 ] || return 0
  if [ "$state" = done ] && [ "$FORCE" = 0 ]; then
    note "  finished: $RECORD"
  else
    "${line[@]}" "$@"
  fi
}

# prepare WHAT OPTIONS: one set of prompts, or one model, made by prepare.py; it skips what is there.
prepare() { run "$PYTHON" "$HERE/prepare.py" "$@"; }

# evaluation: the three judged sets, and the sets whose prompts must not be trained on.
evaluation() {
  prepare evaluation --out "$DATA"
  EXCLUDE=("$DATA/alpaca_eval.json" "$DATA/evol_inst_eval.json" "$DATA/ultrafeedback_eval.json"
    "$DATA/gsm8k.jsonl" "$DATA/math.jsonl" "$DATA/humaneval.jsonl" "$DATA/mbpp.jsonl")
}

# text_of KIND: prompts with the data set's own answers. Sets TRUTH, HELD_OUT_TRUTH, WHOLE and EPOCHS.
text_of() {
  local set drawn=$PROMPTS
  case $1 in
  chat | draft) set=ultrachat EPOCHS=$EPOCHS_CHAT ;;
  math) set=metamath EPOCHS=$EPOCHS_MATH ;;
  code) set=wizardcoder EPOCHS=$EPOCHS_CODE drawn=0 ;; # paper 5.1 names no number: all of it
  esac
  prepare "$set" --out "$DATA" --prompts "$drawn" --held-out "$HELD_OUT" --characters "$PROMPT_CHARACTERS" \
    --seed "$DRAW_SEED"
  TRUTH=$DATA/$set-train.jsonl HELD_OUT_TRUTH=$DATA/$set-validation.jsonl WHOLE=$DATA/$set-whole.jsonl
}

# cut_into N: sequences per update over all processes, as --batch-size (per process) and --accumulation (forward passes).
cut_into() {
  local each=$(($1 / GPUS)) passes
  [ $((each * GPUS)) = "$1" ] || { note "$1 sequences per update do not go evenly into GPUS=$GPUS"; exit 2; }
  passes=$(((each + MICRO - 1) / MICRO))
  while [ $((each % passes)) != 0 ]; do passes=$((passes + 1)); done
  CUT=(--batch-size "$each" --accumulation "$passes")
}

# fine_tune: the student that every method starts from. Sets STUDENT.
fine_tune() {
  if [ "$START" = instruct ] && [ -n "$INSTRUCT" ]; then
    STUDENT=$INSTRUCT
    return 0
  fi
  local base=$PLACE/base/${BASE##*/} lr=$SFT_LR epochs=$SFT_EPOCHS batch=$SFT_BATCH schedule=$SFT_SCHEDULE
  [ "$KIND" != code ] || lr=$SFT_CODE_LR epochs=$SFT_CODE_EPOCHS batch=$SFT_CODE_BATCH schedule=$SFT_CODE_SCHEDULE
  # The base model's weights under the teacher's tokenizer, so that both see one chat template and one end token.
  prepare start --out "$base" --model "$BASE" --tokenizer "$TEACHER" ${END:+--end "$END"}
  STUDENT=$PLACE/students/start
  cut_into "$batch"
  selectkd train --recipe sft --student "$base" --data "$WHOLE" --validation "$HELD_OUT_TRUTH" \
    --exclude "${EXCLUDE[@]}" "${CUT[@]}" \
    --epochs "$epochs" --lr "$lr" --schedule "$schedule" --warmup "$WARMUP" --weight-decay "$WEIGHT_DECAY" \
    --clip "$CLIP" --max-length "$SFT_MAX_LENGTH" --attention "$ATTENTION" --bf16 --gradient-checkpointing \
    --eval-every "$EVAL_EVERY" --save-every "$EVAL_EVERY" --method SFT --seed 0 --name start \
    --out "$PLACE/records" --save "$STUDENT"
}

# write_text: what the teacher answers to the training and the held-out prompts. Sets WRITTEN and HELD_OUT_TEXT.
write_text() {
  local prompts
  for prompts in "$TRUTH" "$HELD_OUT_TRUTH"; do
    selectkd answer --model "$TEACHER" ${TEACHER_URL:+--base-url "$TEACHER_URL"} --prompts "$prompts" \
      --temperature "$TEXT_TEMPERATURE" --top-p "$TEXT_TOP_P" --max-new-tokens "$TEXT_TOKENS" \
      --batch-size "$CLIENTS" --name teacher-text --out "$PLACE/text"
    [ "$prompts" = "$TRUTH" ] && WRITTEN=$RECORD || HELD_OUT_TEXT=$RECORD
  done
}

# write_pairs: the starting student's own answers, one record per epoch, when STUDENT_TEXT=start. Sets OWN.
write_pairs() {
  local epoch
  OWN=()
  [ "$STUDENT_TEXT" = start ] || return 0
  for epoch in $(seq 0 $((EPOCHS - 1))); do
    selectkd answer --model "$STUDENT" --prompts "$TRUTH" --temperature "$TEXT_TEMPERATURE" --top-p "$TEXT_TOP_P" \
      --max-new-tokens "$TEXT_TOKENS" --batch-size "$CLIENTS" --seeds "$epoch" --name student-text --out "$PLACE/text"
    OWN+=("$RECORD")
  done
}

# distil METHOD VERIFIER SEED [K [BETA]]: one student. Sets TRAINED (its directory) and NAME.
distil() {
  local verifier=$2 seed=$3 k=${4:-$K} beta=${5:-$BETA} data gate=() pairs=() words=()
  method "$1"
  [ "$TEXT" = teacher ] && data=$WRITTEN || data=$TRUTH
  NAME=$1-$verifier-seed$seed
  if [ "$verifier" = top-k ] || [ "$verifier" = spec-k ]; then
    gate=(--k "$k" --beta "$beta")
    NAME=$1-$verifier-k$k-beta$beta-seed$seed
  fi
  [ "$PAIRS_OF" = 0 ] || [ ${#OWN[@]} = 0 ] || pairs=(--student-text "${OWN[@]}")
  [ -z "$VARIANT" ] || words+=(--variant "$VARIANT")
  # Only text that stays the same is worth keeping hidden states of.
  case $1 in kd | seqkd) [ -z "$TEACHER_CACHE" ] || words+=(--teacher-cache "$TEACHER_CACHE") ;; esac
  TRAINED=$PLACE/students/$NAME
  cut_into "$BATCH"
  selectkd train --recipe "$RECIPE" "${words[@]}" --teacher "$TEACHER" --student "$STUDENT" \
    --verifier "$verifier" "${gate[@]}" --data "$data" --validation "$HELD_OUT_TEXT" "${pairs[@]}" \
    --exclude "${EXCLUDE[@]}" "${CUT[@]}" \
    --epochs "$EPOCHS" --lr "$LR" --schedule "$SCHEDULE" --warmup "$WARMUP" --weight-decay "$WEIGHT_DECAY" \
    --clip "$CLIP" --max-length "$MAX_LENGTH" --lora-rank "$LORA_RANK" --lora-alpha "$LORA_ALPHA" \
    --lora-dropout "$LORA_DROPOUT" --generation-max-new-tokens "$((MAX_LENGTH / 2))" \
    --attention "$ATTENTION" --bf16 --gradient-checkpointing --eval-every "$EVAL_EVERY" --patience "$PATIENCE" \
    --save-every "$EVAL_EVERY" --seed "$seed" --name "$NAME" --out "$PLACE/records" --save "$TRAINED"
}

# judged MODEL NAME: its answers to the three sets, and their win rates.
judged() {
  local model=$1 name=$2 set judge
  for set in alpaca-eval evol-instruct ultrafeedback; do
    judge=$JUDGE
    [ "$set" != ultrafeedback ] || judge=$JUDGE_ULTRAFEEDBACK
    selectkd answer --model "$model" --prompts "$set" --prompt-dir "$DATA" --temperature "$ANSWER_TEMPERATURE" \
      --top-p "$ANSWER_TOP_P" --max-new-tokens "$ANSWER_TOKENS" --batch-size "$CLIENTS" --name "$name-$set" \
      --out "$PLACE/records"
    selectkd winrate --candidate "$RECORD" --baseline "$set" --prompt-dir "$DATA" --judge "$judge" \
      --protocol "$PROTOCOL" --concurrency "$CLIENTS" --name "$name-$set" --out "$PLACE/records"
  done
}

# needs_judge: say now, not after days of training, that the judge's key is missing.
needs_judge() {
  if [ "$DRY_RUN" = 0 ] && [ -z "${OPENAI_API_KEY:-}" ] && [ "${JUDGE%%:*}" != likelihood ]; then
    note "${0##*/}: the win rates of this table are judged by $JUDGE: set OPENAI_API_KEY"
    exit 2
  fi
}

# printed NUMBER RECORDS NAME: the table from these records.
printed() {
  selectkd table "$1" --records "$2" --out "$TABLES/$3" --resamples "$RESAMPLES"
}
