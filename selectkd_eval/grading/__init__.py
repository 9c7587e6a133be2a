"""Is this answer right? Graders, apart from generation: they read text and know no model."""

from selectkd_eval.grading.number import GRADERS, Grader, extract_number, gsm8k_gold

__all__ = ["GRADERS", "Grader", "extract_number", "gsm8k_gold"]
