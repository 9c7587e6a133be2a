"""What does speculation gain in our engine and in Hugging Face's assisted generation? One pair, one process.

Embedded teacher and draft, greedy, batch 1, one thread, the same prompts and lengths, arms in turns within each
prompt, CPU seconds, summed per-prompt minima. Hugging Face's draft length is fixed as it must be: on the
assistant's generation config, constant schedule, confidence threshold 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from selectkd_eval.draft_verify import plain, speculative
from selectkd_eval.pair import load_pair
from selectkd_eval.prompts import load_prompts, prompt_ids

PROMPTS, TOKENS, GAMMA, REPETITIONS = 20, 40, 4, 3


def seconds(function: Callable[[], list[int]]) -> tuple[float, list[int]]:
    """CPU seconds and the tokens of one decoding."""
    started = time.process_time()
    tokens = function()
    return time.process_time() - started, tokens


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    pair = load_pair("embedded:teacher", "embedded:draft")
    target, draft, width = pair.teacher.model, pair.student.model, pair.vocabulary
    draft.generation_config.num_assistant_tokens = GAMMA
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0

    def hugging_face(ids: list[int], assistant: object = None) -> list[int]:
        row = torch.tensor([ids])
        kwargs = {} if assistant is None else {"assistant_model": assistant}
        out = target.generate(
            row,
            attention_mask=torch.ones_like(row),
            min_new_tokens=TOKENS,
            max_new_tokens=TOKENS,
            do_sample=False,
            **kwargs,
        )
        return out[0, len(ids) :].tolist()

    total = dict.fromkeys(("ours plain", "ours speculative", "HF plain", "HF assisted"), 0.0)
    for prompt in load_prompts("mini-gsm", PROMPTS).prompts:
        ids = prompt_ids(pair.teacher.tokenizer, prompt.text)
        arms: dict[str, Callable[[], list[int]]] = {
            "ours plain": lambda ids=ids: plain(target, ids, new_tokens=TOKENS, vocabulary=width).tokens,
            "ours speculative": lambda ids=ids: (
                speculative(target, draft, ids, new_tokens=TOKENS, gamma=GAMMA, vocabulary=width).tokens
            ),
            "HF plain": lambda ids=ids: hugging_face(ids),
            "HF assisted": lambda ids=ids: hugging_face(ids, draft),
        }
        for arm in arms.values():
            arm()
        runs = {name: [seconds(arm)] for name, arm in arms.items()}
        for _ in range(REPETITIONS - 1):
            for name, arm in arms.items():
                runs[name].append(seconds(arm))
        for name, found in runs.items():
            total[name] += min(cpu for cpu, _ in found)
    for name, cpu in total.items():
        print(f"{name:<17} {1000 * cpu / PROMPTS / TOKENS:.2f} CPU ms per token")
    print(f"speed-up at gamma {GAMMA}: ours {total['ours plain'] / total['ours speculative']:.2f}, ", end="")
    print(f"HF {total['HF plain'] / total['HF assisted']:.2f}")


if __name__ == "__main__":
    main()
