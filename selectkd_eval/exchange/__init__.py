"""What other tools have measured, as records: lm-eval's and lmms-eval's samples, AlpacaEval's answers and annotations,
Spec-Bench's timed answers.

`importing` is the verb; beside it stands one module per tool, and `foreign` for what their files have in common. What
a file does not tell is None in its record, and no number of ours. Nothing is measured here.
"""
