"""How does lm-eval ask a task's questions? The task as lm-eval's own, and the prompts that it makes of it.

pass@1 numbers are compared across papers, so few-shot layout, chat turns and delimiters are lm-eval's code, not a copy
of it. The task is built from a dictionary: lm-eval's scan of its 14,683 task names would take half a minute. Grading
is not here; whoever runs lm-eval's own evaluator on the task hands in a score.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import env

from selectkd_eval.backends.backend import Decoding
from selectkd_eval.tasks.sources import DRAW_SEED
from selectkd_eval.tasks.task import Task

logging.getLogger("lm_eval").setLevel(logging.ERROR)

Score = Callable[[dict[str, Any], str], float]
"""Row (its fields, `id` and `gold`) and completion to the value of lm-eval's metric `pass@1`."""


def lm_task(task: Task, decoding: Decoding | None = None, score: Score | None = None) -> ConfigurableTask:
    """The task for lm-eval: its prompts, its stop strings, its decoding. Without a score every answer counts 0."""
    drawn = decoding or Decoding(task.max_new_tokens, 0.0, 1.0, task.layout.stops)
    splits = {"test": Dataset.from_list([{**p.fields, "id": p.id, "gold": p.gold} for p in task.problems])}
    config: dict[str, Any] = {
        "task": task.name,
        "custom_dataset": lambda **_: splits,
        "output_type": "generate_until",
        "test_split": "test",
        "num_fewshot": task.shots,
        "doc_to_text": _filled(task.layout.text),
        "doc_to_target": _filled(task.layout.target),
        "target_delimiter": task.layout.delimiter,
        "gen_prefix": task.layout.prefix or None,
        "generation_kwargs": _generation(drawn),
        "process_results": lambda doc, results: {"pass@1": score(doc, results[0]) if score else 0.0},
        "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    if task.shots and task.layout.examples:
        config["fewshot_config"] = {"sampler": task.layout.sampler, "samples": task.examples}
    elif task.shots:
        splits["train"] = Dataset.from_list(task.examples)
        config |= {"fewshot_split": "train", "fewshot_config": {"sampler": task.layout.sampler}}
    built = ConfigurableTask(config=config)
    built.set_fewshot_seed(DRAW_SEED)
    return built


def _filled(template: str) -> Callable[[dict[str, Any]], str]:
    """A row's text by lm-eval's own Jinja environment, compiled once: lm-eval compiles it anew for every text, which
    is half a minute for four examples before each of MATH's 5,000 problems."""
    compiled = env.from_string(template)
    return lambda doc: str(compiled.render(**doc))


def _generation(decoding: Decoding) -> dict[str, Any]:
    sampled = {"top_p": decoding.top_p} if decoding.temperature > 0 else {}
    return {
        "until": list(decoding.stops),
        "max_gen_toks": decoding.max_new_tokens,
        "do_sample": decoding.temperature > 0,
        "temperature": decoding.temperature,
        **sampled,
    }


def rendered(
    task: Task, *, system: str = "", template: Callable[..., str] | None = None, tokenizer_name: str = ""
) -> list[str]:
    """One prompt per problem, in the task's order.

    `template` is lm-eval's `apply_chat_template(history, add_generation_prompt)` of a model; examples then are turns
    of their own. Without one the prompt is plain text. A server's template returns its messages as JSON.
    """
    built = lm_task(task)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar, which cannot be turned off, lasts a second
        built.build_all_requests(
            system_instruction=system or task.layout.system or None,
            apply_chat_template=template is not None,
            fewshot_as_multiturn=template is not None,
            chat_template=template,
            tokenizer_name=tokenizer_name,
        )
    prompts = [getattr(request.args[0], "prompt", request.args[0]) for request in built.instances]
    if template is None or not task.layout.prefix:
        return prompts
    prefixes = [str(built.doc_to_prefix(request.doc)) for request in built.instances]
    return [_opened(prompt, prefix) for prompt, prefix in zip(prompts, prefixes, strict=True)]


def _opened(prompt: str, prefix: str) -> str:
    """The prompt ending in the whole prefix: a chat template that trims turns (Llama 3's) drops its last line break.

    EvalPlus keeps it, because it cuts the rendered turn in the middle; lm-eval does not.
    """
    if prompt.endswith(prefix) or not prompt.endswith(prefix.rstrip()):
        return prompt
    return prompt + prefix[len(prefix.rstrip()) :]
