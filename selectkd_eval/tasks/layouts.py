"""How is a problem put to a model? Every prompt wording that has a name, and whose wording it is.

Templates are Jinja over a problem's fields, exactly as lm-eval 0.4.13 renders them, so that a published number can be
asked for again word by word. The chat template, the system prompt and how examples are joined are not here: they are
lm-eval's (`lm_task`).
"""

from __future__ import annotations

from selectkd_eval.tasks.exemplars import CHAINS_OF_THOUGHT, MBPP_FIRST_THREE, MINERVA
from selectkd_eval.tasks.task import Layout

_ENDS = ("</s>", "<|im_end|>")
_BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
_BOXED_SOURCE = "Qwen2.5-Math's qwen-boxed = DeepSeekMath's chat prompt, as the user's turn"

# ---- questions with a number for an answer; fields: question, answer

QUESTION = Layout(
    name="qa",
    text="Question: {{question}}\nAnswer:",
    target="{{answer}}",
    stops=("Question:", *_ENDS),
    source="lm-eval gsm8k, version 3",
)
QUESTION_DRAWN = Layout(
    name="qa",
    text=QUESTION.text,
    target=QUESTION.target,
    stops=QUESTION.stops,
    shots=5,
    sampler="default",
    source="lm-eval gsm8k, version 3: other training examples before each question, drawn from its seed 1234",
)
QUESTION_FIRST = Layout(
    name="qa-first",
    text=QUESTION.text,
    target=QUESTION.target,
    stops=QUESTION.stops,
    shots=5,
    source="lm-eval gsm8k's words; before every question the first examples of the training split",
)
CHAIN_OF_THOUGHT = Layout(
    name="cot",
    text="Q: {{question}}\nA:",
    target="{{target if target is defined else answer.split('####')[-1].strip()}}",
    stops=("Q:", *_ENDS),
    shots=8,
    examples=CHAINS_OF_THOUGHT,
    source="lm-eval gsm8k_cot, version 3 (Wei et al. 2022)",
)
CHAIN_OF_THOUGHT_ZERO = Layout(
    name="cot-zero",
    text="Q: {{question}}\nA: Let's think step by step.",
    target="{{answer}}",
    stops=("Q:", *_ENDS),
    source="lm-eval gsm8k_cot_zeroshot, version 3 (Kojima et al. 2022)",
)
QUESTION_BOXED = Layout(
    name="boxed", text="{{question}}" + _BOXED, target="{{answer}}", stops=_ENDS, source=_BOXED_SOURCE
)
QUESTION_LAYOUTS = (CHAIN_OF_THOUGHT, CHAIN_OF_THOUGHT_ZERO, QUESTION_BOXED)

# ---- competition mathematics; fields: problem, solution

MATH_BOXED = Layout(name="boxed", text="{{problem}}" + _BOXED, target="{{solution}}", stops=_ENDS, source=_BOXED_SOURCE)
MATH_MINERVA = Layout(
    name="minerva",
    text="Problem:\n{{problem}}\n\nSolution:",
    target="{{solution}}",
    stops=("Problem:",),
    shots=4,
    examples=MINERVA,
    source="lm-eval minerva_math, version 3.1 (Lewkowycz et al. 2022)",
)
MATH_HENDRYCKS = Layout(
    name="hendrycks",
    text="Problem: {{problem}}\nAnswer:",
    target="{{solution}}",
    stops=("Problem:",),
    source="lm-eval hendrycks_math, version 1",
)
MATH_LAYOUTS = (MATH_MINERVA, MATH_BOXED, MATH_HENDRYCKS)

# ---- programs; fields: prompt, entry_point (HumanEval), and text, test_list (MBPP)

_EVALPLUS_ENDS = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")
_EVALPLUS_ASK = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```\n{{prompt | trim}}\n```\n"
)
_EVALPLUS_PREFIX = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding "
    "tests:\n```python\n"
)
_EVALPLUS = "EvalPlus 26d6d00"

EVALPLUS_CHAT = Layout(
    name="evalplus",
    text=_EVALPLUS_ASK,
    target="",
    stops=(*_EVALPLUS_ENDS, "\n```\n"),
    prefix=_EVALPLUS_PREFIX,
    source=f"{_EVALPLUS}, chat models (the paper's code results, after DistiLLM-2, are EvalPlus's)",
)
HUMANEVAL_COMPLETION = Layout(
    name="completion",
    text="{{prompt}}",
    target="",
    stops=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
    continues=True,
    source="lm-eval humaneval, version 1",
)
HUMANEVAL_INSTRUCT = Layout(
    name="instruct",
    text="Write a solution to the following problem and make sure that it passes the tests:\n"
    "```python\n{{ prompt }}\n```\n",
    target="",
    stops=HUMANEVAL_COMPLETION.stops,
    prefix="Here is the completed function:\n```python\n{{ prompt }}\n",
    continues=True,
    source="lm-eval humaneval_instruct, version 4",
)
HUMANEVAL_EVALPLUS = Layout(
    name="evalplus-completion",
    text="{{prompt | trim}}\n",
    target="",
    stops=(*_EVALPLUS_ENDS, "\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert "),
    continues=True,
    source=f"{_EVALPLUS}, plain models",
)
HUMANEVAL_LAYOUTS = (HUMANEVAL_COMPLETION, EVALPLUS_CHAT, HUMANEVAL_INSTRUCT, HUMANEVAL_EVALPLUS)

_THREE_TESTS = "{{test_list[:3] | join('\\n')}}"

MBPP_BEGIN_DONE = Layout(
    name="begin-done",
    text="You are an expert Python programmer, and here is your task: {{text}} Your code should pass these tests:\n\n"
    f"{_THREE_TESTS}\n[BEGIN]\n",
    target="{% if code is defined %}{{code}}\n[DONE]{% endif %}",
    stops=("[DONE]",),
    shots=3,
    examples=MBPP_FIRST_THREE,
    delimiter="",
    source="lm-eval mbpp and mbpp_plus, version 1 (Austin et al. 2021)",
)
MBPP_INSTRUCT = Layout(
    name="instruct",
    text="You are an expert Python programmer, and here is your task:\n{{text}}\nYour code should pass these tests:\n"
    f"{_THREE_TESTS}",
    target="{% if code is defined %}{{code}}\n```{% endif %}",
    stops=("```",),
    shots=3,
    examples=MBPP_FIRST_THREE,
    delimiter="",
    prefix="\n```python\n",
    source="lm-eval mbpp_instruct, version 1; it cuts the answer at its first fence, here that is the stop string",
)
MBPP_EVALPLUS = Layout(
    name="evalplus-completion",
    text="{{prompt | trim}}\n",
    target="",
    stops=(*_EVALPLUS_ENDS, '\n"""', "\nassert"),
    continues=True,
    source=f"{_EVALPLUS}, plain models",
)
MBPP_LAYOUTS = (MBPP_BEGIN_DONE, EVALPLUS_CHAT, MBPP_INSTRUCT, MBPP_EVALPLUS)
