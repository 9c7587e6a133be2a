#!/usr/bin/env bash
# Table 4: the ablation over verifier, k and beta in the main text. Average win rate on three sets.
# Everything resumes: run it again after a stop. DRY_RUN=1 prints and checks the commands only.
set -euo pipefail
cd "$(dirname "$0")/../.."
. reports/reproduce/commands.sh
. reports/reproduce/settings.sh
GATES="none:: hellinger::
  top-k:3:0.01 top-k:5:0.01 top-k:7:0.01 top-k:5:0
  spec-k:3:0.01 spec-k:5:0.01 spec-k:7:0.01 spec-k:10:0.01 spec-k:5:0.1 spec-k:5:0.05 spec-k:5:0"
. reports/reproduce/ablation.sh
printed 4 "$PLACE/records" ablation
