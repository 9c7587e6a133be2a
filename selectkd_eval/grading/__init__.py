"""Is this answer right? Graders, apart from generation: they read text and know no model."""

from selectkd_eval.grading.grade import Grade, Grading
from selectkd_eval.grading.graders import GRADER_ROWS, GraderRow, open_grader
from selectkd_eval.grading.number import NumberGrading, extract_number, gsm8k_gold

__all__ = [
    "GRADER_ROWS",
    "Grade",
    "GraderRow",
    "Grading",
    "NumberGrading",
    "extract_number",
    "gsm8k_gold",
    "open_grader",
]
