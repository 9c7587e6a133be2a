#!/usr/bin/env bash
# Table 3: a vision-language model (InternVL2-8B -> InternVL2-2B on Mantis-Instruct, nine benchmarks).
set -euo pipefail
cat >&2 <<'TEXT'
Table 3 is not reproduced. This toolkit distils and measures text models: it has no image inputs, so neither the
training of InternVL2-2B (Mantis-Instruct, 3 epochs, AdamW (0.9, 0.95), cosine, batch 128, learning rate 8e-5, no
warm-up) nor its nine benchmarks (MMBench, MMStar, MMMU, MathVista, OCRBench, AI2D, HallusionBench, MMVet and their
average) can be run with it. Nothing was run.
TEXT
