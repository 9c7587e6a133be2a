# The ablation of Tables 4 and 6: KD on Qwen2-7B-Inst -> Qwen2-1.5B under every gate named by its caller. Sourced.
#
# GATES: words VERIFIER:K:BETA. The base loss is KD, because Table 4's Spec-k row is Table 1's KD + Ours. Both tables
# share one directory, so table6.sh trains only the rows that table4.sh has not.

needs_judge
evaluation
pair qwen2
text_of "$KIND"
fine_tune
write_text
OWN=()
BEFORE=$STUDENT
PLACE=$RUNS/ablation STUDENT=$BEFORE
judged "$STUDENT" start
for SEED in $SEEDS; do
  for ROW in $GATES; do
    IFS=: read -r VERIFIER ROW_K ROW_BETA <<<"$ROW"
    distil kd "$VERIFIER" "$SEED" "$ROW_K" "$ROW_BETA"
    judged "$TRAINED" "$NAME"
  done
done
