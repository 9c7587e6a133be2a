#!/usr/bin/env bash
# Table 6: the whole ablation of the appendix; Table 4 and three more greedy rows (k = 10, beta = 0.1 and 0.05).
# Everything resumes: run it again after a stop. DRY_RUN=1 prints and checks the commands only.
set -euo pipefail
cd "$(dirname "$0")/../.."
. reports/reproduce/commands.sh
. reports/reproduce/settings.sh
GATES="none:: hellinger::
  top-k:3:0.01 top-k:5:0.01 top-k:7:0.01 top-k:10:0.01 top-k:5:0.1 top-k:5:0.05 top-k:5:0
  spec-k:3:0.01 spec-k:5:0.01 spec-k:7:0.01 spec-k:10:0.01 spec-k:5:0.1 spec-k:5:0.05 spec-k:5:0"
. reports/reproduce/ablation.sh
printed 6 "$PLACE/records" ablation
