"""Does the judge judge its own kin? Model families by name, and the sentence that warns.

Judges prefer text of their own family (FastChat measured 71.5 % for GPT-4). SelecTKD judges students of Qwen2 teachers
with Qwen among others (Figure 5), so a rate carries a note where the judge shares a family with the candidate, its
teacher or the baseline. A name tells the family or nothing does; no weights are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# The first pattern that matches a name decides: DeepSeek's distilled Qwen is written in Qwen's weights, by DeepSeek.
_FAMILIES = (
    ("OpenAI", r"(?<![a-z])gpt|chatgpt|davinci|\bo[134](-|\b)|openai"),
    ("DeepSeek", r"deepseek|\bds-coder"),
    ("Qwen", r"qwen|\bqwq|tongyi"),
    ("Moonshot", r"moonshot|kimi"),
    ("Anthropic", r"claude|anthropic"),
    ("Gemma", r"gemma|gemini"),
    ("Mistral", r"mistral|mixtral|ministral|zephyr"),
    ("Danube", r"danube"),
    ("Phi", r"\bphi-?\d"),
    ("Llama", r"llama|vicuna|alpaca|guanaco|tulu"),
)


def family(name: str) -> str:
    """The family that a model's name tells, or an empty string."""
    return next((word for word, pattern in _FAMILIES if re.search(pattern, name, re.IGNORECASE)), "")


def kin(judge: str, candidate: Mapping[str, Any], baseline: Mapping[str, Any]) -> str:
    """One sentence when the judge shares a family with somebody whose text it judges, else an empty string.

    `candidate` and `baseline` are model cards; a trained student's names its teacher and the student before.
    """
    own = family(judge)
    if not own:
        return ""
    related = [f"{what} ({name})" for what, name in _relatives(candidate, baseline) if family(name) == own]
    if not related:
        return ""
    return (
        f"the judge is of the {own} family, and so is {' and so is '.join(related)}: judges prefer their own kin; "
        f"have another family judge as well"
    )


def _relatives(candidate: Mapping[str, Any], baseline: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for side, card in (("candidate", candidate), ("baseline", baseline)):
        training = card.get("training") or {}
        yield f"the {side}", str(card.get("name") or "")
        yield f"the {side}'s teacher", str(training.get("teacher_name") or "")
        yield f"the {side} before its training", str(training.get("start_name") or "")
