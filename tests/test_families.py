"""A judge and its kin are told by their names, and only by them."""

from __future__ import annotations

import pytest

from judges.families import family, kin


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gpt-4o-mini", "OpenAI"),
        ("text_davinci_003", "OpenAI"),
        ("alpaca_eval_gpt4", "OpenAI"),
        ("o3-mini", "OpenAI"),
        ("Qwen/Qwen2-1.5B", "Qwen"),
        ("qwen-plus", "Qwen"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "DeepSeek"),
        ("moonshot-v1-8k", "Moonshot"),
        ("h2oai/h2o-danube2-1.8b-base", "Danube"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "Mistral"),
        ("google/gemma-2-9b-it", "Gemma"),
        ("microsoft/phi-3-medium", "Phi"),
        ("Llama-68m", "Llama"),
        ("embedded:judge", ""),
        ("students/KD-0", ""),
        ("photo-1", ""),
    ],
)
def test_the_family_is_in_the_name(name: str, wanted: str) -> None:
    assert family(name) == wanted


def test_a_judge_of_the_teachers_family_is_named_with_the_teacher() -> None:
    student = {"name": "students/KD-0", "training": {"teacher_name": "Qwen/Qwen2-7B-Instruct"}}
    said = kin("qwen-plus", student, {"name": "gpt-3.5-turbo"})
    assert "the candidate's teacher (Qwen/Qwen2-7B-Instruct)" in said and "another family" in said
    assert kin("gpt-4o", student, {"name": "base"}) == ""
    assert "the baseline (gpt-3.5-turbo)" in kin("gpt-4o", student, {"name": "gpt-3.5-turbo"})
    assert kin("embedded:judge", student, {"name": "embedded:student"}) == ""
