"""Does a prompt go through the tokenizer's chat template, and what does the template make of it?

lm-eval builds the conversation (system prompt, few-shot turns, question, opening of the answer); the template is the
tokenizer's own. A server applies its own template and needs none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

from selectkd_eval.errors import InputError

Template = Callable[..., str]
"""`template(history, add_generation_prompt=True)`; False continues the last message, which opens the answer."""


def chat_wanted(chat: str, tokenizer: Any, model: str) -> bool:
    """--chat resolved: auto takes the chat template where the tokenizer has one."""
    if chat == "yes" and not tokenizer.chat_template:
        raise InputError(
            f"--chat yes asks for a chat template, and the tokenizer of {model} has none: use --chat no, or save a "
            f"chat_template.jinja beside the tokenizer"
        )
    return chat != "no" and bool(tokenizer.chat_template)


def template_of(tokenizer: Any) -> Template:
    """The tokenizer's chat template as lm-eval applies it: a template that knows no system role gets none."""

    def applied(history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        rule = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(tokenizer.apply_chat_template(history, **rule))
        except TemplateError:
            return str(tokenizer.apply_chat_template([m for m in history if m["role"] != "system"], **rule))

    return applied


def check_system(system: str, tokenizer: Any, model: str) -> None:
    """An InputError when --system would not reach the model: what lm-eval does then is to leave it out in silence."""
    if not system:
        return
    shown = template_of(tokenizer)([{"role": "system", "content": system}, {"role": "user", "content": "?"}])
    if system.strip() not in shown:
        raise InputError(f"the chat template of {model} takes no system prompt: leave --system out, or use --chat no")
