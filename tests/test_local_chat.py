"""A model on this machine replies: its own texts, whatever the batch; systems, long prompts and full memories."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import TinyPair
from local_judges import scripted

from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.generate import generate
from selectkd_eval.local_chat import Asked, Decoding, HuggingFaceChat, LocalChat, check_system, open_chat
from selectkd_eval.pair import load_tokenizer
from selectkd_eval.prompts import render_conversation
from selectkd_eval.served import Reply

PROMPTS = [f"the red dog sees {i} balls{' and 2 hats' * (i % 4)} ." for i in range(14)]
GREEDY, SAMPLED = Decoding(12), Decoding(12, 0.9, 0.95)
TURN = "<s>{{ m.role }}: {{ m.content }}"
SYSTEM = "{% for m in messages %}" + TURN + "{% endfor %}<s>"
REFUSAL = "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
REFUSES = "{% for m in messages %}" + REFUSAL + TURN + "{% endfor %}"
SILENT = "{% for m in messages %}{% if m.role != 'system' %}" + TURN + "{% endif %}{% endfor %}"
TURNS = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Hi"}]


@pytest.fixture
def chat(tiny_pair: TinyPair) -> HuggingFaceChat:
    return HuggingFaceChat(str(tiny_pair.teacher), "cpu", 1, 5)


def ask(prompts: Sequence[str]) -> list[Asked]:
    return [Asked([{"role": "user", "content": prompt}], seed) for seed, prompt in enumerate(prompts)]


def written(chat: LocalChat, asked: Sequence[Asked], decoding: Decoding) -> list[Reply]:
    done = dict(chat.replies(asked, decoding))
    return [done[place] for place in range(len(asked))]


def test_greedy_replies_are_the_decoders_own_texts(chat: HuggingFaceChat) -> None:
    expected = generate(chat.model, chat.tokenizer, PROMPTS, max_new_tokens=12)
    found = written(chat, ask(PROMPTS), GREEDY)
    assert [(one.text, one.finish, one.n_tokens) for one in found] == [
        (one.text.removeprefix(" "), one.finish, len(one.tokens)) for one in expected
    ]


def test_what_does_not_fit_into_memory_is_tried_in_halves(chat: HuggingFaceChat) -> None:
    """The model refuses batches of more than `fits` rows in the words of a GPU that is full."""
    whole = written(chat, ask(PROMPTS), SAMPLED)
    fits, seen = 2, []

    def full(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(kwargs["attention_mask"].shape[0])
        if seen[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    chat.model.register_forward_pre_hook(full, with_kwargs=True)
    assert written(chat, ask(PROMPTS), SAMPLED) == whole
    assert seen[:2] == [5, 2]
    fits = 0
    with pytest.raises(SetupError, match="does not fit into the memory"):
        written(chat, ask(PROMPTS), SAMPLED)


def test_a_defect_of_the_model_is_not_taken_for_a_full_memory(chat: HuggingFaceChat) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    chat.model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        written(chat, ask(PROMPTS), GREEDY)


def test_room_is_left_for_the_prompt_and_a_prompt_is_never_cut(chat: HuggingFaceChat) -> None:
    assert [chat.room(asked) for asked in (9, 256, 400)] == [9, 256, 256]
    short, long = written(chat, ask(["a ball", "ball " * 600]), GREEDY)
    assert (short.error, long.text) == ("", "")
    assert "exceed 512 positions" in long.error


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (SYSTEM, "<s>system:  Be brief. <s>user: Hi<s>"),
        (REFUSES, "<s>user:  Be brief. \n\nHi"),
        (SILENT, "<s>user:  Be brief. \n\nHi"),
        (None, " Be brief. \n\nHi"),
    ],
)
def test_a_system_prompt_reaches_the_model_whatever_its_template(
    tiny_pair: TinyPair, template: str | None, expected: str
) -> None:
    tokenizer = load_tokenizer(str(tiny_pair.teacher))
    tokenizer.chat_template = template
    assert render_conversation(tokenizer, TURNS) == expected


@pytest.mark.parametrize(("template", "sentence"), [(SILENT, "template takes none"), (None, "no chat template")])
def test_a_system_prompt_that_is_asked_for_must_be_one(tmp_path: Path, template: str | None, sentence: str) -> None:
    model = scripted(tmp_path / "model", {}, template=template)
    check_system("", model)
    with pytest.raises(InputError, match=f"--system was given, .*{sentence}"):
        check_system("Be brief.", model)


def test_a_template_that_opens_the_reasoning_is_known(tmp_path: Path) -> None:
    follows = {"<think>": "hm", "hm": "</think>", "</think>": "yes"}
    template = "{% for m in messages %}{{ m.content }}{% endfor %}<think>"
    model = scripted(tmp_path / "model", follows, words=("hm", "yes", "<think>", "</think>"), template=template)
    reply = written(HuggingFaceChat(model, "cpu", 1, 4), ask(["a"]), GREEDY)[0]
    assert (reply.text, reply.reasoning, reply.finish, reply.n_tokens) == ("yes", "hm", "eos", 4)


@pytest.mark.timeout(900)  # the engine takes up to two minutes to start
def test_vllm_replies_as_transformers_does_and_keeps_to_its_seeds(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed here: it lives in an environment of its own")
    from conftest import tiny_llama, tiny_tokenizer

    tokenizer = tiny_tokenizer(PROMPTS)
    tokenizer.chat_template = SYSTEM
    tiny_llama(tokenizer, layers=2, width=256).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ours = open_chat("hf", str(tmp_path), "cpu", 1, 4, "a test")
    vllm = open_chat("vllm", str(tmp_path), "cpu", 1, 4, "a test")
    prompts = [*PROMPTS, "ball " * 700]
    # A character that is not whole at the limit is left out by the one and shown as such by the other.
    theirs, expected = written(vllm, ask(prompts), GREEDY), written(ours, ask(prompts), GREEDY)
    assert [one.text.rstrip("\ufffd") for one in theirs] == [one.text.rstrip("\ufffd") for one in expected]
    assert [(one.finish, one.n_tokens, one.error) for one in theirs] == [
        (one.finish, one.n_tokens, one.error) for one in expected
    ]
    assert vllm.card == ours.card
    for fact in ("chat_template_sha256", "tokenizer"):
        assert vllm.facts[fact] == ours.facts[fact]
    whole = written(vllm, ask(PROMPTS), SAMPLED)
    assert written(vllm, ask(PROMPTS)[3:9], SAMPLED) == whole[3:9]
    assert written(vllm, [one._replace(seed=one.seed + 99) for one in ask(PROMPTS)], SAMPLED) != whole
    vllm.engine.llm.llm_engine.engine_core.shutdown()


def test_without_vllm_the_extra_is_named(tiny_pair: TinyPair) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here")
    with pytest.raises(SetupError, match=r"answer --backend vllm needs .*pip install 'selectkd-eval\[vllm\]'"):
        open_chat("vllm", str(tiny_pair.teacher), "cpu", 1, 4, "answer --backend vllm")
