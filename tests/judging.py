"""Answer records for the tests of judging."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selectkd_eval import records
from selectkd_eval.prompts import prompt_id
from selectkd_eval.verbs import AnswerOptions


def answer_record(
    directory: Path,
    name: str,
    answers: dict[str, Sequence[str]],
    *,
    prompts: str = "test",
    finish: bool = True,
) -> Path:
    """A record of answers by prompt text, one per seed, as `answer` writes it."""
    options = AnswerOptions(model=name, name=name, out=directory, seeds=tuple(range(len(next(iter(answers.values()))))))
    facts = {
        "model": {"name": name, "method": name, "fingerprint": f"of {name}"},
        "prompts": {"name": prompts, "sha256": "0", "n": len(answers)},
        "generation": {"temperature": 0.8},
    }
    with records.open_record("answer", options, inputs={"model": f"of {name}"}, facts=facts) as record:
        for text, by_seed in answers.items():
            for seed, answer in enumerate(by_seed):
                record.write(
                    f"{prompt_id(text)}/{seed}",
                    prompt=prompt_id(text),
                    text=text,
                    answer=answer,
                    finish="eos",
                    n_tokens=len(answer),
                    seed=seed,
                )
        if finish:
            record.finish()
        return record.path
