"""What writes answers: lm-eval's own texts, seeds that survive any batch, honest ends, models kept apart."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selectkd_eval.backends import open_backend
from selectkd_eval.backends.answer_store import AnswerStore, answer_key
from selectkd_eval.backends.backend import Asked, Backend, Completion, Decoding
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.tasks.task import Layout, Problem, Task
from selectkd_eval.verbs import PasskOptions

pytestmark = pytest.mark.slow  # lm-eval takes seconds to import; the tests of this file share one process

TURN = "<{{ m.role }}>{{ m.content }}"
TEMPLATE = f"{{% for m in messages %}}{TURN}{{% endfor %}}{{% if add_generation_prompt %}}<assistant>{{% endif %}}"
NO_SYSTEM = TEMPLATE.replace(TURN, "{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TURN)
GREEDY = Decoding(16, 0.0, 1.0, ("hat", "</s>"))
SAMPLED = Decoding(16, 0.9, 0.95, ())
PROMPTS = [f"the red dog sees {i} balls{' and 2 hats' * (i % 4)} ." for i in range(18)]


@pytest.fixture
def options(tiny_pair) -> PasskOptions:
    return PasskOptions(model=str(tiny_pair.teacher), device="cpu", threads=1, batch_size=7)


@pytest.fixture
def copied(tiny_pair, tmp_path: Path) -> Path:
    """A copy of the teacher that a test may change."""
    return Path(shutil.copytree(tiny_pair.teacher, tmp_path / "copied"))


def ask(prompts: Sequence[str], decoding: Decoding = GREEDY) -> list[Asked]:
    return [Asked(prompt, seed, decoding) for seed, prompt in enumerate(prompts)]


def write(backend: Backend, asked: Sequence[Asked]) -> list[Completion]:
    done = list(backend.complete(asked))
    assert len(dict(done)) == len(done) == len(asked)
    return [completion for _, completion in sorted(done)]


def toy_task(**layout: object) -> Task:
    words = {"text": "Question: {{question}}\nAnswer:", "target": "{{answer}}", "stops": (), **layout}
    rows = [{"question": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(4)]
    return Task(
        name="toy",
        kind="answer",
        problems=[Problem(str(i), rows[i], rows[i]["answer"]) for i in (2, 3)],
        examples=rows[:1],
        layout=Layout(name="toy", **words),
        shots=1,
        grader="gsm8k-numeric",
        sha256="0" * 64,
        version="1",
        max_new_tokens=16,
    )


def test_greedy_texts_are_those_of_lm_evals_own_loop(options: PasskOptions) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from selectkd_eval.pair import load_model

    loaded = load_model(options.model)
    prompts = [*PROMPTS, "ball " * 700]
    rule = {"until": list(GREEDY.stops), "max_gen_toks": 16, "do_sample": False}
    theirs = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=5).generate_until(
        [Instance("generate_until", {}, (prompt, dict(rule)), 0) for prompt in prompts], disable_tqdm=True
    )
    ours = write(open_backend(options), ask(prompts))
    assert [one.text for one in ours] == theirs
    assert {one.finish for one in ours} == {"eos", "stop", "length"}
    assert [one.prompt_cut for one in ours] == [False] * len(PROMPTS) + [True]
    assert ours[-1].n_prompt_tokens == 512 - 16
    assert ours[0].n_prompt_tokens == len(loaded.tokenizer(PROMPTS[0]).input_ids)
    assert {one.n_tokens for one in ours if one.finish == "length"} == {16}


def test_a_sampled_text_is_the_same_in_any_batch_order_and_subset(options: PasskOptions) -> None:
    backend = open_backend(options)
    asked = ask([*PROMPTS, *PROMPTS], SAMPLED)  # two samples of each
    whole = write(backend, asked)
    assert len({one.text for one in whole}) > 30
    backend.batch_size = 4
    assert write(backend, asked[::-1]) == whole[::-1]
    assert write(backend, asked[5:30:7]) == whole[5:30:7]
    other = replace(SAMPLED, temperature=0.5)
    mixed = [one if at % 3 else one._replace(decoding=other) for at, one in enumerate(asked)]
    again = write(backend, mixed)
    assert all(again[at] == whole[at] for at in range(len(asked)) if at % 3)
    assert sum(again[at] == whole[at] for at in range(0, len(asked), 3)) < 6
    elsewhere = [one._replace(seed=one.seed + 1000) for one in asked]
    assert sum(a == b for a, b in zip(write(backend, elsewhere), whole, strict=True)) < 6


def test_a_narrow_nucleus_is_greedy(options: PasskOptions) -> None:
    backend = open_backend(options)
    greedy = write(backend, ask(PROMPTS, replace(GREEDY, stops=())))
    assert write(backend, ask(PROMPTS, replace(SAMPLED, top_p=1e-9))) == greedy


def test_draws_follow_the_models_probabilities_within_the_nucleus() -> None:
    from selectkd_eval.backends.hugging_face import _RowDraws
    from selectkd_eval.sampling import Sampling

    probabilities = torch.tensor([0.5, 0.3, 0.2])
    for top_p, expected in ((1.0, probabilities), (0.7, torch.tensor([0.625, 0.375, 0.0]))):
        draws = _RowDraws(Sampling(2.0, top_p), range(4000), start=3, length=1)
        left = draws(torch.zeros(4000, 3, dtype=torch.long), (2 * probabilities.log()).repeat(4000, 1)).argmax(-1)
        # 4 standard errors of the largest share are 0.032.
        assert torch.allclose(torch.bincount(left, minlength=3) / 4000, expected, atol=0.032)


def test_an_answer_ends_at_the_end_token_a_stop_string_or_the_limit() -> None:
    from selectkd_eval.backends.hugging_face import _RowEnds

    class Letters:
        def decode(self, ids: list[int]) -> str:
            return bytes(ids).decode(errors="replace")

    ends = _RowEnds(Letters(), frozenset({0}), ["Question:", "</s>", "終"], start=2, rows=5)
    texts = ["Question: on", "so 3\nQuestion:", "ab\0cdefghijklmnop", "never ends here :", "まで終 or"]
    width = max(len(text.encode()) for text in texts)
    ids = torch.tensor([[*b"xx", *text.encode().ljust(width)] for text in texts])
    for length in range(3, ids.shape[1] + 1):
        done = ends(ids[:, :length], None)
    assert ends.ends == [(9, "stop"), (14, "stop"), (3, "eos"), None, (9, "stop")]
    assert done.tolist() == [True, True, True, False, True]


def test_the_length_asked_wins_over_the_models_own(options: PasskOptions, copied: Path) -> None:
    for file, changed in (("same", {}), ("own", {"max_new_tokens": 3, "temperature": 0.3, "do_sample": True})):
        own = json.loads((copied / "generation_config.json").read_text()) | changed
        (copied / "generation_config.json").write_text(json.dumps(own))
        texts = write(open_backend(replace(options, model=str(copied))), ask(PROMPTS, SAMPLED))
        if file == "same":
            before = texts
    assert texts == before
    assert max(one.n_tokens or 0 for one in texts) == 16


def test_room_leaves_half_for_the_prompt(options: PasskOptions) -> None:
    backend = open_backend(options)
    assert [backend.room(asked) for asked in (9, 256, 400)] == [9, 256, 256]


def test_what_does_not_fit_into_memory_is_tried_in_halves(options: PasskOptions) -> None:
    """The model refuses batches of more than `fits` rows in the words of a GPU that is full."""
    backend = open_backend(options)
    whole = write(backend, ask(PROMPTS, SAMPLED))
    fits, seen = 3, []

    def full(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(len(kwargs["input_ids"]))
        if seen[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    backend.lm.model.register_forward_pre_hook(full, with_kwargs=True)
    places = [place for place, _ in backend.complete(ask(PROMPTS, SAMPLED))]
    lengths = [len(PROMPTS[place]) for place in places]
    assert lengths == sorted(lengths, reverse=True)
    assert seen[:2] == [7, 3]
    assert max(seen[1:]) == 3
    backend.batch_size = 16
    assert write(backend, ask(PROMPTS, SAMPLED)) == whole
    fits = 0
    with pytest.raises(SetupError, match="does not fit into the memory"):
        write(backend, ask(PROMPTS))


def test_a_defect_of_the_model_is_not_taken_for_a_full_memory(options: PasskOptions) -> None:
    backend = open_backend(options)

    def broken(*_: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    backend.lm.model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        write(backend, ask(PROMPTS))


def with_template(directory: Path, template: str) -> str:
    (directory / "chat_template.jinja").write_text(template)
    return str(directory)


def test_prompts_go_through_the_chat_template_unless_told_otherwise(options: PasskOptions, copied: Path) -> None:
    plain = open_backend(options)
    assert not plain.chat
    assert plain.prompts(toy_task())[0] == "Question: 0 + 1 = ?\nAnswer: 1\n\nQuestion: 2 + 1 = ?\nAnswer:"
    chat = replace(options, model=with_template(copied, TEMPLATE), system="Be brief.")
    backend = open_backend(chat)
    assert backend.chat
    turns = (
        "<system>Be brief.<user>Question: 0 + 1 = ?\nAnswer:<assistant>1<user>Question: 2 + 1 = ?\nAnswer:<assistant>"
    )
    assert backend.prompts(toy_task())[0] == turns
    opened = replace(toy_task(prefix="It is"), shots=0)
    last = "<system>Be brief.<user>Question: 2 + 1 = ?\nAnswer:<assistant>It is"
    assert backend.prompts(opened)[0] == last
    told = open_backend(replace(chat, chat="no", system=""))
    assert not told.chat
    assert told.prompts(toy_task()) == plain.prompts(toy_task())


def test_a_template_that_is_missing_or_takes_no_system_prompt_is_one_sentence(
    options: PasskOptions, copied: Path
) -> None:
    with pytest.raises(InputError, match="has none"):
        open_backend(replace(options, chat="yes"))
    for template in (NO_SYSTEM, "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"):
        with pytest.raises(InputError, match="takes no system prompt"):
            open_backend(replace(options, model=with_template(copied, template), system="Be brief."))


def test_identity_tells_models_apart_and_copies_not(options: PasskOptions, tiny_pair, copied: Path) -> None:
    first = open_backend(options).identity
    assert first == open_backend(replace(options, model=str(copied))).identity
    assert {"weights", "tokenizer", "dtype", "device", "attention", "versions"} <= first.keys()
    identities = [first, open_backend(replace(options, model=str(tiny_pair.student))).identity]
    for template in (TEMPLATE, TEMPLATE + " "):
        chat = replace(options, model=with_template(copied, template))
        identities += [open_backend(chat).identity, open_backend(replace(chat, system="Be brief.")).identity]
    identities.append(open_backend(replace(chat, chat="no")).identity)
    keys = {answer_key(identity, Asked("a", 0, GREEDY)) for identity in identities}
    assert len(keys) == len(identities)


def test_no_model_gets_the_answers_of_another(options: PasskOptions, tiny_pair, tmp_path: Path) -> None:
    a = open_backend(options)
    b = open_backend(replace(options, model=str(tiny_pair.student)))
    with AnswerStore(tmp_path / "answers.sqlite") as store:
        asked = ask(PROMPTS)
        store.put_all((answer_key(a.identity, one), text) for one, text in zip(asked, write(a, asked), strict=True))
        assert len(store.find([answer_key(a.identity, one) for one in asked])) == len(asked)
        assert not store.find([answer_key(b.identity, one) for one in asked])


def test_an_adapter_and_its_base_are_both_in_the_identity(options: PasskOptions, copied: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    from selectkd_eval.backends.vllm_engine import (
        model_directory,
    )  # vLLM takes no adapter: it is given the merged model

    model = AutoModelForCausalLM.from_pretrained(copied)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    for file in copied.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "adapter")
    base = open_backend(replace(options, model=str(copied)))
    backend = open_backend(replace(options, model=str(tmp_path / "adapter")))
    assert backend.identity["weights"] == base.identity["weights"] != backend.identity["adapter"]
    texts = write(backend, ask(PROMPTS))
    assert texts != write(base, ask(PROMPTS))
    merged, holder = model_directory(str(tmp_path / "adapter"))
    assert write(open_backend(replace(options, model=str(merged))), ask(PROMPTS)) == texts
    holder.cleanup()
    assert not Path(merged).exists()
    model = AutoModelForCausalLM.from_pretrained(copied)
    torch.nn.init.normal_(model.model.norm.weight)
    model.save_pretrained(copied)
    other = open_backend(replace(options, model=str(tmp_path / "adapter"))).identity
    assert other["adapter"] == backend.identity["adapter"]
    assert other["weights"] != backend.identity["weights"]


def test_wrong_requests_are_one_sentence(options: PasskOptions) -> None:
    with pytest.raises(InputError, match="--base-url"):
        open_backend(replace(options, backend="server"))
    with pytest.raises(InputError, match="at least 1"):
        open_backend(replace(options, batch_size=0))
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(SetupError, match=r"pip install 'selectkd-eval\[vllm\]'"):
            open_backend(replace(options, backend="vllm"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Backend, Backend]]:
    """vLLM, and transformers, on a model whose heads are wide enough for vLLM."""
    pytest.importorskip("vllm", reason="vLLM is not installed here: it lives in an environment of its own")
    from conftest import tiny_llama, tiny_tokenizer

    directory = tmp_path_factory.mktemp("wide")
    tokenizer = tiny_tokenizer(PROMPTS)
    tiny_llama(tokenizer, layers=2, width=256).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    options = PasskOptions(model=str(directory), device="cpu", batch_size=4)
    backend = open_backend(replace(options, backend="vllm"))
    yield backend, open_backend(options)
    backend.llm.llm_engine.engine_core.shutdown()


@pytest.mark.timeout(900)  # the engine takes up to two minutes to start
def test_vllm_writes_what_transformers_writes_and_keeps_to_its_seeds(engine: tuple[Backend, Backend]) -> None:
    vllm, hugging_face = engine
    prompts = [*PROMPTS, "ball " * 700]
    theirs, ours = write(vllm, ask(prompts)), write(hugging_face, ask(prompts))
    # A character that is not whole at the limit is left out by the one and shown as such by the other.
    assert [one._replace(text=one.text.rstrip("\ufffd")) for one in theirs] == [
        one._replace(text=one.text.rstrip("\ufffd")) for one in ours
    ]
    assert vllm.card == hugging_face.card
    assert vllm.identity["weights"] == hugging_face.identity["weights"]
    assert vllm.identity["tokenizer"] == hugging_face.identity["tokenizer"]
    asked = ask(PROMPTS, SAMPLED)
    whole = write(vllm, asked)
    assert write(vllm, asked[3:9][::-1]) == whole[3:9][::-1]
    assert write(vllm, [one._replace(seed=one.seed + 99) for one in asked]) != whole
    assert vllm.room(10**6) == 256
