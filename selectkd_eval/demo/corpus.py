"""Which fixed sets and which tokens does the embedded pair use?
Two synthetic families (`mini_gsm`, `mini_stories`) become named sets: `labelled` (what a student may learn
from directly), `train` (prompts for a teacher to answer), `validation` and `test` (held out by content),
and the large corpus on which teacher, draft and judge are trained. One tokenizer serves all of them: a
token for every word of the two families and every number up to 60, and the 256 bytes for everything else,
so any text can be encoded and comes back unchanged.

Not here: models (`build`), or prompt files from outside (`selectkd_eval.prompts`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from selectkd_eval.demo import mini_gsm, mini_stories
from selectkd_eval.errors import choose

WEIGHTS = Path(__file__).parent / "weights"
"""Where the shipped models lie: `teacher`, `student`, `draft`, `judge`."""

END, PAD = "<|end|>", "<|pad|>"
"""End of text (also the beginning-of-text token, which the tokenizer never adds by itself) and padding."""

SIZES = {
    "mini-gsm": {"labelled": 800, "train": 3000, "validation": 200, "test": 600},
    "mini-stories": {"labelled": 400, "train": 1500, "validation": 200, "test": 300},
}
_SPLIT = {"labelled": "train", "train": "train", "validation": "validation", "test": "test"}
_SPLITTER = r"\d+| ?\p{L}+| ?[^\s\p{L}\d]+|\s+"


def _example(source: str, name: str, prompt: str, answer: str, meta: dict[str, Any]) -> dict[str, Any]:
    identity = hashlib.sha256(prompt.encode()).hexdigest()[:16]
    return {"id": identity, "prompt": prompt, "answer": answer, "source": f"{source}:{name}", "meta": meta}


def gsm_example(problem: mini_gsm.Problem, name: str) -> dict[str, Any]:
    """A problem as prompt and answer; `meta` has question, steps, chain, key (the computation) and result."""
    computation = problem.computation
    meta = {
        "question": problem.question,
        "steps": len(computation.chain),
        "chain": ",".join(computation.chain),
    }
    meta |= {"key": computation.key, "result": problem.result}
    return _example("mini-gsm", name, f"Question: {problem.question}\nAnswer:", problem.answer, meta)


def story_example(story: mini_stories.Story, name: str) -> dict[str, Any]:
    """A story as prompt and answer; `meta` has question (the instruction) and key (its content)."""
    meta = {"question": story.instruction, "key": story.content.key}
    return _example("mini-stories", name, f"Instruction: {story.instruction}\nStory:", story.answer, meta)


@lru_cache(maxsize=16)
def _set(family: str, name: str) -> tuple[dict[str, Any], ...]:
    size, seed = SIZES[family][name], f"set/{name}"
    if family == "mini-gsm":
        return tuple(gsm_example(p, name) for p in itertools.islice(mini_gsm.problems(_SPLIT[name], seed), size))
    told = mini_stories.stories(_SPLIT[name], seed, repeat_content=False)
    return tuple(story_example(s, name) for s in itertools.islice(told, size))


def examples(set_name: str) -> list[dict[str, Any]]:
    """The examples of a named set, always the same ones in the same order.

    Args:
        set_name: `mini-gsm:test`, `mini-stories:labelled` ...: a family, a colon and one of labelled, train,
            validation, test.

    Returns:
        Dictionaries with `id` (hash of the prompt), `prompt`, `answer` (no leading space), `source`, `meta`.
        `train` sets carry their gold answers too; a label-limited experiment does not look at them.

    Raises:
        InputError: there is no such set.
    """
    names = {f"{family}:{name}": (family, name) for family, sizes in SIZES.items() for name in sizes}
    return list(_set(*choose(set_name, names, "embedded prompt set")))


def training_corpus(gsm: int, stories: int, seed: str) -> list[dict[str, Any]]:
    """The large corpus (training split only) for a model that is meant to know the families well.

    Args:
        gsm: number of mini-GSM examples.
        stories: number of mini-stories examples; contents recur with other words.
        seed: any text; the judge uses another than the teacher.
    """
    problems = itertools.islice(mini_gsm.problems("train", f"corpus/{seed}"), gsm)
    told = itertools.islice(mini_stories.stories("train", f"corpus/{seed}"), stories)
    return [gsm_example(p, "corpus") for p in problems] + [story_example(s, "corpus") for s in told]


def write_task_file(set_name: str, path: Path) -> Path:
    """Writes a set as GSM8K writes its test file: one JSON object with `question` and `answer` per line."""
    rows = [{"question": row["meta"]["question"], "answer": row["answer"]} for row in examples(set_name)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def corpus_sha256(rows: list[dict[str, Any]]) -> str:
    """Hash of a list of examples, prompts and answers in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row["prompt"].encode() + b"\0" + row["answer"].encode() + b"\n")
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _words() -> list[str]:
    """Every word and mark of both families as the splitter cuts it, in sorted order."""
    from tokenizers import Regex, pre_tokenizers

    cut = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLITTER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    words: set[str] = set()
    for row in training_corpus(3000, 3000, "vocabulary"):
        words.update(word for word, _ in cut.pre_tokenize_str(f"{row['prompt']} {row['answer']}"))
    return sorted(word for word in words if not word.isdigit())


def build_tokenizer() -> Any:
    """The tokenizer of the embedded models, as a `tokenizers.Tokenizer`.

    A byte-level BPE without merges: a piece that is a vocabulary entry is one token, any other piece is
    its bytes.
    Digits are cut apart from spaces and signs, so 0 to 60 are one token wherever they stand.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    split = pre_tokenizers.Split(Regex(_SPLITTER), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    entries = [END, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    entries += [str(number) for number in range(10, mini_gsm.LARGEST + 1)]
    entries += [word for word in _words() if word not in set(entries)]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True), AddedToken(PAD, special=True)])
    return tokenizer
